"""The mouth of one picture: lips, what is between them, and the shades they throw on the skin."""

import cv2
import numpy as np
from jaxtyping import Float

from unavglip_jax.data.heads.canvas import Canvas, Column, Patch, Row, Values, lay
from unavglip_jax.data.heads.curves import bell, step
from unavglip_jax.data.heads.identity import Head
from unavglip_jax.data.heads.layers import Look
from unavglip_jax.data.heads.shape import Lips, lip_edges

MOUTH_DEPTH = 0.016  # upper front teeth reach so far below the seam of the closed lips


def draw_mouth(head: Head, look: Look, lips: Lips) -> Patch:
    """All of it, on a part of the look's canvas."""
    canvas = look.canvas
    window = canvas.window((-0.33, 0.33), (head.nose - 0.03, head.mouth + 0.30))
    y, x = canvas.y[window[0]], canvas.x[0, window[1]]
    edges = lip_edges(head, lips, x / lips.half)
    top, _, _, bottom = edges
    within = np.clip((lips.half - np.abs(x)) * canvas.scale * 0.6 + 0.5, 0, 1)
    body = canvas.below(y, top, 0.010) * (1 - canvas.below(y, bottom, 0.012)) * within
    shades = shades_around(head, lips, x, y, bottom) * (1 - body)
    dark = np.float32(head.skin) * (0.42, 0.27, 0.24)
    colour = draw_lips(head, look, lips, x, y, edges)
    patch = np.empty((*body.shape, 4), np.float32)
    patch[..., :3] = shades[..., None] * dark + body[..., None] * colour
    patch[..., 3] = 255 * (shades + body)
    return patch, window


def draw_lips(
    head: Head, look: Look, lips: Lips, x: Row, y: Column, edges: tuple[Row, ...]
) -> Float[np.ndarray, "H W 3"]:
    """Lips and what is between them, as if they covered everything."""
    canvas, aside, (top, above, below, bottom) = look.canvas, x / lips.half, edges
    upper, lower = 1 - canvas.below(y, above), canvas.below(y, below)
    # from an outer edge at 0 to an inner one at 1, and on to the other outer one: wrinkles go with the lips
    t_upper = np.clip((y - top) / np.maximum(above - top, 1e-4), 0, 1)
    t_lower = np.clip((y - below) / np.maximum(bottom - below, 1e-4), 0, 1)
    rows = np.where(y < (above + below) / 2, t_upper, t_lower + 1) * (0.018 * canvas.scale) + 9
    columns = np.broadcast_to(aside * head.mouth_width * canvas.scale + canvas.side / 2, rows.shape)
    grain = cv2.remap(look.grain, columns, rows, cv2.INTER_LINEAR)
    curved = 1 - 0.10 * aside**2 + 0.10 * head.contrast * head.light_x * aside
    dark = 0.93 - 0.20 * t_upper**1.5 + 0.06 * bell(t_upper - 0.12, 0.14)
    full = 0.99 + 0.17 * bell(t_lower - 0.36, 0.27) - 0.24 * step(0.55, 1, t_lower)
    full -= 0.05 * (1 - step(0.0, 0.10, t_lower))
    shade = (dark * upper + full * (1 - upper)) * curved * (1 + 0.045 * grain)
    spot = bell(t_lower - 0.36, 0.15) * lower * bell(aside - 0.18 * head.light_x, 0.42)
    away = ((t_upper - 0.45) / 0.2) ** 2 + ((np.abs(aside) - 0.25) / 0.15) ** 2
    spot += 0.35 * upper * np.exp(-away)
    shine = spot * (0.25 + 0.75 * head.gloss) * (46 + 30 * lips.rounding) * (0.75 + 0.35 * grain)
    ink = np.float32(head.lips)
    colour = np.clip(ink * shade[..., None] + shine[..., None], 0, 255)
    # the seam where the lips touch, and their wet inner edges
    seam = bell(y - (above + below) / 2, 0.0065) * (1 - step(0.0, 0.025, lips.gap))
    inner = bell(y - above, 0.010) * upper + bell(y - below, 0.008) * lower
    ends = 1 - 0.5 * np.abs(aside) ** 3
    crease = np.clip(0.72 * seam * ends + 0.30 * inner * step(0.0, 0.02, lips.gap), 0, 0.85)
    lay(colour, crease, ink * (0.26, 0.16, 0.17))
    if lips.gap > 0:
        hole = np.clip(1 - upper - lower, 0, 1)
        lay(colour, hole, draw_inside(head, canvas, lips, x, y, above, below))
    return colour * (np.float32(head.light) / 255)


