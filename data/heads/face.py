"""The face's layer: skin as a lit relief, with ears, nostrils, brows and beard, without lips and eyes."""

import numpy as np

from unavglip_jax.data.heads.canvas import Canvas, Image, Layer, Map, Noise, lay, layer, light_on
from unavglip_jax.data.heads.curves import bell, ellipse, mirrored, points, sides, spline, step
from unavglip_jax.data.heads.identity import Head
from unavglip_jax.data.heads.shape import brow, lids, outline, right_edge


def draw_face(
    head: Head, canvas: Canvas, noise: Noise, hidden: Map, rng: np.random.Generator
) -> Layer:
    """The layer; the hair covers, and shades, what is `hidden`."""
    skin = np.float32(head.skin)
    face = canvas.mask(outline(head))
    image, alpha = draw_ears(head, canvas, face)
    height = relief(head, canvas) + features(head, canvas) - grooves(head, canvas)
    pores = noise.smooth(0.8) - noise.smooth(1.6) * 0.5
    height += (0.00030 * head.texture) * pores
    lit = light_on(head, canvas, height, 0.006)
    # hollows receive less light from around
    lit *= 1 - np.clip((canvas.blur(height, 0.045) - height) * 3.4, -0.05, 0.24)[..., None]
    mottled = 0.016 * noise.smooth(9) + 0.012 * noise.smooth(3) + 0.010 * pores
    tone = skin * (1 + head.texture * mottled)[..., None]
    flush = canvas.pair(0.27, 0.25, 0.13, 0.10) + 0.8 * canvas.bump(0, head.nose - 0.06, 0.08, 0.06)
    flush += 0.5 * canvas.bump(0, head.chin - 0.06, 0.1, 0.06)
    tone = tone * (1 - (0.16 * head.flush * flush)[..., None] * np.float32([0.0, 0.75, 0.6]))
    around = canvas.pair(head.eye_x, 0.035, 0.12, 0.055)
    tone = tone * (1 - (0.10 * around)[..., None] * np.float32([0.6, 0.9, 0.7]))
    if head.shadow:
        above = canvas.pair(head.eye_x + 0.01, -0.06, 0.115, 0.036)[..., None] * 0.6 * head.shadow
        tone = tone * (1 - above) + above * (np.array(head.lips) * 0.5 + skin * 0.18)
    draw_freckles(head, canvas, tone, rng)
    draw_beard(head, canvas, noise, tone)
    picture = tone * lit
    # sheen on forehead, nose and cheeks
    bright = np.clip(lit[..., 1] - 1.02, 0, None) * (1 + 0.25 * pores)
    spots = 0.25 * canvas.bump(-0.01 + 0.02 * head.light_x, head.nose - 0.065, 0.028, 0.032)
    spots += 0.10 * canvas.bump(0.012 * head.light_x, 0.1, 0.016, 0.14) * 0.8
    sheen = (bright * 0.6 + spots * 0.30) * head.shine * 120 * (0.35 + 0.65 * skin.mean() / 200)
    picture += sheen[..., None]
    # soft shadows: of hair, nose and lower lip
    shade = 0.42 * canvas.blur(hidden, 0.035) * step(-0.9, -0.2, canvas.y)
    below = ellipse(-0.03 * head.light_x, head.nose + 0.028, head.nose_width * 0.85, 0.024)
    shade += 0.26 * canvas.mask(below, 0.018)
    shade += 0.10 * canvas.mask(ellipse(0, head.mouth + head.lower_lip + 0.02, 0.10, 0.012), 0.014)
    picture *= 1 - np.clip(shade, 0, 0.6)[..., None] * np.float32([0.85, 1.0, 1.05])
    draw_nostrils(head, canvas, picture)
    draw_brows(head, canvas, picture, rng)
    lay(image, face, picture)
    alpha = np.maximum(alpha, face)
    return layer(image, whiskers(head, canvas, noise, image, alpha))


def relief(head: Head, canvas: Canvas) -> Map:
    """The height of skull and face, without hair."""
    edge, chin = right_edge(head), head.chin
    width = np.interp(canvas.y, edge[:, 1], edge[:, 0], left=0.0, right=0.0) + 1e-3
    y = [head.crown, -0.68, -0.5, -0.3, -0.1, 0.1, 0.3, 0.5, chin - 0.1, chin - 0.03, chin + 0.02]
    z = [0.0, 0.25, 0.37, 0.435, 0.44, 0.45, 0.46, 0.47, 0.455, 0.40, 0.22]
    across = np.clip(1 - np.abs(canvas.x / width) ** 2.3, 0, 1) ** 0.55
    return canvas.blur((np.interp(canvas.y, y, z) * across).astype(np.float32), 0.028)


