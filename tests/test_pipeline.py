"""Samples of clips. The tiny data set's pictures, features and sounds say where they are from.

The defects of the published loaders are each tested for: the tests fail on the masked picture taken from the
reference, on frames in (frame, clip) order, on a mel from the wrong place, and on clips in which no reference
window can be found.
"""

import subprocess
import sys
from types import SimpleNamespace

import cv2
import librosa
import numpy as np
import pydantic
import pytest
import skimage.data

from tiny_data import (
    DESCRIPTION,
    EMBEDDING,
    FACE,
    LAYERS,
    SIZE,
    WIDTH,
    tiny_clip,
    tiny_data_set,
    told,
)
from unavglip_jax import assets
from unavglip_jax.config import InputError
from unavglip_jax.data import pipeline
from unavglip_jax.data.clips import open_data_set
from unavglip_jax.data.pipeline import SampleOptions, sample, train_dataset, validation_dataset
from unavglip_jax.faces import blending, crop, mesh
from unavglip_jax.faces.networks import Region
from unavglip_jax.media import audio

ALL = SampleOptions()
FEW = SampleOptions(fields=("target", "clip", "frame"))


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return open_data_set(tiny_data_set(tmp_path_factory.mktemp("data")), "train")


def samples(clip, count=50, description=DESCRIPTION, **options):
    rng = np.random.default_rng(0)
    return [sample(clip, description, SampleOptions(**options), rng) for _ in range(count)]


def first(dataset, count):
    """Copies of the first batches; what worker processes give is in memory that they share."""
    iterator = iter(dataset)
    found = [{k: np.array(v) for k, v in next(iterator).items()} for _ in range(count)]
    if hasattr(iterator, "close"):
        iterator.close()
    return found


def equal(one, other) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        for a, b in zip(one, other, strict=True)
    )


# ---- one sample


def test_shapes_and_dtypes():
    (found,) = samples(tiny_clip(0, "a"), 1)
    assert {k: (v.shape, v.dtype.name) for k, v in found.items()} == {
        "target": ((5, SIZE, SIZE, 3), "uint8"),
        "reference": ((5, SIZE, SIZE, 3), "uint8"),
        "hidden": ((5, SIZE, SIZE), "bool"),
        "landmarks": ((5, 68, 2), "float32"),
        "aspect": ((5,), "float32"),
        "windows": ((5, 10 * LAYERS, WIDTH), "float16"),
        "mel": ((16, 80), "float32"),
        "mel_wrong": ((16, 80), "float32"),
        "identity": ((4, EMBEDDING), "float32"),
        "frame": ((), "int32"),
    }
    (found,) = samples(tiny_clip(0, "a"), 1, fields=("mel", "target"))
    assert set(found) == {"mel", "target"}


def test_the_aspect_is_that_of_the_frame_s_box():
    clip = tiny_clip(0, "a")
    widths = np.arange(len(clip.frames)) + 10
    clip = clip._replace(boxes=np.stack([widths, 2 * widths, 2 * widths, 2 * widths + 20], axis=1))
    for found in samples(clip, 5):
        expected = widths[found["frame"] + np.arange(5)] / 20
        np.testing.assert_allclose(found["aspect"], expected, rtol=1e-6)


def test_augmenting_changes_pictures_and_not_what_is_heard():
    clip = tiny_clip(0, "a")
    for seed in range(5):
        plain, varied = (
            sample(clip, DESCRIPTION, ALL.replace(augment=on), np.random.default_rng(seed))
            for on in (False, True)
        )
        changed = {k for k in plain if not np.array_equal(plain[k], varied[k])}
        assert {"target", "landmarks"} <= changed <= {"target", "reference", "hidden", "landmarks"}


def test_target_and_reference_are_consecutive_frames_apart_from_each_other():
    starts, distances = set(), set()
    for found in samples(tiny_clip(7, "a", frames=18), 400):
        (clips, frames), (theirs, others) = told(found["target"]), told(found["reference"])
        assert (clips == 7).all() and (theirs == 7).all()
        np.testing.assert_array_equal(frames, found["frame"] + np.arange(5))
        np.testing.assert_array_equal(others, others[0] + np.arange(5))
        starts.add(int(frames[0]))
        distances.add(int(abs(others[0] - frames[0])))
    assert starts == set(range(14))
    assert distances == set(range(6, 14))


