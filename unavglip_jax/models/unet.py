"""The SD-1.x conditional UNet of MuseTalk, with UnAvgLip's identity adapter.

One call at timestep 0 maps masked-face and reference-face latents plus 50 audio tokens to the latents of
the dubbed face. The adapter (UnAvgLip, arXiv 2503.06397) adds rank-128 LoRA to every attention and, in
the cross-attentions, a second attention to the identity tokens. Parameter paths are those of diffusers'
`UNet2DConditionModel` (0.27) with UnAvgLip's attention processors.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from unavglip_jax.config import NetworkConfig
from unavglip_jax.models import layers
from unavglip_jax.params import Params


class UNetConfig(NetworkConfig):
    """Shape of the UNet. The defaults are MuseTalk's; `lora_rank=128, identity="tokens"` is UnAvgLip's.

    Attributes:
      in_channels: 8 (masked + reference latents), 9, 12 or 13 with masks or drawings in front.
      cross_attention: which levels have transformers, from the highest resolution down.
      heads: attention heads at every level (diffusers calls it `attention_head_dim`).
      lora_rank: 0 for none; also what `merge_lora` leaves.
      identity: "none"; "tokens" computes keys and values from identity tokens; "cached" has them as
        parameters, which is what `cache_identity` makes.
      time_embedding: False once `fold_timestep` has moved its constant into the convolutions.
      remat: while training, keep only what goes between resnets and transformers.
    """

    in_channels: int = 8
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    cross_attention: tuple[bool, ...] = (True, True, True, False)
    cross_attention_dim: int = 384
    heads: int = 8
    norm_num_groups: int = 32
    lora_rank: int = 0
    identity: Literal["none", "tokens", "cached"] = "none"
    time_embedding: bool = True
    remat: bool = False


class Condition(NamedTuple):
    """What every attention sees besides its own tokens."""

    audio: Float[Array, "B N D"]
    identity_tokens: Float[Array, "B M D"] | None
    lora_scale: Float[Array, ""] | float
    guide_scale: Float[Array, ""] | float


class UNet(nnx.Module):
    """`unet(latents, timestep, audio, identity_tokens)` -> latents of the dubbed face."""

    def __init__(self, config: UNetConfig, *, rngs):
        self.config = config
        widths = config.block_out_channels
        kw = layers.precision(config, rngs)
        self.conv_in = layers.conv(config.in_channels, widths[0], padding=1, **kw)
        if config.time_embedding:
            self.time_embedding = nnx.Module()
            self.time_embedding.linear_1 = nnx.Linear(widths[0], 4 * widths[0], **kw)
            self.time_embedding.linear_2 = nnx.Linear(4 * widths[0], 4 * widths[0], **kw)

        self.down_blocks, skips = nnx.List(), [widths[0]]
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            inputs = [skips[-1], *[width] * (config.layers_per_block - 1)]
            self.down_blocks.append(
                Block(
                    inputs,
                    width,
                    config.cross_attention[level],
                    None if last else "down",
                    config,
                    **kw,
                )
            )
            skips += [width] * (config.layers_per_block + (not last))

        self.mid_block = MidBlock(widths[-1], config, **kw)

        self.up_blocks, hidden = nnx.List(), widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            inputs = []
            for _ in range(config.layers_per_block + 1):
                inputs.append(hidden + skips.pop())
                hidden = width
            self.up_blocks.append(
                Block(
                    inputs,
                    width,
                    config.cross_attention[level],
                    "up" if level else None,
                    config,
                    **kw,
                )
            )

        kw["dtype"] = jnp.float32  # the head is float32
        self.conv_norm_out = layers.group_norm(widths[0], config.norm_num_groups, 1e-5, **kw)
        self.conv_out = layers.conv(widths[0], config.out_channels, padding=1, **kw)

    def __call__(
        self,
        latents: Float[Array, "B H W C"],
        timestep: Int[Array, " B"] | int,
        audio: Float[Array, "B N D"],
        identity_tokens: Float[Array, "B M D"] | None = None,
        lora_scale: float = 1.0,
        guide_scale: float = 1.0,
    ) -> Float[Array, "B H W O"]:
        """Latents of the generated face, scaled as the VAE's (x 0.18215), in float32.

        Args:
          latents: masked-face latents, then reference-face latents, on the channel axis.
          timestep: 0 for UnAvgLip and MuseTalk.
          audio: windows of audio features, positions already added.
          identity_tokens: the Perceiver's tokens; only for `identity="tokens"`.
          lora_scale: factor of every LoRA; 1 in all published use.
          guide_scale: factor of the identity branch alone. 0 leaves LoRA on, so it is not MuseTalk.

        Raises:
          ValueError: height or width cannot be halved at every level, or identity tokens are given to
            a network without them or missing from one that has them.
        """
        run = partial(layers.run, self.config.remat)
        factor = 2 ** (len(self.down_blocks) - 1)
        if latents.shape[1] % factor or latents.shape[2] % factor:
            raise ValueError(f"latents of {latents.shape[1:3]} must be multiples of {factor}")
        if (identity_tokens is not None) != (self.config.identity == "tokens"):
            raise ValueError(f'identity_tokens do not fit identity="{self.config.identity}"')

        condition = Condition(audio, identity_tokens, lora_scale, guide_scale)
        temb = self.embed(timestep, len(latents)) if self.config.time_embedding else None
        hidden = self.conv_in(latents)
        skips = [hidden]
        for block in self.down_blocks:
            for resnet, transformer in block.layers():
                hidden = run(resnet, hidden, temb)
                if transformer:
                    hidden = run(transformer, hidden, condition)
                skips.append(hidden)
            if block.downsamplers:
                hidden = block.downsamplers[0].conv(hidden)
                skips.append(hidden)

        hidden = run(self.mid_block.resnets[0], hidden, temb)
        hidden = run(self.mid_block.attentions[0], hidden, condition)
        hidden = run(self.mid_block.resnets[1], hidden, temb)

        for block in self.up_blocks:
            for resnet, transformer in block.layers():
                hidden = run(resnet, jnp.concatenate([hidden, skips.pop()], axis=-1), temb)
                if transformer:
                    hidden = run(transformer, hidden, condition)
            if block.upsamplers:
                hidden = block.upsamplers[0].conv(layers.upsample_nearest(hidden))
        return self.conv_out(jax.nn.silu(self.conv_norm_out(hidden)))

    def embed(self, timestep, batch: int) -> Float[Array, "B E"]:
        """The time embedding, before the SiLU that each resnet applies to it."""
        timestep = jnp.broadcast_to(jnp.asarray(timestep), (batch,))
        temb = layers.timestep_embedding(timestep, self.config.block_out_channels[0])
        return self.time_embedding.linear_2(jax.nn.silu(self.time_embedding.linear_1(temb)))


class Block(nnx.Module):
    """One level: resnets, each followed by a transformer where there are any, then a resampling."""

    def __init__(self, inputs, width, cross_attention, resample, config, **kw):
        self.resnets = nnx.List([ResnetBlock(n, width, config, **kw) for n in inputs])
        self.attentions = nnx.List(
            [Transformer2D(width, config, **kw) for _ in inputs] if cross_attention else []
        )
        self.downsamplers = nnx.List([Resample(width, 2, **kw)] if resample == "down" else [])
        self.upsamplers = nnx.List([Resample(width, 1, **kw)] if resample == "up" else [])

    def layers(self):
        """Pairs of a resnet and its transformer, `None` where the level has none."""
        return zip(self.resnets, self.attentions or [None] * len(self.resnets), strict=True)


class MidBlock(nnx.Module):
    """Resnet, transformer, resnet at the lowest resolution."""

    def __init__(self, width, config, **kw):
        self.resnets = nnx.List([ResnetBlock(width, width, config, **kw) for _ in range(2)])
        self.attentions = nnx.List([Transformer2D(width, config, **kw)])


class Resample(nnx.Module):
    """The 3x3 convolution that halves the resolution (stride 2) or follows its doubling (stride 1)."""

    def __init__(self, width, stride, **kw):
        self.conv = layers.conv(width, width, stride=stride, padding=1, **kw)


class ResnetBlock(nnx.Module):
    """norm-SiLU-conv twice, the time embedding added between."""

    def __init__(self, in_features, out_features, config, **kw):
        self.norm1 = layers.group_norm(in_features, config.norm_num_groups, 1e-5, **kw)
        self.conv1 = layers.conv(in_features, out_features, padding=1, **kw)
        if config.time_embedding:
            embedding = 4 * config.block_out_channels[0]
            self.time_emb_proj = nnx.Linear(embedding, out_features, **kw)
        self.norm2 = layers.group_norm(out_features, config.norm_num_groups, 1e-5, **kw)
        self.conv2 = layers.conv(out_features, out_features, padding=1, **kw)
        if in_features != out_features:
            self.conv_shortcut = layers.conv(in_features, out_features, 1, **kw)

    def __call__(self, x, temb):
        hidden = self.conv1(jax.nn.silu(self.norm1(x)))
        if temb is not None:
            hidden = hidden + self.time_emb_proj(jax.nn.silu(temb))[:, None, None]
        hidden = self.conv2(jax.nn.silu(self.norm2(hidden)))
        return hidden + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Transformer2D(nnx.Module):
    """One transformer block over the pixels, between two 1x1 convolutions."""

    def __init__(self, features, config, **kw):
        self.norm = layers.group_norm(features, config.norm_num_groups, 1e-6, **kw)
        self.proj_in = layers.conv(features, features, 1, **kw)
        self.transformer_blocks = nnx.List([TransformerBlock(features, config, **kw)])
        self.proj_out = layers.conv(features, features, 1, **kw)

    def __call__(self, x, condition: Condition):
        batch, height, width, features = x.shape
        tokens = self.proj_in(self.norm(x)).reshape(batch, height * width, features)
        tokens = self.transformer_blocks[0](tokens, condition)
        return x + self.proj_out(tokens.reshape(batch, height, width, features))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention to audio (and identity), GEGLU feed-forward; all pre-norm."""

    def __init__(self, features, config, **kw):
        self.norm1 = layers.layer_norm(features, **kw)
        self.attn1 = Attention(features, features, config, identity="none", **kw)
        self.norm2 = layers.layer_norm(features, **kw)
        context = config.cross_attention_dim
        self.attn2 = Attention(features, context, config, identity=config.identity, **kw)
        self.norm3 = layers.layer_norm(features, **kw)
        self.ff = layers.FeedForward(features, **kw)

    def __call__(self, x, condition: Condition):
        hidden = self.norm1(x)
        x = x + self.attn1(hidden, hidden, condition)
        x = x + self.attn2(self.norm2(x), condition.audio, condition)
        return x + self.ff(self.norm3(x))


