"""Aligned faces, the frames that stand for a person, embeddings on disk, insightface, reference frames."""

import sys

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from skimage.data import astronaut
from skimage.transform import SimilarityTransform

from unavglip_jax.config import InputError
from unavglip_jax.faces import identity, reference

# The astronaut's eyes, nose and mouth corners, by Face Mesh.
FIVE = np.array([[203.0, 101], [248, 102], [223, 127], [206, 141], [242, 142]])


def face68(x=200.0, y=150.0, size=40.0, yaw=0.0, opening=0.0, roll=0.0) -> np.ndarray:
    """Sixty-eight points of a drawn face: `size` pixels between the eyes, turned and with an open mouth."""
    p = np.zeros((68, 2))
    angle = np.linspace(np.pi, 0, 17)
    p[:17] = np.stack([1.0 * np.cos(angle), 0.2 + 1.1 * np.sin(angle)], 1)
    p[8, 1] += 0.4 * opening  # the chin follows
    p[17:27] = np.stack([np.linspace(-0.8, 0.8, 10), np.full(10, -0.3)], 1)
    p[27:31] = np.stack([np.zeros(4), np.linspace(0, 0.57, 4)], 1)
    p[31:36] = np.stack([np.linspace(-0.2, 0.2, 5), np.full(5, 0.65)], 1)
    ring = np.linspace(0, 2 * np.pi, 6, endpoint=False)
    for first, middle in ((36, -0.5), (42, 0.5)):
        p[first : first + 6] = np.stack([middle + 0.15 * np.cos(ring), 0.06 * np.sin(ring)], 1)
    for first, count, rx, ry in ((48, 12, 0.4, 0.12 + opening / 2), (60, 8, 0.3, opening / 2)):
        ring = np.linspace(-np.pi, np.pi, count, endpoint=False)
        p[first : first + count] = np.stack([rx * np.cos(ring), 1.15 + ry * np.sin(ring)], 1)
    depth = np.zeros(68)
    depth[27:36], depth[17:27], depth[36:] = 0.6, 0.2, 0.2
    p[:, 0] = p[:, 0] * np.cos(yaw) + depth * np.sin(yaw)
    turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    return p @ turn.T * size + [x, y]


# --- alignment


def test_similarity_is_umeyamas():
    rng = np.random.default_rng(0)
    for _ in range(20):
        source = FIVE + rng.normal(0, 8, (5, 2))
        theirs = SimilarityTransform.from_estimate(source, identity.TEMPLATE).params[:2]
        np.testing.assert_allclose(
            identity.similarity(source, identity.TEMPLATE), theirs, atol=1e-9
        )
    # OpenCV looks for the same transform, by iteration
    theirs, _ = cv2.estimateAffinePartial2D(FIVE, identity.TEMPLATE, ransacReprojThreshold=1e9)
    np.testing.assert_allclose(
        identity.similarity(FIVE, identity.TEMPLATE), theirs, atol=0.01, rtol=0.01
    )


def test_similarity_undoes_a_known_motion():
    angle, scale = 0.4, 2.5
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = identity.similarity(FIVE, FIVE @ turn.T + [30, -20])
    np.testing.assert_allclose(found, np.column_stack([turn, [30, -20]]), atol=1e-9)
    # a mirrored face is not mirrored back
    mirrored = identity.similarity(FIVE, FIVE * [-1, 1])[:, :2]
    assert np.linalg.det(mirrored) > 0


def test_aligned_face_has_its_points_where_arcface_wants_them():
    frame = astronaut()
    face = identity.align(frame, FIVE)
    matrix = SimilarityTransform.from_estimate(FIVE, identity.TEMPLATE).params[:2]
    theirs = cv2.warpAffine(frame, matrix, (112, 112), borderValue=0)
    assert face.shape == (112, 112, 3)
    assert np.abs(face.astype(int) - theirs).max() <= 1
    # black outside the frame
    assert identity.align(frame, FIVE - [190, 90])[0].max() == 0


def test_five_points_of_both_sets_of_landmarks():
    five = identity.five_points(face68())
    eye = [-0.5 * 40 + 200, 150]
    np.testing.assert_allclose(five[0], eye, atol=1e-9)
    np.testing.assert_allclose(five[2], face68()[30])
    mesh = np.zeros((478, 3))
    for group, point in zip(identity.FIVE[468], FIVE, strict=True):
        mesh[group, :2] = point
    np.testing.assert_allclose(identity.five_points(mesh), FIVE)


