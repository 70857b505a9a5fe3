"""Drawn heads: their truth against the project's face networks, which were trained on people."""

import dataclasses

import cv2
import numpy as np
import pytest

from unavglip_jax import assets
from unavglip_jax.config import InputError
from unavglip_jax.data.heads import CUTS, Head, draw, random_head
from unavglip_jax.data.motion import Pose
from unavglip_jax.data.pipeline import mouth_and_jaw
from unavglip_jax.faces.blending import mesh_mask
from unavglip_jax.faces.crop import Box
from unavglip_jax.faces.detection import BlazeFace, find_faces
from unavglip_jax.faces.mesh import FaceMesh, ibug68

REST = np.zeros(5)
VISEMES = {
    "rest": (0, 0, 0, 0, 0),
    "p": (0, 0, 0, 1, 0),
    "f": (0, 0, 0, 0, 1),
    "aa": (1, 0, 0, 0, 0),
    "ee": (0.25, 0.85, 0, 0, 0),
    "oo": (0.2, 0, 1, 0, 0),
}
TURNED = Pose(x=0.06, y=-0.03, scale=1.04, roll=0.1, yaw=0.2, pitch=-0.1, gaze_x=0.5, brow=0.5)
IDENTITIES = (
    0,
    3,
    7,
    16,
    21,
)  # long hair, beards, glasses, the darkest and the lightest skin among them


def person(number: int) -> Head:
    return random_head(np.random.default_rng([0, number]))


def opened(value: float) -> np.ndarray:
    return np.array([value, 0, 0, 0, 0])


@pytest.fixture(scope="module")
def faces_in():
    detector = BlazeFace(assets.fetch("face_detection_short_range.tflite"))
    mesh = FaceMesh(assets.fetch("face_landmark.tflite"))
    return lambda picture: find_faces(picture, detector, mesh, scales=(1,))


def test_same_arguments_same_picture():
    """Also after other heads were drawn, and with the same noise."""
    mouth = np.array([0.4, 0.3, 0.2, 0, 0])
    first, points = draw(person(1), mouth, TURNED, 96, np.random.default_rng(5))
    for number in range(8):
        draw(person(number), REST, Pose(), 64)
    again, same = draw(person(1), mouth, TURNED, 96, np.random.default_rng(5))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(points, same)


def test_noise_only_with_a_generator():
    clean, _ = draw(person(2), REST, Pose(), 96)
    noisy, _ = draw(person(2), REST, Pose(), 96, np.random.default_rng(0))
    other, _ = draw(person(2), REST, Pose(), 96, np.random.default_rng(1))
    difference = noisy.astype(float) - clean
    assert (noisy != other).any()
    assert 0.4 < difference.std() < 4
    assert abs(difference.mean()) < 0.2


def test_people_differ():
    heads = [person(number) for number in range(12)]
    assert len({head.cut for head in heads}) >= 5
    pictures = [draw(head, REST, Pose(), 64)[0].astype(float) for head in heads]
    for number, picture in enumerate(pictures):
        for other in pictures[:number]:
            assert np.abs(picture - other).mean() > 8


def test_every_cut_is_drawn():
    head = person(4)
    tops = set()
    for cut in CUTS:
        picture, _ = draw(dataclasses.replace(head, cut=cut, background="plain"), REST, Pose(), 64)
        tops.add(picture.tobytes())
    assert len(tops) == len(CUTS)


def test_sizes_show_the_same():
    """A picture of another size is the same scene: smaller ones agree with a large one shrunk."""
    mouth = np.array([0.6, 0.2, 0, 0, 0])
    large, truth = draw(person(3), mouth, TURNED, 512)
    for size in (64, 100, 256):
        picture, points = draw(person(3), mouth, TURNED, size)
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
        np.testing.assert_allclose((points + 0.5) / size, (truth + 0.5) / 512, atol=0.002)
        shrunk = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA).astype(float)
        assert np.abs(picture - shrunk).mean() < 6


@pytest.mark.parametrize("pose", [Pose(), TURNED])
def test_truth_is_a_face(pose):
    for number in range(12):
        for mouth in VISEMES.values():
            _, points = draw(person(number), np.array(mouth, float), pose, 64)
            assert points.shape == (68, 2)
            assert (points > 0).all() and (points < 63).all()
            assert (np.diff(points[3:14, 0]) > 0).all()  # jaw from left to right
            assert points[36:40, 0].max() < points[42:46, 0].min()


def test_lip_gap():
    """Nothing when closed, then growing; pressed lips stay closed; the chin goes with the jaw."""
    for number in range(6):
        values = np.linspace(0, 1, 21)
        tracks = np.array([draw(person(number), opened(v), Pose(), 64)[1] for v in values])
        gaps = tracks[:, 66, 1] - tracks[:, 62, 1]
        assert gaps[0] == 0
        assert (np.diff(gaps) > 0).all()
        assert (np.diff(tracks[:, 8, 1]) > 0).all()
        pressed = draw(person(number), np.array([0, 0, 0, 1.0, 0]), Pose(), 64)[1]
        assert pressed[66, 1] == pressed[62, 1]
        assert pressed[57, 1] - pressed[51, 1] < 0.8 * (tracks[0, 57, 1] - tracks[0, 51, 1])