class Attention(nnx.Module):
    """Multi-head attention; with an adapter, LoRA on its four projections and identity beside audio."""

    def __init__(self, features, context, config, *, identity, **kw):
        self.heads = config.heads
        self.to_q = nnx.Linear(features, features, use_bias=False, **kw)
        self.to_k = nnx.Linear(context, features, use_bias=False, **kw)
        self.to_v = nnx.Linear(context, features, use_bias=False, **kw)
        self.to_out = nnx.List([nnx.Linear(features, features, **kw)])
        if config.lora_rank or identity != "none":
            self.processor = Adapter(features, context, config, identity, **kw)

    def __call__(self, x, context, condition: Condition):
        adapter = getattr(self, "processor", None)

        def project(layer, lora, inputs):
            out = layer(inputs)
            if hasattr(adapter, lora):
                out = out + (condition.lora_scale * getattr(adapter, lora)(inputs)).astype(
                    out.dtype
                )
            return out

        query = project(self.to_q, "to_q_lora", x)
        key = project(self.to_k, "to_k_lora", context)
        value = project(self.to_v, "to_v_lora", context)
        hidden = layers.attention(query, key, value, self.heads)
        if adapter and adapter.identity != "none":
            key, value = adapter.identity_key_value(condition.identity_tokens, query.shape[0])
            attended = layers.attention(
                query, key.astype(query.dtype), value.astype(query.dtype), self.heads
            )
            hidden = hidden + (condition.guide_scale * attended).astype(hidden.dtype)
        return project(self.to_out[0], "to_out_lora", hidden)


