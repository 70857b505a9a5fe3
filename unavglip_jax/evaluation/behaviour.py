"""What the mouth and the rest of the face do: moving in silence, following the wrong video, trembling.

Gaps are those of `sync.lip_gap`, one a frame, NaN where the frame has no face.
"""

import json
from collections.abc import Iterable, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from unavglip_jax.config import InputError
from unavglip_jax.evaluation.sync import STILL
from unavglip_jax.faces.crop import Box, checked_landmarks, inside_frame
from unavglip_jax.faces.identity import FIVE, similarity
from unavglip_jax.media import audio

OPEN = 0.05  # distances between the eyes; mouths that were shut had 0.023 at most
# Brows, the bridge of the nose and the corners of the eyes: what dubbing leaves alone and blinks do not move.
STEADY = (*range(17, 31), 36, 39, 42, 45)
NOISE_GAIN = 1.5  # variance of x[t] - (x[t - 1] + x[t + 1]) / 2 for independent noise of variance 1


class MouthMotion(NamedTuple):
    """How the mouth moves in silence.

    Attributes:
      silent: mean absolute change of the gap, in distances between the eyes a second, where the recording
        is silent; NaN if it never is.
      speaking: the same elsewhere.
      open: share of the silent frames in which the lips are apart (above `OPEN`).
      frames: silent frames that have a face.
    """

    silent: float
    speaking: float
    open: float
    frames: int


def silent_frames(
    samples: Float[np.ndarray, " N"], count: int, fps: Fraction
) -> Bool[np.ndarray, " F"]:
    """Which of `count` video frames lie wholly inside a pause of the recording (see `audio.silence`)."""
    share = audio.silence(samples)
    edges = [audio.row_at(audio.STEP_RATE, i, fps) for i in range(count + 1)]
    return np.array(
        [
            stop <= len(share) and bool((share[start : max(stop, start + 1)] == 1).all())
            for start, stop in pairwise(edges)
        ],
        bool,
    )


def mouth_motion(
    gaps: Float[np.ndarray, " F"], silent: Bool[np.ndarray, " F"], fps: Fraction
) -> MouthMotion:
    """How much the mouth moves while nobody speaks.

    After KeySync (arXiv 2505.00497), which asks for a mouth that stays shut then.

    Args:
      gaps: of the generated video.
      silent: see `silent_frames`.
      fps: frames a second.
    """
    gaps, silent = np.asarray(gaps, np.float64), np.asarray(silent, bool)
    change = np.abs(np.diff(gaps)) * float(fps)
    quiet, loud = silent[1:] & silent[:-1], ~silent[1:] & ~silent[:-1]
    known = gaps[silent & np.isfinite(gaps)]
    return MouthMotion(mean(change[quiet]), mean(change[loud]), mean(known > OPEN), len(known))


class Leak(NamedTuple):
    """What a generated mouth follows.

    Attributes:
      source: partial correlation with the source video's own mouth, given the one that the recording
        asks for. 0 is none; what is above is leak.
      driving: partial correlation with the driving mouth, given the source's.
      frames: that all three were known in.
    """

    source: float
    driving: float
    frames: int


def leak(
    found: Float[np.ndarray, " F"],
    source: Float[np.ndarray, " F"],
    driving: Float[np.ndarray, " F"],
) -> Leak:
    """Whether a dubbed mouth follows the source video instead of the recording.

    Args:
      found: gaps of the generated video.
      source: gaps of the frames that were dubbed, before.
      driving: gaps that the recording asks for: of the video it was taken from, or a synthetic clip's truth.

    Returns:
      NaN where a mouth does not move at all, or the two others move alike.
    """
    found, source, driving = (np.asarray(gaps, np.float64) for gaps in (found, source, driving))
    known = np.isfinite(found) & np.isfinite(source) & np.isfinite(driving)
    found, source, driving = found[known], source[known], driving[known]
    return Leak(
        partial_correlation(found, source, driving),
        partial_correlation(found, driving, source),
        int(known.sum()),
    )


