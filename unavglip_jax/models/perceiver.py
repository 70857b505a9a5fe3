"""UnAvgLip's identity Perceiver: n face embeddings -> a few tokens for the UNet's cross-attention.

Two readings of arXiv 2503.06397. `feed_forward` is the resampler that the published code can run and the
parity target; `decoder` is the transformer decoder layer that the paper's figure shows. No weights of
either were published.
"""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unavglip_jax.config import NetworkConfig
from unavglip_jax.models import layers


class PerceiverConfig(NetworkConfig):
    """Shape of the Perceiver. `embedding_dim` is the face embedder's, `output_dim` the UNet's context."""

    dim: int = 384
    depth: int = 4
    dim_head: int = 64
    heads: int = 20
    num_queries: int = 4
    embedding_dim: int = 512
    output_dim: int = 384
    ff_mult: int = 4
    variant: Literal["feed_forward", "decoder"] = "feed_forward"


class Perceiver(nnx.Module):
    """`perceiver(embeddings)` -> tokens; the order of the embeddings does not matter."""

    def __init__(self, config: PerceiverConfig, *, rngs):
        dim = config.dim
        kw = layers.precision(config, rngs)
        scale = nnx.initializers.normal(dim**-0.5)
        shape = (1, config.num_queries, dim)
        self.latents = nnx.Param(scale(rngs.params(), shape, jnp.dtype(config.param_dtype)))
        self.proj_in = nnx.Linear(config.embedding_dim, dim, **kw)
        self.layers = nnx.List(
            [
                nnx.List([PerceiverAttention(config, **kw), transform(config, **kw)])
                for _ in range(config.depth)
            ]
        )
        self.proj_out = nnx.Linear(dim, config.output_dim, **kw)
        self.norm_out = layers.layer_norm(config.output_dim, **kw | {"dtype": jnp.float32})

    def __call__(self, embeddings: Float[Array, "B N E"]) -> Float[Array, "B M D"]:
        """Tokens (batch, num_queries, output_dim), float32, of N embeddings a person."""
        x = self.proj_in(embeddings)
        latents = self.latents.get_value().astype(x.dtype)
        latents = jnp.broadcast_to(latents, (len(x), *latents.shape[1:]))
        for attend, transform in self.layers:
            latents = latents + attend(x, latents)
            if isinstance(transform, DecoderLayer):
                latents = transform(latents, x)
            else:
                for_norm, narrow, _, widen = transform
                latents = latents + widen(layers.gelu(narrow(for_norm(latents))))
        return self.norm_out(self.proj_out(latents))


class PerceiverAttention(nnx.Module):
    """Attention from the latents to the embeddings and the latents themselves."""

    def __init__(self, config: PerceiverConfig, **kw):
        inner = config.heads * config.dim_head
        self.heads = config.heads
        self.norm1 = layers.layer_norm(config.dim, **kw)
        self.norm2 = layers.layer_norm(config.dim, **kw)
        self.to_q = nnx.Linear(config.dim, inner, use_bias=False, **kw)
        self.to_kv = nnx.Linear(config.dim, 2 * inner, use_bias=False, **kw)
        self.to_out = nnx.Linear(inner, config.dim, use_bias=False, **kw)

    def __call__(self, x, latents):
        x, latents = self.norm1(x), self.norm2(latents)
        key, value = jnp.split(self.to_kv(jnp.concatenate([x, latents], axis=1)), 2, axis=-1)
        return self.to_out(layers.attention(self.to_q(latents), key, value, self.heads))


def transform(config: PerceiverConfig, **kw) -> nnx.List | nnx.Module:
    """What follows the attention of a layer, in the variant asked for."""
    if config.variant == "decoder":
        return DecoderLayer(config.dim, **kw)
    inner = config.ff_mult * config.dim
    return layers.sequential(
        layers.layer_norm(config.dim, **kw),
        nnx.Linear(config.dim, inner, use_bias=False, **kw),
        None,
        nnx.Linear(inner, config.dim, use_bias=False, **kw),
    )


class DecoderLayer(nnx.Module):
    """A post-norm transformer decoder layer, as `torch.nn.TransformerDecoderLayer` in evaluation.

    The latents are the target and the embeddings the memory: the other order, which the published
    file has, gives as many tokens as embeddings and cannot be added to the latents.
    """

    def __init__(self, dim: int, **kw):
        self.self_attn = MultiheadAttention(dim, **kw)
        self.multihead_attn = MultiheadAttention(dim, **kw)
        self.linear1 = nnx.Linear(dim, 2048, **kw)
        self.linear2 = nnx.Linear(2048, dim, **kw)
        self.norm1 = layers.layer_norm(dim, **kw)
        self.norm2 = layers.layer_norm(dim, **kw)
        self.norm3 = layers.layer_norm(dim, **kw)

    def __call__(self, latents, memory):
        latents = self.norm1(latents + self.self_attn(latents, latents))
        latents = self.norm2(latents + self.multihead_attn(latents, memory))
        return self.norm3(latents + self.linear2(nnx.relu(self.linear1(latents))))


class MultiheadAttention(nnx.Module):
    """Attention with biases and heads of 64 channels; torch's packed `in_proj` as three layers."""

    def __init__(self, dim: int, **kw):
        self.heads = max(1, dim // 64)
        self.to_q = nnx.Linear(dim, dim, **kw)
        self.to_k = nnx.Linear(dim, dim, **kw)
        self.to_v = nnx.Linear(dim, dim, **kw)
        self.out_proj = nnx.Linear(dim, dim, **kw)

    def __call__(self, x, memory):
        return self.out_proj(
            layers.attention(self.to_q(x), self.to_k(memory), self.to_v(memory), self.heads)
        )
