"""The `unavglip` command."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

from unavglip_jax import assets
from unavglip_jax.config import InputError
from unavglip_jax.data.settings import PreprocessSettings
from unavglip_jax.dubbing.tasks import (
    Reference,
    Settings,
    Task,
    check_outputs,
    output_of,
    read_tasks,
)
from unavglip_jax.evaluation.tasks import EvaluateSettings

CLI = (tyro.conf.OmitArgPrefixes,)
app = tyro.extras.SubcommandApp()
convert = tyro.extras.SubcommandApp()
app.command(convert, name="convert", help="Published checkpoints to packs, and back.")
dataset = tyro.extras.SubcommandApp()
app.command(dataset, name="dataset", help="Look at data sets and check them.")

published_files = tyro.extras.SubcommandApp()
app.command(published_files, name="assets", help="Published files: list them, make packs of them.")

# Packages that an extra brings; dubbing needs none of them.
EXTRAS = dict.fromkeys(("diffusers", "torch", "transformers"), "eval")
EXTRAS |= {"huggingface_hub": "convert", "skimage": "demo"}
EXTRAS |= dict.fromkeys(("grain", "matplotlib", "optax", "orbax", "scenedetect"), "train")
EXTRAS |= dict.fromkeys(("tensorboardX", "tensorflow_datasets"), "train")

DEMONSTRATION = (
    "without a pack the demonstration's is used, small networks trained on drawn heads; for full-size ones "
    "run `unavglip assets fetch musetalk_v15 --output packs/musetalk15` and give `--pack packs/musetalk15`"
)


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


@convert.command(name="checkpoint")
def convert_checkpoint(
    run: Path,
    output: Path,
    step: int | None = None,
    weights: Literal["ema", "train"] = "ema",
) -> None:
    """Make a pack from a checkpoint of a training run.

    Args:
      run: the run's `output` folder.
      output: folder of the new pack.
      step: of the checkpoint; by default the newest.
      weights: the averaged ones, or those of that very step.
    """
    from unavglip_jax.training import export

    export.export(run, output, step, weights)
    print_pack(output)


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


@app.command
def demo(output: Path = Path("demo"), quiet: bool = False) -> None:
    """Make a photograph talk, dub it with another sentence by the demonstration pack, and measure.

    Args:
      output: folder of the videos, the recording and the pictures.
      quiet: no progress bars.
    """
    from unavglip_jax import demo

    keep_compiled()
    figures = demo.make(output, quiet=quiet)
    print(demo.summary(figures))
    for name in demo.FILES:
        print(f"wrote {output / name}")


def train(
    config: Path,
    changes: tyro.conf.Positional[tuple[str, ...]] = (),
    dry_run: bool = False,
) -> None:
    """Train what a YAML file says, on all devices of all processes.

    Args:
      config: the file, such as configs/train/unavglip.yaml.
      changes: of its fields, such as data.path=clips mesh.fsdp=4.
      dry_run: print parameters, memory and FLOPs of a step, and stop.
    """
    from unavglip_jax import distributed
    from unavglip_jax.training import settings

    found = settings.read(config, changes)
    distributed.start()
    keep_compiled()
    from unavglip_jax.training import loop

    loop.train(found, dry_run)


def infer(config: Path, quiet: bool = False) -> None:
    """Dub every task of a YAML file: UnAvgLip's, with our `settings` beside the tasks.

    Args:
      config: the file.
      quiet: no progress bars.
    """
    settings, tasks = read_tasks(config)
    run_tasks(tasks, settings or Settings(), quiet)


def run_tasks(tasks: dict[str, Task], settings: Settings, quiet: bool) -> None:
    """Dubs this process's share of the tasks; one that fails does not keep the others from running."""
    from unavglip_jax.dubbing import dub, generator

    check_outputs(tasks, settings)
    if settings.pack == assets.DEMO:
        print(DEMONSTRATION, file=sys.stderr)
    keep_compiled()
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
def evaluate(
    settings: EvaluateSettings,
    ground_truth: Path | None = None,
    generated: Path | None = None,
    audio: Path | None = None,
    source: Path | None = None,
    crop: bool = True,
    config: Path | None = None,
    check_parity: bool = False,
    quiet: bool = False,
) -> None:
    """Compare generated videos with true ones, and write a report.

    Args:
      settings: how to evaluate.
      ground_truth: a video, an image, a folder of numbered images, or a folder of such clips.
      generated: likewise; clips of two folders belong together by their names.
      audio: the recording that drives the mouth, or a folder of them; else the videos' own sound.
      source: the video that was dubbed, or a folder of them, whose mouth should not be seen in the result.
      crop: compare the faces; `--no-crop` compares whole pictures.
      config: a task file, UnAvgLip's, instead of the above; settings given here go before those in it.
      check_parity: instead compare JAX with PyTorch, stage by stage, dubbing `--ground-truth` with `--audio`
        (or its own sound) by the networks of `--pack`; exit code 1 if they differ.
      quiet: no progress bar and no table.
    """
    if check_parity:
        return compare_back_ends(settings.pack, ground_truth, audio or ground_truth)
    from unavglip_jax.evaluation import evaluate, tasks

    unpaired = []
    if config:
        stated, found = tasks.read_tasks(config)
        if stated:
            settings = stated.replace(**settings.model_dump(exclude_defaults=True))
    elif ground_truth and generated:
        found, unpaired = tasks.pair(ground_truth, generated, audio, source, crop)
    else:
        raise InputError("nothing to compare; give --ground-truth and --generated, or --config")
    keep_compiled()
    results = evaluate.evaluate(found, settings, quiet, unpaired)
    if results is None:
        print("this share is done; the report is written when the other processes are")
        return
    errors = results["not_measured"]
    if not results["clips"]:
        raise InputError(f"no clip could be measured: {next(iter(errors.values()))}")
    for name, error in errors.items():
        print(f"{name}: error: {error}", file=sys.stderr)
    if not quiet:
        print_means(results)
    print(f"wrote {settings.output / 'report.html'}, {results['clips']} of {len(found)} clips")


