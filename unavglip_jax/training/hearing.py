"""Teaching a small audio encoder what mouths do, by synthetic speech whose every mouth shape is known.

Whisper's features come from words; a small pack has to learn lips from little sound. The encoder gets two
layers over all that the UNet will hear of a frame, and these have to say how far the mouth is open, wide,
round, pressed and tucked (`data.visemes.MOUTH`). Then they are thrown away. (With one layer only what is
linear in the features is learnt, and that takes twice as many steps.) An encoder without attention
(`n_audio_layer: 0`, two convolutions) learns this in minutes, and hears the same whatever comes later.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track

from unavglip_jax import params
from unavglip_jax.config import AudioFrontEnd
from unavglip_jax.data import spoken
from unavglip_jax.data.visemes import MOUTH
from unavglip_jax.media import audio
from unavglip_jax.models.whisper import Whisper, WhisperConfig
from unavglip_jax.params import Params

HELD_OUT = 16  # recordings that are measured and not learnt
HIDDEN = 256  # width between the two layers


class Report(NamedTuple):
    """How well the held-out recordings' mouths are told: correlation for each of `MOUTH`."""

    loss: float
    correlations: dict[str, float]


def pretrain(
    config: WhisperConfig,
    front_end: AudioFrontEnd,
    recordings: int,
    steps: int,
    batch_size: int = 2,
    learning_rate: float = 2e-3,
    seed: int = 0,
    processes: int = 2,
) -> tuple[Params, Report]:
    """A new encoder that has learnt from so many recordings of up to 30 s.

    Args:
      config: of the encoder.
      front_end: the convention of its features.
      recordings: how many there are to learn from; each is heard `steps * batch_size / recordings` times.
      steps: updates.
      batch_size: recordings a step.
      learning_rate: at its highest.
      seed: of recordings, weights and order.
      processes: that make the recordings.
    """
    numbers = range(HELD_OUT + recordings)
    made = spoken.lessons(numbers, seed, front_end, config.n_mels, processes)
    made = list(track(made, "recordings", total=len(numbers)))
    mel, mouth, length = (np.stack(field) for field in zip(*made, strict=True))
    indices = audio.window_indices(mouth.shape[1], spoken.FPS, audio.STEPS_A_SEGMENT, front_end)
    width = audio.WINDOW_STEPS * (1 + config.n_audio_layer) * config.n_audio_state
    weights = params.init(Whisper, config, jax.random.key(seed, impl="rbg"))
    draw = jax.random.normal(jax.random.key(seed + 1, impl="rbg"), (width, HIDDEN))
    weights |= {
        "mouth/0/kernel": draw / width**0.5,
        "mouth/0/bias": jnp.zeros(HIDDEN),
        "mouth/1/kernel": jnp.zeros((HIDDEN, len(MOUTH))),
        "mouth/1/bias": jnp.zeros(len(MOUTH)),
    }
    fixed, weights = params.split("positional_embedding", weights)
    if not config.n_audio_layer:  # without attention nothing asks for positions
        fixed = jax.tree.map(jnp.zeros_like, fixed)
    graphdef, _ = params.abstract(Whisper, config)
    schedule = optax.warmup_cosine_decay_schedule(0, learning_rate, steps // 20 + 1, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))

    def tell(weights, mel):
        encoder = params.bind(graphdef, params.split("^mouth/", weights)[1] | fixed)
        states = encoder(mel.astype(jnp.float32), front_end)
        # "v15" hears zeros behind the end.
        states = jnp.pad(states, [(0, 0), (0, 1), (0, 0), (0, 0)])
        windows = states[:, indices].reshape(len(mel), len(indices), -1)
        hidden = jax.nn.gelu(windows @ weights["mouth/0/kernel"] + weights["mouth/0/bias"])
        return hidden @ weights["mouth/1/kernel"] + weights["mouth/1/bias"]

    def loss(weights, mel, mouth, length):
        heard = (jnp.arange(mouth.shape[1]) < length[:, None])[..., None]
        error = (tell(weights, mel) - mouth) ** 2
        return (heard * error).sum() / (heard.sum() * len(MOUTH))

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(weights, state, *batch):
        value, gradient = jax.value_and_grad(loss)(weights, *batch)
        change, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, change), state, value

    rng, state = np.random.default_rng(seed), optimizer.init(weights)
    for _ in track(range(steps), "audio encoder"):
        rows = HELD_OUT + rng.choice(recordings, batch_size, replace=False)
        sound = mel[rows] + rng.uniform(-0.15, 0.15, (batch_size, 1, 1)).astype(np.float16)
        weights, state, value = update(weights, state, sound, mouth[rows], length[rows])
    tell = jax.jit(tell)
    told = np.concatenate([tell(weights, mel[i : i + 1]) for i in range(HELD_OUT)])
    frames = np.arange(mouth.shape[1]) < length[:HELD_OUT, None]
    found, truth = told[frames], mouth[:HELD_OUT][frames]
    correlations = {
        name: float(np.corrcoef(found[:, i], truth[:, i])[0, 1]) for i, name in enumerate(MOUTH)
    }
    return params.split("^mouth/", weights)[1] | fixed, Report(float(value), correlations)
