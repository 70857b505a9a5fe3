"""One clip: what is measured of its pictures and faces where the videos are read, in a worker process.

Generated video and ground truth are aligned by time: both are read at the generated one's frame rate, and
frame i of one belongs to frame i of the other. No file is changed, and no more than three frames are held.
"""

import math
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from unavglip_jax.config import InputError
from unavglip_jax.evaluation import behaviour, picture, sync
from unavglip_jax.evaluation.tasks import EvaluateTask
from unavglip_jax.faces import identity
from unavglip_jax.faces.crop import RULES, Box, crop, crop_box
from unavglip_jax.faces.mesh import box_of, ibug68
from unavglip_jax.faces.tracking import Tracker
from unavglip_jax.media import video

SIDE = 256  # pixels of a cropped face, as published
HIGHEST_PSNR = 100.0  # dB, also of equal pictures; one level in one sample of a crop is 101
NO_BOX = (-1, -1, -1, -1)

Frame = UInt8[np.ndarray, "H W 3"]


class Job(NamedTuple):
    """A comparison to make.

    Attributes:
      task: what is compared.
      detector: file of the face detector.
      face_mesh: file of the face mesh.
      max_seconds: how much of it, from the beginning; None for all.
    """

    task: EvaluateTask
    detector: Path
    face_mesh: Path
    max_seconds: float | None = None


class Pair(NamedTuple):
    """Ground truth and generated video, both at one frame rate.

    Attributes:
      true: the ground truth.
      made: the generated one.
      count: frames that are compared.
      notes: how they differ, a sentence each.
    """

    true: video.Picture
    made: video.Picture
    count: int
    notes: list[str]


class Faces(NamedTuple):
    """The face in every frame of a video, in its pixels; NaN where there is none.

    Attributes:
      landmarks: iBUG's 68 points.
      five: the points that a face is aligned by.
      extents: left, top, right and bottom of the mesh.
      gaps: between the lips (`sync.lip_gap`).
      flicker: of the pixels around the mouth (`behaviour.flicker`), of 255 levels.
      shots: number of the shot of each frame.
    """

    landmarks: Float[np.ndarray, "F 68 2"]
    five: Float[np.ndarray, "F 5 2"]
    extents: Float[np.ndarray, "F 4"]
    gaps: Float[np.ndarray, " F"]
    flicker: Float[np.ndarray, " F"]
    shots: Int[np.ndarray, " F"]


class Comparison(NamedTuple):
    """What was measured of a clip.

    Attributes:
      notes: what the reader should know, a sentence each.
      true: faces of the ground truth.
      made: faces of the generated video.
      boxes: of the pictures that were compared, in pixels of the ground truth and of the generated video;
        `NO_BOX` where a face was to be cropped and there is none.
      series: a number a frame by name, NaN where there is none.
      scores: a number a clip by name, likewise.
    """

    notes: list[str]
    true: Faces
    made: Faces
    boxes: Int[np.ndarray, "F 2 4"]
    series: dict[str, Float[np.ndarray, " F"]]
    scores: dict[str, float]


# ---- alignment ---------------------------------------------------------------------------------------


def open_pair(task: EvaluateTask, max_seconds: float | None = None) -> Pair:
    """Looks at both videos.

    Raises:
      InputError: one cannot be read.
    """
    made, own = video.describe(task.generated_video_path), video.describe(task.gt_video_path)
    notes = []
    if made.kind != "video" and made.fps != own.fps:  # images have the rate of what they belong to
        made = video.describe(task.generated_video_path, own.fps)
    true = own if own.fps == made.fps else video.describe(task.gt_video_path, made.fps)
    if own.kind == "video" and own.fps != made.fps:
        notes.append(
            f"the ground truth has {rate(own)} frames a second, the generated video {rate(made)}: "
            "each generated frame is compared with the true one shown at its time"
        )
    count = min(true.frames, made.frames)
    if max_seconds is not None:
        count = max(1, min(count, int(max_seconds * made.fps)))
    if true.frames != made.frames:
        notes.append(
            f"the ground truth lasts {float(true.duration):.2f} s, the generated video "
            f"{float(made.duration):.2f} s: the first {float(count / made.fps):.2f} s are compared"
        )
    sizes = [f"{picture.width}x{picture.height}" for picture in (true, made)]
    if sizes[0] != sizes[1]:
        notes.append(
            f"the ground truth has {sizes[0]} pixels, the generated video {sizes[1]}: pictures are "
            "compared at the size of the true ones"
        )
    return Pair(true, made, count, notes)


