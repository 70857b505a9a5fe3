"""Spectrograms against librosa, transformers and printed numbers; windows against the original."""

import json
import math
import tracemalloc
from fractions import Fraction
from pathlib import Path

import librosa
import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from unavglip_jax.config import InputError
from unavglip_jax.media import audio

VECTORS = Path(__file__).parent / "vectors" / "whisper_tiny"
FILM, NTSC = Fraction(24000, 1001), Fraction(30000, 1001)


def three_tones(seconds=2) -> np.ndarray:
    """The test signal of the printed numbers."""
    t = np.arange(int(seconds * 16000)) / 16000
    tones = 0.4 * np.sin(2 * np.pi * 220 * t) + 0.2 * np.sin(2 * np.pi * 1330 * t + 0.3)
    return (tones + 0.05 * np.sin(2 * np.pi * 5000 * t)).astype(np.float32)


def babble(seconds, seed=0) -> np.ndarray:
    """Noise whose loudness changes by 60 dB, with a second of digital silence."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(int(seconds * 16000))
    loudness = 10 ** (-1.5 + 1.5 * np.sin(np.arange(len(noise)) / 50000))
    noise[16000:32000] = 0
    return (0.05 * noise * loudness).astype(np.float32)


def librosa_log_mel(samples, n_mels=80):
    """Whisper's formula on librosa's transform and filters, in float64."""
    spectrum = librosa.stft(
        samples.astype(np.float64), n_fft=400, hop_length=160, pad_mode="reflect"
    )
    bank = librosa.filters.mel(sr=16000, n_fft=400, n_mels=n_mels)
    log = np.log10(np.maximum(bank @ np.abs(spectrum[:, :-1]) ** 2, 1e-10))
    return ((np.maximum(log, log.max() - 8) + 4) / 4).T


def librosa_wav2lip_mel(samples, **options):
    emphasised = np.append(samples[:1], samples[1:] - 0.97 * samples[:-1].astype(np.float64))
    spectrum = librosa.stft(emphasised, n_fft=800, hop_length=200, **options)
    bank = librosa.filters.mel(sr=16000, n_fft=800, n_mels=80, fmin=55, fmax=7600)
    level = 20 * np.log10(np.maximum(bank @ np.abs(spectrum), 1e-5)) - 20
    return np.clip(8 * (level + 100) / 100 - 4, -4, 4).T


@pytest.mark.parametrize(
    "bank", [(80, 400, 0, 8000), (128, 400, 0, 8000), (80, 800, 55, 7600)], ids=str
)
def test_mel_filters_are_librosas(bank):
    n_mels, n_fft, low, high = bank
    theirs = librosa.filters.mel(sr=16000, n_fft=n_fft, n_mels=n_mels, fmin=low, fmax=high)
    ours = audio.mel_filters(*bank)
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() < 2e-7 * theirs.max()


def test_whisper_log_mel_gives_the_printed_numbers():
    mel = audio.whisper_log_mel(three_tones()).T.astype(np.float64)
    assert mel.shape == (80, 200)
    # They were computed in float32, whose transform of pure tones has a noise of 3e-5 of its own.
    np.testing.assert_allclose(mel[0, 0:3], [1.1097857, 0.5645058, 0.1714091], atol=3e-5)
    np.testing.assert_allclose(mel[40, 100:103], [-0.5257194, -0.5382489, -0.5350537], atol=3e-5)
    assert mel.sum() == pytest.approx(-3434.89780, abs=5e-3)
    assert (mel**2).sum() == pytest.approx(6397.04964, abs=1e-2)


@pytest.mark.parametrize("seconds", [0.0101, 0.5, 6.0161, 31])
def test_whisper_log_mel_is_librosas(seconds):
    samples = babble(31)[-int(seconds * 16000) :]
    ours = audio.whisper_log_mel(samples)
    assert ours.shape == (len(samples) // 160, 80)
    assert ours.dtype == np.float32
    if len(samples) > 200:
        np.testing.assert_allclose(ours, librosa_log_mel(samples), atol=1e-6)


def test_silence_is_minus_one_and_a_half():
    assert np.all(audio.whisper_log_mel(np.zeros(16000, np.float32)) == -1.5)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_v15_segments_are_transformers_features(n_mels):
    samples = babble(33)
    ours, steps = audio.whisper_segments(samples, "v15", n_mels)
    assert steps == 33 * 50
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    parts = [samples[:480000], samples[480000:]]
    theirs = extractor(parts, sampling_rate=16000, return_tensors="np").input_features
    # transformers computes in float32 where torch is installed: 3.5e-5 from its own float64.
    np.testing.assert_allclose(ours, theirs.swapaxes(1, 2), atol=5e-5)


def test_v10_normalises_the_whole_and_pads_the_spectrogram_with_zeros():
    samples = babble(33)
    samples[480000:] *= 0.01
    segments, steps = audio.whisper_segments(samples, "v10")
    assert ([x.shape for x in segments], steps) == ([(3000, 80)] * 2, 1650)
    rows = np.concatenate(segments)
    np.testing.assert_array_equal(rows[:3300], audio.whisper_log_mel(samples))
    assert not rows[3300:].any()
    # 80 dB below the loud segment, also in the quiet one
    assert rows[3000:3300].min() == pytest.approx(rows[:3000].max() - 2)
    alone, _ = audio.whisper_segments(samples, "v15")
    assert alone[1].min() < rows[3000:3300].min() - 0.1


@pytest.mark.parametrize("front_end", ["v10", "v15"])
@pytest.mark.parametrize(
    ("samples", "segments", "steps"),
    [
        (320, 1, 1),
        (959, 1, 2),
        (480000 - 1, 1, 1499),
        (480000, 1, 1500),
        (480000 + 319, 1, 1500),  # one more column of v1.0's spectrogram, but no step
        (480000 + 320, 2, 1501),
    ],
)
def test_every_whole_step_is_kept(front_end, samples, segments, steps):
    found, kept = audio.whisper_segments(np.full(samples, 0.1, np.float32), front_end)
    assert ([x.shape for x in found], kept) == ([(3000, 80)] * segments, steps)


def test_wav2lip_mel_gives_the_printed_numbers():
    mel = audio.wav2lip_mel(three_tones()).T.astype(np.float64)
    assert mel.shape == (80, 161)
    np.testing.assert_allclose(mel[0, 0:3], [-0.5553179, -1.11811371, -4.0], atol=1e-7)
    assert mel.sum() == pytest.approx(-42614.58503, abs=1e-4)
    assert (mel**2).sum() == pytest.approx(172258.47798, abs=1e-3)


@pytest.mark.filterwarnings("ignore:n_fft=800 is too large")
@pytest.mark.parametrize("samples", [200, 799, 16000, 50123])
def test_wav2lip_mel_is_librosas(samples):
    ours = audio.wav2lip_mel(babble(5)[-samples:])
    theirs = librosa_wav2lip_mel(babble(5)[-samples:], pad_mode="constant")
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_wav2lip_mel_of_the_reflecting_librosa_differs_in_two_rows_at_each_end():
    samples = babble(5)
    reflected = librosa_wav2lip_mel(samples, pad_mode="reflect")
    differs = np.abs(audio.wav2lip_mel(samples) - reflected).max(axis=1) > 1e-4
    assert differs[[0, 1, -2, -1]].all() and not differs[2:-2].any()


def test_mel_window_starts_at_the_frames_time():
    mel = np.arange(4000 * 80, dtype=np.float32).reshape(4000, 80)
    assert audio.mel_window(mel, 7, Fraction(25))[0, 0] == int(3.2 * 7) * 80
    np.testing.assert_array_equal(audio.mel_window(mel, 9, Fraction(25), 52), mel[28:80])
    assert audio.mel_window(mel, 24 * 40, FILM)[0, 0] == 3203 * 80  # 40.04 s
    assert audio.mel_window(mel, np.int64(0), 25).shape == (16, 80)
    audio.mel_window(mel[:48], 10, Fraction(25))
    for rows, frame in ((47, 10), (48, -1), (15, 0)):
        with pytest.raises(InputError, match=rf"sound of frame {frame} .*has {rows}"):
            audio.mel_window(mel[:rows], frame, Fraction(25))


def test_syncnet_mfcc_is_python_speech_features():
    mfcc = audio.syncnet_mfcc(three_tones()).astype(np.float64)
    assert mfcc.shape == (199, 13)
    # What python_speech_features 0.6 gives for the same signal as int16.
    expected = [
        [21.39835695, 1.099879372, -2.981424569, -13.208569054, 17.323907819, 53.026881218]
        + [-48.115745801, -12.106938626, -60.921575697, 9.700544604, 0.87754237, -44.399488844]
        + [-12.412142666],
        [21.17529349, -0.243999529, -4.771174442, -4.388357224, 15.630852707, 52.1829579]
        + [-45.642781934, -15.857276087, -56.0254653, 9.195226199, 3.364905166, -39.748351003]
        + [-10.67500997],
    ]
    np.testing.assert_allclose(mfcc[[0, -1]], expected, rtol=1e-6, atol=1e-6)
    assert mfcc.sum() == pytest.approx(-17079.706042205, abs=1e-3)
    assert (mfcc**2).sum() == pytest.approx(2401394.675296747, abs=0.1)


@pytest.mark.parametrize(
    ("samples", "rows"), [(1, 1), (400, 1), (401, 2), (560, 2), (561, 3), (16000, 99)]
)
def test_syncnet_mfcc_completes_the_last_frame(samples, rows):
    signal = three_tones()[100 : 100 + samples]
    mfcc = audio.syncnet_mfcc(signal)
    assert mfcc.shape == (rows, 13)
    completed = np.concatenate([signal, np.zeros((rows - 1) * 160 + 400 - samples, np.float32)])
    # In the completed recording the first added sample is pre-emphasised too, in the last frames.
    whole = max(0, (samples - 400) // 160 + 1)
    np.testing.assert_array_equal(mfcc[:whole], audio.syncnet_mfcc(completed)[:whole])


def test_syncnet_mfcc_of_silence_and_of_clipping():
    silent = audio.syncnet_mfcc(np.zeros(16000, np.float32))
    assert np.isfinite(silent).all()
    np.testing.assert_allclose(silent[:, 0], np.log(np.finfo(np.float64).eps), rtol=1e-6)
    loud = 3 * babble(1)
    full = np.clip(np.rint(loud.astype(np.float64) * 32768), -32768, 32767) / 32768
    np.testing.assert_array_equal(audio.syncnet_mfcc(loud), audio.syncnet_mfcc(full))


@pytest.mark.parametrize("measure", [audio.whisper_log_mel, audio.wav2lip_mel, audio.syncnet_mfcc])
@pytest.mark.parametrize("block", [1, 7, 99])
def test_blocks_leave_no_trace(monkeypatch, measure, block):
    whole = measure(babble(1))
    assert len(whole) < audio.BLOCK
    monkeypatch.setattr(audio, "BLOCK", block)
    np.testing.assert_allclose(measure(babble(1)), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("measure", [audio.whisper_log_mel, audio.wav2lip_mel, audio.syncnet_mfcc])
def test_memory_is_a_few_times_the_recordings(measure):
    samples = np.tile(babble(10), 30)
    tracemalloc.start()
    measure(samples)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 7 * samples.nbytes


# The first step of the windows of frames 0, 1, 2, 3 and 7.
CENTRED = {
    Fraction(24): [-4, -2, 0, 2, 10],
    Fraction(25): [-4, -2, 0, 2, 10],
    NTSC: [-4, -3, -1, 1, 7],
    Fraction("29.97"): [-4, -3, -1, 1, 7],
    Fraction(30): [-4, -3, -1, 1, 7],
    Fraction(50): [-4, -3, -2, -1, 3],
    Fraction(60): [-4, -4, -3, -2, 1],
}
PUBLISHED_V15 = {
    24: [-6, -4, -2, 0, 8],
    25: [-4, -2, 0, 2, 10],
    29: [-4, -3, -1, 1, 8],
    30: [-4, -3, -1, 1, 7],
    50: [-2, -1, 0, 1, 5],
    60: [-2, -2, -1, 0, 3],
}


@pytest.mark.parametrize("fps", CENTRED, ids=str)
def test_windows_are_centred_on_the_frame(fps):
    expected = np.array(CENTRED[fps])[:, None] + np.arange(10)
    v10 = audio.window_indices(8, fps, 100, "v10")[[0, 1, 2, 3, 7]]
    v15 = audio.window_indices(8, fps, 100, "v15")[[0, 1, 2, 3, 7]]
    np.testing.assert_array_equal(v10, expected.clip(0))
    np.testing.assert_array_equal(v15, np.where(expected < 0, 100, expected))


@pytest.mark.parametrize("fps", PUBLISHED_V15)
def test_published_v15_windows(fps):
    expected = np.array(PUBLISHED_V15[fps])[:, None] + np.arange(10)
    found = audio.window_indices(8, Fraction(fps), 100, "v15", lead=2 * math.ceil(50 / fps))
    np.testing.assert_array_equal(found[[0, 1, 2, 3, 7]], np.where(expected < 0, 100, expected))


@pytest.mark.parametrize(
    ("fps", "count"),
    [(Fraction(24), 50), (Fraction(25), 52), (NTSC, 62), (Fraction(30), 62), (Fraction(50), 102)]
    + [(Fraction(60), 123)],
)
def test_published_window_counts(fps, count):
    assert audio.published_window_count(32000, fps, "v10") == count
    assert audio.published_window_count(32000, int(fps), "v15") == 2 * int(fps)


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30), FILM, NTSC, Fraction(60)], ids=str)
def test_windows_are_the_originals(fps):
    stored = json.loads((VECTORS / "window_indices.json").read_text())
    stored = np.array({round(float(k), 2): v for k, v in stored.items()}[round(float(fps), 2)])
    samples = json.loads((VECTORS / "manifest.json").read_text())["samples"]
    count = audio.published_window_count(samples, fps, "v10")
    found = audio.window_indices(count, fps, samples // 320, "v10")
    np.testing.assert_array_equal(found, stored)
    assert found.dtype == np.int32


def test_windows_never_drift():
    # 1001 * 3 s are exactly 24000 * 3 frames; a truncated rate would be off by whole steps.
    count = 24000 * 3 + 1
    assert audio.window_indices(count, FILM, 10**9, "v10")[-1, 4] == 1001 * 3 * 50
    # A rate that came from a float has a huge denominator, which must not overflow.
    found = audio.window_indices(count, Fraction(24000 / 1001), 10**9, "v10")[:, 4]
    exact = audio.window_indices(count, FILM, 10**9, "v10")[:, 4]
    assert np.abs(found - exact).max() <= 1


def test_outside_the_recording_v10_repeats_and_v15_is_silent():
    features = np.random.default_rng(0).standard_normal((20, 3, 8)).astype(np.float32)
    v10, v15 = (
        audio.gather_windows(features, audio.window_indices(12, Fraction(25), 20, front_end))
        for front_end in ("v10", "v15")
    )
    assert v10.shape == v15.shape == (12, 30, 8)
    for frame in range(12):
        for k in range(10):
            step = 2 * frame - 4 + k
            tokens = slice(3 * k, 3 * k + 3)
            np.testing.assert_array_equal(v10[frame, tokens], features[min(max(step, 0), 19)])
            inside = 0 <= step < 20
            np.testing.assert_array_equal(v15[frame, tokens], features[step] if inside else 0)


@pytest.mark.parametrize("fps", [Fraction(0), Fraction(-25), 29.97, None])
def test_a_frame_rate_is_a_positive_fraction(fps):
    with pytest.raises(InputError, match="frame rate is"):
        audio.window_indices(1, fps, 10, "v10")


@pytest.mark.parametrize(
    "hear",
    [
        audio.whisper_log_mel,
        audio.wav2lip_mel,
        audio.syncnet_mfcc,
        lambda samples: audio.whisper_segments(samples, "v10"),
        lambda samples: audio.whisper_segments(samples, "v15"),
    ],
    ids=["log_mel", "wav2lip", "mfcc", "v10", "v15"],
)
@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0, np.float32), "has 0 samples"),
        (np.zeros((2, 16000), np.float32), r"shape \(2, 16000\)"),
        (np.float32(1), r"shape \(\)"),
        (np.zeros(16000, np.int16), "is int16"),
        (np.where(np.arange(16000) == 7, np.nan, 0), "not a number"),
        (np.where(np.arange(16000) == 7, np.inf, 0), "infinite"),
    ],
    ids=["empty", "stereo", "scalar", "int16", "nan", "inf"],
)
def test_bad_recordings_are_refused(hear, samples, message):
    with pytest.raises(InputError, match=message):
        hear(samples)


def test_a_recording_shorter_than_a_step_is_refused():
    with pytest.raises(InputError, match=r"has 319 samples .* at least 320"):
        audio.whisper_segments(np.zeros(319, np.float32), "v15")