# --- choosing frames


def looks(count, **changes) -> np.ndarray:
    rows = np.tile(identity.Look(0.5, 0.02, 0.0, 0.0, 0.05, 1.0, 60.0), (count, 1))
    for name, values in changes.items():
        rows[:, identity.Look._fields.index(name)] = values
    return rows


def test_a_look_measures_what_it_says():
    frame = astronaut()
    plain = identity.look(frame, face68())
    assert plain.size == pytest.approx(40) and plain.visible == 1 and plain.opening < 0.01
    assert abs(plain.yaw) < 0.01 and abs(plain.roll) < 0.01
    assert identity.look(frame, face68(opening=0.5)).opening == pytest.approx(0.5, abs=0.02)
    assert identity.look(frame, face68(roll=0.3)).roll == pytest.approx(0.3)
    yaws = [identity.look(frame, face68(yaw=yaw)).yaw for yaw in (-0.8, -0.3, 0, 0.3, 0.8)]
    assert (np.diff(yaws) > 0.05).all() and yaws[-1] > 0.3
    assert abs(identity.look(frame, face68(roll=0.5)).yaw) < 0.01
    assert identity.look(frame, face68(x=-5)).visible < 0.8
    sharp = identity.look(frame, FIVE_AS_68)
    blurred = identity.look(cv2.GaussianBlur(frame, (0, 0), 2), FIVE_AS_68)
    darker = identity.look((frame * 0.6).astype(np.uint8), FIVE_AS_68)
    assert blurred.sharpness < sharp.sharpness / 4
    assert darker.sharpness == pytest.approx(sharp.sharpness, rel=0.15)


FIVE_AS_68 = face68(225, 101, 45)


@pytest.mark.parametrize(
    "worse",
    [
        {"sharpness": 0.1},
        {"yaw": 0.4},
        {"yaw": -0.4},
        {"pitch": 0.2},
        {"roll": 0.5},
        {"opening": 0.4},
        {"visible": 0.8},
        {"size": 20},
    ],
    ids=str,
)
def test_quality_falls_with_each_fault(worse):
    rows = looks(20)
    rows[7, [identity.Look._fields.index(name) for name in worse]] = list(worse.values())
    score = identity.quality(rows)
    assert score[7] < 0.75 * np.delete(score, 7).min()
    assert score.min() >= 0 and score.max() <= 1


def test_chosen_frames_are_good_spread_and_the_same_again():
    rng = np.random.default_rng(0)
    rows = looks(300, sharpness=rng.uniform(0.4, 0.6, 300))
    rows[100:200, 0] = 0.05  # blurred
    rows[50] = np.nan
    chosen = identity.conditioning_frames(rows, 4, seed=3)
    assert len(set(chosen)) == 4 and 50 not in chosen
    assert not ((chosen >= 100) & (chosen < 200)).any()
    assert np.ptp(chosen) > 200 and np.diff(np.sort(chosen)).min() > 20
    np.testing.assert_array_equal(chosen, identity.conditioning_frames(rows, 4, seed=3))
    assert set(chosen) != set(identity.conditioning_frames(rows, 4, seed=4))


def test_chosen_frames_are_spread_in_pose():
    rows = looks(100)
    rows[40:45, 1], rows[45:50, 1] = 0.2, -0.2
    chosen = identity.conditioning_frames(rows, 5)
    assert {int(np.sign(np.round(rows[i, 1], 1))) for i in chosen} == {-1, 0, 1}


def test_few_faces_are_repeated_and_none_is_an_error():
    rows = np.full((9, 7), np.nan)
    rows[4] = looks(1)[0]
    assert identity.conditioning_frames(rows, 3).tolist() == [4, 4, 4]
    rows[4, 0] = 0  # without any detail, but it is the only one
    assert identity.conditioning_frames(rows, 1).tolist() == [4]
    for empty in (np.full((9, 7), np.nan), np.zeros((0, 7))):
        with pytest.raises(InputError, match="no frame shows a face"):
            identity.conditioning_frames(empty, 3)


# --- embeddings


def colours(faces):
    """An embedder for tests: the means of 16x16 patches, some of them."""
    assert faces.dtype == np.float32 and faces.shape[1:] == (112, 112, 3)
    assert faces.min() >= -1 and faces.max() <= 1
    patches = faces.reshape(len(faces), 14, 8, 14, 8, 3).mean(axis=(2, 4)).reshape(len(faces), -1)
    return patches[:, :512] + 0.01