def rate(picture: video.Picture) -> str:
    """A frame rate in words."""
    return f"{float(picture.fps):.3f}".rstrip("0").rstrip(".")


def frames_of(pair: Pair, start: int = 0, stop: int | None = None) -> Iterator[tuple[Frame, Frame]]:
    """Frames of the ground truth and the generated video that belong together.

    Raises:
      InputError: one of them gives fewer than it should.
    """
    stop = pair.count if stop is None else min(stop, pair.count)
    true = video.read_frames(pair.true, start, stop)
    made = video.read_frames(pair.made, start, stop)
    given = start
    with closing(true), closing(made):
        for frames in zip(true, made, strict=False):
            yield frames
            given += 1
    if given < stop:
        raise InputError(
            f"{pair.true.path} and {pair.made.path} gave {given} of {stop} frames; export them again"
        )


def pictures(
    pair: Pair,
    boxes: Int[np.ndarray, "F 2 4"],
    task: EvaluateTask,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[Frame, Frame] | None]:
    """The pictures that are compared, of one size; None for frames without a box (`Comparison.boxes`)."""
    for i, frames in enumerate(frames_of(pair, start, stop), start):
        yield compared(frames, boxes[i], task)


def compared(
    frames: tuple[Frame, Frame], boxes: Int[np.ndarray, "2 4"], task: EvaluateTask
) -> tuple[Frame, Frame] | None:
    """The pictures of one pair of frames, the generated one in the size of the true one."""
    if (boxes < 0).any():
        return None
    wanted = task.gt_cropped, task.generated_cropped
    true, made = (
        crop(frame, box, SIDE) if cropped else frame
        for frame, box, cropped in zip(frames, boxes, wanted, strict=True)
    )
    if made.shape != true.shape:
        smaller = made.shape[0] > true.shape[0]
        kernel = cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4
        made = cv2.resize(made, true.shape[1::-1], interpolation=kernel)
    return true, made


def in_pictures(
    points: Float[np.ndarray, "... 2"], boxes: Int[np.ndarray, "... 4"], size: tuple[int, int]
) -> Float[np.ndarray, "... 2"]:
    """Points of a frame as they are in the compared picture of (height, width); NaN without a box."""
    boxes = np.where(boxes == NO_BOX, np.nan, boxes)[..., None, :]
    scale = np.array(size[::-1]) / (boxes[..., 2:] - boxes[..., :2])
    return (points + 0.5 - boxes[..., :2]) * scale - 0.5


# ---- faces -------------------------------------------------------------------------------------------


class Watcher:
    """Finds the face in each frame of a video in turn.

    Square pictures may be ready crops, in which the detector sees no face without something around it.
    """

    def __init__(self, job: Job, source: video.Picture, count: int, cropped: bool):
        self.tracker = Tracker(job.detector, job.face_mesh)
        ready = not cropped and source.width == source.height
        self.border = source.width // 2 if ready else 0
        empty = lambda *shape: np.full((count, *shape), np.nan, np.float32)
        shots = np.zeros(count, np.int32)
        self.faces = Faces(empty(68, 2), empty(5, 2), empty(4), empty(), empty(), shots)
        self.recent: list[Frame] = []

    def __call__(self, i: int, frame: Frame) -> None:
        """Looks at frame i."""
        self.recent, faces = [*self.recent[-2:], frame], self.faces
        if self.border:
            frame = cv2.copyMakeBorder(frame, *[self.border] * 4, cv2.BORDER_REPLICATE)
        found = self.tracker(frame)
        faces.shots[i] = found.shot
        if found.mesh is not None:
            points = found.mesh.points[:, :2] - self.border
            faces.landmarks[i], faces.five[i] = ibug68(points), identity.five_points(points)
            faces.extents[i], faces.gaps[i] = box_of(points), sync.lip_gap(points)
        middle = faces.landmarks[i - 1]
        if i >= 2 and faces.shots[i - 2] == faces.shots[i] and np.isfinite(middle).all():
            at = picture.mouth_box(middle, self.recent[0].shape[:2])
            if at is not None:
                three = np.stack([cut(recent, at) for recent in self.recent])
                faces.flicker[i - 1] = behaviour.flicker(three)


