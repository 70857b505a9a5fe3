"""StableSyncNet (LatentSync, arXiv 2412.09262): sound and picture of 16 or 25 frames as vectors.

MuseTalk 1.5 trains against `16_pixel`; LatentSync's published weights are `16_pixel_attn`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unavglip_jax.config import Config, NetworkConfig
from unavglip_jax.models import layers


class EncoderConfig(Config):
    """Shape of one encoder.

    Attributes:
      size: height and width of its input, which it reduces to one pixel.
      downsample_factors: of height and width, at the end of each level.
      attention_levels: the levels followed by self-attention over their pixels.
    """

    in_channels: int
    size: tuple[int, int]
    block_out_channels: tuple[int, ...]
    downsample_factors: tuple[tuple[int, int], ...]
    attention_levels: tuple[int, ...] = ()


AUDIO_16 = EncoderConfig(
    in_channels=1,
    size=(80, 52),
    block_out_channels=(32, 64, 128, 256, 512, 1024, 2048),
    downsample_factors=((2, 1), (2, 2), (2, 2), (1, 1), (2, 2), (2, 2), (2, 3)),
)
VISUAL_16 = EncoderConfig(
    in_channels=16 * 3,
    size=(128, 256),
    block_out_channels=(64, 128, 256, 256, 512, 1024, 2048, 2048),
    downsample_factors=((1, 2), *[(2, 2)] * 7),
)


class StableSyncNetConfig(NetworkConfig):
    """Shapes of both encoders; the defaults are `PRESETS["16_pixel"]`."""

    audio_encoder: EncoderConfig = AUDIO_16
    visual_encoder: EncoderConfig = VISUAL_16
    heads: int = 8
    norm_num_groups: int = 32


PRESETS = {
    "16_pixel": StableSyncNetConfig(),
    "16_pixel_attn": StableSyncNetConfig(
        audio_encoder=AUDIO_16.replace(attention_levels=(3, 4)),
        visual_encoder=VISUAL_16.replace(attention_levels=(4, 5)),
    ),
    "16_latent": StableSyncNetConfig(
        audio_encoder=EncoderConfig(
            in_channels=1,
            size=(80, 52),
            block_out_channels=(32, 64, 128, 256, 512, 1024),
            downsample_factors=((2, 1), *[(2, 2)] * 4, (2, 3)),
        ),
        visual_encoder=EncoderConfig(
            in_channels=16 * 4,
            size=(32, 32),
            block_out_channels=(64, 128, 256, 256, 512, 1024),
            downsample_factors=(*[(2, 2)] * 3, (1, 1), *[(2, 2)] * 2),
        ),
    ),
    "25_pixel": StableSyncNetConfig(
        audio_encoder=EncoderConfig(
            in_channels=1,
            size=(80, 80),
            block_out_channels=(64, 128, 256, 256, 512, 1024),
            downsample_factors=[(2, 2)] * 6,
        ),
        visual_encoder=EncoderConfig(
            in_channels=25 * 3,
            size=(128, 256),
            block_out_channels=(128, 128, 256, 256, 512, 512, 1024, 1024),
            downsample_factors=((1, 2), *[(2, 2)] * 7),
        ),
    ),
}


class StableSyncNet(nnx.Module):
    """`syncnet(mel, frames)` -> unit vectors without negative entries; cosines are in [0, 1]."""

    def __init__(self, config: StableSyncNetConfig, *, rngs):
        self.config = config
        kw = layers.precision(config, rngs)
        self.audio_encoder = Encoder(config.audio_encoder, config, **kw)
        self.visual_encoder = Encoder(config.visual_encoder, config, **kw)

    def __call__(
        self, mel: Float[Array, "B M T 1"], frames: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        """Audio and visual embeddings."""
        return self.audio(mel), self.visual(frames)

    def audio(self, mel: Float[Array, "B M T 1"]) -> Float[Array, "B D"]:
        """Unit vector, float32, of Wav2Lip's 80-band mel in [-4, 4], 80 steps a second."""
        shape = self.config.audio_encoder
        layers.expect("mel", mel, *shape.size, shape.in_channels)
        return layers.l2_normalize(self.audio_encoder(mel))

    def visual(self, frames: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
        """Unit vector, float32, of successive frames at 25 fps.

        Args:
          frames: for the pixel presets rows 128 to 255 of 256x256 faces, RGB in [-1, 1], at channel
            3 * frame + colour; for `16_latent` scaled VAE latents of whole 256x256 faces, at
            channel 4 * frame + latent channel.
        """
        shape = self.config.visual_encoder
        layers.expect("frames", frames, *shape.size, shape.in_channels)
        return layers.l2_normalize(self.visual_encoder(frames))


class Encoder(nnx.Module):
    """Residual blocks, each reducing the resolution, down to one pixel; then norm and ReLU."""

    def __init__(self, shape: EncoderConfig, config: StableSyncNetConfig, **kw):
        groups, before = config.norm_num_groups, shape.block_out_channels[0]
        self.conv_in = layers.conv(shape.in_channels, before, padding=1, **kw)
        self.down_blocks = nnx.List()
        levels = zip(shape.block_out_channels, shape.downsample_factors, strict=True)
        for level, (width, factors) in enumerate(levels):
            self.down_blocks.append(ResnetBlock(before, width, factors, groups, **kw))
            if level in shape.attention_levels:
                self.down_blocks.append(AttentionBlock(width, config.heads, groups, **kw))
            before = width
        self.norm_out = layers.group_norm(before, groups, 1e-6, **kw | {"dtype": jnp.float32})

    def __call__(self, x):
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return jax.nn.relu(self.norm_out(x)).reshape(len(x), -1)


class ResnetBlock(nnx.Module):
    """norm-SiLU-conv twice, the input added, then the convolution that reduces the resolution."""

    def __init__(self, in_features, out_features, factors, groups, **kw):
        self.norm1 = layers.group_norm(in_features, groups, 1e-6, **kw)
        self.conv1 = layers.conv(in_features, out_features, padding=1, **kw)
        self.norm2 = layers.group_norm(out_features, groups, 1e-6, **kw)
        self.conv2 = layers.conv(out_features, out_features, padding=1, **kw)
        if in_features != out_features:
            self.conv_shortcut = layers.conv(in_features, out_features, 1, **kw)
        if tuple(factors) != (1, 1):
            # An axis that is reduced is padded at its end only.
            padding = tuple((1, 1) if factor == 1 else (0, 1) for factor in factors)
            self.downsample_conv = nnx.Conv(
                out_features, out_features, (3, 3), strides=tuple(factors), padding=padding, **kw
            )

    def __call__(self, x):
        hidden = self.conv1(jax.nn.silu(self.norm1(x)))
        hidden = self.conv2(jax.nn.silu(self.norm2(hidden)))
        x = hidden + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)
        return self.downsample_conv(x) if hasattr(self, "downsample_conv") else x


