import json
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import skimage.data
import tensorflow_datasets as tfds
from test_video import click, ffmpeg, lag, sound_file

from unavglip_jax import assets, params
from unavglip_jax.config import InputError
from unavglip_jax.data import clips, footage, preprocess
from unavglip_jax.data.settings import PreprocessSettings
from unavglip_jax.dubbing import dub, hearing
from unavglip_jax.faces.mesh import ibug68
from unavglip_jax.faces.tracking import Tracker
from unavglip_jax.media import audio, video
from unavglip_jax.models.iresnet import IResNet, IResNetConfig
from unavglip_jax.models.whisper import Whisper, WhisperConfig

WIDTH, HEIGHT, SIZE = 480, 270, 64
FACE = (225, 130)  # in the photograph
FAST = video.Encoding(preset="ultrafast", crf=18)
SETTINGS = PreprocessSettings(min_seconds=0.6, max_seconds=1.2, min_face=60, identities=3)
PHOTO = skimage.data.astronaut()[:260]
DESCRIPTION = {
    "system": "unavglip",
    "audio_front_end": "v10",
    "crop": "musetalk_v10",
    "mask": "lower_half",
    "image_size": SIZE,
    "identity": {"embedder": "identity", "normalisation": "unit"},
}


# ---- footage to cut


def scene(faces=((240, 135, 1.0),), moment=0, value=120) -> np.ndarray:
    """Photographed heads, each at (x, y, zoom), that move a little."""
    out = np.full((HEIGHT, WIDTH, 3), value, np.uint8)
    for x, y, zoom in faces:
        x = x + 3 * np.sin(moment / 9)
        matrix = np.array([[zoom, 0, x - FACE[0] * zoom], [0, zoom, y - FACE[1] * zoom]])
        seen = cv2.warpAffine(PHOTO, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_AREA)
        inside = np.full((260, 512), 255, np.uint8)
        inside[:, :100] = inside[:, 350:] = 0
        mask = cv2.warpAffine(inside, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_NEAREST)
        out[mask > 0] = seen[mask > 0]
    return out


def speech(seconds) -> tuple[np.ndarray, int]:
    t = np.arange(round(seconds * 16000)) / 16000
    tone = np.sin(2 * np.pi * (200 + 50 * np.sin(3 * t)) * t)
    return (0.3 * (0.6 - 0.4 * np.cos(2 * np.pi * 3 * t)) * tone).astype(np.float32), 16000


def film(path, draw=lambda i: scene(moment=i), seconds=0.8, fps=25, sound=speech):
    path.parent.mkdir(exist_ok=True, parents=True)
    count = round(seconds * fps)
    heard = sound and sound(count / fps)
    with video.write_video(path, WIDTH, HEIGHT, fps, sound=heard, encoding=FAST) as put:
        for i in range(count):
            put(draw(i))
    return path


def noise(i) -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 255, (27, 48, 3), np.uint8), (WIDTH, HEIGHT))