class Adapter(nnx.Module):
    """The trained part of one attention. Float32, because bfloat16 swallows small updates."""

    def __init__(self, features, context, config, identity, *, rngs, **_):
        self.identity = identity
        kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": rngs}
        if rank := config.lora_rank:
            self.to_q_lora = Lora(features, features, rank, **kw)
            self.to_k_lora = Lora(context, features, rank, **kw)
            self.to_v_lora = Lora(context, features, rank, **kw)
            self.to_out_lora = Lora(features, features, rank, **kw)
        if identity == "tokens":
            self.to_k_ip = nnx.Linear(context, features, use_bias=False, **kw)
            self.to_v_ip = nnx.Linear(context, features, use_bias=False, **kw)
        if identity == "cached":
            # One row stands for any number: `cache_identity` gives (1, tokens, features).
            self.identity_key = nnx.Param(jnp.zeros((1, 1, features)))
            self.identity_value = nnx.Param(jnp.zeros((1, 1, features)))

    def identity_key_value(self, tokens, batch):
        """Keys and values of the identity tokens, (batch, tokens, features)."""
        if self.identity == "tokens":
            return self.to_k_ip(tokens), self.to_v_ip(tokens)
        cached = (self.identity_key.get_value(), self.identity_value.get_value())
        return tuple(jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in cached)


