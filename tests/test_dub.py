"""Dubbing from files to file: what comes out, what must not change, and every way to fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import wave
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import torch

import commands
import tiny
from unavglip_jax import assets, params
from unavglip_jax.config import InputError
from unavglip_jax.dubbing import dub, generator
from unavglip_jax.dubbing.stream import background
from unavglip_jax.dubbing.tasks import Settings, Task, check_outputs, output_of, read_tasks
from unavglip_jax.faces.crop import crop
from unavglip_jax.media import video
from unavglip_jax.models.bisenet import BiSeNet, BiSeNetConfig

ROOT = Path(__file__).parent.parent


def write_wav(path, samples, rate=16000, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        data = np.repeat(np.rint(samples * 32767).astype("<i2")[:, None], channels, axis=1)
        file.writeframes(data.tobytes())
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A pack, a video of 20 frames and a recording of 1.5 s."""
    folder = tmp_path_factory.mktemp("dub")
    tiny.write_pack(folder / "pack")
    tiny.talking_photo(folder / "in.mp4", seconds=0.8)
    write_wav(folder / "speech.wav", tiny.speech(1.5))
    return folder


@pytest.fixture(scope="module")
def networks(work):
    return generator.load(work / "pack")


def task(work, **changes):
    fields = {"video_path": work / "in.mp4", "audio_path": work / "speech.wav"}
    return Task(**fields | changes)


def settings(work, **changes):
    return Settings(**{"pack": work / "pack", "batch_size": 4} | changes)


@pytest.fixture
def collect(monkeypatch):
    """Takes the frames that would be encoded; the codec is another test's matter."""
    written = []

    @contextmanager
    def write_video(path, width, height, fps, *_):
        frames = []
        yield lambda frame: frames.append(frame.copy())
        written.append((Path(path), fps, np.stack(frames)))

    monkeypatch.setattr(video, "write_video", write_video)
    return written


def sources(path) -> np.ndarray:
    return np.stack(list(video.read_frames(video.describe(path))))


def run(work, networks, tmp_path, collect, changes=(), **task_changes):
    """The report and the frames of one dubbing."""
    output = tmp_path / "out.mp4"
    one = task(work, output=output, **task_changes)
    report = dub.dub(one, settings(work, **dict(changes)), networks, quiet=True)
    return report, collect[-1][2]


def test_only_the_face_changes(work, networks, tmp_path, collect):
    report, frames = run(
        work,
        networks,
        tmp_path,
        collect,
        audio_path=write_wav(tmp_path / "a.wav", tiny.speech(0.8)),
    )
    source = sources(work / "in.mp4")
    assert len(frames) == len(source) == report["frames"] == 20
    for before, after, (x1, y1, x2, y2) in zip(source, frames, report["boxes"], strict=True):
        changed = (before != after).any(axis=-1)
        assert 0.01 < changed.mean() < 0.2
        middle = (y1 + y2) // 2
        changed[middle:y2, x1:x2] = False  # the pack hides and replaces the lower half of the crop
        assert not changed.any()


def test_a_longer_recording_goes_back_and_forth(work, networks, tmp_path, collect):
    source = sources(work / "in.mp4")
    upper = slice(0, 20)  # rows above every face
    orders = {
        "ping-pong": [*range(20), *reversed(range(20))][:38],
        "loop": [*range(20), *range(20)][:38],
        "hold": [*range(20), *[19] * 18],
        "trim": [*range(20)],
    }
    for mode, order in orders.items():
        _, frames = run(work, networks, tmp_path, collect, when_longer=mode)
        np.testing.assert_array_equal(frames[:, upper], source[order][:, upper])
        assert list(dub.source_order(20, len(order), mode)) == order


def test_same_inputs_give_the_same_frames_whatever_the_batch(work, networks, tmp_path, collect):
    _, one = run(work, networks, tmp_path, collect)
    _, again = run(work, networks, tmp_path, collect)
    _, other = run(work, networks, tmp_path, collect, {"batch_size": 5})
    np.testing.assert_array_equal(one, again)
    assert np.abs(one.astype(int) - other).max() <= 1


def test_frames_without_a_face_pass_through(work, networks, tmp_path, collect):
    source = sources(work / "in.mp4")
    grey = np.full_like(source[0], 110)
    clip = [*source[:8], *[grey] * 3, *source[:6], *[grey] * 30, *source[:6]]
    with_gaps = tmp_path / "gaps"
    with_gaps.mkdir()
    for i, frame in enumerate(clip):
        cv2.imwrite(str(with_gaps / f"{i}.png"), frame[..., ::-1])
    speech = write_wav(tmp_path / "a.wav", tiny.speech(len(clip) / 25))
    report, frames = run(work, networks, tmp_path, collect, video_path=with_gaps, audio_path=speech)
    passed = report["frames_passed_through"]
    # The fade to grey is a cut, over which no box is held.
    assert passed == [8, 9, 10, *range(17, 47)]
    for i in passed:
        np.testing.assert_array_equal(frames[i], clip[i])
    assert report["frames_with_a_face"] == 20 and report["frames_held"] == 0


