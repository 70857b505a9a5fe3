"""Lip sync: the scores against their formulas, known shifts, what the networks are shown, and the truth."""

import json
from fractions import Fraction
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import skimage.data
import torch

from comparing import relative_error
from unavglip_jax import assets, params
from unavglip_jax.config import InputError
from unavglip_jax.convert import parity, syncnet_v2, wav2lip
from unavglip_jax.data import heads
from unavglip_jax.data.motion import Pose
from unavglip_jax.evaluation import sync
from unavglip_jax.faces.mesh import box_of
from unavglip_jax.faces.tracking import Tracker
from unavglip_jax.media import audio
from unavglip_jax.models.stable_syncnet import PRESETS, StableSyncNet, StableSyncNetConfig
from unavglip_jax.training.losses import stable_input

VECTORS = Path(__file__).parent / "vectors"
DETECTOR, MESH = "face_detection_short_range.tflite", "face_landmark.tflite"
OFFSETS = [-15, -10, -6, -3, -1, 0, 1, 3, 6, 10, 15]


@pytest.fixture(scope="module")
def face_networks():
    """The two networks; an error, not a skip, where they cannot be had."""
    return assets.fetch(DETECTOR), assets.fetch(MESH)


# ---- scores ------------------------------------------------------------------------------------------


def test_distances_by_hand():
    """Three frames of one number; the sound is 1 2 4, and beyond its ends 0."""
    picture, sound = np.array([[1.0], [5.0], [9.0]]), np.array([[1.0], [2.0], [4.0]])
    found = sync.distances(picture, sound, shifts=1)
    np.testing.assert_allclose(found, [[1, 0, 1], [4, 3, 1], [7, 5, 9]], atol=2e-6)
    # means 4, 8/3, 11/3: least in the middle, the median is the last
    scores = sync.distances_to_scores(found)
    assert scores.offset == 0
    assert scores.lse_d == pytest.approx(8 / 3, abs=1e-5)
    assert scores.lse_c == pytest.approx(1, abs=1e-5)


def test_distances_are_torchs():
    """The pairwise distance of torch has its own 1e-6, and torch.median its own middle."""
    rng = np.random.default_rng(0)
    picture, sound = rng.standard_normal((2, 40, 64), np.float32)
    scores = sync.distances_to_scores(sync.distances(picture, sound))
    padded = torch.nn.functional.pad(torch.from_numpy(sound), (0, 0, 15, 15))
    rows = [
        torch.nn.functional.pairwise_distance(
            torch.from_numpy(picture[i : i + 1]).repeat(31, 1), padded[i : i + 31]
        )
        for i in range(len(picture))
    ]
    rows = torch.stack(rows)
    means = rows.mean(0)
    assert scores.lse_d == pytest.approx(means.min().item(), rel=1e-6)
    assert scores.lse_c == pytest.approx((means.median() - means.min()).item(), abs=1e-5)
    assert scores.offset == 15 - means.argmin().item()
    series = (means.median() - rows[:, means.argmin()]).numpy()
    np.testing.assert_allclose(scores.series, scipy.signal.medfilt(series, 9), atol=1e-5)


def shifted(count, offset, width=24):
    """Unit vectors without negative entries of a clip whose sound comes `offset` frames too early."""
    rng = np.random.default_rng(1)
    vectors = rng.random((count + 40, width), np.float32) ** 4
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[20 : 20 + count], vectors[20 + offset : 20 + offset + count]


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_known_shift_of_embeddings_is_found(offset):
    """With an offset of k, the sound of frame i - k goes with frame i, in both kinds of scores."""
    picture, sound = shifted(60, offset)
    scores = sync.distances_to_scores(sync.distances(picture, sound))
    assert scores.offset == offset
    # frames without that sound are compared with zero: a distance of 1
    assert scores.lse_d == pytest.approx(abs(offset) / 60, abs=1e-3)
    assert scores.lse_c > 0.05
    agreement = sync.cosines_to_scores(picture, sound)
    assert agreement.offset == offset
    assert agreement.best == pytest.approx(1, abs=1e-5)
    expected = (picture * sound).sum(axis=1)
    np.testing.assert_allclose(agreement.series, expected, atol=1e-6)
    assert agreement.cosine == pytest.approx(float(expected.mean()), abs=1e-6)


