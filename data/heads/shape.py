"""Where everything in a face is, and how it moves with mouth and brows: what pictures and truth share."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from unavglip_jax.data.heads.canvas import Canvas
from unavglip_jax.data.heads.curves import Points, bell, mirrored, points, step
from unavglip_jax.data.heads.identity import Head
from unavglip_jax.data.motion import Pose

SUPERSAMPLING = 2
MARGIN = 0.12  # of the picture's side, drawn around it for heads that move
EYE_LINE = 0.45  # of the picture's height
GRID = 192  # cells along the side of the coarse maps of depth and displacement
JAW_DROP = 0.112  # of the chin, from closed lips to the widest vowel
LIP_GAP = 0.165


def canvas_of(head: Head, size: int) -> Canvas:
    """The canvas for pictures of a size."""
    margin = int(np.ceil(MARGIN * size)) * SUPERSAMPLING
    scale = head.framing * size * SUPERSAMPLING
    half = size * SUPERSAMPLING / 2 - 0.5 + margin
    top = (size * EYE_LINE) * SUPERSAMPLING - 0.5 + margin
    return Canvas(size * SUPERSAMPLING + 2 * margin, scale, -half / scale, -top / scale)


def coarse(canvas: Canvas) -> Canvas:
    """The same square with few, large pixels."""
    return canvas._replace(side=GRID, scale=canvas.scale * (GRID - 1) / (canvas.side - 1))


def outline(head: Head) -> Points:
    """The edge of skull and face, from the crown along the right side to the chin and back."""
    temple, jaw, chin, wide = head.temple, head.jaw * 0.93, head.chin, head.chin_width
    x = [0, 0.24, temple * 0.90, temple, 0.488, 0.488, (head.jaw + 0.48) / 2 + 0.012]
    y = [head.crown, head.crown + 0.065, -0.50, -0.28, -0.05, 0.16, 0.38]
    x += [jaw, (jaw + wide) / 2 + 0.018, wide, 0]
    y += [0.36 + 0.26 * chin, chin - 0.105, chin - 0.030, chin]
    return mirrored(x, y)


def right_edge(head: Head) -> Points:
    """The right side of the outline, from the crown to the chin."""
    edge = outline(head)
    return edge[: int(edge[:, 1].argmax()) + 1]


def brow(head: Head, side: int) -> tuple[Points, Points]:
    """The upper and lower edge of a brow, from the nose outwards."""
    u = np.linspace(0, 1, 12)
    x = side * (head.eye_x - 0.125 + 0.275 * u)
    middle = head.brow_y + 0.012 - (0.012 + head.brow_arch) * np.sin(np.pi * u**1.2) + 0.022 * u**3
    half = head.brow_thickness / 2 * np.interp(u, [0, 0.12, 0.45, 1], [0.75, 1, 0.9, 0.12])
    return points(x, middle - half), points(x, middle + half)


def lids(head: Head, blink: float, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y of an eye's upper and lower lid, at u from -1 (inner corner) to 1."""
    inside, blink = np.clip(1 - u**2, 0, None), float(np.clip(blink, 0, 1))
    base = 0.004 - head.eye_tilt * u
    upper = base - 1.18 * head.eye_height * inside**0.62 * (1 - 0.08 * u)
    lower = base + 0.70 * head.eye_height * inside**0.75 * (1 + 0.15 * u)
    shut = base + 0.55 * head.eye_height * inside
    return upper + (shut - upper) * blink, lower + (shut - lower) * blink


class Lips(NamedTuple):
    """The mouth's outlines, and the mouth values behind them that also change what is seen."""

    half: float  # the width
    middle: float  # y of the corners
    raised: float  # how far the upper lip's middle is above the closed seam
    gap: float  # between the lips, in the middle
    drop: float  # of the chin
    upper: float  # thickness of the upper lip
    lower: float  # thickness of the lower lip
    smile: float  # how much the corners turn up
    opening: float
    wide: float
    rounding: float
    tuck: float