def hush(seconds):
    return np.zeros(round(seconds * 16000), np.float32), 16000


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder, key = tmp_path_factory.mktemp("pack") / "pack", jax.random.key(0, impl="rbg")
    whisper = WhisperConfig(n_mels=80, n_audio_state=16, n_audio_head=2)
    embedder = IResNetConfig(blocks=(1, 1, 1, 1), widths=(4, 4, 4, 4))
    networks = {
        "whisper": (whisper, params.init(Whisper, whisper, key), "random", "none"),
        "identity": (embedder, params.init(IResNet, embedder, key), "random", "none"),
    }
    assets.write_pack(folder, DESCRIPTION, networks)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, pack):
    """One run over videos of every kind: its input, its output and its summary."""
    work = tmp_path_factory.mktemp("mixed")
    videos = work / "videos"
    film(videos / "good.mp4", seconds=3.08)
    film(videos / "deep" / "er" / "good.mp4", fps=Fraction(30000, 1001))
    shots = lambda i: scene(moment=i) if i < 20 else scene([(120, 120, 1.1)], i, value=30)
    film(videos / "two shots.mp4", shots, seconds=1.6)
    film(videos / "nobody.mp4", noise)
    film(videos / "two.mp4", lambda i: scene([(120, 135, 1), (360, 135, 0.9)], i))
    crowd = lambda i: scene([(120, 135, 1), (360, 135, 0.4)], i)
    film(videos / "small other.mp4", crowd)
    film(videos / "small.mp4", lambda i: scene([(240, 135, 0.45)], i))
    film(videos / "blurred.mp4", lambda i: cv2.GaussianBlur(scene(moment=i), (0, 0), 2.5))
    film(videos / "silent.mp4", sound=hush)
    film(videos / "mute.mp4", sound=None)
    film(videos / "short.mp4", seconds=0.5)
    film(videos / "left top.mp4", lambda i: scene([(45, 40, 1.2)], i))
    film(videos / "right bottom.mp4", lambda i: scene([(430, 235, 1.2)], i))
    (videos / "text.mp4").write_text("this is no video")
    (videos / "empty.mkv").touch()
    content = (videos / "good.mp4").read_bytes()
    (videos / "cut off.mp4").write_bytes(content[: 2 * len(content) // 3])
    (videos / "notes.txt").write_text("not looked at")
    (videos / ".hidden.mp4").write_text("nor this")
    summary = preprocess.preprocess(videos, work / "set", pack, SETTINGS, processes=2, quiet=True)
    return videos, work / "set", summary


def journals(output) -> dict:
    found = [json.loads(p.read_text()) for p in (output / "work/journals").glob("*.json")]
    return {journal["source"]: journal for journal in found}


def all_clips(output) -> dict[str, clips.Clip]:
    found = [clips.load_clip(path) for path in (output / "work/clips").glob("*/*.npz")]
    return {clip.name: clip for clip in found}


def data_set(output) -> dict[str, bytes]:
    root = output / clips.NAME
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def decoded(clip) -> np.ndarray:
    encoded = [np.frombuffer(frame, np.uint8) for frame in clip.frames]
    return np.stack([cv2.imdecode(e, cv2.IMREAD_COLOR_RGB) for e in encoded])


# ---- what is kept and what is not


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nobody.mp4", "no face"),
        ("two.mp4", "several faces"),
        ("small.mp4", "small"),
        ("blurred.mp4", "blurred"),
        ("silent.mp4", "silent"),
        ("mute.mp4", "silent"),
        ("short.mp4", "short"),
    ],
)
def test_what_is_no_clip_has_a_reason(mixed, source, reason):
    journal = journals(mixed[1])[source]
    assert not journal["clips"] and journal["error"] is None
    assert {part["reason"] for part in journal["rejected"]} == {reason}
    assert sum(part["seconds"] for part in journal["rejected"]) == pytest.approx(journal["seconds"])
    assert mixed[2]["rejected"][reason]["parts"] >= 1


def test_long_stretches_are_divided_evenly(mixed):
    found = journals(mixed[1])["good.mp4"]["clips"]
    assert [clip["start"] for clip in found] == [0, 1, 2.04]
    assert [round(25 * clip["seconds"]) for clip in found] == [25, 26, 26]


def test_no_clip_goes_over_a_cut(mixed):
    found = journals(mixed[1])["two shots.mp4"]["clips"]
    assert [(clip["start"], clip["seconds"]) for clip in found] == [(0, 0.8), (0.8, 0.8)]


def test_a_face_much_smaller_than_the_one_tracked_does_not_matter(mixed):
    assert len(journals(mixed[1])["small other.mp4"]["clips"]) == 1


