"""The layers that the networks share: PyTorch's padding, epsilons and names on flax's NNX modules."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

M = TypeVar("M", bound=nnx.Module)


def precision(config, rngs) -> dict:
    """The keyword arguments that give a layer its compute dtype, weight dtype and initial values."""
    dtypes = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}
    return {**dtypes, "rngs": rngs}


def conv(
    in_features: int,
    out_features: int,
    kernel: int | Sequence[int] = 3,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    rank: int = 2,
    **precision,
) -> nnx.Conv:
    """A convolution with PyTorch's symmetric padding, channels last."""
    each = lambda value: (value,) * rank if isinstance(value, int) else tuple(value)
    return nnx.Conv(
        in_features,
        out_features,
        each(kernel),
        strides=each(stride),
        padding=tuple((p, p) for p in each(padding)),
        **precision,
    )


def group_norm(
    features: int, groups: int, epsilon: float, *, dtype, rngs, **_
) -> Callable[[Array], Array]:
    """GroupNorm computed in float32, with two-pass statistics; the result is `dtype`. 0 groups: no norm."""
    if not groups:
        return unchanged
    return nnx.GroupNorm(
        features,
        groups,
        epsilon=epsilon,
        use_fast_variance=False,
        dtype=dtype,
        promote_dtype=unchanged,
        rngs=rngs,
    )


def layer_norm(features: int, *, dtype, rngs, epsilon: float = 1e-5, **_) -> nnx.LayerNorm:
    """LayerNorm computed in float32, with two-pass statistics; the result is `dtype`."""
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        use_fast_variance=False,
        dtype=dtype,
        promote_dtype=unchanged,
        rngs=rngs,
    )


def batch_norm(features: int, *, dtype, rngs, **_) -> nnx.BatchNorm:
    """BatchNorm on its running statistics, as PyTorch's `eval()`, computed in float32."""
    return nnx.BatchNorm(
        features,
        use_running_average=True,
        epsilon=1e-5,
        momentum=0.9,
        dtype=dtype,
        promote_dtype=unchanged,
        rngs=rngs,
    )


def unchanged(arrays, **_):
    """What it is given: no norm; as a norm's `promote_dtype`, no rounding of its float32 weights first."""
    return arrays


def sequential(*entries: nnx.Module | None) -> nnx.List:
    """A list numbered as a torch `Sequential`; `None` stands for a member without parameters."""
    return nnx.List([nnx.Module() if entry is None else entry for entry in entries])


def attention(
    query: Float[Array, "B N C"],
    key: Float[Array, "B M C"],
    value: Float[Array, "B M C"],
    heads: int,
) -> Float[Array, "B N C"]:
    """softmax(q kᵀ / √d) v for each head of d = C / heads channels; the softmax is float32."""
    split = [x.reshape(*x.shape[:2], heads, -1) for x in (query, key, value)]
    attended = jax.lax.platform_dependent(
        *split, cpu=attention_by_head, default=jax.nn.dot_product_attention
    )
    return attended.reshape(query.shape)


def attention_by_head(
    query: Float[Array, "B N H D"], key: Float[Array, "B M H D"], value: Float[Array, "B M H D"]
) -> Float[Array, "B N H D"]:
    """`jax.nn.dot_product_attention`, one head at a time: the scores of one stay in a CPU's cache."""

    def one_head(operands):
        query, key, value = operands
        scores = jnp.einsum("bnd,bmd->bnm", query, key, preferred_element_type=jnp.float32)
        scores = scores - scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores * query.shape[-1] ** -0.5)
        out = jnp.einsum("bnm,bmd->bnd", weights.astype(value.dtype), value)
        return (out / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)

    heads = tuple(x.transpose(2, 0, 1, 3) for x in (query, key, value))
    return jax.lax.map(one_head, heads).transpose(1, 2, 0, 3)


def expect(what: str, x: Array, *axes: int | None) -> None:
    """Refuses an array that is not (batch, *axes); `None` stands for any length.

    Raises:
      ValueError: says what the array is, what it must be and what was given.
    """
    given = x.shape[1:]
    if len(given) != len(axes) or any(
        axis not in (None, length) for axis, length in zip(axes, given, strict=True)
    ):
        wanted = ", ".join("any" if axis is None else str(axis) for axis in axes)
        raise ValueError(f"{what} must be (batch, {wanted}), not {x.shape}")


def gelu(x: Array) -> Array:
    """The exact (erf) GELU, PyTorch's default."""
    return jax.nn.gelu(x, approximate=False)


class FeedForward(nnx.Module):
    """GEGLU feed-forward of the diffusers transformer blocks: C -> 8C, value * gelu(gate), 4C -> C."""

    def __init__(self, features: int, **precision):
        gate = nnx.Module()
        gate.proj = nnx.Linear(features, 8 * features, **precision)
        self.net = sequential(gate, None, nnx.Linear(4 * features, features, **precision))

    def __call__(self, x):
        value, gate = jnp.split(self.net[0].proj(x), 2, axis=-1)
        return self.net[2](value * gelu(gate))


def run(remat: bool, layer: nnx.Module, *inputs):
    """`layer(*inputs)`; with `remat` its activations are computed again in the backward pass, not kept."""
    call = lambda layer, *inputs: layer(*inputs)
    return (jax.checkpoint(call) if remat else call)(layer, *inputs)


def upsample_nearest(x: Float[Array, "B H W C"]) -> Float[Array, "B 2H 2W C"]:
    """Each pixel twice in both directions."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def max_pool(x: Array, window: Sequence[int], stride: Sequence[int], padding=None) -> Array:
    """Max pooling over the axes between batch and channels; `padding` as in PyTorch, default 0."""
    pads = [(0, 0), *((p, p) for p in padding or [0] * len(window)), (0, 0)]
    dims, strides = (1, *window, 1), (1, *stride, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, dims, strides, pads)


def l2_normalize(x: Array) -> Array:
    """x / max(‖x‖₂, 1e-12) over the last axis, in float32 (torch.nn.functional.normalize)."""
    x = x.astype(jnp.float32)
    squared = (x * x).sum(axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared, 1e-24))  # not of 0, where its gradient is not a number


def timestep_embedding(timestep: Int[Array, " B"], features: int) -> Float[Array, "B C"]:
    """Sinusoids of a diffusion timestep as diffusers computes them for SD-1.x: cosines first."""
    frequencies = np.exp(-np.log(10000.0) * np.arange(features // 2) / (features // 2))
    angles = timestep.astype(jnp.float32)[:, None] * frequencies.astype(np.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def audio_positions(length: int, features: int) -> Float[np.ndarray, "N C"]:
    """Positions that MuseTalk adds to the audio tokens: sines at even channels, cosines at odd."""
    frequencies = np.exp(np.arange(0, features, 2) * (-np.log(10000.0) / features))
    angles = np.arange(length)[:, None] * frequencies
    return (
        np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, features).astype("f4")
    )
