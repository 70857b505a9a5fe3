"""The networks of a pack put together: one jitted step from uint8 crops and sound to uint8 crops."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, UInt8

from unavglip_jax import assets, params
from unavglip_jax.config import Dtype
from unavglip_jax.dubbing import hearing
from unavglip_jax.models.layers import audio_positions
from unavglip_jax.models.unet import cache_identity, fold_timestep, merge_lora
from unavglip_jax.params import Network


class Generator(NamedTuple):
    """What dubbing needs of a pack. `perceiver` is `None` for systems without identity."""

    pack: assets.Pack
    unet: Network
    vae: Network
    hearing: hearing.Hearing
    perceiver: Network | None


def load(folder: str | Path, dtype: Dtype = "float32") -> Generator:
    """The generator of a pack, its weights kept and computed in `dtype`, LoRA merged, t = 0 folded.

    The audio encoder and the Perceiver, which run once a recording, stay float32.

    Raises:
      InputError: the folder is no pack, or a network of it is missing or damaged.
    """
    pack = assets.read_pack(folder)

    # Merged in float32 and rounded once, so that bfloat16 costs no more than it must.
    config, weights = assets.load_generator(folder, dtype=dtype)
    weights, config = fold_timestep(*merge_lora(weights, config))
    config = config.replace(param_dtype=dtype)
    graphdef, shapes = params.abstract(assets.network_of("unet")[0], config)
    unet = Network(config, graphdef, params.cast(weights, shapes))
    vae = assets.load_network(folder, "vae", dtype=dtype, param_dtype=dtype)
    perceiver = assets.load_network(folder, "perceiver") if "perceiver" in pack.components else None
    return Generator(pack, unet, vae, hearing.load(folder), perceiver)


def with_identity(generator: Generator, embeddings: Float[np.ndarray, "N E"]) -> Generator:
    """The generator for one person: the Perceiver's tokens, as keys and values, are in its weights."""
    tokens = generator.perceiver(jnp.asarray(embeddings)[None])
    weights, config = cache_identity(generator.unet.weights, generator.unet.config, tokens)
    graphdef, _ = params.abstract(assets.network_of("unet")[0], config)
    return generator._replace(unet=Network(config, graphdef, weights))


def make_step(generator: Generator, devices: list | None = None) -> Callable:
    """`step(crops, references, hidden, indices, rows, guide_scale)` -> generated crops.

    The first four have a leading batch axis, and are sharded over the devices.

    Args of the step:
      crops: uint8 RGB (B, H, W, 3), the frames to dub.
      references: the same of frames that show the face to be kept.
      hidden: bool (B, H, W), where the generator must not see the crop; `lower_half` is the published
        mask.
      indices: int32 (B, 10), the rows that each frame hears, in order.
      rows: float32 (R, S, C), the audio features that they are taken from.
      guide_scale: factor of the identity attention.
    """
    devices = devices or jax.devices()[:1]
    batch, whole = placements(devices)
    graphs = generator.unet.graphdef, generator.vae.graphdef
    weights = jax.device_put((generator.unet.weights, generator.vae.weights), whole)

    def step(crops, references, hidden, indices, rows, guide_scale):
        frames = jax.device_put((crops, references, hidden, indices), batch)
        sound = jax.device_put((rows, guide_scale), whole)
        return compiled_step()(graphs, weights, *frames, *sound)

    return step


def placements(devices: list) -> tuple[NamedSharding, NamedSharding]:
    """How arrays lie on the devices: divided over them by their first axis, and whole on each."""
    mesh = jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,))
    return tuple(NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))


@cache
def compiled_step() -> Callable:
    """`one_step`, compiled once for a pack and a batch size."""
    return jax.jit(one_step, static_argnums=0, compiler_options=params.compiler_options())


def one_step(graphs, weights, crops, references, hidden, indices, rows, guide_scale):
    """The arithmetic of `make_step`."""
    unet, vae = (params.bind(*pair) for pair in zip(graphs, weights, strict=True))
    blanked = jnp.where(hidden[..., None], 0, crops)
    images = jnp.concatenate([blanked, references]).astype(jnp.float32) / 127.5 - 1
    masked, reference = jnp.split(vae.encode(images), 2)
    windows = rows[indices].reshape(len(indices), -1, rows.shape[-1])
    windows = windows + audio_positions(*windows.shape[1:])
    latents = jnp.concatenate([masked, reference], axis=-1)
    out = unet(latents, 0, windows, guide_scale=guide_scale)
    pixels = jnp.clip(vae.decode(out) / 2 + 0.5, 0, 1) * 255
    return jnp.round(pixels).astype(jnp.uint8)  # half to even, as numpy


def lower_half(size: int) -> Bool[np.ndarray, "H W"]:
    """The mask of UnAvgLip and MuseTalk: the lower half of the crop is hidden."""
    return np.repeat(np.arange(size)[:, None] >= size // 2, size, axis=1)


class Frame(NamedTuple):
    """One frame of the output.

    Attributes:
      inputs: crop, reference, hidden pixels and window (`audio.window_indices`), as the step takes them but
        without a batch axis; `None` for a frame that passes through.
      context: whatever the caller needs back with the result.
    """

    inputs: tuple[np.ndarray, ...] | None
    context: Any


def generate(
    step: Callable,
    frames: Iterable[Frame],
    batch_size: int,
    rows: Callable[[np.ndarray], np.ndarray],
    guide_scale: float,
    ahead: int = 2,
) -> Iterator[tuple[UInt8[np.ndarray, "H W 3"] | None, Any]]:
    """The generated crop (or `None`) and the context of every frame, in order.

    A batch that is not full is filled up with copies of its last frame, so one compiled step serves all.
    The device works on up to `ahead` batches while the caller handles the results before them.

    Args:
      step: what `make_step` made.
      frames: what to generate.
      batch_size: of the step.
      rows: the audio features by the sorted numbers of their rows, such as `hearing.look_up`'s.
      guide_scale: factor of the identity attention.
      ahead: batches.
    """

    def submit(part):
        inputs = [frame.inputs for frame in part if frame.inputs is not None]
        if not inputs:
            return part, ()
        filled = inputs + [inputs[-1]] * (batch_size - len(inputs))
        crops, references, hidden, windows = map(np.stack, zip(*filled, strict=True))
        # Only the rows of this batch go to the device, always as many as it could need.
        wanted, indices = np.unique(windows, return_inverse=True)
        sound = rows(wanted)
        sound = np.pad(sound, [(0, windows.size - len(sound)), (0, 0), (0, 0)])
        indices = indices.reshape(windows.shape).astype(np.int32)
        return part, step(crops, references, hidden, indices, sound, np.float32(guide_scale))

    def collect(part, out):
        crops = iter(np.asarray(out))
        for frame in part:
            yield (None if frame.inputs is None else next(crops)), frame.context

    pending, part, full = [], [], 0
    for frame in frames:
        part.append(frame)
        full += frame.inputs is not None
        # Frames that pass through wait with the others, but not without bound.
        if full == batch_size or len(part) >= 2 * batch_size:
            pending.append(submit(part))
            part, full = [], 0
            if len(pending) > ahead:
                yield from collect(*pending.pop(0))
    for batch in [*pending, submit(part)]:
        yield from collect(*batch)