def test_width_of_the_mouth():
    width = {}
    for name, mouth in VISEMES.items():
        points = draw(person(5), np.array(mouth, float), Pose(), 64)[1]
        width[name] = points[54, 0] - points[48, 0]
    assert width["oo"] < 0.75 * width["rest"] < 0.65 * width["ee"]


def test_only_the_lower_face_moves():
    """Above the nose and away from the face not one pixel depends on the mouth."""
    for number in IDENTITIES:
        pictures, points = zip(
            *(draw(person(number), np.array(m, float), TURNED, 128) for m in VISEMES.values()),
            strict=True,
        )
        changed = np.ptp(np.array(pictures), axis=0).max(axis=-1) > 0
        face = np.zeros((128, 128), np.uint8)
        outline = np.concatenate(points)[:, None].astype(np.int32)
        cv2.fillConvexPoly(face, cv2.convexHull(outline), 1)
        # ear to ear is about 55 pixels; neck and beard follow the chin
        face = cv2.dilate(face, np.ones((29, 29), np.uint8))
        assert not (changed & (face == 0)).any()
        assert not changed[: int(points[0][36:48, 1].min())].any()
        assert changed.sum() > 500


def test_eyes_shut():
    """Shut eyes have no white, no iris: the picture there is skin and lashes."""
    head = dataclasses.replace(person(0), glasses="none", cut="bald")
    looks, points = draw(head, REST, Pose(), 256)
    shut, closed = draw(head, REST, Pose(blink=1.0), 256)
    lids = lambda p: p[[40, 41, 46, 47], 1].mean() - p[[37, 38, 43, 44], 1].mean()
    assert lids(points) > 8
    assert lids(closed) == pytest.approx(0, abs=0.01)
    x, y = np.rint(points[36:42].mean(axis=0)).astype(int)
    box = (slice(y - 5, y), slice(x - 10, x + 10))
    assert looks[box].std() > 2 * shut[box].std()


def test_networks_see_what_was_drawn(faces_in):
    """One face in every picture, its landmarks where the truth says."""
    errors = []
    for number in IDENTITIES:
        for mouth in VISEMES.values():
            picture, truth = draw(person(number), np.array(mouth, float), TURNED, 256)
            (face,) = faces_in(picture)
            assert face.mesh.presence > 0.9
            distance = np.linalg.norm(ibug68(face.mesh.points)[:, :2] - truth, axis=1)
            errors.append(distance / np.linalg.norm(truth[36] - truth[45]))
    errors = np.array(errors)
    assert errors.mean() < 0.06
    assert errors[:, 27:].mean() < 0.05  # nose, eyes and lips
    assert errors.mean(axis=1).max() < 0.10


def test_networks_measure_the_opening(faces_in):
    """The gap between the lips that the mesh finds follows what was asked for."""
    rng = np.random.default_rng(1)
    for number in IDENTITIES:
        values, gaps = np.concatenate([[0, 0, 1], rng.uniform(0, 1, 17)]), []
        for value in values:
            pose = Pose(yaw=rng.uniform(-0.1, 0.1), roll=rng.uniform(-0.05, 0.05))
            (face,) = faces_in(draw(person(number), opened(value), pose, 256, rng)[0])
            points = face.mesh.points[:, :2]
            eyes = np.linalg.norm(points[33] - points[263])
            gaps.append(np.linalg.norm(points[13] - points[14]) / eyes)
        assert np.corrcoef(gaps, values)[0, 1] > 0.9


@pytest.mark.parametrize("seen", ["68 points", "the mesh"])
def test_what_is_hidden_does_not_tell_the_opening(faces_in, seen):
    """A mask around the chin as it is moves with it; ours has room for the widest mouth at any time."""
    for number in IDENTITIES:
        lowest, chins = [], []
        for value in (0, 0.3, 0.6, 1):
            picture, truth = draw(person(number), opened(value), Pose(), 256)
            if seen == "the mesh":
                (face,) = faces_in(picture)
                mask = mesh_mask(face.mesh.points, Box(0, 0, 256, 256), (256, 256))
                chins.append(face.mesh.points[152, 1])
            else:
                mask = mouth_and_jaw(truth, 256)
                chins.append(truth[8, 1])
            lowest.append(np.flatnonzero((mask > 0).any(axis=1))[-1])
        assert np.ptp(chins) > 4
        assert np.ptp(lowest) < 0.5 * np.ptp(chins)
        assert min(lowest) > max(chins) + 4


@pytest.mark.parametrize("mouth", [np.zeros(4), np.array([0, 0, 1.2, 0, 0]), np.full(5, np.nan)])
def test_no_mouth(mouth):
    with pytest.raises(InputError, match="five values"):
        draw(person(0), mouth, Pose(), 64)


def test_too_small_and_no_pose():
    with pytest.raises(InputError, match="32"):
        draw(person(0), REST, Pose(), 31)
    with pytest.raises(InputError, match="scale"):
        draw(person(0), REST, Pose(scale=0.0), 64)
