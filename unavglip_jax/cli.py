"""The `unavglip` command."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

from unavglip_jax import assets
from unavglip_jax.config import InputError
from unavglip_jax.dubbing.tasks import (
    Reference,
    Settings,
    Task,
    check_outputs,
    output_of,
    read_tasks,
)

CLI = (tyro.conf.OmitArgPrefixes,)
app = tyro.extras.SubcommandApp()
convert = tyro.extras.SubcommandApp()
app.command(convert, name="convert", help="Published checkpoints to packs, and back.")


@convert.command(name="musetalk")
def convert_musetalk(
    version: Literal["v10", "v15"],
    unet: Path,
    vae: Path,
    whisper: Path,
    output: Path,
    unet_config: Path | None = None,
    vae_config: Path | None = None,
) -> None:
    """Make a pack of MuseTalk from its published files.

    Args:
      version: v10 or v15; no tensor shows it, and sound and crop are prepared differently.
      unet: pytorch_model.bin (v10) or unet.pth (v15).
      vae: sd-vae-ft-mse, .bin or .safetensors.
      whisper: tiny.pt (OpenAI), or the transformers weights.
      output: folder of the new pack.
      unet_config: musetalk.json, checked against the weights.
      vae_config: the VAE's config.json.
    """
    from unavglip_jax.convert import packs

    packs.musetalk_pack(version, unet, vae, whisper, output, unet_config, vae_config)
    print_pack(output)


@convert.command(name="unavglip")
def convert_unavglip(
    checkpoint: Path,
    vae: Path,
    whisper: Path,
    output: Path,
    embedder: Literal["buffalo_l", "antelopev2"] = "buffalo_l",
    unet_config: Path | None = None,
    vae_config: Path | None = None,
) -> None:
    """Make a pack of UnAvgLip from an adapter checkpoint.

    Args:
      checkpoint: pytorch_model.bin of an UnAvgLip training run (1313 keys, MuseTalk's UNet included).
      vae: sd-vae-ft-mse, .bin or .safetensors.
      whisper: tiny.pt (OpenAI), or the transformers weights.
      output: folder of the new pack.
      embedder: the insightface pack whose unit-norm embeddings the adapter is used with.
      unet_config: musetalk.json, checked against the weights.
      vae_config: the VAE's config.json.
    """
    from unavglip_jax.convert import packs

    packs.unavglip_pack(checkpoint, vae, whisper, output, embedder, unet_config, vae_config)
    print_pack(output)


@convert.command(name="add")
def convert_add(pack: Path, files: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Add networks to a pack: SyncNets, face parsing and detection, perceptual and identity networks.

    Args:
      pack: an existing pack.
      files: published checkpoints; what each is, is found from its contents. LPIPS needs its heads
        and torchvision's VGG16 in one call.
    """
    from unavglip_jax.convert import packs

    packs.add_files(pack, files)
    print_pack(pack)


@convert.command(name="export")
def convert_export(pack: Path, output: Path) -> None:
    """Write the adapter of a pack as the checkpoint that UnAvgLip's own loader expects.

    Args:
      pack: a pack with an adapter.
      output: the pytorch_model.bin to write.
    """
    from unavglip_jax.convert import packs

    keys = packs.export_adapter(pack, output)
    print(f"wrote {output}: {keys} keys")


@app.command
def dub(
    video: Path,
    audio: Path,
    output: Path,
    settings: Settings,
    guide_scale: float = 0.5,
    n_cond: int = 4,
    bbox_shift: int = 0,
    embeddings: Path | None = None,
    face: Literal["largest", "central"] | int = "largest",
    face_like: Path | None = None,
    reference: Reference = "same",
    when_longer: Literal["ping-pong", "loop", "hold", "trim"] = "ping-pong",
    quiet: bool = False,
) -> None:
    """Dub a video with a recording.

    Args:
      video: a video, an image, or a folder of numbered images.
      audio: anything FFmpeg decodes, a video's own track included.
      output: the MP4 to write; a JSON of what was done goes beside it.
      settings: how to dub.
      guide_scale: factor of the identity attention, 0 to 1.
      n_cond: how many frames say who the person is.
      bbox_shift: pixels by which the crop's mid-line moves down; larger opens the mouth more.
      embeddings: ready face embeddings (.pt, .npy), instead of computing them.
      face: which of several people: largest, central, or a number from the left, from 0.
      face_like: a photograph of the person to dub.
      reference: show the generator the frame that it dubs, or another one for each frame or shot.
      when_longer: what follows when the recording goes on behind the video's end.
      quiet: no progress bar.
    """
    task = Task(
        video_path=video, audio_path=audio, output=output, guide_scale=guide_scale, n_cond=n_cond,
        bbox_shift=bbox_shift, face_embs_path=embeddings, face=face, face_like=face_like,
        reference=reference, when_longer=when_longer,
    )  # fmt: skip
    run_tasks({"the task": task}, settings, quiet)


def infer(config: Path, quiet: bool = False) -> None:
    """Dub every task of a YAML file: UnAvgLip's, with our `settings` beside the tasks.

    Args:
      config: the file.
      quiet: no progress bars.
    """
    settings, tasks = read_tasks(config)
    if settings is None:
        raise InputError(f"{config} has no settings; add them beside the tasks, at least `pack`")
    run_tasks(tasks, settings, quiet)


def run_tasks(tasks: dict[str, Task], settings: Settings, quiet: bool) -> None:
    """Dubs this process's share of the tasks; one that fails does not keep the others from running."""
    import jax

    from unavglip_jax.dubbing import dub, generator

    check_outputs(tasks, settings)
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(assets.cache_folder() / "compiled"))
    networks = generator.load(settings.pack, settings.dtype)
    failed = []
    for name, task in dub.shard(tasks).items():
        try:
            report = dub.dub(task, settings, networks, quiet)
        except InputError as error:
            if len(tasks) == 1:
                raise
            print(f"{name}: error: {error}", file=sys.stderr)
            failed.append(name)
            continue
        print(f"{name}: wrote {output_of(task, settings)}, {report['frames']} frames")
    if failed:
        raise InputError(f"{len(failed)} of {len(tasks)} tasks failed: {', '.join(failed)}")


@app.command
def parity(folder: tyro.conf.Positional[Path]) -> None:
    """Check every network against stored outputs of the original PyTorch networks.

    Args:
      folder: holds vector folders, each with manifest.json and io.npz, at any depth.
    """
    from unavglip_jax.convert import parity

    if not parity.check(folder):
        sys.exit(1)


def print_pack(folder: Path) -> None:
    """Prints what a pack holds."""
    import rich
    from rich.table import Table

    pack = assets.read_pack(folder)
    table = Table("network", "file", "MB", "sha256", "licence", title=f"{folder}: {pack.system}")
    for name, part in pack.components.items():
        size = (Path(folder) / part.file).stat().st_size / 1e6
        table.add_row(name, part.file, f"{size:.1f}", part.sha256[:12], part.licence)
    rich.print(table)


def main(run: Callable[[], None] = lambda: app.cli(prog="unavglip", config=CLI)) -> None:
    """Runs one command; bad input is one sentence and exit code 1, Ctrl-C exit code 130."""
    try:
        run()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; nothing half written is left", file=sys.stderr)
        sys.exit(130)
