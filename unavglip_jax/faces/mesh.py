"""The shape of a face: 468 points on its surface, and the 68 points that most of the literature uses.

The network is MediaPipe's Face Mesh: Kartynnik et al., Real-time Facial Surface Geometry from Monocular
Video on Mobile GPUs, arXiv 1907.06724.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from unavglip_jax.faces.networks import Network, Region, sigmoid

RESOLUTION = 192  # pixels a side of what the network sees
POINTS = 468
MARGIN = 1.5  # the region is so many times as large as the face's box

# "Right" and "left" are the person's own; the right eye is at the picture's left.
RIGHT_EYE_CORNER, LEFT_EYE_CORNER = 33, 263  # the outer corners

IBUG68 = np.array([0])


class Mesh(NamedTuple):
    """A face's landmarks.

    Attributes:
      points: x, y in pixels, and depth in the same unit, smaller towards the camera, zero about the
        middle of the head.
      presence: how sure the network is that a face is there, in [0, 1].
    """

    points: Float[np.ndarray, "468 3"]
    presence: float


class FaceMesh:
    """Face Mesh on the CPU. One thread at a time may call it."""

    def __init__(self, network: str | Path):
        self.network = Network(network)

    def __call__(self, image: UInt8[np.ndarray, "H W 3"], region: Region) -> Mesh:
        """The landmarks of the face in a region (see `region_around`) of an RGB picture, in float32."""
        crop = region.crop(image, RESOLUTION).astype(np.float32)
        points, presence = self.network(crop[None] / 255)
        points = points.reshape(POINTS, 3).astype(np.float64)
        flat = region.to_picture(points[:, :2], RESOLUTION)
        depth = points[:, 2:] * (region.size / RESOLUTION)
        points = np.concatenate([flat, depth], axis=1).astype(np.float32)
        return Mesh(points, float(sigmoid(presence.item())))


def region_around(
    points: Float[np.ndarray, "N 2"],
    right_eye: Float[np.ndarray, " 2"],
    left_eye: Float[np.ndarray, " 2"],
) -> Region:
    """The region to give the network for a face: upright along its eyes, with the margin it expects."""
    along = np.subtract(left_eye, right_eye, dtype=np.float64)
    angle = float(np.arctan2(along[1], along[0]))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    upright = np.asarray(points, np.float64) @ turn.T
    low, high = upright.min(axis=0), upright.max(axis=0)
    x, y = (low + high) / 2 @ turn
    return Region(float(x), float(y), float(MARGIN * (high - low).max()), angle)


def region_of(points: Float[np.ndarray, "468 C"]) -> Region:
    """The region of the face whose landmarks are known: where to look for it in the next frame."""
    points = points[:, :2]
    return region_around(points, points[RIGHT_EYE_CORNER], points[LEFT_EYE_CORNER])


def box_of(points: Float[np.ndarray, "N C"]) -> Float[np.ndarray, " 4"]:
    """Left, top, right and bottom of some points, in pixels."""
    return np.concatenate([points[:, :2].min(axis=0), points[:, :2].max(axis=0)])


def ibug68(points: Float[np.ndarray, "468 C"]) -> Float[np.ndarray, "68 C"]:
    """The 68 points of the iBUG 300-W scheme: jaw 0-16, brows, nose, eyes, mouth 48-67."""
    return points[IBUG68]