def test_broken_videos_are_quarantined_and_the_others_done(mixed):
    _, output, summary = mixed
    lines = [json.loads(x) for x in (output / "quarantine.jsonl").read_text().splitlines()]
    assert lines == summary["quarantined"]
    reasons = {line["source"]: line["reason"] for line in lines}
    assert set(reasons) == {"text.mp4", "empty.mkv", "cut off.mp4"}
    assert "cannot be read" in reasons["text.mp4"] and "is empty" in reasons["empty.mkv"]
    assert all(Path(line["journal"]).is_file() for line in lines)
    assert summary["sources"] == 16 and not summary["missing"]
    assert not list((output / "work").glob("scratch*"))


def test_crops_are_clamped_to_the_frame_at_all_four_sides(mixed):
    found = all_clips(mixed[1])
    first, last = found["left top.mp4/0"].boxes, found["right bottom.mp4/0"].boxes
    assert (first[:, :2] == 0).all() and (last[:, 2:] == [WIDTH, HEIGHT]).all()
    for clip in found.values():
        assert (clip.boxes >= 0).all() and (clip.boxes[:, 2:] <= [WIDTH, HEIGHT]).all()
        assert decoded(clip).shape == (len(clip.frames), SIZE, SIZE, 3)


# ---- what a clip holds


def test_clips_hold_the_source_at_their_time(mixed, pack):
    videos, output, _ = mixed
    frames = list(video.read_frames(video.describe(videos / "good.mp4")))
    samples = video.read_audio(videos / "good.mp4")
    features = hearing.encode(hearing.load(pack), samples)
    found = all_clips(output)
    for n, start in enumerate((0, 25, 51)):
        clip = found[f"good.mp4/{n}"]
        assert not clips.faults(clip) and clip.start == start / 25 and clip.source_fps == "25"
        for i, shown in enumerate(decoded(clip)):
            x1, y1, x2, y2 = clip.boxes[i]
            truth = cv2.resize(frames[start + i][y1:y2, x1:x2], (SIZE, SIZE), interpolation=4)
            assert np.abs(shown.astype(int) - truth).mean() < 3
        heard = samples[640 * start :][: len(clip.samples)]
        assert np.abs(clip.samples / 32768 - heard).max() <= 0.5 / 32768
        np.testing.assert_array_equal(
            clip.features, features[2 * start :][: 2 * len(clip.frames)].astype(np.float16)
        )
    assert found["deep/er/good.mp4/0"].source_fps == "30000/1001"


def test_landmarks_lie_on_the_crops(mixed):
    clip = all_clips(mixed[1])["good.mp4/1"]
    tracker, border = Tracker(*dub.face_networks()), 256
    for i in (0, 12, 25):
        large = cv2.resize(decoded(clip)[i], (512, 512), interpolation=cv2.INTER_CUBIC)
        wide = cv2.copyMakeBorder(large, *[border] * 4, cv2.BORDER_REPLICATE)
        mesh = tracker(wide).mesh
        truth = (ibug68(mesh.points)[:, :2] - border + 0.5) * SIZE / 512 - 0.5
        assert np.abs(truth - clip.landmarks[i]).mean() < 0.02 * SIZE


def test_embeddings_are_those_of_the_frames_they_name(mixed, pack):
    clip = all_clips(mixed[1])["good.mp4/2"]
    assert len(set(clip.identity_frames.tolist())) == SETTINGS.identities
    assert clip.identity.shape == (3, 512)
    frames = list(video.read_frames(video.describe(mixed[0] / "good.mp4")))
    network = assets.load_network(pack, "identity")
    tracker = Tracker(*dub.face_networks())
    meshes = [tracker(frame).mesh.points for frame in frames]
    for row, i in zip(clip.identity, clip.identity_frames + 51, strict=True):
        face = footage.identity.align(frames[i], meshes[i])
        truth = np.asarray(network((face[None].astype(np.float32) - 127.5) / 127.5))[0]
        assert row @ truth / np.linalg.norm(truth) > 0.9999