class Lora(nnx.Module):
    """x -> up(down(x)); starts as zero."""

    def __init__(self, in_features, out_features, rank, **kw):
        normal = nnx.initializers.normal(1 / rank)
        zeros = nnx.initializers.zeros
        self.down = nnx.Linear(in_features, rank, use_bias=False, kernel_init=normal, **kw)
        self.up = nnx.Linear(rank, out_features, use_bias=False, kernel_init=zeros, **kw)

    def __call__(self, x):
        return self.up(self.down(x))


# ---- functions on parameters ------------------------------------------------------------------------


def init_identity(params: Params) -> Params:
    """Identity keys and values started as copies of the audio ones, as IP-Adapter and UnAvgLip do."""
    copies = {}
    for name, leaf in params.items():
        source = name.replace("processor/to_k_ip", "to_k").replace("processor/to_v_ip", "to_v")
        if source != name:
            copies[name] = params[source].astype(leaf.dtype)
    return params | copies


def merge_lora(
    params: Params, config: UNetConfig, lora_scale: float = 1.0
) -> tuple[Params, UNetConfig]:
    """W + lora_scale * down @ up in place of W and its LoRA; one matrix product instead of three."""
    merged = {name: leaf for name, leaf in params.items() if "_lora/" not in name}
    for name, down in params.items():
        if name.endswith("_lora/down/kernel"):
            up = params[name.replace("/down/", "/up/")]
            base = name.replace("/processor", "").replace("_lora/down/", "/")
            base = base.replace("to_out/", "to_out/0/")
            product = jnp.matmul(down, up, precision="highest")
            kernel = params[base].astype(jnp.float32) + lora_scale * product
            merged[base] = kernel.astype(params[base].dtype)
    return merged, config.replace(lora_rank=0)


def fold_timestep(
    params: Params, config: UNetConfig, timestep: int = 0
) -> tuple[Params, UNetConfig]:
    """The time branch of a constant timestep added to the bias of each resnet's first convolution."""
    dense = lambda x, path: (
        jnp.matmul(x, params[f"{path}/kernel"].astype(jnp.float32), precision="highest")
        + params[f"{path}/bias"].astype(jnp.float32)
    )
    temb = layers.timestep_embedding(jnp.array([timestep]), config.block_out_channels[0])
    temb = dense(jax.nn.silu(dense(temb, "time_embedding/linear_1")), "time_embedding/linear_2")
    folded = {k: v for k, v in params.items() if "time_emb" not in k}
    for name in params:
        if name.endswith("time_emb_proj/kernel"):
            shift = dense(jax.nn.silu(temb), name.removesuffix("/kernel"))[0]
            bias = name.replace("time_emb_proj/kernel", "conv1/bias")
            folded[bias] = (params[bias].astype(jnp.float32) + shift).astype(params[bias].dtype)
    return folded, config.replace(time_embedding=False)


def cache_identity(
    params: Params, config: UNetConfig, identity_tokens: Float[Array, "1 M D"]
) -> tuple[Params, UNetConfig]:
    """The identity projections replaced by the keys and values of one video's tokens."""
    cached = {}
    for name, leaf in params.items():
        if name.endswith(("to_k_ip/kernel", "to_v_ip/kernel")):
            kind = "identity_key" if "to_k_ip" in name else "identity_value"
            projected = jnp.matmul(identity_tokens.astype(leaf.dtype), leaf, precision="highest")
            cached[name.rsplit("/", 2)[0] + "/" + kind] = projected
        else:
            cached[name] = leaf
    return cached, config.replace(identity="cached")
