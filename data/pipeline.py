"""Training samples out of a data set of clips, by Grain.

A sample is T consecutive frames of one clip with what a generator is to make them from. Pictures stay uint8:
they are normalised, and hidden pixels blanked, on the device (`jnp.where(hidden[..., None], 0, target)`),
so that there is one target and its masked copy cannot come from another frame.

What a sample is depends only on the seed and its position, not on the number of threads, workers or
processes. Nothing here imports jax, because worker processes import it. (Grain does where jax is installed,
but starts no device.)
"""

import ctypes
import functools
import math
import platform
from fractions import Fraction
from typing import Any, Literal, get_args

import cv2
import grain
import numpy as np
import pydantic
from absl import flags
from jaxtyping import Bool, Float, Float32, Int

from unavglip_jax.config import AudioFrontEnd, Config, InputError
from unavglip_jax.data.augment import vary
from unavglip_jax.data.clips import FPS, Clip, Clips, Description, decode_frame, person_of
from unavglip_jax.faces.blending import opened
from unavglip_jax.media import audio

Field = Literal[
    "target",
    "reference",
    "hidden",
    "landmarks",
    "aspect",
    "windows",
    "mel",
    "mel_wrong",
    "identity",
    "label",
    "clip",
    "frame",
]

# Of the frames allowed as a reference, this share is near in pose and this share far in the mouth's shape:
# just over half, so that some are both (MuseTalk 1.5, `pose_similarity_and_mouth_dissimilarity`).
TOP_SHARE = 0.51
APART = 6  # frames between target and reference as MuseTalk 1.0 and UnAvgLip have it

# iBUG's points
JAW, LOWER_JAW, NOSE, UNDER_NOSE, LIPS = (
    slice(17),
    slice(2, 15),
    slice(27, 36),
    slice(31, 36),
    slice(48, 68),
)
BRIDGE, SUBNASALE, CHIN_TIP = 27, 33, 8
RIGHT_EYE, LEFT_EYE, INNER_LIPS, INNER_GAP = slice(36, 42), slice(42, 48), slice(60, 68), [62, 66]
GROW = 0.04  # of the crop's side, as in `faces.blending.mesh_mask`

MEL_MARGIN = 3  # rows; a row of the mel hears two rows on either side

EPOCHS = 10**9  # for ever; without a number Grain's lengths overflow in batches of one sample

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h

# A batch at a time is made on each thread. OpenCV decodes without Python's lock. Workers need but one.
THREADS = 4


class SampleOptions(Config):
    """What a sample holds.

    Attributes:
      fields: the arrays that are wanted; see `sample`.
      frames: consecutive target frames.
      reference: "distant" is a window of consecutive frames from elsewhere in the clip; "pose" chooses each
        frame by itself, near in pose and far in the mouth's shape.
      nearest: smallest distance in frames of the reference; 6, or where that overlaps the target, one more
        than its frames.
      farthest: largest distance, if there is one.
      n_cond: identity embeddings.
      identity_dropout: share of the samples whose embeddings are all zero.
      augment: whether pictures are changed at random (`augment.vary`).
    """

    fields: tuple[Field, ...] = get_args(Field)
    frames: pydantic.PositiveInt = 5
    reference: Literal["distant", "pose"] = "distant"
    nearest: pydantic.PositiveInt | None = None
    farthest: pydantic.PositiveInt | None = None
    n_cond: pydantic.PositiveInt = 4
    identity_dropout: float = pydantic.Field(default=0.0, ge=0, le=1)
    augment: bool = False

    @pydantic.model_validator(mode="after")
    def _in_order(self):
        if self.farthest is not None and self.farthest < self.least_distance:
            raise ValueError(
                f"farthest is {self.farthest}, below the smallest distance {self.least_distance}"
            )
        return self

    @property
    def least_distance(self) -> int:
        """Frames from the target to the reference, at least."""
        return self.nearest or max(APART, self.frames + 1)

    @property
    def clearance(self) -> int:
        """Frames that a clip must have on one side of the target's first, for all that is wanted."""
        reference = self.least_distance if "reference" in self.fields else 0
        return max(reference, self.frames if "mel_wrong" in self.fields else 0)

    @property
    def shortest(self) -> int:
        """Frames of the shortest clip that has a sample."""
        return self.frames + self.clearance


