"""LPIPS (arXiv 1801.03924), version 0.1 on VGG16: how different two images look."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from unavglip_jax.config import NetworkConfig
from unavglip_jax.models import layers
from unavglip_jax.models.vgg import VGG, VGGConfig

SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
OUTPUTS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


class LPIPSConfig(NetworkConfig):
    """Widths of the VGG16 below; the defaults are the published network's."""

    widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)


class LPIPS(nnx.Module):
    """`lpips(images, references)` -> a distance for each pair; 0 for identical images."""

    def __init__(self, config: LPIPSConfig, *, rngs):
        self.net = VGG(VGGConfig(**config.model_dump(), depth=16, last=OUTPUTS[-1]), rngs=rngs)
        kw = layers.precision(config, rngs) | {"dtype": jnp.float32, "use_bias": False}
        for number, width in enumerate(config.widths):
            head = nnx.Module()
            head.model = layers.sequential(None, layers.conv(width, 1, 1, **kw))
            setattr(self, f"lin{number}", head)

    def __call__(
        self, images: Float[Array, "B H W 3"], references: Float[Array, "B H W 3"]
    ) -> Float[Array, " B"]:
        """Distances, float32, of images that are RGB in [-1, 1] with sides of at least 16.

        Raises:
          ValueError: the images have not three channels or are not of one shape.
        """
        layers.expect("references", references, *images.shape[1:])
        distance = 0.0
        pairs = zip(self.features(images), self.features(references), strict=True)
        for number, (ours, theirs) in enumerate(pairs):
            head = getattr(self, f"lin{number}").model[1]
            distance += head((unit(ours) - unit(theirs)) ** 2).mean(axis=(1, 2, 3))
        return distance

    def features(self, images):
        """The five feature maps of images in [-1, 1]."""
        return self.net((images - SHIFT) / SCALE, OUTPUTS)


def unit(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """x / (‖x‖₂ + 1e-10) over the channels; a pixel without any activation stays zero."""
    squares = (x**2).sum(axis=-1, keepdims=True)
    some = squares > 0  # the root's gradient at 0 is infinite, and 0 times that is NaN
    return x / (jnp.sqrt(jnp.where(some, squares, 1.0)) * some + 1e-10)