def boxes_of(
    task: EvaluateTask, i: int, frames: tuple[Frame, Frame], true: Faces, made: Faces
) -> Int[np.ndarray, "2 4"]:
    """Which parts of a pair of frames are compared.

    Where both are cropped and the frames have one size, the true face's box serves for both: two boxes
    would differ by the trembling of landmarks, and that is no difference of the pictures.
    """
    sizes = [frame.shape[:2] for frame in frames]
    cropped, landmarks = (task.gt_cropped, task.generated_cropped), (true.landmarks, made.landmarks)
    boxes = [
        face_box(points[i], size) if wanted else Box(0, 0, *size[::-1])
        for points, size, wanted in zip(landmarks, sizes, cropped, strict=True)
    ]
    if all(cropped) and sizes[0] == sizes[1]:
        boxes[1] = boxes[0]
    return np.array([box or NO_BOX for box in boxes], np.int32)


def face_box(landmarks: Float[np.ndarray, "68 2"], size: tuple[int, int]) -> Box | None:
    """The crop of a face as UnAvgLip's evaluation makes it, without a shift; None without a face."""
    if not np.isfinite(landmarks).all():
        return None
    return crop_box(landmarks, size, RULES["musetalk_v10"])


# ---- one clip ----------------------------------------------------------------------------------------


def compare(job: Job) -> Comparison:
    """Reads both videos once and measures what needs no network on the device.

    Raises:
      InputError: a video cannot be read, or its truth is of another kind.
    """
    task, pair = job.task, open_pair(job.task, job.max_seconds)
    names = ["psnr", "ssim", "ms_ssim", "mouth_psnr", "mouth_ssim"]
    series = {name: np.full(pair.count, np.nan) for name in names}
    boxes = np.full((pair.count, 2, 4), -1, np.int32)
    watch_true = Watcher(job, pair.true, pair.count, task.gt_cropped)
    watch_made = Watcher(job, pair.made, pair.count, task.generated_cropped)
    size = (SIDE, SIDE)
    for i, frames in enumerate(frames_of(pair)):
        watch_true(i, frames[0])
        watch_made(i, frames[1])
        boxes[i] = boxes_of(task, i, frames, watch_true.faces, watch_made.faces)
        both = compared(frames, boxes[i], task)
        if both is None:
            continue
        size = both[0].shape[:2]
        lips = in_pictures(watch_true.faces.landmarks[i], boxes[i, 0], size)
        at = picture.mouth_box(lips, size) if np.isfinite(lips).all() else None
        for name, value in likenesses(*both, at).items():
            series[name][i] = value
    true, made = watch_true.faces, watch_made.faces
    measured, scores = mouths(pair, task, true, made, boxes, size)
    series |= measured
    if task.source:
        scores |= leaks(job, pair, series)
    notes = pair.notes + [
        f"no face was found in {missing} of {pair.count} frames of the {name}"
        for name, faces in (("ground truth", true), ("generated video", made))
        if (missing := int(np.isnan(faces.gaps).sum()))
    ]
    scores["frames_with_a_face"] = float(np.isfinite(made.gaps).mean())
    dubbed = task.generated_video_path.with_suffix(".json")
    if dubbed.is_file():
        try:
            scores["passed_through"] = behaviour.passed_through(dubbed)
        except InputError as error:  # it may be anything
            notes.append(f"the share of frames passed through is not known: {error}")
    return Comparison(notes, true, made, boxes, series, scores)


def cut(image: Frame, box: Box) -> Frame:
    """The part of a picture in a box."""
    return image[box.y1 : box.y2, box.x1 : box.x2]


def likenesses(true: Frame, made: Frame, mouth: Box | None) -> dict[str, float]:
    """How near a generated picture is to the true one, and its mouth."""
    values = {"psnr": min(picture.psnr(made, true), HIGHEST_PSNR)}
    if min(true.shape[:2]) >= picture.LEAST_MS_SIDE:
        values["ssim"], values["ms_ssim"] = picture.both_ssim(made, true)
    elif min(true.shape[:2]) >= picture.LEAST_SIDE:
        values["ssim"] = picture.ssim(made, true)
    if mouth and min(mouth.width, mouth.height) >= picture.LEAST_SIDE:
        true, made = np.ascontiguousarray(cut(true, mouth)), np.ascontiguousarray(cut(made, mouth))
        values["mouth_psnr"] = min(picture.psnr(made, true), HIGHEST_PSNR)
        values["mouth_ssim"] = picture.ssim(made, true)
    return values


