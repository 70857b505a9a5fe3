"""What is painted once for a head: hair, glasses, neck, clothes and background, and the face among them."""

import functools
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from unavglip_jax.data.heads.canvas import Canvas, Image, Layer, Map, Noise, lay, layer, light_on
from unavglip_jax.data.heads.curves import Points, bell, mirrored, points, sides, spline, step
from unavglip_jax.data.heads.face import draw_face
from unavglip_jax.data.heads.identity import CUTS, Hair, Head
from unavglip_jax.data.heads.shape import canvas_of, coarse, depth_of, moves_of


class Look(NamedTuple):
    """A head prepared for pictures of a size."""

    canvas: Canvas  # of the layers
    grid: Canvas  # of `depth` and `moves`
    background: UInt8[np.ndarray, "P P 3"]  # as large as the picture
    back: Layer  # body and the hair behind the head
    face: Layer  # skin, ears and beard
    front: Layer  # hair and glasses before the face
    depth: Float[np.ndarray, "G G"]  # z
    moves: Float[np.ndarray, "M G G 2"]  # of the face with mouth and brows; see `moves_of`
    grain: Map  # texture for the lips


@functools.lru_cache(maxsize=6)
def prepare(head: Head, size: int) -> Look:
    """Everything of a head that can be drawn once."""
    canvas = canvas_of(head, size)
    grid = coarse(canvas)
    rng = np.random.default_rng(head.seed)
    noise = Noise(rng.standard_normal((512, 512), np.float32), canvas.side)
    front, hidden = draw_front(head, canvas, noise)
    return Look(
        canvas=canvas,
        grid=grid,
        background=draw_background(head, size, rng),
        back=draw_back(head, canvas, noise),
        face=draw_face(head, canvas, noise, hidden, rng),
        front=front,
        depth=depth_of(head, grid),
        moves=moves_of(head, grid),
        grain=noise.smooth(0.7),
    )


def draw_front(head: Head, canvas: Canvas, noise: Noise) -> tuple[Layer, Map]:
    """Hair and glasses before the face; and where the hair is, which shades the skin."""
    image, hidden = np.zeros((canvas.side, canvas.side, 3), np.float32), canvas.zeros
    cut = CUTS[head.cut]
    if cut:
        mask = rough(canvas.mask(front_shape(head, cut)), cut, canvas, noise)
        image = draw_hair(head, cut, canvas, noise, mask)
        hidden = mask * (0.86 if cut.top < 0.02 else 1)
    alpha = hidden if head.glasses == "none" else draw_glasses(head, canvas, image, hidden)
    return layer(image, alpha), hidden


def front_shape(head: Head, cut: Hair) -> Points:
    """The outline of the hair before the head."""
    top, side = cut.top * head.volume, cut.side * head.volume
    angle = np.linspace(-1, 1, 17) * np.pi / 2
    across, up = head.temple + 0.025 + side, -head.crown - 0.25 + top
    crown = points(across * np.sin(angle), -0.25 - up * np.cos(angle) ** 0.85)
    edge = points(*cut.edge) * (head.temple + 0.02, 1)
    if head.parting < 0:
        edge = edge[::-1] * (-1, 1)
    edge[:, 1] -= head.hairline * (np.abs(edge[:, 1]) > 0.3)
    low, outer, inner = cut.ends, 0.49 + side, 0.455
    if low > 0.3:
        x = [outer + 0.01, outer + 0.03, outer - 0.01, inner + 0.02, inner - 0.02, inner - 0.01]
        right = points(x, [0.1, low * 0.6, low, low, low * 0.55, 0.15])
    else:
        right = points([0.492 + side, 0.485, 0.462], [-0.1, low, low + 0.01])
    left = right[::-1] * (-1, 1)
    return spline(*np.concatenate([crown, right, edge[::-1], left]).T, closed=True)


def rough(mask: Map, cut: Hair, canvas: Canvas, noise: Noise) -> Map:
    """A mask with strands at its edge."""
    soft = canvas.blur(mask, 0.012 + cut.rough * 0.5)
    if cut.curl > 0.5:
        fibre = noise.smooth(2.2)
    else:
        fibre = noise.along(canvas.x * 260 + 256, canvas.y * 40 + 256, 3.0)
    return step(0.3, 0.7, soft + np.clip(cut.rough * 14, 0, 0.3) * fibre * 4 * soft * (1 - soft))