def compare_back_ends(pack: Path | None, video: Path | None, audio: Path | None) -> None:
    """Prints how far JAX and PyTorch are apart on a clip."""
    if pack is None or video is None:
        raise InputError("--check-parity needs --pack and a video with a face as --ground-truth")
    import rich
    from rich.table import Table

    from unavglip_jax.evaluation import torch_judge

    stages = torch_judge.check_parity(pack, video, audio)
    table = Table("stage", "largest difference", "limit", "", title=f"JAX and PyTorch, {pack}")
    for stage in stages:
        verdict = "agrees" if stage.passes else "DIFFERS"
        table.add_row(stage.name, f"{stage.difference:.2e}", f"{stage.limit:.2e}", verdict)
    rich.print(table)
    if not all(stage.passes for stage in stages):
        sys.exit(1)


def print_means(results: dict) -> None:
    """Prints the mean of each metric over the clips of an evaluation, and what was left out."""
    import rich
    from rich.table import Table

    from unavglip_jax.evaluation import figures

    table = Table("metric", "mean", "95 % interval", "clips")
    for metric in figures.METRICS:
        if found := results["metrics"].get(metric.key):
            low, high = found["low"], found["high"]
            interval = "" if low is None else f"{low:.4g} to {high:.4g}"
            table.add_row(metric.label, f"{found['mean']:.4g}", interval, str(found["count"]))
    for name in ("fid", "fvd"):
        if name in results:
            table.add_row(name.upper(), f"{results[name]['value']:.4g}", "", "")
    rich.print(table)
    for line in results["left_out"]:
        print(line)


@published_files.command(name="list")
def assets_list() -> None:
    """List the published files with size, licence and origin, and the packs that are made of them."""
    from unavglip_jax import published

    published.show()


@published_files.command(name="fetch")
def assets_fetch(
    names: tyro.conf.Positional[tuple[str, ...]],
    output: Path | None = None,
    adapter: Path | None = None,
    accept_digest: str | None = None,
    quiet: bool = False,
) -> None:
    """Download published files, or make a pack of them.

    Args:
      names: files; or one pack (musetalk_v10, musetalk_v15, unavglip) and files to add to it.
      output: folder of the new pack.
      adapter: pytorch_model.bin of an UnAvgLip training run, which the pack unavglip needs.
      accept_digest: sha256 that the one named file may have, whatever the table says.
      quiet: no progress bars.
    """
    from unavglip_jax import published

    published.fetch_all(names, output, adapter, accept_digest, quiet)
    if output is not None:
        print_pack(output)


