"""The image auto-encoder of Stable Diffusion (AutoencoderKL, sd-vae-ft-mse), in diffusers' names."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unavglip_jax.config import NetworkConfig
from unavglip_jax.models import layers


class VAEConfig(NetworkConfig):
    """Shape of the auto-encoder; every level but the last halves the resolution.

    Attributes:
      patch_size: side of the squares of pixels that are the channels of the first and last convolution; 1
        for single pixels, as published. Small networks spend most of their time at full resolution.
      norm_num_groups: 0 for none. A small auto-encoder learns several times faster without: a norm over the
        whole picture hides its brightness and colours.
      remat: while training, keep only what goes between resnets.
    """

    in_channels: int = 3
    out_channels: int = 3
    patch_size: int = 1
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    remat: bool = False


class VAE(nnx.Module):
    """Images to latents (`encode`) and back (`decode`)."""

    def __init__(self, config: VAEConfig, *, rngs):
        self.config = config
        kw = layers.precision(config, rngs)
        latent = config.latent_channels
        self.encoder = Encoder(config, **kw)
        self.decoder = Decoder(config, **kw)
        self.quant_conv = layers.conv(2 * latent, 2 * latent, 1, **kw | {"dtype": jnp.float32})
        self.post_quant_conv = layers.conv(latent, latent, 1, **kw)

    def moments(
        self, images: Float[Array, "B H W 3"]
    ) -> tuple[Float[Array, "B h w C"], Float[Array, "B h w C"]]:
        """Mean and log-variance (clipped to [-30, 20]) of the posterior of images in [-1, 1]."""
        patches = fold(images, self.config.patch_size)
        mean, logvar = jnp.split(self.quant_conv(self.encoder(patches)), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def encode(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Scaled latents: the mode of the posterior of images in [-1, 1], times `scaling_factor`."""
        return self.moments(images)[0] * self.config.scaling_factor

    def decode(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Images, about [-1, 1] and not clipped, of latents scaled as `encode` scales them."""
        patches = self.decoder(self.post_quant_conv(latents / self.config.scaling_factor))
        return unfold(patches, self.config.patch_size)


def fold(images: Float[Array, "B H W C"], side: int) -> Float[Array, "B H/side W/side side*side*C"]:
    """Squares of pixels as channels: row by row, each pixel's colours together."""
    batch, height, width, colours = images.shape
    squares = images.reshape(batch, height // side, side, width // side, side, colours)
    return squares.swapaxes(2, 3).reshape(batch, height // side, width // side, -1)


def unfold(
    patches: Float[Array, "B h w P"], side: int
) -> Float[Array, "B h*side w*side P/side/side"]:
    """The inverse of `fold`."""
    batch, height, width, _ = patches.shape
    squares = patches.reshape(batch, height, width, side, side, -1).swapaxes(2, 3)
    return squares.reshape(batch, height * side, width * side, -1)


class Encoder(nnx.Module):
    """Pixels -> mean and log-variance before `quant_conv`."""

    def __init__(self, config: VAEConfig, **kw):
        self.remat = config.remat
        widths, groups = config.block_out_channels, config.norm_num_groups
        inputs = config.in_channels * config.patch_size**2
        self.conv_in = layers.conv(inputs, widths[0], padding=1, **kw)
        self.down_blocks = nnx.List()
        before = (widths[0], *widths)
        for level, width in enumerate(widths):
            inputs = [before[level], *[width] * (config.layers_per_block - 1)]
            block = nnx.Module()
            block.resnets = nnx.List([ResnetBlock(n, width, groups, **kw) for n in inputs])
            down = [] if level == len(widths) - 1 else [Resample(width, stride=2, padding=0, **kw)]
            block.downsamplers = nnx.List(down)
            self.down_blocks.append(block)
        self.mid_block = MidBlock(widths[-1], groups, **kw)
        kw["dtype"] = jnp.float32
        self.conv_norm_out = layers.group_norm(widths[-1], groups, 1e-6, **kw)
        self.conv_out = layers.conv(widths[-1], 2 * config.latent_channels, padding=1, **kw)

    def __call__(self, x):
        x = self.conv_in(x)
        for block in self.down_blocks:
            for resnet in block.resnets:
                x = layers.run(self.remat, resnet, x)
            if block.downsamplers:
                x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))  # right and bottom only
                x = block.downsamplers[0].conv(x)
        return self.conv_out(
            jax.nn.silu(self.conv_norm_out(layers.run(self.remat, self.mid_block, x)))
        )


class Decoder(nnx.Module):
    """Latents after `post_quant_conv` -> pixels."""

    def __init__(self, config: VAEConfig, **kw):
        self.remat = config.remat
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = layers.conv(config.latent_channels, widths[0], padding=1, **kw)
        self.mid_block = MidBlock(widths[0], groups, **kw)
        self.up_blocks = nnx.List()
        before = (widths[0], *widths)
        for level, width in enumerate(widths):
            inputs = [before[level], *[width] * config.layers_per_block]
            block = nnx.Module()
            block.resnets = nnx.List([ResnetBlock(n, width, groups, **kw) for n in inputs])
            up = [] if level == len(widths) - 1 else [Resample(width, stride=1, padding=1, **kw)]
            block.upsamplers = nnx.List(up)
            self.up_blocks.append(block)
        kw["dtype"] = jnp.float32
        self.conv_norm_out = layers.group_norm(widths[-1], groups, 1e-6, **kw)
        outputs = config.out_channels * config.patch_size**2
        self.conv_out = layers.conv(widths[-1], outputs, padding=1, **kw)

    def __call__(self, x):
        x = layers.run(self.remat, self.mid_block, self.conv_in(x))
        for block in self.up_blocks:
            for resnet in block.resnets:
                x = layers.run(self.remat, resnet, x)
            if block.upsamplers:
                x = block.upsamplers[0].conv(layers.upsample_nearest(x))
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Resample(nnx.Module):
    """The 3x3 convolution of a change of resolution."""

    def __init__(self, width, *, stride, padding, **kw):
        self.conv = layers.conv(width, width, stride=stride, padding=padding, **kw)


class ResnetBlock(nnx.Module):
    """norm-SiLU-conv twice, and the input added."""

    def __init__(self, in_features, out_features, groups, **kw):
        self.norm1 = layers.group_norm(in_features, groups, 1e-6, **kw)
        self.conv1 = layers.conv(in_features, out_features, padding=1, **kw)
        self.norm2 = layers.group_norm(out_features, groups, 1e-6, **kw)
        self.conv2 = layers.conv(out_features, out_features, padding=1, **kw)
        if in_features != out_features:
            self.conv_shortcut = layers.conv(in_features, out_features, 1, **kw)

    def __call__(self, x):
        hidden = self.conv1(jax.nn.silu(self.norm1(x)))
        hidden = self.conv2(jax.nn.silu(self.norm2(hidden)))
        return hidden + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class MidBlock(nnx.Module):
    """Resnet, single-head self-attention over the pixels, resnet."""

    def __init__(self, width, groups, **kw):
        self.resnets = nnx.List([ResnetBlock(width, width, groups, **kw) for _ in range(2)])
        self.attentions = nnx.List([PixelAttention(width, groups, **kw)])

    def __call__(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class PixelAttention(nnx.Module):
    """Single-head attention of every pixel to every pixel, with biases."""

    def __init__(self, width, groups, **kw):
        self.group_norm = layers.group_norm(width, groups, 1e-6, **kw)
        self.to_q = nnx.Linear(width, width, **kw)
        self.to_k = nnx.Linear(width, width, **kw)
        self.to_v = nnx.Linear(width, width, **kw)
        self.to_out = nnx.List([nnx.Linear(width, width, **kw)])

    def __call__(self, x):
        tokens = self.group_norm(x).reshape(len(x), -1, x.shape[-1])
        attended = layers.attention(
            self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), heads=1
        )
        return x + self.to_out[0](attended).reshape(x.shape)
