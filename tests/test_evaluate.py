"""Evaluation from files to a report: what is said of known pairs, and every way to fail."""

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pytest

import tiny
from unavglip_jax import assets, cli, evaluation, params
from unavglip_jax.config import InputError
from unavglip_jax.data import synth
from unavglip_jax.dubbing import dub
from unavglip_jax.evaluation import behaviour, evaluate, measure, networks, picture, report, sync
from unavglip_jax.evaluation.tasks import EvaluateSettings, EvaluateTask, pair, read_tasks
from unavglip_jax.media import video
from unavglip_jax.models.iresnet import IResNet, IResNetConfig
from unavglip_jax.models.lpips import LPIPS, LPIPSConfig

FRAMES, SIDE = 40, 192


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Two people who say different things, each with its truth beside it."""
    folder = tmp_path_factory.mktemp("heads")
    synth.synthesise(2, 1, FRAMES / 25, SIDE, folder, photograph_share=0, processes=1, quiet=True)
    return folder / "00000/000.mp4", folder / "00001/000.mp4"


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A pack with what compares faces and pictures, and no SyncNet."""
    key, folder = jax.random.key(0, impl="rbg"), tmp_path_factory.mktemp("evaluate") / "pack"
    embedder = IResNetConfig(blocks=(1, 1, 1, 1), widths=(4, 4, 4, 4))
    perceptual = LPIPSConfig(widths=(4, 4, 4, 4, 4))
    networks = {
        "identity": (embedder, params.init(IResNet, embedder, key), "random", "none"),
        "lpips": (perceptual, params.init(LPIPS, perceptual, key), "random", "none"),
    }
    assets.write_pack(folder, tiny.DESCRIPTION, networks)
    return folder


@pytest.fixture(scope="module")
def itself(heads, pack, tmp_path_factory):
    """A clip against itself: the output folder and what is in its results.json."""
    output = tmp_path_factory.mktemp("itself")
    before = {path: digest(path) for path in heads[0].parent.iterdir()}
    results = run({"same": task(heads[0], heads[0])}, output, pack=pack)
    assert {path: digest(path) for path in heads[0].parent.iterdir()} == before
    return output, results


def task(true, made, **fields):
    return EvaluateTask(
        **{"gt_video_path": true, "generated_video_path": made, "gt_cropped": True,
           "generated_cropped": True} | fields
    )  # fmt: skip


def run(tasks, output, unpaired=(), **settings):
    settings = EvaluateSettings(output=output, **{"processes": 1, "batch_size": 8} | settings)
    return evaluate.evaluate(tasks, settings, quiet=True, unpaired=unpaired)


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def frames_in(path):
    return list(video.read_frames(video.describe(path)))


def write_images(folder, frames):
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{i}.png"), frame[..., ::-1])
    return folder


