"""What the networks hear: spectrograms of a recording, and the part of them a video frame needs.

Recordings are mono float32 arrays at 16 kHz in [-1, 1]. Spectrograms are time-major. Video time is
rational: frame rates are `fractions.Fraction`, so a window never drifts at 24000/1001.
"""

import functools
from collections.abc import Callable
from fractions import Fraction
from numbers import Rational

import numpy as np
from jaxtyping import Float, Int

from unavglip_jax.config import AudioFrontEnd, InputError

SAMPLE_RATE = 16_000  # samples a second
STEP_RATE = 50  # steps a second of the Whisper encoder
MEL_RATE = 80  # rows a second of the Wav2Lip mel

SEGMENT = 30 * SAMPLE_RATE  # what the Whisper encoder takes at once
SAMPLES_A_STEP = SAMPLE_RATE // STEP_RATE
STEPS_A_SEGMENT = SEGMENT // SAMPLES_A_STEP
WINDOW_STEPS = 10  # encoder steps for one video frame
WINDOW_LEAD = 4  # of which so many come before the step at the frame's time

# Silence: quieter than the recording's loud parts by this much, for so long. Its ends are left to the
# speech, since mouths close after the sound and open before it.
SILENCE_BELOW = 40.0  # dB
SILENCE_FLOOR = -60.0  # dB of full scale; what is below is always silent
SILENCE_LASTS = 20  # steps
SILENCE_MARGIN = 5  # steps, over which speech and silence are cross-faded

BLOCK = 1024  # analysis frames transformed at once; bounds the memory of a long recording


