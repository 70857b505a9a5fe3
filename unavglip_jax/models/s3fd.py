"""S3FD (arXiv 1708.05237): raw face detections at six strides, in face-alignment's names."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unavglip_jax.config import NetworkConfig
from unavglip_jax.models import layers

TRUNK = (
    (64, 2),
    (128, 2),
    (256, 3),
    (512, 3),
    (512, 3),
)  # width and convolutions of each VGG16 stage

# What is searched for faces at strides 4, 8 ... 128: (name, channels)
SOURCES = (
    ("conv3_3_norm", 256),
    ("conv4_3_norm", 512),
    ("conv5_3_norm", 512),
    ("fc7", 1024),
    ("conv6_2", 512),
    ("conv7_2", 256),
)


class S3FDConfig(NetworkConfig):
    """Which of the two networks.

    Attributes:
      variant: "face_alignment" (MuseTalk, UnAvgLip, Wav2Lip) or "syncnet" (LatentSync and
        syncnet_python), which dilates fc6 and keeps the odd row and column at the third pooling.
    """

    variant: Literal["face_alignment", "syncnet"] = "face_alignment"


class S3FD(nnx.Module):
    """`detector(images)` -> for each stride, class logits and box offsets."""

    def __init__(self, config: S3FDConfig, *, rngs):
        self.config = config
        kw = layers.precision(config, rngs)
        before = 3
        for stage, (width, convolutions) in enumerate(TRUNK, start=1):
            for index in range(1, convolutions + 1):
                setattr(self, f"conv{stage}_{index}", layers.conv(before, width, padding=1, **kw))
                before = width
        padding, dilation = (3, 1) if config.variant == "face_alignment" else (6, 6)
        self.fc6 = layers.conv(512, 1024, padding=padding, kernel_dilation=dilation, **kw)
        self.fc7 = layers.conv(1024, 1024, 1, **kw)
        self.conv6_1 = layers.conv(1024, 256, 1, **kw)
        self.conv6_2 = layers.conv(256, 512, stride=2, padding=1, **kw)
        self.conv7_1 = layers.conv(512, 128, 1, **kw)
        self.conv7_2 = layers.conv(128, 256, stride=2, padding=1, **kw)
        self.conv3_3_norm = L2Norm(256, 10.0)
        self.conv4_3_norm = L2Norm(512, 8.0)
        self.conv5_3_norm = L2Norm(512, 5.0)
        kw["dtype"] = jnp.float32
        for name, channels in SOURCES:
            classes = 4 if name == "conv3_3_norm" else 2
            setattr(self, f"{name}_mbox_conf", layers.conv(channels, classes, padding=1, **kw))
            setattr(self, f"{name}_mbox_loc", layers.conv(channels, 4, padding=1, **kw))

    def __call__(
        self, images: Float[Array, "B H W 3"]
    ) -> tuple[tuple[Float[Array, "B h w 2"], Float[Array, "B h w 4"]], ...]:
        """Six pairs, float32, for strides 4, 8, 16, 32, 64 and 128.

        The first of a pair are logits of background and face; the second are offsets in SSD's
        encoding (variances 0.1 and 0.2) from priors of four strides' size.

        Args:
          images: 0 to 255 minus the channel means; which order of colours depends on who uses it.

        Raises:
          ValueError: there are not three channels, or a side is shorter than 32 pixels.
        """
        layers.expect("images", images, None, None, 3)
        if min(images.shape[1:3]) < 32:
            raise ValueError(f"images of {images.shape[1:3]} must have at least 32 pixels a side")
        x, sources = images, []
        for stage, (_, convolutions) in enumerate(TRUNK, start=1):
            for index in range(1, convolutions + 1):
                x = jax.nn.relu(getattr(self, f"conv{stage}_{index}")(x))
            if stage >= 3:
                sources.append(getattr(self, f"conv{stage}_3_norm")(x))
            if stage == 3 and self.config.variant == "syncnet":
                x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), "edge")
            x = layers.max_pool(x, (2, 2), (2, 2))
        x = jax.nn.relu(self.fc6(x))
        x = jax.nn.relu(self.fc7(x))
        sources.append(x)
        x = jax.nn.relu(self.conv6_1(x))
        x = jax.nn.relu(self.conv6_2(x))
        sources.append(x)
        x = jax.nn.relu(self.conv7_1(x))
        x = jax.nn.relu(self.conv7_2(x))
        sources.append(x)

        found = []
        for (name, _), source in zip(SOURCES, sources, strict=True):
            logits = getattr(self, f"{name}_mbox_conf")(source)
            # The finest stride has three backgrounds, of which the likeliest counts ("max-out").
            background = logits[..., :-1].max(axis=-1, keepdims=True)
            logits = jnp.concatenate([background, logits[..., -1:]], axis=-1)
            found.append((logits, getattr(self, f"{name}_mbox_loc")(source)))
        return tuple(found)


class L2Norm(nnx.Module):
    """The channels of each pixel as a unit vector, times a learned scale; float32."""

    def __init__(self, features, initial):
        self.scale = nnx.Param(jnp.full((features,), initial))

    def __call__(self, x):
        x = x.astype(jnp.float32)
        norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
        return x / (norm + 1e-10) * self.scale.get_value()
