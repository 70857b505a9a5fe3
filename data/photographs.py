"""A photograph with a face, made to talk: warped lips, cheeks and jaw around a drawn inside of the mouth.

Every landmark around the mouth has a place for every mouth and the picture follows by thin-plate splines
(Bookstein, Principal Warps, IEEE PAMI 1989): one for what is above the line between the lips and one for
what is below. The splines' weights are solved once; a frame costs two products with them.

Three kinds of coordinates: pixels of a picture; the frame, [0, 1] along the sides of the square that is
drawn; and the face, upright, from the middle of the closed mouth, in distances between the outer corners
of the eyes. In all of them x goes to the right and y down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from unavglip_jax import assets
from unavglip_jax.config import InputError
from unavglip_jax.data.motion import Pose
from unavglip_jax.faces.detection import BlazeFace, find_faces
from unavglip_jax.faces.mesh import LEFT_EYE_CORNER, RIGHT_EYE_CORNER, FaceMesh, ibug68

NETWORKS = ("face_detection_short_range.tflite", "face_landmark.tflite")
LEAST_SIZE = 64  # of a drawn picture
LEAST_EYE_DISTANCE = 24  # pixels; the lips of smaller faces are a smear
SIDE = 3.9  # of the drawn square, in distances between the outer corners of the eyes
MOUTH_WINDOW = np.array([[-1.15, -0.75], [1.15, 1.55]])  # the part of the face that the mouth moves
SPLINE_GRID, SHADE_GRID, POSE_GRID = 96, 40, 64
PATCH = np.array([[-0.42, -0.21], [0.42, 0.21]])  # the part of the face that holds the teeth
PATCH_SIZE = (336, 168)

# Points of the mesh from the picture's left to its right; both corners of the mouth are in every line.
LIPS = np.array(
    (
        (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291),  # outer border of the upper lip
        (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308),  # its inner border
        (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308),  # inner border of the lower lip
        (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291),  # its outer border
    )
)
CENTRE = 5  # of a line
# What lips and jaw take with them, the less the farther it is from them.
SURROUNDINGS = np.array(
    (164, 167, 393, 165, 391, 92, 322)  # between nose and upper lip
    + (216, 436, 206, 426, 207, 427, 205, 425, 187, 411, 192, 416, 214, 434, 50, 280)  # cheeks
    + (57, 287, 212, 432, 202, 422, 210, 430)  # beside the corners of the mouth
    + (18, 83, 313, 200, 201, 421, 199, 208, 428, 204, 424, 194, 418, 211, 431, 175)  # chin
    + (172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 58, 288)  # jaw
    + (2, 97, 326, 98, 327, 4, 48, 278, 129, 358, 1, 5, 195)  # nose
    + (132, 361, 93, 323, 234, 454, 117, 346, 101, 330, 118, 347, 100, 329)  # below the eyes
)
# The lids from the left to the right, and the brow, of the eye at the picture's left and that at its right.
EYES = (
    ((33, 246, 161, 160, 159, 158, 157, 173, 133), (33, 7, 163, 144, 145, 153, 154, 155, 133)),
    ((362, 398, 384, 385, 386, 387, 388, 466, 263), (362, 382, 381, 380, 374, 373, 390, 249, 263)),
)
BROWS = ((70, 63, 105, 66, 107), (336, 296, 334, 293, 300))
CHEEKS = (205, 425, 50, 280)
FOLDS = ((129, 203, 206, 216, 212), (358, 423, 426, 436, 432))  # from the nose to beside the mouth
NOSE, FOREHEAD, CHIN, EARS = 2, 10, 152, (234, 454)

NOISE = 1.6  # grey levels of a camera's noise, standard deviation
DARK = 0.7  # times the brightness around the mouth: not skin any more
BUMPS, STRETCH = 0.006, 0.09  # of the picture's sides: how far people differ in `vary`

# All in distances between the outer corners of the eyes.
OPENING = 0.225  # between the lips at the widest vowel
NARROWEST, WIDEST = 0.25, 0.285  # half of a mouth at rest
CORNER = 0.015  # from the inner to the outer corners of the lips
SMILE = 0.02  # the corners of the mouth at rest are above its middle by this at most
MARGIN = 0.012  # of the lips' inner borders: the mesh's are on the teeth now and then
LEAST_LIP = 0.03  # thickness of a lip at rest


class Placement(NamedTuple):
    """Where the face is in the frame.

    Attributes:
      middle: of the closed mouth.
      axes: the face's right and down, unit vectors.
      eyes: distance between their outer corners.
    """

    middle: Float[np.ndarray, " 2"]
    axes: Float[np.ndarray, "2 2"]
    eyes: float

    def to_face(self, frame: Float[np.ndarray, "*N 2"]) -> Float[np.ndarray, "*N 2"]:
        """The face's coordinates of places of the frame."""
        return (frame - self.middle) @ self.axes.T / self.eyes

    def matrix(self, side: int) -> Float[np.ndarray, "2 3"]:
        """Maps pixels of the frame, so many a side, to the face's coordinates."""
        scale = self.axes / (self.eyes * side)
        return np.concatenate([scale, self.to_face(np.full((1, 2), 0.5 / side)).T], axis=1)

    def turned(self, steps: Float[np.ndarray, "*N 2"]) -> Float[np.ndarray, "*N 2"]:
        """Steps on the face as steps in the frame."""
        return self.eyes * steps @ self.axes

    def to_frame(self, face: Float[np.ndarray, "*N 2"]) -> Float[np.ndarray, "*N 2"]:
        """The frame's coordinates of places of the face."""
        return self.middle + self.turned(face)


