"""The networks of a pack in PyTorch, on diffusers' and transformers' modules where those have them.

They judge the JAX networks (`torch_judge`), so they are written from the published descriptions and share
nothing with `models/` but the configurations. Modules bear the names of the published state dicts, which
are those of a pack's weights. Arrays are channels first, as is PyTorch's way.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention import Attention, FeedForward
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig as TransformersConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from unavglip_jax import assets
from unavglip_jax.config import AudioFrontEnd, InputError, NetworkConfig
from unavglip_jax.convert.state_dict import to_torch
from unavglip_jax.convert.whisper import TRANSFORMERS
from unavglip_jax.models.perceiver import PerceiverConfig
from unavglip_jax.models.stable_syncnet import EncoderConfig, StableSyncNetConfig
from unavglip_jax.models.syncnet_v2 import SyncNetV2Config
from unavglip_jax.models.unet import UNetConfig
from unavglip_jax.models.vae import VAEConfig
from unavglip_jax.models.wav2lip_syncnet import Wav2LipSyncNetConfig
from unavglip_jax.models.whisper import WhisperConfig
from unavglip_jax.params import Params


def load(folder: str | Path, name: str, **options) -> tuple[NetworkConfig, nn.Module]:
    """Configuration and network of one component of a pack, float32, on the CPU, for inference.

    "unet" has the pack's adapter in it, its LoRA not merged.

    Args:
      folder: the pack.
      name: a key of `NETWORKS`.
      **options: of the function that makes the network, besides its configuration.

    Raises:
      InputError: the pack has no such network, it is damaged, or it has no counterpart here.
    """
    if name not in NETWORKS:
        raise InputError(f"there is no {name} in PyTorch; there are {', '.join(NETWORKS)}")
    if name == "unet":
        config, weights = assets.load_generator(folder)
    else:
        config, weights = assets.load_component(folder, name)
    return config, build(name, config, weights, **options)


def build(name: str, config: NetworkConfig, weights: Params, **options) -> nn.Module:
    """The network `name` with the weights of a pack; the rest is as for `load`.

    Raises:
      RuntimeError: a weight is missing, left over, or of another shape.
    """
    with torch.device("meta"):  # or a full UNet would be drawn at random first
        module = NETWORKS[name](config, **options)
    arrays = to_torch(weights)  # of which only some are copies, and so writable
    state = {k: torch.from_numpy(np.require(v, np.float32, "W")) for k, v in arrays.items()}
    if name == "whisper":
        state = {transformers_name(key): tensor for key, tensor in state.items()}
    if name == "perceiver":
        state = packed(state)
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


# ---- the generator ----------------------------------------------------------------------------------


def unet(
    config: UNetConfig, tokens: int = 4, lora_scale: float = 1.0, guide_scale: float = 1.0
) -> UNet2DConditionModel:
    """MuseTalk's UNet and, if the configuration has an adapter, UnAvgLip's attention processors in it.

    Args:
      config: with `time_embedding`, and `identity` not cached.
      tokens: how many of the encoder states, the last ones, are identity tokens.
      lora_scale: factor of every LoRA; 1 in all published use.
      guide_scale: factor of the identity attention.
    """
    kinds = lambda levels, way: tuple(
        f"CrossAttn{way}Block2D" if cross else f"{way}Block2D" for cross in levels
    )
    made = UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=kinds(config.cross_attention, "Down"),
        up_block_types=kinds(reversed(config.cross_attention), "Up"),
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.heads,  # the number of heads, in spite of its name
        norm_num_groups=config.norm_num_groups,
    )
    if config.lora_rank or config.identity == "tokens":
        processors = {}
        for name in made.attn_processors:
            layer = made.get_submodule(name.removesuffix(".processor"))
            shown = tokens if config.identity == "tokens" and ".attn2." in name else 0
            processors[name] = Adapter(layer, config.lora_rank, shown, lora_scale, guide_scale)
        made.set_attn_processor(processors)
    return made


class Adapter(nn.Module):
    """UnAvgLip's attention processor (arXiv 2503.06397): LoRA, and identity attended to beside the audio.

    Without a rank there is no LoRA, without tokens no identity.
    """

    def __init__(
        self, attention: Attention, rank: int, tokens: int, lora_scale: float, guide_scale: float
    ):
        super().__init__()
        self.tokens, self.lora_scale, self.guide_scale = tokens, lora_scale, guide_scale
        features, context = attention.to_q.in_features, attention.to_k.in_features
        widths = {"q": features, "k": context, "v": context, "out": features} if rank else {}
        for name, width in widths.items():
            lora = nn.Module()
            lora.down = nn.Linear(width, rank, bias=False)
            lora.up = nn.Linear(rank, features, bias=False)
            self.add_module(f"to_{name}_lora", lora)
        if tokens:
            self.to_k_ip = nn.Linear(context, features, bias=False)
            self.to_v_ip = nn.Linear(context, features, bias=False)

    def forward(self, attention, hidden_states, encoder_hidden_states=None, *_, **__) -> Tensor:
        """What the attention adds to the hidden states."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        audio, identity = context[:, : context.shape[1] - self.tokens], context[:, -self.tokens :]

        def project(name: str, layer: nn.Linear, x: Tensor) -> Tensor:
            lora = getattr(self, f"to_{name}_lora", None)
            if lora is None:
                return layer(x)
            return torch.add(layer(x), lora.up(lora.down(x)), alpha=self.lora_scale)

        query = project("q", attention.to_q, hidden_states)
        key, value = project("k", attention.to_k, audio), project("v", attention.to_v, audio)
        out = attended(query, key, value, attention.heads)
        if self.tokens:
            key, value = self.to_k_ip(identity), self.to_v_ip(identity)
            shown = attended(query, key, value, attention.heads)
            out = torch.add(out, shown, alpha=self.guide_scale)
        return project("out", attention.to_out[0], out)