# ---- one sample --------------------------------------------------------------------------------------


def sample(
    clip: Clip, description: Description, options: SampleOptions, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """A random sample of a clip: of these, the arrays that `options.fields` names.

    - `target`: uint8 (T, H, W, 3), frames t to t + T - 1, RGB.
    - `reference`: uint8 (T, H, W, 3), frames that show the face to be kept.
    - `hidden`: bool (T, H, W), the pixels of the target that the generator must not see.
    - `landmarks`: float32 (T, 68, 2) of the target, in pixels.
    - `aspect`: float32 (T,), width by height of the boxes that the square target frames were cut from.
    - `windows`: float16 (T, 10 S, C), the audio tokens of each target frame.
    - `mel`: float32 (ceil(16 T / 5), 80), rows of `audio.wav2lip_mel` from the time of frame t on.
    - `mel_wrong`: the same of another window of the clip, T frames away or more: Wav2Lip's negative.
    - `identity`: float32 (n_cond, E), unit-norm embeddings, or zeros.
    - `frame`: int32, t.

    Raises:
      InputError: the clip is too short, or a frame of it cannot be read.
    """
    wanted, count, length = options.fields, len(clip.frames), options.frames
    if count < options.shortest:
        raise InputError(
            f"the clip {clip.name} has {count} frames, and samples of {length} frames need "
            f"{options.shortest}; preprocess its video again for longer clips"
        )
    starts = np.arange(count - length + 1)
    side = options.clearance
    t = int(rng.choice(starts[(starts >= side) | (starts <= starts[-1] - side)]))
    frames = np.arange(t, t + length)
    out: dict[str, Any] = {"frame": np.int32(t)}
    if "target" in wanted:
        out["target"] = pictures(clip, frames, description)
    if "reference" in wanted:
        out["reference"] = pictures(clip, references(clip, frames, options, rng), description)
    if "hidden" in wanted:
        out["hidden"] = hidden(clip.landmarks[frames], description)
    if "landmarks" in wanted:
        out["landmarks"] = clip.landmarks[frames]
    if "aspect" in wanted:
        left, top, right, bottom = clip.boxes[frames].T
        out["aspect"] = ((right - left) / (bottom - top)).astype(np.float32)
    if "windows" in wanted:
        indices = window_indices(count, len(clip.features), description.audio_front_end)
        out["windows"] = audio.gather_windows(clip.features, indices[frames])
    if "mel" in wanted:
        out["mel"] = mel_rows(clip.samples, t, length)
    if "mel_wrong" in wanted:
        others = starts[np.abs(starts - t) >= length]
        out["mel_wrong"] = mel_rows(clip.samples, int(rng.choice(others)), length)
    if "identity" in wanted:
        out["identity"] = embeddings(clip.identity, options, rng)
    out = {name: array for name, array in out.items() if name in wanted}
    return vary(out, rng) if options.augment else out


def pictures(clip: Clip, frames: np.ndarray, description: Description) -> np.ndarray:
    """Frames of a clip, decoded: uint8 (T, H, W, 3)."""
    size = description.image_size
    out = np.empty((len(frames), size, size, 3), np.uint8)
    for place, i in zip(out, frames, strict=True):
        image = decode_frame(clip.frames[i])
        if image.shape != place.shape:
            raise InputError(
                f"frame {i} of the clip {clip.name} is {image.shape[1]}x{image.shape[0]} pixels, and "
                f"the data set's are {size}x{size}; preprocess its video again"
            )
        place[:] = image
    return out


def references(
    clip: Clip, frames: Int[np.ndarray, " T"], options: SampleOptions, rng: np.random.Generator
) -> Int[np.ndarray, " T"]:
    """The reference frame of each target frame."""
    farthest = options.farthest or len(clip.frames)

    def choices(frame, last):
        distance = np.abs(np.arange(last + 1) - frame)
        return np.flatnonzero((options.least_distance <= distance) & (distance <= farthest))

    last = len(clip.frames) - 1
    if options.reference == "distant":
        first = rng.choice(choices(frames[0], last - len(frames) + 1))
        return first + np.arange(len(frames))
    shapes = steady_points(clip.landmarks)
    chosen = [rng.choice(same_pose_other_mouth(shapes, i, choices(i, last))) for i in frames]
    return np.array(chosen)


def steady_points(landmarks: Float[np.ndarray, "F 68 2"]) -> Float[np.ndarray, "F 68 2"]:
    """Landmarks as seen from between the eyes, in distances between the eyes; not turned."""
    right, left = landmarks[:, RIGHT_EYE].mean(axis=1), landmarks[:, LEFT_EYE].mean(axis=1)
    distance = np.maximum(np.linalg.norm(left - right, axis=1), 1e-3)
    return (landmarks - ((right + left) / 2)[:, None]) / distance[:, None, None]


def same_pose_other_mouth(
    shapes: Float[np.ndarray, "F 68 2"], frame: int, choices: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " M"]:
    """Of some frames, those that are near a frame in pose and far from it in the mouth's shape.

    Pose is measured at the jaw's outline, the mouth at the inner lips, as MuseTalk 1.5 does. It measures in
    pixels of the crop, where a nearer face counts as another pose; here `steady_points` are compared. The
    inner lips are compared about their own middle.
    """
    inner = shapes[:, INNER_LIPS]
    inner = inner - inner.mean(axis=1, keepdims=True)
    distance = lambda points: np.linalg.norm(points[choices] - points[frame], axis=-1).mean(axis=-1)
    kept = math.ceil(TOP_SHARE * len(choices))
    near = np.argsort(distance(shapes[:, JAW]), kind="stable")[:kept]
    far = np.argsort(-distance(inner), kind="stable")[:kept]
    both = np.intersect1d(near, far)
    return choices[both]


def hidden(
    landmarks: Float[np.ndarray, "T 68 2"], description: Description
) -> Bool[np.ndarray, "T H W"]:
    """Which pixels of crops with these landmarks the generator must not see, by the data set's mask."""
    size = description.image_size
    if description.mask == "lower_half":
        rows = np.arange(size)[:, None] >= size // 2
        return np.broadcast_to(rows, (len(landmarks), size, size)).copy()
    return np.stack([mouth_and_jaw(points, size) for points in landmarks])


def mouth_and_jaw(landmarks: Float[np.ndarray, "68 2"], size: int) -> Bool[np.ndarray, "H W"]:
    """The region of a crop that `faces.blending.mesh_mask` replaces, from 68 points instead of the mesh.

    Jaw and lips and what is between them, a little more, without the nose and what is above its underside;
    the jaw as when the mouth is wide open, so that the region does not tell how far it is open. On
    photographs it misses at most 3 % of what the mesh's mask replaces, and hides a seventh more.
    """
    points, grow = landmarks.astype(np.float64), GROW * size
    gap = np.linalg.norm(np.subtract(*points[INNER_GAP]))
    jaw = opened(points[LOWER_JAW], points[BRIDGE], points[SUBNASALE], points[CHIN_TIP], gap)
    outline = np.rint(hull(jaw, points[LIPS]) * 16).astype(np.int32)
    mask = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(mask, outline, 1, shift=4)
    cv2.polylines(mask, [outline], True, 1, thickness=round(2 * grow), shift=4)
    cv2.fillConvexPoly(mask, np.rint(hull(points[NOSE]) * 16).astype(np.int32), 0, shift=4)
    up = points[BRIDGE] - points[CHIN_TIP]
    up /= max(np.linalg.norm(up), 1e-6)
    highest = (np.concatenate([points[LIPS], points[UNDER_NOSE]]) @ up).max() + grow
    along = np.arange(size)
    return (mask > 0) & (along * up[0] + along[:, None] * up[1] < highest)


def hull(*points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "M 2"]:
    """The corners of the convex hull."""
    return cv2.convexHull(np.concatenate(points).astype(np.float32))[:, 0]


@functools.lru_cache(maxsize=1024)
def window_indices(count: int, steps: int, front_end: AudioFrontEnd) -> Int[np.ndarray, "F 10"]:
    """`audio.window_indices` of a clip; clips have few different lengths."""
    return audio.window_indices(count, Fraction(FPS), steps, front_end)


def mel_rows(samples: np.ndarray, frame: int, length: int) -> Float32[np.ndarray, "R 80"]:
    """The rows of the clip's `audio.wav2lip_mel` that go with `length` frames, and no others computed.

    They are int(80 * frame / 25) and following, 16 for five frames. (UnAvgLip as published divides by a
    frame rate of about 5000, which gives row 0 for every window, and takes the next frame's.)
    """
    first = audio.row_at(audio.MEL_RATE, frame, Fraction(FPS))
    count = -(-length * audio.MEL_RATE // FPS)
    hop = audio.SAMPLE_RATE // audio.MEL_RATE
    skipped = max(0, first - MEL_MARGIN)
    part = samples[skipped * hop : (first + count + MEL_MARGIN) * hop]
    mel = audio.wav2lip_mel(part.astype(np.float32) / 32768)
    return mel[first - skipped :][:count]


def embeddings(
    stored: Float32[np.ndarray, "K E"], options: SampleOptions, rng: np.random.Generator
) -> Float32[np.ndarray, "n E"]:
    """Some of a clip's embeddings, one more than once only if there are too few; zeros if dropped or none."""
    count, (found, width) = options.n_cond, stored.shape
    dropped = rng.random() < options.identity_dropout
    if dropped or not found:
        return np.zeros((count, width), np.float32)
    return stored[rng.choice(found, count, replace=found < count)]


# ---- many samples ------------------------------------------------------------------------------------


class Sample(grain.transforms.RandomMap):
    """Number of a clip -> sample of it; Grain's `rng` depends only on seed and position.

    Adds `clip`, int32, the number, and `label`, int32, that of its person among those of the split; and
    `valid`, bool, if `padded`: numbers behind the last clip give the last one again, not valid.
    """

    def __init__(
        self, clips: Clips, description: Description, options: SampleOptions, padded: bool = False
    ):
        self.clips, self.description, self.options = clips, description, options
        self.padded = padded
        self.labels = {}
        for names in description.sources.values():
            self.labels |= {name: i for i, name in enumerate(names)}

    def random_map(self, element: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        number = min(int(element), len(self.clips) - 1)
        clip = self.clips[number]
        out = sample(clip, self.description, self.options, rng)
        if "clip" in self.options.fields:
            out["clip"] = np.int32(number)
        if "label" in self.options.fields:
            person = person_of(clip.source, self.description.people)
            out["label"] = np.int32(self.labels[person])
        if self.padded:
            out["valid"] = np.bool_(number == element)
        return out


def train_dataset(
    source: Clips,
    description: Description,
    options: SampleOptions,
    batch_size: int,
    seed: int,
    index: int = 0,
    count: int = 1,
    start: int = 0,
    workers: int = 0,
) -> grain.IterDataset:
    """Endless batches of random samples, every clip once an epoch, in an order that changes.

    The batch of all processes at a step is the same for any number of them, and so is what follows after
    going on at `start`, which takes no time. With workers, close the iterator (`iterator.close()`).

    Args:
      source: the clips of `open_data_set`.
      description: its description.
      options: what a sample holds.
      batch_size: samples of all processes together.
      seed: of order and choices.
      index: number of this process.
      count: number of processes.
      start: steps to leave out.
      workers: processes that make samples; 0 for threads of this one.

    Raises:
      InputError: the batch cannot be divided, or the data set has not got what is wanted.
    """
    check_fields(description, options)
    clips = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(EPOCHS)
    samples = clips.random_map(Sample(source, description, options))
    return batches(samples, batch_size, index, count, start, workers)


def validation_dataset(
    source: Clips,
    description: Description,
    options: SampleOptions,
    batch_size: int,
    index: int = 0,
    count: int = 1,
    workers: int = 0,
) -> grain.IterDataset:
    """One sample of every clip, always the same, in order; arguments as `train_dataset`'s.

    Embeddings are not dropped and pictures not changed. Every process gets as many batches; what fills the
    last up is not `valid`.
    """
    options = options.replace(identity_dropout=0.0, augment=False)
    check_fields(description, options)
    padded = -(-len(source) // batch_size) * batch_size
    transform = Sample(source, description, options, padded=True)
    samples = grain.MapDataset.range(padded).seed(0).random_map(transform)
    return batches(samples, batch_size, index, count, 0, workers)


def batches(
    samples: grain.MapDataset, batch_size: int, index: int, count: int, start: int, workers: int
) -> grain.IterDataset:
    """This process's share of the batches: batched first, then every `count`-th taken."""
    if batch_size < 1 or batch_size % count or not 0 <= index < count:
        raise InputError(
            f"process {index} of {count} cannot have its share of batches of {batch_size} samples; choose "
            "a batch size that is a multiple of the number of processes"
        )
    local = samples.batch(batch_size // count)[index::count][start:]
    threads = 1 if workers else THREADS
    out = local.to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=threads))
    keep_memory()
    if not workers:
        return out
    flags.FLAGS.mark_as_parsed()  # Grain reads a flag of absl's, which is an error before
    return out.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), keep_memory)


def keep_memory(*_) -> None:
    """Makes this process keep up to 256 MiB that it has freed, where the C library is GNU's.

    A record is some megabytes, and so is a batch. By default each is given back to the system at once and
    asked for anew, page by page, which takes longer than decoding the pictures.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        library.mallopt(M_TRIM_THRESHOLD, 256 << 20)


# ---- what fits ---------------------------------------------------------------------------------------


def check_fields(description: Description, options: SampleOptions) -> None:
    """Refuses samples that a data set cannot give.

    Raises:
      InputError: its clips are too short, or it has no features or no embeddings where they are wanted.
    """
    if description.shortest < options.shortest:
        raise InputError(
            f"the data set has a clip of {description.shortest} frames, and samples of {options.frames} "
            f"frames need {options.shortest}; preprocess the videos again for longer clips"
        )
    if "windows" in options.fields and not description.whisper:
        raise InputError(
            "the data set has no audio features; preprocess the videos with a pack that has a whisper"
        )
    if "identity" in options.fields and not description.embedder:
        raise InputError(
            "the data set has no identity embeddings; preprocess the videos with a pack that has an "
            "embedder"
        )


def check(description: Description, pack: Any, fields: tuple[Field, ...]) -> None:
    """Refuses a data set that does not fit a pack in what some fields depend on.

    Args:
      description: the data set's.
      pack: an `assets.Pack`.
      fields: what is to be trained on.

    Raises:
      InputError: the first difference found.
    """
    has = {"crop rule": description.crop, "image size": description.image_size}
    needs = {"crop rule": pack.crop, "image size": pack.image_size}
    digest = lambda name: pack.components[name].sha256 if name in pack.components else None
    if "hidden" in fields:
        has["mask"], needs["mask"] = description.mask, pack.mask
    if "windows" in fields:
        has["audio front end"] = description.audio_front_end
        needs["audio front end"] = pack.audio_front_end
        has["whisper"], needs["whisper"] = description.whisper, digest("whisper")
    if "identity" in fields:
        embedder = pack.identity.embedder if pack.identity else None
        has["embedder"], needs["embedder"] = description.embedder, embedder
        own = digest("identity") if embedder == "identity" else None
        has["embedder's sha256"], needs["embedder's sha256"] = description.embedder_sha256, own
    for name, value in has.items():
        if value != needs[name]:
            raise InputError(
                f"the data set was made with the {name} {value or 'none'}, and the pack has "
                f"{needs[name] or 'none'}; preprocess the videos with this pack, or train another"
            )