class Colours(NamedTuple):
    """Colours of the inside of the mouth, RGB in [0, 255]."""

    lips: Float[np.ndarray, " 3"]
    tongue: Float[np.ndarray, " 3"]
    cavity: Float[np.ndarray, " 3"]
    teeth: Float[np.ndarray, " 3"]


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph that is ready to be drawn; made by `prepare`.

    Attributes:
      image: the square that is drawn, RGB; the colours of the lips continue between them.
      relaxed: the same without the folds of a smile.
      points: the mesh, in the frame.
      place: of the face in the frame.
      window: low and high corner of what the mouth moves, in the frame.
      splines: displacements of the window's grid by those of the control points: above and below the lips.
      still: how far each place of that grid takes part, in [0, 1].
      head: how far each place of the pose's grid moves with the head, in [0, 1].
      depth: how far in front of the axis of the neck that place is, in the frame.
      pivot: about which the head turns, in the frame.
      teeth: the upper and the lower ones on `PATCH`, RGB in [0, 255] times opacity, and opacity in [0, 1].
      colours: of the rest of the mouth's inside.
    """

    image: UInt8[np.ndarray, "N N 3"]
    relaxed: UInt8[np.ndarray, "N N 3"]
    points: Float[np.ndarray, "468 2"]
    place: Placement
    window: Float[np.ndarray, "2 2"]
    splines: tuple[Float32[np.ndarray, "G*G C"], Float32[np.ndarray, "G*G C"]]
    still: Float32[np.ndarray, "G G 1"]
    head: Float32[np.ndarray, "P P"]
    depth: Float32[np.ndarray, "P P"]
    pivot: Float[np.ndarray, " 2"]
    teeth: tuple[Float32[np.ndarray, "h w 4"], Float32[np.ndarray, "h w 4"]]
    colours: Colours


class Mouth(NamedTuple):
    """Where a mouth is: lines from corner to corner, in the face's coordinates.

    Attributes:
      lips: what is seen of them, the four lines of `LIPS`.
      rolled: how far the inner borders are turned inwards, out of sight: of the upper, of the lower lip.
      jaw: how far the chin is below its place in the photograph.
    """

    lips: Float[np.ndarray, "4 11 2"]
    rolled: Float[np.ndarray, "2 11"]
    jaw: float


# From a picture to a photograph that can be drawn


def vary(image: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Somebody a little different, before `prepare`: another shape, other colours, another light.

    The background changes with the person.
    """
    height, width = image.shape[:2]
    picture = image[:, ::-1] if rng.random() < 0.5 else image
    # Bumps of a tenth of the picture, and a stretch, about its middle.
    size = np.array([width, height], np.float32)
    bumps = rng.normal(0, BUMPS, (9, 9, 2)).astype(np.float32) * size
    field = cv2.resize(bumps, (width, height), interpolation=cv2.INTER_CUBIC)
    stretch = 1 + rng.uniform(-STRETCH, STRETCH, 2)
    grid = nodes(width, height) - np.float32(0.5)
    maps = (grid * np.minimum(stretch, 1) + 0.5) * size - 0.5 + field
    picture = cv2.remap(
        picture, maps.astype(np.float32), None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    light = (lab[..., 0] / 100) ** rng.uniform(0.75, 1.4)
    side = rng.uniform(-0.15, 0.15) * grid[..., 0] + rng.uniform(0.9, 1.08)
    lab[..., 0] = 100 * light * side
    lab[..., 1:] = lab[..., 1:] * rng.uniform(0.75, 1.2) + rng.uniform(-4, 4, 2)
    picture = cv2.cvtColor(
        lab.clip([0, -127, -127], [100, 127, 127]).astype(np.float32), cv2.COLOR_LAB2RGB
    )
    return np.round(picture.clip(0, 1) * 255).astype(np.uint8)


def prepare(image: UInt8[np.ndarray, "H W 3"], where: str) -> Photograph:
    """Makes a photograph ready to be drawn, once. The largest face in it will talk.

    Args:
      image: RGB. The face looks into the camera with open eyes, the mouth closed or smiling.
      where: what to call the photograph in errors.

    Raises:
      InputError: the array is no such picture, or has no face that is large enough.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(
            f"{where}: a photograph must be a uint8 array of shape (height, width, 3), not {image.dtype} "
            f"of shape {image.shape}; convert grey pictures to RGB and leave out opacity"
        )
    points, depth = find_mesh(image, where)
    corner, side = square_around(points, image.shape)
    image = np.ascontiguousarray(image[corner[1] :, corner[0] :][:side, :side])
    points, depth = (points - corner + 0.5) / side, depth / side
    across = points[LEFT_EYE_CORNER] - points[RIGHT_EYE_CORNER]
    eyes = float(np.linalg.norm(across))
    axes = np.array([across, [-across[1], across[0]]]) / eyes
    upper, lower = points[LIPS[1, CENTRE]], points[LIPS[2, CENTRE]]
    place = Placement(upper + 0.42 * (lower - upper), axes, eyes)
    face = place.to_face(points)

    corners = place.to_frame(np.array(np.meshgrid(*MOUTH_WINDOW.T)).reshape(2, 4).T)
    window = np.stack([corners.min(axis=0), corners.max(axis=0)]).clip(0, 1)
    grid = place.to_face(window[0] + (window[1] - window[0]) * nodes(SPLINE_GRID))
    rim = place.to_face(window[0] + (window[1] - window[0]) * rim_of_square(8))
    splines = []
    for lines in (LIPS[:2], LIPS[2:]):
        controls = np.concatenate([with_margin(face)[lines.ravel()], face[SURROUNDINGS], rim])
        weights = thin_plate(controls, grid.reshape(-1, 2))[:, : -len(rim)]  # the rim stays
        splines.append(np.ascontiguousarray(weights))
    inside = np.minimum(nodes(SPLINE_GRID), 1 - nodes(SPLINE_GRID)).min(axis=-1, keepdims=True)

    colours = colours_of(image, points, place)
    closed = without_opening(image, points, place)
    return Photograph(
        image=closed,
        relaxed=without_folds(closed, points, place),
        points=points,
        place=place,
        window=window,
        splines=tuple(splines),
        still=smoothstep(inside / 0.12).astype(np.float32),
        **head_fields(points, depth, place),
        teeth=(upper_teeth(image, face, place, colours), drawn_teeth(colours, upper=False)),
        colours=colours,
    )


@cache
def networks() -> tuple[BlazeFace, FaceMesh]:
    """The detector and the mesh, loaded once."""
    return BlazeFace(assets.fetch(NETWORKS[0])), FaceMesh(assets.fetch(NETWORKS[1]))


def find_mesh(
    image: UInt8[np.ndarray, "H W 3"], where: str
) -> tuple[Float[np.ndarray, "468 2"], Float[np.ndarray, " 468"]]:
    """The largest face's landmarks and their depths, in pixels."""
    meshes = [face.mesh.points.astype(np.float64) for face in find_faces(image, *networks())]
    if not meshes:
        raise InputError(
            f"{where} has no face that can be found; give one that looks at the camera"
        )
    size = lambda points: np.linalg.norm(points[LEFT_EYE_CORNER] - points[RIGHT_EYE_CORNER])
    points = max(meshes, key=size)
    if (eyes := size(points)) < LEAST_EYE_DISTANCE:
        raise InputError(
            f"{where}: the face is too small, {eyes:.0f} pixels from eye to eye; "
            f"give a picture with {LEAST_EYE_DISTANCE} or more"
        )
    return points[:, :2], points[:, 2]


def square_around(
    points: Float[np.ndarray, "468 2"], shape: Sequence[int]
) -> tuple[np.ndarray, int]:
    """Corner and side, in pixels, of the square around head and shoulders that lies within the picture."""
    eyes = np.linalg.norm(points[LEFT_EYE_CORNER] - points[RIGHT_EYE_CORNER])
    extent = np.array([shape[1], shape[0]])
    side = int(min(round(SIDE * eyes), *extent))
    middle = 0.55 * points[FOREHEAD] + 0.45 * points[CHIN]
    corner = np.clip(np.round(middle - side / 2), 0, extent - side)
    return corner.astype(int), side


def with_margin(face: Float[np.ndarray, "468 2"]) -> Float[np.ndarray, "468 2"]:
    """The points with the inner borders of the lips a little into the lips, the corners into the cheeks."""
    face = face.copy()
    face[LIPS[1, 1:-1], 1] -= MARGIN
    face[LIPS[2, 1:-1], 1] += MARGIN
    for line in LIPS[[0, 1]]:
        face[line[[0, -1]], 0] += [-MARGIN, MARGIN]
    return face


def head_fields(
    points: Float[np.ndarray, "468 2"], depth: Float[np.ndarray, " 468"], place: Placement
) -> dict[str, np.ndarray]:
    """What moves with the head, `head`, `depth` and `pivot` of a photograph."""
    frame = nodes(POSE_GRID)
    grid = place.to_face(frame)
    face = place.to_face(points)
    chin, brow = face[CHIN, 1], face[FOREHEAD, 1]
    # Hair and ears go with the head, shoulders do not, and the picture's borders stay where they are.
    middle = np.array([0.0, (brow + chin) / 2 - 0.15])
    reach = grid - middle
    reach[..., 0] /= 1.05
    reach[..., 1] /= np.where(reach[..., 1] > 0, chin - middle[1] + 0.05, 1.25)
    far = np.linalg.norm(reach, axis=-1)
    inside = np.minimum(frame, 1 - frame)
    inside = np.minimum(inside[..., 0], inside[..., 1])
    head = smoothstep((1.75 - far) / 0.85) * smoothstep((inside - 1 / POSE_GRID) / 0.15)
    chosen = np.arange(0, len(points), 4)
    axis = depth[list(EARS)].mean()
    nearer = (axis - depth[chosen]).clip(0)
    ring = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = middle + 1.5 * np.stack([np.cos(ring), np.sin(ring)], axis=1)
    weights = thin_plate(np.concatenate([face[chosen], ring]), grid.reshape(-1, 2), 1e-2)
    depths = (weights[:, : len(chosen)] @ nearer).reshape(frame.shape[:2])
    return {
        "head": head.astype(np.float32),
        "depth": (depths.clip(0) * smoothstep((1.45 - far) / 0.6) * head).astype(np.float32),
        "pivot": place.to_frame(np.array([0.0, chin + 0.25])),
    }


def colours_of(
    image: UInt8[np.ndarray, "N N 3"], points: Float[np.ndarray, "468 2"], place: Placement
) -> Colours:
    """Colours for the inside of the mouth, by the light on cheeks and lips."""
    smooth = cv2.GaussianBlur(image, (0, 0), max(0.02 * place.eyes * len(image), 0.5))

    def at(places):
        column, row = np.clip((places * len(image)).astype(int), 0, len(image) - 1).T
        return np.median(smooth[row, column].astype(float), axis=0)

    skin = at(points[list(CHEEKS)])
    lips = at((points[LIPS[2, 3:-3]] + points[LIPS[3, 3:-3]]) / 2)
    light = skin.max() / 215
    tint = skin / skin.max()
    return Colours(
        lips=lips,
        tongue=np.clip(0.55 * lips + 0.45 * np.array([196, 98, 98]) * light, 0, 255),
        cavity=np.array([62, 18, 16]) * light,
        teeth=np.clip(np.array([236, 226, 208]) * light * (0.75 + 0.25 * tint), 0, 250),
    )


def without_opening(
    image: UInt8[np.ndarray, "N N 3"], points: Float[np.ndarray, "468 2"], place: Placement
) -> UInt8[np.ndarray, "N N 3"]:
    """The picture with lips instead of teeth between the lips, so that none show beside drawn ones."""
    outline = np.concatenate([points[LIPS[1]], points[LIPS[2, ::-1]]]) * len(image) - 0.5
    opening = filled(outline, image.shape)
    around = lambda mask, reach: cv2.dilate(
        mask, disc(max(1, round(reach * place.eyes * len(image)))), borderValue=0
    )
    # Beside the corners it is dark for some pixels more, which reach under the lips.
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    dark = grey < DARK * grey[around(opening, 0.08) - around(opening, 0.03) > 0.5].mean()
    dark = around((dark & (around(opening, 0.04) > 0.5)).astype(np.float32), 0.01)
    inside = ((opening > 0.5) | (dark > 0.5)).astype(np.uint8)
    return cv2.inpaint(image, inside, 0.05 * place.eyes * len(image), cv2.INPAINT_TELEA)


def without_folds(
    image: UInt8[np.ndarray, "N N 3"], points: Float[np.ndarray, "468 2"], place: Placement
) -> UInt8[np.ndarray, "N N 3"]:
    """The picture with the folds from the nose to beside the mouth smoothed, its grain kept."""
    unit = place.eyes * len(image)
    path = lambda chosen: np.round(points[list(chosen)] * len(image) * 16).astype(np.int32)
    fold = np.zeros(image.shape[:2], np.float32)
    for chosen in FOLDS:
        cv2.polylines(fold, [path(chosen)], False, 1.0, max(1, round(0.17 * unit)), cv2.LINE_8, 4)
    skin = np.ones_like(fold)
    cv2.fillPoly(skin, [path([*LIPS[0], *LIPS[3, ::-1]])], 0.0, cv2.LINE_8, 4)
    cv2.fillPoly(skin, [path((129, 98, 97, 2, 326, 327, 358, 4))], 0.0, cv2.LINE_8, 4)
    skin = cv2.erode(skin, np.ones((3, 3), np.uint8), iterations=max(1, round(0.02 * unit)))
    fold = cv2.GaussianBlur(fold, (0, 0), 0.05 * unit) * cv2.GaussianBlur(
        skin, (0, 0), 0.012 * unit
    )
    # Between the two scales of smoothing lie folds, and neither grain nor the roundness of the cheek.
    fine, coarse = (
        cv2.GaussianBlur(image * weight[..., None], (0, 0), sigma * unit)
        / (cv2.GaussianBlur(weight, (0, 0), sigma * unit)[..., None] + 1e-3)
        for sigma, weight in ((0.009, skin), (0.12, skin * (1 - 0.9 * fold)))
    )
    return np.clip(image + fold[..., None] * (coarse - fine), 0, 255).astype(np.uint8)


def upper_teeth(
    image: UInt8[np.ndarray, "N N 3"],
    face: Float[np.ndarray, "468 2"],
    place: Placement,
    colours: Colours,
) -> Float32[np.ndarray, "h w 4"]:
    """The upper teeth on `PATCH`: those that the photograph shows, else drawn ones."""
    upper, lower = face[LIPS[1]], face[LIPS[2]]
    if (lower - upper)[CENTRE, 1] < 0.06:
        return drawn_teeth(colours, upper=True)
    frame = place.to_frame(PATCH[0] + (PATCH[1] - PATCH[0]) * nodes(*PATCH_SIZE))
    maps = (frame * len(image) - 0.5).astype(np.float32)
    patch = cv2.remap(image, maps, None, cv2.INTER_CUBIC).astype(np.float32)
    # An opening between the lips, less their blurred borders. Below the upper lip the teeth reach up.
    outline = np.concatenate([upper - [0, 0.02], lower[::-1] - [0, 0.008]])
    scale = np.array(PATCH_SIZE) / (PATCH[1] - PATCH[0])
    opening = filled((outline - PATCH[0]) * scale - 0.5, patch.shape[:2])
    # Teeth are as bright as skin, and less red.
    lab = cv2.cvtColor(patch / 255, cv2.COLOR_RGB2LAB)
    bright = smoothstep((lab[..., 0] / max(lab[..., 0][opening > 0].max(), 1) - 0.35) / 0.3)
    pale = smoothstep((15 - lab[..., 1]) / 6)
    white = opening * bright * pale
    if white.sum() < 0.3 * opening.sum():
        return drawn_teeth(colours, upper=True)
    white = cv2.morphologyEx(white, cv2.MORPH_CLOSE, disc(8))
    # What the upper lip hides or shades continues what is seen below it.
    seen = white > 0.7
    rows, columns = np.indices(white.shape)
    first = np.where(seen.any(axis=0), seen.argmax(axis=0) + 8, 0)
    rows = np.maximum(rows, first)
    patch, white = patch[rows, columns], white[rows, columns]
    opacity = cv2.GaussianBlur(white, (0, 0), 2.5)[..., None]
    return np.concatenate([patch * opacity, opacity], axis=-1)


def drawn_teeth(colours: Colours, upper: bool) -> Float32[np.ndarray, "h w 4"]:
    """A row of teeth on `PATCH`; the upper ones reach up behind the lip, the lower ones down."""
    top, bottom = (-0.13, 0.04) if upper else (-0.01, 0.1)
    places = PATCH[0] + (PATCH[1] - PATCH[0]) * nodes(*PATCH_SIZE)
    x, y = places[..., 0], places[..., 1]
    widths = np.array(
        [0.086, 0.068, 0.07, 0.05, 0.04] if upper else [0.052, 0.054, 0.06, 0.05, 0.04]
    )
    shorter = np.array([0, 0.008, 0.002, 0.012, 0.02])
    # Between the teeth are shadows of their colour, not holes.
    behind = smoothstep((widths.sum() - np.abs(x)) / 0.04) * smoothstep((y - top) / 0.01 - 1)
    behind *= smoothstep((bottom - y) / 0.01 - 1)
    picture = np.concatenate([behind[..., None] * 0.8 * colours.teeth, behind[..., None]], axis=-1)
    start = 0.0
    for number, (width, less) in enumerate(zip(widths, shorter, strict=True)):
        for sign in (-1, 1):
            middle = sign * (start + width / 2)
            first, last = (top, bottom - less) if upper else (top + less, bottom)
            across = np.abs(x - middle) / (width / 2 - 0.002)
            down = np.abs(y - (first + last) / 2) / ((last - first) / 2)
            outside = (across**5 + down**7) ** (1 / 5)
            opacity = smoothstep((1 - outside) / 0.1 + 0.5)
            edge = (y - first) / (last - first)
            edge = edge if upper else 1 - edge
            light = (1 - 0.11 * number) * (0.85 + 0.15 * edge) * (1 - 0.12 * across.clip(0, 1) ** 3)
            value = colours.teeth * (light * opacity)[..., None]
            picture = picture * (1 - opacity[..., None])
            picture[..., :3] += value
            picture[..., 3] += opacity
        start += width
    return picture.astype(np.float32)


# From a photograph and a mouth to a picture


def draw(
    photograph: Photograph,
    mouth: Float[np.ndarray, " 5"],
    pose: Pose,
    size: int,
    rng: np.random.Generator | None = None,
) -> tuple[UInt8[np.ndarray, "S S 3"], Float[np.ndarray, "68 2"]]:
    """The photograph with another mouth and another pose.

    A positive roll turns the head clockwise in the picture, a positive yaw turns the nose to the picture's
    right, a positive pitch turns it down. The gaze is not followed.

    Args:
      photograph: as `prepare` makes it.
      mouth: open, wide, round, press and tuck, each in [0, 1]; see `data.visemes.MOUTH`.
      pose: of the head; the shoulders stay where they are.
      size: pixels a side.
      rng: adds the noise of a camera.

    Returns:
      The RGB picture, and iBUG's 68 points in it, in pixels: the mesh of the photograph, displaced as
      the picture is.

    Raises:
      InputError: the mouth is not five numbers in [0, 1], or the picture is too small for one.
    """
    if size < LEAST_SIZE:
        raise InputError(
            f"a photograph must be drawn with {LEAST_SIZE} pixels a side or more, not {size}"
        )
    mouth = np.asarray(mouth, np.float64)
    if mouth.shape != (5,) or not ((mouth >= 0) & (mouth <= 1)).all():
        raise InputError(
            f"a mouth must be five numbers from 0 to 1 (open, wide, round, press, tuck), not {mouth}"
        )
    # Drawn larger first, small lips have smoother borders.
    side = size if size >= 384 else round(1.5 * size)
    resize = cv2.INTER_AREA if side < len(photograph.image) else cv2.INTER_CUBIC
    smile = 0.2 + 0.5 * mouth[1]
    image = cv2.addWeighted(photograph.image, smile, photograph.relaxed, 1 - smile, 0)
    image = cv2.resize(image, (side, side), interpolation=resize)
    target = shape_mouth(photograph, mouth)
    points = draw_mouth(photograph, image, target, mouth)
    points = draw_lids(photograph, image, points, float(np.clip(pose.blink, 0, 1)))
    picture, points = move_head(photograph, image, points, pose, size)
    if rng is not None:
        noise = np.rint(NOISE * rng.standard_normal((size, size), dtype=np.float32))
        picture = cv2.add(picture, cv2.merge([noise.astype(np.int16)] * 3), dtype=cv2.CV_8U)
    return picture, ibug68(points * size - 0.5)


def shape_mouth(photograph: Photograph, mouth: Float[np.ndarray, " 5"]) -> Mouth:
    """Where lips and jaw are for a mouth, in the face's coordinates."""
    opened, wide, rounded, press, tuck = mouth
    source = photograph.place.to_face(photograph.points[LIPS])
    corners = source[1, [0, -1]]
    half = (corners[1, 0] - corners[0, 0]) / 2
    along = source[..., 0] - corners[:, 0].mean()
    along /= np.abs(along[:, [0, -1]]).mean(axis=1, keepdims=True)  # -1 to 1
    rest = np.clip(half, NARROWEST, WIDEST)

    gap = OPENING * opened * (1 - press)
    drop = (0.86 + 0.05 * rounded) * gap + 0.012 * tuck
    lift = 0.14 * gap + 0.02 * tuck - 0.05 * gap * rounded
    width = rest * (1 + 0.17 * wide - 0.36 * rounded - 0.07 * opened * (1 - wide) + 0.03 * press)
    smile = np.clip(-corners[:, 1].mean(), -0.01, SMILE)
    corner = -smile + 0.24 * drop - 0.02 * wide + 0.006 * press
    bulge = 1 - along**2
    line = 0.016 * rounded + corner * (1 - bulge) - 0.008 * bulge
    line += 0.01 * np.exp(-((along / 0.22) ** 2))

    # The opening is pointed at its corners. When the lips are rounded it is round, and they touch beside it.
    pointed = (1.25 - 0.3 * opened) * (1 - rounded) + 0.5 * rounded
    arch = (1 - (along / (1 - 0.3 * rounded)) ** 2).clip(0) ** pointed
    bow = 1 - 0.16 * np.exp(-((along / 0.2) ** 2)) * (1 - rounded)
    upper = line[1] - lift * arch[1] * bow[1]
    lower = line[2] + drop * arch[2]

    thickness = np.stack([source[1] - source[0], source[3] - source[2]])[..., 1]
    thickness *= np.clip(half / rest, 1, 1.35)  # stretched lips are thin lips
    thickness = np.maximum(thickness, LEAST_LIP * bulge[[0, 3]].clip(0) ** 0.6)
    inwards = np.array([[0.35 * press], [0.38 * press + 0.5 * tuck]])
    fuller = [
        [0.3 * rounded - 0.1 * wide - 0.08 * opened - 0.1 * tuck],
        [0.22 * rounded - 0.08 * wide - 0.1 * opened],
    ]
    seen = thickness * (1 + np.array(fuller) - inwards)
    y = np.stack([upper - seen[0], upper, lower, lower + seen[1]])
    x = 0.3 * corners[:, 0].mean() + along * (width + [[CORNER], [0], [0], [CORNER]])
    # A smile that shows teeth has dropped the jaw, which comes back by a part of that.
    back = 0.35 * max(0.0, (source[2] - source[1])[CENTRE, 1])
    jaw = 0.9 * drop - back - 0.015 * tuck
    return Mouth(np.stack([x, y], axis=-1), thickness * inwards, jaw)


def displacements(
    photograph: Photograph, target: Mouth
) -> tuple[Float[np.ndarray, "22 2"], Float[np.ndarray, "22 2"], Float[np.ndarray, "K 2"]]:
    """Of the control points: of the upper lip, the lower lip, and what is around, in the face's unit."""
    face = with_margin(photograph.place.to_face(photograph.points))
    source = face[LIPS]
    lips = target.lips - source
    lips[1, :, 1] += target.rolled[0]
    lips[2, :, 1] -= target.rolled[1]
    around = face[SURROUNDINGS]
    x, y = around.T

    def near(place, reach):
        return np.exp(-(((around - place) / reach) ** 2).sum(axis=1))[:, None]

    sideways = np.abs(x)
    jaw = smoothstep((y + 0.05) / (0.16 + 0.6 * sideways))
    jaw *= 1 - 0.75 * smoothstep((sideways - 0.25) / 0.5)
    moved = np.stack([np.zeros_like(jaw), jaw * target.jaw], axis=1)
    for end in (0, -1):
        moved += near(source[1, end], 0.2) * (lips[1, end] - [0, 0.3 * target.jaw])
    nose = face[NOSE, 1]
    above = smoothstep((y - nose) / (source[0, CENTRE, 1] - nose)) * (
        y < source[0, CENTRE, 1] + 0.03
    )
    moved += 0.6 * above[:, None] * near(source[0, CENTRE], (0.2, 0.2)) * lips[0, CENTRE]
    below = smoothstep((y - source[3, CENTRE, 1]) / 0.03 + 1)[:, None]
    local = lips[3, CENTRE] - [0, target.jaw]
    moved += 0.8 * below * near(source[3, CENTRE], (0.28, 0.14)) * local
    return lips[:2].reshape(-1, 2), lips[2:].reshape(-1, 2), moved


def draw_mouth(
    photograph: Photograph,
    image: UInt8[np.ndarray, "S S 3"],
    target: Mouth,
    mouth: Float[np.ndarray, " 5"],
) -> Float[np.ndarray, "468 2"]:
    """Draws the mouth into the picture, and returns where the points of the mesh went, in the frame."""
    side, place, window = len(image), photograph.place, photograph.window
    upper, lower, around = displacements(photograph, target)
    fields = [
        (weights @ place.turned(np.concatenate([lips, around])).astype(np.float32)).reshape(
            SPLINE_GRID, SPLINE_GRID, 2
        )
        * photograph.still
        for weights, lips in zip(photograph.splines, (upper, lower), strict=True)
    ]
    points = photograph.points.copy()
    below = place.to_face(points)[:, 1] > 0
    for field, of in zip(fields, (~below, below), strict=True):
        points[of] += sample(field, (points[of] - window[0]) / (window[1] - window[0]))
    points[LIPS] = place.to_frame(target.lips)

    # The pixels that the window reaches into: their own coordinates, the face's, and where to look.
    low, high = np.floor(window[0] * side).astype(int), np.ceil(window[1] * side).astype(int)
    part = (slice(low[1], high[1]), slice(low[0], high[0]))
    rows, columns = np.mgrid[part].astype(np.float32)
    pixels = cv2.merge([columns, rows])
    (xx, xy, x0), (yx, yy, y0) = place.matrix(side).astype(np.float32)
    x, y = xx * columns + xy * rows + x0, yx * columns + yy * rows + y0
    enlarge = lambda field: enlarged(field, (window * side - 0.5 - low), high - low)
    backward = [enlarge(inverse(field, window) * side) for field in fields]

    # Between the corners of the mouth the splines differ, beyond them one passes into the other.
    seam = smooth_line((target.lips[1] + target.lips[2]) / 2).astype(np.float32)
    beyond = np.maximum(seam[0, 0] - x, x - seam[-1, 0]).clip(0)
    pixel = np.float32(1 / (place.eyes * side))
    middle = np.interp(x, *seam.T).astype(np.float32)
    under = smoothstep((y - middle) / (pixel + 0.8 * beyond) + 0.5)[..., None]
    maps = pixels + backward[0] + under * (backward[1] - backward[0])
    picture = cv2.remap(image, maps, None, cv2.INTER_CUBIC).astype(np.float32)
    # At the line itself the two pictures are mixed: mixed maps would look between the lips.
    near = bounds(np.argwhere((beyond == 0) & (np.abs(y - middle) < 0.04)), 2)
    above, below = (
        cv2.remap(image, (pixels + back)[near], None, cv2.INTER_CUBIC).astype(np.float32)
        for back in backward
    )
    inner = beyond[near][..., None] == 0
    picture[near] = np.where(inner, above + under[near] * (below - above), picture[near])
    picture *= enlarge(shading(photograph, target, mouth))[..., None]
    draw_line(photograph, picture[near], x[near], y[near] - middle[near], target, mouth)
    fill_opening(photograph, picture, x, y, target, shadow=0.5 - 0.3 * mouth[4])
    image[part] = np.clip(np.round(picture), 0, 255).astype(np.uint8)
    return points


def shading(
    photograph: Photograph, target: Mouth, mouth: Float[np.ndarray, " 5"]
) -> Float32[np.ndarray, "S S"]:
    """How much lighter or darker the skin is where it bulges or sinks in, over the mouth's window."""
    opened, _, rounded, press, _ = mouth
    low, high = photograph.window
    face = photograph.place.to_face(low + (high - low) * nodes(SHADE_GRID))
    left, right = target.lips[1, 0], target.lips[1, -1]
    lower = target.lips[3, CENTRE]
    light = np.ones(face.shape[:2])
    for place, reach, gain in (
        (lower + [0, 0.055], (0.16, 0.04), -0.07 - 0.08 * rounded - 0.05 * press),
        (lower - [0, 0.05], (0.1, 0.03), 0.06 * rounded),
        (left + [-0.1, 0.1], (0.08, 0.2), -0.06 * opened),
        (right + [0.1, 0.1], (0.08, 0.2), -0.06 * opened),
        (left, (0.04, 0.03), -0.1),
        (right, (0.04, 0.03), -0.1),
    ):
        x, y = np.moveaxis((face - place) / reach, -1, 0)
        light += gain * np.exp(-x * x - y * y)
    return light.astype(np.float32)


def draw_line(
    photograph: Photograph,
    picture: Float32[np.ndarray, "h w 3"],
    x: Float32[np.ndarray, "h w"],
    off: Float32[np.ndarray, "h w"],
    target: Mouth,
    mouth: Float[np.ndarray, " 5"],
) -> None:
    """Draws the shadow between lips that touch.

    Args:
      photograph: whose colours to use.
      picture: to draw on.
      x: the face's coordinate of every pixel.
      off: how far it is below the line between the lips.
      target: where the mouth is.
      mouth: the five parameters.
    """
    (left, *_, right), gap = target.lips[1, :, 0], (target.lips[2] - target.lips[1])[:, 1]
    apart = np.interp(x, target.lips[1, :, 0], gap)
    within = smoothstep((np.minimum(x - left, right - x) + 0.01) / 0.07)
    line = np.exp(-((off / 0.011) ** 2)) + 0.4 * np.exp(-((off / 0.028) ** 2))
    line *= within * (1 - smoothstep(apart / 0.03)) * (0.4 + 0.1 * mouth[3])
    tint = 1 - photograph.colours.lips / 255 * np.array([0.35, 0.1, 0.1])
    picture *= 1 - line.clip(0, 1)[..., None] * tint


def fill_opening(
    photograph: Photograph,
    picture: Float32[np.ndarray, "h w 3"],
    x: Float32[np.ndarray, "h w"],
    y: Float32[np.ndarray, "h w"],
    target: Mouth,
    shadow: float,
) -> None:
    """Draws what is seen between the lips: the teeth, the tongue and the dark behind them.

    Args:
      photograph: whose teeth and colours to use.
      picture: to draw on.
      x: the face's coordinate of every pixel.
      y: the same.
      target: where the mouth is.
      shadow: of the upper lip on the teeth: the part of the light that it takes.
    """
    upper, lower = (smooth_line(target.lips[i]) for i in (1, 2))
    if (lower - upper)[:, 1].max() < 1e-3:
        return
    to_face = np.array(
        [[x[0, 1] - x[0, 0], y[0, 1] - y[0, 0]], [x[1, 0] - x[0, 0], y[1, 0] - y[0, 0]]]
    )
    outline = (np.concatenate([upper, lower[::-1]]) - [x[0, 0], y[0, 0]]) @ np.linalg.inv(to_face)
    part = bounds(np.round(outline[:, ::-1]).astype(int), 3)
    x, y = x[part], y[part]
    low = [part[1].start, part[0].start]
    opacity = cv2.GaussianBlur(filled(outline - low, x.shape), (0, 0), 0.7)[..., None]

    colours = photograph.colours
    top, bottom = (np.interp(x, *line.T) for line in (upper, lower))
    centre = (upper[0, 0] + upper[-1, 0]) / 2
    half = (upper[-1, 0] - upper[0, 0]) / 2
    across = (x - centre) / half
    gap = float((lower - upper)[:, 1].max())
    depth = np.exp(-((across / 0.8) ** 2) - (((y - top) / (bottom - top + 1e-3) - 0.45) / 0.5) ** 2)
    rim = smoothstep((np.abs(across) - 0.55) / 0.45)[..., None]
    inside = (colours.cavity * (1 - rim) + (0.22 * colours.lips + 0.7 * colours.cavity) * rim) * (
        1 - 0.65 * depth[..., None]
    )
    # The tongue lies behind the lower teeth: a hump with a groove, dark towards the throat.
    hump = bottom - (0.018 + 0.36 * gap) * (1 - (across / 0.95) ** 2).clip(0) ** 0.6
    hump += 0.004 * np.exp(-((across / 0.15) ** 2))
    height = (y - hump) / (0.36 * gap + 0.03)
    tongue = smoothstep(height / 0.3 + 0.35) * smoothstep((0.95 - np.abs(across)) / 0.3)
    light = (0.36 + 0.45 * smoothstep(height / 0.9)) * (1 - 0.06 * np.exp(-((across / 0.12) ** 2)))
    tongue = tongue[..., None]
    inside = inside * (1 - tongue) + colours.tongue * light[..., None] * tongue
    lit = 1 - shadow * np.exp(-(((y - top) / 0.03).clip(0) ** 1.5))
    sides = 1 - 0.4 * np.abs(across).clip(0, 1) ** 3
    light = (lit * sides)[..., None] ** np.array([0.8, 1.05, 1.1])  # it passes lips and gums
    jaw = 0.35 * target.lips[2, CENTRE, 1] + 0.65 * bottom - 0.02
    for teeth, shift, seen, brightness in (
        (photograph.teeth[1], jaw, 0.8 * smoothstep((gap - 0.1) / 0.08), 0.6),
        (photograph.teeth[0], 0.0, 1.0, 0.95),
    ):
        places = np.stack([x, y - shift], axis=-1)
        maps = (places - PATCH[0]) / (PATCH[1] - PATCH[0]) * PATCH_SIZE - 0.5
        found = cv2.remap(teeth, maps.astype(np.float32), None, cv2.INTER_LINEAR)
        inside = inside * (1 - seen * found[..., 3:]) + found[..., :3] * (seen * brightness * light)
    picture[part] += opacity * (inside - picture[part])


def draw_lids(
    photograph: Photograph,
    image: UInt8[np.ndarray, "S S 3"],
    points: Float[np.ndarray, "468 2"],
    shut: float,
) -> Float[np.ndarray, "468 2"]:
    """Draws the upper lids down over the eyes; returns where the points of the mesh went, in the frame."""
    if not shut:
        return points
    side, place = len(image), photograph.place
    points = points.copy()
    for (upper, lower), brow in zip(EYES, BROWS, strict=True):
        lid, below, above = (
            place.to_face(photograph.points[list(p)]) for p in (upper, lower, brow)
        )
        curves = [np.polyfit(line[:, 0], line[:, 1], 4) for line in (lid, below)]
        corners = place.to_frame(
            np.stack(
                [
                    [lid[0, 0] - 0.06, above[:, 1].min()],
                    [lid[-1, 0] + 0.06, below[:, 1].max() + 0.06],
                ]
            )
        )
        ends = corners * side
        tilt = abs(ends[1] - ends[0]) * 0.15
        low = np.floor(ends.min(axis=0) - tilt).astype(int).clip(0)
        high = np.ceil(ends.max(axis=0) + tilt).astype(int).clip(0, side)
        part = (slice(low[1], high[1]), slice(low[0], high[0]))
        rows, columns = np.mgrid[part].astype(np.float32)
        pixels = np.stack([columns, rows], axis=-1)
        face = place.to_face((pixels + 0.5) / side)
        x, y = face[..., 0], face[..., 1]
        within = x.clip(lid[0, 0], lid[-1, 0])
        taper = smoothstep(np.minimum(x - lid[0, 0], lid[-1, 0] - x) / 0.03)
        edge = np.polyval(curves[0], within) + 0.008  # lashes go with the lid
        travel = (np.polyval(curves[1], within) + 0.004 - edge).clip(0) * shut * taper
        start = edge - 0.6 * (edge - np.interp(x, above[:, 0], above[:, 1])).clip(0.08)
        way = ((y - start) / (edge + travel - start)).clip(0, 1)
        shift = travel * smoothstep(way / 0.8)  # lashes are not stretched
        maps = pixels - (shift[..., None] * place.axes[1] * place.eyes * side)
        moved = cv2.remap(image, maps.astype(np.float32), None, cv2.INTER_CUBIC)
        pixel = 1 / (place.eyes * side)
        over = smoothstep((edge + travel - y) / (2 * pixel) + 0.5)[..., None]
        dark = 1 - 0.25 * shut * np.exp(-(((y - edge - travel) / 0.01) ** 2)) * taper
        new = (image[part] + over * (moved.astype(np.float32) - image[part])) * dark[..., None]
        image[part] = np.clip(np.round(new), 0, 255)
        travel = (np.polyval(curves[1], lid[:, 0]) - lid[:, 1]).clip(0) * shut
        points[list(upper)] += (travel[:, None] * [0, 1]) @ place.axes * place.eyes
    return points


def move_head(
    photograph: Photograph,
    image: UInt8[np.ndarray, "S S 3"],
    points: Float[np.ndarray, "468 2"],
    pose: Pose,
    size: int,
) -> tuple[UInt8[np.ndarray, "size size 3"], Float[np.ndarray, "468 2"]]:
    """The picture with the head moved before what is behind it, in another size, and the points in it."""
    place, grid = photograph.place, nodes(POSE_GRID)
    width = np.linalg.norm(photograph.points[EARS[1]] - photograph.points[EARS[0]])
    shift = np.array([pose.x, pose.y]) * width
    cos, sin = np.cos(pose.roll) / pose.scale, np.sin(pose.roll) / pose.scale
    back = np.array([[cos, sin], [-sin, cos]])
    from_pivot = grid - photograph.pivot
    field = ((from_pivot - shift) @ back.T - from_pivot) * photograph.head[..., None]
    across = grid @ place.axes[0] - place.middle @ place.axes[0]
    turned = photograph.depth * np.sin(pose.yaw) - across * photograph.head * (1 - np.cos(pose.yaw))
    nodded = photograph.depth * np.sin(pose.pitch)
    field -= turned[..., None] * place.axes[0] + nodded[..., None] * place.axes[1]
    face = place.to_face(grid)
    for brow in BROWS:
        middle = place.to_face(photograph.points[list(brow)]).mean(axis=0)
        raised = np.exp(-(((face - middle) / [0.22, 0.1]) ** 2).sum(axis=-1)) * 0.03 * pose.brow
        field += raised[..., None] * place.axes[1] * place.eyes
    field = field.astype(np.float32)
    maps = cv2.resize(len(image) * field, (size, size), interpolation=cv2.INTER_LINEAR)
    maps += pixel_centres(size, len(image))
    flags = cv2.INTER_CUBIC if len(image) == size else cv2.INTER_LINEAR
    picture = cv2.remap(image, maps, None, flags, borderMode=cv2.BORDER_REPLICATE)
    moved = points
    for _ in range(8):
        moved = points - sample(field, moved)
    return picture, moved


# Geometry


@lru_cache(maxsize=16)
def nodes(across: int, down: int | None = None) -> Float32[np.ndarray, "down across 2"]:
    """x and y of the centres of a grid's cells in the unit square."""
    x = (np.arange(across, dtype=np.float32) + 0.5) / across
    y = (np.arange(down or across, dtype=np.float32) + 0.5) / (down or across)
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    grid.flags.writeable = False
    return grid


@lru_cache(maxsize=4)
def pixel_centres(size: int, side: int) -> Float32[np.ndarray, "size size 2"]:
    """Where the pixels of a picture are, in pixels of the same picture with another side."""
    return nodes(size) * side - np.float32(0.5)


def rim_of_square(count: int) -> Float[np.ndarray, "4*count 2"]:
    """Points along the sides of the unit square."""
    t, zero, one = np.arange(count) / count, np.zeros(count), np.ones(count)
    sides = ((t, zero), (one, t), (1 - t, one), (zero, 1 - t))
    return np.concatenate([np.stack(side, axis=1) for side in sides])


def thin_plate(
    controls: Float[np.ndarray, "C 2"], places: Float[np.ndarray, "N 2"], give: float = 1e-4
) -> Float32[np.ndarray, "N C"]:
    """Weights that interpolate, by a thin-plate spline, values at some points to those at other places.

    Args:
      controls: where the values are given.
      places: where they are wanted.
      give: how far the spline may miss the values to stay smooth.
    """

    def kernel(a, b):
        squared = ((a[:, None] - b) ** 2).sum(axis=-1)
        return 0.5 * squared * np.log(np.maximum(squared, 1e-12))

    count = len(controls)
    plane = lambda points: np.concatenate([np.ones((len(points), 1)), points], axis=1)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = kernel(controls, controls) + give * np.eye(count)
    system[:count, count:] = plane(controls)
    system[count:, :count] = plane(controls).T
    solution = np.linalg.solve(system, np.eye(count + 3)[:, :count])
    basis = np.concatenate([kernel(places, controls), plane(places)], axis=1)
    return (basis @ solution).astype(np.float32)


def inverse(
    field: Float32[np.ndarray, "G G 2"], window: Float[np.ndarray, "2 2"]
) -> Float32[np.ndarray, "G G 2"]:
    """The displacements, by target, that undo those by source: the fixed point of b(y) = -d(y + b(y))."""
    grid = nodes(len(field))
    back = -field
    for _ in range(5):
        maps = (grid + back / (window[1] - window[0])) * len(field) - 0.5
        back = -cv2.remap(
            field, maps.astype(np.float32), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
    return back


def bounds(places: Int[np.ndarray, "N 2"], margin: int) -> tuple[slice, slice]:
    """Rows and columns that hold some pixels, and a margin."""
    low, high = places.min(axis=0) - margin, places.max(axis=0) + margin + 1
    return slice(max(low[0], 0), high[0]), slice(max(low[1], 0), high[1])


def enlarged(
    field: Float32[np.ndarray, "G G *C"],
    box: Float[np.ndarray, "2 2"],
    extent: Int[np.ndarray, " 2"],
) -> Float32[np.ndarray, "h w *C"]:
    """A field over a box of pixels (low and high corner) at the pixels from (0, 0) to an extent."""
    scale = len(field) / (box[1] - box[0])
    matrix = np.stack([[scale[0], 0], [0, scale[1]], -box[0] * scale - 0.5], axis=1)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = tuple(extent.tolist())
    return cv2.warpAffine(field, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def sample(
    field: Float32[np.ndarray, "G G 2"], places: Float[np.ndarray, "N 2"]
) -> Float[np.ndarray, "N 2"]:
    """A field over the unit square at some places in it."""
    maps = (places * len(field) - 0.5).astype(np.float32)[None]
    return cv2.remap(field, maps, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]


def smooth_line(line: Float[np.ndarray, "11 2"], count: int = 61) -> Float[np.ndarray, "N 2"]:
    """A line through points, by cubic Hermite splines between them."""
    steps = np.arange(len(line))
    slopes = np.gradient(line, axis=0)
    t = np.linspace(0, len(line) - 1, count)
    first = np.minimum(t.astype(int), len(line) - 2)
    u = (t - steps[first])[:, None]
    a, b = line[first], line[first + 1]
    return (
        (1 + 2 * u) * (1 - u) ** 2 * a
        + u * (1 - u) ** 2 * slopes[first]
        + u**2 * (3 - 2 * u) * b
        - u**2 * (1 - u) * slopes[first + 1]
    )


def filled(outline: Float[np.ndarray, "N 2"], shape: Sequence[int]) -> Float32[np.ndarray, "h w"]:
    """1 within a polygon of pixels, 0 outside, and between the two on its border."""
    picture = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(picture, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return picture.astype(np.float32) / 255


def disc(radius: int) -> UInt8[np.ndarray, "d d"]:
    """What `cv2.dilate` takes to go so many pixels in every direction."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def smoothstep(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """0 below 0, 1 above 1, and a smooth way between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)
