"""Does it learn? Tiny networks, from nothing, on synthetic talking heads, with tables of what they learnt.

    python benchmarks/learning.py --folder runs/learning
    python benchmarks/learning.py --run runs/demo/runs/adapter

Made one after the other, each stage going on where it was stopped: videos, a data set, an auto-encoder, a
face embedder and a lip-sync expert; then, with those, the data set again with embeddings, a whole UNet
without identity, and UnAvgLip's adapter over that UNet, frozen. Nobody in the validation split is in the
training split. The Whisper encoder has random weights: its features hold the sound, though no words.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from unavglip_jax import assets, checkpoint, params, sharding
from unavglip_jax.data import pipeline, preprocess, synth
from unavglip_jax.data.clips import open_data_set
from unavglip_jax.data.settings import PreprocessSettings
from unavglip_jax.models.whisper import Whisper, WhisperConfig
from unavglip_jax.training import export, loop, watch
from unavglip_jax.training import step as steps
from unavglip_jax.training.objective import Batch
from unavglip_jax.training.settings import Settings

SIZE = 64  # side of the crops
AUDIO_FACTORS = [[2, 1], [2, 2], [2, 2], [1, 1], [2, 2], [2, 2], [2, 3]]  # StableSyncNet's


@dataclass(frozen=True)
class Options:
    """What to make.

    Attributes:
      folder: of everything; a second run goes on in it.
      run: folder of an adapter's or an expert's training, made by whatever settings; only this is measured.
      identities: people, of whom a tenth are for validation.
      scale: factor of all numbers of steps.
      only: the last stage to run.
    """

    folder: Path = Path("runs/learning")
    run: Path | None = None
    identities: int = 100
    scale: float = 1.0
    only: str = "report"


RUNS = {
    "vae": {
        "objective": {
            "networks": {
                "vae": {
                    "block_out_channels": [16, 32, 64],
                    "norm_num_groups": 8,
                    "layers_per_block": 1,
                }
            },
            "losses": {"pixel": 1.0, "pixel_mouth": 1.0, "gradient": 0.5},
        },
        "data": {"batch_size": 4, "sample": {"frames": 2}},
        "optimizer": {"learning_rate": 1e-3, "warmup": 100},
        "steps": 1200,
    },
    "identity": {
        "objective": {
            "networks": {
                "identity": {"blocks": [1, 1, 1, 1], "widths": [16, 32, 64, 128], "embedding": 512}
            }
        },
        "data": {"batch_size": 32, "sample": {"frames": 1}},
        "optimizer": {"learning_rate": 1e-3, "warmup": 50},
        "steps": 600,
    },
    "stable_syncnet": {
        "objective": {
            "networks": {
                "stable_syncnet": {
                    "audio_encoder": {
                        "in_channels": 1,
                        "size": [80, 52],
                        "block_out_channels": [16, 32, 32, 64, 64, 128, 256],
                        "downsample_factors": AUDIO_FACTORS,
                    },
                    "visual_encoder": {
                        "in_channels": 48,
                        "size": [32, 64],
                        "block_out_channels": [32, 32, 64, 64, 128, 256],
                        "downsample_factors": [[1, 2], *[[2, 2]] * 5],
                    },
                    "norm_num_groups": 8,
                }
            }
        },
        "data": {"batch_size": 16, "sample": {"frames": 16}},
        "optimizer": {"learning_rate": 5e-4, "warmup": 100, "weight_decay": 0.0},
        "steps": 2500,
    },
    "musetalk_v10": {
        "objective": {
            "networks": {
                "unet": {
                    "block_out_channels": [32, 64, 96],
                    "cross_attention": [True, True, True],
                    "layers_per_block": 1,
                    "cross_attention_dim": 64,
                    "heads": 4,
                    "norm_num_groups": 8,
                }
            },
            "losses": {"pixel_lower_half": 2.0, "pixel_mouth": 2.0, "latent": 1.0},
        },
        "data": {"batch_size": 16, "sample": {"frames": 1}},
        "optimizer": {"learning_rate": 1e-3, "warmup": 100},
        "steps": 1200,
    },
    "unavglip": {
        "objective": {
            "networks": {
                "perceiver": {"dim": 64, "depth": 2, "dim_head": 16, "heads": 4, "output_dim": 64},
                "adapter": {"lora_rank": 8},
            },
            "losses": {"pixel_lower_half": 2.0, "pixel_mouth": 2.0, "latent": 1.0, "identity": 0.5},
        },
        "data": {"batch_size": 16, "sample": {"frames": 1, "identity_dropout": 0.1}},
        "optimizer": {"learning_rate": 1e-3, "warmup": 100},
        "steps": 1200,
    },
}


def run_settings(options: Options, kind: str, pack: Path, data: Path, **changes) -> Settings:
    """The settings of one run."""
    found = RUNS[kind] | changes
    count = max(2, round(found["steps"] * options.scale))
    return Settings(
        objective=found["objective"] | {"kind": kind, "pack": pack},
        data=found["data"] | {"path": data},
        optimizer=found["optimizer"],
        output=options.folder / "runs" / kind,
        steps=count,
        log_every=20,
        checkpoint_every=200,
        keep=1,
        validate_every=500,
        validation_batches=64,
    )


def first_pack(folder: Path) -> Path:
    """A pack with nothing but an untrained audio encoder."""
    if not folder.exists():
        config = WhisperConfig(n_audio_state=64, n_audio_head=4, n_audio_layer=2)
        weights = params.init(Whisper, config, jax.random.key(0, impl="rbg"))
        description = {
            "system": "musetalk", "audio_front_end": "v10", "crop": "musetalk_v10",
            "mask": "lower_half", "image_size": SIZE,
            "identity": {"embedder": "identity", "normalisation": "unit"},
        }  # fmt: skip
        assets.write_pack(folder, description, {"whisper": (config, weights, "untrained", "none")})
    return folder


def prepared(options: Options, pack: Path, name: str, identities: int) -> Path:
    """The data set of all videos, cut with a pack."""
    settings = PreprocessSettings(
        min_face=40, min_seconds=1, identities=identities, max_offset=None, people="folder"
    )
    preprocess.preprocess(
        options.folder / "videos", options.folder / name, pack, settings, quiet=True
    )
    return options.folder / name


def trained(options: Options, kind: str, pack: Path, data: Path, result: str) -> Path:
    """The pack with what a run trained in it."""
    folder = options.folder / "packs" / result
    if not folder.exists():
        settings = run_settings(options, kind, pack, data)
        loop.train(settings)
        export.export(settings.output, folder)
    return folder


# ---- what they learnt --------------------------------------------------------------------------------


Change = Callable[[Batch], Batch]


def measured(
    settings: Settings, changes: dict[str, Change], moments: int
) -> dict[str, dict[str, np.ndarray]]:
    """Validation measures of what a run trained, with batches changed in several ways.

    Each is an array of as many moments of every held-out clip, in the same order for all changes.
    """
    mesh = sharding.make_mesh(settings.mesh)
    clips, description = open_data_set(settings.data.path, "validation")
    objective = loop.build(settings, description)
    state, frozen = steps.initial(objective, settings, mesh)
    with checkpoint.manager(settings.output / "checkpoints", None, steps.State._fields) as manager:
        state = steps.State(**checkpoint.restore(manager, manager.latest_step(), state._asdict()))
    sample = objective.sample.replace(identity_dropout=0.0, augment=False)

    @jax.jit
    def evaluate(batch):
        models = steps.bind(objective, steps.averaged(state, frozen), training=False)
        return objective.evaluate(models, batch)[0]

    found, size = {name: [] for name in changes}, min(8, len(clips))
    for seed in range(moments):
        samples = pipeline.train_dataset(clips, description, sample, size, seed)
        for _, batch in zip(range(len(clips) // size), samples, strict=False):
            batch = {k: jnp.asarray(v) for k, v in batch.items()}
            for name, change in changes.items():
                found[name].append(jax.device_get(evaluate(change(batch))))
    return {name: jax.tree.map(lambda *x: np.concatenate(x), *all) for name, all in found.items()}


def ablation(settings: Settings, console: Console) -> None:
    """Validation measures of the trained adapter with one thing taken away at a time."""
    rolled = lambda x: jnp.roll(x, 1, axis=0)
    # Whoever the adapter is told, the person to compare with is the true one.
    told = lambda batch, identity: batch | {"identity": identity, "person": batch["identity"]}
    changes = {
        "all": lambda batch: batch,
        "without sound": lambda batch: batch | {"windows": jnp.zeros_like(batch["windows"])},
        "another clip's sound": lambda batch: batch | {"windows": rolled(batch["windows"])},
        "without identity": lambda batch: told(batch, jnp.zeros_like(batch["identity"])),
        "another's identity": lambda batch: told(batch, rolled(batch["identity"])),
    }
    found = measured(settings, changes, moments=8)
    whole, keys = found["all"], ("l1_hidden", "l1_mouth", "identity")
    rows = {"frozen base": {k: whole[f"base_{k}"] for k in keys}}
    rows |= {f"adapter, {name}": row for name, row in found.items()}
    title = f"adapter on held-out people, {len(whole['l1_mouth'])} moments; less all, and its standard error"
    table = Table("", "L1 hidden", "L1 mouth", "identity", title=title)
    for name, row in rows.items():
        table.add_row(name, *(compared(row[k], whole[k]) for k in keys))
    console.print(table)


def compared(values: np.ndarray, others: np.ndarray) -> str:
    """The mean; how much more it is than of the others, moment by moment, and the standard error of that."""
    if values is others:
        return f"{values.mean():.4f}"
    off = values - others
    return f"{values.mean():.4f} ({off.mean():+.4f} ± {off.std() / len(off) ** 0.5:.4f})"


def expert(settings: Settings, console: Console) -> None:
    """How often the expert tells sound in step from the same clip's sound elsewhere, on held-out people."""
    [found] = measured(settings, {"": lambda batch: batch}, moments=40).values()
    table = Table("by the threshold 0.5", "which of two", "cosine in step", "cosine shifted")
    table.title = f"expert on held-out people, {len(found['ordered'])} pairs"
    keys = ("accuracy", "ordered", "cosine_right", "cosine_wrong")
    table.add_row(*(f"{found[key].mean():.3f}" for key in keys))
    console.print(table)


