"""Crop boxes: the published rule written out again, the corrected defects, and steadiness."""

from fractions import Fraction

import cv2
import numpy as np
import pytest

from unavglip_jax.config import InputError
from unavglip_jax.faces import crop

V10, V15 = crop.RULES["musetalk_v10"], crop.RULES["musetalk_v15"]
SIZE = (480, 640)
FPS = Fraction(25)


def face(x=300.0, y=200.0, scale=1.0) -> np.ndarray:
    """Sixty-eight points with the bridge's middle at (x, y), the chin 90 below, 140 wide."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-40, 40, (68, 2))
    points[:17, 0] = np.linspace(-70, 70, 17)
    points[:17, 1] = 90 - (np.linspace(-1, 1, 17) ** 2) * 90
    points[27:31] = [(0, -14), (0, -8), (0, 0), (0, 7)]
    points[29], points[28], points[30] = (0, 0), (0, -8), (0, 7)
    return points * scale + [x, y]


def published_box(landmarks, shift=0):
    """The rule as the specification states it, on integers."""
    lm = np.array(landmarks).astype(np.int32)
    y29 = lm[29, 1] + shift
    lm[29, 1] = y29
    half = lm[:, 1].max() - y29
    return lm[:, 0].min(), int(y29 - half), lm[:, 0].max(), lm[:, 1].max()


@pytest.mark.parametrize("shift", [-9, 0, 7, 60])
def test_box_of_1_0(shift):
    landmarks = face(300.7, 200.4)
    assert crop.crop_box(landmarks, SIZE, V10, shift) == pytest.approx(
        np.clip(published_box(landmarks, shift), 0, [640, 480, 640, 480])
    )


def test_box_of_1_5_ignores_the_shift_and_adds_a_margin_below():
    x1, y1, x2, y2 = published_box(face())
    assert crop.crop_box(face(), SIZE, V15, 7) == (x1, y1, x2, y2 + 10)
    assert crop.crop_box(face(), SIZE, V15, margin=25) == (x1, y1, x2, y2 + 25)
    # the margin ends at this frame's own border; upstream took the last frame's
    assert crop.crop_box(face(), (y2 + 4, 640), V15).y2 == y2 + 4


@pytest.mark.parametrize("rule", [V10, V15])
@pytest.mark.parametrize(
    "x, y, side", [(300, 60, 1), (40, 200, 0), (620, 200, 2), (300, 420, 3)], ids=str
)
def test_all_four_sides_are_clamped(rule, x, y, side):
    """Defect 17: only the left side was, and a negative top made a wrong crop or an empty one."""
    box = crop.crop_box(face(x, y), SIZE, rule)
    assert box[side] == (0, 0, 640, 480)[side]
    assert 0 <= box.x1 < box.x2 <= 640 and 0 <= box.y1 < box.y2 <= 480
    assert crop.crop(np.zeros((*SIZE, 3), np.uint8), box).shape == (256, 256, 3)


@pytest.mark.parametrize("x, y", [(-200, 200), (900, 200), (300, -300), (300, 900)])
def test_a_box_outside_the_frame_is_none(x, y):
    assert crop.crop_box(face(x, y), SIZE, V10) is None


def test_a_face_without_height_is_none_whatever_the_margin():
    flat = face()
    flat[:, 1] = 200
    assert crop.crop_box(flat, SIZE, V15) is None
    # a bridge moved below the chin is the lowest landmark itself
    assert crop.crop_box(face(), SIZE, V10, 200) is None


def test_landmarks_are_not_edited():
    """Defect 18: the shift moved landmark 29 in the array that was kept and used later."""
    landmarks = face()
    before = landmarks.copy()
    crop.crop_box(landmarks, SIZE, V10, 9)
    crop.clip_boxes(landmarks[None], SIZE, V10, FPS, bbox_shift=9)
    np.testing.assert_array_equal(landmarks, before)


def test_frames_without_a_face_keep_their_place():
    """Defect 19: placeholders shifted everything behind them, and the missing frame ended the video."""
    clip = np.stack([face(300 + i) for i in range(40)])
    clip[[0, 10, 11, 20, 21, 22, 23, 24, 39]] = np.nan
    boxes = crop.clip_boxes(clip, SIZE, V10, FPS, smoothing=False)
    assert len(boxes) == 40
    for i, box in enumerate(boxes):
        assert box == (None if np.isnan(clip[i]).any() else crop.crop_box(clip[i], SIZE, V10))
    source = crop.held_frames([box is not None for box in boxes], longest=3)
    expected = np.arange(40)
    expected[[0, 20, 21, 22, 23, 24]] = -1  # nothing to hold, and too long
    expected[[10, 11]] = 9
    expected[39] = 38
    np.testing.assert_array_equal(source, expected)


def test_a_box_is_not_held_over_a_cut():
    found = np.array([1, 1, 0, 0, 0, 1], bool)
    np.testing.assert_array_equal(crop.held_frames(found, 5, cuts=[2]), [0, 1, -1, -1, -1, 5])
    np.testing.assert_array_equal(crop.held_frames(found, 5, cuts=[3]), [0, 1, 1, -1, -1, 5])
    np.testing.assert_array_equal(crop.held_frames(found, 0), [0, 1, -1, -1, -1, 5])
    np.testing.assert_array_equal(crop.held_frames(~found, 5)[:2], [-1, -1])


def test_range_of_the_shift():
    clip = np.stack([face(), np.full((68, 2), np.nan), face(scale=2)])
    lm = np.trunc(clip[[0, 2]])
    low = -int((lm[:, 30, 1] - lm[:, 29, 1]).mean())
    high = int((lm[:, 29, 1] - lm[:, 28, 1]).mean())
    assert crop.shift_range(clip) == (low, high) == (-10, 12)
    report = crop.shift_report(clip, 5)
    assert report == "3 frames, adjust range: [-10 ~ 12], current value: 5"
    # upstream divided by zero here
    assert crop.shift_range(clip[1:2]) is None
    assert "no face" in crop.shift_report(clip[1:2], 0)


def still(count=400, noise=0.5, seed=1):
    rng = np.random.default_rng(seed)
    return np.array([200.0, 100, 400, 330]) + rng.normal(0, noise, (count, 4))


def test_a_steady_head_has_a_steady_box():
    track = still()
    smooth = crop.smoothed(track, FPS)
    assert (smooth.var(axis=0) < track.var(axis=0) / 8).all()
    pixels = crop.settled(smooth)
    assert (np.abs(np.diff(pixels, axis=0)).sum(axis=0) <= 4).all()
    assert np.abs(np.diff(np.floor(track), axis=0)).sum(axis=0).min() > 100


def test_speech_does_not_move_the_box():
    """The chin goes up and down four times a second, and by the rule the top with it."""
    t = np.arange(100) / 25
    track = np.tile([200.0, 100, 400, 330], (100, 1))
    track[:, 3] += 8 * np.sin(2 * np.pi * 4 * t)
    track[:, 1] -= 8 * np.sin(2 * np.pi * 4 * t)
    assert np.ptp(crop.smoothed(track, FPS)[10:-10], axis=0).max() < 0.2


@pytest.mark.parametrize("fps", [Fraction(1), Fraction(24000, 1001), Fraction(60)])
def test_even_motion_is_followed_without_lag(fps):
    ramp = np.arange(90)[:, None] * np.array([2.5, -0.7, 3.0, -0.2]) + [100, 200, 250, 400]
    np.testing.assert_allclose(crop.smoothed(ramp, fps), ramp, atol=1e-9)
    for count in (1, 2, 3):
        np.testing.assert_allclose(crop.smoothed(ramp[:count], fps), ramp[:count], atol=1e-9)
    pixels = crop.settled(ramp)
    assert np.abs(pixels - (ramp - 0.5)).max() < 1.5
    assert abs((pixels - (ramp - 0.5)).mean()) < 0.3


def test_a_moving_head_keeps_its_size_in_pixels():
    ramp = np.array([100.3, 80, 300.3, 330]) + np.arange(90)[:, None] * [0.37, 0, 0.37, 0]
    pixels = crop.settled(ramp)
    assert set(pixels[:, 2] - pixels[:, 0]) == {200}


def test_a_shaking_head_is_followed():
    t = np.arange(100) / 25
    track = np.array([200.0, 100, 400, 330]) + np.sin(2 * np.pi * t)[:, None] * [30, 0, 30, 0]
    smooth = crop.smoothed(track, FPS)
    # 30 pixels to and fro within a second; a Gaussian of `STEADY` alone would be 16 off
    assert np.abs(smooth - track).max() < 5
    shift = np.argmax(np.correlate(track[:, 0] - 200, smooth[:, 0] - 200, "full")) - 99
    assert shift == 0


def test_a_single_bad_frame_does_not_move_the_box():
    track = np.tile([200.0, 100, 400, 330], (50, 1))
    track[25] += [60, -40, 80, 30]
    np.testing.assert_allclose(crop.smoothed(track, FPS), np.tile(track[:1], (50, 1)))


def test_nothing_is_smoothed_across_a_cut_or_a_gap():
    track = np.concatenate([still(60), still(60) + 90])
    cut = crop.smoothed(track, FPS, cuts=[60])
    apart = np.concatenate([crop.smoothed(track[:60], FPS), crop.smoothed(track[60:], FPS)])
    np.testing.assert_array_equal(cut, apart)
    assert np.abs(crop.smoothed(track, FPS)[55:65] - apart[55:65]).max() > 3
    np.testing.assert_array_equal(
        crop.settled(cut, cuts=[60]),
        np.concatenate([crop.settled(cut[:60]), crop.settled(cut[60:])]),
    )
    gap = np.insert(track, 60, np.nan, axis=0)
    np.testing.assert_array_equal(np.delete(crop.smoothed(gap, FPS), 60, axis=0), apart)
    assert np.isnan(crop.smoothed(gap, FPS)[60]).all()


def test_smoothed_boxes_lie_where_the_published_ones_do():
    rng = np.random.default_rng(2)
    clip = np.stack([face(300, 200) + rng.normal(0, 0.4, (68, 2)) for _ in range(100)])
    plain = np.array(crop.clip_boxes(clip, SIZE, V15, FPS, smoothing=False))
    smooth = np.array(crop.clip_boxes(clip, SIZE, V15, FPS))
    assert np.abs(plain.mean(axis=0) - smooth.mean(axis=0)).max() < 1
    assert np.ptp(smooth, axis=0).max() <= 1 < np.ptp(plain, axis=0).max()


def test_crop_is_opencvs_lanczos():
    frame = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    box = (100, 80, 221, 250)
    theirs = cv2.resize(frame[80:250, 100:221], (256, 256), interpolation=cv2.INTER_LANCZOS4)
    np.testing.assert_array_equal(crop.crop(frame, box), theirs)
    assert crop.crop(frame, box, 96).shape == (96, 96, 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: crop.crop_box(np.zeros((67, 2)), SIZE, V10), "shape (67, 2)"),
        (lambda: crop.crop_box(np.full((68, 2), np.nan), SIZE, V10), "not a number"),
        (lambda: crop.clip_boxes(face(), SIZE, V10, FPS), "(F, 68, 2)"),
        (lambda: crop.crop_box(face(), SIZE, V15, margin=-1), "-1 pixels"),
        (lambda: crop.held_frames([True], -2), "-2 frames"),
        (lambda: crop.crop(np.zeros((9, 9, 3), np.uint8), (0, 0, 10, 9)), "frame of 9x9"),
        (lambda: crop.crop(np.zeros((9, 9, 3), np.uint8), (4, 4, 4, 9)), "is empty"),
        (lambda: crop.crop(np.zeros((9, 9, 3)), (0, 0, 9, 9)), "float64"),
        (lambda: crop.crop(np.zeros((9, 9), np.uint8), (0, 0, 9, 9)), "shape (9, 9)"),
        (lambda: crop.crop(None, (0, 0, 9, 9)), "give RGB"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, message):
    with pytest.raises(InputError) as error:
        call()
    assert message in str(error.value) and "\n" not in str(error.value)
