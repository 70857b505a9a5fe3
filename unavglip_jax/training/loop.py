"""The training loop: from a mesh of devices to checkpoints, for any objective."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import chain

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils

from unavglip_jax import assets, checkpoint, sharding
from unavglip_jax.config import InputError
from unavglip_jax.data import pipeline
from unavglip_jax.data.clips import Description, open_data_set
from unavglip_jax.training import autoencoder, dubbing, embedder, experts, watch
from unavglip_jax.training import step as steps
from unavglip_jax.training.objective import Objective
from unavglip_jax.training.settings import Settings


def train(settings: Settings, dry_run: bool = False) -> None:
    """Runs a training to its end, going on from its newest checkpoint if it has one.

    Args:
      settings: of the run.
      dry_run: only compile the step, and print what it would take.

    Raises:
      InputError: the settings, the data set and the pack do not fit together, the newest checkpoint is
        damaged, or the loss is no longer a number.
    """
    mesh = sharding.make_mesh(settings.mesh)
    check_batch(settings, mesh)
    clips, description = open_data_set(settings.data.path, "train")
    objective = build(settings, description)
    state, frozen = steps.initial(objective, settings, mesh)
    signature = signature_of(settings, objective)
    validate = make_validation(settings, objective, mesh)

    folder, groups = settings.output / "checkpoints", steps.State._fields
    with checkpoint.manager(folder, settings.keep, groups) as manager:
        start = manager.latest_step() or 0
        if start:
            check_signature(checkpoint.read_config(manager, start), signature, settings)
            state = steps.State(**checkpoint.restore(manager, start, state._asdict()))
        samples = pipeline.train_dataset(
            clips, description, objective.sample, settings.data.batch_size, settings.seed,
            jax.process_index(), jax.process_count(), start, settings.data.workers,
        )  # fmt: skip
        with closing(on_devices(samples, mesh)) as batches:
            first = next(batches)
            update = steps.compiled(objective, settings, mesh, state, frozen, first)
            if dry_run:
                groups = {"trained": state.train, "adversary": state.adversary, "frozen": frozen}
                return watch.describe(groups, update)
            with watch.log(settings.output, start, settings.steps) as log, stop_asked() as stop:
                meter, before = watch.Meter(settings, update), None
                for done, batch in zip(
                    range(start + 1, settings.steps + 1),
                    meter.waits(chain([first], batches)),
                    strict=False,
                ):
                    state, metrics = update(state, frozen, batch)
                    # While this step runs, the one before is looked at.
                    check_finite(before, settings)
                    before = done, metrics, batch
                    every = lambda n, done=done: n and (done % n == 0 or done == settings.steps)
                    # Waiting for the numbers belongs to the time of the step.
                    found = watch.numbers(metrics) if every(settings.log_every) else None
                    meter.step()
                    stopping = stop(done)
                    if found:
                        log.write(done, found | meter.read())
                    if every(settings.validate_every) and validate:
                        found, pictures = validate(state, frozen)
                        log.write(done, found, "validation")
                        log.pictures(done, pictures)
                    if every(settings.checkpoint_every) or stopping:
                        check_finite(before, settings)
                        checkpoint.save(manager, done, state._asdict(), signature)
                        log.curves()
                    if stopping:
                        break


def build(settings: Settings, description: Description) -> Objective:
    """The objective that the settings name.

    Raises:
      InputError: the pack does not have what it needs, or the data set does not fit the pack.
    """
    module = {
        "unavglip": dubbing,
        "musetalk_v10": dubbing,
        "wav2lip_syncnet": experts,
        "stable_syncnet": experts,
        "vae": autoencoder,
        "identity": embedder,
    }[settings.objective.kind]
    # Before anything is loaded or compiled.
    sample, pack = module.sample(settings), assets.read_pack(settings.objective.pack)
    pipeline.check_fields(description, sample)
    pipeline.check(description, pack, sample.fields)
    if module is embedder:
        return module.build(settings, len(description.sources["train"]))
    return module.build(settings)


def check_batch(settings: Settings, mesh: jax.sharding.Mesh) -> None:
    """Refuses a batch that cannot be divided over the devices."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"] * settings.accumulate
    if settings.data.batch_size % rows:
        raise InputError(
            f"data.batch_size is {settings.data.batch_size}, which cannot be divided over "
            f"{mesh.shape['data']} x {mesh.shape['fsdp']} devices and accumulate={settings.accumulate}; "
            f"choose a multiple of {rows}"
        )