def test_settings_act(work, networks, tmp_path, collect):
    _, plain = run(work, networks, tmp_path, collect)
    for changes, fields in (
        ({"blend": "half"}, {}),
        ({}, {"guide_scale": 0.0}),
        ({}, {"bbox_shift": 5}),
        ({}, {"reference": "other"}),
        ({}, {"reference": "shot"}),
    ):
        _, frames = run(work, networks, tmp_path, collect, changes, **fields)
        assert frames.shape == plain.shape and (frames != plain).any(), (changes, fields)


def test_the_mesh_blend_does_not_blur_what_was_generated(
    work, networks, tmp_path, collect, monkeypatch
):
    monkeypatch.setattr(generator, "make_step", lambda *_: lambda crops, *_: crops)
    report, frames = run(work, networks, tmp_path, collect, when_longer="trim")
    between, changed = 0, 0
    for before, after, box in zip(sources(work / "in.mp4"), frames, report["boxes"], strict=True):
        x1, y1, x2, y2 = box
        square = crop(before, box, networks.pack.image_size)
        face = cv2.resize(square, (x2 - x1, y2 - y1), interpolation=cv2.INTER_LANCZOS4)
        before, after = (x[y1:y2, x1:x2].astype(int) for x in (before, after))
        differs = after != before
        changed += differs.sum()
        inside = (np.minimum(before, face) <= after) & (after <= np.maximum(before, face))
        between += (differs & inside).sum()
    assert changed > 1000 and between == changed


def test_face_parsing_blends_inside_the_box(work, networks, tmp_path, collect):
    config = BiSeNetConfig()
    weights = params.init(BiSeNet, config, jax.random.key(0, impl="rbg"))
    pack = Path(shutil.copytree(work / "pack", tmp_path / "pack"))
    with pytest.raises(InputError, match="has no face_parsing"):
        run(work, networks, tmp_path, collect, {"blend": "jaw"})
    assets.add_components(pack, {"face_parsing": (config, weights, "random", "none")})
    brief = write_wav(tmp_path / "a.wav", tiny.speech(0.2))
    changes = {"blend": "raw", "pack": pack}
    report, frames = run(work, networks, tmp_path, collect, changes, audio_path=brief)
    source = sources(work / "in.mp4")[:5]
    assert (frames != source).any()
    for before, after, (x1, y1, x2, y2) in zip(source, frames, report["boxes"][:5], strict=True):
        changed = (before != after).any(axis=-1)
        changed[y1:y2, x1:x2] = False
        assert not changed.any()


@pytest.mark.parametrize("size", [(321, 241), (160, 161), (64, 64)])
def test_odd_and_small_pictures_keep_their_size(work, networks, tmp_path, size):
    width, height = size
    if size == (64, 64):  # the whole face is 24 pixels wide
        frames = [
            cv2.resize(x[:, 40:280], size, interpolation=cv2.INTER_AREA)
            for x in sources(work / "in.mp4")
        ]
    else:
        frames = [
            cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in sources(work / "in.mp4")
        ]
    with video.write_video(tmp_path / "odd.mp4", width, height, Fraction(30000, 1001)) as put:
        for frame in frames[:4]:
            put(frame)
    speech = write_wav(tmp_path / "a.wav", tiny.speech(0.2))
    one = task(
        work, video_path=tmp_path / "odd.mp4", audio_path=speech, output=tmp_path / "out.mp4"
    )
    report = dub.dub(one, settings(work), networks, quiet=True)
    made = video.describe(tmp_path / "out.mp4")
    assert (made.width, made.height, made.fps) == (*size, Fraction(30000, 1001))
    assert made.frames == 6 and report["frames_with_a_face"] == 4


def test_embeddings_of_upstream_are_read_safely(work, networks, tmp_path, collect):
    embeddings = np.random.default_rng(0).standard_normal((1, 3, 512)).astype(np.float32)
    torch.save(torch.tensor(embeddings), tmp_path / "person.pt")
    report, one = run(work, networks, tmp_path, collect, face_embs_path=tmp_path / "person.pt")
    assert report["identity_from"].endswith("person.pt")
    np.save(tmp_path / "person.npy", embeddings[0])
    _, other = run(work, networks, tmp_path, collect, face_embs_path=tmp_path / "person.npy")
    np.testing.assert_array_equal(one, other)
    torch.save(os.system, tmp_path / "code.pt")
    with pytest.raises(InputError, match="pickled code"):
        run(work, networks, tmp_path, collect, face_embs_path=tmp_path / "code.pt")