def test_the_data_set_is_read_by_tfds(mixed, pack):
    _, output, summary = mixed
    count = 0
    for split in ("train", "validation"):
        records, description = clips.open_data_set(output, split)
        count += len(records)
        assert len(tfds.data_source("talking_clips", data_dir=output, split=split)) == len(records)
        assert not any(clips.faults(clip, description) for clip in records)
    assert count == summary["clips"] == len(all_clips(output)) > 5
    assert summary["hours"] == pytest.approx(
        sum(len(clip.frames) for clip in all_clips(output).values()) / 25 / 3600
    )
    described = assets.read_pack(pack)
    assert description.whisper == described.components["whisper"].sha256
    assert description.embedder == "identity" and description.image_size == SIZE
    sheet = cv2.imread(str(output / "samples.png"))
    assert sheet.shape == (960, 1280, 3) and (sheet[:320, :320] == [0, 255, 0]).all(-1).any()


# ---- picture and sound


def flashing(path, fps, at, sound_at):
    """A face with a black patch on it for two frames from `at` on, and a click."""

    def draw(i):
        frame = scene(moment=i)
        if i in (at, at + 1):
            frame[150:175, 215:265] = 0
        return frame

    clicking = lambda seconds: (click(sound_at, seconds, 48000), 48000)
    return film(path, draw, seconds=1.6, fps=fps, sound=clicking)


def test_picture_and_sound_stay_together(tmp_path, pack):
    """A flash and a click at one time are in one frame of the clip, at any rate and with late tracks."""
    videos = tmp_path / "videos"
    for fps, at in [(Fraction(24000, 1001), 23), (30, 26), (50, 50)]:
        flashing(videos / f"{float(fps):.0f}.mp4", fps, at, at / Fraction(fps))
    # pictures are left out of one at 30 a second
    flashing(tmp_path / "even.mp4", 30, 26, 26 / 30)
    keep = "select='not(between(mod(n,11),3,6))*not(eq(mod(n,5),4))+between(n,26,27)'"
    ffmpeg("-i", tmp_path / "even.mp4", "-vf", keep, "-fps_mode", "vfr", "-c:a", "copy",
           videos / "variable.mp4")  # fmt: skip
    flashing(tmp_path / "late.mp4", 25, 30, 0)  # whose own sound is left out
    plain = sound_file(tmp_path / "click.wav", click(0.9, 1.3, 48000), 48000)
    inputs = ["-i", tmp_path / "late.mp4", "-itsoffset", "0.3", "-i", plain]
    ffmpeg(*inputs, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "aac",
           videos / "late sound.mp4")  # fmt: skip
    settings = SETTINGS.replace(min_loudness=-200, max_seconds=2, identities=0)
    preprocess.preprocess(videos, tmp_path / "set", pack, settings, quiet=True)
    found = all_clips(tmp_path / "set")
    assert set(found) == {f"{name}.mp4/0" for name in ("24", "30", "50", "variable", "late sound")}
    for name, clip in found.items():
        x, y = clip.landmarks[0, 57]  # the lower lip, where the patch is
        patch = decoded(clip)[:, round(y) - 1 : round(y) + 2, round(x) - 2 : round(x) + 3]
        flash = int(np.argmin(np.diff(patch.mean((1, 2, 3))))) + 1
        sound = lag(clip.samples / 32768, click(0, 0.02, 16000)[0]) / 16000
        assert abs(flash / 25 - sound) <= 0.0205, name


