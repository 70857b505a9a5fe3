"""BiSeNet (arXiv 1808.00897) on ResNet-18, which parses faces into the 19 classes of CelebAMask-HQ.

0 background, 1 skin, 2 3 brows, 4 5 eyes, 6 glasses, 7 8 ears, 9 earring, 10 nose,
11 mouth interior, 12 upper lip, 13 lower lip, 14 neck, 15 necklace, 16 cloth, 17 hair, 18 hat.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from unavglip_jax.config import NetworkConfig
from unavglip_jax.models import layers


class BiSeNetConfig(NetworkConfig):
    """Number of classes; the two auxiliary heads of training are left out."""

    n_classes: int = 19


class BiSeNet(nnx.Module):
    """`parser(images)` -> class logits at an eighth of the size; `full_size(images)` -> at it all."""

    def __init__(self, config: BiSeNetConfig, *, rngs):
        kw = layers.precision(config, rngs)
        self.cp = ContextPath(**kw)
        self.ffm = FeatureFusion(**kw)
        self.conv_out = nnx.Module()
        self.conv_out.conv = ConvNorm(256, 256, 3, **kw)
        kw["dtype"] = jnp.float32
        self.conv_out.conv_out = layers.conv(256, config.n_classes, 1, use_bias=False, **kw)

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B H/8 W/8 K"]:
        """Class logits, float32.

        Args:
          images: RGB in [0, 1], ImageNet-normalised (mean 0.485 0.456 0.406, standard deviation
            0.229 0.224 0.225); published use is 512x512, any multiple of 32 works.

        Raises:
          ValueError: height or width is no multiple of 32, or there are not three channels.
        """
        layers.expect("images", images, None, None, 3)
        if images.shape[1] % 32 or images.shape[2] % 32:
            raise ValueError(f"images of {images.shape[1:3]} must be multiples of 32")
        return self.conv_out.conv_out(self.conv_out.conv(self.ffm(*self.cp(images))))

    def full_size(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B H W K"]:
        """The logits interpolated to the images' size; their argmax is the face's classes."""
        return upsample(self(images), images.shape[1:3])


def upsample(x: Float[Array, "B h w C"], size: tuple[int, int]) -> Float[Array, "B H W C"]:
    """Bilinear interpolation that keeps the corner pixels (PyTorch's `align_corners=True`)."""
    rows, columns = (weights(n, m) for n, m in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("Hh,bhwc,Ww->bHWc", rows, x, columns, precision="highest")


def weights(inputs: int, outputs: int) -> Float[np.ndarray, "O I"]:
    """How much of each input sample is in each output sample."""
    position = np.linspace(0, inputs - 1, outputs)[:, None]
    return np.maximum(0, 1 - np.abs(position - np.arange(inputs))).astype(np.float32)


class ContextPath(nnx.Module):
    """Features of ResNet-18 at an eighth, and what lies deeper brought to that size."""

    def __init__(self, **kw):
        self.resnet = ResNet18(**kw)
        self.arm16 = AttentionRefinement(256, 128, **kw)
        self.arm32 = AttentionRefinement(512, 128, **kw)
        self.conv_head32 = ConvNorm(128, 128, 3, **kw)
        self.conv_head16 = ConvNorm(128, 128, 3, **kw)
        self.conv_avg = ConvNorm(512, 128, 1, **kw)

    def __call__(self, images):
        eighth, sixteenth, last = self.resnet(images)
        context = self.arm32(last) + self.conv_avg(pooled(last))
        context = self.conv_head32(layers.upsample_nearest(context))
        context = self.arm16(sixteenth) + context
        return eighth, self.conv_head16(layers.upsample_nearest(context))


class ResNet18(nnx.Module):
    """The trunk: features at 1/8 (128 channels), 1/16 (256) and 1/32 (512)."""

    def __init__(self, **kw):
        self.conv1 = layers.conv(3, 64, 7, stride=2, padding=3, use_bias=False, **kw)
        self.bn1 = layers.batch_norm(64, **kw)
        self.layer1 = nnx.List([BasicBlock(64, 64, 1, **kw), BasicBlock(64, 64, 1, **kw)])
        self.layer2 = nnx.List([BasicBlock(64, 128, 2, **kw), BasicBlock(128, 128, 1, **kw)])
        self.layer3 = nnx.List([BasicBlock(128, 256, 2, **kw), BasicBlock(256, 256, 1, **kw)])
        self.layer4 = nnx.List([BasicBlock(256, 512, 2, **kw), BasicBlock(512, 512, 1, **kw)])

    def __call__(self, images):
        x = jax.nn.relu(self.bn1(self.conv1(images)))
        x = layers.max_pool(x, (3, 3), (2, 2), padding=(1, 1))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x)
            features.append(x)
        return features[1:]


class BasicBlock(nnx.Module):
    """conv-norm-ReLU, conv-norm, and the input, itself convolved where the block halves, ReLU."""

    def __init__(self, in_features, out_features, stride, **kw):
        kw["use_bias"] = False
        self.conv1 = layers.conv(in_features, out_features, 3, stride=stride, padding=1, **kw)
        self.bn1 = layers.batch_norm(out_features, **kw)
        self.conv2 = layers.conv(out_features, out_features, 3, padding=1, **kw)
        self.bn2 = layers.batch_norm(out_features, **kw)
        if stride == 2:
            shortcut = layers.conv(in_features, out_features, 1, stride=2, **kw)
            self.downsample = layers.sequential(shortcut, layers.batch_norm(out_features, **kw))

    def __call__(self, x):
        hidden = jax.nn.relu(self.bn1(self.conv1(x)))
        hidden = self.bn2(self.conv2(hidden))
        if hasattr(self, "downsample"):
            conv, norm = self.downsample
            x = norm(conv(x))
        return jax.nn.relu(hidden + x)


class ConvNorm(nnx.Module):
    """Convolution without bias that keeps the size, batch norm, ReLU."""

    def __init__(self, in_features, out_features, kernel, **kw):
        self.conv = layers.conv(
            in_features, out_features, kernel, padding=kernel // 2, use_bias=False, **kw
        )
        self.bn = layers.batch_norm(out_features, **kw)

    def __call__(self, x):
        return jax.nn.relu(self.bn(self.conv(x)))


class AttentionRefinement(nnx.Module):
    """A convolution whose channels are gated by their own averages."""

    def __init__(self, in_features, out_features, **kw):
        self.conv = ConvNorm(in_features, out_features, 3, **kw)
        self.conv_atten = layers.conv(out_features, out_features, 1, use_bias=False, **kw)
        self.bn_atten = layers.batch_norm(out_features, **kw)

    def __call__(self, x):
        x = self.conv(x)
        return x * jax.nn.sigmoid(self.bn_atten(self.conv_atten(pooled(x))))


class FeatureFusion(nnx.Module):
    """Both paths side by side, mixed, plus the mix gated by its own averages."""

    def __init__(self, **kw):
        self.convblk = ConvNorm(256, 256, 1, **kw)
        self.conv1 = layers.conv(256, 64, 1, use_bias=False, **kw)
        self.conv2 = layers.conv(64, 256, 1, use_bias=False, **kw)

    def __call__(self, eighth, context):
        x = self.convblk(jnp.concatenate([eighth, context], axis=-1))
        gate = jax.nn.sigmoid(self.conv2(jax.nn.relu(self.conv1(pooled(x)))))
        return x * gate + x


def pooled(x: Float[Array, "B H W C"]) -> Float[Array, "B 1 1 C"]:
    """The average over all pixels."""
    return x.mean(axis=(1, 2), keepdims=True)