def attended(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(q kᵀ / √d) v for each head; all (batch, tokens, features)."""
    split = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def vae(config: VAEConfig) -> AutoencoderKL:
    """Stable Diffusion's auto-encoder.

    Raises:
      InputError: it folds pixels into patches or has no norms, which diffusers' cannot.
    """
    if config.patch_size > 1 or not config.norm_num_groups:
        raise InputError(
            "the auto-encoder works on patches or without norms, which diffusers' does not; "
            "compare the networks of a full-size pack"
        )
    levels = len(config.block_out_channels)
    return AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        scaling_factor=config.scaling_factor,
    )


def whisper(config: WhisperConfig) -> WhisperEncoder:
    """Whisper's encoder; `whisper_states` runs it."""
    made = TransformersConfig(
        num_mel_bins=config.n_mels,
        max_source_positions=config.n_audio_ctx,
        d_model=config.n_audio_state,
        encoder_attention_heads=config.n_audio_head,
        encoder_layers=config.n_audio_layer,
        encoder_ffn_dim=4 * config.n_audio_state,
        attn_implementation="sdpa",
    )
    return WhisperEncoder(made)


def whisper_states(
    encoder: WhisperEncoder, mel: Float[Tensor, "B M T"], front_end: AudioFrontEnd
) -> Float[Tensor, "B T/2 L C"]:
    """All hidden states of a log-mel spectrogram.

    transformers puts the last one through the final norm, which is "v15"; "v10" leaves it as it is.
    """
    raw = []
    hook = encoder.layer_norm.register_forward_pre_hook(lambda _, inputs: raw.append(inputs[0]))
    states = list(encoder(mel, output_hidden_states=True).hidden_states)
    hook.remove()
    if front_end == "v10":
        states[-1] = raw[0]
    return torch.stack(states, dim=2)


def transformers_name(name: str) -> str:
    """transformers' name of a tensor of Whisper's encoder that has OpenAI's."""
    ours = {openai: theirs for theirs, openai in TRANSFORMERS.items()}
    names = "|".join(map(re.escape, ours))
    return re.sub(rf"(?<![^.])({names})(?![^.])", lambda found: ours[found[1]], name)


class Perceiver(nn.Module):
    """UnAvgLip's identity Perceiver: any number of face embeddings -> a few tokens."""

    def __init__(self, config: PerceiverConfig):
        super().__init__()
        dim = config.dim
        self.latents = nn.Parameter(torch.randn(1, config.num_queries, dim) * dim**-0.5)
        self.proj_in = nn.Linear(config.embedding_dim, dim)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(config), transform(config)])
            for _ in range(config.depth)
        )
        self.proj_out = nn.Linear(dim, config.output_dim)
        self.norm_out = nn.LayerNorm(config.output_dim)

    def forward(self, embeddings: Float[Tensor, "B N E"]) -> Float[Tensor, "B M D"]:
        """Identity tokens."""
        x = self.proj_in(embeddings)
        latents = self.latents.expand(len(x), -1, -1)
        for attend, transform in self.layers:
            latents = latents + attend(x, latents)
            if isinstance(transform, nn.TransformerDecoderLayer):
                latents = transform(latents, x)
            else:
                latents = latents + transform(latents)
        return self.norm_out(self.proj_out(latents))


