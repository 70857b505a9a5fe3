"""Data sets of clips: what a record holds, and writing and opening a TFDS/ArrayRecord data set of them.

A data set is a folder D with the TFDS data set `talking_clips` in D/talking_clips/1.0.0, which anybody reads
with `tfds.data_source("talking_clips", data_dir=D, split="train")`. TensorFlow is not needed and must not be
imported; nor must jax, since the workers that feed a training import this module.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args
from zipfile import BadZipFile

import cv2
import numpy as np
import pydantic
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from jaxtyping import Float16, Float32, Int16, Int32, UInt8

from unavglip_jax.config import AudioFrontEnd, Config, InputError, validate
from unavglip_jax.data.records import Records
from unavglip_jax.media.audio import SAMPLE_RATE

NAME = "talking_clips"
VERSION = "1.0.0"  # of the layout as TFDS counts it; `Description.format` is its first number
FPS = 25  # of every clip
VALIDATION_SHARE = 1 / 20
SHORTEST = 12  # frames: two windows of five, six apart, fit from some start on

Split = Literal["train", "validation"]
People = Literal["video", "folder"]


class Clip(NamedTuple):
    """A face that speaks, at 25 frames a second; everything counts from frame 0.

    Attributes:
      name: `{source}/{number of the clip in it}`.
      source: path of the source video relative to the input folder, with forward slashes.
      start: seconds from the source's beginning to frame 0.
      source_fps: exact frame rate of the source, a fraction as text.
      frames: JPEG files of the crops, RGB, image_size pixels a side.
      landmarks: iBUG's 68 points of each frame, in pixels of the crop.
      boxes: the crops in the source: left, top, right, bottom.
      samples: the sound, mono at 16 kHz, round(F / 25 * 16000) of them.
      features: Whisper's, 50 steps a second; (0, 0, 0) without an audio encoder.
      identity: unit-norm face embeddings of some frames; (0, 0) without an embedder.
      identity_frames: the numbers of those frames.
    """

    name: str
    source: str
    start: float
    source_fps: str
    frames: Sequence[bytes | memoryview]
    landmarks: Float32[np.ndarray, "F 68 2"]
    boxes: Int32[np.ndarray, "F 4"]
    samples: Int16[np.ndarray, " N"]
    features: Float16[np.ndarray, "L S C"]
    identity: Float32[np.ndarray, "K E"]
    identity_frames: Int32[np.ndarray, " K"]


# dtype and dimensions; None is any length
ARRAYS = {
    "landmarks": (np.float32, (None, 68, 2)),
    "boxes": (np.int32, (None, 4)),
    "samples": (np.int16, (None,)),
    "features": (np.float16, (None, None, None)),
    "identity": (np.float32, (None, None)),
    "identity_frames": (np.int32, (None,)),
}
TEXTS = ("name", "source", "source_fps")


class Description(Config):
    """What holds for every clip of a data set, and must agree with the pack it is to train.

    Attributes:
      format: version of the layout.
      image_size: side of the crops in pixels.
      fps: frames a second.
      crop: the rule that made the crop boxes.
      audio_front_end: the convention of the features.
      whisper: sha256 of the encoder that made the features; None if there are none.
      embedder: which network made the identity embeddings; None if there are none.
      embedder_sha256: its digest, for a pack's own network.
      mask: which part of a crop is hidden from the generator.
      jpeg_quality: of the frames.
      people: what shows one person, and so is in one split: each video, or each folder of videos.
      shortest: frames of the shortest clip; `build` counts them.
      sources: those videos or folders in each split (see `person_of`); `build` lists them.
    """

    format: Literal[1] = 1
    image_size: int
    fps: Literal["25"] = "25"
    crop: Literal["musetalk_v10", "musetalk_v15"]
    audio_front_end: AudioFrontEnd
    whisper: str | None = None
    embedder: str | None = None
    embedder_sha256: str | None = None
    mask: Literal["lower_half", "mouth_and_jaw"]
    jpeg_quality: int = 95
    people: People = "video"
    shortest: int = 0
    sources: dict[Split, tuple[str, ...]] = pydantic.Field(default_factory=dict)


def encode_frame(image: UInt8[np.ndarray, "H W 3"], quality: int) -> bytes:
    """The JPEG file of an RGB picture."""
    written, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality)
    )
    assert written
    return data.tobytes()


def decode_frame(data: bytes | memoryview) -> UInt8[np.ndarray, "H W 3"]:
    """The RGB picture in a JPEG file.

    Raises:
      InputError: it is none, or damaged.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    if image is None:
        raise InputError(
            f"{len(data)} bytes are no picture that can be read; find the clip with `unavglip dataset "
            "verify`, and preprocess its video again"
        )
    return image


# ---- records -----------------------------------------------------------------------------------------


