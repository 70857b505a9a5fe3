"""From one video to clips of one talking face: what a worker process of `preprocess` does, without jax.

Everything is on the grid of 25 frames a second that begins with the source's first picture: frame i of the
source is at i / 25 seconds, at sample 640 i and at step 2 i of its audio features. What is cut there stays
index-aligned, whatever the source's own rate and wherever its tracks begin.
"""

import itertools
import json
import math
import os
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from unavglip_jax.config import Config, InputError
from unavglip_jax.data.clips import FPS, Clip, sample_count, save_clip
from unavglip_jax.data.settings import PreprocessSettings
from unavglip_jax.dubbing.stream import Clock
from unavglip_jax.faces import identity
from unavglip_jax.faces.crop import RULES, Box, clip_boxes, crop, runs
from unavglip_jax.faces.detection import SAME_FACE, find_faces, overlap
from unavglip_jax.faces.mesh import box_of, ibug68
from unavglip_jax.faces.tracking import Tracker
from unavglip_jax.media import audio, video

Reason = Literal[
    "no face", "several faces", "small", "short", "blurred", "silent", "out of step"
]  # why a part of a video is no clip; the last is for `preprocess` to find

LOOK_ROUND = FPS  # frames from one search for other people to the next
LOOK_SCALES = (1, 2)  # of that search: it sees faces of a fourteenth of the picture's height
SCENE_WIDTH = 256  # pixels across of what scene changes are found in
LOUD_SHARE = 0.1  # of a clip's steps must be louder than `min_loudness`


class Job(Config):
    """What a worker needs to know to cut one video.

    Attributes:
      path: the video.
      source: its name in the data set.
      folder: a new folder for what is cut from it.
      detector: file of the face detector.
      face_mesh: file of the face mesh.
      crop: name of the pack's crop rule.
      image_size: pixels a side of the crops.
      settings: what is kept; `identities` is 0 if nothing can make embeddings.
    """

    path: Path
    source: str
    folder: Path
    detector: Path
    face_mesh: Path
    crop: str
    image_size: int
    settings: PreprocessSettings


class Part(NamedTuple):
    """Some frames of a source, from `start` to before `stop`; a clip if there is no reason against it."""

    start: int
    stop: int
    reason: Reason | None = None


class Faces(NamedTuple):
    """What was seen in every frame of a source; a row each, NaN where there is no face.

    Attributes:
      landmarks: iBUG's 68 points in pixels.
      five: the points that a face is aligned by for its embedding.
      looks: `identity.Look`.
      crowded: 1 where others were looked for and found, 0 where not found, NaN where not looked for.
      breaks: numbers of the frames with which a new scene begins, or where the face was found anew.
    """

    landmarks: Float[np.ndarray, "F 68 2"]
    five: Float[np.ndarray, "F 5 2"]
    looks: Float[np.ndarray, "F 7"]
    crowded: Float[np.ndarray, " F"]
    breaks: list[int]