def test_distance_of_the_reference():
    fields = ("target", "reference", "frame")
    for found in samples(tiny_clip(0, "a"), fields=fields, nearest=8, farthest=9):
        assert abs(told(found["reference"])[1][0] - found["frame"]) in (8, 9)
    assert (
        SampleOptions(frames=16).least_distance == 17
        and SampleOptions(frames=1).least_distance == 6
    )
    with pytest.raises(pydantic.ValidationError, match="farthest is 5"):
        SampleOptions(farthest=5)


def test_in_the_shortest_clip_only_windows_with_a_reference_are_drawn():
    """Published: a window in the middle of such a clip looks for its reference for ever."""
    fields = ("target", "reference", "frame")
    drawn = {int(x["frame"]) for x in samples(tiny_clip(0, "a", frames=12), fields=fields)}
    assert drawn == {0, 1, 6, 7}
    with pytest.raises(InputError, match="has 32 frames, and samples of 16 frames need 33"):
        samples(tiny_clip(0, "a", frames=32), 1, frames=16)
    assert len(samples(tiny_clip(0, "a", frames=33), 1, frames=16)[0]["target"]) == 16


def test_masked_picture_is_the_target_with_its_own_region_hidden():
    """Published: it is the reference's, so that the generator never sees the pose it must keep."""
    for mask in ("lower_half", "mouth_and_jaw"):
        description = DESCRIPTION.replace(mask=mask)
        clip = tiny_clip(3, "a")
        moving = clip.landmarks + np.linspace(-4, 4, 40, dtype=np.float32)[:, None, None]
        clip = clip._replace(landmarks=moving)
        for found in samples(clip, 5, description):
            masked = np.where(found["hidden"][..., None], 0, found["target"])
            t = int(found["frame"])
            for i in range(5):
                seen = masked[i][~found["hidden"][i]]
                assert told(np.broadcast_to(seen.mean(axis=0), (1, 1, 3)))[1] == t + i
            assert (masked[:, :4] == found["target"][:, :4]).all()
            np.testing.assert_array_equal(found["landmarks"], moving[t : t + 5])
            if mask == "mouth_and_jaw":
                lips = moving[t : t + 5, 48:].mean(axis=1).round().astype(int)
                assert all(found["hidden"][i, y, x] for i, (x, y) in enumerate(lips))
                assert not np.array_equal(found["hidden"][0], found["hidden"][4])