def draw_inside(
    head: Head, canvas: Canvas, lips: Lips, x: Row, y: Column, above: Row, below: Row
) -> Float[np.ndarray, "H W 3"]:
    """What is seen between the lips: cavity, tongue, lower and upper teeth."""
    side, reach = np.abs(x), lips.half * 0.96
    to_edge = np.minimum(np.minimum(y - above, below - y), (reach - side) * 0.8)
    near, deep = np.float32([70, 24, 24]), np.float32([20, 7, 9])
    colour = near + step(0.0, 0.026, to_edge)[..., None] * (deep - near)
    floor = head.mouth - lips.raised + lips.gap  # the lower lip's inner edge in the middle
    # tongue
    high = 0.010 + 0.055 * lips.opening**2 + 0.015 * lips.wide
    bulge = 1 - (x / (lips.half * 0.74)) ** 2 - ((y - floor - 0.016) / high) ** 2
    tint = 0.50 + 0.42 * np.clip(bulge, 0, 1) - 0.13 * bell(x, 0.012) * step(0, 0.5, bulge)
    tongue = step(0.0, 0.35, bulge) * (0.2 + 0.65 * lips.opening)
    lay(colour, tongue, np.float32([196, 98, 98]) * tint[..., None])
    # teeth: x in teeth from the middle, where in a tooth
    borders = np.array([0, 1.0, 1.75, 2.5, 3.1, 3.6, 4.0]) * head.tooth
    for lower in (True, False):
        place = np.interp(side * (1.35 if lower else 1.0), borders, np.arange(7.0))
        across = np.abs(place % 1 - 0.5) * 2
        uneven = np.interp(place, np.arange(6) + 0.5, [0, 0.35, 0.1, 0.45, 0.8, 1.2]) * 0.010
        rounded = 0.007 * across**5
        if lower:
            edge = floor + 0.004 - 0.020 * lips.opening - 0.018 * lips.wide
            edge = edge + 0.3 * x**2 + 0.5 * uneven + rounded
            seen = canvas.below(y, edge.astype(np.float32), 0.004)
            seen = seen * step(0.0, 0.25, 1 - side / (lips.half * 0.8))
            tone = 0.58 - 0.25 * lips.rounding
        else:
            edge = head.mouth + MOUTH_DEPTH - 0.35 * x**2 - uneven - rounded
            edge = edge + 0.012 * lips.tuck + 0.014 * lips.wide * (1 - 0.6 * lips.opening)
            seen = 1 - canvas.below(y, edge.astype(np.float32), 0.002)
            tone = 0.98 - 0.28 * lips.rounding
        round_off = 1 - 0.10 * across**3 - 0.16 * bell(1 - across, 0.10)
        away = 1 - 0.80 * np.clip(side / (reach + 0.02), 0, 1) ** 2.2
        shadow = 0.70 + 0.30 * step(-0.004, 0.022, y - above)
        glaze = 0.06 * bell(y - edge + 0.022, 0.012) * (1 - across**2)
        lit = tone * (round_off * away * shadow + glaze)
        white = np.float32(head.teeth) * lit[..., None] ** np.float32([1, 1.06, 1.12])
        lay(colour, seen * 0.97, white)
    return colour


def shades_around(head: Head, lips: Lips, x: Row, y: Column, bottom: Row) -> Values:
    """On the skin: below the lip, at the corners, and in the laugh lines."""
    shades = 0.22 * bell(y - bottom - 0.014, 0.016) * np.clip(1 - (x / lips.half) ** 2, 0, 1)
    corner = lips.middle - lips.smile * 0.8
    for side in (-1, 1):
        pit = ((x - side * (lips.half + 0.004)) / 0.017) ** 2 + ((y - corner) / 0.017) ** 2
        shades = shades + 0.42 * np.exp(-pit)
    along = (y - head.nose + 0.01) / (lips.middle - head.nose + 0.03)
    bow = np.sin(1.3 * np.clip(along, 0, 1.2))
    fold = head.nose_width + 0.02 + (lips.half + 0.05 - head.nose_width) * bow
    line = bell(np.abs(x) - fold, 0.020) * step(0.0, 0.3, along) * (1 - step(0.75, 1.2, along))
    return np.clip(shades + (0.22 * lips.wide + 0.03) * line, 0, 0.6)