class PerceiverAttention(nn.Module):
    """Attention from the latents to the embeddings and the latents themselves."""

    def __init__(self, config: PerceiverConfig):
        super().__init__()
        self.heads, inner = config.heads, config.heads * config.dim_head
        self.norm1, self.norm2 = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.to_q = nn.Linear(config.dim, inner, bias=False)
        self.to_kv = nn.Linear(config.dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, config.dim, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """What it adds to the latents."""
        x, latents = self.norm1(x), self.norm2(latents)
        key, value = self.to_kv(torch.cat([x, latents], dim=1)).chunk(2, dim=-1)
        return self.to_out(attended(self.to_q(latents), key, value, self.heads))


def transform(config: PerceiverConfig) -> nn.Module:
    """What follows the attention: a feed-forward network, or the decoder layer of the paper's figure."""
    dim, inner = config.dim, config.ff_mult * config.dim
    if config.variant == "decoder":
        return nn.TransformerDecoderLayer(dim, max(1, dim // 64), 2048, batch_first=True)
    narrow, widen = nn.Linear(dim, inner, bias=False), nn.Linear(inner, dim, bias=False)
    return nn.Sequential(nn.LayerNorm(dim), narrow, nn.GELU(), widen)


def packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The projections of decoder layers' attentions as PyTorch has them: three in one matrix."""
    out = dict(state)
    for name in state:
        if found := re.fullmatch(r"(.*_attn\.)to_q\.(weight|bias)", name):
            parts = [out.pop(f"{found[1]}to_{part}.{found[2]}") for part in "qkv"]
            out[f"{found[1]}in_proj_{found[2]}"] = torch.cat(parts)
    return out


# ---- the judges of lip sync -------------------------------------------------------------------------


class SyncNetV2(nn.Module):
    """SyncNet of Chung and Zisserman, version 2, behind LSE-C and LSE-D."""

    def __init__(self, config: SyncNetV2Config):
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *conv_norm(1, 64, 3, padding=1),
            nn.Identity(),
            *conv_norm(64, 192, 3, padding=1),
            nn.MaxPool2d(3, (1, 2)),
            *conv_norm(192, 384, 3, padding=1),
            *conv_norm(384, 256, 3, padding=1),
            *conv_norm(256, 256, 3, padding=1),
            nn.MaxPool2d(3, 2),
            *conv_norm(256, 512, (5, 4)),
        )
        pool = lambda padding: nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding)
        same = {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)}
        self.netcnnlip = nn.Sequential(
            *conv_norm(3, 96, (5, 7, 7), stride=(1, 2, 2)),
            pool(0),
            *conv_norm(96, 256, (1, 5, 5), stride=(1, 2, 2), padding=(0, 1, 1)),
            pool((0, 1, 1)),
            *conv_norm(256, 256, **same),
            *conv_norm(256, 256, **same),
            *conv_norm(256, 256, **same),
            pool(0),
            *conv_norm(256, 512, (1, 6, 6)),
        )
        self.netfcaud, self.netfclip = (
            nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))
            for _ in range(2)
        )

    def audio(self, mfcc: Float[Tensor, "B 1 13 20"]) -> Float[Tensor, "B 1024"]:
        """Embedding of 20 rows of 13 MFCCs of int16 samples."""
        return self.netfcaud(self.netcnnaud(mfcc).flatten(1))

    def lip(self, frames: Float[Tensor, "B 3 5 224 224"]) -> Float[Tensor, "B 1024"]:
        """Embedding of five face crops, BGR from 0 to 255."""
        return self.netfclip(self.netcnnlip(frames).flatten(1))


def conv_norm(inputs: int, outputs: int, kernel_size: int | tuple, **options) -> tuple:
    """Convolution over the axes that the kernel has, batch norm, ReLU."""
    if isinstance(kernel_size, tuple) and len(kernel_size) == 3:
        conv, norm = nn.Conv3d, nn.BatchNorm3d
    else:
        conv, norm = nn.Conv2d, nn.BatchNorm2d
    return conv(inputs, outputs, kernel_size, **options), norm(outputs), nn.ReLU()


class Wav2LipSyncNet(nn.Module):
    """Wav2Lip's lip-sync expert (arXiv 2008.10010)."""

    def __init__(self, config: Wav2LipSyncNetConfig):
        super().__init__()
        self.face_encoder = nn.Sequential(
            Conv(15, 32, 7, 1, 3),
            *level(32, 64, 5, (1, 2), 2),
            *level(64, 128, 3, 2, 3),
            *level(128, 256, 3, 2, 2),
            *level(256, 512, 3, 2, 2),
            Conv(512, 512, 3, 2, 1),
            Conv(512, 512, 3, 1, 0),
            Conv(512, 512, 1, 1, 0),
        )
        self.audio_encoder = nn.Sequential(
            *level(1, 32, 3, 1, 2),
            *level(32, 64, 3, (3, 1), 2),
            *level(64, 128, 3, 3, 2),
            *level(128, 256, 3, (3, 2), 2),
            Conv(256, 512, 3, 1, 0),
            Conv(512, 512, 1, 1, 0),
        )

    def audio(self, mel: Float[Tensor, "B 1 80 16"]) -> Float[Tensor, "B 512"]:
        """Unit vector of 16 columns of Wav2Lip's mel."""
        return functional.normalize(self.audio_encoder(mel).flatten(1))

    def face(self, frames: Float[Tensor, "B 15 48 96"]) -> Float[Tensor, "B 512"]:
        """Unit vector of five lower half faces, BGR in [0, 1], channel 3 * frame + colour."""
        return functional.normalize(self.face_encoder(frames).flatten(1))