def test_unrelated_sound_has_no_confidence():
    (picture, same), (_, other) = shifted(60, 0), shifted(60, 0)
    other = np.roll(other[::-1], 7, axis=0)
    right, wrong = (
        sync.distances_to_scores(sync.distances(picture, sound)) for sound in (same, other)
    )
    assert wrong.lse_c < right.lse_c / 5 and wrong.lse_d > right.lse_d + 0.3
    right, wrong = (sync.cosines_to_scores(picture, sound) for sound in (same, other))
    assert wrong.confidence < right.confidence / 5 and wrong.best < right.best - 0.3


def test_shifts_that_leave_few_pairs_do_not_win():
    picture = np.eye(4, dtype=np.float32)
    sound = picture[[3, 1, 2, 3]] * np.array([[1], [1], [1], [0]], np.float32)
    # two of four pairs agree in step, and the only one that is left 3 frames apart
    assert sync.cosines_to_scores(picture, sound).offset == 0


# ---- from crops and samples to scores ----------------------------------------------------------------


def blinking_clip(count, offset, seed=0):
    """Crops whose brightness is the loudness of a recording that comes `offset` frames too early."""
    rng = np.random.default_rng(seed)
    levels = rng.permutation(np.linspace(0, 1, count + 40))
    tone = np.sin(2 * np.pi * 1000 * np.arange(640) / 16000)
    loud = levels[20 + offset : 20 + offset + count]
    samples = (0.001 * 1000**loud)[:, None] * tone
    grey = np.rint(255 * levels[20 : 20 + count]).astype(np.uint8)
    crops = np.broadcast_to(grey[:, None, None, None], (count, 8, 8, 3))
    return crops, 0.9 * samples.ravel().astype(np.float32)


def level_meter():
    """An expert that needs no training: brightness, and the logarithm of the energy, frame by frame."""

    def picture(crops):
        assert crops.dtype == np.uint8 and crops.shape == (sync.BATCH + 4, 8, 8, 3)
        level = crops.mean(axis=(1, 2, 3)) / 255
        return np.lib.stride_tricks.sliding_window_view(level, 5).astype(np.float32)

    def sound(rows):
        assert rows.shape == (sync.BATCH, 20, 13)
        energy = rows[:, :, 0].reshape(-1, 5, 4).mean(axis=2)
        quiet = np.log(100 * (0.386 * 0.9e-3 * 32768) ** 2)  # of 400 samples; 0.386: pre-emphasis
        return ((energy - quiet) / (2 * np.log(1000))).astype(np.float32)

    view = sync.View("syncnet_v2", 5, 8, audio.syncnet_mfcc, 100, 20)
    return sync.Expert(view, picture, sound)


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_shifted_clip_is_found_to_the_frame(offset):
    crops, samples = blinking_clip(80, offset)
    assert sync.lse(level_meter(), iter(crops), samples).offset == offset
    late = np.concatenate([np.zeros(640 * 4, np.float32), samples])  # the sound, 4 frames later
    if offset - 4 >= -15:
        assert sync.lse(level_meter(), iter(crops), late).offset == offset - 4


def test_the_right_recording_scores_better_than_another():
    crops, samples = blinking_clip(80, 0)
    _, other = blinking_clip(80, 0, seed=1)
    right, wrong = (sync.lse(level_meter(), crops, x) for x in (samples, other))
    assert right.lse_c > 3 * wrong.lse_c and right.lse_d < 0.5 * wrong.lse_d


