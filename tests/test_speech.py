"""Phoneme times against the sound itself, and mouths against what the words demand."""

import hashlib
import subprocess
import sys
import time
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import scipy.signal

from unavglip_jax.config import InputError
from unavglip_jax.data.motion import head_motion
from unavglip_jax.data.speech import (
    CLOSED,
    LEAD,
    MEN,
    PAUSE,
    VOICES,
    WOMEN,
    Phoneme,
    Speech,
    sentence,
    speak,
)
from unavglip_jax.data.visemes import MOUTH, VISEMES, mouth_track

MAN, WOMAN = "en-us+m3", "en-gb-x-rp+f2"
FPS = Fraction(25)
OPEN, WIDE, ROUND, PRESS, TUCK = range(5)
# Every word with the sounds that it certainly has.
LABIALS = "Papa may pump up a bubble, Bob; my mommy maps a big amber lamp by the pub."
LABIODENTALS = "Five of Eva's very fluffy foxes have left over half a leaf for Vivian's wife."


def symbols(speech: Speech) -> list[str]:
    return [phoneme.symbol.strip("ˈˌ") for phoneme in speech.phonemes]


def spans(speech: Speech, *wanted: str) -> list[Phoneme]:
    return [p for p in speech.phonemes if p.symbol.strip("ˈˌ") in wanted]


def track(speech: Speech, fps=FPS) -> np.ndarray:
    return mouth_track(speech, int(len(speech.samples) / speech.rate * fps), Fraction(fps))


def said(text: str, voice: str = MAN) -> tuple[Speech, np.ndarray]:
    """The speech and its mouth at 1000 frames a second, so that frames are milliseconds."""
    speech = speak(text, voice, 150)
    return speech, track(speech, Fraction(1000))


def inside(phoneme: Phoneme) -> slice:
    return slice(int(np.ceil(phoneme.start * 1000)), int(phoneme.stop * 1000))