def level(inputs: int, width: int, kernel: int, stride, residuals: int) -> list[nn.Module]:
    """A convolution that changes the resolution, and residual ones that do not."""
    residual = [Conv(width, width, 3, 1, 1, residual=True) for _ in range(residuals)]
    return [Conv(inputs, width, kernel, stride, 1), *residual]


class Conv(nn.Module):
    """Convolution, batch norm, the input where it is residual, ReLU."""

    def __init__(self, inputs, outputs, kernel, stride, padding, residual=False):
        super().__init__()
        self.residual = residual
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.conv_block = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        hidden = self.conv_block(x)
        return functional.relu(hidden + x if self.residual else hidden)


class StableSyncNet(nn.Module):
    """StableSyncNet (LatentSync, arXiv 2412.09262)."""

    def __init__(self, config: StableSyncNetConfig):
        super().__init__()
        rest = config.heads, config.norm_num_groups
        self.audio_encoder = Encoder(config.audio_encoder, *rest)
        self.visual_encoder = Encoder(config.visual_encoder, *rest)

    def audio(self, mel: Float[Tensor, "B 1 M T"]) -> Float[Tensor, "B D"]:
        """Unit vector of Wav2Lip's mel."""
        return functional.normalize(self.audio_encoder(mel))

    def visual(self, frames: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """Unit vector of successive frames, or of their latents, as channels of one picture."""
        return functional.normalize(self.visual_encoder(frames))


class Encoder(nn.Module):
    """Residual blocks, each reducing the resolution, down to one pixel; then norm and ReLU."""

    def __init__(self, shape: EncoderConfig, heads: int, groups: int):
        super().__init__()
        before = shape.block_out_channels[0]
        self.conv_in = nn.Conv2d(shape.in_channels, before, 3, padding=1)
        self.down_blocks = nn.ModuleList()
        levels = zip(shape.block_out_channels, shape.downsample_factors, strict=True)
        for number, (width, factors) in enumerate(levels):
            self.down_blocks.append(ResnetBlock(before, width, factors, groups))
            if number in shape.attention_levels:
                self.down_blocks.append(AttentionBlock(width, heads, groups))
            before = width
        self.norm_out = nn.GroupNorm(groups, before, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """One vector a picture."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return functional.relu(self.norm_out(x)).flatten(1)


class ResnetBlock(nn.Module):
    """norm-SiLU-conv twice, the input added, then the convolution that reduces the resolution."""

    def __init__(self, inputs: int, width: int, factors: tuple[int, int], groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, width, 1) if inputs != width else nn.Identity()
        rows, columns = ((1, 1) if factor == 1 else (0, 1) for factor in factors)
        self.padding = (*columns, *rows)
        reduces = tuple(factors) != (1, 1)
        self.downsample_conv = nn.Conv2d(width, width, 3, factors) if reduces else None

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        x = hidden + self.conv_shortcut(x)
        if self.downsample_conv is None:
            return x
        return self.downsample_conv(functional.pad(x, self.padding))


class AttentionBlock(nn.Module):
    """A transformer block over the pixels, between two 1x1 convolutions, added to its input."""

    def __init__(self, width: int, heads: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_in = nn.Conv2d(width, width, 1)
        self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads=heads, dim_head=width // heads, bias=True)
        self.ff = FeedForward(width, activation_fn="geglu")
        self.conv_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        tokens = self.conv_in(self.norm1(x)).flatten(2).transpose(1, 2)
        tokens = tokens + self.attn(self.norm2(tokens))
        tokens = tokens + self.ff(self.norm3(tokens))
        return x + self.conv_out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))


# component of a pack -> what makes its network from its configuration
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": unet,
    "vae": vae,
    "whisper": whisper,
    "perceiver": Perceiver,
    "syncnet_v2": SyncNetV2,
    "wav2lip_syncnet": Wav2LipSyncNet,
    "stable_syncnet": StableSyncNet,
}