def test_embeddings_have_unit_length_unless_raw():
    faces = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)
    found = identity.embedded(colours, faces)
    assert found.shape == (3, 512) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    raw = identity.embedded(colours, faces, normalise=False)
    np.testing.assert_allclose(raw, colours((faces.astype(np.float32) - 127.5) / 127.5))
    for wrong in (lambda f: f[:, 0, :, 0], lambda f: np.full((len(f), 512), np.nan)):
        with pytest.raises(InputError, match="embedder gave"):
            identity.embedded(wrong, faces)
    with pytest.raises(InputError, match="all zeros"):
        identity.embedded(lambda f: np.zeros((len(f), 512)), faces)


def test_likeness_finds_the_person():
    frame = astronaut()
    person = identity.embedded(colours, identity.align(frame, FIVE)[None])
    likeness = identity.Likeness(colours, person[None])
    same, other = likeness(frame, FIVE_AS_68), likeness(frame, face68(350, 300))
    assert -1 <= other < same <= 1
    assert identity.cosine(person, person)[0, 0] == pytest.approx(1)


def test_embeddings_on_disk(tmp_path):
    data = np.random.default_rng(0).standard_normal((5, 512)).astype(np.float32)
    np.save(tmp_path / "face.npy", data)
    np.testing.assert_array_equal(identity.read_embeddings(tmp_path / "face.npy"), data)
    np.save(tmp_path / "three.npy", data[None].astype(np.float64))
    np.testing.assert_array_equal(identity.read_embeddings(tmp_path / "three.npy"), data)
    np.savez(tmp_path / "one.npz", face=data)
    np.testing.assert_array_equal(identity.read_embeddings(tmp_path / "one.npz"), data)


