"""What to dub: UnAvgLip's task file, and the settings that all its tasks share."""

from pathlib import Path
from typing import Literal

import pydantic

from unavglip_jax import assets
from unavglip_jax.config import Config, Dtype, InputError, load_tasks
from unavglip_jax.media.video import Encoding

Reference = Literal["same", "other", "shot"]


class Task(Config):
    """One video to make. The first seven fields are UnAvgLip's own; an empty path means "compute it".

    Attributes:
      video_path: a video, an image, or a folder of numbered images.
      audio_path: anything FFmpeg decodes, a video's own track included.
      crop_path: a folder of ready crops; detection is skipped, and crops are what comes out.
      face_embs_path: face embeddings (.pt, .npy or .npz), (n, 512) or (1, n, 512).
      bbox_shift: pixels by which the crop's mid-line moves down; larger opens the mouth more.
      n_cond: how many frames say who the person is.
      guide_scale: factor of the identity attention, 0 to 1.
      output: the video to write; by default named after video and recording, in `result_dir`.
      face: which of several people: "largest", "central", or a number from the left, from 0.
      face_like: a photograph of the person to dub, instead.
      reference: "same" shows the generator the frame that it dubs, as published; "other" a frame near in
        pose and far in mouth shape, which cannot leak the old mouth; "shot" one such frame for a shot.
      when_longer: what follows when the recording goes on behind the video's end.
    """

    video_path: Path
    audio_path: Path
    crop_path: Path | Literal[""] | None = None
    face_embs_path: Path | Literal[""] | None = None
    bbox_shift: int = 0
    n_cond: int = 4
    guide_scale: float = 0.5
    output: Path | None = None
    face: Literal["largest", "central"] | int = "largest"
    face_like: Path | None = None
    reference: Reference = "same"
    when_longer: Literal["ping-pong", "loop", "hold", "trim"] = "ping-pong"


class Settings(Config):
    """How to dub, for all tasks.

    Attributes:
      pack: the networks (`unavglip convert` makes packs); by default small ones for demonstration, trained
        on drawn heads.
      result_dir: where outputs without a name of their own go.
      insightface: folder of the insightface pack that the pack's embeddings come from.
      batch_size: frames that the device works on at once.
      dtype: of the networks; bfloat16 is for GPUs.
      fps: frames a second of images.
      smoothing: keep the crop box steady on a steady head.
      hold: gaps without a face up to so many seconds keep the last box; longer ones pass through.
      blend: what is replaced in the frame: "mesh" the mouth and jaw (or the lower half, if the pack says
        so) by landmarks, "half" the box's lower half, the others by face parsing, as MuseTalk.
      overlap: cross-fade overlapping 30 s windows of sound instead of the published independent ones.
      silence_gate: let the mouth rest where nobody speaks.
      seed: of the choice of conditioning frames.
      encoding: codec and quality of the output.
      side_by_side: also write source and result beside each other.
      contact_sheet: also write a PNG of moments of the result.
    """

    pack: Path = pydantic.Field(default_factory=lambda: assets.DEMO)
    result_dir: Path = Path("results")
    insightface: Path | None = None
    batch_size: int = 8
    dtype: Dtype = "float32"
    fps: int = 25
    smoothing: bool = True
    hold: float = 0.5
    blend: Literal["mesh", "half", "jaw", "raw", "neck", "face"] = "mesh"
    overlap: bool = True
    silence_gate: bool = True
    seed: int = 0
    encoding: Encoding = Encoding()
    side_by_side: bool = False
    contact_sheet: bool = False


def output_of(task: Task, settings: Settings) -> Path:
    """Where the result goes: `result_dir/{video}_{audio}.mp4` unless the task says it."""
    name = f"{task.video_path.stem}_{task.audio_path.stem}.mp4"
    return task.output or settings.result_dir / name


def read_tasks(path: str | Path) -> tuple[Settings | None, dict[str, Task]]:
    """The settings and the tasks of a YAML file; see `config.load_tasks`."""
    return load_tasks(path, Settings, Task, ("video_path", "audio_path"))


def check_outputs(tasks: dict[str, Task], settings: Settings) -> None:
    """Refuses tasks that would overwrite each other's results, or their own video."""
    writers: dict[Path, str] = {}
    for name, task in tasks.items():
        output = output_of(task, settings)
        if (other := writers.setdefault(output.resolve(), name)) != name:
            raise InputError(
                f"the tasks {other} and {name} both write {output}; give one an output"
            )
        if output.resolve() in (task.video_path.resolve(), task.audio_path.resolve()):
            raise InputError(f"{output} would overwrite its own source; choose another output")
