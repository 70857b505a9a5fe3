"""From a checkpoint of a run to a pack."""

from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from unavglip_jax import assets, checkpoint, params
from unavglip_jax.config import InputError, validate
from unavglip_jax.params import Params
from unavglip_jax.training.objective import part
from unavglip_jax.training.settings import Settings
from unavglip_jax.training.step import State


def export(
    run: str | Path,
    output: str | Path,
    step: int | None = None,
    weights: Literal["ema", "train"] = "ema",
) -> assets.Pack:
    """Writes the pack that a run started from, with what the run trained in place of what was there.

    Args:
      run: the run's folder.
      output: folder of the new pack.
      step: of the checkpoint; by default the newest.
      weights: the averaged ones, or those of that very step.

    Raises:
      InputError: there is no such checkpoint, it is damaged, or the output exists.
    """
    folder = Path(run) / "checkpoints"
    if not folder.is_dir():
        raise InputError(f"{run} is not the folder of a run: it has no checkpoints")
    with checkpoint.manager(folder, None, State._fields) as manager:
        steps = manager.all_steps()
        if not steps or (step is not None and step not in steps):
            has = ", ".join(map(str, sorted(steps))) or "none"
            raise InputError(f"{folder} has no checkpoint of step {step or 'any'}; it has {has}")
        step = max(steps) if step is None else step
        stored = checkpoint.read_config(manager, step)
        groups = checkpoint.restore(manager, step, shapes(manager, step, (weights, "rest")))
    settings = validate(Settings, stored["settings"], f"{run}, step {step}")
    trained = jax.tree.map(np.asarray, groups[weights] | groups.get("rest", {}))
    base = settings.objective.pack
    pack = assets.read_pack(base)
    source = f"{settings.objective.kind}, step {step} of {Path(run).name}"
    networks = {
        name: (*assets.load_component(base, name), component.source, component.licence)
        for name, component in pack.components.items()
    }
    for name, (config, own) in made(stored["networks"], trained).items():
        licence = pack.components[name].licence if name in pack.components else "its data's"
        networks[name] = (config, own, source, licence)
    fields = pack.model_dump(mode="json", exclude={"components"})
    if "perceiver" in networks:
        fields["system"] = "unavglip"
    return assets.write_pack(output, fields, networks)


def shapes(manager, step: int, groups: tuple[str, ...]) -> dict:
    """What a checkpoint holds of some groups, to be restored on one device."""
    stored, whole = manager.item_metadata(step), SingleDeviceSharding(jax.devices()[0])
    as_shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)
    return {
        name: {k: as_shape(v) for k, v in stored[name].items()}
        for name in groups
        if stored.get(name) is not None
    }


def made(configs: dict, trained: Params) -> dict[str, tuple]:
    """Configuration and weights of each component that was trained."""
    out = {}
    for name in sorted({path.split("/")[0] for path in trained} & assets.NETWORKS.keys()):
        own = part(trained, name)
        adapter, whole = params.split("/processor/", own)
        if name == "unet" and adapter and not whole:
            # Trained over a UNet whose time branch was folded; the pack's has it.
            fields = configs[name] | {"time_embedding": True}
            name, own = "adapter", adapter
        else:
            fields = configs[name]
        kind = assets.network_of(name)[1]
        out[name] = (validate(kind, fields, name), own)
    return out