def test_bad_embedding_files(tmp_path):
    (tmp_path / "text.npy").write_text("not numbers")
    (tmp_path / "text.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "shape.npy", np.zeros((2, 3, 512)))
    np.save(tmp_path / "nan.npy", np.full((2, 512), np.nan))
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    np.savez(tmp_path / "two.npz", a=np.zeros((1, 512)), b=np.zeros((1, 512)))
    names = "text.npy text.npz empty.npy shape.npy nan.npy objects.npy two.npz missing.npy face.pt"
    for name in names.split():
        with pytest.raises(InputError) as error:
            identity.read_embeddings(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)


# --- insightface packs


def graph(path, size, outputs=1, old=False):
    """A pretended network of a pack: means of rows, repeated to 512 numbers; old ones normalise."""
    side = ["N", 3, size, size]
    nodes, weights, at = [], [], "data"
    if old:
        for kind, value in (("Sub", 127.5), ("Mul", 1 / 127.5)):
            weights.append(numpy_helper.from_array(np.float32(value), f"_{kind}"))
            nodes.append(helper.make_node(kind, [at, f"_{kind}"], [f"after_{kind}"]))
            at = f"after_{kind}"
    nodes.append(helper.make_node("ReduceMean", [at], ["means"], axes=[1, 3], keepdims=0))
    project = np.random.default_rng(0).standard_normal((size, 512)).astype(np.float32)
    weights.append(numpy_helper.from_array(project, "project"))
    nodes.append(helper.make_node("MatMul", ["means", "project"], ["out0"]))
    for i in range(1, outputs):
        nodes.append(helper.make_node("Identity", ["out0"], [f"out{i}"]))
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    outs = [value(f"out{i}", ["N", 512]) for i in range(outputs)]
    made = helper.make_graph(nodes, "net", [value("data", side)], outs, weights)
    opset = helper.make_opsetid("", 13)
    onnx.save(helper.make_model(made, opset_imports=[opset], ir_version=8), path)
    return project


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", ["w600k_r50.onnx", "zz.onnx"])
def test_recogniser_of_a_pack(tmp_path, name, old):
    graph(tmp_path / "1k3d68.onnx", 192)
    graph(tmp_path / "det_10g.onnx", 112, outputs=9)
    graph(tmp_path / "genderage.onnx", 96)
    project = graph(tmp_path / name, 112, old=old)
    embed = identity.InsightFace(tmp_path)
    assert embed.file.name == name and embed.normalises == old
    faces = np.random.default_rng(1).uniform(-1, 1, (3, 112, 112, 3)).astype(np.float32)
    expected = faces.mean(axis=(2, 3)) @ project
    np.testing.assert_allclose(embed(faces), expected, atol=1e-4)
    found = identity.embedded(embed, np.uint8(np.rint(faces * 127.5 + 127.5)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_pack_without_recogniser(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        identity.InsightFace(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"w600k_r50\.onnx .*no \.onnx file at all"):
        identity.InsightFace(tmp_path)
    graph(tmp_path / "genderage.onnx", 96)
    with pytest.raises(InputError, match=r"it has genderage\.onnx"):
        identity.InsightFace(tmp_path)
    (tmp_path / "w600k_r50.onnx").write_bytes(b"not a graph")
    with pytest.raises(InputError, match=r"w600k_r50\.onnx cannot be loaded"):
        identity.InsightFace(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="need onnxruntime"):
        identity.InsightFace(tmp_path)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: identity.align(np.zeros((9, 9)), FIVE), "give RGB"),
        (lambda: identity.align(astronaut(), np.ones((5, 2))), "all the same"),
        (lambda: identity.align(astronaut(), np.zeros((106, 2))), "(106, 2)"),
        (lambda: identity.look(astronaut(), np.full((68, 2), np.nan)), "finite"),
        (lambda: identity.conditioning_frames(looks(3), 0), "n_cond is 0"),
        (lambda: reference.reference_frames(np.zeros((5, 67, 2))), "(5, 67, 2)"),
        (lambda: reference.reference_frames(np.zeros((5, 68, 2)), "any"), "'any'"),
        (lambda: reference.reference_frames(np.zeros((5, 68, 2)), per="video"), "'video'"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, message):
    with pytest.raises(InputError) as error:
        call()
    assert message in str(error.value) and "\n" not in str(error.value)


# --- reference frames


def talking(count=200, turns=True, seed=0):
    """A clip whose head turns to and fro once while the mouth opens and shuts many times."""
    rng = np.random.default_rng(seed)
    t = np.arange(count) / 25
    yaw = 0.7 * np.sin(2 * np.pi * t / 8) * turns
    opening = 0.25 * (1 - np.cos(2 * np.pi * 1.3 * t))
    clip = np.stack([face68(yaw=a, opening=b) for a, b in zip(yaw, opening, strict=True)])
    return clip + rng.normal(0, 0.1, clip.shape), yaw, opening


def test_same_is_the_frame_itself():
    clip, *_ = talking(10)
    clip[3] = np.nan
    expected = [0, 1, 2, -1, *range(4, 10)]
    assert reference.reference_frames(clip, "same").tolist() == expected


def test_other_is_near_in_pose_and_far_in_mouth():
    clip, yaw, opening = talking()
    chosen = reference.reference_frames(clip, "other")
    assert (chosen != np.arange(200)).all()
    chance = np.random.default_rng(0).permutation(200)
    assert np.abs(yaw[chosen] - yaw).mean() < 0.5 * np.abs(yaw[chance] - yaw).mean()
    unlike = np.abs(opening[chosen] - opening)
    assert unlike.mean() > 1.5 * np.abs(opening[chance] - opening).mean()
    # it does not jump in every frame
    assert (np.diff(chosen) != 0).mean() < 0.4
    np.testing.assert_array_equal(chosen, reference.reference_frames(clip, "other"))


def test_position_and_size_do_not_matter_to_the_reference():
    clip, *_ = talking(60)
    scales = np.linspace(1, 2, 60)[:, None, None]
    moved = clip * scales + np.linspace(0, 300, 60)[:, None, None]
    np.testing.assert_array_equal(
        reference.reference_frames(clip), reference.reference_frames(moved)
    )


def test_references_stay_in_their_shot():
    clip, *_ = talking(90)
    clip[20] = np.nan
    for per in ("frame", "shot"):
        chosen = reference.reference_frames(clip, "other", per, cuts=[30, 31])
        assert chosen[20] == -1 and chosen[30] == 30  # a shot of one frame has no other
        present = np.delete(chosen[:30], 20)
        assert ((present >= 0) & (present < 30)).all() and 20 not in chosen
        assert (chosen[31:] >= 31).all()
        if per == "shot":
            assert len(set(present)) == len(set(chosen[31:])) == 1


def test_a_long_shot_takes_seconds_at_most():
    clip = np.tile(talking(250)[0], (20, 1, 1))
    chosen = reference.reference_frames(clip)
    assert len(set(chosen)) <= reference.CANDIDATES
    clip[:] = np.nan
    assert set(reference.reference_frames(clip)) == {-1}
