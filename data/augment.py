"""Random changes of a training sample that leave it a sample: what is drawn holds for all of its pictures.

Target and reference are changed alike, as another camera, pose or light would change a whole clip, and
landmarks and hidden pixels go along. Nothing here knows what is random: `rng` is the sample's own.
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from unavglip_jax.data.clips import decode_frame, encode_frame

# iBUG's 68 points in a mirror
MIRRORED = np.array([
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65,
])  # fmt: skip

TURN, GROW, STRETCH, SHIFT = 0.09, 0.06, 0.04, 0.03  # radians, and shares of the picture's side
GAIN, TINT, GAMMA = 0.12, 0.05, 0.2  # deviations of logarithms
SOFT, NOISY, PRESSED = 0.15, 0.25, 0.15  # shares of the samples


def vary(sample: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The sample seen by another camera.

    Args:
      sample: see `pipeline.sample`. Of it `target` and `reference` (T, H, W, 3), `hidden` (T, H, W) and
        `landmarks` (T, 68, 2) are changed, if they are there.
      rng: decides how.
    """
    out = dict(sample)
    shown = [name for name in ("target", "reference") if name in sample]
    if not shown:
        return out
    side = sample[shown[0]].shape[1]
    matrix, mirror = placement(side, rng), rng.random() < 0.5
    table = colours(rng)
    soft = rng.uniform(0.3, 0.9) if rng.random() < SOFT else 0.0
    noise = rng.uniform(1, 6) if rng.random() < NOISY else 0.0
    quality = int(rng.integers(40, 90)) if rng.random() < PRESSED else 0

    def seen(picture):
        picture = cv2.LUT(moved(picture, matrix, mirror, cv2.INTER_LINEAR), table)
        if soft:
            picture = cv2.GaussianBlur(picture, (0, 0), soft)
        if noise:
            grain = rng.standard_normal((*picture.shape[:2], 1), np.float32) * noise
            picture = np.clip(picture + grain, 0, 255).astype(np.uint8)
        if quality:
            picture = decode_frame(encode_frame(picture, quality))
        return picture

    for name in shown:
        out[name] = np.stack([seen(picture) for picture in sample[name]])
    if "hidden" in sample:
        out["hidden"] = np.stack([
            moved(mask.astype(np.uint8), matrix, mirror, cv2.INTER_NEAREST) > 0
            for mask in sample["hidden"]
        ])  # fmt: skip
    if "landmarks" in sample:
        points = sample["landmarks"] @ matrix[:, :2].T + matrix[:, 2]
        if mirror:
            points = points[:, MIRRORED]
            points[..., 0] = side - 1 - points[..., 0]
        out["landmarks"] = points.astype(np.float32)
    return out


def placement(side: int, rng: np.random.Generator) -> Float[np.ndarray, "2 3"]:
    """The head a little nearer, turned, stretched and elsewhere: pixels before to pixels after."""
    turn = rng.uniform(-TURN, TURN)
    grow = np.exp(rng.uniform(-GROW, GROW) + rng.uniform(-STRETCH, STRETCH) * np.array([1, -1]))
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * grow
    middle = np.full(2, (side - 1) / 2)
    shift = rng.uniform(-SHIFT, SHIFT, 2) * side
    return np.column_stack([linear, middle - linear @ middle + shift])


def moved(
    picture: UInt8[np.ndarray, "H W ..."],
    matrix: Float[np.ndarray, "2 3"],
    mirror: bool,
    interpolation: int,
) -> UInt8[np.ndarray, "H W ..."]:
    """The picture after `placement`, then in a mirror; what comes in from outside mirrors its edge."""
    size = picture.shape[1::-1]
    out = cv2.warpAffine(
        picture, matrix, size, flags=interpolation, borderMode=cv2.BORDER_REFLECT_101
    )
    return cv2.flip(out, 1) if mirror else out


def colours(rng: np.random.Generator) -> UInt8[np.ndarray, "256 1 3"]:
    """What each value of each colour becomes: exposure, colour of the light, contrast."""
    gain = np.exp(GAIN * rng.standard_normal() + TINT * rng.standard_normal(3))
    value = (np.arange(256)[:, None] / 255) ** np.exp(GAMMA * rng.standard_normal())
    return np.clip(np.rint(255 * gain * value), 0, 255).astype(np.uint8)[:, None]
