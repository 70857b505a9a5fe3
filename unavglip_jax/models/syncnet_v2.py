"""SyncNet of Chung and Zisserman ("Out of time", 2016), version 2, behind LSE-C and LSE-D."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unavglip_jax.config import NetworkConfig
from unavglip_jax.models import layers


class SyncNetV2Config(NetworkConfig):
    """The network has one shape."""


class SyncNetV2(nnx.Module):
    """`audio` and `lip` map 0.2 s of sound and picture to points, near where they go together."""

    def __init__(self, config: SyncNetV2Config, *, rngs):
        kw = layers.precision(config, rngs)
        self.netcnnaud = layers.sequential(
            *conv_norm(1, 64, 3, padding=1, **kw),
            None,
            None,
            *conv_norm(64, 192, 3, padding=1, **kw),
            None,
            None,
            *conv_norm(192, 384, 3, padding=1, **kw),
            None,
            *conv_norm(384, 256, 3, padding=1, **kw),
            None,
            *conv_norm(256, 256, 3, padding=1, **kw),
            None,
            None,
            *conv_norm(256, 512, (5, 4), **kw),
        )
        wide = {"padding": (0, 1, 1), "rank": 3, **kw}
        self.netcnnlip = layers.sequential(
            *conv_norm(3, 96, (5, 7, 7), stride=(1, 2, 2), rank=3, **kw),
            None,
            None,
            *conv_norm(96, 256, (1, 5, 5), stride=(1, 2, 2), **wide),
            None,
            None,
            *conv_norm(256, 256, (1, 3, 3), **wide),
            None,
            *conv_norm(256, 256, (1, 3, 3), **wide),
            None,
            *conv_norm(256, 256, (1, 3, 3), **wide),
            None,
            None,
            *conv_norm(256, 512, (1, 6, 6), rank=3, **kw),
        )
        kw["dtype"] = jnp.float32
        self.netfcaud = head(**kw)
        self.netfclip = head(**kw)

    def audio(self, mfcc: Float[Array, "B 13 20 1"]) -> Float[Array, "B 1024"]:
        """Embedding, not normalised, of 20 steps (100 a second) of 13 MFCCs of int16 samples."""
        layers.expect("mfcc", mfcc, 13, 20, 1)
        net = self.netcnnaud
        x = apply(net, 0, mfcc)
        x = apply(net, 4, x)
        x = layers.max_pool(x, (3, 3), (1, 2))
        for index in (8, 11, 14):
            x = apply(net, index, x)
        x = layers.max_pool(x, (3, 3), (2, 2))
        return embed(self.netfcaud, apply(net, 18, x))

    def lip(self, frames: Float[Array, "B 5 224 224 3"]) -> Float[Array, "B 1024"]:
        """Embedding, not normalised, of five face crops at 25 fps, BGR from 0 to 255."""
        layers.expect("frames", frames, 5, 224, 224, 3)
        net = self.netcnnlip
        x = frames.transpose(0, 2, 3, 1, 4).reshape(len(frames), 224, 224, 15)
        x = apply(net, 0, x)
        x = layers.max_pool(x, (3, 3), (2, 2))
        x = apply(net, 4, x)
        x = layers.max_pool(x, (3, 3), (2, 2), padding=(1, 1))
        for index in (8, 11, 14):
            x = apply(net, index, x)
        x = layers.max_pool(x, (3, 3), (2, 2))
        return embed(self.netfclip, apply(net, 18, x))


def conv_norm(in_features, out_features, kernel, **kw) -> tuple[nnx.Conv, nnx.BatchNorm]:
    """A convolution with bias and its batch norm."""
    conv = layers.conv(in_features, out_features, kernel, **kw)
    return conv, layers.batch_norm(out_features, **kw)


def apply(net: nnx.List, index: int, x: Array) -> Array:
    """The layer at `index`, the norm after it, ReLU."""
    layer, norm = net[index], net[index + 1]
    deep = isinstance(layer, nnx.Conv) and len(layer.kernel_size) == 3
    return jax.nn.relu(norm(flat(layer, x) if deep else layer(x)))


def flat(conv: nnx.Conv, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    """A 3-D convolution as deep as its input, in two dimensions: frames are channels, the first one slowest.

    On a CPU the network takes a third of the time so.
    """
    kernel = conv.kernel[...].transpose(1, 2, 0, 3, 4)
    kernel = kernel.reshape(*kernel.shape[:2], -1, kernel.shape[-1])
    x, kernel, bias = (array.astype(conv.dtype) for array in (x, kernel, conv.bias[...]))
    axes = ("NHWC", "HWIO", "NHWC")
    strides, padding = conv.strides[1:], conv.padding[1:]
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=axes) + bias


def head(**kw) -> nnx.List:
    """Two linear layers around a batch norm."""
    first, last = nnx.Linear(512, 512, **kw), nnx.Linear(512, 1024, **kw)
    return layers.sequential(first, layers.batch_norm(512, **kw), None, last)


def embed(net: nnx.List, x: Array) -> Float[Array, "B 1024"]:
    """The head on features of one pixel."""
    return net[3](apply(net, 0, x.reshape(len(x), -1)))
