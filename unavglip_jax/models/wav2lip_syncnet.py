"""Wav2Lip's lip-sync expert (arXiv 2008.10010): five lower half faces, 0.2 s of mel as vectors."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unavglip_jax.config import NetworkConfig
from unavglip_jax.models import layers

# (width, kernel, stride, padding, number of residual blocks that follow)
FACE = (
    (32, 7, 1, 3, 0),
    (64, 5, (1, 2), 1, 2),
    (128, 3, 2, 1, 3),
    (256, 3, 2, 1, 2),
    (512, 3, 2, 1, 2),
    (512, 3, 2, 1, 0),
    (512, 3, 1, 0, 0),
    (512, 1, 1, 0, 0),
)
AUDIO = (
    (32, 3, 1, 1, 2),
    (64, 3, (3, 1), 1, 2),
    (128, 3, 3, 1, 2),
    (256, 3, (3, 2), 1, 2),
    (512, 3, 1, 0, 0),
    (512, 1, 1, 0, 0),
)


class Wav2LipSyncNetConfig(NetworkConfig):
    """The expert has one shape."""


class Wav2LipSyncNet(nnx.Module):
    """`expert(mel, frames)` -> unit vectors without negative entries; cosines are in [0, 1]."""

    def __init__(self, config: Wav2LipSyncNetConfig, *, rngs):
        kw = layers.precision(config, rngs)
        self.face_encoder = encoder(15, FACE, **kw)
        self.audio_encoder = encoder(1, AUDIO, **kw)

    def __call__(
        self, mel: Float[Array, "B 80 16 1"], frames: Float[Array, "B 48 96 15"]
    ) -> tuple[Float[Array, "B 512"], Float[Array, "B 512"]]:
        """Audio and face embeddings."""
        return self.audio(mel), self.face(frames)

    def audio(self, mel: Float[Array, "B 80 16 1"]) -> Float[Array, "B 512"]:
        """Unit vector, float32, of 16 steps (80 a second) of Wav2Lip's 80-band mel in [-4, 4]."""
        layers.expect("mel", mel, 80, 16, 1)
        return embed(self.audio_encoder, mel)

    def face(self, frames: Float[Array, "B 48 96 15"]) -> Float[Array, "B 512"]:
        """Unit vector, float32, of five frames at 25 fps.

        Args:
          frames: rows 48 to 95 of 96x96 face crops, BGR in [0, 1]; channel 3 * frame + colour.
        """
        layers.expect("frames", frames, 48, 96, 15)
        return embed(self.face_encoder, frames)


def encoder(features: int, levels, **kw) -> nnx.List:
    """The blocks of one encoder; the last, which makes the embedding, is float32."""
    blocks = []
    for level in levels:
        width, kernel, stride, padding, residuals = level
        if level is levels[-1]:
            kw["dtype"] = jnp.float32
        blocks.append(Block(features, width, kernel, stride, padding, residual=False, **kw))
        blocks += [Block(width, width, 3, 1, 1, residual=True, **kw) for _ in range(residuals)]
        features = width
    return nnx.List(blocks)


def embed(blocks: nnx.List, x: Array) -> Float[Array, "B 512"]:
    """The blocks in turn, down to one pixel, as a unit vector."""
    for block in blocks:
        x = block(x)
    return layers.l2_normalize(x.reshape(len(x), -1))


class Block(nnx.Module):
    """Convolution with bias, batch norm, the input where it is residual, ReLU."""

    def __init__(self, in_features, out_features, kernel, stride, padding, *, residual, **kw):
        self.residual = residual
        conv = layers.conv(in_features, out_features, kernel, stride=stride, padding=padding, **kw)
        norm = layers.batch_norm(out_features, **kw)
        self.conv_block = layers.sequential(conv, norm)

    def __call__(self, x):
        conv, norm = self.conv_block
        hidden = norm(conv(x))
        return jax.nn.relu(hidden + x if self.residual else hidden)
