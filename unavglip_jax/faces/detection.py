"""Where the faces are, however small, and which of the findings are none.

The network is MediaPipe's BlazeFace for short range: Bazarevsky et al., BlazeFace: Sub-millisecond Neural
Face Detection on Mobile GPUs, arXiv 1907.05047. It sees faces from a seventh of its picture's width, so
small ones are looked for in overlapping tiles; tiles of texture bring false findings, which the mesh
network tells from faces.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from unavglip_jax.faces.mesh import FaceMesh, Mesh, box_of, region_around, region_of
from unavglip_jax.faces.networks import Network, Region, sigmoid

RESOLUTION = 128  # pixels a side of what the network sees
LEAST_SCORE = 0.5
LEAST_PRESENCE = 0.5  # faces had 0.9 and more, findings in texture 0.39 at most
SAME_FACE = 0.3  # findings that overlap by more are one face
SCALES = (1, 2, 3, 4)  # tiles along the shorter side; 1 is the whole picture


@dataclass(frozen=True)
class Detection:
    """A finding of the detector.

    Attributes:
      box: left, top, right, bottom in pixels; brow to chin, and it may reach out of the picture.
      score: in [0, 1].
      points: right eye, left eye (the person's), tip of the nose, mouth, right ear, left ear; x, y in pixels.
    """

    box: Float[np.ndarray, " 4"]
    score: float
    points: Float[np.ndarray, "6 2"]


@dataclass(frozen=True)
class Face:
    """A detection that the mesh network confirms, and its mesh."""

    detection: Detection
    mesh: Mesh


class BlazeFace:
    """BlazeFace on the CPU. One thread at a time may call it."""

    def __init__(self, network: str | Path, least_score: float = LEAST_SCORE):
        self.network = Network(network)
        self.least_score = least_score
        self.anchors = anchors()

    def __call__(
        self, image: UInt8[np.ndarray, "H W 3"], region: Region | None = None
    ) -> list[Detection]:
        """The faces of an RGB picture, or of a region of it, the surest first.

        Those narrower than a seventh of the region are not seen.
        """
        region = region or whole(image)
        crop = region.crop(image, RESOLUTION).astype(np.float32)
        values, logits = self.network(crop[None] / 127.5 - 1)
        scores = sigmoid(logits[0, :, 0])
        sure = scores >= self.least_score
        values = values[0, sure].astype(np.float64).reshape(-1, 8, 2) / RESOLUTION
        # centre and size of the box, then the six points; all but the size relative to the anchor
        centre, size = values[:, 0] + self.anchors[sure], values[:, 1]
        points = values[:, 2:] + self.anchors[sure, None]
        corners = np.stack([centre - size / 2, centre + size / 2], axis=1)
        points = np.concatenate([corners, points], axis=1) * RESOLUTION
        found = []
        for score, group in weighted_suppression(points, scores[sure]):
            group = region.to_picture(group, RESOLUTION)
            found.append(Detection(group[:2].ravel(), score, group[2:]))
        return found


def find_faces(
    image: UInt8[np.ndarray, "H W 3"],
    detector: BlazeFace,
    face_mesh: FaceMesh,
    scales: Sequence[int] = SCALES,
    least_presence: float = LEAST_PRESENCE,
) -> list[Face]:
    """Every face of an RGB picture, from left to right.

    Args:
      image: RGB.
      detector: makes the findings.
      face_mesh: confirms them; a finding counts if its mesh has `least_presence`.
      scales: for each the picture is searched in square tiles, so many along its shorter side, each
        half over the next. One scale more finds smaller faces and takes longer: a picture of 16:9 has
        1, 21, 50 and 98 tiles.
      least_presence: see `Mesh`.
    """
    findings = [found for tile in tiles(image, scales) for found in detector(image, tile)]
    findings.sort(key=lambda found: -found.score)
    faces = []
    for found in findings:
        if any(overlap(found.box, face.detection.box) > SAME_FACE for face in faces):
            continue
        mesh = face_mesh(image, region_around(found.box, *found.points[:2]))
        if mesh.presence < least_presence:
            continue
        # The second look starts from the first mesh, as tracking does: it is the more exact one.
        mesh = face_mesh(image, region_of(mesh.points))
        box = box_of(mesh.points)
        if mesh.presence >= least_presence and not any(
            overlap(box, box_of(face.mesh.points)) > SAME_FACE for face in faces
        ):
            faces.append(Face(found, mesh))
    return sorted(faces, key=lambda face: face.mesh.points[:, 0].mean())


def tiles(image: UInt8[np.ndarray, "H W 3"], scales: Sequence[int]) -> Iterator[Region]:
    """The squares to search, largest first. None is smaller than what the network sees."""
    height, width = image.shape[:2]
    for scale in sorted(scales):
        if scale == 1:
            yield whole(image)
            continue
        size = min(height, width) / scale
        if size < RESOLUTION:
            return
        for y in centres(height, size):
            for x in centres(width, size):
                yield Region(x, y, size)


def centres(length: int, size: float) -> Float[np.ndarray, " N"]:
    """Centres of the fewest tiles, evenly spread over a length, that overlap by half or more."""
    count = int(np.ceil((length - size) / (size / 2) - 1e-9)) + 1
    return np.linspace(size / 2, length - size / 2, count)


def whole(image: UInt8[np.ndarray, "H W 3"]) -> Region:
    """The square around a picture."""
    height, width = image.shape[:2]
    return Region(width / 2, height / 2, max(height, width))


def anchors() -> Float[np.ndarray, "896 2"]:
    """Centres of BlazeFace's anchors in [0, 1]: two in each cell of a 16 x 16 grid, six of an 8 x 8 one."""
    grids = []
    for cells, count in ((16, 2), (8, 6)):
        middle = (np.arange(cells) + 0.5) / cells
        grid = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2)
        grids.append(grid.repeat(count, axis=0))
    return np.concatenate(grids)


def weighted_suppression(
    points: Float[np.ndarray, "N 8 2"], scores: Float[np.ndarray, " N"]
) -> Iterator[tuple[float, Float[np.ndarray, "8 2"]]]:
    """Score and points of each face, the surest first; BlazeFace's non-maximum suppression.

    Findings that overlap the surest (intersection over union above 0.3) are averaged with it, weighted by
    their scores: picking one makes the box jump from frame to frame.

    Args:
      points: of each finding; the first two are the corners of its box.
      scores: of each finding.
    """
    points, scores = (x[np.argsort(-scores, kind="stable")] for x in (points, scores))
    while len(points):
        low, high = points[:, 0], points[:, 1]
        inner = np.minimum(high, high[0]) - np.maximum(low, low[0])
        inner, area = inner.clip(0).prod(axis=1), (high - low).clip(0).prod(axis=1)
        same = inner > 0.3 * (area + area[0] - inner)
        same[0] = True
        yield float(scores[0]), np.average(points[same], axis=0, weights=scores[same])
        points, scores = points[~same], scores[~same]


def overlap(a: Float[np.ndarray, " 4"], b: Float[np.ndarray, " 4"]) -> float:
    """The part of the smaller of two boxes that lies in the other, in [0, 1].

    Not intersection over union: a tile that cuts a face yields a box of part of it.
    """
    inner = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    smaller = min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())
    return float(inner / smaller) if smaller > 0 else 0.0