@pytest.mark.parametrize(
    ("frames", "heard", "expected"),
    [
        (80, 80, 75),
        (70, 80, 65),
        (80, 70.99, 65),
        (6, 80, 1),
        (36, 36, 31),
        (37, 80, 32),
        (69, 80, 64),
    ],
)
def test_windows_and_their_number_are_the_published_ones(frames, heard, expected):
    """Around the borders of batches, too; every window is that of its own frame."""
    crops, samples = blinking_clip(80, 0)
    samples = samples[: int(heard * 640)]
    picture, sound = sync.embeddings(level_meter(), iter(crops[:frames]), samples)
    assert len(picture) == len(sound) == expected == min(frames, len(samples) // 640) - 5
    level = crops[:, 0, 0, 0] / 255
    windows = np.lib.stride_tricks.sliding_window_view(level, 5)[:expected]
    np.testing.assert_allclose(picture, windows, atol=1e-6)
    energy = audio.syncnet_mfcc(samples)[:, 0]
    for i in range(expected):
        mine = energy[4 * i : 4 * i + 20].reshape(5, 4).mean(axis=1)
        np.testing.assert_allclose(np.diff(sound[i]) * 2 * np.log(1000), np.diff(mine), atol=1e-4)


def test_too_short_clips_and_wrong_crops_are_refused():
    crops, samples = blinking_clip(80, 0)
    for crops_, samples_ in ((crops[:5], samples), (crops, samples[:3500]), (crops[:0], samples)):
        with pytest.raises(InputError, match="more than 5 of both"):
            sync.lse(level_meter(), iter(crops_), samples_)
    with pytest.raises(InputError, match="needs uint8 RGB of 8x8"):
        sync.lse(level_meter(), iter(crops[:, :6]), samples)
    with pytest.raises(InputError, match="float32"):
        sync.lse(level_meter(), iter(crops.astype(np.float32)), samples)


def test_crops_are_taken_as_they_are_needed():
    crops, samples = blinking_clip(80, 0)
    taken = iter(crops)
    sync.embeddings(level_meter(), taken, samples[: 40 * 640])
    assert len(list(taken)) == 40


# ---- the networks ------------------------------------------------------------------------------------


def recorded(name, converter):
    """A network with the weights of parity vectors, their inputs, channels last, and outputs."""
    manifest = json.loads((VECTORS / name / "manifest.json").read_text())
    config, weights = converter.convert(parity.state_dict(manifest))
    return config, weights, parity.draw(manifest), dict(np.load(VECTORS / name / "io.npz"))


def test_syncnet_v2_of_a_pack_is_the_original(tmp_path):
    """Two clips of five frames, RGB, against what the original made of them in BGR."""
    config, weights, inputs, outputs = recorded("syncnet_v2", syncnet_v2)
    network = config, weights, "rule", "none"
    fields = {"system": "unavglip", "audio_front_end": "v10", "crop": "musetalk_v10"}
    assets.write_pack(tmp_path / "pack", fields | {"mask": "lower_half"}, {"syncnet_v2": network})
    expert = sync.expert(tmp_path / "pack", "syncnet_v2", jax.devices()[:2])
    assert expert.view[1:3] == (5, 224) and expert.view.rows == 20

    rows = inputs["mfcc"][..., 0].swapaxes(1, 2)  # as `syncnet_mfcc` has them
    assert relative_error(expert.sound(rows), outputs["audio_embedding"]) < 1e-4
    assert expert.sound(np.concatenate([rows, rows[:1]])).shape == (3, 1024)

    clips = inputs["lip"][..., ::-1].reshape(-1, 224, 224, 3)
    graphdef, _ = params.abstract(*_network("syncnet_v2", config))
    found = sync.see("syncnet_v2", 5, graphdef, weights, clips, np.array([0, 5]))
    assert relative_error(found, outputs["lip_embedding"]) < 1e-4

    pictures = np.rint(clips[:7]).astype(np.uint8)  # three windows, over two devices
    found = expert.picture(pictures)
    assert found.shape == (3, 1024)
    again = sync.see(
        "syncnet_v2", 5, graphdef, weights, pictures.astype(np.float32), np.array([0, 2])
    )
    assert relative_error(found[[0, 2]], again) < 1e-5


def _network(kind, config):
    return assets.network_of(kind)[0], config


def test_wav2lips_expert_is_shown_what_it_was_trained_on():
    """Recorded windows, put into the lower halves of 96x96 RGB crops."""
    config, weights, inputs, outputs = recorded("wav2lip_syncnet_color", wav2lip)
    faces, mel = inputs["face"], inputs["mel"]
    graphdef, _ = params.abstract(*_network("wav2lip_syncnet", config))
    crops = np.zeros((len(faces), 5, 96, 96, 3), np.float32)
    crops[:, :, 48:] = faces.reshape(-1, 48, 96, 5, 3).transpose(0, 3, 1, 2, 4)[..., ::-1] * 255
    starts = 5 * np.arange(len(faces))
    crops = crops.reshape(-1, 96, 96, 3)
    seen = sync.see("wav2lip_syncnet", 5, graphdef, weights, crops, starts)
    assert relative_error(seen, outputs["face_embedding"]) < 1e-4
    heard = sync.hear(graphdef, weights, mel[..., 0].swapaxes(1, 2))
    assert relative_error(heard, outputs["audio_embedding"]) < 1e-4


def test_stable_syncnet_sees_lower_halves_and_hears_its_rows():
    factors = {"visual": [[8, 16], [16, 16]], "audio": [[5, 4], [16, 13]]}
    encoder = lambda channels, size, factors: {
        "in_channels": channels,
        "size": size,
        "block_out_channels": [8] * len(factors),
        "downsample_factors": factors,
    }
    config = StableSyncNetConfig(
        visual_encoder=encoder(6, (128, 256), factors["visual"]),
        audio_encoder=encoder(1, (80, 52), factors["audio"]),
        norm_num_groups=4,
    )
    view = sync.view("stable_syncnet", config)
    assert view[:3] == ("stable_syncnet", 2, 256) and (view.rate, view.rows) == (80, 52)
    graphdef, _ = params.abstract(StableSyncNet, config)
    weights = params.init(StableSyncNet, config, jax.random.key(0, impl="rbg"))
    crops = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), np.uint8)
    found = sync.see("stable_syncnet", 2, graphdef, weights, crops, np.array([0, 1]))
    pairs = jnp.stack([crops[:2], crops[1:]]) / 127.5 - 1
    expected = params.bind(graphdef, weights).visual(stable_input(pairs, (128, 256)))
    assert relative_error(found, expected) < 1e-4
    assert relative_error(found[::-1], expected) > 1e-3