def write_video(path, frames, fps=25, sound=None, size=(SIDE, SIDE)):
    path.parent.mkdir(parents=True, exist_ok=True)
    with video.write_video(path, *size, fps, sound, video.Encoding(crf=8, preset="fast")) as put:
        for frame in frames:
            put(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
    return path


def only(results):
    (figures,) = results["per_clip"].values()
    return figures


# ---- known pairs


def test_a_clip_against_itself_is_perfect(itself):
    output, results = itself
    found = only(results)
    assert found["psnr"] == found["mouth_psnr"] == measure.HIGHEST_PSNR
    for name in ("ssim", "ms_ssim", "csim", "gap_correlation"):
        assert found[name] == pytest.approx(1, abs=1e-5), name
    for name in ("lpips", "identity_distance", "lmd_mouth", "lmd_face", "gap_lag"):
        assert found[name] == pytest.approx(0, abs=1e-3), name
    assert found["steadiness"] == found["true_steadiness"]
    assert found["flicker"] == found["true_flicker"]
    # The mesh sees the mouth that was drawn, in step.
    assert found["known_gap_correlation"] > 0.8 and found["known_gap_lag"] == 0
    assert results["clips"] == 1 and not results["not_measured"] and not results["notes"]
    assert results["visual_quality"] == {
        "avg_ssim_score": found["ssim"],
        "avg_psnr_score": measure.HIGHEST_PSNR,
    }
    who = results["identity_consistency"]
    assert who["num_valid_pairs"] == FRAMES and who["std_cosine_similarity"] < 1e-5
    assert json.loads((output / "results.json").read_text()) == results


def test_another_person_is_not_that_person(heads, pack, itself, tmp_path):
    results = run({"other": task(*heads)}, tmp_path / "out", pack=pack)
    found, same = only(results), only(itself[1])
    assert found["csim"] < same["csim"] - 1e-3
    assert found["identity_distance"] > 0.02
    assert found["psnr"] < 25 and found["ssim"] < 0.8 and found["mouth_ssim"] < 0.8
    assert found["lmd_face"] > 1 and found["lpips"] != 0
    # its own truth lies beside the other clip
    assert found["known_gap_correlation"] < same["known_gap_correlation"] - 0.2


@pytest.mark.parametrize("late", [-3, 2])
def test_a_late_mouth_is_found_to_the_frame(heads, tmp_path, late):
    frames = frames_in(heads[0])
    order = np.clip(np.arange(FRAMES) - late, 0, FRAMES - 1)
    shifted = write_images(tmp_path / "shifted", [frames[i] for i in order])
    found = only(run({"late": task(heads[0], shifted)}, tmp_path / "out"))
    assert found["gap_lag"] == found["known_gap_lag"] == late
    assert found["gap_best"] > 0.99 > found["gap_correlation"]


def test_frame_rates_are_aligned_by_time(heads, tmp_path):
    doubled = [frame for frame in frames_in(heads[0]) for _ in range(2)]
    twice = write_video(tmp_path / "twice.mp4", doubled, fps=50)
    pairs = {"twice": task(heads[0], twice)}
    truth = np.load(heads[0].with_suffix(".npz"))["landmarks"]
    known = measure.known(measure.open_pair(pairs["twice"]), pairs["twice"])
    np.testing.assert_array_equal(known, truth.repeat(2, axis=0))
    results = run(pairs, tmp_path / "out")
    assert only(results)["gap_lag"] == 0 and only(results)["psnr"] > 35
    record = clip_record(tmp_path / "out")
    assert record["frames"] == 2 * FRAMES and min(record["series"]["psnr"]) > 30
    (note,) = results["notes"]["twice"]
    assert "25 frames a second" in note and "50" in note


def clip_record(output):
    (path,) = (output / "clips").glob("*.json")
    return json.loads(path.read_text())


def test_other_lengths_and_sizes_are_stated(heads, tmp_path):
    frames = [cv2.resize(frame, (160, 160)) for frame in frames_in(heads[0])[: FRAMES - 6]]
    frames[3] = np.full_like(frames[3], 90)
    small = write_images(tmp_path / "small", frames)
    results = run({"small": task(heads[0], small)}, tmp_path / "out")
    notes = results["notes"]["small"]
    assert any("lasts 1.60 s" in note and "1.36 s" in note for note in notes)
    assert any("192x192" in note and "160x160" in note for note in notes)
    assert any(
        "no face was found in 1 of 34 frames of the generated video" in note for note in notes
    )
    page = (tmp_path / "out/report.html").read_text()
    assert all(note.split(":")[0] in page for note in notes)
    series = clip_record(tmp_path / "out")["series"]
    assert series["psnr"][3] is None and min(v for v in series["psnr"] if v) > 20
    assert only(results)["frames_with_a_face"] == pytest.approx(33 / 34)
    assert only(results)["lmd_face"] < 2  # in the true picture's pixels, not in its own


def test_a_cut_is_no_trembling(heads):
    still = [np.load(head.with_suffix(".npz"))["landmarks"][:1].repeat(9, axis=0) for head in heads]
    landmarks, rest = np.concatenate(still), np.zeros(18, int)
    faces = measure.Faces(landmarks, None, None, None, None, np.repeat([0, 1], 9))
    assert behaviour.steadiness(measure.apart(faces)) < 1e-3
    assert behaviour.steadiness(measure.apart(faces._replace(shots=rest))) > 0.1


def test_a_mouth_that_follows_the_undubbed_video_leaks(heads, tmp_path):
    leaking = task(heads[0], heads[1], source=heads[1])
    found = only(run({"leaking": leaking}, tmp_path / "out"))
    assert found["leak_source"] > 0.99 and abs(found["leak_driving"]) < 0.5
    dubbed = task(heads[0], heads[0], source=heads[1])
    found = only(run({"dubbed": dubbed}, tmp_path / "out"))
    assert abs(found["leak_source"]) < 0.5 and found["leak_driving"] > 0.8


def test_motion_in_silence_and_frames_passed_through(heads, tmp_path):
    made = write_video(tmp_path / "made.mp4", frames_in(heads[0]))
    report_of_dub = {"frames_passed_through": [0, 1, 2, 3], "source_frames": FRAMES}
    made.with_suffix(".json").write_text(json.dumps(report_of_dub))
    silent = tmp_path / "silent.mp4"
    write_video(silent, frames_in(heads[0])[:2] * 20, sound=(np.zeros(32000, np.float32), 16000))
    found = only(run({"a": task(heads[0], made, audio=silent)}, tmp_path / "out"))
    assert found["passed_through"] == pytest.approx(0.1)
    assert found["silent_motion"] > 0.1 and found["silent_open"] > 0.1
    assert found["speaking_motion"] is None


def test_both_ssims_are_those_of_one_by_one():
    a = np.random.default_rng(0).integers(0, 256, (170, 200, 3), dtype=np.uint8)
    b = cv2.GaussianBlur(a, (0, 0), 1)
    assert picture.both_ssim(a, b) == (picture.ssim(a, b), picture.ms_ssim(a, b))
    assert picture.ssim(a, b) != picture.ms_ssim(a, b)


# ---- networks


def test_metrics_without_their_network_are_named_and_the_rest_runs(heads, itself, tmp_path):
    results = run({"same": task(heads[0], heads[0])}, tmp_path / "out")
    missing = results["left_out"]
    for metric in ("CSIM", "LPIPS", "LSE-C", "Wav2Lip", "StableSyncNet", "FID", "FVD"):
        assert sum(metric in line for line in missing) == 1, metric
    assert len(missing) == 7 and len(itself[1]["left_out"]) == 5
    assert only(results)["ssim"] == pytest.approx(1) and "csim" not in only(results)
    assert results["identity_consistency"] is None and results["lip_sync"] is None


def test_pictures_of_all_clips_are_compared_as_a_crowd(heads, tmp_path, monkeypatch):
    """FID and FVD of features that are worked out by hand: mean colours."""
    colours = lambda pictures: pictures.reshape(len(pictures), -1, 3).mean(axis=1)
    monkeypatch.setattr(networks.picture, "inception", lambda file: colours)
    monkeypatch.setattr(networks.picture, "i3d", lambda file: colours)
    tasks = {"same": task(heads[0], heads[0]), "again": task(heads[1], heads[1])}
    given = {"inception": tmp_path / "a.pt", "i3d": tmp_path / "b.pt", "max_seconds": 0.64}
    results = run(tasks, tmp_path / "same", **given)
    assert results["fid"]["value"] == pytest.approx(0, abs=1e-4)
    assert results["fid"]["count"] == 32 and results["fvd"]["count"] == 2
    whole = {"gt_cropped": False, "generated_cropped": False}
    swapped = {"one": task(*heads, **whole), "two": task(*heads[::-1], **whole)}
    found = run(swapped, tmp_path / "swapped", **given)
    assert found["fid"]["value"] == pytest.approx(0, abs=1e-4)  # each as a crowd has both people
    # Files that `unavglip assets fetch` has brought need not be named.
    monkeypatch.setattr(networks.published, "here", lambda name: tmp_path / name)
    apart = run({"one": task(*heads)}, tmp_path / "apart", max_seconds=0.64)
    assert apart["fid"]["value"] > 10 and "fvd" not in apart  # one clip has no covariance


def test_lip_sync_networks_see_the_tracked_face(tmp_path, pack, monkeypatch):
    """An expert that sees and hears brightness, which the sound follows two frames late."""
    count, shown = 60, []
    light = 0.75 + 0.25 * np.random.default_rng(0).random(count)
    photo = frames_in_photo(count)
    frames = [(frame * light[i]).astype(np.uint8) for i, frame in enumerate(photo)]
    loud = np.repeat(np.roll(light, 2), 640).astype(np.float32)  # 640 samples a frame
    sound = loud * np.sin(np.arange(len(loud)) * 0.5).astype(np.float32)
    made = write_video(tmp_path / "made.mp4", frames, sound=(sound, 16000), size=(320, 240))

    def unit(values):
        values = (values - 0.875) / 0.07
        return np.stack([values, np.ones_like(values)], axis=1).astype(np.float32)

    def see(crops):
        shown.append(crops)
        level = crops[:, 20:60, 80:140].mean(axis=(1, 2, 3)) / photo[0][90:110, 150:170].mean()
        return unit(level[: len(crops) - 4])

    power = lambda samples: np.sqrt((samples.reshape(-1, 640) ** 2).mean(axis=1, keepdims=True) * 2)
    view = sync.View("syncnet_v2", 5, 224, lambda s: power(s[: len(s) // 640 * 640]), 25, 5)
    expert = sync.Expert(view, see, lambda rows: unit(rows[:, 0, 0]))
    monkeypatch.setattr(networks, "load_expert", lambda settings, kind: expert)
    described = assets.read_pack(pack)
    embedder = described.components["identity"]
    with_expert = described.replace(components={"identity": embedder, "syncnet_v2": embedder})
    monkeypatch.setattr(assets, "read_pack", lambda folder: with_expert)
    results = run({"made": task(made, made)}, tmp_path / "out", pack=pack, identity_every=10)
    assert results["lip_sync"]["lse_offset"] == -2  # the sound comes late
    assert results["lip_sync"]["lse_c"] > 0.1
    assert all(crops.shape[1:] == (224, 224, 3) for crops in shown)
    record = clip_record(tmp_path / "out")
    assert len(record["series"]["lse_series"]) == count
    assert sum(v is not None for v in record["series"]["csim"]) == 6
    assert results["identity_consistency"]["num_valid_pairs"] == 6


def frames_in_photo(count):
    import skimage.data

    photo = skimage.data.astronaut()
    matrix = np.array([[1.2, 0, 160 - 225 * 1.2], [0, 1.2, 120 - 130 * 1.2]])
    still = cv2.warpAffine(photo, matrix, (320, 240), flags=cv2.INTER_AREA)
    return [still] * count


# ---- many clips


@pytest.fixture(scope="module")
def folders(heads, tmp_path_factory):
    """Two folders: three clips by the same names, one of them broken, and one that has no partner."""
    work = tmp_path_factory.mktemp("folders")
    frames = frames_in(heads[0])[:12]
    sides = work / "true", work / "made"
    for side in sides:
        for n in range(3):
            write_video(side / f"deep/{n}.mp4", frames[n:])
        write_images(side / "images/person", frames[:8])
    (sides[1] / "deep/1.mp4").write_bytes(b"nothing")
    shutil.copy(sides[1] / "deep/0.mp4", sides[1] / "alone.mp4")
    (sides[1] / "deep/0.png").write_bytes(b"a contact sheet of dubbing")
    return sides


def test_folders_are_paired_by_name(folders, heads):
    tasks, unpaired = pair(*folders, audio=heads[0])
    assert list(tasks) == ["deep/0", "deep/1", "deep/2", "images/person"]
    assert unpaired == ["alone"]
    for name, one in tasks.items():
        suffix = "" if name.startswith("images") else ".mp4"
        assert one.gt_video_path == folders[0] / f"{name}{suffix}"
        assert one.generated_video_path == folders[1] / f"{name}{suffix}"
        assert one.gt_cropped and one.generated_cropped and one.audio == heads[0]
    tasks, unpaired = pair(heads[0], folders[0] / "images/person", crop=False)
    assert list(tasks) == ["person"] and not unpaired and not tasks["person"].gt_cropped
    tasks, _ = pair(*folders, source=None, audio=None)
    assert tasks["deep/0"].audio is None


def test_a_broken_clip_is_listed_and_the_others_are_measured(folders, pack, tmp_path):
    tasks, unpaired = pair(*folders)
    results = run(tasks, tmp_path / "out", unpaired=unpaired, processes=2, pack=pack)
    assert list(results["not_measured"]) == ["deep/1"] and results["clips"] == 3
    assert "deep/1.mp4 cannot be read" in results["not_measured"]["deep/1"]
    assert results["metrics"]["ssim"]["mean"] == pytest.approx(1, abs=1e-6)
    assert results["metrics"]["csim"]["mean"] == pytest.approx(1, abs=1e-5)
    assert results["metrics"]["ssim"]["count"] == 3 and results["unpaired"] == ["alone"]
    with (tmp_path / "out/results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["clip"] for line in lines] == list(tasks)
    assert lines[1]["error"] and not lines[1]["psnr"] and float(lines[0]["psnr"]) == 100
    page = (tmp_path / "out/report.html").read_text()
    assert "deep/1 was not measured" in page and "alone" in page


RUN = """
import sys
from pathlib import Path
from unavglip_jax.evaluation import evaluate, tasks
if __name__ == "__main__":
    pairs, _ = tasks.pair(Path(sys.argv[1]), Path(sys.argv[2]))
    settings = tasks.EvaluateSettings(output=sys.argv[3], processes=1)
    evaluate.evaluate(pairs, settings, quiet=True)
"""


def test_a_run_that_is_killed_is_continued(folders, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-c", RUN, *map(str, [*folders, output])]
    process = subprocess.Popen(command)
    while len(list(output.glob("clips/*.json"))) < 1 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in output.glob("clips/*.json")}
    assert 1 <= len(done) < 4 and not (output / "results.json").exists()
    tasks, _ = pair(*folders)
    results = run(tasks, output)
    assert results["clips"] == 3 and list(results["not_measured"]) == ["deep/1"]
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_only_what_changed_is_measured_again(folders, tmp_path, monkeypatch):
    sides = [shutil.copytree(side / "deep", tmp_path / side.name) for side in folders]
    tasks, _ = pair(*sides)
    first = run(tasks, tmp_path / "out")
    measured, compare = [], measure.compare
    monkeypatch.setattr(measure, "compare", lambda job: measured.append(job.task) or compare(job))
    assert run(tasks, tmp_path / "out") == first and not measured
    shutil.copy(sides[0] / "1.mp4", sides[1] / "1.mp4")  # the broken one is mended
    second = run(tasks, tmp_path / "out")
    assert measured == [tasks["1"]] and second["clips"] == 3 and not second["not_measured"]
    run(tasks, tmp_path / "out", max_seconds=0.2)
    assert len(measured) == 4


def test_processes_share_the_clips(folders, tmp_path, monkeypatch):
    tasks, _ = pair(folders[0] / "deep", folders[0] / "deep")
    monkeypatch.setenv("UNAVGLIP_NUM_PROCESSES", "2")
    monkeypatch.setenv("UNAVGLIP_PROCESS_ID", "1")
    assert run(tasks, tmp_path / "out") is None
    assert len(list(tmp_path.glob("out/clips/*.json"))) == 1
    monkeypatch.setenv("UNAVGLIP_PROCESS_ID", "0")
    assert run(tasks, tmp_path / "out")["clips"] == 3


def test_a_process_that_dies_takes_one_clip_with_it(folders):
    tasks, _ = pair(folders[0] / "deep", folders[0] / "deep")
    job = measure.Job(tasks["0"], *dub.face_networks())
    with evaluate.workers(2) as compare:
        with pytest.raises(InputError, match=r"fatal.mp4 .* brought down the process"):
            compare(job._replace(task=Fatal()))
        assert compare(job).series["ssim"].min() == pytest.approx(1)


class Fatal:
    """A task that ends the process that unpacks it."""

    generated_video_path = Path("fatal.mp4")

    def __reduce__(self):
        return os._exit, (3,)


# ---- UnAvgLip's task file


def test_the_published_task_file_runs(heads, pack, itself, tmp_path):
    record = clip_record(itself[0])
    boxes = np.array(record["boxes"], np.int32)
    own = measure.open_pair(task(heads[0], heads[0]))
    crops = [true for true, _ in measure.pictures(own, boxes, task(heads[0], heads[0]))]
    assert crops[0].shape == (256, 256, 3)
    write_images(tmp_path / "crops", crops)
    np.save(tmp_path / "person.npy", np.ones((2, 512), np.float32))
    config = tmp_path / "tasks.yaml"
    config.write_text(f"""
settings: {{output: {tmp_path}/out, pack: {pack}, processes: 1, batch_size: 8}}
task_0:
  gt_video_path: {heads[0]}
  generated_video_path: {tmp_path}/crops
  gt_cropped: True
  generated_cropped: False
  face_embs_path: ""
  result_save_path: {tmp_path}/saved
task_1:
  gt_video_path: {tmp_path}/crops/3.png
  generated_video_path: {tmp_path}/crops/3.png
  gt_cropped: False
  generated_cropped: False
  face_embs_path: {tmp_path}/person.npy
  result_save_path: {tmp_path}/image.json
""")
    settings, tasks = read_tasks(config)
    assert tasks["task_0"].gt_cropped and not tasks["task_0"].generated_cropped
    results = evaluate.evaluate(tasks, settings, quiet=True)
    assert not results["not_measured"]
    # True means "please crop": what comes of it is the folder of crops
    assert results["per_clip"]["task_0"]["psnr"] == measure.HIGHEST_PSNR
    assert results["per_clip"]["task_0"]["csim"] > 0.95
    published = json.loads((tmp_path / "saved/results.json").read_text())
    assert published["visual_quality"] == {"avg_ssim_score": 1.0, "avg_psnr_score": 100.0}
    assert published["identity_consistency"]["num_valid_pairs"] == FRAMES
    assert published["lip_sync"] is None
    assert set(json.loads((tmp_path / "image.json").read_text())) == set(published)
    assert -1 <= results["per_clip"]["task_1"]["csim_person"] <= 1


def test_bad_input_is_one_sentence(heads, folders, tmp_path):
    config = tmp_path / "tasks.yaml"
    for text, said in (
        ("a: {gt_video_path: a.mp4}", "tasks.yaml, a: generated_video_path: Field required"),
        ("a: {gt_video_path: a, generated_video_path: b, cropped: true}", "cropped: Extra inputs"),
        ("a: 3", "a task holds fields"),
        ("settings: {output: out}", "holds no task"),
        ("settings: {backend: numpy}", "backend"),
    ):
        config.write_text(text)
        with pytest.raises(InputError, match=said):
            read_tasks(config)
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ((tmp_path / "no", heads[0]), "no such file or folder"),
        ((folders[0], heads[0]), "is a folder of clips and the other is a single one"),
        ((tmp_path / "empty", folders[0]), "holds no video and no folder of images"),
        ((folders[0] / "deep", folders[1]), "has the name of one in"),
        ((*folders, tmp_path / "empty"), "has 0 files called deep/0"),
    ):
        with pytest.raises(InputError, match=said):
            pair(*arguments)
    np.savez(tmp_path / "wrong.npz", other=np.zeros(3))
    results = run(
        {
            "no truth": task(heads[0], heads[0], truth=tmp_path / "wrong.npz"),
            "no file": task(heads[0], tmp_path / "no.mp4"),
            "no sound": task(heads[0], heads[0], audio=tmp_path / "wrong.npz"),
        },
        tmp_path / "out",
        max_seconds=0.2,
    )
    errors = results["not_measured"]
    assert "is not the truth of a synthetic clip" in errors["no truth"]
    assert "no such file" in errors["no file"] and "cannot be read" in errors["no sound"]
    assert results["clips"] == 0 and (tmp_path / "out/report.html").exists()
    with pytest.raises(InputError, match="is not a pack"):
        run({"a": task(*heads)}, tmp_path / "out", pack=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        run({"a": task(*heads)}, tmp_path / "file/out")


# ---- the command


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["unavglip", "evaluate", *map(str, arguments)])
    monkeypatch.setattr(cli, "keep_compiled", lambda: None)
    cli.main()


def test_the_command_writes_a_report(folders, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    sides = "--ground-truth", folders[0] / "deep", "--generated", folders[1] / "deep"
    command(monkeypatch, *sides, "--output", out, "--max-seconds", 0.2, "--processes", 1)
    said = capsys.readouterr()
    assert f"wrote {out / 'report.html'}, 2 of 3 clips" in said.out and "SSIM, mouth" in said.out
    assert "LPIPS was left out: no pack was given" in said.out
    assert re.search(r"^1: error: .*cannot be read", said.err, re.MULTILINE)
    config = tmp_path / "tasks.yaml"
    fields = {"gt_video_path": f"{folders[0]}/deep/0.mp4", "generated_video_path": "no.mp4"}
    stated = {"output": f"{tmp_path}/first", "processes": 1, "max_seconds": 0.2}
    config.write_text(json.dumps({"settings": stated, "a": fields}))
    for arguments, reason in (
        (
            ("--config", config, "--output", tmp_path / "second"),
            "no clip could be measured: no.mp4",
        ),
        ((), "nothing to compare"),
        (("--check-parity", "--pack", tmp_path), "--check-parity needs"),
    ):
        with pytest.raises(SystemExit, match=f"^error: {reason}"):
            command(monkeypatch, *arguments)
    # what is given goes before what is in the file, and leaves the rest as it is
    settings = json.loads((tmp_path / "second/results.json").read_text())["settings"]
    assert settings["max_seconds"] == 0.2 and not (tmp_path / "first").exists()


def test_the_command_compares_back_ends(tmp_path, monkeypatch, capsys):
    def check_parity(*files):
        assert files == (Path("pack"), Path("a.mp4"), Path("a.mp4"))
        return stages

    stage = namedtuple("Stage", "name difference limit passes")
    stages = [stage("frames", 0.001, 0.004, True)]
    judge = SimpleNamespace(check_parity=check_parity)
    monkeypatch.setattr(evaluation, "torch_judge", judge, raising=False)
    arguments = "--check-parity", "--pack", "pack", "--ground-truth", "a.mp4"
    command(monkeypatch, *arguments)
    assert re.search(r"frames\W+1.00e-03\W+4.00e-03\W+agrees", capsys.readouterr().out)
    stages.append(stage("LSE-C", 0.5, 0.001, False))
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, *arguments)
    assert stop.value.code == 1 and "DIFFERS" in capsys.readouterr().out


# ---- the page


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what a page loads."""

    EMPTY = frozenset(["meta", "img", "rect", "path", "polyline"])

    def __init__(self, text):
        super().__init__()
        self.open, self.count, self.sources = [], {}, []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_by_itself(itself):
    text = (itself[0] / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.count and "link" not in page.count
    assert "@import" not in text and "url(" not in text
    assert page.sources and all(s.startswith("data:image/png;base64,") for s in page.sources)
    # filmstrips of the worst and the best moment, and stills
    pictures = [base64.b64decode(source.split(",")[1]) for source in page.sources]
    images = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in pictures]
    strip = (2 * report.STRIP_SIDE, report.STRIP * report.STRIP_SIDE, 3)
    still = (report.STILL_SIDE, 3 * report.STILL_SIDE, 3)
    assert [image.shape for image in images] == [strip, strip, still]
    for image in images[
        :2
    ]:  # truth above, generated below: the same clip; its first frame is marked
        np.testing.assert_array_equal(*np.split(image[:, report.STRIP_SIDE :], 2))
        assert (image[:4, : report.STRIP_SIDE] == report.MARK[::-1]).all(axis=-1).mean() > 0.6
    assert not images[2][:, 2 * report.STILL_SIDE :].any()  # no difference
    assert page.count["svg"] == 6 and page.count["table"] == 6
    for words in ("PSNR", "Lip-gap lag", "95 % interval", "LSE-C and LSE-D was left out"):
        assert words in text


def test_names_are_not_markup(folders, tmp_path):
    name = "<script>alert(1)</script>"
    results = run(
        {name: task(folders[0] / "deep/0.mp4", folders[0] / "deep/1.mp4")}, tmp_path / "o"
    )
    text = (tmp_path / "o/report.html").read_text()
    assert name in results["per_clip"] and name not in text
    Page(text)


def test_plots_break_where_nothing_is_known_and_stay_small():
    values = np.sin(np.arange(100_000) / 5000)
    values[40_000:60_000] = np.nan
    drawn = report.panel("a <title>", {"line": values}, 4000.0, 100.0)
    lines = re.findall(r'points="([^"]+)"', drawn)
    assert len(lines) == 2 and len(drawn) < 20_000 and "<title>" not in drawn
    points = np.array([[float(v) for v in p.split(",")] for p in " ".join(lines).split()])
    assert len(points) <= report.POINTS
    # the highest value is drawn the highest, at its time
    at = values[:40_000].argmax() / 100_000
    top = points[points[:, 1].argmin()]
    assert abs((top[0] - 76) / (760 - 76 - 10) - at) < 0.01
