"""Speech with the mouth that belongs to it, and no picture: what a small audio encoder learns from.

The recordings are espeak-ng's, as in `synth`, and then disturbed as microphones and rooms do it, since a
network that only ever heard one synthesiser in silence would hear nothing in anything else.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import numpy as np
import soxr
from jaxtyping import Float

from unavglip_jax.config import AudioFrontEnd
from unavglip_jax.data.speech import VOICES
from unavglip_jax.data.synth import FPS, Person, monologue, prepare_process
from unavglip_jax.data.visemes import mouth_track
from unavglip_jax.media import audio

FULL = Fraction(audio.SEGMENT, audio.SAMPLE_RATE)  # seconds that the encoder takes at once
WHOLE_SHARE = 0.6  # of the recordings fill the segment; clips and sentences do not
SHORTEST = 0.8  # seconds


class Lesson(NamedTuple):
    """What the encoder hears at once, and what the mouth does.

    Attributes:
      mel: log-mel spectrogram, 100 rows a second for 30 s.
      mouth: in every video frame, in the order of `visemes.MOUTH`; at rest behind the end.
      spoken: frames that the recording has.
    """

    mel: Float[np.ndarray, "3000 M"]
    mouth: Float[np.ndarray, "750 5"]
    spoken: int


def lessons(
    numbers: range, seed: int, front_end: AudioFrontEnd, n_mels: int, processes: int
) -> Iterator[Lesson]:
    """`lesson` for each number, in order, on several cores."""
    make = partial(lesson, seed=seed, front_end=front_end, n_mels=n_mels)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=prepare_process) as pool:
        yield from pool.map(make, numbers, chunksize=4)


def lesson(number: int, seed: int, front_end: AudioFrontEnd, n_mels: int) -> Lesson:
    """The recording of a number, always the same."""
    rng = np.random.default_rng([seed, number])
    seconds = FULL
    if rng.random() > WHOLE_SHARE:
        seconds = Fraction(int(rng.uniform(SHORTEST, float(FULL)) * FPS), FPS)
    voice = VOICES[rng.integers(len(VOICES))]
    who = Person(None, "", voice, int(rng.integers(130, 205)), int(rng.integers(25, 76)))
    speech, _ = monologue(rng, who, seconds)
    spoken = int(seconds * FPS)
    mouth = mouth_track(speech, int(FULL * FPS), FPS)
    samples = soxr.resample(speech.samples, speech.rate, audio.SAMPLE_RATE)
    samples = disturbed(samples[: int(seconds * audio.SAMPLE_RATE)], rng)
    (mel,), _ = audio.whisper_segments(samples, front_end, n_mels)
    return Lesson(mel.astype(np.float16), mouth.astype(np.float32), spoken)


def disturbed(
    samples: Float[np.ndarray, " N"], rng: np.random.Generator
) -> Float[np.ndarray, " N"]:
    """As another microphone records it: loudness, tone, the room, and noise."""
    length = 1 << int(np.ceil(np.log2(len(samples) + audio.SAMPLE_RATE)))
    spectrum = np.fft.rfft(samples, length)
    frequency = np.fft.rfftfreq(length, 1 / audio.SAMPLE_RATE)
    octaves = np.log2(np.maximum(frequency, 50) / 1000)
    tone = rng.uniform(-4, 4) * octaves + rng.uniform(0, 4) * np.sin(
        octaves * rng.uniform(1, 3) + rng.uniform(0, 2 * np.pi)
    )
    spectrum *= 10 ** (tone / 20)
    if rng.random() < 0.5:  # a room: echoes that die away, the direct sound first
        reach = int(rng.uniform(0.05, 0.3) * audio.SAMPLE_RATE)
        echoes = rng.standard_normal(reach) * np.exp(-np.arange(reach) / (0.25 * reach))
        echoes *= rng.uniform(0.05, 0.4) / np.linalg.norm(echoes)
        echoes[0] += 1
        spectrum *= np.fft.rfft(echoes, length)
    out = np.fft.irfft(spectrum, length)[: len(samples)]
    level = np.sqrt((out**2).mean()) * 10 ** (-rng.uniform(12, 50) / 20)
    pink = rng.standard_normal(len(frequency)) + 1j * rng.standard_normal(len(frequency))
    pink = np.fft.irfft(pink / np.maximum(frequency, 20) ** rng.uniform(0, 0.6), length)
    out += level * pink[: len(samples)] / max(pink.std(), 1e-9)
    return (out * rng.uniform(0.1, 0.9) / max(np.abs(out).max(), 1e-6)).astype(np.float32)
