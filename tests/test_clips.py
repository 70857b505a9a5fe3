"""Records of clips: what goes in comes out bit for bit, by TFDS alone; splits; damage is noticed."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from tiny_data import (
    DESCRIPTION,
    SIZE,
    SOURCES,
    tiny_clip,
    tiny_clips,
    tiny_data_set,
    write,
)
from unavglip_jax.config import InputError
from unavglip_jax.data import clips, inspection, records
from unavglip_jax.data.clips import build, open_data_set


def same(clip, other) -> bool:
    """Whether two clips are equal, dtypes too; empty arrays of any shape are."""
    for name in clip._fields:
        a, b = getattr(clip, name), getattr(other, name)
        if name in clips.ARRAYS:
            if a.dtype != b.dtype or a.size != b.size or (a.size and not np.array_equal(a, b)):
                return False
        elif (list(a) != list(b)) if name == "frames" else a != b:
            return False
    return True


def without_features(clip):
    return clip._replace(features=np.zeros((0, 0, 0), np.float16))


def without_identity(clip):
    empty = np.zeros((0, 0), np.float32), np.zeros(0, np.int32)
    return clip._replace(identity=empty[0], identity_frames=empty[1])


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    return tiny_data_set(tmp_path_factory.mktemp("data"))


# ---- records


READ = """
import sys
sys.modules["jax"] = None  # importing it is an error now
import tensorflow_datasets as tfds
source = tfds.data_source("talking_clips", data_dir=sys.argv[1], split="train")
example = source[1]
imported = {name.partition(".")[0] for name in sys.modules}
assert not imported & {"unavglip_jax", "tensorflow"}
print(len(source), example["name"].decode(), example["features"].dtype, example["features"].shape)
"""


def test_tfds_reads_a_data_set_without_our_code_tensorflow_or_jax(data_set):
    command = [sys.executable, "-c", READ, str(data_set)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "4 a.mp4/1 float16 (80, 2, 3)"


def test_what_tfds_reads_is_what_was_stored_bit_for_bit(data_set):
    stored = {clip.name: clip for clip in tiny_clips()}
    seen = 0
    for split in ("train", "validation"):
        for example in tfds.data_source("talking_clips", data_dir=data_set, split=split):
            clip = stored[example["name"].decode()]
            assert list(example["frames"]) == list(clip.frames)
            assert example["start"] == clip.start and example["source"].decode() == clip.source
            for name, (dtype, _) in clips.ARRAYS.items():
                assert example[name].dtype == dtype
                np.testing.assert_array_equal(example[name], getattr(clip, name), strict=True)
            seen += 1
    assert seen == 6


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("identity", ["all", "second", "none"])
def test_clips_come_back_with_or_without_features_and_embeddings(tmp_path, features, identity):
    made = tiny_clips(parts=1, frames=12)
    if not features:
        made = [without_features(clip) for clip in made]
    if identity != "all":
        made = [
            clip if identity == "second" and i == 1 else without_identity(clip)
            for i, clip in enumerate(made)
        ]
    changes = {} if features else {"whisper": None}
    changes |= {"embedder": None, "embedder_sha256": None} if identity == "none" else {}
    folder = tiny_data_set(tmp_path, made, **changes)
    found = [clip for split in ("train", "validation") for clip in open_data_set(folder, split)[0]]
    assert len(found) == 3
    by_name = {clip.name: clip for clip in found}
    assert all(same(clip, by_name[clip.name]) for clip in made)


def test_clips_are_a_sequence_in_the_order_of_their_names(data_set):
    source, description = open_data_set(data_set, "train")
    assert [clip.name for clip in source] == sorted(clip.name for clip in source)
    assert same(source[-1], source[3]) and description.shortest == 40
    with pytest.raises(IndexError):
        source[4]


def test_clips_read_with_and_without_tfds_are_the_same(data_set, monkeypatch):
    plain, checked = (open_data_set(data_set, "train", checked)[0] for checked in (False, True))
    assert all(same(one, other) for one, other in zip(plain, checked, strict=True))
    monkeypatch.setattr(records, "BUFFERS", 2)
    assert same(plain[3], checked[3]) and max(size for *_, size in plain.records.places) > 2**16


@pytest.mark.parametrize("offset", [-1, 0, 1, 3, 4, 20, 42, 43, 44])
def test_records_are_found_wherever_a_block_ends(tmp_path, offset):
    """The second of these records begins `offset` bytes behind the first block, and its chunk 43 before."""
    path, wanted = tmp_path / "file", [bytes(65384 + offset), b"second", bytes(3 * 2**16), b""]
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in wanted:
        writer.write(record)
    writer.close()
    places = [(begin, size) for _, begin, size in records.Records([path], [4]).places]
    assert places[1][0] == records.BODY + offset
    assert [bytes(records.read(path, *place)) for place in places] == wanted


def test_records_that_are_compressed_and_files_cut_short_are_refused(tmp_path):
    path = tmp_path / "file"
    for options, message in (
        ("group_size:1", "compressed"),
        ("group_size:2,uncompressed", "groups"),
    ):
        writer = array_record_module.ArrayRecordWriter(str(path), options)
        for _ in range(2):
            writer.write(bytes(1000))
        writer.close()
        with pytest.raises(ValueError, match=message):
            records.Records([path], [2])
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    writer.write(bytes(100_000))
    writer.close()
    ((_, *place),) = records.Records([path], [1]).places
    path.write_bytes(path.read_bytes()[:90_000])
    with pytest.raises(OSError, match="ends at byte 90000"):
        records.read(path, *place)


def test_records_are_stored_as_they_are(data_set):
    (shard,) = (data_set / "talking_clips" / "1.0.0").glob("*-train.array_record*")
    reader = array_record_module.ArrayRecordReader(str(shard))
    assert "uncompressed" in reader.writer_options_string()
    frames = open_data_set(data_set, "train")[0][0].frames
    assert max(frames, key=len) in shard.read_bytes()


def test_a_picture_keeps_the_order_of_its_colours():
    image = np.zeros((16, 16, 3), np.uint8) + np.array([200, 100, 20], np.uint8)
    assert np.abs(clips.decode_frame(clips.encode_frame(image, 95)).astype(int) - image).max() <= 2
    with pytest.raises(InputError, match="no picture"):
        clips.decode_frame(b"no JPEG")
    with pytest.raises(InputError, match="no picture"):
        clips.decode_frame(b"")


# ---- files of clips


def test_a_clip_file_gives_the_clip_back(tmp_path):
    for number, clip in enumerate(
        (tiny_clip(3, "ä/b c.mp4", 7), without_identity(tiny_clip(1, "x")))
    ):
        clips.save_clip(tmp_path / f"{number}.npz", clip)
        assert same(clips.load_clip(tmp_path / f"{number}.npz"), clip)
    assert sorted(os.listdir(tmp_path)) == ["0.npz", "1.npz"]


def test_damaged_clip_files_are_refused(tmp_path):
    (path,) = write(tmp_path, [tiny_clip(0, "a")])
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PK"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            clips.load_clip(path)
    np.savez(path, name=np.array(["a", None], object), allow_pickle=True)
    with pytest.raises(InputError, match="damaged"):
        clips.load_clip(path)
    with pytest.raises(InputError, match="no such file"):
        clips.load_clip(tmp_path / "other.npz")


GOOD = tiny_clip(0, "a")
BAD = {
    "landmarks is float64": {"landmarks": GOOD.landmarks.astype(np.float64)},
    "39 landmarks for 40 frames": {"landmarks": GOOD.landmarks[1:]},
    "39 boxes for 40 frames": {"boxes": GOOD.boxes[1:]},
    "landmarks are not all finite": {"landmarks": GOOD.landmarks * np.float32(np.nan)},
    "25599 samples, 40 frames last 25600": {"samples": GOOD.samples[1:]},
    "78 steps of features for 40 frames": {"features": GOOD.features[2:]},
    "features are not all finite": {"features": GOOD.features + np.float16(np.inf)},
    "another norm than 1": {"identity": GOOD.identity * np.float32(1.1)},
    "3 embeddings of 2 frames": {"identity_frames": GOOD.identity_frames[1:]},
    "outside the clip": {"identity_frames": GOOD.identity_frames + np.int32(40)},
    "no complete JPEG": {"frames": [GOOD.frames[0][:-9], *GOOD.frames[1:]]},
    "does not begin with its source": {"name": "b/0"},
    "of 30/0 frames a second": {"source_fps": "30/0"},
    "starts at -1": {"start": -1.0},
}


@pytest.mark.parametrize("message", BAD)
def test_inconsistent_clips_are_not_stored(tmp_path, message):
    with pytest.raises(InputError, match=message):
        clips.save_clip(tmp_path / "a.npz", GOOD._replace(**BAD[message]))
    assert not list(tmp_path.iterdir())


def test_clips_too_short_for_a_sample_are_not_stored(tmp_path):
    """UnAvgLip's loader looks for a reference window in them for ever."""
    assert not clips.faults(tiny_clip(0, "a", frames=12))
    with pytest.raises(InputError, match="11 frames, at least 12"):
        clips.save_clip(tmp_path / "a.npz", tiny_clip(0, "a", frames=11))