def draw_hair(head: Head, cut: Hair, canvas: Canvas, noise: Noise, mask: Map) -> Image:
    """Strands, clumps and highlights of hair, as if it covered everything."""
    x, y = canvas.x, canvas.y
    top = head.crown - cut.top * head.volume
    up, half = -0.25 - top + 0.02, head.temple + 0.06 + cut.side * head.volume
    # meridians from the parting: the strands' direction on a round head
    dome = np.sqrt(np.clip(1 - (np.clip(-0.25 - y, 0, None) / up) ** 2, 0.02, 1))
    parting = 0.16 * head.parting
    across = (x - parting * np.clip((-0.1 - y) / 0.5, 0, 1)) / (half * dome)
    swing = 0.05 * cut.curl * np.sin(y * 16 + 2.5 * np.sign(x) + 1.3 * noise.smooth(40)[:1])
    across = across + swing * step(-0.2, 0.2, y)
    if cut.top < 0.02:
        fine, clump = 0.6 * noise.smooth(0.8) + 0.3 * noise.smooth(1.5, 3), 0.5 * noise.smooth(9)
    elif cut.curl > 0.5:
        ridge = 1 - np.abs(noise.smooth(2.0)) * 1.2
        fine = np.clip(ridge, -1, 1) * 0.8 + 0.25 * noise.smooth(0.8)
        clump = 0.5 * noise.smooth(6)
    else:
        along = y * 60 + 256
        fine = noise.along(across * 150 + 256, along, 14.0)
        clump = noise.along(across * 26 + 90, along * 0.6, 10.0)
    skull = np.sqrt(np.clip(1 - (x / 0.75) ** 2 - ((y + 0.1) / 1.3) ** 2, 0, 1))
    lit = light_on(head, canvas, canvas.blur(mask, 0.05) * 0.16 + 0.3 * skull, 0.02)
    gloss = bell(y - top - 0.17 - 0.05 * np.abs(x) + 0.03 * clump, 0.075)
    gloss = gloss * (0.5 + 0.5 * step(-0.6, 0.9, fine))
    gloss = gloss * (0.25 if cut.curl > 0.5 or cut.top < 0.04 else 1.0)
    ink = np.float32(head.hair)
    shade = 0.86 + 0.17 * fine + 0.13 * clump - 0.22 * step(-0.1, 0.5, y)
    picture = ink * np.clip(shade, 0.3, 1.6)[..., None] * lit
    bright = gloss * (0.32 + 0.25 * head.light_y)
    return picture + bright[..., None] * (ink * 0.75 + 34) * lit


def draw_glasses(head: Head, canvas: Canvas, image: Image, hair: Map) -> Map:
    """Frames, and lenses that shine a little; the new edge of the layer."""
    across, down, power, thick = {
        "round": (0.155, 0.145, 2.0, 0.010),
        "square": (0.175, 0.120, 5.0, 0.019),
        "wide": (0.185, 0.135, 3.0, 0.019),
    }[head.glasses]
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    circle = points(np.cos(angle), np.sin(angle))
    unit = np.sign(circle) * np.abs(circle) ** (2 / power)
    frame, glass = canvas.zeros, canvas.zeros
    hinge = head.eye_x + across
    arms = sides(points([hinge, 0.485, 0.485, hinge], [-0.03, -0.045, -0.022, -0.005]))
    for middle, arm in zip(sides(np.array([head.eye_x + 0.004, 0.018])), arms, strict=True):
        outer = canvas.mask(middle + unit * (across + thick / 2, down + thick / 2))
        inner = canvas.mask(middle + unit * (across - thick / 2, down - thick / 2))
        frame = np.maximum(frame, outer - inner)
        streak = canvas.x + canvas.y * 1.6 - (middle[0] - 0.06)
        glass += inner * (0.045 + 0.06 * bell(streak, 0.05))
        frame = np.maximum(frame, canvas.mask(arm) * (1 - hair))
    inner = head.eye_x - across + 0.004
    bridge = spline([-inner - 0.004, 0, inner + 0.004], [0, -0.022, 0])
    frame = np.maximum(frame, canvas.lines([bridge], max(thick, 0.012)))
    lit = light_on(head, canvas, canvas.blur(frame, 0.005) * 0.012)
    lay(image, glass / np.maximum(glass + hair, 1e-3), np.array([235.0, 240.0, 248.0]))
    lay(image, frame, np.float32(head.frame) * lit + 40 * np.clip(lit - 1.02, 0, 1))
    return np.maximum(np.maximum(hair, glass), frame)


