"""Where arrays lie: a mesh of devices, and tables of which axis of which parameter is divided over it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unavglip_jax import params
from unavglip_jax.config import Config, InputError

AXES = ("data", "fsdp", "tensor")

# Kernels are (in, out) or (kernel height, kernel width, in, out). The first pattern found in a name counts.
RULES = (
    (r"(_lora/(down|up)|to_[kv]_ip)/kernel$", P()),  # small, and updated at every step
    (r"(to_q|to_k|to_v|to_kv)/kernel$", P("fsdp", "tensor")),
    (r"to_out(/0)?/kernel$", P("tensor", "fsdp")),
    (r"ff/net/0/proj/kernel$", P("fsdp", "tensor")),
    (r"ff/net/2/kernel$", P("tensor", "fsdp")),
    (r"(conv\w*|proj_in|proj_out)/kernel$", P(None, None, None, "fsdp")),
    (r"(linear_\d|time_emb_proj)/kernel$", P(None, "fsdp")),
    (r"", P()),
)


class MeshConfig(Config):
    """How the devices are arranged.

    Attributes:
      data: copies of the model that share a batch; -1 for as many as there are devices for.
      fsdp: devices that share one copy of the weights, and also divide the batch.
      tensor: devices that divide the heads of attention and the width of feed-forward layers.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence | None = None) -> Mesh:
    """A mesh of all devices, or of those given.

    Raises:
      InputError: the axes do not make up the number of devices, or `tensor` would span processes, which
        could then not each read their own rows of a batch.
    """
    devices = list(devices or jax.devices())
    inner = config.fsdp * config.tensor
    data = len(devices) // inner if config.data == -1 and inner > 0 else config.data
    if min(data, config.fsdp, config.tensor) < 1 or data * inner != len(devices):
        raise InputError(
            f"mesh: data={config.data} fsdp={config.fsdp} tensor={config.tensor} does not make up "
            f"{len(devices)} devices; choose axes whose product is {len(devices)}"
        )
    shape = (data, config.fsdp, config.tensor)
    mesh = jax.make_mesh(shape, AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)
    for group in mesh.devices.reshape(-1, config.tensor):
        if len({device.process_index for device in group}) > 1:
            raise InputError(
                f"mesh: tensor={config.tensor} spans processes; it may be at most the "
                f"{jax.local_device_count()} devices of one"
            )
    return mesh


def place(mesh: Mesh, shapes: Mapping[str, Any], rules=RULES) -> dict[str, NamedSharding]:
    """The sharding of each parameter by the first rule that matches its name.

    An axis that the mesh does not divide evenly stays whole, and so does what a rule has too many axes
    for (a kernel of another rank).
    """
    found = params.match(rules, shapes)

    def spec(name):
        shape, axes = shapes[name].shape, found[name]
        if len(axes) > len(shape):
            axes = axes[len(axes) - len(shape) :]  # a convolution over one axis
        fits = lambda size, axis: axis is not None and size % mesh.shape[axis] == 0
        return P(*(axis if fits(n, axis) else None for n, axis in zip(shape, axes, strict=False)))

    return {name: NamedSharding(mesh, spec(name)) for name in shapes}


def like(tree, placement: Mapping[str, NamedSharding], default: NamedSharding):
    """Shardings of a tree that holds flat dicts of parameters: that of the parameter of the same name."""
    last = lambda path: getattr(path[-1], "key", None) if path else None
    return jax.tree_util.tree_map_with_path(
        lambda path, _: placement.get(last(path), default), tree
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first axis, of a batch, divided over `data` and `fsdp`."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as arrays over all processes."""
    sharding = by_rows(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def put(arrays: Mapping[str, Any], placement: Mapping[str, NamedSharding]) -> dict[str, jax.Array]:
    """Arrays that every process has whole, as arrays over all processes."""
    return {
        name: jax.make_array_from_callback(x.shape, placement[name], np.asarray(x).__getitem__)
        for name, x in arrays.items()
    }
