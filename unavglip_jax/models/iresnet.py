"""The face recogniser of ArcFace (arXiv 1801.07698): insightface's IResNet, in `arcface_torch`'s names."""

from typing import Annotated

import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float

from unavglip_jax.config import NetworkConfig
from unavglip_jax.models import layers

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}


class IResNetConfig(NetworkConfig):
    """Shape of the network; the defaults are the 50-layer one's.

    Attributes:
      blocks: residual blocks of each stage (`BLOCKS` has the published depths).
      widths: channels of each stage; the stem has the first stage's.
      image_size: side of the aligned face in pixels; fixed, because the last layer is fully connected.
      embedding: numbers in an embedding.
    """

    blocks: tuple[int, int, int, int] = BLOCKS[50]
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    image_size: Annotated[int, pydantic.Field(multiple_of=16)] = 112
    embedding: int = 512


class IResNet(nnx.Module):
    """`embedder(faces)` -> an embedding for each face; compare two by their cosine."""

    def __init__(self, config: IResNetConfig, *, rngs):
        self.image_size = config.image_size
        kw = layers.precision(config, rngs)
        before, last = config.widths[0], config.widths[-1]
        self.conv1 = layers.conv(3, before, padding=1, use_bias=False, **kw)
        self.bn1 = layers.batch_norm(before, **kw)
        self.prelu = PReLU(before)
        for number, (count, width) in enumerate(zip(config.blocks, config.widths, strict=True), 1):
            first = Block(before, width, 2, **kw)
            others = [Block(width, width, 1, **kw) for _ in range(count - 1)]
            setattr(self, f"layer{number}", nnx.List([first, *others]))
            before = width
        kw["dtype"] = jnp.float32  # the head is float32
        self.bn2 = layers.batch_norm(last, **kw)
        self.fc = nnx.Linear(last * (config.image_size // 16) ** 2, config.embedding, **kw)
        self.features = layers.batch_norm(config.embedding, **kw)

    def __call__(self, faces: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Embeddings, float32 and not normalised.

        Args:
          faces: RGB in [-1, 1], (x - 127.5) / 127.5 of bytes, `image_size` square, aligned to
            insightface's five points.

        Raises:
          ValueError: the faces are of another size, or have not three channels.
        """
        layers.expect("faces", faces, self.image_size, self.image_size, 3)
        x = self.prelu(self.bn1(self.conv1(faces)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x)
        # `fc` keeps PyTorch's order of inputs: channel, row, column.
        x = self.bn2(x).transpose(0, 3, 1, 2).reshape(len(x), -1)
        return self.features(self.fc(x))


class Block(nnx.Module):
    """norm-conv-norm-PReLU-conv-norm, and the input, itself convolved in the block that halves."""

    def __init__(self, in_features, out_features, stride, **kw):
        kw["use_bias"] = False
        self.bn1 = layers.batch_norm(in_features, **kw)
        self.conv1 = layers.conv(in_features, out_features, padding=1, **kw)
        self.bn2 = layers.batch_norm(out_features, **kw)
        self.prelu = PReLU(out_features)
        self.conv2 = layers.conv(out_features, out_features, stride=stride, padding=1, **kw)
        self.bn3 = layers.batch_norm(out_features, **kw)
        if stride == 2:
            shortcut = layers.conv(in_features, out_features, 1, stride=2, **kw)
            self.downsample = layers.sequential(shortcut, layers.batch_norm(out_features, **kw))

    def __call__(self, x):
        hidden = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        hidden = self.bn3(self.conv2(hidden))
        if hasattr(self, "downsample"):
            conv, norm = self.downsample
            x = norm(conv(x))
        return hidden + x


class PReLU(nnx.Module):
    """x where it is positive, `scale` (PyTorch's `weight`, one for each channel) times x elsewhere."""

    def __init__(self, features):
        self.scale = nnx.Param(jnp.full((features,), 0.25))

    def __call__(self, x):
        return jnp.where(x > 0, x, self.scale.get_value().astype(x.dtype) * x)
