"""Talking photographs: against the mesh network, which knows nothing of how they are drawn."""

import cv2
import numpy as np
import pytest
import scipy.interpolate
import skimage.data

from unavglip_jax import assets
from unavglip_jax.config import InputError
from unavglip_jax.data import photographs
from unavglip_jax.data.motion import Pose
from unavglip_jax.faces.detection import BlazeFace, find_faces
from unavglip_jax.faces.mesh import FaceMesh, ibug68

REST = (0, 0, 0, 0, 0)
MOUTHS = {
    "rest": REST,
    "press": (0, 0, 0, 1, 0),
    "tuck": (0, 0, 0, 0, 1),
    "aa": (1, 0, 0, 0, 0),
    "eh": (0.55, 0.35, 0, 0, 0),
    "iy": (0.25, 0.85, 0, 0, 0),
    "ow": (0.5, 0, 0.7, 0, 0),
    "uw": (0.2, 0, 1, 0, 0),
    "sz": (0.12, 0.4, 0, 0, 0),
}
SIZE = 256


@pytest.fixture(scope="module")
def networks():
    """The tests' own, so that nothing the module keeps can help it."""
    return BlazeFace(assets.fetch(photographs.NETWORKS[0])), FaceMesh(
        assets.fetch(photographs.NETWORKS[1])
    )


@pytest.fixture(scope="module")
def photograph():
    return photographs.prepare(skimage.data.astronaut(), "astronaut")


def draw(photograph, mouth=REST, size=SIZE, rng=None, **pose):
    return photographs.draw(photograph, np.array(mouth, float), Pose(**pose), size, rng)


def seen(picture, networks):
    """The mesh's 68 points of the one face in a picture."""
    (face,) = find_faces(picture, *networks, scales=(1,))
    return ibug68(face.mesh.points[:, :2].astype(np.float64))


def eyes(points):
    return np.linalg.norm(points[45] - points[36])


def gap(points):
    return np.linalg.norm(points[66] - points[62]) / eyes(points)


def width(points):
    return np.linalg.norm(points[54] - points[48]) / eyes(points)


# Landmarks


def test_lips_touch_at_rest_and_part_as_the_mouth_opens(photograph):
    gaps = [gap(draw(photograph, (x, 0, 0, 0, 0))[1]) for x in np.linspace(0, 1, 11)]
    assert gaps[0] < 0.003
    assert np.all(np.diff(gaps) > 0.005)
    assert 0.15 < gaps[-1] < 0.3  # not the dropped jaw of a cartoon
    assert gap(draw(photograph, MOUTHS["press"])[1]) < 0.003


def test_width_and_thickness_of_lips(photograph):
    points = {name: draw(photograph, mouth)[1] for name, mouth in MOUTHS.items()}
    for name, least, most in (("rest", 0.5, 0.64), ("iy", 0.62, 0.75), ("uw", 0.3, 0.45)):
        assert least < width(points[name]) < most
    thickness = lambda p: (p[57] - p[66] + p[62] - p[51])[1] / eyes(p)
    assert thickness(points["press"]) < 0.75 * thickness(points["rest"])
    assert thickness(points["uw"]) > 1.1 * thickness(points["rest"])
    assert points["aa"][8, 1] - points["rest"][8, 1] > 0.1 * eyes(points["rest"])  # the chin


@pytest.mark.parametrize(
    "pose",
    [
        {},
        {"yaw": 0.12, "pitch": 0.05, "x": 0.04},
        {"yaw": -0.12, "roll": 0.07, "y": 0.03, "scale": 1.03},
        {"pitch": -0.08, "roll": -0.07, "brow": 1.0},
    ],
)
def test_the_mesh_finds_the_landmarks(photograph, networks, pose):
    for name, mouth in MOUTHS.items():
        picture, points = draw(photograph, mouth, **pose)
        error = np.linalg.norm(seen(picture, networks) - points, axis=1) / eyes(points)
        assert error.mean() < 0.035, name
        assert error[48:].mean() < 0.06, name


