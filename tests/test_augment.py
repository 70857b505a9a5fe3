"""Random changes of samples: landmarks and hidden pixels go where the picture goes."""

import cv2
import numpy as np
import pytest

from unavglip_jax.data.augment import MIRRORED, moved, vary

SIDE = 96


def dotted(landmarks) -> np.ndarray:
    """A picture that is white where a landmark is."""
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    for x, y in landmarks:
        cv2.circle(picture, (round(float(x)), round(float(y))), 3, (255, 255, 255), -1)
    return picture


def sample(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    landmarks = rng.integers(25, SIDE - 25, (2, 68, 2)).astype(np.float32)
    target = np.stack([dotted(points[:5]) for points in landmarks])
    return {
        "target": target,
        "reference": target.copy(),
        "hidden": target[..., 0] > 0,
        "landmarks": landmarks,
        "windows": np.ones((2, 30, 4), np.float16),
    }


@pytest.mark.parametrize("seed", range(8))
def test_landmarks_and_hidden_pixels_follow_the_picture(seed):
    before = sample(seed)
    after = vary(before, np.random.default_rng(seed))
    for picture, mask, points in zip(
        after["target"], after["hidden"], after["landmarks"], strict=True
    ):
        # The first five points were drawn; a mirror gives them their partners' numbers.
        own = points[:5], points[MIRRORED[:5]]
        hit = [all(mask[tuple(np.rint(p[::-1]).astype(int))] for p in five) for five in own]
        assert any(hit)
        five = own[hit.index(True)]
        bright = [picture[tuple(np.rint(p[::-1]).astype(int))].mean() for p in five]
        assert min(bright) > 3 * picture[:8, :8].mean() + 20
    assert np.array_equal(after["windows"], before["windows"])


def test_target_and_reference_are_changed_alike_and_the_sample_is_not_touched():
    before = sample(3)
    kept = {name: array.copy() for name, array in before.items()}
    for seed in range(40):
        after = vary(before, np.random.default_rng(seed))
        # but for the camera's noise they are one picture
        apart = after["target"].astype(int) - after["reference"]
        assert np.abs(apart).mean() < 8
        assert after["target"].dtype == np.uint8 and after["hidden"].dtype == bool
    assert all(np.array_equal(before[name], kept[name]) for name in before)


def test_what_is_drawn_depends_on_the_rng_alone():
    one, again, other = (vary(sample(0), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one["target"], again["target"])
    assert not np.array_equal(one["target"], other["target"])


def test_a_mirror_exchanges_right_and_left():
    assert np.array_equal(MIRRORED[MIRRORED], np.arange(68))
    assert MIRRORED[36] == 45 and MIRRORED[48] == 54 and MIRRORED[8] == 8 and MIRRORED[62] == 62
    still = np.array([[1.0, 0, 0], [0, 1, 0]])
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(moved(picture, still, True, cv2.INTER_LINEAR), picture[:, ::-1])