def test_ready_crops_come_back_as_crops(work, networks, tmp_path, collect):
    crops = tmp_path / "crops"
    crops.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (4, tiny.SIZE, tiny.SIZE, 3)).astype("u1")
    for i, picture in enumerate(pictures):
        cv2.imwrite(str(crops / f"{i}.png"), picture[..., ::-1])
    np.save(tmp_path / "person.npy", np.ones((1, 512), np.float32))
    speech = write_wav(tmp_path / "a.wav", tiny.speech(0.16))
    fields = {"crop_path": crops, "face_embs_path": tmp_path / "person.npy", "audio_path": speech}
    _, frames = run(work, networks, tmp_path, collect, **fields)
    half = tiny.SIZE // 2
    np.testing.assert_array_equal(frames[:, :half], pictures[:, :half])
    assert (frames[:, half:] != pictures[:, half:]).any()


def test_the_person_is_found_in_ready_crops(work, networks, tmp_path, collect):
    report, _ = run(work, networks, tmp_path, collect)
    crops = tmp_path / "crops"
    crops.mkdir()
    for i, (frame, box) in enumerate(
        zip(sources(work / "in.mp4")[:4], report["boxes"], strict=False)
    ):
        cv2.imwrite(str(crops / f"{i}.png"), crop(frame, box, tiny.SIZE)[..., ::-1])
    report, frames = run(work, networks, tmp_path, collect, crop_path=crops)
    assert frames.shape[1:] == (tiny.SIZE, tiny.SIZE, 3) and set(report["identity_from"]) <= set(
        range(4)
    )
    for path in crops.iterdir():
        cv2.imwrite(str(path), np.full((tiny.SIZE, tiny.SIZE, 3), 90, np.uint8))
    with pytest.raises(InputError, match="no face was found in the crops"):
        run(work, networks, tmp_path, collect, crop_path=crops)


def test_a_photograph_chooses_the_person(work, networks, tmp_path, collect):
    photo = sources(work / "in.mp4")[5]
    cv2.imwrite(str(tmp_path / "her.png"), photo[..., ::-1])
    report, _ = run(work, networks, tmp_path, collect, face_like=tmp_path / "her.png")
    assert report["frames_with_a_face"] == 20
    cv2.imwrite(str(tmp_path / "nobody.png"), np.full_like(photo, 99))
    with pytest.raises(InputError, match=r"nobody\.png shows no face"):
        run(work, networks, tmp_path, collect, face_like=tmp_path / "nobody.png")


# ---- the command ------------------------------------------------------------------------------------