class AttentionBlock(nnx.Module):
    """A transformer block over the pixels, between two 1x1 convolutions, added to its input."""

    def __init__(self, width, heads, groups, **kw):
        self.norm1 = layers.group_norm(width, groups, 1e-6, **kw)
        self.conv_in = layers.conv(width, width, 1, **kw)
        self.norm2 = layers.layer_norm(width, **kw)
        self.attn = Attention(width, heads, **kw)
        self.norm3 = layers.layer_norm(width, **kw)
        self.ff = layers.FeedForward(width, **kw)
        self.conv_out = layers.conv(width, width, 1, **kw)

    def __call__(self, x):
        tokens = self.conv_in(self.norm1(x)).reshape(len(x), -1, x.shape[-1])
        tokens = tokens + self.attn(self.norm2(tokens))
        tokens = tokens + self.ff(self.norm3(tokens))
        return x + self.conv_out(tokens.reshape(x.shape))


class Attention(nnx.Module):
    """Multi-head self-attention whose projections all have biases."""

    def __init__(self, width, heads, **kw):
        self.heads = heads
        self.to_q = nnx.Linear(width, width, **kw)
        self.to_k = nnx.Linear(width, width, **kw)
        self.to_v = nnx.Linear(width, width, **kw)
        self.to_out = nnx.List([nnx.Linear(width, width, **kw)])

    def __call__(self, x):
        attended = layers.attention(self.to_q(x), self.to_k(x), self.to_v(x), self.heads)
        return self.to_out[0](attended)
