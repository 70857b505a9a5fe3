"""The networks of a pack put together: one jitted step from uint8 crops and sound to uint8 crops."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, UInt8

from unavglip_jax import assets, params
from unavglip_jax.config import Dtype, NetworkConfig
from unavglip_jax.media import audio
from unavglip_jax.models.layers import audio_positions
from unavglip_jax.models.unet import cache_identity, fold_timestep, merge_lora

CROSS_FADE = 250  # encoder steps (5 s) by which neighbouring Whisper segments overlap


class Network(NamedTuple):
    """A network and its weights."""

    config: NetworkConfig
    graphdef: Any
    weights: params.Params


@partial(jax.jit, static_argnums=(0, 3))
def apply(graphdef, weights: params.Params, x: Array, option: str | None = None) -> Array:
    """One call of a network. Compiled once for a graph definition, whatever the weights."""
    network = params.bind(graphdef, weights)
    return network(x) if option is None else network(x, option)


class Generator(NamedTuple):
    """What dubbing needs of a pack. `perceiver` is `None` for systems without identity."""

    pack: assets.Pack
    unet: Network
    vae: Network
    whisper: Network
    perceiver: Network | None


def load(folder: str | Path, dtype: Dtype = "float32") -> Generator:
    """The generator of a pack, its weights kept and computed in `dtype`, LoRA merged, t = 0 folded.

    The audio encoder and the Perceiver, which run once a recording, stay float32.

    Raises:
      InputError: the folder is no pack, or a network of it is missing or damaged.
    """
    pack = assets.read_pack(folder)

    def network(config, weights, component):
        graphdef, _ = params.abstract(assets.network_of(component)[0], config)
        return Network(config, graphdef, weights)

    # Merged in float32 and rounded once, so that bfloat16 costs no more than it must.
    config, weights = assets.load_generator(folder, dtype=dtype)
    weights, config = fold_timestep(*merge_lora(weights, config))
    config = config.replace(param_dtype=dtype)
    _, shapes = params.abstract(assets.network_of("unet")[0], config)
    unet = network(config, params.cast(weights, shapes), "unet")
    half = {"dtype": dtype, "param_dtype": dtype}
    vae = network(*assets.load_component(folder, "vae", **half), "vae")
    whisper = network(*assets.load_component(folder, "whisper"), "whisper")
    perceiver = None
    if "perceiver" in pack.components:
        perceiver = network(*assets.load_component(folder, "perceiver"), "perceiver")
    return Generator(pack, unet, vae, whisper, perceiver)


def with_identity(generator: Generator, embeddings: Float[np.ndarray, "N E"]) -> Generator:
    """The generator for one person: the Perceiver's tokens, as keys and values, are in its weights."""
    _, graphdef, weights = generator.perceiver
    tokens = apply(graphdef, weights, jnp.asarray(embeddings)[None])
    weights, config = cache_identity(generator.unet.weights, generator.unet.config, tokens)
    graphdef, _ = params.abstract(assets.network_of("unet")[0], config)
    return generator._replace(unet=Network(config, graphdef, weights))


# ---- sound ------------------------------------------------------------------------------------------


def encode_audio(
    generator: Generator, samples: Float[np.ndarray, " N"], overlap: bool = True
) -> tuple[Float[Array, "L S C"], int]:
    """Whisper features of a recording on the device, and how many of their rows are its 20 ms steps.

    Rows behind those are zero, which `audio.window_indices` relies on.

    Args:
      generator: the pack's networks.
      samples: recording, mono float32 at 16 kHz.
      overlap: cross-fade segments that overlap by 5 s. The published programs run the encoder on
        independent 30 s segments, and the mouth collapses where they meet.
    """
    whisper, front_end = generator.whisper, generator.pack.audio_front_end
    stride = audio.STEPS_A_SEGMENT - (CROSS_FADE if overlap else 0)
    n_mels = whisper.config.n_mels
    segments, steps = audio.whisper_segments(samples, front_end, n_mels, stride)
    rows = stride * (len(segments) - 1) + audio.STEPS_A_SEGMENT + 1
    shape = (rows, whisper.config.n_audio_layer + 1, whisper.config.n_audio_state)
    # Added up in place: it is the largest thing that is held.
    features = np.zeros(shape, np.float32)
    for i, segment in enumerate(segments):
        states = apply(whisper.graphdef, whisper.weights, segment[None], front_end)[0]
        ramp = fade(len(states), i > 0, i < len(segments) - 1, audio.STEPS_A_SEGMENT - stride)
        features[i * stride :][: len(states)] += np.asarray(states) * ramp[:, None, None]
    features[steps:] = 0
    return jnp.asarray(features), steps