def partial_correlation(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], given: Float[np.ndarray, " N"]
) -> float:
    """Pearson's correlation of what a third variable does not explain, linearly, of two others.

    An x that moves only as `given` does has nothing left that could follow y: 0.
    """
    if len(x) < 4:
        return float("nan")
    x, y, given = (values - values.mean() for values in (x, y, given))
    power = given @ given
    rest = lambda values: values - given * (values @ given / power) if power else values
    rest_x, rest_y = rest(x), rest(y)
    if x @ x < STILL * len(x) or rest_y @ rest_y < STILL * len(x):
        return float("nan")
    if rest_x @ rest_x < STILL * len(x):
        return 0.0
    return float(rest_x @ rest_y / np.sqrt((rest_x @ rest_x) * (rest_y @ rest_y)))


def steadiness(landmarks: Float[np.ndarray, "F 68 2"]) -> float:
    """How much the face outside of the mask trembles: percent of the distance between the eyes.

    The standard deviation of a point's tremble from frame to frame in one coordinate, after each frame's
    rotation, scaling and shift are taken out: movements that go on evenly do not count, and independent
    noise counts in full.

    Args:
      landmarks: iBUG's 68 points of the frames in a row, in pixels; NaN where there is no face. NaN comes
        back if no three frames in a row have one.
    """
    points = checked_landmarks(landmarks, "F 68 2")
    found = np.isfinite(points).all(axis=(1, 2))
    together = found[:-2] & found[1:-1] & found[2:]
    if not together.any():
        return float("nan")
    first = points[found][0]
    steady = list(STEADY)
    settled = np.full((len(points), len(steady), 2), np.nan)
    for i in np.flatnonzero(found):
        matrix = similarity(points[i, steady], first[steady])
        settled[i] = points[i, steady] @ matrix[:, :2].T + matrix[:, 2]
    tremble = (settled[1:-1] - (settled[:-2] + settled[2:]) / 2)[together]
    right, left = (first[group].mean(axis=0) for group in FIVE[68][:2])
    # Of n points in the plane the alignment takes out 4 of 2n degrees of freedom.
    kept = 1 - 2 / len(steady)
    deviation = np.sqrt((tremble**2).mean() / kept / NOISE_GAIN)
    return float(100 * deviation / np.linalg.norm(left - right))


def flicker(frames: Iterable[UInt8[np.ndarray, "H W 3"]], box: Box | None = None) -> float:
    """How much pixels flicker, in levels of 255: deviation of frames from the middle of their neighbours.

    Scaled so that independent noise counts with its standard deviation; even changes of brightness do not
    count. Compare it with the true video's.

    Args:
      frames: three or more in a row, RGB; pass three at a time for a series.
      box: the part of them to look at.

    Raises:
      InputError: there are fewer than three.
    """
    frames = list(frames)
    if len(frames) < 3:
        raise InputError(f"flicker is seen in three frames or more, and these are {len(frames)}")
    if box is not None:
        x1, y1, x2, y2 = inside_frame(box, frames[0])
        frames = [frame[y1:y2, x1:x2] for frame in frames]
    total = 0.0
    for before, frame, after in zip(frames, frames[1:], frames[2:], strict=False):
        neighbours = before.astype(np.float32) + after
        total += float(np.mean((frame - neighbours / 2) ** 2, dtype=np.float64))
    return float(np.sqrt(total / (len(frames) - 2) / NOISE_GAIN))


def passed_through(report: str | Path | Mapping) -> float:
    """The share of a dubbed video's frames that were not dubbed, from the report that `dub` wrote.

    Raises:
      InputError: the report cannot be read or is another file.
    """
    name = "the report"
    if not isinstance(report, Mapping):
        name, path = str(report), Path(report)
        try:
            report = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as a report of `dub` ({error})") from error
    try:
        return len(report["frames_passed_through"]) / int(report["source_frames"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"{name} does not say which frames passed through; give the JSON file beside a dubbed video"
        ) from error


def mean(values: np.ndarray) -> float:
    """The mean of what is finite; NaN if nothing is."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")