def test_views():
    for name, frames, rows in (
        ("16_pixel", 16, 52),
        ("16_pixel_attn", 16, 52),
        ("25_pixel", 25, 80),
    ):
        view = sync.view("stable_syncnet", PRESETS[name])
        assert (view.frames, view.rows, view.side, view.rate) == (frames, rows, 256, 80)
    with pytest.raises(InputError, match="sees latents"):
        sync.view("stable_syncnet", PRESETS["16_latent"])
    # with one window less than there could be, the sound of the last is there
    for kind, config in (("wav2lip_syncnet", None), ("stable_syncnet", PRESETS["25_pixel"])):
        view = sync.view(kind, config)
        samples = np.zeros(640 * 60, np.float32)
        last = 60 - view.frames - 1
        assert view.rate * last // 25 + view.rows <= len(view.features(samples))


# ---- what the networks are shown ---------------------------------------------------------------------


@pytest.mark.parametrize("fps", [Fraction(25), 30, 50, Fraction(24000, 1001), Fraction(25, 2), 60])
def test_frames_at_25_a_second_are_the_nearest_in_time(fps):
    fps = Fraction(fps)
    order = sync.order_at_25(100, fps)
    seconds = 100 / fps
    assert len(order) == -(-seconds * 25 // 1)
    times = np.array([float(i / fps) for i in range(100)])
    for slot, frame in enumerate(order):
        away = np.abs(times - slot / 25)
        assert away[frame] <= away.min() + 1e-9
    frames = list(sync.in_order(iter(range(100)), order))
    assert frames == order.tolist()


def test_frames_in_order_are_not_read_beyond_the_last():
    items = iter("abcdef")
    assert list(sync.in_order(items, [1, 1, 3])) == list("bbd")
    assert next(items) == "e"
    assert list(sync.in_order("ab", [0, 1, 2])) == list("ab")
    assert list(sync.in_order("ab", [])) == []


def boxes_of(count, size=120.0):
    """Boxes that move half a pixel a frame."""
    corner = np.arange(count)[:, None] / 2 + np.array([100.0, 50.0])
    return np.concatenate([corner, corner + size], axis=1)


def test_gaps_are_bridged_and_filled_evenly():
    boxes = boxes_of(100)
    whole = boxes.copy()
    boxes[30:54] = np.nan  # 25 frames from the last to the next
    [track] = sync.face_tracks(boxes)
    assert track.first == 0
    np.testing.assert_allclose(track.boxes, whole)
    boxes[30:55] = np.nan
    assert [len(t.boxes) for t in sync.face_tracks(boxes, least_track=20)] == [30, 45]


def test_a_frame_elsewhere_is_no_end_but_another_place_is():
    boxes = boxes_of(120)
    boxes[20] += 500  # somebody else, for one frame
    [track] = sync.face_tracks(boxes)
    np.testing.assert_allclose(track.boxes, boxes_of(120))
    boxes[60:] += 500
    assert [t.first for t in sync.face_tracks(boxes)] == [0, 60]


def test_tracks_end_at_cuts_and_short_or_small_ones_do_not_count():
    boxes = boxes_of(120)
    shots = np.repeat([0, 1], [51, 69])
    assert [(t.first, len(t.boxes)) for t in sync.face_tracks(boxes, shots)] == [(0, 51), (51, 69)]
    shots = np.repeat([0, 1], [50, 70])  # longer than 50 is needed
    assert [t.first for t in sync.face_tracks(boxes, shots)] == [50]
    assert sync.face_tracks(boxes_of(60, size=100.0)) == []  # larger than 100 is needed
    assert len(sync.face_tracks(boxes_of(60, size=100.5))) == 1
    assert sync.face_tracks(np.full((60, 4), np.nan)) == []


def test_track_crops_are_those_of_the_published_recipe():
    """The recipe to the letter: everything padded by 110, boxes through scipy's median filter."""
    rng = np.random.default_rng(0)
    frame = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (320, 240))
    boxes = boxes_of(30) + rng.normal(0, 2, (30, 4))
    boxes[:, 0::2] += 70  # out of the frame at the right
    left, top, right, bottom = boxes.T
    size, x, y = (
        scipy.signal.medfilt(v, 13)
        for v in (
            np.maximum(bottom - top, right - left) / 2,
            (left + right) / 2,
            (top + bottom) / 2,
        )
    )
    crops = list(sync.track_crops([frame] * 30, sync.Track(7, boxes)))
    assert len(crops) == 30
    for i in (0, 3, 15, 29):
        s, pad = size[i], int(size[i] * 1.8)
        padded = np.pad(frame, ((pad, pad), (pad, pad), (0, 0)), constant_values=110)
        middle_x, middle_y = x[i] + pad, y[i] + pad
        face = padded[
            int(middle_y - s) : int(middle_y + s * 1.8),
            int(middle_x - s * 1.4) : int(middle_x + s * 1.4),
        ]
        np.testing.assert_array_equal(crops[i], cv2.resize(face, (224, 224)))