def features(head: Head, canvas: Canvas) -> Map:
    """What stands out of the face and what lies deeper."""
    bump, pair = canvas.bump, canvas.pair
    eye, nose, mouth, chin = head.eye_x, head.nose, head.mouth, head.chin
    z = -0.070 * pair(eye - 0.01, -0.005, 0.125, 0.085) + 0.016 * pair(eye, 0.0, 0.085, 0.06)
    z += 0.022 * pair(0.17, head.brow_y + 0.01, 0.17, 0.055)  # brow ridges
    z += 0.030 * head.cheekbones * pair(0.32, 0.18, 0.14, 0.10)
    z += 0.018 * pair(0.20, 0.30, 0.13, 0.12)
    z -= 0.020 * (0.4 + head.cheekbones) * pair(0.36, 0.42, 0.09, 0.15)
    # the nose: a ridge that widens and rises to the tip, a ball, two wings
    y = [-0.14, 0.0, nose - 0.10, nose - 0.03, nose + 0.005, nose + 0.03]
    ridge = np.interp(canvas.y, y, [0.0, 0.28, 0.80, 0.72, 0.2, 0.0]) * head.nose_height * 0.62
    along = np.clip((canvas.y + 0.10) / (nose - 0.02), 0, None)
    width = head.bridge * (0.75 + 0.5 * np.clip(along, 0, 1) ** 2)
    z += canvas.blur((ridge * bell(canvas.x, width)).astype(np.float32), 0.019)
    z += 0.042 * bump(0, nose - 0.052, head.nose_width * 0.52, 0.048)
    z += 0.050 * pair(head.nose_width * 0.72, nose - 0.035, head.nose_width * 0.34, 0.040)
    # the muzzle, the groove below the nose, the dent below the lip, the chin's ball
    z += 0.030 * bump(0, mouth, 0.20, 0.11)
    z -= 0.008 * bump(0, (nose + mouth - head.upper_lip) / 2, 0.022, 0.05)
    z += 0.005 * pair(0.032, (nose + mouth - head.upper_lip) / 2, 0.020, 0.05)
    z -= 0.024 * bump(0, mouth + head.lower_lip + 0.035, 0.13, 0.032)
    z += 0.034 * bump(0, chin - 0.085, 0.12, 0.075)
    return z


def grooves(head: Head, canvas: Canvas) -> Map:
    """Folds and wrinkles, as depth."""
    age, nose, mouth = head.wrinkles, head.nose, head.mouth
    wing, wide = head.nose_width, head.mouth_width
    x = [wing + 0.008, wing + 0.055, wide + 0.045, wide + 0.058]
    y = [nose - 0.05, nose + 0.045, mouth - 0.045, mouth + 0.03]
    laughs = sides(spline(x, y))
    x = [wing * 0.78, wing + 0.006, wing + 0.004, wing * 0.80]
    y = [nose - 0.085, nose - 0.055, nose - 0.015, nose + 0.004]
    wings = sides(spline(x, y))
    u = np.linspace(-0.95, 1.0, 20)
    upper, lower = lids(head, 0.0, u)
    x, corner = head.eye_x + u * head.eye_width, head.eye_x + head.eye_width + 0.025
    creases = sides(points(x, upper - head.eye_fold * (1 - 0.35 * np.abs(u) ** 3)))
    fine = [*sides(points(x, lower + 0.035 + 0.012 * (1 - u**2))[2:-4])]  # bags under the eyes
    for k in range(3):
        y = -0.02 + 0.025 * k
        fine += sides(spline([corner, corner + 0.05], [y, y - 0.018 + 0.018 * k]))
    fine += sides(spline([0.028, 0.022], [head.brow_y - 0.02, head.brow_y + 0.06]))  # a frown
    x = np.linspace(-0.27, 0.27, 20)
    rows = [points(x, -0.30 - 0.075 * k - 0.014 * np.cos(x * 9)) for k in range(3)]
    z = (0.0035 + 0.011 * age) * canvas.lines(laughs, 0.016, 0.014)
    z += 0.010 * canvas.lines(wings, 0.010, 0.007)
    z += 0.0075 * canvas.lines(creases, 0.007, 0.005)
    z += 0.0065 * age * canvas.lines(fine, 0.007, 0.006)
    z += 0.0055 * age * canvas.lines(rows, 0.008, 0.008)
    return z