def test_landmarks_do_not_depend_on_the_size(photograph):
    pose = {"yaw": 0.1, "roll": 0.05, "blink": 0.5}
    expected = draw(photograph, MOUTHS["eh"], 256, **pose)[1]
    for size in (64, 200, 512):
        picture, points = draw(photograph, MOUTHS["eh"], size, **pose)
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
        np.testing.assert_allclose((points + 0.5) / size, (expected + 0.5) / 256, atol=1e-3)


def test_measured_gap_follows_the_opening(photograph, networks):
    """A minute's syllables in two seconds: every mouth, blended, while the head moves."""
    rng = np.random.default_rng(5)
    order = np.concatenate([rng.permutation(list(MOUTHS)) for _ in range(2)])
    keys = np.array([MOUTHS[name] for name in order], float)
    times = np.linspace(0, len(keys) - 1, 3 * len(keys))
    mouths = np.stack([np.interp(times, np.arange(len(keys)), column) for column in keys.T], 1)
    measured, true = [], []
    for i, mouth in enumerate(mouths):
        pose = {"yaw": 0.1 * np.sin(i / 9), "roll": 0.03 * np.sin(i / 7), "x": 0.03 * np.sin(i / 5)}
        picture, points = draw(photograph, mouth, rng=rng, **pose)
        measured.append(gap(seen(picture, networks)))
        true.append(gap(points))
    lags = {
        lag: np.corrcoef(np.roll(mouths[:, 0], lag)[3:-3], measured[3:-3])[0, 1]
        for lag in range(-3, 4)
    }
    assert max(lags, key=lags.get) == 0
    assert lags[0] > 0.9
    assert np.corrcoef(true, measured)[0, 1] > 0.93


# The picture


def white(picture, points):
    """How many pixels between the outer borders of the lips are as bright and pale as teeth."""
    lips = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillPoly(lips, [np.round(points[48:60]).astype(np.int32)], 1)
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[lips > 0]
    return int(((lab[:, 0] > 60) & (np.abs(lab[:, 1]) < 7)).sum())


def test_the_smile_closes_over_its_teeth(photograph):
    teeth = {name: white(*draw(photograph, MOUTHS[name], 512)) for name in MOUTHS}
    assert max(teeth["rest"], teeth["press"]) < 25
    assert teeth["tuck"] > 40 and teeth["iy"] > 100 and teeth["aa"] > 150


def test_the_mouth_moves_nothing_but_the_lower_face(photograph):
    rest, points = draw(photograph)
    left, top = points[:, 0].min() - 0.7 * eyes(points), points[36:48, 1].min()
    for mouth in MOUTHS.values():
        changed = np.argwhere((draw(photograph, mouth)[0] != rest).any(axis=-1))
        if len(changed):
            assert changed[:, 0].min() > top - 0.1 * eyes(points)
            assert changed[:, 1].min() > left and changed[:, 1].max() < SIZE - 2


def test_the_head_moves_before_a_picture_that_stays(photograph, networks):
    rest, points = draw(photograph)
    moved, there = draw(photograph, x=0.05, y=-0.03, roll=0.06, yaw=0.1)
    for border in np.s_[:2], np.s_[-2:], np.s_[:, :2], np.s_[:, -2:]:
        np.testing.assert_array_equal(moved[border], rest[border])
    assert (there - points)[36:48, 0].mean() > 0.05 * eyes(points)
    assert np.degrees(np.arctan2(*(there[45] - there[36])[::-1])) > 4  # clockwise
    step = seen(moved, networks) - seen(rest, networks) - (there - points)
    assert np.linalg.norm(step.mean(axis=0)) < 0.02 * eyes(points)


@pytest.mark.parametrize(("angle", "point"), [("yaw", 0), ("pitch", 1)])
def test_the_nose_goes_where_the_head_turns(photograph, networks, angle, point):
    ways = []
    for value in (-0.12, 0.12):
        found = seen(draw(photograph, **{angle: value})[0], networks)
        ways.append((found[30] - (found[36] + found[45]) / 2)[point] / eyes(found))
    assert ways[1] - ways[0] > 0.05


def test_eyes_shut(photograph):
    def darkest(picture, points):
        middle = points[36:42].mean(axis=0).round().astype(int)
        return picture[middle[1] - 1 : middle[1] + 2, middle[0] - 2 : middle[0] + 3].mean()

    opened, shut = (draw(photograph, blink=blink) for blink in (0.0, 1.0))
    lids = lambda points: np.linalg.norm(
        points[[37, 38, 43, 44]] - points[[41, 40, 47, 46]], axis=1
    )
    assert lids(shut[1]).max() < 0.25 * lids(opened[1]).min()
    assert darkest(shut[0], opened[1]) > 1.3 * darkest(*opened)