def draw_back(head: Head, canvas: Canvas, noise: Noise) -> Layer:
    """Neck, clothes, and the hair behind the head."""
    x, y, chin, n = canvas.x, canvas.y, head.chin, head.neck
    image, alpha = np.zeros((canvas.side, canvas.side, 3), np.float32), canvas.zeros
    cut = CUTS[head.cut]
    if cut and cut.back:
        wide, top = cut.spread * (0.9 + 0.1 * head.volume), cut.top * head.volume * 0.9
        shape = mirrored(
            [0, wide * 0.75, wide * 0.97, wide, wide * 0.97, wide * 0.8, 0],
            [head.crown - top, -0.62, -0.2, 0.3, cut.back * 0.8, cut.back, cut.back + 0.02],
        )
        alpha = rough(canvas.mask(shape), cut, canvas, noise)
        lay(image, alpha, draw_hair(head, cut, canvas, noise, alpha) * 0.62)
    neck = mirrored(
        [0, n * 1.04, n, n * 0.98, n * 1.08, n * 1.35, n * 2.2, 0],
        [0.4, 0.4, chin, chin + 0.10, chin + 0.18, chin + 0.27, chin + 0.36, chin + 0.6],
    )
    height = 0.30 * np.sqrt(np.clip(1 - (x / (n * 1.25)) ** 2, 0, 1)) * (y > 0)
    height = height + 0.02 * canvas.pair(n * 0.45, chin + 0.2, 0.05, 0.2)
    height -= 0.02 * canvas.bump(0, chin + 0.30, 0.05, 0.04)
    lit = light_on(head, canvas, height, 0.03)
    below = y + 0.25 * x**2 + 0.05 * head.light_x * x
    shade = 1 - 0.68 * (1 - step(chin - 0.05, chin + 0.26, below))
    tone = np.float32(head.skin) * 0.96 * (1 + 0.014 * head.texture * noise.smooth(4))[..., None]
    part = canvas.mask(neck, 0.002)
    lay(image, part, tone * lit * np.stack([shade, shade**1.12, shade**1.18], axis=-1))
    alpha = np.maximum(alpha, part)
    return layer(image, draw_clothes(head, canvas, noise, image, alpha))


def draw_clothes(head: Head, canvas: Canvas, noise: Noise, image: Image, alpha: Map) -> Map:
    """Clothes over the shoulders; the new edge of the layer."""
    x, y, n, base = canvas.x, canvas.y, head.neck, head.chin
    neckline, high = {  # below the chin: in the middle, and beside the neck
        "crew": (0.27, 0.23),
        "v": (0.46, 0.23),
        "shirt": (0.34, 0.16),
        "jacket": (0.62, 0.2),
        "hood": (0.30, 0.16),
        "turtleneck": (0.10, 0.09),
    }[head.clothes]
    around = n * (1.04 if high < 0.2 else 1.25)
    right = spline(
        [around, n * 1.75, 0.85, 1.15, 1.3],
        [base + high, base + 0.26, base + 0.37, base + 0.55, base + 1.2],
    )
    if head.clothes in ("v", "shirt", "jacket"):
        dip = points([0], base + neckline)
    else:  # a round neck, level in the middle
        bend = np.linspace(0, np.pi / 2, 9)[:-1]
        dip = points(around * np.sin(bend), base + high + (neckline - high) * np.cos(bend))
    shape = np.concatenate([dip, right])
    shape = np.concatenate([shape, shape[::-1] * (-1, 1)])
    cloth = canvas.mask(shape)
    folds = noise.smooth(16, 26) * 0.012 + noise.smooth(7, 16) * 0.004
    height = 0.5 * np.sqrt(np.clip(1 - (x / 1.5) ** 2, 0, 1))
    height = height + 0.25 * step(base + 0.2, base + 0.8, y) + folds
    lit = light_on(head, canvas, height + 0.02 * canvas.blur(cloth, 0.012), 0.012)
    weave = 1 + 0.022 * noise.smooth(0.7)
    tone = np.float32(head.cloth) * weave[..., None]
    if head.stripes:
        waves = np.mod(y * 9 + 0.02 * noise.smooth(20), 1)
        rows = step(0.2, 0.35, np.abs(waves - 0.5)) * head.stripes
        tone = tone + (rows * 0.7)[..., None] * (np.array(head.lining) * 0.9 - tone)
    picture = tone * lit
    if head.clothes == "jacket":
        alpha = draw_shirt_front(head, canvas, image, alpha, weave, lit)
    canvas.paint(image, shape + (0, -0.012), np.array(head.skin) * 0.35, 0.35, 0.02, clip=alpha)
    lay(image, cloth, picture)
    alpha = np.maximum(alpha, cloth)
    if head.clothes in ("crew", "v", "turtleneck"):
        rim = shape[np.abs(shape[:, 0]) < around + 0.02]
        rim = rim[rim[:, 1] < base + 0.6]
        seam = rim[np.argsort(rim[:, 0])] + (0, 0.022)
        lay(image, canvas.lines([seam], 0.006, 0.004) * 0.35, picture * 0.5)
    if head.clothes == "shirt":
        y = [base + 0.13, base + 0.30, base + 0.50, base + 0.34]
        for collar in sides(points([n, n * 1.28, n * 0.70, 0], y)):
            canvas.paint(image, collar, picture * 0.45, 0.55, 0.014, clip=alpha)
            canvas.paint(image, collar, tone * lit * 1.04)
            alpha = np.maximum(alpha, canvas.mask(collar))
    if head.clothes == "hood":
        x = [0.05, n * 1.25, n * 1.7, n * 2.1, n * 1.9, 0.3]
        y = [base + 0.42, base + 0.24, base + 0.10, base + 0.16, base + 0.40, base + 0.62]
        for rim in sides(spline(x, y, closed=True)):
            canvas.paint(image, rim, picture * 0.5, 0.6, 0.02, clip=alpha)
            canvas.paint(image, rim, picture * 1.05, 1.0, 0.003)
            alpha = np.maximum(alpha, canvas.mask(rim))
    return alpha