def draw_ears(head: Head, canvas: Canvas, face: Map) -> tuple[Image, Map]:
    """Both ears, alone; and where they are."""
    skin = np.float32(head.skin)
    image = np.empty((canvas.side, canvas.side, 3), np.float32)
    image[:] = skin * 0.8
    alpha = canvas.zeros
    out, ear, low = 0.47 + head.ear_out, head.ear, 0.10 + head.ear
    x = [0.45, out - 0.01, out + 0.022, out + 0.005, 0.50, 0.45]
    y = [0.10 - ear * 0.75, 0.08 - ear, 0.10 - ear * 0.55, 0.12, low, low - 0.03]
    shape = spline(x, y, closed=True)
    x = [0.47, out - 0.028, out - 0.012, 0.50]
    hollow = spline(x, [0.06, 0.10 - ear * 0.72, 0.08, 0.17], closed=True)
    ring = spline([0.475, out - 0.02, out - 0.025, 0.49], [0.09, 0.04, 0.13, 0.16], closed=True)
    red = np.array([1.0, 0.93 - 0.06 * head.flush, 0.92 - 0.06 * head.flush])
    for side in (-1, 1):
        lit = 0.92 + 0.22 * head.contrast * head.light_x * side
        canvas.paint(image, shape * (side, 1), skin * red * lit, 1.0, 0.004)
        canvas.paint(image, hollow * (side, 1), skin * red * 0.60 * lit, 0.75, 0.013)
        canvas.paint(image, ring * (side, 1), skin * red * 0.85 * lit, 0.7, 0.010)
        alpha = np.maximum(alpha, canvas.mask(shape * (side, 1), 0.0015))
    image *= 1 - 0.45 * canvas.blur(face, 0.02)[..., None]
    if head.earring:
        for side in (-1, 1):
            x, y, metal = side * (0.49 + 0.5 * head.ear_out), low - 0.012, np.array(head.earring)
            ring = ellipse(x, y, 0.017, 0.017)
            canvas.paint(image, ring, metal * 0.75)
            canvas.paint(image, ellipse(x - 0.004, y - 0.005, 0.007, 0.007), metal * 1.15, 1, 0.003)
            alpha = np.maximum(alpha, canvas.mask(ring))
    return image, alpha


def draw_freckles(head: Head, canvas: Canvas, tone: Image, rng: np.random.Generator) -> None:
    """Spots on nose and cheeks."""
    if not head.freckles:
        return
    count, ink = int(40 + 150 * head.freckles), np.array(head.skin) * (0.78, 0.66, 0.58)
    where = points(rng.normal(0, 0.20, count), rng.normal(0.2, 0.09, count))
    for (x, y), size in zip(where, rng.uniform(0.003, 0.0075, count), strict=True):
        canvas.paint(tone, ellipse(x, y, size, size * 0.85), ink, 0.5, 0.002)


def draw_nostrils(head: Head, canvas: Canvas, picture: Image) -> None:
    """The two openings and the shade in the wings' folds."""
    dark = np.array(head.skin) * (0.34, 0.22, 0.20)
    middle, y = head.nose_width * 0.50, head.nose
    x = [middle - 0.030, middle, middle + 0.030, middle + 0.014, middle - 0.016]
    shape = spline(x, [y - 0.002, y - 0.017, y - 0.006, y + 0.006, y + 0.008], closed=True)
    for nostril in sides(shape):
        canvas.paint(picture, nostril, dark, 0.50, 0.009)
        canvas.paint(picture, nostril, dark, 0.75, 0.0035)


def draw_brows(head: Head, canvas: Canvas, picture: Image, rng: np.random.Generator) -> None:
    """Hairs over a soft shape."""
    ink = np.float32(head.brow_colour)
    for side in (-1, 1):
        upper, lower = brow(head, side)
        canvas.paint(picture, np.concatenate([upper, lower[::-1]]), ink, 0.52, 0.008)
        u, v, length = rng.random(170), rng.random(170), rng.uniform(0.7, 1.3, 170)
        along, index = u * (len(upper) - 1), np.arange(len(upper))
        low, high = (
            points(*(np.interp(along, index, values) for values in edge.T))
            for edge in (lower, upper)
        )
        roots = low + (high - low) * (0.8 * v)[:, None]
        lean = points(side * (0.35 + 0.9 * u), -(1 - 1.1 * u) * (1 - v) + 0.25 * v)
        tips = roots + lean * (0.9 * head.brow_thickness * length)[:, None]
        bent = (roots + tips) / 2 - (side * 0.002, 0.002)
        hairs = list(np.stack([roots, bent, tips], axis=1))
        lay(picture, canvas.lines(hairs, 0.0045) * 0.75, ink * 0.9)