def cut(job: Job) -> dict:
    """Writes the clips of a video, without features and embeddings, into the job's folder.

    For clip n there is `{n:03d}.npz`, by `clips.save_clip`, with the numbers of the frames that say who
    the person is, and `{n:03d}.faces.npy` with those faces, aligned. If there is any clip, `sound.npy`
    is the recording of the whole source, float32.

    Returns:
      Plain data: `clips`, numbers of first and last frame (exclusive) of each; `rejected`, the same with
      a reason; `seconds` of the source; `stages`, seconds of work in each.

    Raises:
      InputError: the video cannot be read.
    """
    settings, clock = job.settings, Clock()
    job.folder.mkdir(parents=True)
    own = video.describe(job.path)
    picture = own if own.fps == FPS else video.describe(job.path, Fraction(FPS))
    if picture.has_sound:
        samples = clock.call("read sound", video.read_audio, job.path)
    else:
        samples = np.zeros(0, np.float32)
    count = min(picture.frames, len(samples) // sample_count(1))
    faces = analyse(job, picture, count, clock)
    size, rule = (picture.height, picture.width), RULES[job.crop]
    boxes = clip_boxes(faces.landmarks, size, rule, Fraction(FPS), cuts=faces.breaks)
    parts = list(divide(faces, boxes, settings))
    parts = [judged(part, faces, boxes, samples, settings) for part in parts]
    if count < picture.frames:
        parts.append(Part(count, picture.frames, "silent"))
    good = [part for part in parts if part.reason is None]
    if good:
        np.save(job.folder / "sound.npy", samples)
    pictures = read_parts(picture, good)
    for n, part in enumerate(good):
        frames = clock.each("decode", itertools.islice(pictures, part.stop - part.start))
        clip, aligned = make_clip(job, n, part, frames, faces, boxes, samples, own.fps, clock)
        save_clip(job.folder / f"{n:03d}.npz", clip)
        np.save(job.folder / f"{n:03d}.faces.npy", aligned)
    return {
        "clips": [part[:2] for part in good],
        "rejected": [part for part in parts if part.reason],
        "seconds": float(picture.duration),
        "stages": clock.seconds,
    }


# ---- what there is to see -----------------------------------------------------------------------------


def analyse(job: Job, picture: video.Picture, count: int, clock: Clock) -> Faces:
    """Looks at the first `count` frames of a source."""
    lesser = min(picture.width, picture.height)
    scales = range(1, 1 + max(2, math.ceil(lesser / (7 * job.settings.min_face))))
    tracker = Tracker(job.detector, job.face_mesh, scales=scales)
    detector = AdaptiveDetector(min_scene_len=1)
    landmarks = np.full((count, 68, 2), np.nan, np.float32)
    five = np.full((count, 5, 2), np.nan)
    looks = np.full((count, len(identity.Look._fields)), np.nan)
    crowded, breaks, last, since = np.full(count, np.nan), set(), None, 0
    for i, frame in enumerate(clock.each("decode", video.read_frames(picture, 0, count))):
        breaks.update(clock.call("find scenes", scene_changes, detector, i, frame))
        found = clock.call("find faces", tracker, frame)
        if last is not None and (found.shot, found.track) != last:
            breaks.add(i)
            since = i
        last = found.shot, found.track
        if found.mesh is None:
            since = i + 1
            continue
        points = found.mesh.points[:, :2]
        landmarks[i], five[i] = ibug68(points), identity.five_points(points)
        looks[i] = identity.look(frame, points)
        if (i - since) % LOOK_ROUND == 0:
            crowded[i] = clock.call(
                "look round", has_company, frame, tracker, job.settings.other_face
            )
    return Faces(landmarks, five, looks, crowded, sorted(breaks))


def scene_changes(
    detector: AdaptiveDetector, number: int, frame: UInt8[np.ndarray, "H W 3"]
) -> list[int]:
    """The frames, up to this one, that PySceneDetect now knows to begin a scene."""
    height, width = frame.shape[:2]
    scale = min(1, SCENE_WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
    found = detector.process_frame(FrameTimecode(number, Fraction(FPS)), small[..., ::-1])
    return [code.frame_num for code in found]


def has_company(frame: UInt8[np.ndarray, "H W 3"], tracker: Tracker, least: float) -> bool:
    """Whether there is a face beside the tracked one, at least so large in comparison with it."""
    own = box_of(tracker.mesh.points)
    side = lambda box: float((box[2:] - box[:2]).max())
    others = find_faces(frame, tracker.detector, tracker.face_mesh, LOOK_SCALES)
    boxes = [box_of(face.mesh.points) for face in others]
    return any(overlap(box, own) <= SAME_FACE and side(box) >= least * side(own) for box in boxes)


# ---- what becomes of it -------------------------------------------------------------------------------


def divide(
    faces: Faces, boxes: Sequence[Box | None], settings: PreprocessSettings
) -> Iterator[Part]:
    """All frames, in order: stretches without a face or with several, and parts with one face.

    The parts may still be too small, blurred or silent.
    """
    found = np.array([box is not None for box in boxes], bool)
    state = np.where(found, np.where(alone(faces, found), 2, 1), 0)
    # Where nothing is to be had, a change of scene does not matter.
    inside = [i for i in faces.breaks if state[i] == state[i - 1] == 2]
    edges = {0, len(state), *(np.flatnonzero(np.diff(state)) + 1).tolist(), *inside}
    shortest, longest = (s * FPS for s in (settings.min_seconds, settings.max_seconds))
    for start, stop in itertools.pairwise(sorted(edges)):
        if state[start] < 2:
            yield Part(start, stop, ("no face", "several faces")[state[start]])
        elif stop - start < shortest:
            yield Part(start, stop, "short")
        else:
            pieces = math.ceil((stop - start) / longest)
            bounds = [start + (stop - start) * n // pieces for n in range(pieces + 1)]
            yield from (Part(*ends) for ends in itertools.pairwise(bounds))


def alone(faces: Faces, found: Bool[np.ndarray, " F"]) -> Bool[np.ndarray, " F"]:
    """Where nobody else is in the picture: not at the last look round, nor at the next one of the run."""
    out = np.zeros(len(found), bool)
    for run in runs(found, faces.breaks):
        looked = [i for i in range(run.start, run.stop) if not np.isnan(faces.crowded[i])]
        for at, until in itertools.pairwise([*looked, run.stop]):
            both = faces.crowded[at : until + 1] if until < run.stop else faces.crowded[at:until]
            out[at:until] = not np.nansum(both)
    return out


def judged(
    part: Part,
    faces: Faces,
    boxes: Sequence[Box | None],
    samples: Float[np.ndarray, " N"],
    settings: PreprocessSettings,
) -> Part:
    """The part, with what speaks against a clip of it."""
    if part.reason:
        return part
    frames = slice(part.start, part.stop)
    widths = [min(box.width, box.height) for box in boxes[frames]]
    sharpness = faces.looks[frames, identity.Look._fields.index("sharpness")]
    reason = None
    if np.median(widths) < settings.min_face:
        reason = "small"
    elif np.median(sharpness) < settings.min_sharpness:
        reason = "blurred"
    elif loudness(samples[sound_of(part)]) < settings.min_loudness:
        reason = "silent"
    return part._replace(reason=reason)


def loudness(samples: Float[np.ndarray, " N"]) -> float:
    """The level that a tenth of the 20 ms steps of a recording exceed, in dB of full scale."""
    steps = samples[: len(samples) // audio.SAMPLES_A_STEP * audio.SAMPLES_A_STEP]
    power = (steps.reshape(-1, audio.SAMPLES_A_STEP).astype(np.float64) ** 2).mean(axis=1)
    return float(10 * np.log10(max(np.quantile(power, 1 - LOUD_SHARE), 1e-12)))


def sound_of(part: Part) -> slice:
    """The samples of some frames."""
    return slice(sample_count(part.start), sample_count(part.stop))


def read_parts(
    picture: video.Picture, parts: Sequence[Part]
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames of some parts, in order; parts that follow each other are read as one."""
    waiting = None
    for part in parts:
        if waiting is not None and waiting.stop == part.start:
            waiting = waiting._replace(stop=part.stop)
            continue
        if waiting is not None:
            yield from video.read_frames(picture, waiting.start, waiting.stop)
        waiting = part
    if waiting is not None:
        yield from video.read_frames(picture, waiting.start, waiting.stop)


def make_clip(
    job: Job,
    number: int,
    part: Part,
    frames: Iterator[UInt8[np.ndarray, "H W 3"]],
    faces: Faces,
    boxes: Sequence[Box],
    samples: Float[np.ndarray, " N"],
    fps: Fraction,
    clock: Clock,
) -> tuple[Clip, UInt8[np.ndarray, "K 112 112 3"]]:
    """The clip of a part, and the faces that say who the person is."""
    chosen = np.zeros(0, np.int32)
    if job.settings.identities:
        looks = faces.looks[part.start : part.stop]
        chosen = identity.conditioning_frames(looks, job.settings.identities).astype(np.int32)
    own, aligned, jpegs = boxes[part.start : part.stop], {}, []
    for i, frame in enumerate(frames):
        jpegs.append(clock.call("crop", jpeg, frame, own[i], job))
        if i in chosen:
            aligned[i] = identity.align(frame, faces.five[part.start + i])
    if len(jpegs) < len(own):
        raise InputError(
            f"{job.path} gave {len(jpegs)} frames for {len(own)} from {part.start / FPS:.2f} seconds on "
            "when it was read again; copy or export it again"
        )
    own = np.array(own, np.int32)
    sound = np.clip(np.rint(samples[sound_of(part)] * 32768.0), -32768, 32767)
    clip = Clip(
        name=f"{job.source}/{number}",
        source=job.source,
        start=part.start / FPS,
        source_fps=str(fps),
        frames=jpegs,
        landmarks=in_crops(faces.landmarks[part.start : part.stop], own, job.image_size),
        boxes=own,
        samples=sound.astype(np.int16),
        features=np.zeros((0, 0, 0), np.float16),
        identity=np.zeros((len(chosen), 0), np.float32),
        identity_frames=chosen,
    )
    shape = (len(chosen), identity.ALIGNED, identity.ALIGNED, 3)
    return clip, np.array([aligned[i] for i in chosen.tolist()], np.uint8).reshape(shape)


def jpeg(frame: UInt8[np.ndarray, "H W 3"], box: Box, job: Job) -> bytes:
    """The crop of a frame as a JPEG file."""
    face = crop(frame, box, job.image_size)
    quality = [cv2.IMWRITE_JPEG_QUALITY, job.settings.jpeg_quality]
    return cv2.imencode(".jpg", face[..., ::-1], quality)[1].tobytes()


def in_crops(
    landmarks: Float[np.ndarray, "F 68 2"], boxes: Int[np.ndarray, "F 4"], size: int
) -> Float[np.ndarray, "F 68 2"]:
    """Landmarks in pixels of crops of `size` pixels a side; the middle of a first pixel is (0, 0)."""
    corner, sides = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    return ((landmarks - corner + 0.5) * size / sides - 0.5).astype(np.float32)


# ---- the worker process -------------------------------------------------------------------------------


def serve() -> None:
    """Answers jobs, one JSON a line on the standard input, by what `cut` returns, on the standard output.

    The first line that it writes is "ready". A video that cannot be read is answered by
    `{"error": reason}`, a folder that cannot be written by `{"fatal": reason}`. The process ends at once
    when its input does, so also when the one that started it is killed.
    """
    cv2.setNumThreads(1)  # there is a worker for each core
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # for whatever else is printed
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen():
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    print("ready", file=answers, flush=True)
    while True:
        job = Job.model_validate_json(jobs.get())
        try:
            answer = cut(job)
        except InputError as error:
            answer = {"error": str(error)}
        except OSError as error:
            answer = {"fatal": f"{job.folder} cannot be written ({error.strerror or error})"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