def sample_count(frames: int) -> int:
    """How many samples of sound go with so many frames."""
    return round(Fraction(frames * SAMPLE_RATE, FPS))


def faults(clip: Clip, description: Description | None = None) -> list[str]:
    """What is wrong with a clip, apart from the pictures inside its JPEG files; [] for a good one."""
    found = []
    for name, (dtype, shape) in ARRAYS.items():
        array = getattr(clip, name)
        fits = array.ndim == len(shape) and all(
            wanted in (None, n) for n, wanted in zip(array.shape, shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            found.append(f"{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} ({wanted})")
    if found:
        return found
    count = len(clip.frames)
    if not clip.name.startswith(f"{clip.source}/"):
        found.append(f"its name does not begin with its source, {clip.source}")
    if count < SHORTEST:
        found.append(f"it has {count} frames, at least {SHORTEST} are needed")
    if not all(frame[:2] == b"\xff\xd8" and frame[-2:] == b"\xff\xd9" for frame in clip.frames):
        found.append("a frame is no complete JPEG file")
    try:
        known = Fraction(clip.source_fps) > 0 and clip.start >= 0
    except (ValueError, ZeroDivisionError):
        known = False
    if not known:
        found.append(f"it starts at {clip.start} s of a video of {clip.source_fps} frames a second")
    for name in ("landmarks", "boxes"):
        if len(getattr(clip, name)) != count:
            found.append(f"it has {len(getattr(clip, name))} {name} for {count} frames")
    if len(clip.samples) != sample_count(count):
        found.append(
            f"it has {len(clip.samples)} samples, {count} frames last {sample_count(count)}"
        )
    if clip.features.size and abs(len(clip.features) - 2 * count) > 1:
        found.append(f"it has {len(clip.features)} steps of features for {count} frames")
    for name in ("landmarks", "features", "identity"):
        if not np.isfinite(getattr(clip, name)).all():
            found.append(f"{name} are not all finite")
    if len(clip.identity) != len(clip.identity_frames):
        found.append(
            f"it has {len(clip.identity)} embeddings of {len(clip.identity_frames)} frames"
        )
    if len(clip.identity_frames) and not (
        clip.identity_frames.min() >= 0 and clip.identity_frames.max() < count
    ):
        found.append("an identity frame is outside the clip")
    if clip.identity.size and np.abs(np.linalg.norm(clip.identity, axis=1) - 1).max() > 1e-3:
        found.append("an embedding has another norm than 1")
    if description is not None:
        if bool(clip.features.size) != bool(description.whisper):
            found.append("only one of it and the data set has audio features")
        if clip.identity.size and not description.embedder:
            found.append("it has embeddings and the data set no embedder")
    return found


def features_spec(clip: Clip) -> tfds.features.FeaturesDict:
    """The record of clips like this one, for TFDS.

    Arrays are stored as bytes: as numbers they are an int64 or float32 list, which is several times larger
    and slower. Features and identity are left out where there are none: TFDS cannot read empty arrays of
    unknown width.
    """
    tensor = tfds.features.Tensor
    spec = {name: tfds.features.Text() for name in TEXTS}
    spec["start"] = tensor(shape=(), dtype=np.float64, encoding="bytes")
    spec["frames"] = tfds.features.Sequence(tensor(shape=(), dtype=np.object_))
    for name, (dtype, shape) in ARRAYS.items():
        width = getattr(clip, name).shape[1:]
        if 0 not in width:
            spec[name] = tensor(shape=(shape[0], *width), dtype=dtype, encoding="bytes")
    return tfds.features.FeaturesDict(spec)


def to_example(clip: Clip) -> dict:
    """The record of a clip, as `features_spec` of it has it."""
    example = clip._asdict() | {"start": np.float64(clip.start), "frames": list(clip.frames)}
    return {k: v for k, v in example.items() if k not in ARRAYS or 0 not in v.shape[1:]}


def from_example(example: Mapping) -> Clip:
    """The clip of a record that TFDS has read; its frames stay encoded."""
    arrays = {}
    for name, (dtype, shape) in ARRAYS.items():
        arrays[name] = example.get(name, np.zeros((0,) * len(shape), dtype))
    texts = {name: example[name].decode() for name in TEXTS}
    return Clip(**texts, **arrays, start=float(example["start"]), frames=example["frames"])


def from_values(
    values: Mapping[str, Sequence[memoryview]], shapes: Mapping[str, tuple[int | None, ...]]
) -> Clip:
    """The clip of a record of `Records`; its arrays, of these shapes, and frames are parts of the record."""
    example = {"frames": values["frames"], "start": np.frombuffer(values["start"][0])[0]}
    example |= {name: bytes(values[name][0]) for name in TEXTS}
    for name, shape in shapes.items():
        array = np.frombuffer(values[name][0], ARRAYS[name][0])
        example[name] = array.reshape([-1 if n is None else n for n in shape])
    return from_example(example)


# ---- clips on their way from preprocessing to the data set -------------------------------------------


def save_clip(path: str | Path, clip: Clip) -> None:
    """Writes a clip to one npz file, complete or not at all.

    Raises:
      InputError: the clip is not consistent.
    """
    if found := faults(clip):
        raise InputError(f"{path}: the clip {clip.name} cannot be stored: {'; '.join(found)}")
    lengths = [len(frame) for frame in clip.frames]
    packed = np.frombuffer(b"".join(clip.frames), np.uint8)
    arrays = clip._asdict() | {"frames": packed, "lengths": np.array(lengths, np.int64)}
    content = io.BytesIO()
    np.savez(content, **arrays)
    with replacing(Path(path)) as partial:
        partial.write_bytes(content.getbuffer())


def load_clip(path: str | Path) -> Clip:
    """The clip that `save_clip` wrote.

    Raises:
      InputError: the file is missing or damaged.
    """
    with reading(path), np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
        packed, ends = arrays.pop("frames").tobytes(), np.cumsum(arrays.pop("lengths"))
        starts = [0, *ends[:-1]]
        frames = [packed[a:b] for a, b in zip(starts, ends, strict=True)]
        texts = {name: str(arrays.pop(name)) for name in TEXTS}
        return Clip(**texts, **arrays | {"start": float(arrays["start"])}, frames=frames)


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turns what a damaged clip file makes numpy raise into an InputError."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; preprocess its video again") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is no clip, or damaged ({error}); remove it") from error


# ---- splits ------------------------------------------------------------------------------------------


def position(source: str) -> float:
    """A number in [0, 1) that depends only on the name of a source."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:8]) / 2**64


def person_of(source: str, people: People) -> str:
    """The video itself, or the folder that it is in; a video in no folder stands for itself."""
    folder = source.rpartition("/")[0]
    return folder if people == "folder" and folder else source


def split_of(source: str, share: float = VALIDATION_SHARE) -> Split:
    """The split of all clips of a source, by a fixed hash of its name; `share` goes to validation."""
    return "validation" if position(source) < share else "train"


def splits_of(sources: Iterable[str], share: float = VALIDATION_SHARE) -> dict[str, Split]:
    """The split of each source, as `split_of`, but neither split is empty where there are two sources.

    In a small set where the hash leaves no source to validation it gets the one with the lowest hash; where
    it leaves none to training, that gets the one with the highest. With a single source, or a share of 0,
    there is no validation.
    """
    ordered = sorted(set(sources), key=lambda source: (position(source), source))
    count = sum(split_of(source, share) == "validation" for source in ordered)
    count = min(max(count, 1), len(ordered) - 1) if share > 0 else 0
    return {source: "validation" if i < count else "train" for i, source in enumerate(ordered)}


# ---- the data set ------------------------------------------------------------------------------------


class TalkingClips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The TFDS builder `talking_clips`. Not registered: data sets are read without this code."""

    name = NAME
    VERSION = tfds.core.Version(VERSION)
    url_infos: ClassVar = {}  # nothing is downloaded; TFDS would look for checksums beside this file

    def __init__(self, *, splits: Mapping[Split, Sequence[Path]], description: Description, **rest):
        self.paths, self.description = splits, description
        super().__init__(**rest)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Speaking faces: crops, landmarks, sound, features and embeddings.",
            features=features_spec(widest(self.paths)),
            disable_shuffling=True,  # Grain shuffles on reading
            metadata=tfds.core.MetadataDict(self.description.model_dump(mode="json")),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(paths) for split, paths in self.paths.items()}

    def _generate_examples(self, paths: Sequence[Path]) -> Iterator[tuple[int, dict]]:
        width = self.info.features["identity"].shape[1] if "identity" in self.info.features else 0
        for key, path in enumerate(paths):
            clip = load_clip(path)
            if found := faults(clip, self.description):
                raise InputError(f"{path}: the clip {clip.name} is bad: {'; '.join(found)}")
            if not len(clip.identity):
                clip = clip._replace(identity=np.zeros((0, width), np.float32))
            yield key, to_example(clip)


