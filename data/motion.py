"""How a head moves while it speaks: sway, nods, blinks, looks and brows."""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from unavglip_jax.data.speech import STRESS, Speech

SWAY = 0.08, 0.55  # Hz, the band of slow movement
SWAY_WAVES = 5
# Standard deviations of the sway: x and y in face widths, scale, and roll, yaw and pitch in radians.
SWAY_SIZE = np.array([0.02, 0.012, 0.012, 0.022, 0.06, 0.03])
NOD_SHARE, NOD = 0.4, 0.035  # of stressed vowels, and radians
NOD_LASTS = 0.13  # seconds, standard deviation
RAISE_SHARE, RAISE_LASTS = 0.12, 0.25  # of stressed vowels, and seconds
BLINK_PAUSE = 2.0, 6.0  # seconds from one blink to the next
BLINK_SHUTS, BLINK_OPENS = 0.09, 0.15  # seconds: six frames at 25 a second
LOOK_LASTS, LOOK_MOVES = (0.5, 2.8), 0.05  # seconds that a look lasts, and that the eyes take
AT_CAMERA = 0.6  # share of looks


class Pose(NamedTuple):
    """Where a head is, and its eyes and brows; as given here it looks straight at the camera.

    Attributes:
      x: shift to the right in the picture, in face widths.
      y: shift down, in face widths.
      scale: size over that in the framing.
      roll: turn in the picture's plane, clockwise as seen, in radians.
      yaw: turn to the right in the picture, in radians.
      pitch: turn down, in radians.
      blink: 0 eyes open to 1 shut.
      gaze_x: -1 left in the picture to 1 right.
      gaze_y: -1 up to 1 down.
      brow: -1 lowered to 1 raised.
    """

    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0
    roll: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    blink: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    brow: float = 0.0


def head_motion(
    rng: np.random.Generator, count: int, fps: Fraction, speech: Speech | None = None
) -> list[Pose]:
    """The pose of every frame; frame i is at i / fps seconds.

    Args:
      rng: decides all of it.
      count: frames.
      fps: frames a second.
      speech: what is said, whose stressed vowels go with nods and raised brows.
    """
    times = np.arange(count) / float(fps)
    x, y, scale, roll, yaw, pitch = sway(rng, times)
    brow = 0.15 * sway(rng, times)[0] / SWAY_SIZE[0]
    for phoneme in speech.phonemes if speech else ():
        if STRESS in phoneme.symbol:
            middle = (phoneme.start + phoneme.stop) / 2
            nods, raises = rng.random(2)
            if nods < NOD_SHARE:
                pitch += NOD * rng.uniform(0.4, 1.2) * bump(times - middle, NOD_LASTS)
            if raises < RAISE_SHARE:
                brow += rng.uniform(0.3, 0.8) * bump(times - middle, RAISE_LASTS)
    gaze_x, gaze_y = looks(rng, times)
    columns = (x, y, 1 + scale, roll, yaw, pitch, blinks(rng, times), gaze_x, gaze_y)
    return [Pose(*map(float, row)) for row in zip(*columns, np.clip(brow, -1, 1), strict=True)]


def sway(rng: np.random.Generator, times: Float[np.ndarray, " F"]) -> Float[np.ndarray, "6 F"]:
    """Slow movement within a band of frequencies, at most about twice `SWAY_SIZE`, livelier or calmer."""
    shape = (len(SWAY_SIZE), SWAY_WAVES, 1)
    frequency, phase = rng.uniform(*SWAY, shape), rng.uniform(0, 2 * np.pi, shape)
    waves = np.sin(2 * np.pi * frequency * times + phase)
    size = SWAY_SIZE * rng.uniform(0.5, 1.2) * np.sqrt(2 / SWAY_WAVES)
    return size[:, None] * waves.sum(axis=1)


def bump(away: Float[np.ndarray, " F"], deviation: float) -> Float[np.ndarray, " F"]:
    """A Gaussian of height 1."""
    return np.exp(-0.5 * (away / deviation) ** 2)


def blinks(rng: np.random.Generator, times: Float[np.ndarray, " F"]) -> Float[np.ndarray, " F"]:
    """How far the eyes are shut; they shut faster than they open."""
    shut = np.zeros_like(times)
    at = rng.uniform(0.3, BLINK_PAUSE[1])
    while len(times) and at < times[-1] + BLINK_SHUTS:
        away = times - at
        side = np.where(away < 0, BLINK_SHUTS, BLINK_OPENS)
        shut = np.maximum(shut, smooth_step(1.15 * (1 - np.abs(away) / side)))
        at += rng.uniform(*BLINK_PAUSE)
    return shut


def looks(rng: np.random.Generator, times: Float[np.ndarray, " F"]) -> Float[np.ndarray, "2 F"]:
    """Where the eyes look: from one point to the next in a saccade, most of the time to the camera."""
    gaze = np.zeros((2, len(times)))
    at, last = rng.uniform(*LOOK_LASTS), np.zeros(2)
    while len(times) and at < times[-1]:
        away = rng.random() > AT_CAMERA
        target = rng.uniform((-0.7, -0.35), (0.7, 0.35)) if away else rng.uniform(-0.06, 0.06, 2)
        gaze += np.outer(target - last, smooth_step((times - at) / LOOK_MOVES))
        last, at = target, at + rng.uniform(*LOOK_LASTS)
    return gaze


def smooth_step(x: Float[np.ndarray, " F"]) -> Float[np.ndarray, " F"]:
    """0 below 0, 1 above 1, without a corner in between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)