def lips_of(head: Head, mouth: Float[np.ndarray, "5"]) -> Lips:
    """Where the lips are."""
    opening, wide, rounding, press, tuck = (float(v) for v in mouth)
    free = opening * (1.8 - 0.8 * opening)  # the first little opening is seen most
    free = free * (1 - 0.85 * press) * (1 - 0.45 * tuck) * (1 - 0.18 * rounding)
    raised = 0.016 * opening * (1 - press) + 0.007 * wide * (1 - press) * (1 - rounding)
    raised = raised * (opening > 0) + 0.018 * tuck * (1 - press)
    thin = (1 - 0.50 * press) * (1 - 0.14 * wide) * (1 - 0.10 * free) * (1 + 0.16 * rounding)
    return Lips(
        half=head.mouth_width * (1 + 0.24 * wide - 0.36 * rounding - 0.06 * free + 0.02 * press),
        middle=head.mouth + 0.30 * LIP_GAP * free - 0.012 * wide,
        raised=raised,
        gap=LIP_GAP * free + 0.030 * tuck * (1 - press),
        drop=JAW_DROP * free - 0.010 * tuck - 0.006 * press,
        upper=head.upper_lip * thin * (1 - 0.12 * tuck),
        lower=head.lower_lip * thin * (1 - 0.45 * tuck),
        smile=0.010 * head.smile + 0.012 * wide,
        opening=opening,
        wide=wide,
        rounding=rounding,
        tuck=tuck,
    )


def lip_edges(head: Head, lips: Lips, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """y of the upper lip's outer and inner and the lower lip's inner and outer edge, at x / half."""
    side = np.clip(np.abs(x), 0, 1)
    # the closed seam: a tubercle in the middle, corners up or down
    seam = 0.006 * bell(x, 0.24) - 0.003 * bell(side - 0.45, 0.2)
    seam = seam * (1 - lips.rounding) - (lips.smile + 0.004) * side**2 * 0.8
    inner = np.clip(side / 0.96, 0, 1)
    flat, deep = (1 - inner**2.4) ** 0.75, (1 - inner**2) ** 0.65
    oval = (1 - inner**2) ** 0.6
    flat, deep = (p + (oval - p) * lips.rounding for p in (flat, deep))
    above = lips.middle + seam + (head.mouth - lips.raised - lips.middle) * flat
    below = above + lips.gap * deep
    bow = 0.35 * head.bow * lips.upper * (1 - 0.6 * lips.rounding)
    peaks = bell(side - 0.24, 0.16) - bell(x, 0.13) * 0.9
    top = above - lips.upper * (1 - side**1.5) ** 0.85 - bow * peaks * (1 - side)
    bottom = below + lips.lower * (1 - side**2.2) ** 0.8
    return top, above, below, bottom


def depth_of(head: Head, grid: Canvas) -> Float[np.ndarray, "G G"]:
    """z of head and hair, smooth beyond the edge of the face."""
    z = 0.52 * np.exp(-(((grid.x / 0.66) ** 2 + ((grid.y - 0.05) / 0.95) ** 2) ** 1.1))
    z = z + 0.75 * head.nose_height * grid.bump(0, head.nose - 0.06, 0.085, 0.13)
    return z - 0.05 * grid.pair(head.eye_x, 0.0, 0.12, 0.08)


def moves_of(head: Head, grid: Canvas) -> Float[np.ndarray, "M G G 2"]:
    """How the face's skin goes with jaw, hollow cheeks, mouth corners, upper lip and brows.

    Displacements in face widths for one unit of what `amounts` gives: where a point is now, minus where
    it was at rest.
    """
    side = np.abs(grid.x)
    # between the lips the jaw's movement begins at once, in the cheeks gradually
    outward = step(0.10, 0.34, side)
    begin = head.mouth - 0.045 - 0.15 * outward
    end = head.mouth + 0.125 + (head.chin - head.mouth - 0.12) * outward
    jaw = step(begin, end, grid.y) * (1 - 0.80 * step(0.12, 0.52, side))
    odd = np.tanh(grid.x / 0.05)
    hollow = -odd * grid.pair(0.38, head.mouth, 0.16, 0.22)
    corners = odd * grid.pair(head.mouth_width + 0.02, head.mouth, 0.13, 0.13)
    cheeks = -0.25 * grid.pair(0.27, head.mouth - 0.15, 0.12, 0.12)
    lip = -grid.bump(0, head.mouth - 0.07, 0.17, 0.06)
    brows = -grid.pair(head.eye_x, head.brow_y - 0.01, 0.20, 0.075)
    pairs = ((0, jaw), (hollow, 0), (corners, cheeks), (0, lip), (0, brows))
    moves = np.array([points(*pair) for pair in pairs], np.float32)
    moves[:-1] *= step(0.0, 0.22, grid.y)[..., None]  # the eyes stay
    return moves


def amounts(head: Head, lips: Lips, pose: Pose) -> Float[np.ndarray, " M"]:
    """How far each of `moves_of` goes."""
    opened = max(lips.drop, 0.0) / JAW_DROP
    spread = lips.half - head.mouth_width
    return np.array([lips.drop, 0.022 * opened, spread, lips.raised, 0.030 * pose.brow], np.float32)