# ---- splits


def test_the_split_of_a_source_is_fixed():
    """By what `printf a.mp4 | sha256sum` prints first, as a fraction of 16 ** 16."""
    known = {"a.mp4": 0xE6D48EABD560BC60, "films/b.mp4": 0xE302A7630450B55C}
    known["films/c.mov"] = 0x3475A02CC646A9AC
    for name, digest in known.items():
        assert clips.position(name) == digest / 16**16
        assert clips.split_of(name) == "train"
        assert clips.split_of(name, digest / 16**16 + 1e-6) == "validation"


def test_the_share_of_validation():
    names = [f"{i}.mp4" for i in range(4000)]
    splits = clips.splits_of(names)
    assert splits == {name: clips.split_of(name) for name in names}
    share = sum(split == "validation" for split in splits.values()) / len(names)
    assert 0.04 < share < 0.06
    assert set(clips.splits_of(names, 0).values()) == {"train"}


def test_a_folder_can_stand_for_a_person(tmp_path):
    assert (
        clips.person_of("anna/1.mp4", "folder") == "anna" != clips.person_of("anna/1.mp4", "video")
    )
    assert clips.person_of("1.mp4", "folder") == "1.mp4"
    names = [f"{person}/{i}.mp4" for person in ("anna", "ben", "cleo") for i in range(3)]
    folder = tiny_data_set(tmp_path, tiny_clips(names, parts=1), people="folder")
    seen = {}
    for split in ("train", "validation"):
        found, description = clips.open_data_set(folder, split)
        seen[split] = {found[i].source.split("/")[0] for i in range(len(found))}
        assert seen[split] == set(description.sources[split])
    assert not seen["train"] & seen["validation"] and len(seen["train"]) == 2