def whisper_segments(
    samples: Float[np.ndarray, " N"],
    front_end: AudioFrontEnd,
    n_mels: int = 80,
    stride: int = STEPS_A_SEGMENT,
) -> tuple[list[Float[np.ndarray, "3000 M"]], int]:
    """The log-mel segments to run the Whisper encoder on, and how many 20 ms steps there are in all.

    Step k of segment i is step `i * stride + k` of the recording; only the last segment is ever
    partly padding.

    Args:
      samples: recording, at least one step (320 samples) long.
      front_end: "v10" (MuseTalk 1.0, UnAvgLip, LatentSync) normalises the whole recording at once
        and then fills the last segment up with 0.0, which is not the value of silence. "v15"
        (MuseTalk 1.5, transformers) fills the recording up with digital silence and normalises each
        segment by itself.
      n_mels: 80, or 128 for whisper-large-v3.
      stride: steps from one segment to the next; 1500, as published, makes them follow each other.
    """
    samples = checked(samples, shortest=SAMPLES_A_STEP)
    steps = len(samples) // SAMPLES_A_STEP
    count = 1 + max(0, -(-(steps - STEPS_A_SEGMENT) // stride))
    starts = range(0, count * stride, stride)
    if front_end == "v10":
        mel = whisper_log_mel(samples, n_mels)
        parts = (mel[2 * start :][: 2 * STEPS_A_SEGMENT] for start in starts)
        pad = lambda x: np.pad(x, [(0, 2 * STEPS_A_SEGMENT - len(x)), (0, 0)])
        # Whole segments are views: an hour of sound is not held twice.
        return [x if len(x) == 2 * STEPS_A_SEGMENT else pad(x) for x in parts], steps
    parts = (samples[SAMPLES_A_STEP * start :][:SEGMENT] for start in starts)
    parts = (np.pad(part, (0, SEGMENT - len(part))) for part in parts)
    return [whisper_log_mel(part, n_mels) for part in parts], steps


def whisper_log_mel(
    samples: Float[np.ndarray, " N"], n_mels: int = 80
) -> Float[np.ndarray, "N/160 M"]:
    """Whisper's log-mel spectrogram, 100 rows a second, normalised by its maximum over all samples.

    The logarithm of each band is limited to 8 (that is 80 dB) below the maximum, then mapped by
    (x + 4) / 4, so that digital silence alone is -1.5.
    """
    samples = checked(samples, shortest=160)
    bank, window = mel_filters(n_mels, 400, 0, 8000).T, hann(400)

    def log_mel(frames):
        power = np.abs(np.fft.rfft(frames * window)) ** 2
        return np.log10(np.maximum(power @ bank, 1e-10)).astype(np.float32)

    # Whisper drops the last, half padded column of the centred transform.
    mel = framewise(log_mel, np.pad(samples, 200, mode="reflect"), 400, 160, len(samples) // 160)
    return (np.maximum(mel, mel.max() - 8) + 4) / 4


def wav2lip_mel(samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, "1+N/200 80"]:
    """The mel spectrogram of Wav2Lip's expert and of StableSyncNet: 80 rows a second, in [-4, 4].

    The ends are padded with zeros, as in UnAvgLip and LatentSync (librosa 0.9 and later). Wav2Lip
    itself was trained with librosa 0.7, which reflects: its first two and last two rows differ, no
    others.
    """
    samples = checked(samples)
    bank, window = mel_filters(80, 800, 55, 7600).T, hann(800)

    def decibels(frames):
        magnitude = np.abs(np.fft.rfft(frames * window)) @ bank
        level = 20 * np.log10(np.maximum(magnitude, 1e-5)) - 20
        return np.clip(8 * (level + 100) / 100 - 4, -4, 4).astype(np.float32)

    emphasised = np.pad(pre_emphasis(samples.astype(np.float64)), 400)
    return framewise(decibels, emphasised, 800, 200, 1 + len(samples) // 200)


def syncnet_mfcc(samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, "T 13"]:
    """The 13 cepstral coefficients that SyncNet (LSE-C, LSE-D) takes, 100 rows a second.

    The defaults of python_speech_features on 16-bit samples: frames of 25 ms without a window
    function, 26 triangular filters, cosine transform, lifter 22, and the logarithm of the energy as
    the first coefficient. Samples are rounded to 16 bits, which SyncNet's recordings always are.
    """
    samples = np.clip(np.rint(checked(samples).astype(np.float64) * 32768), -32768, 32767)
    length, hop, n_fft, bands = 400, 160, 512, 26
    count = 1 + max(0, -(-(len(samples) - length) // hop))
    padded = np.pad(pre_emphasis(samples), (0, max(0, (count - 1) * hop + length - len(samples))))

    # HTK's mel scale, its corners rounded down to bins of the transform
    corners = 700 * (10 ** (np.linspace(0, np.log10(1 + 8000 / 700), bands + 2)) - 1)
    bank = triangles(np.floor((n_fft + 1) * corners / SAMPLE_RATE), np.arange(n_fft // 2 + 1)).T
    k, n = np.arange(13), np.arange(bands)[:, None]
    cosines = np.cos(np.pi * k * (2 * n + 1) / (2 * bands)) * np.sqrt(2 / bands)
    cosines[:, 0] /= np.sqrt(2)
    cosines *= 1 + 11 * np.sin(np.pi * k / 22)
    log = lambda x: np.log(np.where(x == 0, np.finfo(np.float64).eps, x))

    def cepstrum(frames):
        power = np.abs(np.fft.rfft(frames, n_fft)) ** 2 / n_fft
        found = log(power @ bank) @ cosines
        found[:, 0] = log(power.sum(axis=1))
        return found.astype(np.float32)

    return framewise(cepstrum, padded, length, hop, count)


def window_indices(
    count: int, fps: Fraction, steps: int, front_end: AudioFrontEnd, lead: int = WINDOW_LEAD
) -> Int[np.ndarray, "F 10"]:
    """The encoder steps that each of the first `count` video frames hears.

    Frame i, at i / fps seconds, hears ten steps, beginning `lead` before the one at its time. Where
    the recording has no such step, "v10" repeats its first or last, and "v15" hears zeros, which
    is index `steps`: with one row of zeros behind the features a device gathers both alike.

    Args:
      count: video frames.
      fps: frames a second, exactly: `Fraction(24000, 1001)`.
      steps: of the recording (see `whisper_segments`).
      front_end: see `whisper_segments`.
      lead: 4 is what the networks were trained with. MuseTalk 1.5 as published uses
        2 * ceil(50 / fps) with fps cut to a whole number, which is also 4 from 25 to 49 frames a
        second, and elsewhere shifts the sound against the picture.
    """
    starts = [row_at(STEP_RATE, i, fps) - lead for i in range(count)]
    indices = np.array(starts, np.int64).reshape(-1, 1) + np.arange(WINDOW_STEPS)
    if front_end == "v10":
        indices = indices.clip(0, steps - 1)
    else:
        indices = np.where((indices < 0) | (indices >= steps), steps, indices)
    return indices.astype(np.int32)


def published_window_count(samples: int, fps: Fraction, front_end: AudioFrontEnd) -> int:
    """How many video frames the original programs make of a recording of so many samples.

    MuseTalk 1.0, UnAvgLip and LatentSync go on until a frame's time is past the last step: one or
    two frames longer than the recording. MuseTalk 1.5 rounds down; it cuts `fps` to a whole number
    before.
    """
    if front_end == "v10":
        return -(-(samples // SAMPLES_A_STEP + 1) * fps // STEP_RATE) + 1
    return int(samples * fps // SAMPLE_RATE)


def silence(samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, " L"]:
    """How silent each 20 ms step of a recording is: 0 where somebody speaks, 1 in a longer pause."""
    steps = len(checked(samples, shortest=SAMPLES_A_STEP)) // SAMPLES_A_STEP
    power = lambda parts: (parts.astype(np.float64) ** 2).mean(axis=1, keepdims=True)
    power = framewise(power, samples, SAMPLES_A_STEP, SAMPLES_A_STEP, steps)[:, 0]
    level = 10 * np.log10(np.maximum(power, 1e-12))
    quiet = level < max(SILENCE_FLOOR, np.percentile(level, 95) - SILENCE_BELOW)
    edges = np.flatnonzero(np.diff(np.pad(quiet, 1).astype(np.int8)))
    share = np.zeros(steps, np.float32)
    ramp = np.arange(1, SILENCE_MARGIN + 1, dtype=np.float32) / (SILENCE_MARGIN + 1)
    for start, stop in edges.reshape(-1, 2):
        if stop - start >= SILENCE_LASTS:
            share[start:stop] = 1
            if start > 0:
                share[start : start + SILENCE_MARGIN] = ramp
            if stop < steps:
                share[stop - SILENCE_MARGIN : stop] = ramp[::-1]
    return share


def gather_windows(
    features: Float[np.ndarray, "L S C"], indices: Int[np.ndarray, "F 10"]
) -> Float[np.ndarray, "F 10*S C"]:
    """The audio tokens of each frame: the steps of its window in order, layer by layer in each.

    Args:
      features: every encoder step of the recording, S layers each.
      indices: what `window_indices` gave for L steps; L stands for zeros.
    """
    windows = features[np.minimum(indices, len(features) - 1)]
    windows[indices == len(features)] = 0
    return windows.reshape(len(indices), -1, features.shape[-1])


def mel_window(
    mel: Float[np.ndarray, "T 80"], frame: int, fps: Fraction, length: int = 16
) -> Float[np.ndarray, "length 80"]:
    """The rows of `wav2lip_mel` that go with the clip whose first frame is `frame`.

    Args:
      mel: spectrogram of the recording.
      frame: number of the clip's first frame in the video.
      fps: frames a second of the video.
      length: rows; 16 for the five frames of Wav2Lip's expert at 25 frames a second.

    Raises:
      InputError: the recording ends before the clip.
    """
    start = row_at(MEL_RATE, frame, fps)
    if not 0 <= start <= len(mel) - length:
        raise InputError(
            f"the sound of frame {frame} is rows {start} to {start + length} of the mel "
            f"spectrogram, which has {len(mel)}; choose a frame inside the recording"
        )
    return mel[start : start + length]


def row_at(rate: int, frame: int, fps: Fraction) -> int:
    """The row of a feature with `rate` rows a second at the time of a video frame, rounded down."""
    if not isinstance(fps, Rational) or fps <= 0:
        raise InputError(
            f"the frame rate is {fps!r}; it must be a positive fraction, as 24000/1001"
        )
    return int(frame) * rate * fps.denominator // fps.numerator


@functools.cache
def mel_filters(
    n_mels: int, n_fft: int, low: float, high: float
) -> Float[np.ndarray, "M 1+n_fft/2"]:
    """Slaney's mel filter bank for 16 kHz, `low` to `high` in Hz: triangles of unit area.

    It is librosa's, in float32 as the published banks are.
    """
    edge, scale = 1000.0, np.log(6.4) / 27  # linear below the edge, logarithmic above

    def mels(hertz):
        return hertz * 3 / 200 if hertz < edge else 15 + np.log(hertz / edge) / scale

    points = np.linspace(mels(low), mels(high), n_mels + 2)
    corners = np.where(
        points < 15, points * 200 / 3, edge * np.exp(scale * (np.maximum(points, 15) - 15))
    )
    bank = triangles(corners, np.linspace(0, SAMPLE_RATE / 2, 1 + n_fft // 2))
    bank = (bank * (2 / (corners[2:] - corners[:-2]))[:, None]).astype(np.float32)
    bank.setflags(write=False)  # the cache hands the same array to everybody
    return bank


def triangles(
    corners: Float[np.ndarray, " M+2"], positions: Float[np.ndarray, " K"]
) -> Float[np.ndarray, "M K"]:
    """Filters that rise from one corner to 1 at the next and fall to 0 at the one after."""
    left, centre, right = (corners[i : len(corners) - 2 + i, None] for i in range(3))
    rising, falling = (positions - left) / (centre - left), (right - positions) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling))


def framewise(
    measure: Callable[[np.ndarray], np.ndarray],
    signal: Float[np.ndarray, " N"],
    length: int,
    hop: int,
    count: int,
) -> Float[np.ndarray, "count C"]:
    """`measure` of the first `count` frames (frames, length) -> (frames, C), a block at a time.

    The frames of a whole recording at once would take length / hop times its memory, in float64.
    """
    frames = np.lib.stride_tricks.sliding_window_view(signal, length)[::hop][:count]
    return np.concatenate([measure(frames[i : i + BLOCK]) for i in range(0, count, BLOCK)])


def hann(length: int) -> Float[np.ndarray, " length"]:
    """The periodic Hann window, float64."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


def pre_emphasis(samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """x[n] - 0.97 x[n - 1]; the first sample stays."""
    return np.append(samples[:1], samples[1:] - 0.97 * samples[:-1])


def checked(samples: np.ndarray, shortest: int = 1) -> Float[np.ndarray, " N"]:
    """The recording as float32.

    Raises:
      InputError: it is not mono, not floating point, not finite, or shorter than `shortest`.
    """
    samples = np.asarray(samples)
    if not np.issubdtype(samples.dtype, np.floating):
        raise InputError(
            f"the recording is {samples.dtype}; give float32 in [-1, 1] (16-bit samples / 32768)"
        )
    if samples.ndim != 1:
        raise InputError(
            f"the recording has the shape {samples.shape}; give one channel, shape (samples,)"
        )
    if len(samples) < shortest:
        raise InputError(
            f"the recording has {len(samples)} samples at 16 kHz; at least {shortest} are needed"
        )
    if not np.isfinite(samples).all():
        raise InputError("the recording contains values that are infinite or not a number")
    return samples.astype(np.float32, copy=False)
