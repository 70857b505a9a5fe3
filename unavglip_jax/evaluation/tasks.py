"""What to evaluate: UnAvgLip's task file, two files or folders paired by name, and the settings of a run."""

import os
from pathlib import Path
from typing import Literal

import pydantic

from unavglip_jax.config import Config, InputError, load_tasks
from unavglip_jax.media.video import IMAGE_SUFFIXES

VIDEO_SUFFIXES = frozenset(
    [".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"]
    + [".ts", ".webm", ".wmv"]
)
SOUND_SUFFIXES = VIDEO_SUFFIXES | frozenset(
    [".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav", ".wma"]
)

Optional = Path | Literal[""] | None  # UnAvgLip writes "" for what is not given


class EvaluateTask(Config):
    """A generated video and what it is compared with. The first six fields are UnAvgLip's own.

    Attributes:
      gt_video_path: the ground truth: a video, an image, or a folder of numbered images.
      generated_video_path: the generated one, likewise; the two are aligned by time.
      gt_cropped: True crops the face of the ground truth, as published, whatever the name says; False
        takes its pictures as they are.
      generated_cropped: likewise for the generated one.
      face_embs_path: embeddings of the person (.pt, .npy or .npz), to compare the generated faces with.
      result_save_path: where this task's figures go in UnAvgLip's form, a .json file or a folder.
      audio: the recording that drives the mouth; by default the sound of the generated video, or else
        that of the ground truth.
      source: the video that was dubbed, whose mouth should not be seen in the result.
      truth: the `.npz` of a synthetic clip; by default what lies beside the ground truth.
    """

    gt_video_path: Path
    generated_video_path: Path
    gt_cropped: bool = False
    generated_cropped: bool = False
    face_embs_path: Optional = None
    result_save_path: Optional = None
    audio: Path | None = None
    source: Path | None = None
    truth: Path | None = None


class EvaluateSettings(Config):
    """How to evaluate, for all tasks.

    Attributes:
      output: folder of the report; a run that was stopped is continued.
      pack: where LPIPS, SyncNets and the face embedder come from.
      insightface: folder of an insightface pack, whose recogniser is used instead of the pack's.
      inception: inception-2015-12-05.pt of StyleGAN's authors, for FID; by default the one that
        `unavglip assets fetch` brought.
      i3d: i3d_torchscript.pt of StyleGAN-V's authors, for FVD; likewise.
      backend: what runs the SyncNets.
      max_seconds: of each clip, from its beginning; by default all of it.
      identity_every: frames from one face that is embedded to the next.
      batch_size: pictures that the device works on at once.
      processes: that measure pictures and find faces; by default one for each core.
    """

    output: Path = Path("report")
    pack: Path | None = None
    insightface: Path | None = None
    inception: Path | None = None
    i3d: Path | None = None
    backend: Literal["jax", "torch"] = "jax"
    max_seconds: float | None = pydantic.Field(None, gt=0)
    identity_every: int = pydantic.Field(1, ge=1)
    batch_size: int = pydantic.Field(20, ge=1)
    processes: int | None = pydantic.Field(None, ge=1)


def read_tasks(path: str | Path) -> tuple[EvaluateSettings | None, dict[str, EvaluateTask]]:
    """The settings and the tasks of a YAML file; see `config.load_tasks`."""
    return load_tasks(
        path, EvaluateSettings, EvaluateTask, ("gt_video_path", "generated_video_path")
    )


def pair(
    ground_truth: Path,
    generated: Path,
    audio: Path | None = None,
    source: Path | None = None,
    crop: bool = True,
) -> tuple[dict[str, EvaluateTask], list[str]]:
    """The tasks of two files, or of two folders whose clips have the same names.

    A clip is a video or a folder of images; its name is its path below the folder, without a suffix.

    Args:
      ground_truth: a clip, or a folder of clips at any depth.
      generated: likewise.
      audio: the driving recording of all, or a folder of recordings by the same names.
      source: the undubbed video of all, or a folder of videos by the same names.
      crop: compare the faces, cropped as published; False compares whole pictures.

    Returns:
      The tasks, and the names that only one folder has.

    Raises:
      InputError: a path is missing, only one of the two is a folder of clips, or no name is in both.
    """
    true, made = clips_in(ground_truth), clips_in(generated)
    several = [path for path, clips in ((ground_truth, true), (generated, made)) if clips]
    if len(several) == 1:
        raise InputError(
            f"{several[0]} is a folder of clips and the other is a single one; give two of a kind"
        )
    if not several:
        true, made = {generated.stem: ground_truth}, {generated.stem: generated}
    names = [name for name in made if name in true]
    if not names:
        raise InputError(
            f"no clip of {generated} has the name of one in {ground_truth}; name them alike, for example "
            f"{next(iter(true))} (there {next(iter(made))})"
        )
    tasks = {
        name: EvaluateTask(
            gt_video_path=true[name],
            generated_video_path=made[name],
            gt_cropped=crop,
            generated_cropped=crop,
            audio=companion(audio, name, SOUND_SUFFIXES),
            source=companion(source, name, VIDEO_SUFFIXES),
        )
        for name in names
    }
    return tasks, sorted(true.keys() ^ made.keys())


def clips_in(path: Path) -> dict[str, Path]:
    """The clips of a folder by name, in order; none for a single clip, as a folder of images is."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path")
    if not path.is_dir():
        return {}
    found: dict[str, Path] = {}
    for folder, folders, files in os.walk(path):
        folders.sort()
        folder, videos = Path(folder), [name for name in files if is_a(name, VIDEO_SUFFIXES)]
        for file in sorted(videos):
            name = (folder / file).relative_to(path).with_suffix("").as_posix()
            if (other := found.setdefault(name, folder / file)) != folder / file:
                raise InputError(
                    f"{other} and {folder / file} have the same name; move one of them away"
                )
        if not videos and any(is_a(name, IMAGE_SUFFIXES) for name in files):
            if folder == path:
                return {}
            found[folder.relative_to(path).as_posix()] = folder
    if not found:
        raise InputError(f"{path} holds no video and no folder of images; give one that does")
    return dict(sorted(found.items()))


def is_a(name: str, suffixes: frozenset[str]) -> bool:
    """Whether a file that is not hidden has one of some suffixes."""
    return Path(name).suffix.lower() in suffixes and not name.startswith(".")


def companion(path: Path | None, name: str, suffixes: frozenset[str]) -> Path | None:
    """What belongs to a clip: the file itself, or the one of a folder by that name.

    Raises:
      InputError: there is none.
    """
    if path is None or path.is_file():
        return path
    parent = (path / name).parent
    files = sorted(parent.iterdir()) if parent.is_dir() else []
    found = [file for file in files if file.stem == Path(name).name and is_a(file.name, suffixes)]
    if len(found) != 1:
        raise InputError(
            f"{path} has {len(found)} files called {name}; give it one for each clip, or a single file "
            "for all of them"
        )
    return found[0]