def test_the_same_again(photograph):
    mouth = MOUTHS["eh"]
    a = draw(photograph, mouth, rng=np.random.default_rng(1), yaw=0.1)
    other = photographs.prepare(skimage.data.astronaut(), "astronaut")
    b = draw(other, mouth, rng=np.random.default_rng(1), yaw=0.1)
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])
    clean = draw(photograph, mouth, yaw=0.1)[0].astype(int)
    noise = a[0] - clean
    assert 1 < noise.std() < 2.5 and abs(noise.mean()) < 0.1
    assert (
        np.abs(
            draw(photograph, mouth, rng=np.random.default_rng(2), yaw=0.1)[0] - clean - noise
        ).max()
        > 3
    )


def test_other_people(networks):
    image = skimage.data.astronaut()
    first, second = (photographs.vary(image, np.random.default_rng(seed)) for seed in (0, 3))
    np.testing.assert_array_equal(first, photographs.vary(image, np.random.default_rng(0)))
    assert first.shape == image.shape and first.dtype == np.uint8
    assert np.abs(first.astype(int) - second).mean() > 5
    varied = photographs.prepare(second, "varied")
    picture, points = draw(varied, MOUTHS["aa"])
    assert gap(seen(picture, networks)) > 0.1
    assert gap(seen(draw(varied)[0], networks)) < 0.04
    assert np.linalg.norm(seen(picture, networks) - points, axis=1).mean() < 0.04 * eyes(points)


def test_a_closed_mouth_is_given_teeth(photograph):
    """The photograph at rest is a photograph of a closed mouth."""
    closed = photographs.prepare(draw(photograph, size=512)[0], "closed")
    assert white(*draw(closed, size=512)) < 10
    assert white(*draw(closed, MOUTHS["iy"], 512)) > 50


# Bad input


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((300, 300, 3), 128, np.uint8), "grey.png has no face"),
        (skimage.data.astronaut()[:, :, 0], r"uint8 array of shape \(height, width, 3\)"),
        (skimage.data.astronaut() / 255, "not float64"),
        (np.dstack([skimage.data.astronaut()] * 2)[..., :4], "leave out opacity"),
        (cv2.resize(skimage.data.astronaut(), (160, 160)), "too small, 1[89] pixels"),
    ],
)
def test_what_is_no_photograph_of_a_face(image, message):
    with pytest.raises(InputError, match=message):
        photographs.prepare(image, "grey.png")


@pytest.mark.parametrize(
    "mouth", [(0, 0, 0, 0), (1.1, 0, 0, 0, 0), (0, 0, 0, -0.1, 0), (np.nan,) * 5]
)
def test_what_is_no_mouth(photograph, mouth):
    with pytest.raises(InputError, match="five numbers from 0 to 1"):
        draw(photograph, mouth)


def test_too_small_to_draw(photograph):
    with pytest.raises(InputError, match="64 pixels"):
        draw(photograph, size=32)


# Geometry


def test_thin_plate_agrees_with_scipy():
    rng = np.random.default_rng(0)
    controls, values, places = (
        rng.normal(size=(30, 2)),
        rng.normal(size=(30, 2)),
        rng.normal(size=(50, 2)),
    )
    for give in (0.0, 1e-2):
        # scipy's kernel is r² log r as ours
        expected = scipy.interpolate.RBFInterpolator(controls, values, smoothing=give)(places)
        found = photographs.thin_plate(controls, places, give) @ values
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_inverse_undoes_a_field():
    grid = photographs.nodes(64)
    field = 0.03 * np.sin(2 * np.pi * grid[..., ::-1]).astype(np.float32)
    window = np.array([[0.0, 0.0], [1.0, 1.0]])
    inner = grid[8:-8, 8:-8].reshape(-1, 2)
    there = inner + photographs.sample(photographs.inverse(field, window), inner)
    np.testing.assert_allclose(there + photographs.sample(field, there), inner, atol=2e-4)