def rest_in_silence(
    generator: Generator,
    samples: Float[np.ndarray, " N"],
    features: Float[Array, "L S C"],
    steps: int,
) -> Float[Array, "L S C"]:
    """The features with those of digital silence wherever nobody speaks, so that the mouth rests there.

    Breath and room noise keep the published systems' mouths moving.
    """
    share = np.zeros(len(features), np.float32)
    share[:steps] = audio.silence(samples)[:steps]
    if not share.any():
        return features
    nothing, count = encode_audio(generator, np.zeros(2 * audio.SAMPLE_RATE, np.float32))
    rest = nothing[count // 2]
    return features + share[:, None, None] * (rest - features)


def fade(length: int, rise: bool, fall: bool, overlap: int) -> Float[np.ndarray, " L"]:
    """The share of a segment's rows: those it has in common with a neighbour are cross-faded."""
    ramp = (np.arange(overlap) + 1) / (overlap + 1)
    out = np.ones(length, np.float32)
    if rise:
        out[:overlap] = ramp
    if fall:
        out[length - overlap :] = ramp[::-1]
    return out


# ---- pictures ---------------------------------------------------------------------------------------


def make_step(generator: Generator, devices: list | None = None) -> Callable:
    """`step(crops, references, hidden, features, indices, guide_scale)` -> generated crops.

    Everything but `features` and the scale has a leading batch axis, and is sharded over the devices.

    Args of the step:
      crops: uint8 RGB (B, H, W, 3), the frames to dub.
      references: the same of frames that show the face to be kept.
      hidden: bool (B, H, W), where the generator must not see the crop; `lower_half` is the published
        mask.
      features: what `encode_audio` gave.
      indices: int32 (B, 10), what `audio.window_indices` gave.
      guide_scale: factor of the identity attention.
    """
    devices = devices or jax.devices()[:1]
    batch, whole = placements(devices)
    graphs = generator.unet.graphdef, generator.vae.graphdef
    weights = jax.device_put((generator.unet.weights, generator.vae.weights), whole)

    def step(crops, references, hidden, features, indices, guide_scale):
        frames = jax.device_put((crops, references, hidden, indices), batch)
        sound = jax.device_put((features, guide_scale), whole)
        return compiled_step()(graphs, weights, *frames, *sound)

    return step


def placements(devices: list) -> tuple[NamedSharding, NamedSharding]:
    """How arrays lie on the devices: divided over them by their first axis, and whole on each."""
    mesh = jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,))
    return tuple(NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))


@cache
def compiled_step() -> Callable:
    """`one_step`, compiled once for a pack and a batch size."""
    return jax.jit(one_step, static_argnums=0, compiler_options=compiler_options())


def compiler_options() -> dict[str, str] | None:
    """On a CPU: XLA's own convolutions, because YNN's pack their weights anew at every call.

    Products of matrices stay with YNN. It makes the full UNet a third faster at batch 1.
    """
    if jax.default_backend() != "cpu":
        return None
    return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def one_step(graphs, weights, crops, references, hidden, indices, features, guide_scale):
    """The arithmetic of `make_step`."""
    unet, vae = (params.bind(*pair) for pair in zip(graphs, weights, strict=True))
    blanked = jnp.where(hidden[..., None], 0, crops)
    images = jnp.concatenate([blanked, references]).astype(jnp.float32) / 127.5 - 1
    masked, reference = jnp.split(vae.encode(images), 2)
    windows = features[indices].reshape(len(indices), -1, features.shape[-1])
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
      inputs: crop, reference, hidden pixels and window indices, as the step takes them but without a batch
        axis; `None` for a frame that passes through.
      context: whatever the caller needs back with the result.
    """

    inputs: tuple[np.ndarray, ...] | None
    context: Any


def generate(
    step: Callable,
    frames: Iterable[Frame],
    batch_size: int,
    features: Float[Array, "L S C"],
    guide_scale: float,
    ahead: int = 2,
) -> Iterator[tuple[UInt8[np.ndarray, "H W 3"] | None, Any]]:
    """The generated crop (or `None`) and the context of every frame, in order.

    A batch that is not full is filled up with copies of its last frame, so one compiled step serves all.
    The device works on up to `ahead` batches while the caller handles the results before them.
    """

    def submit(part):
        inputs = [frame.inputs for frame in part if frame.inputs is not None]
        if not inputs:
            return part, ()
        filled = inputs + [inputs[-1]] * (batch_size - len(inputs))
        crops, references, hidden, indices = map(np.stack, zip(*filled, strict=True))
        scale = np.float32(guide_scale)
        return part, step(crops, references, hidden, features, indices, scale)

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