def test_lower_half():
    (found,) = samples(tiny_clip(0, "a"), 1, fields=("hidden",))
    assert found["hidden"][:, SIZE // 2 :].all() and not found["hidden"][:, : SIZE // 2].any()


@pytest.mark.parametrize("zoom, angle", [(1, 0), (1.5, 15), (1.2, -20)])
def test_mouth_and_jaw_is_what_blending_replaces(zoom, angle):
    """The mesh's own mask of a photograph, which dubbing hides, against the one from 68 points."""
    matrix = cv2.getRotationMatrix2D((224, 120), angle, zoom)
    matrix[:, 2] += 20, 100
    picture = cv2.warpAffine(skimage.data.astronaut(), matrix, (512, 512))
    network = mesh.FaceMesh(assets.fetch("face_landmark.tflite"))
    centre = matrix @ [224, 120, 1]
    found = network(picture, Region(*map(float, centre), 200 * zoom, -np.deg2rad(angle)))
    points = network(picture, mesh.region_of(found.points)).points
    landmarks = mesh.ibug68(points)[:, :2]
    box = crop.crop_box(landmarks, picture.shape[:2], crop.RULES["musetalk_v15"])
    opacity = blending.mesh_mask(points, box, picture.shape[:2])
    theirs = cv2.resize(opacity, (256, 256), interpolation=cv2.INTER_AREA) > 0
    scale = 256 / np.array([box.width, box.height])
    ours = pipeline.mouth_and_jaw((landmarks - [box.x1, box.y1] + 0.5) * scale - 0.5, 256)
    assert (theirs & ~ours).sum() < 0.03 * theirs.sum()
    assert (ours & ~theirs).sum() < 0.15 * theirs.sum()


def test_mouth_and_jaw_leaves_nose_and_eyes():
    points = 256 * FACE
    region = pipeline.mouth_and_jaw(points.astype(np.float32), 256)
    inside = lambda of: [bool(region[int(y), int(x)]) for x, y in of]
    assert all(inside(points[48:])) and all(inside(points[5:12] - [0, 2]))
    assert not any(inside(points[[27, 28, 29, 30, 33]])) and not any(inside(points[36:48]))
    assert not region[:138].any()


def whole_mel(clip):
    """The clip's mel by librosa."""
    x = clip.samples.astype(np.float32) / 32768
    x = np.append(x[:1], x[1:] - 0.97 * x[:-1])
    spectrum = np.abs(librosa.stft(x, n_fft=800, hop_length=200, win_length=800))
    mel = librosa.filters.mel(sr=16000, n_fft=800, n_mels=80, fmin=55, fmax=7600) @ spectrum
    return np.clip(8 * (20 * np.log10(np.maximum(mel, 1e-5)) + 80) / 100 - 4, -4, 4).T


def test_mel_is_that_of_the_target():
    """Published: row int(80 * (t + 1) / 5000), which is 0 for every window."""
    clip = tiny_clip(2, "a", frames=24)
    mel = whole_mel(clip)
    starts = set()
    for found in samples(clip, 200, fields=("target", "mel", "frame")):
        row = int(80 * found["frame"] / 25)
        np.testing.assert_allclose(found["mel"], mel[row : row + 16], atol=1e-3)
        starts.add(row)
    assert len(starts) == 20
    exact = audio.wav2lip_mel(clip.samples.astype(np.float32) / 32768)
    for t in range(20):
        row = int(80 * t / 25)
        np.testing.assert_array_equal(pipeline.mel_rows(clip.samples, t, 5), exact[row : row + 16])


def test_a_click_is_heard_at_its_time():
    clip = tiny_clip(0, "a")
    sound = np.zeros_like(clip.samples)
    sound[20 * 640] = 32000  # at the time of frame 20
    clip = clip._replace(samples=sound)
    for found in samples(clip, fields=("target", "mel", "frame"), frames=16):
        assert found["mel"].shape == (52, 80)
        moment = 20 * 3.2 - found["frame"] * 3.2
        loud = np.flatnonzero(found["mel"].max(axis=1) > -3.9)
        if 3 < moment < 48:
            assert abs(loud.mean() - moment) <= 1
        elif moment < -3 or moment > 55:
            assert not len(loud)


@pytest.mark.parametrize("frames", [5, 16])
def test_the_wrong_mel_is_of_another_window(frames):
    clip = tiny_clip(1, "a")
    mel = whole_mel(clip)
    count = -(-frames * 16 // 5)
    windows = {t: mel[int(3.2 * t + 1e-9) :][:count] for t in range(40 - frames + 1)}
    seen = set()
    for found in samples(clip, 40, fields=("target", "mel", "mel_wrong", "frame"), frames=frames):
        (at,) = [t for t, x in windows.items() if np.abs(x - found["mel_wrong"]).max() < 1e-3]
        assert abs(at - found["frame"]) >= frames
        seen.add(at)
    assert len(seen) > 10


@pytest.mark.parametrize("front_end", ["v10", "v15"])
def test_audio_windows(front_end):
    """Frame i hears steps 2 i - 4 to 2 i + 5; each step's number is stored in all its tokens."""
    description = DESCRIPTION.replace(audio_front_end=front_end)
    clip = tiny_clip(3, "a", frames=12)
    for found in samples(clip, 20, description, fields=("target", "windows", "frame")):
        for i in range(5):
            steps = 2 * (found["frame"] + i) - 4 + np.arange(10)
            heard = 600.0 + np.clip(steps, 0, 23)
            if front_end == "v15":
                heard[(steps < 0) | (steps > 23)] = 0
            want = np.repeat(heard, LAYERS)[:, None].repeat(WIDTH, axis=1)
            np.testing.assert_array_equal(found["windows"][i], want)


def test_embeddings_are_chosen_and_dropped():
    clip = tiny_clip(0, "a", embeddings=6)
    number = lambda row: np.flatnonzero((clip.identity == row).all(axis=1)).item()
    chosen = [
        [number(row) for row in x["identity"]]
        for x in samples(clip, fields=("identity",), n_cond=4)
    ]
    assert all(len(set(numbers)) == 4 for numbers in chosen)
    assert {n for numbers in chosen for n in numbers} == set(range(6))
    more = samples(clip, 5, fields=("identity",), n_cond=9)
    assert all({number(row) for row in x["identity"]} <= set(range(6)) for x in more)

    dropped = [
        not x["identity"].any()
        for x in samples(clip, 400, fields=("identity",), identity_dropout=0.25)
    ]
    assert 0.18 < np.mean(dropped) < 0.32
    none = tiny_clip(0, "a", embeddings=0)
    assert not samples(none, 1, fields=("identity",))[0]["identity"].any()


def test_reference_near_in_pose_and_far_in_the_mouths_shape():
    """Half of the frames look aside, and in each half every other mouth is open, and some are nearer."""
    clip = tiny_clip(0, "a")
    landmarks = np.repeat(FACE[None], 40, axis=0)
    landmarks[20:, :17, 0] += 0.1
    landmarks[::2, 60:] = (landmarks[::2, 60:] - [0.5, 0.74]) * [1, 3] + [0.5, 0.74]
    landmarks *= 1 + np.arange(40)[:, None, None] % 5 / 10  # the size of the face is not a pose
    clip = clip._replace(landmarks=(32 * landmarks).astype(np.float32))
    pose, mouth = [], []
    for found in samples(clip, fields=("target", "reference"), reference="pose"):
        targets, references = told(found["target"])[1], told(found["reference"])[1]
        assert (np.abs(targets - references) >= 6).all()
        pose.extend((targets < 20) == (references < 20))
        mouth.extend((targets - references) % 2 == 1)
    # the nearer half of the choices in pose, the farther half in mouth; both halves but for chance
    assert np.mean(mouth) > 0.9 and np.mean(pose) > 0.6
    plain = samples(clip, fields=("target", "reference"))
    same = [(told(x["target"])[1] < 20) == (told(x["reference"])[1] < 20) for x in plain]
    assert np.mean(same) < 0.5


# ---- many samples


def test_frames_of_a_batch_stay_with_their_clips(train):
    """Published: (frame, clip) order read as (clip, frame), so that windows mix clips."""
    source, description = train
    for batch in first(train_dataset(source, description, ALL, 4, seed=0), 3):
        assert batch["target"].shape == (4, 5, SIZE, SIZE, 3)
        clips, frames = told(batch["target"])
        np.testing.assert_array_equal(clips, batch["clip"][:, None].repeat(5, axis=1))
        np.testing.assert_array_equal(frames, batch["frame"][:, None] + np.arange(5))
        np.testing.assert_array_equal(told(batch["reference"])[0], clips)
        np.testing.assert_array_equal(batch["label"], batch["clip"] // 2)
        steps = batch["windows"][:, 2, 8, 0] - 200.0 * clips[:, 0]
        np.testing.assert_array_equal(steps, (2 * (frames[:, 2])).clip(0, 79))


def test_every_clip_once_an_epoch_in_an_order_that_changes(train):
    epochs = [batch["clip"].tolist() for batch in first(train_dataset(*train, FEW, 4, seed=1), 6)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 2


def test_same_batches_for_any_number_of_workers(train):
    """With the samples' random choices, and going on at a step."""
    want = first(train_dataset(*train, ALL, 2, seed=5), 6)
    assert not equal(want, first(train_dataset(*train, ALL, 2, seed=6), 6))
    assert equal(want, first(train_dataset(*train, ALL, 2, seed=5), 6))
    assert equal(want[1:], first(train_dataset(*train, ALL, 2, seed=5, start=1, workers=2), 5))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_same_global_batches_for_any_number_of_processes(train, count):
    want = first(train_dataset(*train, ALL, 4, seed=5), 4)
    start = 1
    parts = [
        first(train_dataset(*train, ALL, 4, seed=5, index=i, count=count, start=start), 3)
        for i in range(count)
    ]
    joined = [
        {k: np.concatenate([part[k] for part in step]) for k in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert equal(want[start:], joined)


def test_resume_by_state_and_by_start(train):
    iterator = iter(train_dataset(*train, ALL, 3, seed=2))
    for _ in range(3):
        next(iterator)
    state, want = iterator.get_state(), next(iterator)
    assert state == {"next_index": 3}
    other = iter(train_dataset(*train, ALL, 3, seed=2))
    other.set_state(state)
    assert equal([want], [next(other)])
    assert equal([want], first(train_dataset(*train, ALL, 3, seed=2, start=3), 1))
    far = first(train_dataset(*train, FEW, 3, seed=2, start=10**9), 1)
    assert len(far[0]["clip"]) == 3


@pytest.mark.parametrize("count", [1, 3])
def test_validation_has_every_clip_once_and_says_what_is_padding(train, count):
    parts = [list(validation_dataset(*train, ALL, 3, index=i, count=count)) for i in range(count)]
    assert {len(part) for part in parts} == {2}
    joined = [
        {k: np.concatenate([part[k] for part in step]) for k in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert np.concatenate([x["clip"][x["valid"]] for x in joined]).tolist() == [0, 1, 2, 3]
    assert np.concatenate([x["valid"] for x in joined]).tolist() == [True] * 4 + [False] * 2
    assert equal(joined, list(validation_dataset(*train, ALL, 3)))
    dropping = ALL.replace(identity_dropout=1.0)
    assert next(iter(validation_dataset(*train, dropping, 3)))["identity"].any(axis=(1, 2)).all()


ALONE = """
import sys
sys.modules["jax"] = None  # importing it is an error now
from unavglip_jax.data import clips, pipeline
source, description = clips.open_data_set(sys.argv[1], "train")
dataset = pipeline.train_dataset(source, description, pipeline.SampleOptions(), 2, 0)
print(next(iter(dataset))["target"].shape)
assert not {name.partition(".")[0] for name in sys.modules} & {"flax", "tensorflow", "torch"}
"""


def test_neither_jax_nor_tensorflow_is_needed(tmp_path):
    folder = tiny_data_set(tmp_path)
    command = [sys.executable, "-c", ALONE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"(2, 5, {SIZE}, {SIZE}, 3)\n", done.stderr


# ---- what fits


def test_samples_that_a_data_set_cannot_give_are_refused(tmp_path, train):
    source, description = train
    with pytest.raises(InputError, match="clip of 40 frames, and samples of 20 frames need 41"):
        train_dataset(source, description, SampleOptions(frames=20), 2, 0)
    with pytest.raises(InputError, match="no audio features"):
        train_dataset(source, description.replace(whisper=None), ALL, 2, 0)
    with pytest.raises(InputError, match="no identity embeddings"):
        validation_dataset(source, description.replace(embedder=None), ALL, 2)
    for batch_size, index, count in ((3, 0, 2), (4, 2, 2), (0, 0, 1)):
        with pytest.raises(InputError, match=f"process {index} of {count}"):
            train_dataset(source, description, ALL, batch_size, 0, index, count)
    with pytest.raises(pydantic.ValidationError, match="colour"):
        SampleOptions(fields=("colour",))


def test_pictures_of_another_size_are_refused():
    with pytest.raises(InputError, match="is 32x32 pixels, and the data set's are 64x64"):
        samples(tiny_clip(0, "a"), 1, DESCRIPTION.replace(image_size=64))


WHISPER = {"whisper": SimpleNamespace(sha256="0" * 64)}
IDENTITY = {"identity": SimpleNamespace(sha256="1" * 64)}


def pack(**changes):
    """What `pipeline.check` looks at of a pack that fits the tiny data set."""
    fields = {
        "crop": "musetalk_v10",
        "image_size": SIZE,
        "mask": "lower_half",
        "audio_front_end": "v10",
        "identity": SimpleNamespace(embedder="identity"),
        "components": WHISPER | IDENTITY,
    }
    return SimpleNamespace(**fields | changes)


@pytest.mark.parametrize(
    "change, field, message",
    [
        (
            {"crop": "musetalk_v15"},
            "target",
            "crop rule musetalk_v10, and the pack has musetalk_v15",
        ),
        ({"image_size": 64}, "target", "image size 32, and the pack has 64"),
        ({"mask": "mouth_and_jaw"}, "hidden", "mask lower_half, and the pack has mouth_and_jaw"),
        ({"audio_front_end": "v15"}, "windows", "audio front end v10, and the pack has v15"),
        ({"components": IDENTITY}, "windows", "whisper 0{64}, and the pack has none"),
        ({"components": WHISPER}, "identity", "sha256 1{64}, and the pack has none"),
        ({"identity": None}, "identity", "embedder identity, and the pack has none"),
        (
            {"identity": SimpleNamespace(embedder="buffalo_l")},
            "identity",
            "embedder identity, and the pack has buffalo_l",
        ),
    ],
)
def test_data_sets_made_for_another_pack_are_refused(change, field, message):
    everything = ALL.fields
    pipeline.check(DESCRIPTION, pack(), everything)
    with pytest.raises(InputError, match=message):
        pipeline.check(DESCRIPTION, pack(**change), everything)
    others = {"target", "hidden", "windows", "identity", "mel"} - {field}
    if field != "target":
        pipeline.check(DESCRIPTION, pack(**change), ("mel", "target"))
    else:
        with pytest.raises(InputError):
            pipeline.check(DESCRIPTION, pack(**change), tuple(others))