def widest(splits: Mapping[Split, Sequence[Path]]) -> Clip:
    """The first clip that has embeddings, or else the first: no face may have been good enough."""
    paths = [path for paths in splits.values() for path in paths]
    for path in paths:
        with reading(path), np.load(path, allow_pickle=False) as file:
            if file["identity"].size:
                return load_clip(path)
    return load_clip(paths[0])


def build(
    clips: Iterable[str | Path],
    folder: str | Path,
    description: Description,
    share: float = VALIDATION_SHARE,
) -> Description:
    """Writes a data set, complete or not at all; one that is there is replaced.

    Args:
      clips: files of `save_clip`; they are written in the order of their names.
      folder: the data set's.
      description: what holds for all clips.
      share: of the sources that goes to validation (see `splits_of`).

    Returns:
      The description as it was stored.

    Raises:
      InputError: there are no clips, two have one name, or one does not fit the description.
    """
    heads = []
    for path in map(Path, clips):
        with reading(path), np.load(path, allow_pickle=False) as file:
            heads.append((str(file["name"]), str(file["source"]), len(file["lengths"]), path))
    if not heads:
        raise InputError(f"there are no clips for the data set {folder}; preprocess some videos")
    heads.sort()
    for one, other in itertools.pairwise(heads):
        if one[0] == other[0]:
            raise InputError(
                f"{one[3]} and {other[3]} are both called {one[0]}; remove one of them"
            )
    person = lambda source: person_of(source, description.people)
    of = splits_of([person(source) for _, source, *_ in heads], share)
    splits = {
        split: [path for _, source, _, path in heads if of[person(source)] == split]
        for split in get_args(Split)
    }
    splits = {split: paths for split, paths in splits.items() if paths}
    description = description.replace(
        shortest=min(count for *_, count, _ in heads),
        sources={split: sorted(s for s in of if of[s] == split) for split in splits},
    )

    with replacing(Path(folder) / NAME) as partial:
        tfds.disable_progress_bar()
        builder = TalkingClips(
            splits=splits,
            description=description,
            data_dir=partial.parent,
            file_format="array_record",
        )
        with contextlib.redirect_stdout(io.StringIO()):  # it would speak of downloads
            builder.download_and_prepare()
        for shard in (partial / VERSION).glob("*.array_record*"):
            uncompress(shard)
    return description


