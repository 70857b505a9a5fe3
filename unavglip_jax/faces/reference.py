"""Which frame the generator takes the person's looks from, for each frame that it makes.

Published inference shows it the frame that is being dubbed (`same`), mouth included, and the old mouth
leaks into the new one. Another frame in the same pose, with the mouth in another shape, has nothing to
leak. MuseTalk 1.5 is trained with references chosen so (arXiv 2410.10122); this is that idea, by rules and
not by chance.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from unavglip_jax.config import InputError
from unavglip_jax.faces.crop import runs

Mode = Literal["same", "other"]
Per = Literal["frame", "shot"]

# What of iBUG's 68 points shows the pose and does not follow the jaw: brows, nose and eyes.
RIGID = slice(17, 48)
LIPS = slice(48, 68)
CANDIDATES = (
    128  # frames of a shot, evenly spaced: distances of all to all would grow with its square
)
NEAR = 0.25  # of the candidates, the nearest in pose
CLOSE = 0.02  # of the face's width: pose distances that make no difference
KEEP = 0.8  # a reference is kept while its mouth is so far away, in distances of the best one's


def reference_frames(
    landmarks: Float[np.ndarray, "F 68 2"],
    mode: Mode = "other",
    per: Per = "frame",
    cuts: Iterable[int] = (),
) -> Int[np.ndarray, " F"]:
    """The number of the reference frame of each frame; -1 for frames without a face.

    Args:
      landmarks: iBUG's 68 points of each frame, in pixels, NaN where there is no face.
      mode: "same" is the frame itself; "other" one of the same shot, near in pose and far in the shape
        of the mouth.
      per: "frame" chooses anew for each frame, but keeps its choice while it is good, because a change of
        the reference can be seen; "shot" takes one frame for all of a shot, near its usual pose.
      cuts: numbers of the frames with which a new shot begins.
    """
    landmarks = np.asarray(landmarks, np.float64)
    if landmarks.ndim != 3 or landmarks.shape[1] != 68 or landmarks.shape[2] < 2:
        raise InputError(
            f"the landmarks have the shape {landmarks.shape}; give iBUG's 68 points, (F, 68, 2)"
        )
    if mode not in ("same", "other") or per not in ("frame", "shot"):
        raise InputError(
            f"the reference frame cannot be {mode!r} for each {per!r}; choose same or other, for each "
            "frame or shot"
        )
    landmarks = landmarks[..., :2]
    found = np.isfinite(landmarks).all(axis=(1, 2))
    out = np.where(found, np.arange(len(found)), -1)
    if mode == "same":
        return out
    for shot in runs(np.ones(len(found), bool), cuts):
        frames = np.flatnonzero(found[shot]) + shot.start
        if len(frames) > 1:
            choose = one_each if per == "frame" else one_for_all
            out[frames] = choose(frames, *shapes(landmarks[frames]))
    return out


def shapes(
    landmarks: Float[np.ndarray, "N 68 2"],
) -> tuple[Float[np.ndarray, "N 62"], Float[np.ndarray, "N 40"]]:
    """Pose and mouth of each frame as vectors; distances between them are means over their points.

    The pose is measured in the crop, which is what the generator sees: relative to the face's own
    box, so that a face that only moves or grows does not count as turned. The mouth is measured
    upright, from its own middle, in distances between the eyes.
    """
    low, high = landmarks.min(axis=1, keepdims=True), landmarks.max(axis=1, keepdims=True)
    # The lower end follows the jaw; the width does not.
    width = np.maximum(high - low, 1e-6)[..., :1]
    nose = landmarks[:, 27:31].mean(axis=1, keepdims=True)
    pose = (landmarks[:, RIGID] - nose) / width
    # where the nose lies between the left and the right side is what turns first
    side = ((nose - low) / width)[..., 0]
    pose = np.concatenate([pose.reshape(len(pose), -1), np.sqrt(pose.shape[1]) * side], axis=1)

    right, left = landmarks[:, 36:42].mean(axis=1), landmarks[:, 42:48].mean(axis=1)
    along = left - right
    apart = np.maximum(np.linalg.norm(along, axis=1), 1e-6)
    cosine, sine = along.T / apart
    turn = np.stack([np.stack([cosine, sine], -1), np.stack([-sine, cosine], -1)], axis=1)
    mouth = landmarks[:, LIPS] - landmarks[:, LIPS].mean(axis=1, keepdims=True)
    mouth = np.einsum("nij,npj->npi", turn, mouth) / apart[:, None, None]
    count = landmarks[:, LIPS].shape[1]
    return (
        pose / np.sqrt(landmarks[:, RIGID].shape[1]),
        mouth.reshape(len(mouth), -1) / np.sqrt(count),
    )


def one_each(frames, pose, mouth) -> Int[np.ndarray, " N"]:
    """A reference for each frame."""
    pool = spaced(len(frames))
    apart, unlike = distances(pose, pose[pool]), distances(mouth, mouth[pool])
    near = max(1, round(NEAR * len(pool)))
    out, kept = np.empty(len(frames), int), None
    for i in range(len(frames)):
        apart_i = np.where(pool == i, np.inf, apart[i])
        limit = max(np.partition(apart_i, near - 1)[near - 1], CLOSE)
        worth = np.where(apart_i <= limit, unlike[i], -1)
        best = int(np.argmax(worth))
        if kept is None or worth[kept] < KEEP * worth[best]:
            kept = best
        out[i] = frames[pool[kept]]
    return out


def one_for_all(frames, pose, mouth) -> Int[np.ndarray, " N"]:
    """One reference for all frames."""
    pool = spaced(len(frames))
    apart = distances(pose, pose[pool]).mean(axis=0)
    unlike = distances(mouth, mouth[pool]).mean(axis=0)
    near = max(1, round(NEAR * len(pool)))
    worth = np.where(apart <= max(np.partition(apart, near - 1)[near - 1], CLOSE), unlike, -1)
    return np.full(len(frames), frames[pool[np.argmax(worth)]])


def spaced(count: int) -> Int[np.ndarray, " K"]:
    """Up to `CANDIDATES` of so many frames."""
    return np.unique(np.linspace(0, count - 1, min(count, CANDIDATES)).round().astype(int))


def distances(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "K D"]) -> Float[np.ndarray, "N K"]:
    """Of all vectors to all."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))
