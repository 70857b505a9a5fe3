"""The face to dub, in every frame of a video, one frame at a time.

Where the face was in the last frame is where to look in this one: that takes one small network, and its
landmarks tremble half as much as those of a face found anew. All faces are searched for at the beginning,
after a cut, and when the face is lost.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from unavglip_jax.config import InputError
from unavglip_jax.faces.detection import LEAST_PRESENCE, SCALES, BlazeFace, Face, find_faces
from unavglip_jax.faces.mesh import FaceMesh, Mesh, box_of, region_of

THUMBNAIL = 32  # pixels a side of what two frames are compared by
# A cut: both. Other pictures differed by 12 to 120 levels and correlated by 0.54 at most. Turning the
# brightness up or down leaves the correlation above 0.9; 40 pixels a frame across 1280 leave 0.77.
CUT_DIFFERENCE = 10.0  # mean absolute difference, of 255 levels
CUT_CORRELATION = 0.7

SEARCH_EVERY = 5  # frames from one search in tiles to the next while the face is not there
PATIENCE = 25  # frames for which a lost face is waited for where others could be taken for it

# How much the face of some landmarks in an RGB frame looks like the wanted one; more is more.
Similarity = Callable[[UInt8[np.ndarray, "H W 3"], Float[np.ndarray, "468 3"]], float]

# Which of several faces: by size, by nearness to the frame's middle, from the left counted from 0, or the
# most similar.
Choice = Literal["largest", "central"] | int | Similarity


@dataclass(frozen=True)
class FaceTrack:
    """The face in one frame.

    Attributes:
      mesh: its landmarks in pixels and how sure they are; None where it is not in the frame.
      shot: counts the cuts before the frame. Nothing should be smoothed across one.
      track: counts how often the face had been found anew by then; over one track its landmarks go on
        without a jump.
      faces: how many there are, where all were searched for; None in the other frames.
    """

    mesh: Mesh | None
    shot: int
    track: int
    faces: int | None


class Tracker:
    """Follows one face from frame to frame; call it with each frame in turn.

    Args:
      detector: file of BlazeFace, `face_detection_short_range.tflite`.
      face_mesh: file of Face Mesh, `face_landmark.tflite`.
      choice: which of several faces, decided at the beginning of each shot, and again where the face does
        not return soon to where it was lost. An index that is too high, and a similarity that is too low,
        are no face: the wrong person must not be dubbed.
      least_similarity: for a choice by similarity.
      least_presence: of a mesh that counts as a face (see `Mesh`).
      scales: how small a face may be (see `find_faces`).

    Raises:
      InputError: the choice is none, or a file is not what it should be.
    """

    def __init__(
        self,
        detector: str | Path,
        face_mesh: str | Path,
        choice: Choice = "largest",
        least_similarity: float = -np.inf,
        least_presence: float = LEAST_PRESENCE,
        scales: Sequence[int] = SCALES,
    ):
        known = callable(choice) or choice in ("largest", "central")
        if not known and not (type(choice) is int and choice >= 0):
            raise InputError(
                f"{choice!r} chooses no face; give largest, central, or a number from the left, from 0"
            )
        self.detector, self.face_mesh = BlazeFace(detector), FaceMesh(face_mesh)
        self.choice, self.least_similarity = choice, least_similarity
        self.least_presence, self.scales = least_presence, scales
        self.mesh: Mesh | None = None  # in the last frame
        self.last: Mesh | None = None  # the last one of this shot
        self.thumbnail: np.ndarray | None = None
        self.shot, self.track = 0, -1
        self.without, self.count = (
            0,
            0,
        )  # frames without the face; faces at the last search in tiles

    def __call__(self, frame: UInt8[np.ndarray, "H W 3"]) -> FaceTrack:
        """The face in the next frame, RGB."""
        frame = checked(frame)
        before, self.thumbnail = self.thumbnail, thumbnail(frame)
        if before is not None and is_cut(before, self.thumbnail):
            self.shot += 1
            self.mesh, self.last, self.without, self.count = None, None, 0, 0
        faces = None
        if self.mesh is not None:
            self.mesh = self.face_mesh(frame, region_of(self.mesh.points))
            if self.mesh.presence < self.least_presence:
                self.mesh = None
        if self.mesh is None:
            faces = self.search(frame)
        if self.mesh is not None:
            self.last, self.without = self.mesh, 0
        else:
            self.without += 1
        return FaceTrack(self.mesh, self.shot, max(self.track, 0), faces)

    def search(self, frame: UInt8[np.ndarray, "H W 3"]) -> int | None:
        """Searches for faces, begins a track with the wanted one, and says how many there are.

        Tiles take a fifth of a second. While the face is not there they are searched in every fifth frame
        only; in between it is looked for among large faces, and the number is not known.
        """
        find = lambda scales: find_faces(
            frame, self.detector, self.face_mesh, scales, self.least_presence
        )
        thorough = self.without % SEARCH_EVERY == 0
        faces = find(self.scales if thorough else self.scales[:1])
        if faces and not thorough and not self.count:  # the first one: are there more?
            thorough, faces = True, find(self.scales)
        chosen = self.returned(frame, faces)
        # With others in the picture, one elsewhere is rather one of them than the lost one.
        waiting = self.last is not None and self.count > 1 and self.without < PATIENCE
        if thorough:
            self.count = max(len(faces), self.count if waiting else 0)
            if chosen is None and not waiting:
                chosen = self.choose(frame, faces)
        if chosen is not None:
            self.mesh = chosen.mesh
            self.track += 1
        return len(faces) if thorough else None

    def returned(self, frame: UInt8[np.ndarray, "H W 3"], faces: Sequence[Face]) -> Face | None:
        """The face that was lost not long ago: the nearest, if less than its own size away."""
        if self.last is None or not faces or self.without >= PATIENCE:
            return None
        lost = box_of(self.last.points)
        away = lambda face: float(
            np.abs((box_of(face.mesh.points) - lost).reshape(2, 2).mean(axis=0)).max()
        )
        nearest = min(faces, key=away)
        if away(nearest) > (lost[2:] - lost[:2]).max():
            return None
        if callable(self.choice):
            alike = self.choice(frame, nearest.mesh.points) >= self.least_similarity
            return nearest if alike else None
        return nearest

    def choose(self, frame: UInt8[np.ndarray, "H W 3"], faces: Sequence[Face]) -> Face | None:
        """The wanted one of all faces, which are ordered from left to right."""
        if not faces:
            return None
        if callable(self.choice):
            scores = [self.choice(frame, face.mesh.points) for face in faces]
            best = int(np.argmax(scores))
            return faces[best] if scores[best] >= self.least_similarity else None
        boxes = [box_of(face.mesh.points) for face in faces]
        if self.choice == "largest":
            return faces[int(np.argmax([(box[2:] - box[:2]).prod() for box in boxes]))]
        if self.choice == "central":
            middle = np.array(frame.shape[1::-1]) / 2
            away = [np.linalg.norm((box[:2] + box[2:]) / 2 - middle) for box in boxes]
            return faces[int(np.argmin(away))]
        return faces[self.choice] if self.choice < len(faces) else None


def analyse(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]],
    detector: str | Path,
    face_mesh: str | Path,
    **options,
) -> Iterator[FaceTrack]:
    """The face in each frame of a video, as the frames come; none is kept.

    Args:
      frames: RGB, in the order of the video.
      detector: see `Tracker`, as all that follows.
      face_mesh: see `Tracker`.
      **options: choice, least_similarity, least_presence, scales.

    Raises:
      InputError: at once, what `Tracker` raises; later, a frame that is no RGB picture.
    """
    return map(Tracker(detector, face_mesh, **options), frames)


def thumbnail(frame: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "32 32 3"]:
    """A small copy to compare frames by. It averages 16 pixels or more for each of its own."""
    down, across = (max(1, length // (4 * THUMBNAIL)) for length in frame.shape[:2])
    small = cv2.resize(
        frame[::down, ::across], (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA
    )
    return small.astype(np.float32)


def is_cut(before: Float[np.ndarray, "32 32 3"], after: Float[np.ndarray, "32 32 3"]) -> bool:
    """Whether two frames in a row, given as thumbnails, belong to different shots.

    A dissolve is not noticed. There the face of the old shot fades, and the tracker searches anew.
    """
    if np.abs(before - after).mean() < CUT_DIFFERENCE:
        return False
    x, y = (image - image.mean(axis=(0, 1)) for image in (before, after))
    return float((x * y).sum()) < CUT_CORRELATION * float(np.linalg.norm(x) * np.linalg.norm(y)) + 1


def checked(frame: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """The frame, contiguous, as OpenCV needs it.

    Raises:
      InputError: it is not uint8 RGB, or is empty.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise InputError(
            f"a frame is {frame.dtype} of shape {frame.shape}; give uint8 RGB, shape (height, width, 3)"
        )
    return np.ascontiguousarray(frame)