def report(run: Path, console: Console) -> None:
    """What a run has learnt: its course, and what can be said of its end."""
    course(run, console)
    with checkpoint.manager(run / "checkpoints", None, steps.State._fields) as manager:
        stored = checkpoint.read_config(manager, manager.latest_step())
    settings = Settings(**stored["settings"])
    if settings.objective.kind == "unavglip":
        ablation(settings, console)
    if settings.objective.kind == "stable_syncnet":
        expert(settings, console)


def course(run: Path, console: Console) -> None:
    """Validation measures of a run over its steps."""
    lines = [
        {k.removeprefix("validation/"): v for k, v in line.items()}
        for line in watch.read(run / "log.jsonl")
        if any(name.startswith("validation/") for name in line)
    ]
    names = [name for name in lines[0] if name != "step"]
    table = Table("step", *names, title=f"{run.name}: validation")
    for line in lines:
        table.add_row(str(line["step"]), *(f"{line[name]:.4f}" for name in names))
    console.print(table)


def overfit(settings: Settings, count: int, console: Console) -> None:
    """The loss of one batch that is trained on alone."""
    settings = settings.replace(steps=count, validate_every=0)
    mesh = sharding.make_mesh(settings.mesh)
    clips, description = open_data_set(settings.data.path, "train")
    objective = loop.build(settings, description)
    state, frozen = steps.initial(objective, settings, mesh)
    samples = pipeline.train_dataset(clips, description, objective.sample, 4, 0)
    batch = sharding.put_batch(next(iter(samples)), mesh)
    update = steps.compiled(objective, settings, mesh, state, frozen, batch)
    table = Table("step", "loss", "L1 lower half", title="one batch of four, a whole UNet")
    for done in range(count + 1):
        state, metrics = update(state, frozen, batch)
        if done in (0, count // 4, count // 2, count):
            found = watch.numbers(metrics)
            table.add_row(str(done), f"{found['loss']:.4f}", f"{found['pixel_lower_half']:.4f}")
    console.print(table)


def main(options: Options) -> None:
    """Runs the stages up to the one asked for."""
    console, began, folder = Console(width=140), time.perf_counter(), options.folder
    if options.run:
        return report(options.run, console)

    def reached(stage: str) -> bool:
        console.print(f"{stage}: done after {time.perf_counter() - began:.0f} s")
        return options.only == stage

    synth.synthesise(
        options.identities, 2, 4.0, 192, folder / "videos", photograph_share=0.0, quiet=True
    )
    if reached("videos"):
        return
    pack = first_pack(folder / "packs" / "whisper")
    plain = prepared(options, pack, "plain", identities=0)
    if reached("data"):
        return
    if options.only == "stable_syncnet":
        trained(options, "stable_syncnet", pack, plain, "expert")
        return report(folder / "runs/stable_syncnet", console)
    pack = trained(options, "vae", pack, plain, "vae")
    if reached("vae"):
        return
    pack = trained(options, "identity", pack, plain, "identity")
    data = prepared(options, pack, "embedded", identities=8)
    if reached("identity"):
        return
    base = trained(options, "musetalk_v10", pack, data, "base")
    if reached("musetalk_v10"):
        return
    trained(options, "unavglip", base, data, "adapter")
    if reached("unavglip"):
        return
    for kind in RUNS:
        if (folder / "runs" / kind).exists():  # the expert is trained only if it is asked for
            report(folder / "runs" / kind, console)
    overfit(run_settings(options, "musetalk_v10", pack, data), round(600 * options.scale), console)


if __name__ == "__main__":
    main(tyro.cli(Options))