def level(samples: np.ndarray, rate: int, band: tuple[float, float]) -> np.ndarray:
    """Amplitude in a band of frequencies, every 5 ms."""
    filtered = scipy.signal.sosfiltfilt(
        scipy.signal.butter(4, band, "bandpass", fs=rate, output="sos"), samples
    )
    block = rate // 200
    blocks = filtered[: len(filtered) // block * block].reshape(-1, block)
    return np.sqrt((blocks**2).mean(axis=1))


def labels(speech: Speech, count: int, wanted: tuple[str, ...]) -> np.ndarray:
    """1 every 5 ms while one of some sounds is spoken."""
    times = (np.arange(count) + 0.5) * (speech.rate // 200) / speech.rate
    return sum(
        ((times >= p.start) & (times < p.stop)).astype(float) for p in spans(speech, *wanted)
    )


def best_lag(a: np.ndarray, b: np.ndarray, reach: int = 20) -> int:
    """By how many steps a is later than b."""
    middle = slice(reach, len(b) - reach)
    scores = [
        np.corrcoef(np.roll(a, -lag)[middle], b[middle])[0, 1] for lag in range(-reach, reach + 1)
    ]
    return int(np.argmax(scores)) - reach


# Speech


@pytest.mark.parametrize("voice", [MAN, WOMAN, "en-us-nyc+belinda", "en-gb-scotland+m7"])
def test_fricatives_are_where_the_sound_hisses(voice):
    speech = speak("She sees six zebras, Sasha chooses shoes; his sisters wash such dishes.", voice)
    hiss = level(speech.samples, speech.rate, (3500, 9000))
    lag = best_lag(hiss, labels(speech, len(hiss), ("s", "z", "ʃ", "ʒ")))
    assert abs(lag) <= 1  # 5 ms


@pytest.mark.parametrize("voice", [MAN, WOMAN])
def test_vowels_are_where_the_sound_is_loud(voice):
    speech = speak("Ah, oh, he saw it, who shoots, she sees us, I ask.", voice)
    loud = level(speech.samples, speech.rate, (200, 3000))
    vowels = tuple({s for s in symbols(speech) if s[0] in "ɑaæʌɐɒɔoʊuʉɛeɪiəɜ"})
    assert abs(best_lag(np.minimum(loud, np.median(loud)), labels(speech, len(loud), vowels))) <= 3


def test_phonemes_fill_the_recording_without_gaps():
    for voice in (MAN, WOMAN):
        speech = speak(f"{LABIALS} {LABIODENTALS} Really? 1987 times!", voice)
        assert speech.samples.dtype == np.float32 and 0.05 < np.abs(speech.samples).max() <= 1
        assert speech.phonemes[0].start == 0 and speech.phonemes[0].symbol == PAUSE
        assert speech.phonemes[0].stop > LEAD / 2  # the rest is the closure of the first p
        assert speech.phonemes[-1].stop == pytest.approx(len(speech.samples) / speech.rate)
        assert all(p.start < p.stop for p in speech.phonemes)
        assert all(a.stop == b.start for a, b in pairwise(speech.phonemes))
        assert not any(a.symbol == b.symbol == PAUSE for a, b in pairwise(speech.phonemes))


def test_known_words_have_their_sounds():
    assert symbols(speak("boom", MAN))[1:5] == ["b" + CLOSED, "b", "uː", "m"]
    assert symbols(speak("five chips", MAN))[1:11] == [
        "f", "aɪ", "v", "tʃ" + CLOSED, "tʃ", "ɪ", "p" + CLOSED, "p", "s", PAUSE,
    ]  # fmt: skip
    assert "ɒ" in symbols(speak("hot", WOMAN)) and "ɑː" in symbols(
        speak("hot", MAN)
    )  # British, American


def test_voiceless_stops_are_silent_until_their_release():
    for voice in (MAN, WOMAN):
        speech = speak("A cap, a cat, a coat, a peak: take a cup of tea to the party.", voice)
        loud = level(speech.samples, speech.rate, (100, 9000))
        full = np.percentile(loud, 90)
        closures = [
            (before, stop)
            for before, stop in pairwise(speech.phonemes)
            if stop.symbol in ("p" + CLOSED, "t" + CLOSED, "k" + CLOSED) and before.symbol != PAUSE
        ]
        assert len(closures) > 8
        at = lambda time, speech=speech: int(time * speech.rate / (speech.rate // 200))
        for _, stop in closures:
            assert 0.02 < stop.stop - stop.start <= 0.121
            during = loud[at(stop.start) + 1 : at(stop.stop)]
            assert during.mean() < 0.2 * full
            assert loud[at(stop.stop) : at(stop.stop) + 6].max() > 3 * during.mean()  # the release


def test_the_same_words_give_the_same_samples_whatever_was_said_before():
    say = lambda: speak("She said that both of us have finished.", WOMAN)
    first = say()
    time.sleep(1.1)  # espeak-ng's own seed is the time in seconds
    speak("Something else altogether, and longer.", MAN, 250, 80)
    again = say()
    np.testing.assert_array_equal(first.samples, again.samples)
    assert first.phonemes == again.phonemes
    program = (
        "import hashlib; from unavglip_jax.data.speech import speak; print(hashlib.sha256("
        f"speak('She said that both of us have finished.', {WOMAN!r}).samples.tobytes()).hexdigest())"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert elsewhere.stdout.strip() == hashlib.sha256(first.samples.tobytes()).hexdigest()


def test_voices_differ_and_have_only_sounds_with_a_mouth_shape():
    rng, recordings = np.random.default_rng(0), set()
    for voice in VOICES:
        recordings.add(speak("Pat is here now, not far.", voice).samples.tobytes())
        speech = speak(sentence(rng), voice)
        assert np.isfinite(track(speech)).all()
    assert len(recordings) == len(VOICES)


def test_women_speak_higher_than_men():
    # Only the names without espeak-ng's own m and f tell us nothing; those are checked by ear and by this.
    assert np.median([voice_pitch(f"en-us+{v}") for v in WOMEN]) > 1.4 * np.median(
        [voice_pitch(f"en-us+{v}") for v in MEN]
    )


def voice_pitch(voice: str, **options) -> float:
    """Hz, where the sound resembles itself most."""
    speech = speak("All our sailors roam.", voice, **options)
    middle = speech.samples[len(speech.samples) // 3 :][: speech.rate // 4]
    alike = scipy.signal.correlate(middle, middle)[len(middle) - 1 :]
    shortest = speech.rate // 320
    return speech.rate / (shortest + int(np.argmax(alike[shortest : speech.rate // 60])))


def test_rate_and_pitch_are_followed():
    duration = lambda rate: len(speak(LABIALS, MAN, rate).samples)
    assert duration(120) > 1.2 * duration(170) > 1.5 * duration(240)
    assert voice_pitch(MAN, pitch=90) > 1.15 * voice_pitch(MAN, pitch=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Hello.", "en-us+nobody"), "no voice 'en-us\\+nobody'"),
        (("Hello.", "m3"), "no voice"),
        (("Hello.", MAN, 5), "5 words a minute"),
        (("Hello.", MAN, 170, 100), "pitch 100"),
        (("", MAN), "nothing in the text"),
        ((" ... ", MAN), "nothing in the text"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        speak(*arguments)


def test_without_the_wheel_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(InputError, match=r"pip install 'unavglip-jax\[demo\]'"):
        speak("Hello.", MAN)


def test_sentences_are_many_and_well_formed():
    rng = np.random.default_rng(0)
    sentences = [sentence(rng) for _ in range(5000)]
    assert len(set(sentences)) > 4500
    for text in sentences:
        assert text[0].isupper() or text[0].isdigit()
        assert text[-1] in ".?!" and "  " not in text and text == text.strip()
    rng = np.random.default_rng(0)
    assert [sentence(rng) for _ in range(10)] == sentences[:10]


def test_sentences_hold_every_sound_that_lips_show():
    rng, counts = np.random.default_rng(1), {}
    for _ in range(60):
        for symbol in symbols(speak(sentence(rng), MAN)):
            counts[symbol] = counts.get(symbol, 0) + 1
    for sound in ("p", "b", "m", "f", "v", "w", "oʊ", "uː", "iː", "ɪ", "ɛ", "æ", "ʌ", "aɪ", "eɪ",
                  "aʊ", "l", "ɹ", "s", "z", "ʃ", "tʃ", "dʒ", "θ", "ð", "t", "d", "n", "k", "ɡ", "ŋ",
                  "h", "j"):  # fmt: skip
        assert counts.get(sound, 0) >= 3, sound
    for sound in ("p", "b", "m", "f", "v", "w", "uː", "iː"):
        assert counts[sound] >= 20, sound


# Mouths


def test_mouths_are_within_their_range_and_as_many_as_frames():
    assert MOUTH == ("open", "wide", "round", "press", "tuck")
    speech = speak(f"{LABIALS} {LABIODENTALS}", WOMAN)
    mouths = mouth_track(speech, 1000, FPS)
    assert mouths.shape == (1000, 5)
    assert mouths.min() >= 0 and mouths.max() <= 1
    assert (
        mouths[int(len(speech.samples) / speech.rate * 25) + 5 :].max() < 0.01
    )  # rest after the end
    assert mouth_track(speech, 0, FPS).shape == (0, 5)
    for mouth in VISEMES.values():
        assert len(mouth) == 5 and min(mouth) >= 0 and max(mouth) <= 1


@pytest.mark.parametrize("voice", [MAN, WOMAN])
def test_lips_close_on_every_p_b_and_m(voice):
    speech, mouths = said(LABIALS, voice)
    closures = spans(speech, "p" + CLOSED, "b" + CLOSED, "m")
    assert len(closures) >= LABIALS.lower().count("p") + 10
    for closure in closures:
        shut = mouths[inside(closure)]
        assert shut[:, PRESS].min() > 0.97 and shut[:, OPEN].max() < 0.02
    # At 25 frames a second whatever frame falls into a closure shows it.
    frames = track(speech)
    seen = [
        frames[i]
        for i in range(len(frames))
        if any(closure.start <= i / 25 < closure.stop for closure in closures)
    ]
    assert len(seen) > len(closures)
    assert min(m[PRESS] for m in seen) > 0.97 and max(m[OPEN] for m in seen) < 0.02


@pytest.mark.parametrize("voice", [MAN, WOMAN])
def test_the_lip_is_tucked_on_every_f_and_v(voice):
    speech, mouths = said(LABIODENTALS, voice)
    found = spans(speech, "f", "v")
    assert len(found) >= 14
    for phoneme in found:
        tucked = mouths[inside(phoneme)]
        assert tucked[:, TUCK].min() > 0.95 and tucked[:, OPEN].max() < 0.12
        assert tucked[:, PRESS].max() < 0.05


def test_tuck_and_press_follow_each_other_in_of_people():
    speech, mouths = said("A lot of people have been of both minds.")
    for phoneme in spans(speech, "v"):
        assert mouths[inside(phoneme), TUCK].mean() > 0.8
    for phoneme in spans(speech, "p" + CLOSED, "b" + CLOSED, "m"):
        assert mouths[inside(phoneme), PRESS].mean() > 0.8
    assert (mouths[:, TUCK] + mouths[:, PRESS]).max() < 1.3


def test_the_mouth_rests_in_pauses():
    speech, mouths = said("Oh, I see how far. Are you far away? Ah. Who, me.")
    pauses = [p for p in spans(speech, PAUSE) if p.stop - p.start > 0.25]
    assert len(pauses) >= 3, pauses
    for pause in pauses:
        rest = mouths[inside(pause)]
        after = 0 if pause.start == 0 else 150
        # towards its end the next sound is already in preparation
        assert rest[after:-80, OPEN].max(initial=0) < 0.05
        assert rest[after:-120, WIDE].max(initial=0) < 0.1
        assert rest[:-100, PRESS].max() < 0.02


def middle_of(text: str, sound: str, voice: str = MAN) -> np.ndarray:
    speech, mouths = said(text, voice)
    (phoneme,) = spans(speech, sound)
    return mouths[round(500 * (phoneme.start + phoneme.stop))]


def test_vowels_have_their_shapes():
    ee, oo, ah, aw = (
        middle_of(*x) for x in (("tea", "iː"), ("two", "uː"), ("tar", "ɑːɹ"), ("law", "ɔː"))
    )
    a, eh, ih = (middle_of(*x) for x in (("cat", "æ"), ("get", "ɛ"), ("kit", "ɪ")))
    assert ee[WIDE] > 0.75 and ee[ROUND] < 0.1 and ee[OPEN] < 0.4
    assert oo[ROUND] > 0.75 and oo[WIDE] < 0.1 and oo[OPEN] < 0.4
    assert ah[OPEN] > 0.7 and aw[ROUND] > 0.35
    assert ah[OPEN] > eh[OPEN] > ih[OPEN] > ee[OPEN] and a[OPEN] > eh[OPEN]
    assert middle_of("we", "w")[ROUND] > 0.6


def test_diphthongs_glide():
    def ends(text, sound):
        speech, mouths = said(text)
        (phoneme,) = spans(speech, sound)
        part = mouths[inside(phoneme)]
        return part[len(part) // 4], part[-len(part) // 6]

    start, stop = ends("nice", "aɪ")
    assert start[OPEN] > stop[OPEN] + 0.2 and stop[WIDE] > start[WIDE] + 0.1
    start, stop = ends("house", "aʊ")
    assert start[OPEN] > stop[OPEN] + 0.2 and stop[ROUND] > start[ROUND] + 0.1


def test_lips_round_ahead_of_the_vowel():
    """The s of "stool" is spoken with the lips of its vowel, 100 ms later, that of "steel" is not."""
    stool, steel = middle_of("a stool", "s"), middle_of("a steel", "s")
    assert stool[ROUND] > steel[ROUND] + 0.1
    assert steel[WIDE] > stool[WIDE]


def test_mouths_move_smoothly():
    rng = np.random.default_rng(3)
    for voice in (MAN, WOMAN, "en-us+f5"):
        change = np.abs(
            np.diff(track(speak(" ".join(sentence(rng) for _ in range(4)), voice)), axis=0)
        )
        assert change[:, OPEN].max() <= 0.601
        assert change[:, WIDE : ROUND + 1].max() < 0.75


def test_mouths_depend_on_time_and_not_on_the_frame_rate():
    speech = speak(LABIALS, MAN)
    slow, fast = mouth_track(speech, 100, FPS), mouth_track(speech, 400, 4 * FPS)
    np.testing.assert_allclose(slow, fast[::4], atol=1e-9)
    ntsc = mouth_track(speech, 60, Fraction(24000, 1001))
    fine = mouth_track(speech, 4000, Fraction(1000))
    for i in (7, 30, 59):
        np.testing.assert_allclose(ntsc[i], fine[round(i * 1001 / 24)], atol=0.02)


def test_speech_is_lively():
    rng = np.random.default_rng(4)
    opening = np.concatenate([track(speak(sentence(rng), MAN))[:, OPEN] for _ in range(30)])
    assert opening.max() > 0.9 and np.percentile(opening, 95) > 0.5 and opening.mean() > 0.15


def test_a_sound_without_a_shape_is_refused():
    with pytest.raises(InputError, match="'ǃ'"):
        mouth_track(Speech(np.zeros(800, np.float32), 8000, (Phoneme(0, 0.1, "ǃ"),)), 2, FPS)


# Motion


def test_motion_is_reproducible_and_small():
    speech = speak(LABIALS, MAN)
    make = lambda seed, fps=FPS: np.array(
        head_motion(np.random.default_rng(seed), 1500, fps, speech)
    )
    poses = make(0)
    np.testing.assert_array_equal(poses, make(0))
    assert np.abs(poses - make(1)).max() > 0.05
    x, y, scale, roll, yaw, pitch = poses[:, :6].T
    for moved, most in (
        (x, 0.1),
        (y, 0.1),
        (scale - 1, 0.1),
        (roll, 0.12),
        (yaw, 0.3),
        (pitch, 0.2),
    ):
        assert moved.std() > 0.001 and np.abs(moved).max() < most
        assert np.abs(np.diff(moved)).max() < 0.015  # a frame
    np.testing.assert_allclose(
        np.diff(make(0, 2 * FPS)[:100:2], axis=0), np.diff(poses[:50], axis=0), atol=1e-9
    )
    assert head_motion(np.random.default_rng(0), 0, FPS) == []


def test_eyes_blink_every_few_seconds_for_six_frames():
    poses = head_motion(np.random.default_rng(5), 25 * 120, FPS)
    shut = np.array([pose.blink for pose in poses])
    assert shut.min() == 0 and shut.max() <= 1
    edges = np.diff(np.concatenate([[0], shut > 0, [0]]))
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    assert 120 / 6 <= len(first) <= 120 / 2
    assert set(last - first) <= {5, 6, 7}
    assert ((np.diff(first) >= 49) & (np.diff(first) <= 151)).all()
    assert all(shut[a:b].max() > 0.7 for a, b in zip(first, last, strict=True))
    gaze = np.array([(pose.gaze_x, pose.gaze_y, pose.brow) for pose in poses])
    assert np.abs(gaze).max() <= 1 and gaze.std(axis=0).min() > 0.03


def test_heads_nod_on_stressed_vowels():
    stressed = Phoneme(2.0, 2.2, "ˈɑː")
    speech = Speech(np.zeros(32000, np.float32), 8000, (Phoneme(0, 2, PAUSE), stressed))
    more = []
    for seed in range(40):
        still = head_motion(np.random.default_rng(seed), 100, FPS)
        nodded = head_motion(np.random.default_rng(seed), 100, FPS, speech)
        more.append(np.array([b.pitch - a.pitch for a, b in zip(still, nodded, strict=True)]))
    more = np.array(more)
    nods = more.max(axis=1) > 0.005
    assert 5 < nods.sum() < 35
    assert np.abs(more[nods].argmax(axis=1) / 25 - 2.1).max() < 0.05
    assert np.abs(more[:, :25]).max() < 1e-6
