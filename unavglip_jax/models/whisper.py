"""The Whisper encoder, any published size, returning every hidden state (OpenAI's parameter names)."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from unavglip_jax.config import AudioFrontEnd, NetworkConfig
from unavglip_jax.models import layers


class WhisperConfig(NetworkConfig):
    """Shape of the encoder; the defaults are whisper-tiny's."""

    n_mels: int = 80
    n_audio_ctx: int = 1500
    n_audio_state: int = 384
    n_audio_head: int = 6
    n_audio_layer: int = 4


class Whisper(nnx.Module):
    """`whisper(mel)` -> the residual stream after the positions and after each block."""

    def __init__(self, config: WhisperConfig, *, rngs):
        width = config.n_audio_state
        kw = layers.precision(config, rngs)
        self.conv1 = layers.conv(config.n_mels, width, 3, padding=1, rank=1, **kw)
        self.conv2 = layers.conv(width, width, 3, stride=2, padding=1, rank=1, **kw)
        self.positional_embedding = nnx.Param(
            jnp.asarray(sinusoids(config.n_audio_ctx, width), jnp.dtype(config.param_dtype))
        )
        blocks = [Block(width, config.n_audio_head, **kw) for _ in range(config.n_audio_layer)]
        self.blocks = nnx.List(blocks)
        self.ln_post = layers.layer_norm(width, **kw | {"dtype": jnp.float32})

    def __call__(
        self, mel: Float[Array, "B T M"], front_end: AudioFrontEnd
    ) -> Float[Array, "B T/2 L C"]:
        """Stack of the layers + 1 hidden states for every 20 ms, in float32.

        Args:
          mel: log-mel spectrogram, time-major, 100 columns a second, at most 2 * n_audio_ctx of them.
          front_end: "v10" (MuseTalk 1.0, UnAvgLip, LatentSync) leaves the last state before the final
            layer norm, "v15" (MuseTalk 1.5, transformers) takes it after.
        """
        x = layers.gelu(self.conv1(mel))
        x = layers.gelu(self.conv2(x))
        x = x + self.positional_embedding.get_value()[: x.shape[1]].astype(x.dtype)
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1]))
        if front_end == "v15":
            states[-1] = self.ln_post(states[-1])
        return jnp.stack([state.astype(jnp.float32) for state in states], axis=2)


class Block(nnx.Module):
    """Pre-norm self-attention and a GELU network of four times the width."""

    def __init__(self, width, heads, **kw):
        self.attn = SelfAttention(width, heads, **kw)
        self.attn_ln = layers.layer_norm(width, **kw)
        hidden = nnx.Linear(width, 4 * width, **kw)
        self.mlp = layers.sequential(hidden, None, nnx.Linear(4 * width, width, **kw))
        self.mlp_ln = layers.layer_norm(width, **kw)

    def __call__(self, x):
        x = x + self.attn(self.attn_ln(x))
        return x + self.mlp[2](layers.gelu(self.mlp[0](self.mlp_ln(x))))


class SelfAttention(nnx.Module):
    """Attention whose keys alone have no bias."""

    def __init__(self, width, heads, **kw):
        self.heads = heads
        self.query = nnx.Linear(width, width, **kw)
        self.key = nnx.Linear(width, width, use_bias=False, **kw)
        self.value = nnx.Linear(width, width, **kw)
        self.out = nnx.Linear(width, width, **kw)

    def __call__(self, x):
        return self.out(layers.attention(self.query(x), self.key(x), self.value(x), self.heads))


def sinusoids(length: int, features: int) -> Float[np.ndarray, "N C"]:
    """Whisper's fixed positions: sines in the first half of the channels, cosines in the second."""
    frequencies = np.exp(-np.log(10000.0) / (features // 2 - 1) * np.arange(features // 2))
    angles = np.arange(length)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
