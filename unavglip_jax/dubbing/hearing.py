"""What the generator hears of a recording: Whisper features, made as the stream of frames needs them."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from unavglip_jax import assets
from unavglip_jax.config import AudioFrontEnd
from unavglip_jax.media import audio
from unavglip_jax.params import Network

CROSS_FADE = 250  # encoder steps (5 s) by which neighbouring Whisper segments overlap


class Hearing(NamedTuple):
    """The audio encoder of a pack and the convention of its features."""

    whisper: Network
    front_end: AudioFrontEnd


def load(folder: str | Path) -> Hearing:
    """The audio encoder of a pack, float32.

    Raises:
      InputError: the folder is no pack, or has no sound audio encoder.
    """
    whisper = assets.load_network(folder, "whisper")
    return Hearing(whisper, assets.read_pack(folder).audio_front_end)


def encode(
    hearing: Hearing, samples: Float[np.ndarray, " N"], overlap: bool = True
) -> Float[np.ndarray, "L S C"]:
    """Whisper features of a whole recording, 50 rows a second; arguments as `listen`'s."""
    blocks, _ = listen(hearing, samples, overlap)
    return np.concatenate(list(blocks))


def listen(
    hearing: Hearing,
    samples: Float[np.ndarray, " N"],
    overlap: bool = True,
    rest: bool = False,
) -> tuple[Iterator[Float[np.ndarray, "l S C"]], int]:
    """Whisper features of a recording, a block of rows at a time, and the number of rows in all.

    Args:
      hearing: the audio encoder.
      samples: recording, mono float32 at 16 kHz.
      overlap: cross-fade segments that overlap by 5 s. The published programs run the encoder on
        independent 30 s segments, and the mouth collapses where they meet.
      rest: give the features of digital silence wherever nobody speaks, so that the mouth rests there.
        Breath and room noise keep the published systems' mouths moving.
    """
    whisper, front_end = hearing
    shared = CROSS_FADE if overlap else 0
    stride, n_mels = audio.STEPS_A_SEGMENT - shared, whisper.config.n_mels
    segments, steps = audio.whisper_segments(samples, front_end, n_mels, stride)
    silent = audio.silence(samples)[:steps, None, None] if rest else np.zeros((steps, 1, 1))
    resting = encode(hearing, np.zeros(2 * audio.SAMPLE_RATE, np.float32))[50] if rest else None

    def blocks():
        before = 0.0  # what the last segment has to say about the first rows of the next
        for i, segment in enumerate(segments):
            last = i == len(segments) - 1
            states = np.asarray(whisper(segment[None], front_end)[0])
            states = states * fade(len(states), i > 0, not last, shared)[:, None, None]
            states[:shared] += before
            length = steps - i * stride if last else stride
            block, before = states[:length], states[length:].copy()
            share = silent[i * stride :][:length]
            yield block + share * (resting - block) if share.any() else block

    return blocks(), steps


def fade(length: int, rise: bool, fall: bool, overlap: int) -> Float[np.ndarray, " L"]:
    """The share of a segment's rows: those it has in common with a neighbour are cross-faded."""
    ramp = ((np.arange(overlap) + 1) / (overlap + 1)).astype(np.float32)
    out = np.ones(length, np.float32)
    if rise:
        out[:overlap] = ramp
    if fall:
        out[length - overlap :] = ramp[::-1]
    return out


def look_up(
    blocks: Iterable[Float[np.ndarray, "l S C"]], steps: int
) -> Callable[[Int[np.ndarray, " N"]], Float[np.ndarray, "N S C"]]:
    """`rows(wanted)` -> the rows of these numbers, sorted; number `steps` is zeros.

    Only the blocks that are still needed are held: no call may want a row before the first one that
    the call before wanted.
    """
    blocks, held, start = iter(blocks), None, 0

    def rows(wanted):
        nonlocal held, start
        inside = wanted[wanted < steps]
        held = next(blocks) if held is None else held
        while len(inside) and inside[-1] >= start + len(held):
            kept = max(0, int(inside[0]) - start)
            start += min(kept, len(held))
            held = np.concatenate([held[kept:], next(blocks)])
        out = np.zeros((len(wanted), *held.shape[1:]), held.dtype)
        out[: len(inside)] = held[inside - start]
        return out

    return rows