def test_crops_of_a_tracked_face_have_the_mouth_in_the_middle(face_networks):
    photo = skimage.data.astronaut()
    tracker = Tracker(*face_networks)
    meshes = [tracker(photo).mesh.points for _ in range(7)]
    [track] = sync.face_tracks(
        np.stack([box_of(points) for points in meshes]), least_track=6, least_face=90
    )
    *_, crop = sync.track_crops([photo] * 4, track)  # in its middle, boxes are not drawn to 0
    seen = Tracker(*face_networks)(crop).mesh.points
    mouth = seen[[61, 291], :2].mean(axis=0)
    assert np.abs(mouth - 112).max() < 15
    left, _, right, _ = box_of(seen)
    # the box's height is 1 of 2.8 halves
    assert right - left == pytest.approx(224 * 94 / 107 / 1.4, rel=0.06)


def test_track_samples():
    samples = np.arange(100 * 640, dtype=np.float32)
    cut = sync.track_samples(sync.Track(7, boxes_of(30)), samples)
    assert cut[0] == 7 * 640 and len(cut) == 30 * 640
    assert len(sync.track_samples(sync.Track(90, boxes_of(30)), samples)) == 10 * 640


# ---- against the truth -------------------------------------------------------------------------------


def face(gap=0.0, shift=(0.0, 0.0)):
    """68 points with eyes 50 pixels apart and inner lips `gap` pixels apart."""
    points = np.full((68, 2), 100.0)
    points[:17] = np.stack(
        [np.linspace(40, 160, 17), 100 + 60 * np.sin(np.linspace(0, np.pi, 17))], 1
    )
    points[29] = 100, 95
    points[36:42], points[42:48] = (75, 80), (125, 80)
    points[48:68] = 100, 130
    points[48, 0], points[54, 0] = 80, 120
    points[66, 1] += gap
    return points + shift