def test_command_writes_a_finished_video(work, tmp_path):
    rate, fps = 44100, Fraction(24000, 1001)
    tiny.talking_photo(tmp_path / "film.mp4", seconds=1, fps=fps, size=(322, 242))
    t = np.arange(rate * 3 // 2) / rate
    write_wav(tmp_path / "music.wav", 0.3 * np.sin(2 * np.pi * 440 * t), rate, channels=2)
    commands.unavglip(
        "dub", "--pack", work / "pack", "--video", tmp_path / "film.mp4", "--audio",
        tmp_path / "music.wav", "--output", tmp_path / "out.mp4", "--contact-sheet",
        "--side-by-side", "--quiet",
    )  # fmt: skip
    made, sound = video.describe(tmp_path / "out.mp4"), video.describe_sound(tmp_path / "out.mp4")
    assert (made.width, made.height, made.fps) == (322, 242, fps)
    assert made.frames == 36  # ceil(1.5 s * 23.976)
    assert (sound.rate, sound.channels) == (rate, 2)
    assert video.describe(tmp_path / "out_side_by_side.mp4").width == 644
    assert cv2.imread(str(tmp_path / "out.png")).shape[1] == 4 * 320
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["fps"] == "24000/1001" and report["pack"]["components"]["unet"]["sha256"]
    assert all(seconds >= 0 for seconds in report["seconds"].values())
    names = {"film.mp4", "music.wav", "out.mp4", "out.json", "out.png", "out_side_by_side.mp4"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_infer_runs_unavglips_own_task_file(work, tmp_path):
    config = tmp_path / "tasks.yaml"
    config.write_text(f"""
settings: {{pack: {work}/pack, result_dir: {tmp_path}/results}}
task_0:
  video_path: {work}/in.mp4
  audio_path: {work}/speech.wav
  crop_path: ""
  face_embs_path: ""
  bbox_shift: -7
  n_cond: 1
  guide_scale: 0.25
task_1:
  video_path: {work}/missing.mp4
  audio_path: {work}/speech.wav
""")
    done = subprocess.run(
        [sys.executable, ROOT / "infer.py", "--config", config, "--quiet"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "task_1: error:" in done.stderr and "missing.mp4: no such file" in done.stderr
    assert "1 of 2 tasks failed: task_1" in done.stderr
    made = tmp_path / "results/in_speech.mp4"
    assert video.describe(made).frames == 38
    assert json.loads(made.with_suffix(".json").read_text())["task"]["bbox_shift"] == -7


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"video": "missing.mp4"}, "no such file"),
        ({"video": "text.mp4"}, "cannot be read"),
        ({"video": "empty.mp4"}, "is empty"),
        ({"video": "noface.mp4"}, "shows no face in any of its 5 frames"),
        ({"audio": "text.mp4"}, "cannot be read"),
        ({"audio": "noface.mp4"}, "sound"),
        ({"output": "no/such/text.mp4/out.mp4"}, "cannot be made"),
        ({"output": "in.mp4"}, "overwrite its own source"),
        ({"pack": "nopack"}, "not a pack"),
    ],
)
def test_bad_inputs_are_one_sentence_and_leave_nothing(work, tmp_path, change, says):
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "in.mp4").write_bytes((work / "in.mp4").read_bytes())
    (tmp_path / "no/such").mkdir(parents=True)
    (tmp_path / "no/such/text.mp4").touch()
    with video.write_video(tmp_path / "noface.mp4", 64, 64, Fraction(25)) as put:
        for _ in range(5):
            put(np.full((64, 64, 3), 120, np.uint8))
    before = sorted(tmp_path.rglob("*"))
    given = {
        "video": "in.mp4",
        "audio": work / "speech.wav",
        "output": "out.mp4",
        "pack": work / "pack",
    }
    arguments = [x for name, value in (given | change).items() for x in (f"--{name}", value)]
    done = commands.unavglip("dub", *arguments, "--quiet", expect=1, cwd=tmp_path)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0], done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_interrupting_leaves_nothing_half_written(work, tmp_path):
    write_wav(tmp_path / "long.wav", tiny.speech(300.0))
    line = [
        Path(sys.executable).with_name("unavglip"), "dub", "--pack", work / "pack", "--video",
        work / "in.mp4", "--audio", tmp_path / "long.wav", "--output", tmp_path / "out.mp4",
    ]  # fmt: skip
    # A shell lets what it starts in the background ignore Ctrl-C, and its children with it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([*map(str, line), "--quiet"], stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    while not list(tmp_path.glob(".out*")) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)  # a compilation that has begun is waited for
    assert process.returncode == 130 and "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["long.wav"]


# ---- parts ------------------------------------------------------------------------------------------


def test_task_files_are_checked(tmp_path):
    path = tmp_path / "tasks.yaml"
    for text, says in (
        ("a: {video_path: v.mp4}", "audio_path: Field required"),
        ("a: {video_path: v.mp4, audio_path: a.wav, colour: red}", "colour"),
        ("a: 3", "a task holds fields"),
        ("settings: {pack: p}", "holds no task"),
        ("settings: {size: 1}", "settings: size"),
        ("[1, 2]", "must hold a mapping"),
        ("a: [", "not valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            read_tasks(path)
    one = Task(video_path=Path("v.mp4"), audio_path=Path("a.wav"))
    common = Settings(pack=Path("p"))
    assert output_of(one, common) == Path("results/v_a.mp4")
    with pytest.raises(InputError, match="the tasks x and y both write"):
        check_outputs({"x": one, "y": one}, common)


def test_tasks_are_shared_between_processes(monkeypatch):
    tasks = {str(i): i for i in range(7)}
    shares = []
    for index in range(3):
        monkeypatch.setenv("UNAVGLIP_PROCESS_ID", str(index))
        monkeypatch.setenv("UNAVGLIP_NUM_PROCESSES", "3")
        shares.append(dub.shard(tasks))
    assert sorted(name for share in shares for name in share) == sorted(tasks)
    monkeypatch.setenv("UNAVGLIP_PROCESS_ID", "3")
    with pytest.raises(InputError, match="must be between 0 and 2"):
        dub.shard(tasks)


def test_background_keeps_order_raises_and_stops():
    assert list(background((i for i in range(100)), 3)) == list(range(100))

    def failing():
        yield 1
        raise ValueError("from the thread")

    items = background(failing(), 3)
    assert next(items) == 1
    with pytest.raises(ValueError, match="from the thread"):
        next(items)

    made, closed = [], []

    def endless():
        try:
            while True:
                made.append(1)
                yield 1
        finally:
            closed.append(True)

    items = background(endless(), 4)
    next(items)
    time.sleep(0.2)
    assert len(made) <= 7  # bounded, though nobody takes them
    items.close()
    assert closed == [True]
