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

# The mesh points that lie where the iBUG 300-W scheme puts its points, or two that it lies between.
# Checked against dlib's 68 points on 190 views of 7 faces: 2 % of the distance between the eyes off on
# average, 6 % at brows and jaw, whose points are defined less sharply.
NEAREST = (
    # jaw, from the right ear over the chin (152) to the left ear
    (127, (234, 93), (93, 132), (132, 58), 172, (136, 150), 149, (176, 148))
    + (152, (400, 377), 378, (365, 379), 397, (361, 288), (323, 361), (454, 323), 356)
    # right brow and left brow, each from the right
    + (70, 63, 105, 66, 107, 336, 296, 334, 293, 300)
    # bridge of the nose downwards to its tip, then below it from nostril to nostril
    + (168, 197, (195, 5), 4, 240, 97, 2, 326, 460)
    # right eye and left eye, each from its right corner over the upper lid
    + (33, (159, 160), 158, 133, (145, 153), 144)
    + (362, 385, (386, 387), 263, 373, (374, 380))
    # lips from the right corner over the upper one: outer, then inner border
    + (61, (39, 40), 37, 0, 267, (269, 270), 291, (321, 405), 314, 17, 84, (91, 181))
    + (78, 82, 13, 312, 308, 317, 14, 87)
)
IBUG68 = np.array([(p, p) if isinstance(p, int) else p for p in NEAREST])
JAW = slice(17)
# The mesh ends before the outline of the face: without this the crop boxes were 4 % smaller than those
# of annotated points, with it their edges are within 3 % of the distance between the eyes.
JAW_GROWTH = 1.04


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
        crop = region.crop(image, RESOLUTION, antialias=True).astype(np.float32)
        points, presence = self.network(crop[None] / 255)
        points = points.reshape(POINTS, 3).astype(np.float64)
        flat = region.to_picture(points[:, :2], RESOLUTION)
        depth = points[:, 2:] * (region.size / RESOLUTION)
        points = np.concatenate([flat, depth], axis=1).astype(np.float32)
        return Mesh(points, float(sigmoid(presence.item())))


def region_around(
    box: Float[np.ndarray, " 4"],
    right_eye: Float[np.ndarray, " 2"],
    left_eye: Float[np.ndarray, " 2"],
) -> Region:
    """The region to give the network for the face in a detector's box: its eyes level, with a margin."""
    x, y = (box[:2] + box[2:]) / 2
    return Region(
        float(x), float(y), float(MARGIN * (box[2:] - box[:2]).max()), tilt(right_eye, left_eye)
    )


def region_of(points: Float[np.ndarray, "468 C"]) -> Region:
    """The region of the face whose landmarks are known: where to look for it in the next frame."""
    points = points[:, :2].astype(np.float64)
    angle = tilt(points[RIGHT_EYE_CORNER], points[LEFT_EYE_CORNER])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    box = box_of(points @ turn.T)  # in a picture turned so that the eyes are level
    x, y = (box[:2] + box[2:]) / 2 @ turn
    return Region(float(x), float(y), float(MARGIN * (box[2:] - box[:2]).max()), angle)


def tilt(right_eye: Float[np.ndarray, " 2"], left_eye: Float[np.ndarray, " 2"]) -> float:
    """The angle of the line from eye to eye, in radians; positive when the left eye is lower."""
    across, down = np.subtract(left_eye, right_eye)
    return float(np.arctan2(down, across))


def box_of(points: Float[np.ndarray, "N C"]) -> Float[np.ndarray, " 4"]:
    """Left, top, right and bottom of some points, in pixels."""
    return np.concatenate([points[:, :2].min(axis=0), points[:, :2].max(axis=0)])


def ibug68(points: Float[np.ndarray, "468 C"]) -> Float[np.ndarray, "68 C"]:
    """The 68 points of the iBUG 300-W scheme: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, lips 48-67.

    All go from the picture's left to its right, as an upright face is seen.
    """
    found = points[IBUG68].mean(axis=1, dtype=points.dtype)
    bridge = found[27]
    found[JAW] = bridge + JAW_GROWTH * (found[JAW] - bridge)
    return found