@pytest.mark.parametrize("share", [1e-9, 0.3, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_neither_split_is_empty_where_there_are_two_sources(share, count):
    names = [f"{i}.mp4" for i in range(count)]
    splits = clips.splits_of(names, share)
    assert set(splits.values()) == {"train", "validation"}
    assert splits == clips.splits_of(reversed(names), share)
    assert max(clips.position(name) for name in names if splits[name] == "validation") < min(
        clips.position(name) for name in names if splits[name] == "train"
    )


def test_clips_of_a_source_are_in_one_split(data_set):
    sources = {
        split: {clip.source for clip in open_data_set(data_set, split)[0]}
        for split in ("train", "validation")
    }
    assert sources == {"train": set(SOURCES[:2]), "validation": {SOURCES[2]}}


def test_one_source_has_no_validation(tmp_path):
    folder = tiny_data_set(tmp_path, tiny_clips(("a.mp4",), frames=12))
    assert len(open_data_set(folder, "train")[0]) == 2
    with pytest.raises(InputError, match="one video"):
        open_data_set(folder, "validation")


# ---- building and opening


def test_a_failed_build_leaves_the_data_set_that_was_there(tmp_path):
    folder = tiny_data_set(tmp_path)
    paths = sorted((tmp_path / "clips").iterdir())
    whole = paths[-1].read_bytes()
    paths[-1].write_bytes(whole[:-2000] + bytes(2000))
    with pytest.raises(InputError, match=paths[-1].name):
        build(paths, folder, DESCRIPTION)
    paths[-1].write_bytes(whole)
    with pytest.raises(InputError, match="has audio features"):
        build(paths, folder, DESCRIPTION.replace(whisper=None))
    assert os.listdir(folder) == ["talking_clips"] and len(open_data_set(folder, "train")[0]) == 4

    description = build(paths[2:], folder, DESCRIPTION)
    assert os.listdir(folder) == ["talking_clips"] and len(open_data_set(folder, "train")[0]) == 2
    assert description.sources == {"train": (SOURCES[1],), "validation": (SOURCES[2],)}


def test_clips_of_one_name_and_no_clips_are_refused(tmp_path):
    paths = write(tmp_path, [tiny_clip(0, "a"), tiny_clip(1, "a")])
    with pytest.raises(InputError, match="both called a/0"):
        build(paths, tmp_path / "set", DESCRIPTION)
    with pytest.raises(InputError, match="no clips"):
        build([], tmp_path / "set", DESCRIPTION)


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a data set"):
        open_data_set(tmp_path / "nowhere", "train")
    (tmp_path / "talking_clips" / "2.0.0").mkdir(parents=True)
    with pytest.raises(InputError, match=r"format 2\.0\.0, and this program reads 1\.0\.0"):
        open_data_set(tmp_path, "train")


def test_damaged_data_sets_are_refused(tmp_path):
    folder = tiny_data_set(tmp_path)
    root = folder / "talking_clips" / "1.0.0"
    metadata = json.loads((root / "metadata.json").read_text())
    (shard,) = root.glob("*-train.array_record*")
    whole = shard.read_bytes()

    (root / "metadata.json").write_text(json.dumps(metadata | {"format": 2}))
    with pytest.raises(InputError, match="format"):
        open_data_set(folder, "train")
    (root / "metadata.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        open_data_set(folder, "train")
    (root / "metadata.json").write_text(json.dumps(metadata))
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        open_data_set(folder, "train")
    shard.unlink()
    with pytest.raises(InputError, match="damaged"):
        open_data_set(folder, "train")


# ---- inspecting and verifying


def test_inspect_prints_statistics_and_draws_clips(data_set, tmp_path, capsys):
    inspection.inspect(data_set, "train", 3, tmp_path / "sheet.png")
    printed = capsys.readouterr().out
    assert "videos" in printed and "1.6" in printed
    sheet = inspection.cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * SIZE, inspection.SHOWN * SIZE, 3)
    assert os.listdir(tmp_path) == ["sheet.png"]


def test_figures_of_a_clip():
    """Lips at rest 0.04 of the crop apart at their middle, times 1 +- 0.5; eyes 0.44 apart."""
    found = inspection.figures(tiny_clip(0, "a"), DESCRIPTION)
    assert found.opening == pytest.approx(0.04 * 0.86 / 0.44, rel=0.1)
    assert found.face == 120 and found.frames == 40 and found.embeddings == 3
    assert found.loudness == pytest.approx(20 * np.log10(8000 / 3**0.5 / 32768), abs=0.2)


def test_verify_finds_nothing_in_a_good_data_set(data_set, capsys):
    assert inspection.verify(data_set) == 0
    assert "6 clips, no problems" in " ".join(capsys.readouterr().out.split())


def broken(clip, number):
    """Faults that cannot be told without looking into the pictures, or far numbers."""
    frame = clips.encode_frame(np.zeros((SIZE, 2 * SIZE, 3), np.uint8), 95)
    damage = bytearray(clip.frames[5])
    damage[2:-2] = bytes(len(damage) - 4)
    changes = [
        {"frames": [frame, *clip.frames[1:]]},
        {"frames": [*clip.frames[:5], bytes(damage), *clip.frames[6:]]},
        {"landmarks": clip.landmarks + np.float32(1000)},
        {"boxes": clip.boxes[:, [2, 1, 0, 3]]},
    ]
    return clip._replace(**changes[number])


def test_verify_reports_each_bad_record(tmp_path, capsys, monkeypatch):
    made = tiny_clips()
    bad = [broken(clip, i) for i, clip in enumerate(made[:4])]
    short = made[4]._replace(samples=made[4].samples[:-1])
    with monkeypatch.context() as patch:
        patch.setattr(clips, "faults", lambda *_: [])
        folder = tiny_data_set(tmp_path, [*bad, short, made[5]])
    assert inspection.verify(folder) == 5
    printed = " ".join(capsys.readouterr().out.split())
    for problem in (
        "a.mp4/0: frame 0 is 64x32 pixels, not 32x32",
        "a.mp4/1: frame 5 is no picture",
        "films/b.mp4/0: landmarks are far outside",
        "films/b.mp4/1: a box is empty",
        "films/c.mov/0: it has 25599 samples",
    ):
        assert problem in printed


def test_verify_goes_on_behind_a_record_that_cannot_be_read(tmp_path, capsys):
    folder = tiny_data_set(tmp_path)
    (shard,) = (folder / "talking_clips" / "1.0.0").glob("*-train.array_record*")
    content = bytearray(shard.read_bytes())
    at = content.index(open_data_set(folder, "train")[0][2].frames[7])
    content[at + 40] ^= 255
    shard.write_bytes(content)
    assert inspection.verify(folder) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "train, record 2: cannot be read" in printed and "6 clips, 1 problem" in printed


def test_verify_notices_a_source_in_both_splits(tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        of = {SOURCES[0]: "train", SOURCES[2]: "validation"}
        patch.setattr(clips, "splits_of", lambda *_: of)
        made = [tiny_clip(0, SOURCES[0]), tiny_clip(1, SOURCES[2])]
        folder = tiny_data_set(tmp_path, made)
    root = folder / "talking_clips" / "1.0.0"
    shards = [next(root.glob(f"*-{split}.array_record*")) for split in ("train", "validation")]
    shards[1].write_bytes(shards[0].read_bytes())
    assert inspection.verify(folder) > 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "in the train split as well" in printed and "another clip has this name" in printed