def beard_shape(head: Head, canvas: Canvas) -> tuple[Map, float]:
    """Where hair grows in the face, in [0, 1], and how far it stands off the chin."""
    mouth, chin, nose, wide = head.mouth, head.chin, head.nose, head.mouth_width
    x = [0, 0.05, wide * 0.75, wide + 0.025, wide + 0.01, wide * 0.6, 0]
    y = [nose + 0.035, nose + 0.030, mouth - 0.055, mouth - 0.005, mouth + 0.03, mouth, mouth]
    upper = canvas.mask(mirrored(x, y), 0.012)
    if head.beard == "moustache":
        return 0.85 * upper, 0.0
    if head.beard == "goatee":
        x = [0, wide * 0.6, wide, wide + 0.030, wide + 0.005, 0.13, 0.07, 0]
        y = [mouth, mouth, mouth - 0.01, mouth + 0.02, chin - 0.12, chin - 0.02]
        y += [chin + 0.03, chin + 0.04]
        return 0.8 * np.maximum(upper, canvas.mask(mirrored(x, y), 0.012)), 0.02
    x = [0, wide + 0.02, 0.30, 0.40, 0.455, 0.50, 0.54, 0.50, 0.3, 0]
    y = [mouth - 0.02, mouth - 0.03, 0.40, 0.26, 0.05, 0, 0.3, 0.6, chin + 0.05, chin + 0.10]
    jaw = canvas.mask(mirrored(x, y), 0.012)
    if head.beard == "stubble":
        return np.maximum(upper, canvas.blur(jaw, 0.03)) * 0.55, 0.0
    return np.maximum(upper, jaw), {"short": 0.012, "full": 0.075}[head.beard]


def strands(canvas: Canvas, noise: Noise) -> Map:
    """Short hairs that grow away from the middle of the upper lip, downwards."""
    x, down = canvas.x, canvas.y
    lean = np.arctan2(x, 0.9 - 0.35 * down + 0.03 * noise.smooth(10))
    return noise.along(lean * 420 + 256, down * 300 + np.abs(x) * 60 + 300, 4.0)


def draw_beard(head: Head, canvas: Canvas, noise: Noise, tone: Image) -> None:
    """Hair on the skin, as albedo."""
    if head.beard == "none":
        return
    where, off = beard_shape(head, canvas)
    # sparser around the lips
    where = where * (1 - 0.75 * canvas.bump(0, head.mouth + 0.02, head.mouth_width * 1.15, 0.11))
    ink = np.float32(head.beard_colour)
    if head.beard == "stubble":
        dots = 0.30 + 0.55 * step(0.2, 1.4, noise.smooth(0.8))
        lay(tone, where * dots * head.beard_density, ink * 0.8 + np.array(head.skin) * 0.12)
        return
    if off > 0.015:  # longer ones are denser towards the jaw, where they stand off
        jaw = step(head.chin - 0.24, head.chin - 0.02, canvas.y + 0.5 * np.abs(canvas.x))
        where = where * (1 + (0.85 / head.beard_density - 1.3) / 1.3 * jaw)
    fibre = strands(canvas, noise)
    dense = where * 1.3 * head.beard_density
    cover = np.clip(dense + 0.16 * fibre * where * (1.2 - where), 0, 0.95)
    shade = 0.90 + 0.15 * fibre + 0.10 * noise.smooth(5, 9)
    lay(tone, cover, ink * shade[..., None] + 4 * np.clip(fibre, 0, None)[..., None])


def whiskers(head: Head, canvas: Canvas, noise: Noise, image: Image, alpha: Map) -> Map:
    """The part of a beard that stands off the jaw, painted on; the new edge of the layer."""
    if head.beard == "none":
        return alpha
    _, off = beard_shape(head, canvas)
    if not off:
        return alpha
    edge = outline(head)
    lower = edge[edge[:, 1] > 0.12]
    lower = lower[np.argsort(np.arctan2(lower[:, 0], lower[:, 1] - 0.1))]
    narrow = head.beard == "goatee"
    if narrow:
        lower = lower[np.abs(lower[:, 0]) < 0.13]
    reach = off * step(0.1, head.chin, lower[:, 1])[:, None]
    shape = lower + reach * points(lower[:, 0] * 0.9, 1.0)
    if narrow:
        shape = np.concatenate([shape, [(-0.2, 0.4), (0.2, 0.4)]])
    fibre = strands(canvas, noise)
    beyond = canvas.blur(canvas.mask(shape), 0.008)
    beyond = step(0.25, 0.75, beyond + 0.16 * fibre * (beyond > 0.02))
    fade = 1 - 0.45 * step(head.chin - 0.05, head.chin + 0.12, canvas.y)
    lit = 1 + 0.25 * head.light_x * head.contrast * canvas.x / 0.4
    ink = np.float32(head.beard_colour) * (0.70 + 0.20 * fibre)[..., None]
    ink = ink * fade[..., None] * lit[..., None]
    # blends into the beard on the jaw
    lay(image, beyond * step(0.06, 0.6, canvas.blur(1 - alpha, 0.028)), ink)
    return np.maximum(alpha, beyond * np.clip(head.beard_density * 1.7, 0, 1))