def on_devices(samples: grain.IterDataset, mesh: jax.sharding.Mesh) -> Iterator:
    """Batches on the devices, two ahead of the step."""
    put = samples.map(lambda batch: sharding.put_batch(batch, mesh))
    iterator = iter(grain.experimental.ThreadPrefetchIterDataset(put, prefetch_buffer_size=2))
    try:
        yield from iterator
    finally:
        iterator.close()


# ---- checks and stops --------------------------------------------------------------------------------


def signature_of(settings: Settings, objective: Objective) -> dict:
    """What a checkpoint must have in common with the run that goes on from it, and the settings."""
    components = assets.read_pack(settings.objective.pack).components
    digests = {
        name: components[name].sha256
        for name in objective.networks
        if name in components and name not in objective.makes
    }
    shapes = {
        name: config.model_dump(mode="json", exclude={"dtype", "param_dtype", "remat"})
        for name, config in objective.networks.items()
    }
    return {
        "frozen": digests, "networks": shapes, "seed": settings.seed,
        "batch_size": settings.data.batch_size, "settings": settings.model_dump(mode="json"),
    }  # fmt: skip


def check_signature(stored: dict, ours: dict, settings: Settings) -> None:
    """Refuses to go on from a run of other networks or other batches."""
    for name in ("frozen", "networks", "seed", "batch_size"):
        if stored[name] != ours[name]:
            what = {"frozen": "frozen weights", "networks": "networks"}.get(name, name)
            detail = f" ({stored[name]}, not {ours[name]})" if isinstance(ours[name], int) else ""
            raise InputError(
                f"{settings.output} holds a run with other {what}{detail}; choose another output, or "
                "the settings of that run"
            )


def check_finite(step: tuple | None, settings: Settings) -> None:
    """Stops the run when a loss or a gradient is no longer a number.

    The checkpoint before it stays, and the batch is written beside it.
    """
    if step is None:
        return
    done, metrics, batch = step
    if np.isfinite([float(metrics["loss"]), float(metrics["gradient_norm"])]).all():
        return
    path = watch.dump(settings.output, done, batch)
    raise InputError(
        f"step {done}: the loss is {float(metrics['loss'])} and the norm of the gradient "
        f"{float(metrics['gradient_norm'])}; the batch is in {path}, and the last checkpoint is good: "
        "go on from it with a lower optimizer.learning_rate"
    )


@contextmanager
def stop_asked():
    """A function of the step that says whether SIGTERM has come, at the same step in every process."""
    if jax.process_count() > 1:
        # jax listens to the signal of any process, and agrees with the others on a step to stop at.
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = threading.Event()
    former = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, former)


# ---- validation --------------------------------------------------------------------------------------


def make_validation(
    settings: Settings, objective: Objective, mesh: jax.sharding.Mesh
) -> Callable | None:
    """`validate(state, frozen)` -> means over held-out clips, by the averaged weights, and pictures.

    None if the settings want none.

    Raises:
      InputError: the data set has no validation split.
    """
    if not settings.validate_every:
        return None
    clips, description = open_data_set(settings.data.path, "validation")
    sample = objective.sample.replace(fields=(*objective.sample.fields, "frame"))
    samples = pipeline.validation_dataset(
        clips, description, sample, settings.data.batch_size,
        jax.process_index(), jax.process_count(),
    )  # fmt: skip
    whole = sharding.replicated(mesh)

    def evaluate(state, frozen, batch):
        models = steps.bind(objective, steps.averaged(state, frozen), training=False)
        metrics, pictures = objective.evaluate(models, batch)
        valid = batch["valid"].astype(np.float32)
        return {k: (v * valid).sum() for k, v in metrics.items()}, valid.sum(), pictures

    evaluate = jax.jit(evaluate, out_shardings=whole)

    def validate(state, frozen):
        totals, rows, pictures = {}, 0.0, {}
        with closing(on_devices(samples, mesh)) as batches:
            for _, batch in zip(range(settings.validation_batches), batches, strict=False):
                sums, valid, shown = evaluate(state, frozen, batch)
                pictures = pictures or shown
                rows += float(valid)
                totals = {k: totals.get(k, 0.0) + float(v) for k, v in sums.items()}
        return {k: v / rows for k, v in totals.items()}, pictures

    return validate