def mouths(
    pair: Pair, task: EvaluateTask, true: Faces, made: Faces, boxes, size: tuple[int, int]
) -> tuple[dict, dict]:
    """How the mouth moves, against the true video's and, where it is known, against the very truth."""
    series = {
        "gap": made.gaps.astype(np.float64),
        "true_gap": true.gaps.astype(np.float64),
        "flicker": made.flicker,
        "true_flicker": true.flicker,
    }
    place = lambda points, side: in_pictures(points, boxes[:, side], size)
    ours = place(made.landmarks, 1)
    scores = against(ours, place(true.landmarks, 0), series["gap"], series["true_gap"], "", series)
    truth = known(pair, task)
    if truth is not None:
        series["known_gap"] = sync.lip_gap(truth).astype(np.float64)
        gaps = series["gap"], series["known_gap"]
        scores |= against(ours, place(truth, 0), *gaps, "known_", series)
    scores["steadiness"] = behaviour.steadiness(apart(made))
    scores["true_steadiness"] = behaviour.steadiness(apart(true))
    return series, scores


def apart(faces: Faces) -> Float[np.ndarray, "N 68 2"]:
    """The landmarks with a row of NaN between shots, so that a cut does not count as a movement."""
    return np.insert(faces.landmarks, np.flatnonzero(np.diff(faces.shots)) + 1, np.nan, axis=0)


def against(ours, theirs, gaps, true_gaps, prefix: str, series: dict) -> dict[str, float]:
    """Landmark distances and correlation of lip gaps; the distances of each frame go to `series`."""
    found = sync.gap_correlation(gaps, true_gaps)
    distance = sync.landmark_distance(ours, theirs)
    series |= {f"{prefix}lmd_mouth": distance.mouth, f"{prefix}lmd_face": distance.face}
    moves = np.isfinite(found.in_step)
    return {
        f"{prefix}gap_correlation": found.in_step,
        f"{prefix}gap_lag": float(found.lag) if moves else np.nan,
        f"{prefix}gap_best": found.best,
        f"{prefix}lmd_mouth_pixels": behaviour.mean(distance.mouth_pixels),
        f"{prefix}lmd_face_pixels": behaviour.mean(distance.face_pixels),
    }


def known(pair: Pair, task: EvaluateTask) -> Float[np.ndarray, "F 68 2"] | None:
    """The landmarks of a synthetic clip, at the generated video's frame times; None if not given."""
    path = task.truth or task.gt_video_path.with_suffix(".npz")
    if not path.is_file() and task.truth is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            landmarks = found["landmarks"] if "landmarks" in found.files else np.zeros(0)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            f"{path} cannot be read as the truth of a synthetic clip ({error})"
        ) from error
    if landmarks.ndim != 3 or landmarks.shape[1:] != (68, 2):
        raise InputError(
            f"{path} is not the truth of a synthetic clip, which has landmarks of shape (frames, 68, 2); "
            "move it away or give another as `truth`"
        )
    own = video.describe(task.gt_video_path).fps / pair.true.fps
    # The last picture whose nearest frame (`video.read_frames`) is not after i.
    at = [math.ceil((i + Fraction(1, 2)) * own) - 1 for i in range(pair.count)]
    return landmarks[np.minimum(at, len(landmarks) - 1)]


def leaks(job: Job, pair: Pair, series: dict) -> dict[str, float]:
    """Whether the mouth follows the video that was dubbed; only as far as that lasts."""
    source = video.describe(job.task.source, pair.made.fps)
    count = min(source.frames, pair.count)
    watch = Watcher(job, source, count, job.task.generated_cropped)
    with closing(video.read_frames(source, 0, count)) as frames:
        for i, frame in enumerate(frames):
            watch(i, frame)
    series["source_gap"] = np.full(pair.count, np.nan)
    series["source_gap"][:count] = watch.faces.gaps
    driving = series.get("known_gap", series["true_gap"])
    found = behaviour.leak(series["gap"], series["source_gap"], driving)
    return {"leak_source": found.source, "leak_driving": found.driving}