@published_files.command(name="verify")
def assets_verify(pack: tyro.conf.Positional[Path]) -> None:
    """Check digest and shapes of every network of a pack; exit code 1 if something is wrong.

    Args:
      pack: its folder.
    """
    from unavglip_jax import published

    if published.verify(pack):
        sys.exit(1)


@app.command
def synth(
    identities: int,
    clips: int,
    seconds: float,
    size: int,
    output: Path,
    seed: int = 0,
    photographs: tuple[Path, ...] = (),
    photograph_share: float = 0.1,
    first_identity: int = 0,
    processes: int | None = None,
    sheet: Path | None = None,
    quiet: bool = False,
) -> None:
    """Make talking heads whose every mouth shape is known.

    Args:
      identities: how many.
      clips: for each identity.
      seconds: of each clip.
      size: side of the picture in pixels; even, from 128.
      output: the folder; clips that it has already are kept.
      seed: of everything.
      photographs: pictures with a face; by default the astronaut of scikit-image.
      photograph_share: of identities that are a photograph; 0 needs no face networks.
      first_identity: number of the first identity, to share the work among machines.
      processes: by default one for each core.
      sheet: also write a PNG of every mouth shape of the first eight identities.
      quiet: no progress bar.
    """
    from unavglip_jax.data import synth

    made = synth.synthesise(
        identities, clips, seconds, size, output, seed, photographs, photograph_share,
        first_identity, processes, quiet,
    )  # fmt: skip
    if sheet is not None:
        synth.contact_sheet(
            sheet, min(identities, 8), size, seed, photographs, photograph_share, first_identity
        )
    print(f"{output}: made {made} clips, {identities * clips - made} were there")


@app.command
def preprocess(
    input: Path,
    output: Path,
    pack: Path,
    settings: PreprocessSettings,
    shard: int = 0,
    shards: int = 1,
    processes: int | None = None,
    quiet: bool = False,
) -> None:
    """Make a data set of talking clips from the videos in a folder.

    Args:
      input: folder of videos, at any depth.
      output: folder of the data set; a run that was stopped is continued.
      pack: decides crop, image size, audio features and identity embeddings.
      settings: what becomes a clip.
      shard: number of this run among those that share the videos, from 0.
      shards: how many runs share them.
      processes: worker processes; one for each core by default.
      quiet: no progress bar and no table.
    """
    from unavglip_jax.data import preprocess

    keep_compiled()
    preprocess.preprocess(input, output, pack, settings, shard, shards, processes, quiet)


@dataset.command(name="inspect")
def dataset_inspect(
    folder: tyro.conf.Positional[Path],
    output: Path = Path("clips.png"),
    split: Literal["train", "validation"] = "train",
    count: int = 6,
    seed: int = 0,
) -> None:
    """Print statistics of a data set and draw random clips of it with their landmarks.

    Args:
      folder: the data set.
      output: the PNG to write.
      split: which part of it.
      count: clips to draw.
      seed: of their choice.
    """
    from unavglip_jax.data import inspection

    inspection.inspect(folder, split, count, output, seed)
    print(f"wrote {output}")


@dataset.command(name="verify")
def dataset_verify(folder: tyro.conf.Positional[Path]) -> None:
    """Check every record of a data set; exit code 1 if something is wrong.

    Args:
      folder: the data set.
    """
    from unavglip_jax.data import inspection

    if inspection.verify(folder):
        sys.exit(1)


@app.command
def parity(folder: tyro.conf.Positional[Path]) -> None:
    """Check every network against stored outputs of the original PyTorch networks.

    Args:
      folder: holds vector folders, each with manifest.json and io.npz, at any depth.
    """
    from unavglip_jax.convert import parity

    if not parity.check(folder):
        sys.exit(1)


def keep_compiled() -> None:
    """Keeps what XLA compiles for the next time, in the cache folder unless jax was told another."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(assets.cache_folder() / "compiled"))


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
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        sys.exit(
            f"error: this needs the package {error.name}; install the extra with "
            f"`pip install 'unavglip-jax[{extra}]'`"
        )
    except KeyboardInterrupt:
        print("interrupted; nothing half written is left", file=sys.stderr)
        sys.exit(130)
