"""MuseTalk 1.5's patch discriminator (arXiv 2410.10122), with spectral norm as a function of its weights.

Spectral norm (arXiv 1802.05957) keeps the largest singular value of every kernel at 1. PyTorch hides its
power iteration in the layer and advances it in the forward pass; here the singular vectors are a flat dict
beside the parameters, and the network only ever sees kernels that are normalised already:

    vectors = power_iteration(params, vectors)  # once for each update of the parameters
    discriminator = bind(graphdef, normalised(params, vectors))  # differentiable in the parameters
    scores, features = discriminator(images)
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unavglip_jax.config import NetworkConfig
from unavglip_jax.models import layers
from unavglip_jax.params import Params, Shapes


class DiscriminatorConfig(NetworkConfig):
    """Shape of the network; the defaults are MuseTalk 1.5's.

    Attributes:
      widths: channels of each block. Four blocks halve the image three times.
      norm: whether blocks after the first have instance norm, which takes away how strong a texture is.
      differences: if not 0, the network also sees the differences between neighbouring pixels, times this
        number. Without them, and with instance norm, a small one hardly learns to tell blur from sharpness.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    norm: bool = True
    differences: float = 0.0


class Discriminator(nnx.Module):
    """`discriminator(images)` -> a score for each patch, and what every block found."""

    def __init__(self, config: DiscriminatorConfig, *, rngs):
        kw = layers.precision(config, rngs)
        self.differences = config.differences
        self.down_blocks, before = nnx.List(), 9 if config.differences else 3
        for number, width in enumerate(config.widths, 1):
            norm, last = config.norm and number > 1, number == len(config.widths)
            self.down_blocks.append(Block(before, width, norm=norm, pool=not last, **kw))
            before = width
        kw["dtype"] = jnp.float32  # the scores are float32
        self.conv = layers.conv(before, 1, 1, **kw)

    def __call__(
        self, images: Float[Array, "B H W 3"]
    ) -> tuple[Float[Array, "B h w 1"], list[Float[Array, "B _ _ _"]]]:
        """Scores, float32, trained towards 1 for real patches and 0 for made ones; outputs of the blocks.

        Images of 256 have 26 x 26 patches, of 224 have 22 x 22.

        Args:
          images: RGB in [-1, 1].

        Raises:
          ValueError: the images have not three channels, or are too small to leave a patch.
        """
        layers.expect("images", images, None, None, 3)
        x, features = images, []
        if self.differences:
            steps = [forward_differences(images, axis) for axis in (2, 1)]
            x = jnp.concatenate([images, *(self.differences * step for step in steps)], axis=-1)
        for block in self.down_blocks:
            # the convolution needs four pixels; an empty mean would be NaN, without an error
            if min(x.shape[1:3]) < 4:
                raise ValueError(
                    f"images of the shape {images.shape} are too small for a discriminator of "
                    f"{len(self.down_blocks)} blocks"
                )
            x = block(x)
            features.append(x.astype(jnp.float32))
        return self.conv(x), features


class Block(nnx.Module):
    """Convolution without padding, instance norm (not in the first block), leaky ReLU, 2x2 mean pooling."""

    def __init__(self, in_features, out_features, *, norm, pool, **kw):
        self.pool = pool
        self.conv = layers.conv(in_features, out_features, 4, **kw)
        if norm:  # a group for each channel
            self.norm = layers.group_norm(out_features, out_features, 1e-5, **kw)

    def __call__(self, x):
        x = self.conv(x)
        x = jax.nn.leaky_relu(self.norm(x) if hasattr(self, "norm") else x, 0.2)
        return mean_pool(x) if self.pool else x


def forward_differences(images: Float[Array, "B H W C"], axis: int) -> Float[Array, "B H W C"]:
    """The next pixel along the axis less each one; 0 at the end."""
    return jnp.diff(images, axis=axis, append=jax.lax.slice_in_dim(images, -1, None, axis=axis))


def mean_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 C"]:
    """Means of 2 x 2 pixels; the last row or column of an odd size is left out."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def singular_vectors(shapes: Shapes, key: Array) -> Params:
    """Random unit vectors `u` (outputs) and `v` (inputs) for each kernel, to start the iteration with.

    They go under the layer's name: `conv/u` and `conv/v` belong to `conv/kernel`.

    Args:
      shapes: the parameters or their shapes.
      key: a random key.
    """
    vectors = {}
    for name in kernels(shapes):
        *inputs, outputs = shapes[name].shape
        for letter, length in (("u", outputs), ("v", math.prod(inputs))):
            key, one = jax.random.split(key)
            vectors[beside(name, letter)] = layers.l2_normalize(jax.random.normal(one, (length,)))
    return vectors


def power_iteration(params: Params, vectors: Params) -> Params:
    """The singular vectors after one more step; PyTorch takes one in each forward pass of training."""
    advanced = {}
    for name in kernels(params):
        matrix = params[name].reshape(-1, params[name].shape[-1]).astype(jnp.float32)
        v = layers.l2_normalize(product(matrix, vectors[beside(name, "u")]))
        advanced |= {
            beside(name, "u"): layers.l2_normalize(product(v, matrix)),
            beside(name, "v"): v,
        }
    return jax.lax.stop_gradient(advanced)


def normalised(params: Params, vectors: Params) -> Params:
    """The parameters with each kernel divided by its largest singular value, vᵀ W u.

    As in PyTorch the gradient goes through that value's W, not through the vectors.
    """
    vectors = jax.lax.stop_gradient(vectors)
    out = dict(params)
    for name in kernels(params):
        kernel = params[name]
        matrix = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
        v, u = vectors[beside(name, "v")], vectors[beside(name, "u")]
        out[name] = (kernel / product(v, product(matrix, u))).astype(kernel.dtype)
    return out


def kernels(params: Params | Shapes) -> list[str]:
    """Names of the kernels, all of which are normalised."""
    return [name for name in params if name.endswith("/kernel")]


def beside(kernel: str, letter: str) -> str:
    """`conv/kernel`, `u` -> `conv/u`."""
    return f"{kernel.removesuffix('kernel')}{letter}"


def product(a: Array, b: Array) -> Array:
    """a @ b in full float32, which an accelerator would otherwise round."""
    return jnp.matmul(a, b, precision="highest")
