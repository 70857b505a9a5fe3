"""Clips of talking heads: what is in the files, that they can be made again, and in pieces."""

import json
import os
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from unavglip_jax import assets
from unavglip_jax.config import InputError
from unavglip_jax.data import synth
from unavglip_jax.data.speech import MEN, PAUSE, VOICES, WOMEN, Phoneme
from unavglip_jax.data.synth import contact_sheet, synthesise
from unavglip_jax.data.visemes import MOUTH, VISEMES
from unavglip_jax.faces.tracking import Tracker
from unavglip_jax.media.video import describe, describe_sound, read_audio, read_frames

DETECTOR, MESH = "face_detection_short_range.tflite", "face_landmark.tflite"
TINY = dict(photograph_share=0.0, processes=1, quiet=True)


def draw(head, mouth, pose, size, rng=None):
    """Stands in for a head: as bright as the mouth is open."""
    picture = np.full((size, size, 3), round(20 + 200 * mouth[0]), np.uint8)
    return picture, np.full((68, 2), size * mouth[0])


@pytest.fixture
def flat(monkeypatch):
    monkeypatch.setattr(synth.heads, "draw", draw)


def truth_of(video: Path) -> dict[str, np.ndarray]:
    with np.load(video.with_suffix(".npz"), allow_pickle=False) as file:
        return dict(file)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def videos(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.mp4"))


def test_pictures_sound_and_truth_are_of_the_same_moment(flat, tmp_path):
    assert synthesise(1, 1, 4.0, 128, tmp_path, seed=3, **TINY) == 1
    assert set(contents(tmp_path)) == {"synth.json", "00000/000.mp4", "00000/000.npz"}
    video = tmp_path / "00000/000.mp4"
    truth, picture = truth_of(video), describe(video)
    assert (picture.width, picture.height, picture.fps, picture.frames) == (
        128,
        128,
        Fraction(25),
        100,
    )
    assert describe_sound(video).rate >= 16_000
    assert tuple(truth["mouth_names"]) == MOUTH
    assert truth["mouth"].shape == (100, 5) and truth["landmarks"].shape == (100, 68, 2)
    np.testing.assert_allclose(truth["landmarks"][:, 5, 1], 128 * truth["mouth"][:, 0], atol=1e-4)
    brightness = np.array([frame.mean() for frame in read_frames(picture)])
    np.testing.assert_allclose(brightness, 20 + 200 * truth["mouth"][:, 0], atol=4)

    symbols, times = truth["phonemes"], truth["phoneme_times"]
    assert len(symbols) == len(times) > 20 and symbols.dtype.kind == "U"
    assert times[0, 0] == 0 and times[-1, 1] == pytest.approx(4.0, abs=1e-3)
    np.testing.assert_allclose(times[1:, 0], times[:-1, 1])
    assert truth["identity"] == 0 and str(truth["source"]) == "procedural"
    assert str(truth["voice"]) in VOICES and len(str(truth["text"])) > 10

    # Pauses are quiet and vowels loud in the sound of the file itself.
    samples = read_audio(video)
    assert len(samples) == pytest.approx(4 * 16_000, abs=1024)
    part = lambda span: samples[round(span[0] * 16_000) : round(span[1] * 16_000)]
    vowels = [
        part(t) for s, t in zip(symbols, times, strict=True) if s[0] == "ˈ" and np.ptp(t) > 0.08
    ]
    pauses = [
        part(t) for s, t in zip(symbols, times, strict=True) if s == PAUSE and np.ptp(t) > 0.05
    ]
    quiet, loud = (np.sqrt((np.concatenate(x) ** 2).mean()) for x in (pauses, vowels))
    assert loud > 20 * quiet


def test_a_clip_depends_on_its_numbers_only(flat, tmp_path):
    synthesise(3, 2, 1.0, 128, tmp_path / "all", **TINY)
    synthesise(1, 2, 1.0, 128, tmp_path / "two", first_identity=2, **TINY)
    synthesise(1, 1, 1.0, 128, tmp_path / "other", seed=1, **TINY)
    clips = videos(tmp_path / "all")
    assert clips == [f"{i:05d}/{c:03d}.mp4" for i in range(3) for c in range(2)]
    assert videos(tmp_path / "two") == clips[4:]
    for name in clips[4:]:
        one, other = (truth_of(tmp_path / folder / name) for folder in ("all", "two"))
        for field in one:
            np.testing.assert_array_equal(one[field], other[field])
    truths = [truth_of(tmp_path / "all" / name) for name in clips]
    assert len({str(truth["text"]) for truth in truths}) == 6
    voices = [str(truth["voice"]) for truth in truths]
    assert voices[0] == voices[1] and voices[2] == voices[3] and len(set(voices)) > 1
    other = truth_of(tmp_path / "other" / clips[0])
    assert str(other["text"]) != str(truths[0]["text"])


def test_any_number_of_processes_makes_the_same_files(tmp_path):
    """With the heads themselves: what they remember between pictures must not show."""
    options = dict(photograph_share=0.0, quiet=True)
    synthesise(2, 2, 0.4, 128, tmp_path / "one", processes=1, **options)
    synthesise(2, 2, 0.4, 128, tmp_path / "two", processes=2, **options)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys() and len(one) == 9
    for name in one:
        if name.endswith(".npz"):
            a, b = (truth_of(tmp_path / folder / name) for folder in ("one", "two"))
            for field in a:
                np.testing.assert_array_equal(a[field], b[field])
        elif name.endswith(".mp4"):
            a, b = (read_frames(describe(tmp_path / folder / name)) for folder in ("one", "two"))
            for frame, same in zip(a, b, strict=True):
                np.testing.assert_array_equal(frame, same)


def test_a_run_goes_on_where_it_was_stopped(flat, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    synthesise(2, 2, 1.0, 128, whole, **TINY)
    drawn = []

    def failing(*arguments):
        drawn.append(arguments)
        if len(drawn) == 60:  # in the third clip
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(synth.heads, "draw", failing)
    with pytest.raises(KeyboardInterrupt):
        synthesise(2, 2, 1.0, 128, broken, **TINY)
    assert videos(broken) == ["00000/000.mp4", "00000/001.mp4"]
    assert len(contents(broken)) == 5  # each with its truth, the settings, and nothing else
    # What a kill leaves behind: the truth without its video, and a folder of half a clip.
    (broken / "00001/000.npz").write_bytes(b"half")
    (broken / "00001/.000.mp4.partial").mkdir()
    (broken / "00001/.000.mp4.partial/clip.mp4").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in (broken / "00000").iterdir()}
    assert synthesise(2, 2, 1.0, 128, broken, **TINY) == 2
    assert {path: path.stat().st_mtime_ns for path in (broken / "00000").iterdir()} == before
    assert contents(broken).keys() == contents(whole).keys()
    assert not list(broken.rglob("*.partial"))
    for name in videos(whole):
        one, other = truth_of(whole / name), truth_of(broken / name)
        for field in one:
            np.testing.assert_array_equal(one[field], other[field])
    assert synthesise(2, 2, 1.0, 128, broken, **TINY) == 0
    assert synthesise(2, 3, 1.0, 128, broken, **TINY) == 2  # more clips of the same kind


def test_articulation_opens_mouths_wider_and_changes_nothing_else(flat, tmp_path):
    synthesise(2, 1, 2.0, 128, tmp_path / "usual", **TINY)
    synthesise(2, 1, 2.0, 128, tmp_path / "wide", articulation=1.5, **TINY)
    for name in videos(tmp_path / "usual"):
        usual, wide = (truth_of(tmp_path / folder / name) for folder in ("usual", "wide"))
        opening = usual["mouth"][:, 0]
        assert opening.max() > 0.4
        np.testing.assert_allclose(wide["mouth"][:, 0], np.minimum(1.5 * opening, 1), rtol=1e-6)
        np.testing.assert_array_equal(wide["mouth"][:, 1:], usual["mouth"][:, 1:])
        for field in ("phonemes", "phoneme_times", "voice", "text"):
            np.testing.assert_array_equal(wide[field], usual[field])
        brightness = [frame.mean() for frame in read_frames(describe(tmp_path / "wide" / name))]
        np.testing.assert_allclose(brightness, 20 + 200 * wide["mouth"][:, 0], atol=4)


def test_clips_of_other_settings_are_not_mixed_in(flat, tmp_path):
    synthesise(1, 1, 0.4, 128, tmp_path, **TINY)
    for change in (dict(seed=1), dict(size=130), dict(seconds=0.8), dict(articulation=1.5)):
        name = next(iter(change))
        with pytest.raises(InputError, match=f"another {name}.*choose another output"):
            synthesise(
                **{**dict(identities=1, clips=1, seconds=0.4, size=128), **change},
                output=tmp_path,
                **TINY,
            )
    (tmp_path / "synth.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        synthesise(1, 1, 0.4, 128, tmp_path, **TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(identities=0), "0 identities"),
        (dict(clips=-1), "-1 clips"),
        (dict(seconds=0), "0 seconds"),
        (dict(seconds=float("nan")), "nan seconds"),
        (dict(size=129), "129 pixels"),
        (dict(size=64), "64 pixels"),
        (dict(seed=-1), "negative"),
        (dict(first_identity=-1), "negative"),
        (dict(articulation=0), "articulation of 0"),
        (dict(articulation=float("nan")), "articulation of nan"),
        (dict(processes=0), "0 processes"),
        (dict(photograph_share=1.5), "share of 1.5"),
        (dict(photographs=("nobody.jpg",)), "nobody.jpg: no such photograph"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(change, message, tmp_path):
    given = (
        dict(identities=1, clips=1, seconds=0.4, size=128, output=tmp_path / "out") | TINY | change
    )
    with pytest.raises(InputError, match=message):
        synthesise(**given)
    assert not (tmp_path / "out").exists()


def test_a_photograph_without_a_face_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "wall.png"), np.full((256, 256, 3), 120, np.uint8))
    with pytest.raises(InputError, match=r"wall\.png has no face"):
        synthesise(1, 1, 0.4, 128, tmp_path / "out", photographs=[tmp_path / "wall.png"],
                   photograph_share=1.0, processes=1, quiet=True)  # fmt: skip


def test_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        synthesise(1, 1, 0.4, 128, tmp_path / "file", **TINY)


def test_the_share_of_photographs_is_kept_and_does_not_change_the_others(monkeypatch):
    monkeypatch.setattr(synth, "ASTRONAUT", "none")
    from unavglip_jax.data import photographs

    monkeypatch.setattr(photographs, "prepare", lambda image, name: name)
    monkeypatch.setattr(synth, "read_image", lambda path: None)
    files = {"a.png": "", "b.png": ""}
    few = synth.prepared(files, 0.2, 0, range(1000))
    many = synth.prepared(files, 0.6, 0, range(1000))
    assert 150 < len(few) < 250 and 550 < len(many) < 650
    assert few.items() <= many.items()
    assert 0.4 < np.mean([name == "a.png" for name, _ in many.values()]) < 0.6
    assert synth.prepared({}, 0.2, 0, range(10)) == {}
    alone = synth.prepared(files, 0.2, 0, [next(iter(few))])
    assert list(alone.items()) == list(few.items())[:1]


def test_men_have_mens_voices():
    kinds = set()
    for identity in range(40):
        someone = synth.person(0, identity, None)
        variant = someone.voice.rpartition("+")[2]
        if someone.look.beard != "none":
            assert variant in MEN
        kinds.add(variant in WOMEN)
    assert kinds == {True, False}


def test_phonemes_are_cut_with_the_clip():
    phonemes = [
        Phoneme(0, 0.2, PAUSE),
        Phoneme(0.2, 0.3, PAUSE),
        Phoneme(0.3, 0.5, "s"),
        Phoneme(0.5, 1, "ɑː"),
    ]
    assert list(synth.cut(phonemes, 0.4)) == [Phoneme(0, 0.3, PAUSE), Phoneme(0.3, 0.4, "s")]
    assert list(synth.cut(phonemes, 0.3)) == [Phoneme(0, 0.3, PAUSE)]


def test_contact_sheet_has_a_row_for_each_head_and_a_column_for_each_mouth(flat, tmp_path):
    contact_sheet(tmp_path / "sheet.png", 3, 128, photograph_share=0.0)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (24 + 3 * 128, len(VISEMES) * 128, 3)
    for row in range(3):
        for column, mouth in enumerate(VISEMES.values()):
            cell = sheet[24 + 128 * row :, 128 * column :][:128, :128]
            assert (cell == round(20 + 200 * mouth[0])).all()
    assert os.listdir(tmp_path) == ["sheet.png"]
    with pytest.raises(InputError, match=r"\.png"):
        contact_sheet(tmp_path / "sheet.jpg", 1, 128, photograph_share=0.0)
    with pytest.raises(InputError, match="0 identities"):
        contact_sheet(tmp_path / "sheet.png", 0, 128, photograph_share=0.0)


@pytest.mark.parametrize("photograph_share", [0.0, 1.0])
def test_the_face_mesh_sees_the_mouth_that_was_drawn(photograph_share, tmp_path):
    synthesise(
        1,
        1,
        3.0,
        256,
        tmp_path,
        seed=SEED,
        photograph_share=photograph_share,
        processes=1,
        quiet=True,
    )
    video = tmp_path / "00000/000.mp4"
    truth = truth_of(video)
    tracker = Tracker(assets.fetch(DETECTOR), assets.fetch(MESH))
    meshes = [tracker(frame).mesh for frame in read_frames(describe(video))]
    assert len(meshes) == 75 and None not in meshes
    points = np.array([mesh.points[:, :2] for mesh in meshes])
    across = lambda a, b: np.linalg.norm(points[:, a] - points[:, b], axis=1)
    gap, opening = across(13, 14) / across(33, 263), truth["mouth"][:, 0]
    lagged = {
        lag: np.corrcoef(np.roll(gap, -lag)[5:-5], opening[5:-5])[0, 1] for lag in range(-4, 5)
    }
    assert max(lagged, key=lagged.get) == 0
    assert lagged[0] > 0.9
    settings = json.loads((tmp_path / "synth.json").read_text())
    assert len(settings["photographs"]) == (photograph_share > 0)


SEED = 0