def test_sound_that_comes_too_late_is_noticed(monkeypatch):
    """With an expert that knows loudness from brightness the lag is found, and its sign is right."""
    rng = np.random.default_rng(0)
    bright, grey = rng.uniform(0, 1, 75), []
    for value in bright:
        picture = np.full((96, 96, 3), round(255 * value), np.uint8)
        grey.append(cv2.imencode(".jpg", picture)[1].tobytes())

    def judge(graphdef, weights, mel, frames):
        assert mel.shape[1:] == (80, 16, 1) and frames.shape[1:] == (48, 96, 15)
        heard = np.stack([part.mean((1, 2, 3)) for part in np.array_split(mel, 5, axis=2)], 1)
        seen = np.stack([part.mean((1, 2, 3)) for part in np.split(frames, 5, axis=3)], 1)
        unit = lambda x: (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
        return unit(heard), unit(seen)

    monkeypatch.setattr(preprocess, "judge", judge)
    for late in (-7, -1, 0, 3, 11):
        loud = np.roll(bright, late).repeat(640)
        samples = (rng.normal(size=len(loud)) * 10 ** (2 * loud - 3) * 32768).astype(np.int16)
        clip = clips.Clip("a/0", "a", 0, "25", grey, *[None] * 2, samples, *[None] * 3)
        assert preprocess.sound_lag(params.Network(None, None, None), clip) == late


def test_clips_out_of_step_are_dropped(tmp_path, pack, monkeypatch):
    film(tmp_path / "videos/a.mp4", seconds=1.6)
    lags, loaded = iter([3, -2]), preprocess.load_networks
    monkeypatch.setattr(preprocess, "sound_lag", lambda expert, clip: next(lags))
    monkeypatch.setattr(
        preprocess, "load_networks", lambda plan: loaded(plan)._replace(expert=object())
    )
    summary = preprocess.preprocess(
        tmp_path / "videos", tmp_path / "set", pack, SETTINGS, quiet=True
    )
    assert summary["clips"] == 1 and summary["rejected"]["out of step"]["parts"] == 1
    assert list(all_clips(tmp_path / "set")) == ["a.mp4/1"]


# ---- runs


@pytest.fixture(scope="module")
def several(tmp_path_factory, pack):
    """A folder of videos, and the data set that one run without a pause makes of it."""
    work = tmp_path_factory.mktemp("several")
    for n in range(5):
        film(work / "videos" / f"{n}.mp4", lambda i, n=n: scene([(200 + 20 * n, 130, 1)], i))
    (work / "videos/broken.mp4").write_text("broken")
    preprocess.preprocess(work / "videos", work / "set", pack, SETTINGS, processes=1, quiet=True)
    return work / "videos", data_set(work / "set")


RUN = """
import os, sys
from unavglip_jax.data import preprocess
from unavglip_jax.data.settings import PreprocessSettings
if __name__ == "__main__":
    settings = PreprocessSettings.model_validate_json(sys.argv[4])
    preprocess.preprocess(*sys.argv[1:4], settings, processes=2, quiet=True)
"""


def test_a_run_that_is_killed_is_continued(tmp_path, several, pack):
    videos, truth = several
    output = tmp_path / "set"
    arguments = [videos, output, pack, SETTINGS.model_dump_json()]
    same = {"JAX_NUM_CPU_DEVICES": "4", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    same["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    run = subprocess.Popen(command, env=os.environ | same)
    journal_folder = output / "work/journals"
    # the first may be that of the broken video
    while len(done := list(journal_folder.glob("*.json"))) < 2 and run.poll() is None:
        time.sleep(0.002)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    written = {path: path.stat().st_mtime_ns for path in journal_folder.glob("*.json")}
    assert 2 <= len(done) <= len(written) < 6
    summary = preprocess.preprocess(videos, output, pack, SETTINGS, processes=1, quiet=True)
    assert summary["sources"] == 6 and not summary["missing"]
    assert data_set(output) == truth
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert not list((output / "work").glob("scratch*"))


def test_a_run_that_is_killed_while_it_stores_or_builds_is_continued(
    tmp_path, several, pack, monkeypatch
):
    videos, truth = several
    output = tmp_path / "set"

    class Killed(BaseException):
        pass

    def kill(*arguments, **options):
        raise Killed

    steps = [
        (preprocess.clips, "save_clip"),
        (preprocess.Journal, "model_dump_json"),
        (preprocess.clips, "build"),
        (preprocess, "samples_of"),
    ]
    for where, step in steps:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(where, step, kill)
            preprocess.preprocess(videos, output, pack, SETTINGS, processes=1, quiet=True)
    left = output / f".{clips.NAME}.left"
    left.mkdir()
    preprocess.preprocess(videos, output, pack, SETTINGS, processes=1, quiet=True)
    assert data_set(output) == truth and not left.exists()


def test_a_finished_run_is_not_repeated(tmp_path, several, pack, monkeypatch):
    videos = tmp_path / "videos"
    videos.mkdir()
    shutil.copy(several[0] / "0.mp4", videos / "0.mp4")
    (videos / "1.mp4").write_text("broken")
    arguments = videos, tmp_path / "set", pack, SETTINGS
    preprocess.preprocess(*arguments, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(preprocess, "workers", None)
        patch.setattr(preprocess.clips, "build", None)
        again = preprocess.preprocess(*arguments, quiet=True)
    assert again["clips"] == 1 and len(again["quarantined"]) == 1
    # the broken one is repaired, and one comes in addition
    shutil.copy(several[0] / "1.mp4", videos / "1.mp4")
    shutil.copy(several[0] / "2.mp4", videos / "2.mp4")
    again = preprocess.preprocess(*arguments, quiet=True)
    assert again["clips"] == 3 and not again["quarantined"]
    assert sum(len(clips.open_data_set(arguments[1], s)[0]) for s in ("train", "validation")) == 3


def test_two_runs_share_the_videos(tmp_path, several, pack):
    videos, truth = several
    arguments = videos, tmp_path / "set", pack, SETTINGS
    first = preprocess.preprocess(*arguments, shard=1, shards=2, quiet=True)
    assert first["missing"] == {0: 3} and first["data_set"] is None
    assert not (tmp_path / "set" / clips.NAME).exists()
    second = preprocess.preprocess(*arguments, shard=0, shards=2, quiet=True)
    assert not second["missing"] and data_set(tmp_path / "set") == truth


CRASH = """
import os, signal
from unavglip_jax.data import footage
cut = footage.cut
def bad(job):
    if "crash" in job.source:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "bug" in job.source:
        raise RuntimeError("what a bug says")
    return cut(job)
footage.cut = bad
footage.serve()
"""


def test_a_worker_that_dies_takes_one_video_with_it(tmp_path, several, pack, monkeypatch):
    for name in ("1 crash", "2 good", "3 bug", "4 good"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        shutil.copy(several[0] / "0.mp4", tmp_path / f"videos/{name}.mp4")
    monkeypatch.setattr(preprocess, "WORKER", (sys.executable, "-c", CRASH))
    summary = preprocess.preprocess(
        tmp_path / "videos", tmp_path / "set", pack, SETTINGS, processes=1, quiet=True
    )
    assert summary["clips"] == 2
    reasons = {entry["source"]: entry["reason"] for entry in summary["quarantined"]}
    assert set(reasons) == {"1 crash.mp4", "3 bug.mp4"}
    assert "SIGSEGV" in reasons["1 crash.mp4"] and "what a bug says" in reasons["3 bug.mp4"]


def test_workers_end_with_the_run(tmp_path, pack):
    """Without the process that started it a worker must not go on writing."""
    worker = subprocess.Popen(
        preprocess.WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout.readline() == "ready\n"
    film(tmp_path / "long.mp4", seconds=3)
    detector, face_mesh = dub.face_networks()
    job = footage.Job(
        path=tmp_path / "long.mp4", source="long.mp4", folder=tmp_path / "cut", detector=detector,
        face_mesh=face_mesh, crop="musetalk_v10", image_size=SIZE, settings=SETTINGS,
    )  # fmt: skip
    print(job.model_dump_json(), file=worker.stdin, flush=True)
    while not (tmp_path / "cut").exists():
        time.sleep(0.002)
    worker.stdin.close()
    worker.wait(timeout=10)
    assert not worker.stdout.read()  # it did not finish the job
    worker.stdout.close()


# ---- bad inputs


def test_bad_inputs_are_one_sentence(tmp_path, several, pack, monkeypatch):
    videos = several[0]
    run = lambda *given, **options: preprocess.preprocess(*given, **options, quiet=True)
    with pytest.raises(InputError, match="no such folder"):
        run(tmp_path / "nowhere", tmp_path / "set", pack)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="holds no video"):
        run(tmp_path / "bare", tmp_path / "set", pack)
    with pytest.raises(InputError, match="is not a pack"):
        run(videos, tmp_path / "set", tmp_path)
    with pytest.raises(InputError, match="shard is 2 of 2"):
        run(videos, tmp_path / "set", pack, shard=2, shards=2)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        run(videos, tmp_path / "file", pack)
    with pytest.raises(ValueError, match="twice min_seconds"):
        PreprocessSettings(min_seconds=3, max_seconds=5)
    published = assets.read_pack(pack).replace(
        identity={"embedder": "buffalo_l", "normalisation": "unit"}
    )
    monkeypatch.setattr(preprocess.assets, "read_pack", lambda folder: published)
    with pytest.raises(InputError, match="buffalo_l; give its folder"):
        run(videos, tmp_path / "set", pack)


def test_other_settings_and_runs_at_once_are_refused(tmp_path, pack):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").write_text("broken")
    arguments = tmp_path / "videos", tmp_path / "set", pack
    with pytest.raises(InputError, match="none of the 1 videos"):
        preprocess.preprocess(*arguments, SETTINGS, quiet=True)
    with pytest.raises(InputError, match="other settings or another pack"):
        preprocess.preprocess(*arguments, SETTINGS.replace(min_face=61), quiet=True)
    lock = tmp_path / "set/work/0-of-1.lock"
    with preprocess.locked(lock), pytest.raises(InputError, match="another run is at work"):
        preprocess.preprocess(*arguments, SETTINGS, quiet=True)


def test_a_worker_that_cannot_start_quarantines_nothing(tmp_path, several, pack, monkeypatch):
    failing = (sys.executable, "-c", "import a_package_that_is_not")
    monkeypatch.setattr(preprocess, "WORKER", failing)
    with pytest.raises(InputError, match="No module named 'a_package_that_is_not'"):
        preprocess.preprocess(several[0], tmp_path / "set", pack, SETTINGS, processes=1, quiet=True)
    assert not journals(tmp_path / "set")


def test_a_full_disk_quarantines_nothing(tmp_path, several, pack, monkeypatch):
    full = """
from unavglip_jax.data import footage
def full(*_): raise OSError(28, "No space left on device")
footage.save_clip = full
footage.serve()
"""
    monkeypatch.setattr(preprocess, "WORKER", (sys.executable, "-c", full))
    with pytest.raises(InputError, match="No space left on device"):
        preprocess.preprocess(several[0], tmp_path / "set", pack, SETTINGS, processes=1, quiet=True)
    assert set(journals(tmp_path / "set")) <= {"broken.mp4"}


def test_workers_are_free_of_jax():
    code = "import sys, unavglip_jax.data.footage as f; print({'jax', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_loudness_of_a_tone():
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert footage.loudness(tone) == pytest.approx(-23, abs=0.1)  # -20 dB, and -3 for a sine
    assert footage.loudness(np.where(np.arange(16000) < 3200, tone, 0)) == pytest.approx(
        -23, abs=0.1
    )
    assert footage.loudness(np.where(np.arange(16000) < 800, tone, 0)) == pytest.approx(-120)
    assert audio.SAMPLES_A_STEP == 320