def draw_shirt_front(
    head: Head, canvas: Canvas, image: Image, alpha: Map, weave: Map, lit: Image
) -> Map:
    """Shirt and tie below a jacket; the new edge of the layer."""
    n, base, lining = head.neck, head.chin, np.float32(head.lining) * weave[..., None] * lit
    right = spline([n * 1.06, n * 2.0, 0.5], [base + 0.17, base + 0.3, base + 1.0])
    inside = np.concatenate([[(0, base + 0.36)], right])
    inside = np.concatenate([inside, inside[::-1] * (-1, 1)])
    canvas.paint(image, inside, lining)
    x = [-0.035, 0.035, 0.028, 0.07, -0.07, -0.028]
    y = [base + 0.37, base + 0.37, base + 0.43, base + 0.9, base + 0.9, base + 0.43]
    canvas.paint(image, points(x, y), np.array(head.wall[0]) * 0.7 * lit)
    y = [base + 0.13, base + 0.26, base + 0.42, base + 0.35]
    for collar in sides(points([n * 1.02, n * 1.1, n * 0.55, 0.02], y)):
        canvas.paint(image, collar, lining * 0.5, 0.5, 0.012)
        canvas.paint(image, collar, lining * 1.03)
    return np.maximum(alpha, canvas.mask(inside))


def draw_background(head: Head, size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "P P 3"]:
    """What is behind the person, out of focus."""
    first, second = np.float32(head.wall)
    side = 128
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    mix = {"plain": 0.15 * x, "gradient": 0.3 * x + 0.7 * y}.get(
        head.background, np.clip(np.hypot(x - 0.5 - 0.3 * head.light_x, y - 0.4) * 1.2, 0, 1)
    )
    image = first + (second - first) * mix[..., None]
    if head.background == "shapes":
        for _ in range(14):
            at, radius = tuple(int(v) for v in rng.integers(0, side, 2)), int(rng.integers(5, 22))
            tone = (first + (second - first) * rng.random()) * rng.uniform(0.7, 1.4)
            blob = cv2.circle(np.zeros((side, side), np.float32), at, radius, 0.6, -1, cv2.LINE_AA)
            lay(image, cv2.GaussianBlur(blob, (0, 0), 1.5), tone.astype(np.float32))
    if head.background == "room":
        for _ in range(9):
            left, top = (int(v) for v in rng.integers(-10, side, 2))
            across, down = (int(v) for v in rng.integers(8, 50, 2))
            tone = (first + (second - first) * rng.random()) * rng.uniform(0.5, 1.5)
            box = np.zeros((side, side), np.float32)
            cv2.rectangle(box, (left, top), (left + across, top + down), 0.8, -1)
            lay(image, cv2.GaussianBlur(box, (0, 0), 1.2), tone.astype(np.float32))
        image = cv2.GaussianBlur(image, (0, 0), 2.0)
    image = image * (np.float32(head.light) / 255)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
    image += rng.standard_normal((size, size, 1), np.float32) * 0.8  # no banding
    return np.clip(image, 0, 255).astype(np.uint8)