def test_lip_gap():
    faces = np.stack([face(0), face(10), face(25, (30, 4)), face(10) * 3, np.full((68, 2), np.nan)])
    np.testing.assert_allclose(sync.lip_gap(faces), [0, 0.2, 0.5, 0.2, np.nan])
    assert sync.lip_gap(faces[1]) == pytest.approx(0.2)
    mesh = np.zeros((468, 3))
    mesh[[33, 133, 159, 145], 0], mesh[[362, 263, 386, 374], 0] = -20, 20
    mesh[14, 1], mesh[14, 2] = 10, 99  # depth does not count
    assert sync.lip_gap(mesh) == pytest.approx(0.25)
    with pytest.raises(InputError, match=r"\(5, 2\)"):
        sync.lip_gap(np.zeros((5, 2)))


@pytest.mark.parametrize("lag", [-6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6])
def test_gap_correlation_finds_the_lag(lag):
    rng = np.random.default_rng(0)
    true = rng.random(120)
    found = 0.3 * np.roll(true, lag) + 0.1
    found[[20, 50]] = np.nan
    at_zero, best, correlation = sync.gap_correlation(found, true)
    assert best == lag and correlation > 0.99
    known = np.isfinite(found)
    assert at_zero == pytest.approx(np.corrcoef(found[known], true[known])[0, 1], abs=1e-12)


def test_a_drawn_mouth_is_followed_to_the_frame(face_networks):
    """What the mesh finds in pictures, against what was drawn, also where the pictures come too late."""
    rng = np.random.default_rng(3)
    opening = np.interp(np.arange(48), np.arange(0, 49, 3), rng.random(17))
    head, tracker = heads.random_head(np.random.default_rng([0, 3])), Tracker(*face_networks)
    gaps = []
    for value in opening:
        picture, _ = heads.draw(head, np.array([value, 0, 0, 0, 0]), Pose(), 160)
        mesh = tracker(picture).mesh
        gaps.append(np.nan if mesh is None else sync.lip_gap(mesh.points))
    found = sync.gap_correlation(gaps, opening)
    assert found.lag == 0 and found.in_step == found.best > 0.95
    for late in (1, 2, 3, 4, 5):
        assert sync.gap_correlation(gaps[late:], opening[:-late]).lag == -late
        assert sync.gap_correlation(gaps[:-late], opening[late:]).lag == late


def test_gap_correlation_of_what_does_not_move():
    still = np.full(30, 0.1)
    found = sync.gap_correlation(still, np.random.default_rng(0).random(30))
    assert np.isnan(found.in_step) and np.isnan(found.best) and found.lag == 0
    assert np.isnan(sync.gap_correlation([], []).best)
    assert sync.gap_correlation([0.1, 0.3, 0.2], [0.2, 0.6, 0.4]).lag == 0
    with pytest.raises(InputError, match="align the clips"):
        sync.gap_correlation(still, still[:-1])


def test_landmark_distance():
    true = np.stack([face(10), face(10), face(10), np.full((68, 2), np.nan)])
    moved, opened = face(10, (3, 4)), face(30)
    found = sync.landmark_distance(np.stack([face(10), moved, opened, face(10)]), true)
    # all points 5 pixels off, of 50 between the eyes; a mouth that is only elsewhere is not wrong
    np.testing.assert_allclose(found.face, [0, 10, 100 * 20 / 50 / 68, np.nan], atol=1e-9)
    # one lip point 20 pixels down moves the mouth's middle by 1
    mouth = (19 * 1 + 19) / 20
    np.testing.assert_allclose(found.mouth, [0, 0, 100 * mouth / 50, np.nan], atol=1e-9)
    # crop: 40..160 across; from 160 up to 2 * 95 - 160 = 30, down: 130 pixels
    shift = np.hypot(3 * 256 / 120, 4 * 256 / 130)
    np.testing.assert_allclose(found.face_pixels[:2], [0, shift], atol=1e-9)
    np.testing.assert_allclose(found.mouth_pixels[2], mouth * 256 / 130, atol=1e-9)
    with pytest.raises(InputError, match="align"):
        sync.landmark_distance(true[:2], true)