def uncompress(shard: Path) -> None:
    """Rewrites a file of records without zstd, which TFDS always uses.

    It takes 4 % off JPEG files and float16 noise, and as long to undo as reading them.
    """
    partial = shard.with_name(f"{shard.name}.partial")
    reader = array_record_module.ArrayRecordReader(str(shard))
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
    for i in range(reader.num_records()):
        writer.write(reader.read([i])[0])
    writer.close()
    reader.close()
    os.replace(partial, shard)


class Clips(Sequence):
    """The clips of one split, read one at a time; workers get a copy by pickling."""

    def __init__(self, records: Sequence, decode: Callable[[Any], Clip] = from_example):
        self.records, self.decode = records, decode

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Clip:
        return self.decode(self.records[range(len(self))[index]])

    def __repr__(self) -> str:
        return f"Clips({self.records!r})"


def clips_of(info: tfds.core.DatasetInfo, split: Split) -> Clips:
    """The clips of one split, read without TFDS, in a fifth of the time."""
    stored = info.splits[split]
    shapes = {name: info.features[name].shape for name in ARRAYS if name in info.features}
    decode = functools.partial(from_values, shapes=shapes)
    return Clips(Records(stored.filepaths, stored.shard_lengths), decode)


def open_data_set(
    folder: str | Path, split: Split, checked: bool = False
) -> tuple[Clips, Description]:
    """The clips of one split of a data set, and its description.

    Args:
      folder: the data set's.
      split: which of them.
      checked: whether clips are compared with their checksums, which takes as long as to make a sample.

    Raises:
      InputError: the folder is no data set, is damaged, has another format, or has no such split.
    """
    root = Path(folder) / NAME / VERSION
    if not root.is_dir():
        others = sorted(path.name for path in root.parent.glob("[0-9]*"))
        raise InputError(
            f"{folder} is a data set of the format {', '.join(others)}, and this program reads "
            f"{VERSION}; preprocess its videos again"
            if others
            else f"{folder} is not a data set: it has no {NAME}/{VERSION}; make one with "
            "`unavglip preprocess`"
        )
    try:
        description = validate(
            Description,
            json.loads((root / "metadata.json").read_text()),
            str(root / "metadata.json"),
        )
        builder = tfds.builder_from_directory(root)
        if split not in builder.info.splits:
            raise InputError(
                f"{folder} has no {split} split, since all its clips come from one video; "
                "preprocess more videos"
                if split == "validation"
                else f"{folder} has no {split} split; choose one of {', '.join(builder.info.splits)}"
            )
        clips = Clips(builder.as_data_source(split)) if checked else clips_of(builder.info, split)
        clips[0]
    except InputError:
        raise
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{folder} is damaged ({' '.join(str(error).split())}); preprocess its videos again"
        ) from error
    return clips, description


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`, for a file or folder that takes its place when the block ends well.

    Like `assets.replacement`, which needs jax, and also for folders that exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield scratch / path.name
        if path.is_dir():  # a folder is not replaced in one step
            os.replace(path, scratch / "previous")
        os.replace(scratch / path.name, path)
    finally:
        shutil.rmtree(scratch)
