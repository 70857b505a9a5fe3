"""The crop box: which rectangle of a frame the generator sees, by MuseTalk's rule.

The rule, and what the published programs do with it, is in the MuseTalk repository (TMElyralab/MuseTalk,
arXiv 2410.10122). Frames are RGB, uint8, (height, width, 3); points are (x, y) in pixels, (0, 0) the middle
of the first pixel. What was found in a whole clip is held in arrays with a row for each frame, NaN where
the frame has no face.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from unavglip_jax.config import Config, InputError

# iBUG points along the bridge of the nose, from above; the middle one is the box's horizontal mid-line.
ABOVE, BRIDGE, TIP = 28, 29, 30

# Smoothing times are standard deviations of Gaussians, in seconds.
STEADY = 0.2  # wide enough to remove the jaw's movement in speech (3 to 8 a second) from the box
QUICK = 0.03
# A head moves when the two disagree about the box's centre by this fraction of its side. The mesh's own
# noise is several times smaller.
MOVING = (0.01, 0.03)
HYSTERESIS = 0.75  # pixels


class Box(NamedTuple):
    """The pixels x1 <= x < x2, y1 <= y < y2 of a frame."""

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def width(self) -> int:
        """Columns."""
        return self.x2 - self.x1

    @property
    def height(self) -> int:
        """Rows."""
        return self.y2 - self.y1


class CropRule(Config):
    """How a box is made from landmarks.

    Attributes:
      shifts: whether `bbox_shift` moves the mid-line; where it does not it is ignored, as published.
      margin: pixels added below the chin.
    """

    shifts: bool
    margin: int


# The names are those of a pack's `crop`.
RULES = {
    "musetalk_v10": CropRule(shifts=True, margin=0),
    "musetalk_v15": CropRule(shifts=False, margin=10),
}


def crop_box(
    landmarks: Float[np.ndarray, "68 2"],
    size: tuple[int, int],
    rule: CropRule,
    bbox_shift: int = 0,
    margin: int | None = None,
) -> Box | None:
    """The box of one frame as published, all four sides clamped to the frame.

    Args:
      landmarks: iBUG's 68 points, in pixels. As published their fractions are dropped; they are not
        changed.
      size: height and width of the frame.
      rule: of `RULES`.
      bbox_shift: pixels by which the mid-line moves down; the mouth opens more.
      margin: pixels below the chin, if not the rule's.

    Returns:
      The box, or None if nothing of it is inside the frame. (As published a detector's box takes its
      place there; here detector and landmarks look at the same face.)
    """
    landmarks = checked_landmarks(landmarks, "68 2")
    return pixel_box(edges(np.trunc(landmarks), rule, bbox_shift), size, margin_of(rule, margin))


def clip_boxes(
    landmarks: Float[np.ndarray, "F 68 2"],
    size: tuple[int, int],
    rule: CropRule,
    fps: Fraction,
    *,
    bbox_shift: int = 0,
    margin: int | None = None,
    smoothing: bool = True,
    cuts: Iterable[int] = (),
) -> list[Box | None]:
    """The boxes of a whole clip, None where a frame has no face.

    Args:
      landmarks: iBUG's 68 points of each frame, in pixels, NaN where there is no face.
      size: height and width of the frames.
      rule: of `RULES`.
      fps: frames a second.
      bbox_shift: see `crop_box`.
      margin: see `crop_box`.
      smoothing: False gives each frame the box that is published for it.
      cuts: numbers of the frames with which a new shot begins.
    """
    landmarks = checked_landmarks(landmarks, "F 68 2")
    if not smoothing:
        landmarks = np.trunc(landmarks)
    track = edges(landmarks, rule, bbox_shift)
    if smoothing:
        track = settled(smoothed(track, fps, cuts), cuts)
    return [pixel_box(row, size, margin_of(rule, margin)) for row in track]


def edges(
    landmarks: Float[np.ndarray, "*F 68 2"], rule: CropRule, bbox_shift: int = 0
) -> Float[np.ndarray, "*F 4"]:
    """Left, top, right and bottom by MuseTalk's rule, in pixels, not clamped and without the margin.

    The mid-line is at the bridge of the nose, moved down by `bbox_shift`; the bottom is the lowest
    landmark, the bridge included after its move; the top is as far above the mid-line as the bottom
    is below.
    """
    x, y = np.moveaxis(np.asarray(landmarks, np.float64)[..., :2], -1, 0)
    if rule.shifts and bbox_shift:
        y = y.copy()  # published programs move the bridge in the landmarks that they keep
        y[..., BRIDGE] += bbox_shift
    bottom = y.max(axis=-1)
    return np.stack([x.min(axis=-1), 2 * y[..., BRIDGE] - bottom, x.max(axis=-1), bottom], axis=-1)


def pixel_box(row: Float[np.ndarray, " 4"], size: tuple[int, int], margin: int = 0) -> Box | None:
    """Edges as whole pixels inside a frame of `size` (height, width); None if nothing remains."""
    if not np.isfinite(row).all():
        return None
    x1, y1, x2, y2 = (int(edge) for edge in row)
    if x2 <= x1 or y2 <= y1:  # before the margin: it makes no face of nothing
        return None
    height, width = size
    box = Box(max(x1, 0), max(y1, 0), min(x2, width), min(y2 + margin, height))
    return box if box.width > 0 and box.height > 0 else None


def margin_of(rule: CropRule, margin: int | None) -> int:
    """The margin asked for, or the rule's.

    Raises:
      InputError: it is negative.
    """
    if margin is None:
        return rule.margin
    if margin < 0:
        raise InputError(f"the margin below the chin is {margin} pixels; it must not be negative")
    return margin


def shift_range(landmarks: Float[np.ndarray, "F 68 2"]) -> tuple[int, int] | None:
    """The least and the greatest sensible `bbox_shift`: the mid-line one landmark higher or lower.

    Means over the frames that have a face, of landmarks without their fractions; None without any.
    """
    y = np.trunc(checked_landmarks(landmarks, "F 68 2")[..., 1])
    y = y[np.isfinite(y).all(axis=1)]
    if not len(y):
        return None
    low = -int((y[:, TIP] - y[:, BRIDGE]).mean())
    high = int((y[:, BRIDGE] - y[:, ABOVE]).mean())
    return low, high


def shift_report(landmarks: Float[np.ndarray, "F 68 2"], bbox_shift: int) -> str:
    """What MuseTalk prints about `bbox_shift` when it has made the boxes."""
    found = shift_range(landmarks)
    adjustable = "none, no face was found" if found is None else f"[{found[0]} ~ {found[1]}]"
    return f"{len(landmarks)} frames, adjust range: {adjustable}, current value: {bbox_shift}"


def smoothed(
    track: Float[np.ndarray, "F 4"], fps: Fraction, cuts: Iterable[int] = ()
) -> Float[np.ndarray, "F 4"]:
    """Boxes without jitter and without lag. Every run of boxes without a gap or a cut is by itself.

    At each frame a curve is fitted to the frames around it, before and after alike, so that a head in
    even motion is followed exactly, up to the ends of a run: a line for the box's size, which speech
    changes, and a parabola for its centre. Where the head moves faster than that follows, the fit of
    the centre is over a short time. Single frames far off the others are dropped first.
    """
    # in frames; narrower Gaussians are a single frame, to which no curve can be fitted
    steady, quick = (max(seconds * float(fps), 0.5) for seconds in (STEADY, QUICK))
    out = np.full_like(track, np.nan, dtype=np.float64)
    for run in runs(np.isfinite(track).all(axis=1), cuts):
        rows = without_outliers(np.asarray(track[run], np.float64))
        centre, size = (rows[:, :2] + rows[:, 2:]) / 2, rows[:, 2:] - rows[:, :2]
        size = local_fit(size, steady, 1)
        still, moving = local_fit(centre, steady, 2), local_fit(centre, quick, 1)
        side = np.maximum(size.max(axis=1, keepdims=True), 1)
        apart = np.abs(moving - still).max(axis=1, keepdims=True) / side
        share = np.clip((apart - MOVING[0]) / (MOVING[1] - MOVING[0]), 0, 1)
        share = np.clip(local_fit(share, 2 * quick, 1), 0, 1)
        centre = still + share * (moving - still)
        out[run] = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    return out


def settled(track: Float[np.ndarray, "F 4"], cuts: Iterable[int] = ()) -> Float[np.ndarray, "F 4"]:
    """Boxes in whole pixels that do not flicker by one where an edge is near the half.

    Size and corner keep their whole number until the track is more than `HYSTERESIS` away from it.
    Rounding size and corner, and not the four edges, keeps the size of a box that moves.
    """
    out = np.full_like(track, np.nan)
    for run in runs(np.isfinite(track).all(axis=1), cuts):
        rows = track[run]
        # Published boxes drop fractions, which is half a pixel to the left and up; so do these.
        centre, size = (rows[:, :2] + rows[:, 2:] - 1) / 2, rows[:, 2:] - rows[:, :2]
        size = with_hysteresis(size)
        corner = with_hysteresis(centre - size / 2)
        out[run] = np.concatenate([corner, corner + size], axis=1)
    return out


def with_hysteresis(values: Float[np.ndarray, "F C"]) -> Float[np.ndarray, "F C"]:
    """Whole numbers that change only when the value is more than `HYSTERESIS` away."""
    out = np.rint(values)
    for i in range(1, len(out)):
        stay = np.abs(values[i] - out[i - 1]) <= HYSTERESIS
        out[i] = np.where(stay, out[i - 1], out[i])
    return out


def without_outliers(values: Float[np.ndarray, "F C"]) -> Float[np.ndarray, "F C"]:
    """The median of five frames around each; what rises or falls steadily is unchanged."""
    padded = np.pad(values, [(2, 2), (0, 0)], mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 5, axis=0), axis=-1)


def local_fit(
    values: Float[np.ndarray, "F C"], sigma: float, degree: int
) -> Float[np.ndarray, "F C"]:
    """At each row the value of the polynomial that fits best around it, weighted by a Gaussian.

    Inside a run, degree 0 or 1 is the Gaussian filter. At its ends, where a filter would lag or have
    to invent values, the polynomial still follows. `sigma` in rows.
    """
    degree = min(degree, len(values) - 1)
    reach = min(int(np.ceil(3 * sigma)) + 1, len(values) - 1)
    offsets = np.arange(-reach, reach + 1) / sigma
    weights = np.exp(-0.5 * offsets**2)
    rows = slice(reach, reach + len(values))  # of the full convolution: aligned with the values

    def moment(power, column):
        # np.convolve flips its kernel: row i sees row i - k under the weight of offset k
        return np.convolve(column, weights * (-offsets) ** power)[rows]

    ones = np.ones(len(values))
    sums = [moment(power, ones) for power in range(2 * degree + 1)]
    powers = range(degree + 1)
    matrix = np.stack([np.stack([sums[i + j] for j in powers], -1) for i in powers], axis=-2)
    right = np.stack(
        [np.stack([moment(i, column) for column in values.T], -1) for i in powers], axis=-2
    )
    return np.linalg.solve(matrix, right)[:, 0]


def held_frames(
    found: Bool[np.ndarray, " F"], longest: int, cuts: Iterable[int] = ()
) -> Int[np.ndarray, " F"]:
    """For each frame the one whose box and landmarks it takes; -1 where it stays as it is.

    A frame with a face takes its own. One without takes those of the last frame that has one, if no
    cut lies between and the gap is not longer than `longest` frames. Longer gaps are not filled at
    all: a box that is held for their first frames only would let the dubbing stop in mid-air.
    """
    if longest < 0:
        raise InputError(f"a gap of {longest} frames cannot be filled; give 0 or more")
    found = np.asarray(found, bool)
    source = np.where(found, np.arange(len(found)), -1)
    starts = set(cuts)
    for gap in runs(~found, cuts):
        before = gap.start - 1
        inside = before >= 0 and found[before] and gap.start not in starts
        if inside and gap.stop - gap.start <= longest:
            source[gap] = before
    return source


def runs(wanted: Bool[np.ndarray, " F"], cuts: Iterable[int] = ()) -> list[slice]:
    """The stretches of wanted frames; one that goes over a cut counts as two."""
    starts = set(cuts)
    found, start = [], None
    for i, good in enumerate(wanted):
        if start is not None and (not good or i in starts):
            found.append(slice(start, i))
            start = None
        if good and start is None:
            start = i
    if start is not None:
        found.append(slice(start, len(wanted)))
    return found


def crop(
    frame: UInt8[np.ndarray, "H W 3"], box: Sequence[int], size: int = 256
) -> UInt8[np.ndarray, "S S 3"]:
    """The box of a frame, stretched to a square. Lanczos over 8x8 pixels, as published.

    OpenCV does not widen the kernel when it shrinks a picture; the networks learnt from such crops.
    """
    checked_frame(frame)
    x1, y1, x2, y2 = inside_frame(box, frame)
    return cv2.resize(frame[y1:y2, x1:x2], (size, size), interpolation=cv2.INTER_LANCZOS4)


def checked_frame(frame: np.ndarray) -> None:
    """Raises InputError unless `frame` is an RGB picture, uint8, (height, width, 3)."""
    shape, dtype = getattr(frame, "shape", None), getattr(frame, "dtype", None)
    if shape is None or len(shape) != 3 or shape[2] != 3 or dtype != np.uint8 or 0 in shape:
        raise InputError(
            f"the frame is {dtype} of the shape {shape}; give RGB as uint8 (height, width, 3)"
        )


def inside_frame(box: Sequence[int], frame: np.ndarray) -> Box:
    """The box.

    Raises:
      InputError: it is empty or not inside the frame.
    """
    box, (height, width) = Box(*(int(edge) for edge in box)), frame.shape[:2]
    if not (0 <= box.x1 < box.x2 <= width and 0 <= box.y1 < box.y2 <= height):
        raise InputError(
            f"the box {tuple(box)} (left, top, right, bottom) is empty or not inside the frame of "
            f"{width}x{height} pixels; clamp it with `crop_box`"
        )
    return box


def checked_landmarks(landmarks: np.ndarray, shape: str) -> Float[np.ndarray, "*F 68 2"]:
    """The landmarks' x and y in float64.

    Raises:
      InputError: they have another shape than "68 2" or "F 68 2" (more than x and y is allowed), or,
        for one frame, are not finite.
    """
    landmarks = np.asarray(landmarks, np.float64)
    names = shape.split()
    if landmarks.ndim != len(names) or landmarks.shape[-2] != 68 or landmarks.shape[-1] < 2:
        raise InputError(
            f"the landmarks have the shape {landmarks.shape}; give iBUG's 68 points, ({', '.join(names)})"
        )
    if landmarks.ndim == 2 and not np.isfinite(landmarks).all():
        raise InputError("the landmarks contain values that are infinite or not a number")
    return landmarks[..., :2]
