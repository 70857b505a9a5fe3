"""The eyes of one picture: what is seen between the lids, and lashes."""

import numpy as np

from unavglip_jax.data.heads.canvas import Canvas, Column, Patch, Row, lay
from unavglip_jax.data.heads.curves import bell, step
from unavglip_jax.data.heads.identity import Head
from unavglip_jax.data.heads.shape import lids
from unavglip_jax.data.motion import Pose

IRIS = 0.054  # its radius


def draw_eye(head: Head, canvas: Canvas, pose: Pose, side: int) -> Patch:
    """One eye, on a part of the canvas."""
    middle, reach = side * head.eye_x, head.eye_width * 1.3
    window = canvas.window((middle - reach, middle + reach), (-0.10, 0.09))
    y, x = canvas.y[window[0]], canvas.x[0, window[1]]
    u = side * (x - middle) / head.eye_width
    upper, lower = lids(head, pose.blink, np.clip(u, -1, 1))
    within = np.clip((1 - np.abs(u)) * head.eye_width * canvas.scale + 0.5, 0, 1)
    opening = canvas.below(y, upper) * (1 - canvas.below(y, lower)) * within
    # the ball, shaded by the upper lid and towards its sides
    lid, light = np.clip(y - upper, 0, None), np.float32(head.light) / 255
    bright = 0.62 + 0.38 * np.mean(head.skin) / 215
    ball = (0.97 - 0.22 * u**2) * (1 - 0.40 * np.exp(-lid / 0.018)) * bright
    colour = np.float32([240, 234, 229]) * ball[..., None]
    pink = 0.75 * np.broadcast_to(step(-0.72, -0.95, u), opening.shape)
    lay(colour, pink, np.float32([204, 140, 130]) * bright)
    # iris, pupil, the light's reflection
    along = (x - (middle + 0.042 * pose.gaze_x)) / IRIS
    down = (y - (-0.20 * head.eye_height + 0.022 * pose.gaze_y)) / IRIS
    radius, angle = np.sqrt(along**2 + down**2), np.arctan2(down, along)
    fibres = 0.10 * np.sin(angle * 19 + head.seed % 7) + 0.08 * np.sin(angle * 31 + 5 * radius)
    tint = (0.62 + 0.30 * radius + 0.34 * down + fibres) * (1 - 0.75 * step(0.78, 1.0, radius))
    tint = np.clip(tint, 0.08, 1.6) * (1 - 0.45 * np.exp(-lid / 0.016))
    disc = lambda size, away: np.clip((size - away) * IRIS * canvas.scale + 0.5, 0, 1)
    lay(colour, disc(1.0, radius), np.float32(head.iris) * tint[..., None])
    lay(colour, disc(0.44, radius), np.float32([14, 11, 11]))
    from_light = np.sign(head.light_x)
    glint = disc(0.20, np.hypot(along - 0.34 * from_light, down + 0.34))
    glint = glint + 0.25 * np.exp(-((along + 0.4 * from_light) ** 2 + (down - 0.45) ** 2) / 0.05)
    lay(colour, 0.92 * glint, np.float32([252, 252, 255]))
    lay(colour, 0.45 * bell(y - lower + 0.004, 0.004), np.float32([222, 168, 156]) * bright)
    patch = np.empty((*opening.shape, 4), np.float32)
    patch[..., :3] = opening[..., None] * (np.clip(colour, 0, 255) * light)
    patch[..., 3] = 255 * opening
    draw_lashes(head, canvas, patch, u, y, upper, lower)
    return patch, window


def draw_lashes(
    head: Head, canvas: Canvas, patch: np.ndarray, u: Row, y: Column, upper: Row, lower: Row
) -> None:
    """Painted on an eye: a line on the upper lid that thickens outwards, a faint one on the lower lid."""
    taper = np.clip(0.35 + 0.65 * (u + 1) / 2, 0, 1)
    thick = (0.007 + 0.011 * head.lashes) * taper
    ends = np.clip((1.04 + 0.07 * head.lashes - np.abs(u)) / 0.10, 0, 1) * (u > -1.02)
    line = upper - 0.20 * head.lashes * np.clip(u - 0.9, 0, None) * head.eye_width
    lash = canvas.below(y, line - thick, 0.004) * (1 - canvas.below(y, line + 0.004, 0.004)) * ends
    below = 0.30 * bell(y - lower - 0.004, 0.005) * np.clip(1 - u**2, 0, 1)
    ink = np.float32(head.brow_colour) * (0.40 - 0.20 * head.lashes)
    for alpha in (below[..., None], 0.88 * lash[..., None]):
        patch *= 1 - alpha
        patch += alpha * np.append(ink, np.float32(255))
