"""The convolutions of VGG16 and VGG19 (arXiv 1409.1556) for perceptual losses, in torchvision's names."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unavglip_jax.config import NetworkConfig
from unavglip_jax.models import layers

CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # between the poolings


class VGGConfig(NetworkConfig):
    """Shape of the stack. The defaults hold all that UnAvgLip's and MuseTalk 1.5's losses look at.

    Attributes:
      last: the last ReLU; what torchvision has after it is left out.
    """

    depth: Literal[16, 19] = 19
    last: str = "relu5_1"
    widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)


class VGG(nnx.Module):
    """`vgg(images, ("relu1_1", "relu2_1"))` -> the outputs of those ReLUs, in that order."""

    def __init__(self, config: VGGConfig, *, rngs):
        self.names = member_names(config.depth, config.last)
        kw = layers.precision(config, rngs)
        members, before = [], 3
        for name in self.names:
            member = None
            if name.startswith("conv"):
                width = config.widths[int(name[4]) - 1]
                member, before = layers.conv(before, width, padding=1, **kw), width
            members.append(member)
        self.features = layers.sequential(*members)

    def __call__(
        self, images: Float[Array, "B H W 3"], outputs: Sequence[str]
    ) -> list[Float[Array, "B h w C"]]:
        """The outputs of some ReLUs, float32; `reluI_J` has a side of H / 2^(I-1).

        Args:
          images: RGB, normalised by the caller. Published losses differ: MuseTalk 1.5 takes ImageNet's
            (x - mean) / std of images in [-1, 1], UnAvgLip images in [-1, 1] as they are.
          outputs: names such as "relu3_3". Nothing behind the last of them is computed.

        Raises:
          ValueError: the network has no such ReLU, or the images have not three channels.
        """
        layers.expect("images", images, None, None, 3)
        unknown = [n for n in outputs if n not in self.names or not n.startswith("relu")]
        if unknown:
            raise ValueError(f"this VGG has no {', '.join(unknown)}; it ends at {self.names[-1]}")
        found, x = {}, images
        for name, member in zip(self.names, self.features, strict=True):
            if name.startswith("conv"):
                x = member(x)
            elif name.startswith("pool"):
                x = layers.max_pool(x, (2, 2), (2, 2))
            else:
                x = jax.nn.relu(x)
                found[name] = x.astype(jnp.float32)
            if all(output in found for output in outputs):
                break
        return [found[output] for output in outputs]


def member_names(depth: int, last: str) -> tuple[str, ...]:
    """What each member of torchvision's `features` is, up to `last`: conv1_1, relu1_1, ..., pool1, ...

    Raises:
      ValueError: there is no ReLU called `last`.
    """
    names = []
    for stage, convolutions in enumerate(CONVOLUTIONS[depth], 1):
        for number in range(1, convolutions + 1):
            names += [f"conv{stage}_{number}", f"relu{stage}_{number}"]
        names.append(f"pool{stage}")
    if last not in names or not last.startswith("relu"):
        raise ValueError(f"VGG{depth} has no {last}; name a ReLU between relu1_1 and {names[-2]}")
    return tuple(names[: names.index(last) + 1])
