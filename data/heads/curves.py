"""Curves and outlines, as points."""

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, "N 2"]


def step(low: float, high: float, values):
    """From 0 at `low` to 1 at `high`, smoothly."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def bell(values, width: float):
    """A Gaussian of height 1 about 0; its standard deviation is the width by the root of two."""
    return np.exp(-((values / width) ** 2))


def points(x, y) -> Points:
    """Points of their coordinates, one of which may be the same for all."""
    return np.stack(np.broadcast_arrays(x, y), axis=-1)


def spline(x, y, closed: bool = False) -> Points:
    """A Catmull-Rom curve through points, twelve steps between two."""
    knots = points(x, y).astype(np.float64)
    near = np.pad(knots, ((1, 2), (0, 0)), mode="wrap" if closed else "edge")
    if not closed:
        near = near[:-1]
    a, b, c, d = near[:-3, None], near[1:-2, None], near[2:-1, None], near[3:, None]
    u = np.linspace(0, 1, 12, endpoint=False)[None, :, None]
    square, cube = 2 * a - 5 * b + 4 * c - d, 3 * b - a - 3 * c + d
    curve = (0.5 * (2 * b + (c - a) * u + square * u**2 + cube * u**3)).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, knots[-1:]])


def sides(curve: Points) -> tuple[Points, Points]:
    """A curve's mirror image on the left, and the curve."""
    return curve * (-1, 1), curve


def mirrored(x, y) -> Points:
    """A closed outline from its right half, given from top to bottom."""
    right = points(x, y).astype(np.float64)
    left = right[::-1] * (-1, 1)
    return spline(*np.concatenate([right, left[np.abs(left[:, 0]) > 1e-9]]).T, closed=True)


def ellipse(x: float, y: float, across: float, down: float) -> Points:
    """The outline of an ellipse."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return points(across * np.cos(angle), down * np.sin(angle)) + (x, y)
