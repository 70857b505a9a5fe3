"""Speech with its mouth: what a small audio encoder learns from, and that it learns."""

import numpy as np
import pytest

from unavglip_jax.data import spoken
from unavglip_jax.models.whisper import WhisperConfig
from unavglip_jax.training import hearing


@pytest.fixture(scope="module")
def lessons():
    return [spoken.lesson(number, seed=5, front_end="v15", n_mels=80) for number in range(9)]


def test_a_lesson_fills_a_segment_and_rests_behind_its_end(lessons):
    for made in lessons:
        assert made.mel.shape == (3000, 80) and made.mel.dtype == np.float16
        assert made.mouth.shape == (750, 5)
        assert 0 < made.spoken <= 750
        assert made.mouth[: made.spoken, 0].max() > 0.5
        assert np.abs(made.mouth[made.spoken + 10 :]).max(initial=0) < 0.05


def test_the_mouth_is_open_when_it_is_loud(lessons):
    for made in lessons:
        loud = made.mel.astype(np.float32).mean(axis=1).reshape(750, 4).mean(axis=1)
        heard = slice(0, made.spoken)
        by_lag = {
            lag: np.corrcoef(np.roll(loud, lag)[heard], made.mouth[heard, 0])[0, 1]
            for lag in range(-8, 9, 2)
        }
        # The jaw opens a little before the sound.
        assert max(by_lag, key=by_lag.get) in (-2, 0, 2) and max(by_lag.values()) > 0.3


def test_a_lesson_is_always_the_same(lessons):
    again = spoken.lesson(1, seed=5, front_end="v15", n_mels=80)
    assert np.array_equal(again.mel, lessons[1].mel)
    assert not np.array_equal(lessons[0].mel, lessons[1].mel)


def test_disturbed_speech_is_as_long_and_finite():
    silence = np.zeros(16000, np.float32)
    for seed in range(10):
        out = spoken.disturbed(silence, np.random.default_rng(seed))
        assert out.shape == (16000,) and np.isfinite(out).all() and np.abs(out).max() <= 1


def test_an_encoder_of_two_convolutions_learns_the_mouth(monkeypatch, lessons):
    monkeypatch.setattr(hearing, "HELD_OUT", 1)
    monkeypatch.setattr(spoken, "lessons", lambda numbers, *_: [lessons[i] for i in numbers])
    config = WhisperConfig(n_audio_state=32, n_audio_head=2, n_audio_layer=0)
    weights, report = hearing.pretrain(config, "v15", recordings=8, steps=250, batch_size=1)
    print(report)
    assert report.correlations["open"] > 0.6
    assert not weights["positional_embedding"].any()
    assert not any(name.startswith("mouth/") for name in weights)
