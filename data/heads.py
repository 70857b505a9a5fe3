"""Procedural talking heads: people who do not exist, drawn from numbers, whose every lip position is known.

A head is relief: a height map in a plane facing the camera, lit once, with skin, hair and clothes painted
on it at twice the picture's resolution. A frame bends that picture (jaw, cheeks, turn of the head) and
draws what cannot be bent anew: lips, the inside of the mouth, and eyes.

Coordinates of a head are in face widths (cheekbone to cheekbone), x to the picture's right, y down, z
towards the camera, the origin between the eyes.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from unavglip_jax.config import InputError
from unavglip_jax.data.motion import Pose

Colour = tuple[float, float, float]  # sRGB, 0 to 255
Image = Float[np.ndarray, "C C 3"]
Map = Float[np.ndarray, "C C"]
Points = Float[np.ndarray, "N 2"]
Window = tuple[slice, slice]

LEAST_SIZE = 32
SUPERSAMPLING = 2
MARGIN = 0.12  # of the picture's side, drawn around it for heads that move
EYE_LINE = 0.45  # of the picture's height
GRID = 192  # cells along the side of the coarse maps of depth and displacement
PIVOT = (0.0, 0.95)  # the neck, about which heads tilt
JAW_DROP = 0.112  # of the chin, from closed lips to the widest vowel
LIP_GAP = 0.165
MOUTH_DEPTH = 0.016  # upper front teeth reach so far below the seam of the closed lips

SKINS = (
    (246, 217, 200),
    (238, 198, 172),
    (226, 180, 148),
    (208, 157, 122),
    (186, 133, 98),
    (156, 106, 76),
    (124, 81, 58),
    (102, 67, 50),
    (86, 57, 45),
)
HAIR_COLOURS = (
    (28, 24, 24),
    (46, 33, 27),
    (74, 50, 36),
    (112, 76, 48),
    (150, 108, 66),
    (196, 156, 100),
    (222, 190, 138),
    (150, 72, 40),
    (104, 46, 34),
)
GREYS = ((138, 136, 134), (196, 194, 190))
IRISES = ((62, 38, 24), (94, 62, 36), (126, 96, 52), (88, 106, 74), (84, 120, 150), (110, 128, 140))

BEARDS = ("none", "stubble", "moustache", "goatee", "short", "full")
GLASSES = ("none", "round", "square", "wide")
CLOTHES = ("crew", "v", "shirt", "jacket", "hood", "turtleneck")
BACKGROUNDS = ("plain", "gradient", "vignette", "shapes", "room")


class Hair(NamedTuple):
    """A cut.

    Attributes:
      top: height above the skull.
      side: thickness beside it.
      ends: y where the hair in front of the ears ends.
      edge: the border of the hair on the forehead, x and y from the parting's side to the other, x in
        halves of the skull's width.
      back: y where the hair behind the head ends, None without.
      spread: half the width of the hair behind the head.
      curl: 0 straight to 1 curled; above .5 the strands have no direction.
      rough: how uneven the outline is.
    """

    top: float
    side: float
    ends: float
    edge: tuple[tuple[float, float], ...]
    back: float | None = None
    spread: float = 0.0
    curl: float = 0.0
    rough: float = 0.01


LINE = (
    (-0.80, -0.30),
    (-0.68, -0.46),
    (-0.3, -0.53),
    (0.0, -0.54),
    (0.3, -0.53),
    (0.68, -0.46),
    (0.80, -0.30),
)
PARTED = (
    (-0.82, -0.26),
    (-0.72, -0.44),
    (-0.45, -0.56),
    (-0.1, -0.50),
    (0.3, -0.42),
    (0.65, -0.32),
    (0.84, -0.18),
)
FRINGE = (
    (-0.84, -0.12),
    (-0.72, -0.19),
    (-0.4, -0.215),
    (0.0, -0.235),
    (0.4, -0.215),
    (0.72, -0.19),
    (0.84, -0.12),
)
CURTAINS = (
    (-0.90, 0.05),
    (-0.80, -0.22),
    (-0.45, -0.42),
    (0.0, -0.60),
    (0.45, -0.42),
    (0.80, -0.22),
    (0.90, 0.05),
)
RECEDING = (
    (-0.86, -0.24),
    (-0.80, -0.46),
    (-0.58, -0.62),
    (-0.2, -0.58),
    (0.2, -0.58),
    (0.58, -0.62),
    (0.86, -0.24),
)
CUTS = {
    "bald": None,
    "buzzed": Hair(0.012, 0.006, -0.02, LINE, rough=0.006),
    "receding": Hair(0.035, 0.02, 0.0, RECEDING, rough=0.014),
    "crew": Hair(0.06, 0.015, 0.02, LINE, rough=0.014),
    "parted": Hair(0.09, 0.025, 0.03, PARTED, rough=0.01),
    "swept back": Hair(0.12, 0.02, 0.02, LINE, rough=0.012),
    "fringe": Hair(0.08, 0.045, 0.06, FRINGE, rough=0.018),
    "curls": Hair(0.12, 0.06, 0.02, LINE, curl=0.8, rough=0.03),
    "afro": Hair(0.20, 0.17, 0.10, LINE, back=0.35, spread=0.70, curl=1.0, rough=0.02),
    "bob": Hair(0.08, 0.10, 0.58, PARTED, back=0.70, spread=0.62, rough=0.008),
    "bob with fringe": Hair(0.08, 0.10, 0.56, FRINGE, back=0.66, spread=0.62, rough=0.008),
    "long": Hair(0.07, 0.08, 1.15, CURTAINS, back=1.30, spread=0.62, rough=0.008),
    "long, parted": Hair(0.08, 0.09, 1.20, PARTED, back=1.35, spread=0.66, curl=0.25, rough=0.01),
    "waves": Hair(0.10, 0.13, 1.05, CURTAINS, back=1.20, spread=0.72, curl=0.45, rough=0.018),
    "tied back": Hair(0.045, 0.012, -0.02, CURTAINS, rough=0.005),
}
FEMININE_CUTS = (
    "bob",
    "bob with fringe",
    "long",
    "long, parted",
    "waves",
    "tied back",
    "curls",
    "afro",
    "fringe",
)
MASCULINE_CUTS = (
    "bald",
    "buzzed",
    "receding",
    "crew",
    "parted",
    "swept back",
    "fringe",
    "curls",
    "afro",
)


@dataclass(frozen=True)
class Head:
    """An identity. Lengths are in face widths, angles in radians, the rest in [0, 1] or [-1, 1].

    Attributes:
      seed: of the skin's and hair's texture.
      framing: width of the face in picture sides.
      skin: colour in full light.
      flush: redness of cheeks, nose and ears.
      texture: contrast of pores and mottling.
      freckles: how many.
      wrinkles: how deep.
      shine: of the skin.
      temple: half the width of the forehead.
      jaw: half the width at the jaw's angle.
      chin_width: half the width of the chin.
      chin: y of its lowest point.
      crown: y of the top of the skull.
      cheekbones: how much they stand out.
      eye_x: from the middle to an eye's centre.
      eye_width: half of an eye's width.
      eye_height: half of an eye's opening.
      eye_tilt: how much higher the outer corner is.
      eye_fold: from the upper lid's edge to its crease.
      iris: colour.
      lashes: how strong.
      shadow: make-up above the eyes.
      brow_y: of the middle.
      brow_thickness: at the thickest.
      brow_arch: height of the arch.
      nose: y of its base.
      nose_width: half the width at the wings.
      bridge: half the width of its bridge.
      nose_height: of its tip above the face.
      mouth: y of the closed lips' seam.
      mouth_width: half the width at rest.
      upper_lip: its thickness.
      lower_lip: its thickness.
      bow: depth of the cupid's bow.
      smile: how much the corners turn up at rest.
      lips: colour.
      gloss: of the lips.
      teeth: colour.
      tooth: width of a front tooth.
      ear: half its height.
      ear_out: how far it stands out.
      earring: colour, None without.
      cut: of `CUTS`.
      hair: colour.
      hairline: how much higher the hair begins.
      volume: factor of the hair's thickness.
      parting: side of the parting, -1 or 1.
      beard: of `BEARDS`.
      beard_colour: of it.
      beard_density: of it.
      brow_colour: of the brows.
      glasses: of `GLASSES`.
      frame: colour of the glasses.
      neck: half its width.
      clothes: of `CLOTHES`.
      cloth: colour of the clothes.
      lining: colour of what is below, and of patterns.
      stripes: how strong.
      background: of `BACKGROUNDS`.
      wall: two colours of the background.
      light_x: where the light comes from, -1 left to 1 right.
      light_y: how high.
      light: its colour.
      contrast: of light and shade.
      noise: standard deviation of the camera's noise, in grey levels.
    """

    seed: int
    framing: float
    skin: Colour
    flush: float
    texture: float
    freckles: float
    wrinkles: float
    shine: float
    temple: float
    jaw: float
    chin_width: float
    chin: float
    crown: float
    cheekbones: float
    eye_x: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    eye_fold: float
    iris: Colour
    lashes: float
    shadow: float
    brow_y: float
    brow_thickness: float
    brow_arch: float
    nose: float
    nose_width: float
    bridge: float
    nose_height: float
    mouth: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    bow: float
    smile: float
    lips: Colour
    gloss: float
    teeth: Colour
    tooth: float
    ear: float
    ear_out: float
    earring: Colour | None
    cut: str
    hair: Colour
    hairline: float
    volume: float
    parting: int
    beard: str
    beard_colour: Colour
    beard_density: float
    brow_colour: Colour
    glasses: str
    frame: Colour
    neck: float
    clothes: str
    cloth: Colour
    lining: Colour
    stripes: float
    background: str
    wall: tuple[Colour, Colour]
    light_x: float
    light_y: float
    light: Colour
    contrast: float
    noise: float


def random_head(rng: np.random.Generator) -> Head:
    """An identity drawn at random; what usually goes together in people goes together here."""
    real = lambda low, high: float(rng.uniform(low, high))
    chance = lambda share: bool(rng.random() < share)
    choice = lambda options: options[int(rng.integers(len(options)))]
    seed = int(rng.integers(2**31))
    feminine = chance(0.5)
    age = real(0, 1) ** 1.3
    tone = real(0, len(SKINS) - 1)
    low = np.array(SKINS[int(tone)])
    skin = low + (np.array(SKINS[min(int(tone) + 1, len(SKINS) - 1)]) - low) * (tone % 1)
    skin = skin * (1 + real(-0.03, 0.03) * np.array([1.0, 0.1, -1.2])) * real(0.96, 1.02)
    darkness = tone / (len(SKINS) - 1)
    colours = HAIR_COLOURS[: 3 if darkness > 0.45 else None]
    hair = np.array(choice(colours)) * real(0.85, 1.15)
    if age > 0.7 and chance(0.6):
        hair = np.array(choice(GREYS)) * real(0.9, 1.1)
    natural_hair = hair
    if chance(0.04):
        hair = random_colour(rng, 0.6)
    cut = choice(FEMININE_CUTS if feminine else MASCULINE_CUTS)
    if cut == "afro" and darkness < 0.3 and chance(0.7):
        cut = "waves" if feminine else "crew"
    beard = "none" if feminine or chance(0.42) else choice(BEARDS[1:])
    chin = real(0.75, 0.82) if feminine else real(0.79, 0.87)
    nose = real(0.31, 0.36)
    made_up = feminine and chance(0.55)
    natural = (1 - 0.12 * darkness) * skin * np.array([0.82, 0.60, 0.62]) + np.array([14, 4, 10])
    painted = np.array(
        choice(((176, 44, 58), (198, 84, 90), (150, 54, 76), (208, 110, 100), (120, 36, 48)))
    )
    lips = natural * real(0.94, 1.06)
    if made_up:
        lips = lips + (painted - lips) * real(0.3, 0.85)
    first, second = random_colour(rng, 0.3), random_colour(rng, 0.3)
    warmth = real(-1, 1)
    return Head(
        seed=seed,
        framing=real(0.42, 0.47),
        skin=colour(skin),
        flush=real(0.1, 0.8),
        texture=real(0.6, 1.3),
        freckles=real(0.3, 1) if darkness < 0.4 and chance(0.22) else 0.0,
        wrinkles=age * real(0.6, 1),
        shine=real(0.15, 0.8),
        temple=real(0.445, 0.48),
        jaw=real(0.36, 0.42) if feminine else real(0.39, 0.455),
        chin_width=real(0.12, 0.17) if feminine else real(0.15, 0.22),
        chin=chin,
        crown=-real(0.76, 0.82),
        cheekbones=real(0.2, 1),
        eye_x=real(0.218, 0.242),
        eye_width=real(0.108, 0.126),
        eye_height=real(0.040, 0.054) * (1.06 if feminine else 0.94),
        eye_tilt=real(-0.008, 0.020),
        eye_fold=real(0.012, 0.034),
        iris=colour(np.array(choice(IRISES[: 3 if darkness > 0.45 else None])) * real(0.85, 1.15)),
        lashes=real(0.5, 1) if feminine else real(0.1, 0.4),
        shadow=real(0.2, 0.6) if made_up else 0.0,
        brow_y=-real(0.155, 0.185),
        brow_thickness=real(0.026, 0.042) if feminine else real(0.036, 0.058),
        brow_arch=real(0.010, 0.035) if feminine else real(0.0, 0.022),
        nose=nose,
        nose_width=real(0.105, 0.130) + 0.02 * darkness + (0.0 if feminine else 0.008),
        bridge=real(0.040, 0.058),
        nose_height=real(0.14, 0.20),
        mouth=nose + (chin - nose) * real(0.385, 0.425),
        mouth_width=real(0.165, 0.198),
        upper_lip=real(0.036, 0.056) + 0.012 * darkness + (0.006 if feminine else -0.004),
        lower_lip=real(0.054, 0.076) + 0.014 * darkness + (0.006 if feminine else -0.004),
        bow=real(0.2, 1),
        smile=real(-0.4, 1),
        lips=colour(lips),
        gloss=real(0.4, 1) if made_up else real(0.1, 0.5),
        teeth=colour(np.array([242, 236, 222]) * real(0.9, 1.02) * [1, 1, real(0.92, 1.02)]),
        tooth=real(0.054, 0.066),
        ear=real(0.17, 0.205),
        ear_out=real(0.045, 0.085),
        earring=choice(((214, 180, 96), (206, 208, 214))) if feminine and chance(0.35) else None,
        cut=cut,
        hair=colour(hair),
        hairline=real(-0.02, 0.04),
        volume=real(0.8, 1.25),
        parting=choice((-1, 1)),
        beard=beard,
        beard_colour=colour(natural_hair * real(0.85, 1.05)),
        beard_density=real(0.4, 0.72),
        brow_colour=colour(np.minimum(hair * real(0.6, 0.9), skin * 0.62)),
        glasses=choice(GLASSES[1:]) if chance(0.24) else "none",
        frame=colour(choice(((34, 30, 32), (82, 50, 34), (140, 142, 148), (52, 58, 84)))),
        neck=real(0.25, 0.28) if feminine else real(0.30, 0.35),
        clothes=choice(CLOTHES),
        cloth=colour(first),
        lining=colour(
            np.array(choice(((236, 236, 232), (200, 214, 232), (44, 46, 54)))) * real(0.9, 1)
        ),
        stripes=real(0.3, 1) if chance(0.25) else 0.0,
        background=choice(BACKGROUNDS),
        wall=(colour(second), colour(second + (random_colour(rng, 0.3) - second) * real(0.3, 1))),
        light_x=real(-1, 1),
        light_y=real(0.3, 1),
        light=colour(255 * np.array([1 + 0.05 * warmth, 1.0, 1 - 0.06 * warmth])),
        contrast=real(0.6, 1),
        noise=real(0.6, 2.4),
    )


def random_colour(rng: np.random.Generator, saturation: float) -> Float[np.ndarray, " 3"]:
    """Any hue, greyer on average where `saturation` is small."""
    hue = np.cos(2 * np.pi * (rng.random() + np.arange(3) / 3))
    return np.clip(rng.uniform(45, 205) * (1 + saturation * rng.uniform(0.1, 1.2) * hue), 12, 245)


def colour(values) -> Colour:
    """A colour as plain, hashable numbers."""
    return tuple(float(round(v, 2)) for v in np.clip(values, 0, 255))


# Drawing


class Canvas(NamedTuple):
    """A square of pixels over a head's plane.

    Attributes:
      side: pixels.
      scale: pixels a face width.
      left: x of the first column's middle.
      top: y of the first row's middle.
    """

    side: int
    scale: float
    left: float
    top: float

    @property
    def x(self) -> Float[np.ndarray, "1 C"]:
        """Of each column."""
        return (self.left + np.arange(self.side, dtype=np.float32) / self.scale)[None]

    @property
    def y(self) -> Float[np.ndarray, "C 1"]:
        """Of each row."""
        return (self.top + np.arange(self.side, dtype=np.float32) / self.scale)[:, None]

    def pixels(self, points: Float[np.ndarray, "*N 2"]) -> Float[np.ndarray, "*N 2"]:
        """Of points in face widths."""
        return (np.asarray(points, np.float64) - (self.left, self.top)) * self.scale

    def bump(self, x: float, y: float, across: float, down: float) -> Map:
        """A Gaussian with its two standard deviations times the root of two."""
        return np.exp(-(((self.x - x) / across) ** 2)) * np.exp(-(((self.y - y) / down) ** 2))

    def pair(self, x: float, y: float, across: float, down: float) -> Map:
        """A bump and its mirror image."""
        rows = np.exp(-(((self.x - x) / across) ** 2)) + np.exp(-(((self.x + x) / across) ** 2))
        return rows * np.exp(-(((self.y - y) / down) ** 2))

    def blur(self, image: np.ndarray, radius: float) -> np.ndarray:
        """A Gaussian blur; wide ones are computed on a smaller copy."""
        sigma = radius * self.scale
        if sigma < 0.3:
            return image
        shrink = int(sigma // 4)
        if shrink < 2:
            return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        size = max(8, self.side // shrink)
        small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(
            small, (0, 0), sigma * size / self.side, borderType=cv2.BORDER_REPLICATE
        )
        return cv2.resize(small, (self.side, self.side), interpolation=cv2.INTER_LINEAR)

    def mask(self, points: Points, blur: float = 0.0) -> Map:
        """The inside of a polygon, in [0, 1]."""
        found = np.zeros((self.side, self.side), np.float32)
        part, window = self.part(points, blur)
        found[window] = part
        return found

    def part(self, points: Points, blur: float = 0.0) -> tuple[np.ndarray, Window]:
        """The inside of a polygon, in [0, 1], in the window that holds it."""
        points = self.pixels(points)
        pad = int(3 * blur * self.scale) + 3
        low = np.clip(np.floor(points.min(0)).astype(int) - pad, 0, self.side - 1)
        high = np.clip(np.ceil(points.max(0)).astype(int) + pad, low + 1, self.side)
        part = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.fillPoly(part, [np.round((points - low) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        part = part.astype(np.float32) / 255
        if blur * self.scale > 0.3:
            part = cv2.GaussianBlur(part, (0, 0), blur * self.scale)
        return part, (slice(low[1], high[1]), slice(low[0], high[0]))

    def paint(
        self,
        image: Image,
        points: Points,
        ink,
        opacity: float = 1.0,
        blur: float = 0.0,
        clip: Map | None = None,
    ) -> None:
        """A polygon painted on an image, in a colour or with another image's pixels."""
        part, window = self.part(points, blur)
        part *= opacity
        if clip is not None:
            part *= clip[window]
        ink = np.asarray(ink, np.float32)
        lay(image[window], part, ink[window] if ink.ndim == 3 else ink)

    def lines(self, curves: list[Points], width: float, blur: float = 0.0) -> Map:
        """Thin curves, in [0, 1]; narrower than a pixel they become fainter."""
        drawn = np.zeros((self.side, self.side), np.uint8)
        pixels = width * self.scale
        strength = int(255 * min(1.0, pixels))
        paths = [np.round(self.pixels(c) * 16).astype(np.int32) for c in curves]
        cv2.polylines(drawn, paths, False, strength, max(1, round(pixels)), cv2.LINE_AA, 4)
        return self.blur(drawn.astype(np.float32) / 255, blur)


def lay(image: np.ndarray, mask: np.ndarray, ink) -> None:
    """Paint over an image in place."""
    image += mask[..., None] * (ink - image)


def step(low: float, high: float, values):
    """From 0 at `low` to 1 at `high`, smoothly."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def spline(points, closed: bool = False, count: int = 12) -> Points:
    """A Catmull-Rom curve through points, `count` steps between two."""
    points = np.asarray(points, np.float64)
    near = np.pad(points, ((1, 2), (0, 0)), mode="wrap" if closed else "edge")
    if not closed:
        near = near[:-1]
    a, b, c, d = near[:-3, None], near[1:-2, None], near[2:-1, None], near[3:, None]
    u = np.linspace(0, 1, count, endpoint=False)[None, :, None]
    curve = 0.5 * (
        2 * b + (c - a) * u + (2 * a - 5 * b + 4 * c - d) * u**2 + (3 * b - a - 3 * c + d) * u**3
    )
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])


def mirrored(right) -> Points:
    """A closed outline from its right half, given from top to bottom."""
    right = np.asarray(right, np.float64)
    left = right[::-1] * (-1, 1)
    return spline(np.concatenate([right, left[np.abs(left[:, 0]) > 1e-9]]), closed=True)


def ellipse(x: float, y: float, across: float, down: float, turn: float = 0.0) -> Points:
    """The outline of an ellipse."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    points = np.stack([across * np.cos(angle), down * np.sin(angle)], axis=1)
    turn = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return points @ turn + (x, y)


# The plane of the head


def canvas_of(head: Head, size: int) -> Canvas:
    """The canvas for pictures of a size."""
    margin = int(np.ceil(MARGIN * size)) * SUPERSAMPLING
    scale = head.framing * size * SUPERSAMPLING
    half = size * SUPERSAMPLING / 2 - 0.5 + margin
    top = (size * EYE_LINE) * SUPERSAMPLING - 0.5 + margin
    return Canvas(size * SUPERSAMPLING + 2 * margin, scale, -half / scale, -top / scale)


def outline(head: Head) -> Points:
    """The edge of skull and face."""
    return mirrored(
        [
            (0.0, head.crown),
            (0.24, head.crown + 0.065),
            (head.temple * 0.90, -0.50),
            (head.temple, -0.28),
            (0.488, -0.05),
            (0.488, 0.16),
            ((head.jaw + 0.48) / 2 + 0.012, 0.38),
            (head.jaw * 0.93, 0.36 + 0.26 * head.chin),
            ((head.jaw * 0.93 + head.chin_width) / 2 + 0.018, head.chin - 0.105),
            (head.chin_width, head.chin - 0.030),
            (0.0, head.chin),
        ]
    )


def half_width(head: Head, y: np.ndarray) -> np.ndarray:
    """Of skull and face at heights y, zero above and below."""
    edge = outline(head)
    right = edge[: int(edge[:, 1].argmax()) + 1]
    return np.interp(y, right[:, 1], right[:, 0], left=0.0, right=0.0)


def brow(head: Head, side: int) -> tuple[Points, Points]:
    """The upper and lower edge of a brow, from the nose outwards."""
    u = np.linspace(0, 1, 12)
    x = side * (head.eye_x - 0.125 + 0.275 * u)
    middle = head.brow_y + 0.012 - (0.012 + head.brow_arch) * np.sin(np.pi * u**1.2) + 0.022 * u**3
    half = head.brow_thickness / 2 * np.interp(u, [0, 0.12, 0.45, 1], [0.75, 1, 0.9, 0.12])
    return np.stack([x, middle - half], axis=1), np.stack([x, middle + half], axis=1)


def lids(head: Head, side: int, blink: float, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y of an eye's upper and lower lid, at u from -1 (inner corner) to 1."""
    inside = np.clip(1 - u**2, 0, None)
    base = 0.004 - head.eye_tilt * u
    upper = base - 1.18 * head.eye_height * inside**0.62 * (1 - 0.08 * u)
    lower = base + 0.70 * head.eye_height * inside**0.75 * (1 + 0.15 * u)
    shut = base + 0.55 * head.eye_height * inside
    return upper + (shut - upper) * blink, lower + (shut - lower) * blink


class Lips(NamedTuple):
    """The mouth's outlines for some mouth values.

    Attributes:
      half: half the width.
      middle: y of the corners.
      raised: how far the upper lip's middle is above the closed seam.
      gap: between the lips, in the middle.
      drop: of the chin.
      upper: thickness of the upper lip.
      lower: thickness of the lower lip.
      smile: how much the corners turn up.
      rounding: from rest to 1.
    """

    half: float
    middle: float
    raised: float
    gap: float
    drop: float
    upper: float
    lower: float
    smile: float
    rounding: float


def lips_of(head: Head, mouth: Float[np.ndarray, "5"]) -> Lips:
    """Where the lips are."""
    opening, wide, rounding, press, tuck = (float(v) for v in mouth)
    free = opening * (1.8 - 0.8 * opening)  # the first little opening is seen most
    free = free * (1 - 0.85 * press) * (1 - 0.45 * tuck) * (1 - 0.18 * rounding)
    raised = 0.016 * opening * (1 - press) + 0.007 * wide * (1 - press) * (1 - rounding)
    raised = raised * (opening > 0) + 0.018 * tuck * (1 - press)
    gap = LIP_GAP * free + 0.030 * tuck * (1 - press)
    half = head.mouth_width * (1 + 0.24 * wide - 0.36 * rounding - 0.06 * free + 0.02 * press)
    thin = (1 - 0.50 * press) * (1 - 0.14 * wide) * (1 - 0.10 * free) * (1 + 0.16 * rounding)
    return Lips(
        half=half,
        middle=head.mouth + 0.30 * LIP_GAP * free - 0.012 * wide,
        raised=raised,
        gap=gap,
        drop=JAW_DROP * free - 0.010 * tuck - 0.006 * press,
        upper=head.upper_lip * thin * (1 - 0.12 * tuck),
        lower=head.lower_lip * thin * (1 - 0.45 * tuck),
        smile=0.010 * head.smile + 0.012 * wide,
        rounding=rounding,
    )


def curves(head: Head, lips: Lips, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """y of the upper lip's outer and inner and the lower lip's inner and outer edge, at x / half."""
    side = np.clip(np.abs(x), 0, 1)
    # the closed seam: a tubercle in the middle, corners up or down
    seam = 0.006 * np.exp(-((x / 0.24) ** 2)) - 0.003 * np.exp(-(((side - 0.45) / 0.2) ** 2))
    seam = seam * (1 - lips.rounding) - (lips.smile + 0.004) * side**2 * 0.8
    inner = np.clip(side / 0.96, 0, 1)
    flat, deep = (1 - inner**2.4) ** 0.75, (1 - inner**2) ** 0.65
    oval = (1 - inner**2) ** 0.6
    flat, deep = (p + (oval - p) * lips.rounding for p in (flat, deep))
    above = lips.middle + seam + (head.mouth - lips.raised - lips.middle) * flat
    below = above + lips.gap * deep
    bow = 0.35 * head.bow * lips.upper * (1 - 0.6 * lips.rounding)
    peaks = np.exp(-(((side - 0.24) / 0.16) ** 2)) - np.exp(-((x / 0.13) ** 2)) * 0.9
    body = (1 - side**1.5) ** 0.85
    top = above - lips.upper * body - bow * peaks * (1 - side)
    bottom = below + lips.lower * (1 - side**2.2) ** 0.8
    return top, above, below, bottom


# What does not change from frame to frame


class Look(NamedTuple):
    """A head prepared for pictures of a size.

    Attributes:
      canvas: of the layers.
      background: as large as the picture.
      back: body and the hair behind the head; RGB times alpha, and alpha.
      face: skin, ears and beard.
      front: hair and glasses before the face.
      depth: z on a coarse grid over the canvas.
      moves: how the face is displaced by `mouth_moves` and by the brows, on that grid.
      grain: texture for lips and teeth.
    """

    canvas: Canvas
    background: UInt8[np.ndarray, "P P 3"]
    back: UInt8[np.ndarray, "C C 4"]
    face: UInt8[np.ndarray, "C C 4"]
    front: UInt8[np.ndarray, "C C 4"]
    depth: Float[np.ndarray, "G G"]
    moves: Float[np.ndarray, "M G G 2"]
    grain: Map


@functools.lru_cache(maxsize=6)
def prepare(head: Head, size: int) -> Look:
    """Everything of a head that can be drawn once."""
    canvas = canvas_of(head, size)
    rng = np.random.default_rng(head.seed)
    white = rng.standard_normal((512, 512), np.float32)
    noise = Noise(white, canvas.side)
    front, hidden = draw_hair(head, canvas, noise)
    return Look(
        canvas=canvas,
        background=draw_background(head, size, rng),
        back=draw_back(head, canvas, noise),
        face=draw_face(head, canvas, noise, hidden, rng),
        front=front,
        depth=depth_of(head, canvas),
        moves=moves_of(head, canvas),
        grain=noise.smooth(0.7),
    )


class Noise(NamedTuple):
    """White noise that looks the same at every size.

    Attributes:
      white: 512 x 512 normal values.
      side: of the canvas.
    """

    white: Float[np.ndarray, "512 512"]
    side: int

    def smooth(self, across: float, down: float | None = None) -> Map:
        """Blurred by so many 512ths of the canvas, with deviation 1."""
        blurred = cv2.GaussianBlur(self.white, (0, 0), across, sigmaY=down or across)
        blurred /= blurred.std()
        return cv2.resize(blurred, (self.side, self.side), interpolation=cv2.INTER_LINEAR)

    def along(self, across: np.ndarray, down: np.ndarray, stretch: float) -> np.ndarray:
        """Noise stretched along `down`, at coordinates in cells."""
        strands = cv2.GaussianBlur(self.white, (0, 0), 0.6, sigmaY=stretch)
        strands /= strands.std()
        columns = np.mod(across, 511).astype(np.float32)
        rows = np.mod(down, 511).astype(np.float32)
        return cv2.remap(strands, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def light_on(head: Head, canvas: Canvas, height: Map, softness: float = 0.0) -> Image:
    """How a relief is lit, about 1 where it faces the camera, per colour channel."""
    height = canvas.blur(height.astype(np.float32), softness) * canvas.scale
    across = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    down = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    length = np.sqrt(1 + across**2 + down**2)
    light = np.array([0.75 * head.light_x, -0.35 - 0.45 * head.light_y, 1.0])
    light /= np.linalg.norm(light)
    lit = (light[2] - across * light[0] - down * light[1]) / length
    lit = np.clip((lit + 0.35) / 1.35, 0, None) / ((light[2] + 0.35) / 1.35)
    fill = np.clip((1 + across * 0.6 * np.sign(head.light_x)) / length, 0, 1)
    lit = 1 + head.contrast * 0.85 * (lit * 0.82 + fill * 0.18 - 1)
    lit = np.clip(np.where(lit < 0.62, 0.66 - 0.68 * (0.66 - lit), lit), 0.2, 1.6)
    # light that went through skin is redder: shade is warm
    return np.stack([lit, lit**1.10, lit**1.16], axis=-1) * (np.array(head.light, np.float32) / 255)


def relief(head: Head, canvas: Canvas) -> Map:
    """The height of skull and face, without hair."""
    y = canvas.y
    width = half_width(head, y) + 1e-3
    profile = np.interp(
        y,
        [
            head.crown,
            -0.68,
            -0.5,
            -0.3,
            -0.1,
            0.1,
            0.3,
            0.5,
            head.chin - 0.1,
            head.chin - 0.03,
            head.chin + 0.02,
        ],
        [0.0, 0.25, 0.37, 0.435, 0.44, 0.45, 0.46, 0.47, 0.455, 0.40, 0.22],
    )
    across = np.clip(1 - np.abs(canvas.x / width) ** 2.3, 0, 1) ** 0.55
    return canvas.blur((profile * across).astype(np.float32), 0.028)


def features(head: Head, canvas: Canvas) -> Map:
    """What stands out of the face and what lies deeper."""
    bump, pair = canvas.bump, canvas.pair
    eye, nose, mouth, chin = head.eye_x, head.nose, head.mouth, head.chin
    z = -0.070 * pair(eye - 0.01, -0.005, 0.125, 0.085) + 0.016 * pair(eye, 0.0, 0.085, 0.06)
    z += 0.022 * pair(0.17, head.brow_y + 0.01, 0.17, 0.055)  # brow ridges
    z += 0.030 * head.cheekbones * pair(0.32, 0.18, 0.14, 0.10)
    z += 0.018 * pair(0.20, 0.30, 0.13, 0.12)
    z -= 0.020 * (0.4 + head.cheekbones) * pair(0.36, 0.42, 0.09, 0.15)
    # the nose: a ridge that widens and rises to the tip, a ball, two wings
    along = np.clip((canvas.y + 0.10) / (nose - 0.02), 0, None)
    ridge = (
        np.interp(
            canvas.y,
            [-0.14, 0.0, nose - 0.10, nose - 0.03, nose + 0.005, nose + 0.03],
            [0.0, 0.28, 0.80, 0.72, 0.2, 0.0],
        )
        * head.nose_height
        * 0.62
    )
    width = head.bridge * (0.75 + 0.5 * np.clip(along, 0, 1) ** 2)
    z += canvas.blur(
        (ridge * np.exp(-((np.abs(canvas.x) / width) ** 2.0))).astype(np.float32), 0.019
    )
    z += 0.042 * bump(0, nose - 0.052, head.nose_width * 0.52, 0.048)
    z += 0.050 * pair(head.nose_width * 0.72, nose - 0.035, head.nose_width * 0.34, 0.040)
    # the muzzle, the groove below the nose, the dent below the lip, the chin's ball
    z += 0.030 * bump(0, mouth, 0.20, 0.11)
    z -= 0.008 * bump(0, (nose + mouth - head.upper_lip) / 2, 0.022, 0.05)
    z += 0.005 * pair(0.032, (nose + mouth - head.upper_lip) / 2, 0.020, 0.05)
    z -= 0.024 * bump(0, mouth + head.lower_lip + 0.035, 0.13, 0.032)
    z += 0.034 * bump(0, chin - 0.085, 0.12, 0.075)
    return z.astype(np.float32)


def grooves(head: Head, canvas: Canvas) -> Map:
    """Folds and wrinkles, as depth."""
    age, nose, mouth = head.wrinkles, head.nose, head.mouth
    wing = head.nose_width
    fold, fine, wings, crease = [], [], [], []
    for side in (-1, 1):
        laugh = [
            (wing + 0.008, nose - 0.05),
            (wing + 0.055, nose + 0.045),
            (head.mouth_width + 0.045, mouth - 0.045),
            (head.mouth_width + 0.058, mouth + 0.03),
        ]
        fold.append(spline(laugh) * (side, 1))
        wings.append(
            spline(
                [
                    (wing * 0.78, nose - 0.085),
                    (wing + 0.006, nose - 0.055),
                    (wing + 0.004, nose - 0.015),
                    (wing * 0.80, nose + 0.004),
                ]
            )
            * (side, 1)
        )
        u = np.linspace(-0.95, 1.0, 20)
        upper, lower = lids(head, side, 0.0, u)
        x = side * (head.eye_x + u * head.eye_width)
        crease.append(np.stack([x, upper - head.eye_fold * (1 - 0.35 * np.abs(u) ** 3)], axis=1))
        bag = lower + 0.035 + 0.012 * (1 - u**2)
        fine.append(np.stack([x, bag], axis=1)[2:-4])
        for k in range(3):
            start = (head.eye_x + head.eye_width + 0.025, -0.02 + 0.025 * k)
            fine.append(
                spline([start, (start[0] + 0.05, start[1] - 0.018 + 0.018 * k)]) * (side, 1)
            )
        fine.append(spline([(0.028, head.brow_y - 0.02), (0.022, head.brow_y + 0.06)]) * (side, 1))
    x = np.linspace(-0.27, 0.27, 20)
    rows = [np.stack([x, -0.30 - 0.075 * k - 0.014 * np.cos(x * 9)], axis=1) for k in range(3)]
    z = (0.0035 + 0.011 * age) * canvas.lines(fold, 0.016, 0.014)
    z += 0.010 * canvas.lines(wings, 0.010, 0.007)
    z += 0.0075 * canvas.lines(crease, 0.007, 0.005)
    z += 0.0065 * age * canvas.lines(fine, 0.007, 0.006)
    z += 0.0055 * age * canvas.lines(rows, 0.008, 0.008)
    return z


def draw_face(
    head: Head, canvas: Canvas, noise: Noise, hidden: Map, rng: np.random.Generator
) -> UInt8[np.ndarray, "C C 4"]:
    """Skin, ears, brows, nostrils and beard, without lips and eyes."""
    skin = np.array(head.skin, np.float32)
    edge = outline(head)
    face = canvas.mask(edge)
    image, alpha = draw_ears(head, canvas, face)
    height = relief(head, canvas) + features(head, canvas) - grooves(head, canvas)
    pores = noise.smooth(0.8) - noise.smooth(1.6) * 0.5
    height += (0.00030 * head.texture) * pores
    lit = light_on(head, canvas, height, 0.006)
    # hollows receive less light from around
    lit *= 1 - np.clip((canvas.blur(height, 0.045) - height) * 3.4, -0.05, 0.24)[..., None]
    tone = (
        skin
        * (1 + head.texture * (0.016 * noise.smooth(9) + 0.012 * noise.smooth(3) + 0.010 * pores))[
            ..., None
        ]
    )
    flush = canvas.pair(0.27, 0.25, 0.13, 0.10) + 0.8 * canvas.bump(0, head.nose - 0.06, 0.08, 0.06)
    flush += 0.5 * canvas.bump(0, head.chin - 0.06, 0.1, 0.06)
    tone = tone * (
        1 - (0.16 * head.flush * flush)[..., None] * np.array([0.0, 0.75, 0.6], np.float32)
    )
    around = canvas.pair(head.eye_x, 0.035, 0.12, 0.055)
    tone = tone * (1 - (0.10 * around)[..., None] * np.array([0.6, 0.9, 0.7], np.float32))
    if head.shadow:
        above = canvas.pair(head.eye_x + 0.01, -0.06, 0.115, 0.036)[..., None] * 0.6 * head.shadow
        tone = tone * (1 - above) + above * (np.array(head.lips) * 0.5 + skin * 0.18)
    if head.freckles:
        draw_freckles(head, canvas, tone, rng)
    draw_beard(head, canvas, noise, tone)
    picture = tone * lit
    # sheen on forehead, nose and cheeks
    bright = np.clip(lit[..., 1] - 1.02, 0, None) * (1 + 0.25 * pores)
    spots = 0.25 * canvas.bump(-0.01 + 0.02 * head.light_x, head.nose - 0.065, 0.028, 0.032)
    spots += 0.10 * canvas.bump(0.012 * head.light_x, 0.1, 0.016, 0.14) * 0.8
    picture += (
        (bright * 0.6 + spots * 0.30) * head.shine * 120 * (0.35 + 0.65 * skin.mean() / 200)
    )[..., None]
    # soft shadows: of hair, nose and lower lip
    shade = 0.42 * canvas.blur(hidden, 0.035) * step(-0.9, -0.2, canvas.y)
    below = ellipse(-0.03 * head.light_x, head.nose + 0.028, head.nose_width * 0.85, 0.024)
    shade += 0.26 * canvas.mask(below, 0.018)
    shade += 0.10 * canvas.mask(ellipse(0, head.mouth + head.lower_lip + 0.02, 0.10, 0.012), 0.014)
    picture *= 1 - np.clip(shade, 0, 0.6)[..., None] * np.array([0.85, 1.0, 1.05], np.float32)
    draw_nostrils(head, canvas, picture)
    draw_brows(head, canvas, picture, rng)
    lay(image, face, picture)
    alpha = np.maximum(alpha, face)
    return layer(canvas, image, whiskers(head, canvas, noise, image, alpha))


def draw_ears(head: Head, canvas: Canvas, face: Map) -> tuple[Image, Map]:
    """Both ears, alone; and where they are."""
    skin = np.array(head.skin, np.float32)
    image = np.empty((canvas.side, canvas.side, 3), np.float32)
    image[:] = skin * 0.8
    alpha = np.zeros((canvas.side, canvas.side), np.float32)
    low = 0.10 + head.ear
    for side in (-1, 1):
        out = 0.47 + head.ear_out
        shape = spline(
            [
                (0.45, 0.10 - head.ear * 0.75),
                (out - 0.01, 0.08 - head.ear),
                (out + 0.022, 0.10 - head.ear * 0.55),
                (out + 0.005, 0.12),
                (0.50, low),
                (0.45, low - 0.03),
            ],
            closed=True,
        ) * (side, 1)
        lit = 0.92 + 0.22 * head.contrast * head.light_x * side
        red = np.array([1.0, 0.93 - 0.06 * head.flush, 0.92 - 0.06 * head.flush])
        canvas.paint(image, shape, skin * red * lit, 1.0, 0.004)
        part, window = canvas.part(shape, 0.0015)
        alpha[window] = np.maximum(alpha[window], part)
        hollow = spline(
            [
                (0.47, 0.06),
                (out - 0.028, 0.10 - head.ear * 0.72),
                (out - 0.012, 0.08),
                (0.50, 0.17),
            ],
            closed=True,
        ) * (side, 1)
        canvas.paint(image, hollow, skin * red * 0.60 * lit, 0.75, 0.013)
        ring = spline(
            [(0.475, 0.09), (out - 0.02, 0.04), (out - 0.025, 0.13), (0.49, 0.16)], closed=True
        )
        canvas.paint(image, ring * (side, 1), skin * red * 0.85 * lit, 0.7, 0.010)
    image *= 1 - 0.45 * canvas.blur(face, 0.02)[..., None]
    if head.earring:
        for side in (-1, 1):
            x, y = side * (0.49 + 0.5 * head.ear_out), low - 0.012
            canvas.paint(image, ellipse(x, y, 0.017, 0.017), np.array(head.earring) * 0.75)
            canvas.paint(
                image,
                ellipse(x - 0.004, y - 0.005, 0.007, 0.007),
                np.array(head.earring) * 1.15,
                1,
                0.003,
            )
            part, window = canvas.part(ellipse(x, y, 0.017, 0.017))
            alpha[window] = np.maximum(alpha[window], part)
    return image, alpha


def draw_freckles(head: Head, canvas: Canvas, tone: Image, rng: np.random.Generator) -> None:
    """Spots on nose and cheeks."""
    count = int(40 + 150 * head.freckles)
    where = np.stack([rng.normal(0, 0.20, count), rng.normal(0.2, 0.09, count)], axis=1)
    for (x, y), size in zip(where, rng.uniform(0.003, 0.0075, count), strict=True):
        canvas.paint(
            tone,
            ellipse(x, y, size, size * 0.85),
            np.array(head.skin) * (0.78, 0.66, 0.58),
            0.5,
            0.002,
        )


def draw_nostrils(head: Head, canvas: Canvas, picture: Image) -> None:
    """The two openings and the shade in the wings' folds."""
    dark = np.array(head.skin) * (0.34, 0.22, 0.20)
    for side in (-1, 1):
        x = head.nose_width * 0.50
        shape = spline(
            [
                (x - 0.030, head.nose - 0.002),
                (x, head.nose - 0.017),
                (x + 0.030, head.nose - 0.006),
                (x + 0.014, head.nose + 0.006),
                (x - 0.016, head.nose + 0.008),
            ],
            closed=True,
        )
        canvas.paint(picture, shape * (side, 1), dark, 0.50, 0.009)
        canvas.paint(picture, shape * (side, 1), dark, 0.75, 0.0035)


def draw_brows(head: Head, canvas: Canvas, picture: Image, rng: np.random.Generator) -> None:
    """Hairs over a soft shape."""
    ink = np.array(head.brow_colour, np.float32)
    for side in (-1, 1):
        upper, lower = brow(head, side)
        canvas.paint(picture, np.concatenate([upper, lower[::-1]]), ink, 0.52, 0.008)
        u, v, length = rng.random(170), rng.random(170), rng.uniform(0.7, 1.3, 170)
        along, index = u * (len(upper) - 1), np.arange(len(upper))
        low, high = (
            np.stack([np.interp(along, index, curve[:, k]) for k in (0, 1)], axis=1)
            for curve in (lower, upper)
        )
        roots = low + (high - low) * (0.8 * v)[:, None]
        lean = np.stack([side * (0.35 + 0.9 * u), -(1 - 1.1 * u) * (1 - v) + 0.25 * v], axis=1)
        tips = roots + lean * (0.9 * head.brow_thickness * length)[:, None]
        bent = (roots + tips) / 2 - (side * 0.002, 0.002)
        hairs = list(np.stack([roots, bent, tips], axis=1))
        lay(picture, canvas.lines(hairs, 0.0045) * 0.75, ink * 0.9)


def beard_shape(head: Head, canvas: Canvas) -> tuple[Map, float]:
    """Where hair grows in the face, in [0, 1], and how far it stands off the chin."""
    mouth, chin, nose = head.mouth, head.chin, head.nose
    wide, zero = head.mouth_width, np.zeros((canvas.side, canvas.side), np.float32)
    moustache = mirrored(
        [
            (0.0, nose + 0.035),
            (0.05, nose + 0.030),
            (wide * 0.75, mouth - 0.055),
            (wide + 0.025, mouth - 0.005),
            (wide + 0.01, mouth + 0.03),
            (wide * 0.6, mouth),
            (0.0, mouth),
        ]
    )
    goatee = mirrored(
        [
            (0.0, mouth),
            (wide * 0.6, mouth),
            (wide, mouth - 0.01),
            (wide + 0.030, mouth + 0.02),
            (wide + 0.005, chin - 0.12),
            (0.13, chin - 0.02),
            (0.07, chin + 0.03),
            (0.0, chin + 0.04),
        ]
    )
    whole = mirrored(
        [
            (0.0, mouth - 0.02),
            (wide + 0.02, mouth - 0.03),
            (0.30, 0.40),
            (0.40, 0.26),
            (0.455, 0.05),
            (0.50, 0.0),
            (0.54, 0.3),
            (0.50, 0.6),
            (0.3, chin + 0.05),
            (0.0, chin + 0.10),
        ]
    )
    upper, lower, jaw = (canvas.mask(m, 0.012) for m in (moustache, goatee, whole))
    if head.beard == "moustache":
        return 0.85 * upper, 0.0
    if head.beard == "goatee":
        return 0.8 * np.maximum(upper, lower), 0.02
    if head.beard == "stubble":
        return np.maximum(upper, canvas.blur(jaw, 0.03)) * 0.55, 0.0
    if head.beard == "short":
        return np.maximum(upper, jaw), 0.012
    if head.beard == "full":
        return np.maximum(upper, jaw), 0.075
    return zero, 0.0


def strands(canvas: Canvas, noise: Noise) -> Map:
    """Short hairs that grow away from the middle of the upper lip, downwards."""
    x, down = canvas.x, canvas.y
    lean = np.arctan2(x, 0.9 - 0.35 * down + 0.03 * noise.smooth(10))
    return noise.along(lean * 420 + 256, down * 300 + np.abs(x) * 60 + 300, 4.0)


def draw_beard(head: Head, canvas: Canvas, noise: Noise, tone: Image) -> None:
    """Hair on the skin, as albedo."""
    if head.beard == "none":
        return
    where, off = beard_shape(head, canvas)
    # sparser around the lips
    where = where * (1 - 0.75 * canvas.bump(0, head.mouth + 0.02, head.mouth_width * 1.15, 0.11))
    fibre = strands(canvas, noise)
    ink = np.array(head.beard_colour, np.float32)
    if head.beard == "stubble":
        dots = step(0.2, 1.4, noise.smooth(0.8))
        lay(
            tone,
            where * (0.30 + 0.55 * dots) * head.beard_density,
            ink * 0.8 + np.array(head.skin) * 0.12,
        )
        return
    if off > 0.015:  # longer ones are denser towards the jaw, where they stand off
        jaw = step(head.chin - 0.24, head.chin - 0.02, canvas.y + 0.5 * np.abs(canvas.x))
        where = where * (1 + (0.85 / head.beard_density - 1.3) / 1.3 * jaw)
    dense = where * 1.3 * head.beard_density
    cover = np.clip(dense + 0.16 * fibre * where * (1.2 - where), 0, 0.95)
    clumps = noise.smooth(5, 9)
    shades = (
        ink * (0.90 + 0.15 * fibre + 0.10 * clumps)[..., None]
        + 4 * np.clip(fibre, 0, None)[..., None]
    )
    lay(tone, cover, shades)


def whiskers(head: Head, canvas: Canvas, noise: Noise, image: Image, alpha: Map) -> Map:
    """The part of a beard that stands off the jaw, painted on; the new edge of the layer."""
    _, off = beard_shape(head, canvas)
    if not off:
        return alpha
    edge = outline(head)
    lower = edge[edge[:, 1] > 0.12]
    order = np.argsort(np.arctan2(lower[:, 0], lower[:, 1] - 0.1))
    lower = lower[order]
    narrow = head.beard == "goatee"
    if narrow:
        lower = lower[np.abs(lower[:, 0]) < 0.13]
    reach = off * step(0.1, head.chin, lower[:, 1])[:, None]
    grown = lower + reach * np.stack([lower[:, 0] * 0.9, np.full(len(lower), 1.0)], axis=1)
    shape = np.concatenate([grown, [(-0.2, 0.4), (0.2, 0.4)]]) if narrow else grown
    fibre = strands(canvas, noise)
    beyond = canvas.blur(canvas.mask(shape), 0.008)
    beyond = step(0.25, 0.75, beyond + 0.16 * fibre * (beyond > 0.02))
    ink = np.array(head.beard_colour, np.float32) * (0.70 + 0.20 * fibre)[..., None]
    fade = 1 - 0.45 * step(head.chin - 0.05, head.chin + 0.12, canvas.y)
    ink = (
        ink
        * fade[..., None]
        * (1 + 0.25 * head.light_x * head.contrast * canvas.x / 0.4)[..., None]
    )
    over = beyond * step(
        0.06, 0.6, canvas.blur(1 - alpha, 0.028)
    )  # blends into the beard on the jaw
    lay(image, over, ink)
    return np.maximum(alpha, beyond * np.clip(head.beard_density * 1.7, 0, 1))


def layer(canvas: Canvas, image: Image, alpha: Map) -> UInt8[np.ndarray, "C C 4"]:
    """RGB times alpha and alpha, blurred as much as sampling every second pixel needs."""
    found = np.empty((*alpha.shape, 4), np.float32)
    found[..., :3] = np.clip(image, 0, 255) * alpha[..., None]
    found[..., 3] = alpha * 255
    return np.round(cv2.GaussianBlur(found, (0, 0), 0.55)).astype(np.uint8)


def draw_hair(head: Head, canvas: Canvas, noise: Noise) -> tuple[UInt8[np.ndarray, "C C 4"], Map]:
    """Hair and glasses before the face; and where the hair is, which shades the skin."""
    image = np.zeros((canvas.side, canvas.side, 3), np.float32)
    alpha = np.zeros((canvas.side, canvas.side), np.float32)
    cut = CUTS[head.cut]
    if cut:
        mask = rough(canvas.mask(front_shape(head, cut)), cut, canvas, noise)
        image = hair_picture(head, cut, canvas, noise, mask)
        alpha = mask * (0.86 if cut.top < 0.02 else 1)
    hidden = alpha.copy()
    if head.glasses != "none":
        alpha = draw_glasses(head, canvas, image, alpha)
    return layer(canvas, image, alpha), hidden


def front_shape(head: Head, cut: Hair) -> Points:
    """The outline of the hair before the head."""
    top, side = cut.top * head.volume, cut.side * head.volume
    angle = np.linspace(-1, 1, 17) * np.pi / 2
    across, up = head.temple + 0.025 + side, -head.crown - 0.25 + top
    crown = np.stack([across * np.sin(angle), -0.25 - up * np.cos(angle) ** 0.85], axis=1)
    edge = np.array(cut.edge) * (head.temple + 0.02, 1)
    if head.parting < 0:
        edge = edge[::-1] * (-1, 1)
    edge[:, 1] -= head.hairline * (np.abs(edge[:, 1]) > 0.3)
    low = cut.ends
    outer, inner = 0.49 + side, 0.455
    right, left = [], []
    if low > 0.3:
        right = [
            (outer + 0.01, 0.1),
            (outer + 0.03, low * 0.6),
            (outer - 0.01, low),
            (inner + 0.02, low),
            (inner - 0.02, low * 0.55),
            (inner - 0.01, 0.15),
        ]
    else:
        right = [(0.492 + side, -0.1), (0.485, low), (0.462, low + 0.01)]
    left = [(-x, y) for x, y in right[::-1]]
    return spline(np.concatenate([crown, right, edge[::-1], left]), closed=True)


def rough(mask: Map, cut: Hair, canvas: Canvas, noise: Noise) -> Map:
    """A mask with strands at its edge."""
    soft = canvas.blur(mask, 0.012 + cut.rough * 0.5)
    if cut.curl > 0.5:
        fibre = noise.smooth(2.2)
    else:
        fibre = noise.along(
            canvas.x * 260 + 256 + 0 * canvas.y, canvas.y * 40 + 256 + 0 * canvas.x, 3.0
        )
    return step(0.3, 0.7, soft + np.clip(cut.rough * 14, 0, 0.3) * fibre * 4 * soft * (1 - soft))


def hair_picture(head: Head, cut: Hair, canvas: Canvas, noise: Noise, mask: Map) -> Image:
    """Strands, clumps and highlights of hair, as if it covered everything."""
    x, y = canvas.x, canvas.y
    top = head.crown - cut.top * head.volume
    up, half = -0.25 - top + 0.02, head.temple + 0.06 + cut.side * head.volume
    # meridians from the parting: the strands' direction on a round head
    dome = np.sqrt(np.clip(1 - (np.clip(-0.25 - y, 0, None) / up) ** 2, 0.02, 1))
    parting = 0.16 * head.parting
    across = (x - parting * np.clip((-0.1 - y) / 0.5, 0, 1)) / (half * dome)
    swing = 0.05 * cut.curl * np.sin(y * 16 + 2.5 * np.sign(x) + 1.3 * noise.smooth(40)[:1])
    across = across + swing * step(-0.2, 0.2, y)
    if cut.top < 0.02:
        fine, clump = 0.6 * noise.smooth(0.8) + 0.3 * noise.smooth(1.5, 3), 0.5 * noise.smooth(9)
    elif cut.curl > 0.5:
        ridge = 1 - np.abs(noise.smooth(2.0)) * 1.2
        fine = np.clip(ridge, -1, 1) * 0.8 + 0.25 * noise.smooth(0.8)
        clump = 0.5 * noise.smooth(6)
    else:
        along = y * 60 + 256 + 0 * x
        fine = noise.along(across * 150 + 256, along, 14.0)
        clump = noise.along(across * 26 + 90, along * 0.6, 10.0)
    height = canvas.blur(mask, 0.05) * 0.16 + 0.3 * np.sqrt(
        np.clip(1 - (x / 0.75) ** 2 - ((y + 0.1) / 1.3) ** 2, 0, 1)
    )
    lit = light_on(head, canvas, height.astype(np.float32), 0.02)
    gloss = np.exp(-(((y - top - 0.17 - 0.05 * np.abs(x) + 0.03 * clump) / 0.075) ** 2))
    gloss = (
        gloss
        * (0.5 + 0.5 * step(-0.6, 0.9, fine))
        * (0.25 if cut.curl > 0.5 or cut.top < 0.04 else 1.0)
    )
    ink = np.array(head.hair, np.float32)
    shade = 0.86 + 0.17 * fine + 0.13 * clump - 0.22 * step(-0.1, 0.5, y)
    picture = ink * np.clip(shade, 0.3, 1.6)[..., None] * lit
    bright = gloss * (0.32 + 0.25 * head.light_y)
    return picture + bright[..., None] * (ink * 0.75 + 34) * lit


def draw_glasses(head: Head, canvas: Canvas, image: Image, alpha: Map) -> Map:
    """Frames, and lenses that shine a little."""
    across, down = {"round": (0.155, 0.145), "square": (0.175, 0.120), "wide": (0.185, 0.135)}[
        head.glasses
    ]
    power = {"round": 2.0, "square": 5.0, "wide": 3.0}[head.glasses]
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    c, s = np.cos(angle), np.sin(angle)
    unit = np.stack(
        [np.sign(c) * np.abs(c) ** (2 / power), np.sign(s) * np.abs(s) ** (2 / power)], axis=1
    )
    metal = head.glasses == "round"
    thick = 0.010 if metal else 0.019
    frame = np.zeros((canvas.side, canvas.side), np.float32)
    glass, hair = np.zeros_like(frame), alpha
    for side in (-1, 1):
        middle = np.array([side * (head.eye_x + 0.004), 0.018])
        outer = canvas.mask(middle + unit * (across + thick / 2, down + thick / 2))
        inner = canvas.mask(middle + unit * (across - thick / 2, down - thick / 2))
        frame = np.maximum(frame, outer - inner)
        streak = canvas.x * 1.0 + canvas.y * 1.6 - (middle[0] - 0.06)
        glass += inner * (0.045 + 0.06 * np.exp(-((streak / 0.05) ** 2)))
        arm = np.array(
            [
                (side * (head.eye_x + across), -0.03),
                (side * 0.485, -0.045),
                (side * 0.485, -0.022),
                (side * (head.eye_x + across), -0.005),
            ]
        )
        frame = np.maximum(frame, canvas.mask(arm) * (1 - hair))
    inner = head.eye_x - across + 0.004
    bridge = spline([(-inner - 0.004, 0.0), (0, -0.022), (inner + 0.004, 0.0)])
    frame = np.maximum(frame, canvas.lines([bridge], max(thick, 0.012)))
    lit = light_on(head, canvas, canvas.blur(frame, 0.005) * 0.012)
    lay(image, glass / np.maximum(glass + alpha, 1e-3), np.array([235.0, 240.0, 248.0]))
    alpha = np.maximum(alpha, glass)
    ink = np.array(head.frame, np.float32) * lit + 40 * np.clip(lit - 1.02, 0, 1)
    lay(image, frame, ink)
    return np.maximum(alpha, frame)


def draw_back(head: Head, canvas: Canvas, noise: Noise) -> UInt8[np.ndarray, "C C 4"]:
    """Neck, clothes, and the hair behind the head."""
    x, y, chin = canvas.x, canvas.y, head.chin
    skin = np.array(head.skin, np.float32)
    image = np.zeros((canvas.side, canvas.side, 3), np.float32)
    alpha = np.zeros((canvas.side, canvas.side), np.float32)
    cut = CUTS[head.cut]
    if cut and cut.back:
        wide = cut.spread * (0.9 + 0.1 * head.volume)
        shape = mirrored(
            [
                (0.0, head.crown - cut.top * head.volume * 0.9),
                (wide * 0.75, -0.62),
                (wide * 0.97, -0.2),
                (wide, 0.3),
                (wide * 0.97, cut.back * 0.8),
                (wide * 0.8, cut.back),
                (0.0, cut.back + 0.02),
            ]
        )
        mask = rough(canvas.mask(shape), cut, canvas, noise)
        lay(image, mask, hair_picture(head, cut, canvas, noise, mask) * 0.62)
        alpha = mask
    n = head.neck
    neck = mirrored(
        [
            (0.0, 0.4),
            (n * 1.04, 0.4),
            (n, chin),
            (n * 0.98, chin + 0.10),
            (n * 1.08, chin + 0.18),
            (n * 1.35, chin + 0.27),
            (n * 2.2, chin + 0.36),
            (0, chin + 0.6),
        ]
    )
    part = canvas.mask(neck, 0.002)
    height = 0.30 * np.sqrt(np.clip(1 - (x / (n * 1.25)) ** 2, 0, 1)) * (
        y > 0
    ) + 0.02 * canvas.pair(n * 0.45, chin + 0.2, 0.05, 0.2)
    height -= 0.02 * canvas.bump(0, chin + 0.30, 0.05, 0.04)
    lit = light_on(head, canvas, height.astype(np.float32), 0.03)
    shade = 1 - 0.68 * (
        1 - step(chin - 0.05, chin + 0.26, y + 0.25 * x**2 + 0.05 * head.light_x * x)
    )
    tone = skin * 0.96 * (1 + 0.014 * head.texture * noise.smooth(4))[..., None]
    lay(image, part, tone * lit * np.stack([shade, shade**1.12, shade**1.18], axis=-1))
    alpha = np.maximum(alpha, part)
    return layer(canvas, image, draw_clothes(head, canvas, noise, image, alpha))


def draw_clothes(head: Head, canvas: Canvas, noise: Noise, image: Image, alpha: Map) -> Map:
    """Clothes over the shoulders; the new edge of the layer."""
    x, y, n, base = canvas.x, canvas.y, head.neck, head.chin
    neckline = {
        "crew": 0.27,
        "v": 0.46,
        "shirt": 0.34,
        "jacket": 0.62,
        "hood": 0.30,
        "turtleneck": 0.10,
    }[head.clothes]
    high = {"turtleneck": 0.09, "shirt": 0.16, "hood": 0.16, "jacket": 0.2}.get(head.clothes, 0.23)
    around = n * (1.04 if high < 0.2 else 1.25)
    right = [
        (around, base + high),
        (n * 1.75, base + 0.26),
        (0.85, base + 0.37),
        (1.15, base + 0.55),
        (1.3, base + 1.2),
    ]
    if head.clothes in ("v", "shirt", "jacket"):
        shape = np.concatenate([[(0.0, base + neckline)], spline(right)])
    else:  # a round neck, level in the middle
        bend = np.linspace(0, np.pi / 2, 9)[:-1]
        dip = [(around * np.sin(b), base + high + (neckline - high) * np.cos(b)) for b in bend]
        shape = np.concatenate([dip, spline(right)])
    shape = np.concatenate([shape, shape[::-1] * (-1, 1)])
    folds = noise.smooth(16, 26) * 0.012 + noise.smooth(7, 16) * 0.004
    height = (
        0.5 * np.sqrt(np.clip(1 - (x / 1.5) ** 2, 0, 1))
        + 0.25 * step(base + 0.2, base + 0.8, y)
        + folds
    )
    cloth = canvas.mask(shape)
    height = height + 0.02 * canvas.blur(cloth, 0.012)
    lit = light_on(head, canvas, height.astype(np.float32), 0.012)
    weave = 1 + 0.022 * noise.smooth(0.7)
    tone = np.array(head.cloth, np.float32) * weave[..., None]
    lining = np.array(head.lining, np.float32) * weave[..., None] * lit
    if head.stripes:
        rows = (
            step(0.2, 0.35, np.abs(np.mod(y * 9 + 0.02 * noise.smooth(20), 1) - 0.5)) * head.stripes
        )
        tone = tone + (rows * 0.7)[..., None] * (np.array(head.lining) * 0.9 - tone)
    picture = tone * lit
    if head.clothes == "jacket":
        inside = np.concatenate(
            [
                [(0, base + 0.36)],
                spline([(n * 1.06, base + 0.17), (n * 2.0, base + 0.3), (0.5, base + 1.0)]),
            ]
        )
        inside = np.concatenate([inside, inside[::-1] * (-1, 1)])
        canvas.paint(image, inside, lining)
        alpha = np.maximum(alpha, canvas.mask(inside))
        tie = np.array(
            [
                (-0.035, base + 0.37),
                (0.035, base + 0.37),
                (0.028, base + 0.43),
                (0.07, base + 0.9),
                (-0.07, base + 0.9),
                (-0.028, base + 0.43),
            ]
        )
        canvas.paint(image, tie, np.array(head.wall[0]) * 0.7 * lit)
        collar = [
            (n * 1.02, base + 0.13),
            (n * 1.1, base + 0.26),
            (n * 0.55, base + 0.42),
            (0.02, base + 0.35),
        ]
        for side in (-1, 1):
            canvas.paint(image, np.array(collar) * (side, 1), lining * 0.5, 0.5, 0.012)
            canvas.paint(image, np.array(collar) * (side, 1), lining * 1.03)
    canvas.paint(image, shape + (0, -0.012), np.array(head.skin) * 0.35, 0.35, 0.02, clip=alpha)
    lay(image, cloth, picture)
    alpha = np.maximum(alpha, cloth)
    if head.clothes in ("crew", "v", "turtleneck"):
        rim = shape[np.abs(shape[:, 0]) < around + 0.02]
        rim = rim[rim[:, 1] < base + 0.6]
        lay(
            image,
            canvas.lines([rim[np.argsort(rim[:, 0])] + (0, 0.022)], 0.006, 0.004) * 0.35,
            picture * 0.5,
        )
    if head.clothes == "shirt":
        for side in (-1, 1):
            collar = np.array(
                [
                    (n * 1.0, base + 0.13),
                    (n * 1.28, base + 0.30),
                    (n * 0.70, base + 0.50),
                    (0.0, base + 0.34),
                ]
            ) * (side, 1)
            canvas.paint(image, collar, picture * 0.45, 0.55, 0.014, clip=alpha)
            canvas.paint(image, collar, tone * lit * 1.04)
            alpha = np.maximum(alpha, canvas.mask(collar))
    if head.clothes == "hood":
        for side in (-1, 1):
            rim = spline(
                [
                    (0.05, base + 0.42),
                    (n * 1.25, base + 0.24),
                    (n * 1.7, base + 0.10),
                    (n * 2.1, base + 0.16),
                    (n * 1.9, base + 0.40),
                    (0.3, base + 0.62),
                ],
                closed=True,
            ) * (side, 1)
            canvas.paint(image, rim, picture * 0.5, 0.6, 0.02, clip=alpha)
            canvas.paint(image, rim, picture * 1.05, 1.0, 0.003)
            alpha = np.maximum(alpha, canvas.mask(rim))
    return alpha


def draw_background(head: Head, size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "P P 3"]:
    """What is behind the person, out of focus."""
    first, second = (np.array(c, np.float32) for c in head.wall)
    side = 128
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    mix = {"plain": 0.15 * x, "gradient": 0.3 * x + 0.7 * y}.get(
        head.background, np.clip(np.hypot(x - 0.5 - 0.3 * head.light_x, y - 0.4) * 1.2, 0, 1)
    )
    image = first + (second - first) * mix[..., None]
    if head.background == "shapes":
        for _ in range(14):
            at, radius = tuple(int(v) for v in rng.integers(0, side, 2)), int(rng.integers(5, 22))
            tone = (first + (second - first) * rng.random()) * rng.uniform(0.7, 1.4)
            blob = cv2.circle(np.zeros((side, side), np.float32), at, radius, 0.6, -1, cv2.LINE_AA)
            lay(image, cv2.GaussianBlur(blob, (0, 0), 1.5), tone.astype(np.float32))
    if head.background == "room":
        for _ in range(9):
            left, top = rng.integers(-10, side, 2)
            across, down = rng.integers(8, 50, 2)
            tone = (first + (second - first) * rng.random()) * rng.uniform(0.5, 1.5)
            box = np.zeros((side, side), np.float32)
            cv2.rectangle(
                box, (int(left), int(top)), (int(left + across), int(top + down)), 0.8, -1
            )
            lay(image, cv2.GaussianBlur(box, (0, 0), 1.2), tone.astype(np.float32))
        image = cv2.GaussianBlur(image, (0, 0), 2.0)
    image = image * (np.array(head.light, np.float32) / 255)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
    image += rng.standard_normal((size, size, 1), np.float32) * 0.8  # no banding
    return np.clip(image, 0, 255).astype(np.uint8)


# What moves


def coarse(canvas: Canvas) -> Canvas:
    """The same square with few, large pixels."""
    shrink = (GRID - 1) / (canvas.side - 1)
    return canvas._replace(side=GRID, scale=canvas.scale * shrink)


def depth_of(head: Head, canvas: Canvas) -> Float[np.ndarray, "G G"]:
    """z of head and hair, smooth beyond the edge of the face, on the coarse grid."""
    grid = coarse(canvas)
    z = 0.52 * np.exp(-(((grid.x / 0.66) ** 2 + ((grid.y - 0.05) / 0.95) ** 2) ** 1.1))
    z = z + 0.75 * head.nose_height * grid.bump(0, head.nose - 0.06, 0.085, 0.13)
    z = z - 0.05 * grid.pair(head.eye_x, 0.0, 0.12, 0.08)
    return z.astype(np.float32)


def moves_of(head: Head, canvas: Canvas) -> Float[np.ndarray, "M G G 2"]:
    """How the face's skin goes with jaw, hollow cheeks, mouth corners, upper lip and brows.

    Displacements in face widths for one unit of what `amounts` gives, on the coarse grid: where a point
    is now, minus where it was at rest.
    """
    grid = coarse(canvas)
    side = np.abs(grid.x)
    # between the lips the jaw's movement begins at once, in the cheeks gradually
    outward = step(0.10, 0.34, side)
    begin = head.mouth - 0.045 - 0.15 * outward
    end = head.mouth + 0.125 + (head.chin - head.mouth - 0.12) * outward
    jaw = step(begin, end, grid.y) * (1 - 0.80 * step(0.12, 0.52, side))
    odd = np.tanh(grid.x / 0.05)
    hollow = -odd * grid.pair(0.38, head.mouth, 0.16, 0.22)
    corners = odd * grid.pair(head.mouth_width + 0.02, head.mouth, 0.13, 0.13)
    cheeks = -0.25 * grid.pair(0.27, head.mouth - 0.15, 0.12, 0.12)
    lip = -grid.bump(0, head.mouth - 0.07, 0.17, 0.06)
    brows = -grid.pair(head.eye_x, head.brow_y - 0.01, 0.20, 0.075)
    zero = np.zeros_like(jaw)
    pairs = ((zero, jaw), (hollow, zero), (corners, cheeks), (zero, lip), (zero, brows))
    moves = np.array([np.stack(pair, axis=-1) for pair in pairs], np.float32)
    moves[:-1] *= step(0.0, 0.22, grid.y)[..., None]  # the eyes stay
    return moves


def amounts(head: Head, lips: Lips, pose: Pose) -> Float[np.ndarray, " M"]:
    """How far each of `moves_of` goes."""
    opened = max(lips.drop, 0.0) / JAW_DROP
    spread = lips.half - head.mouth_width
    return np.array([lips.drop, 0.022 * opened, spread, lips.raised, 0.030 * pose.brow], np.float32)


def sample(grid: np.ndarray, canvas: Canvas, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values of a coarse grid at face coordinates."""
    scale = canvas.scale * (GRID - 1) / (canvas.side - 1)
    columns = ((x - canvas.left) * scale).astype(np.float32)
    rows = ((y - canvas.top) * scale).astype(np.float32)
    return cv2.remap(grid, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def draw(
    head: Head,
    mouth: Float[np.ndarray, "5"],
    pose: Pose,
    size: int,
    rng: np.random.Generator | None = None,
) -> tuple[UInt8[np.ndarray, "P P 3"], Float[np.ndarray, "68 2"]]:
    """One picture of a head, and where its landmarks are.

    Args:
      head: who.
      mouth: open, wide, round, press, tuck; see `visemes.MOUTH`.
      pose: of the head, eyes and brows.
      size: pixels a side.
      rng: of the camera's noise; without it there is none.

    Returns:
      RGB, and iBUG's 68 points in pixels, (0, 0) the middle of the first one. They are the geometry that
      was drawn, whether or not hair or glasses cover it.

    Raises:
      InputError: the size is too small, or mouth or pose is none.
    """
    mouth = np.asarray(mouth, np.float64)
    if size < LEAST_SIZE:
        raise InputError(f"a head of {size} pixels cannot be drawn; ask for {LEAST_SIZE} or more")
    if mouth.shape != (5,) or not ((mouth >= 0) & (mouth <= 1)).all():
        raise InputError(f"a mouth is {mouth.tolist()}; give five values in [0, 1]")
    if not np.isfinite(pose).all() or pose.scale <= 0:
        raise InputError(f"{pose} is no pose; give finite numbers and a positive scale")
    look = prepare(head, size)
    lips = lips_of(head, mouth)
    field = np.tensordot(amounts(head, lips, pose), look.moves, axes=1)
    where = Camera(head, pose, size, look)
    x, y, x_body, y_body = where.from_picture()
    picture = look.background.astype(np.float32)
    # the neck's skin follows the chin a little
    near = 1 - step(0.04, 0.20, np.abs(y_body - head.chin))
    near = near * (1 - step(0.20, 0.44, np.abs(x_body)))
    y_body = y_body - 0.4 * lips.drop * near
    cover(picture, look.canvas, look.back, x_body, y_body)
    moved = sample(field, look.canvas, x, y)
    cover(picture, look.canvas, look.face, x - moved[..., 0], y - moved[..., 1])
    patches = [draw_mouth(head, look, lips, mouth)]
    patches += [draw_eye(head, look, side, pose) for side in (-1, 1)]
    for patch, (rows, columns) in patches:
        corners = [(c, r) for c in (columns.start, columns.stop) for r in (rows.start, rows.stop)]
        corners = np.array(corners) / look.canvas.scale + (look.canvas.left, look.canvas.top)
        corners = where.to_picture(corners)
        low = np.clip(np.floor(corners.min(0)).astype(int) - 2, 0, size)
        high = np.clip(np.ceil(corners.max(0)).astype(int) + 3, 0, size)
        part = (slice(low[1], high[1]), slice(low[0], high[0]))
        if picture[part].size:
            offset = (columns.start, rows.start)
            cover(picture[part], look.canvas, patch, x[part], y[part], offset)
    cover(picture, look.canvas, look.front, x, y)
    if rng is not None:
        picture += head.noise * rng.standard_normal((size, size, 1), np.float32)
        picture += 0.5 * head.noise * rng.standard_normal((size, size, 3), np.float32)
    np.clip(np.rint(picture, out=picture), 0, 255, out=picture)
    return picture.astype(np.uint8), where.to_picture(landmarks(head, look, lips, pose, field))


def cover(
    picture: np.ndarray,
    canvas: Canvas,
    image: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    offset: tuple[int, int] = (0, 0),
) -> None:
    """Lay an image with alpha over the picture in place, its colours taken at face coordinates."""
    columns = ((x - canvas.left) * canvas.scale - offset[0]).astype(np.float32)
    rows = ((y - canvas.top) * canvas.scale - offset[1]).astype(np.float32)
    found = cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    found = found.astype(np.float32, copy=False)
    picture *= 1 - found[..., 3:] * np.float32(1 / 255)
    picture += found[..., :3]


class Camera(NamedTuple):
    """From the plane of a head to the picture and back.

    The head turns about its own axes first (yaw, pitch: points go aside by their depth), then tilts about
    the neck, is scaled and shifted in the picture. The body follows less.
    """

    head: Head
    pose: Pose
    size: int
    look: Look

    @property
    def unit(self) -> float:
        """Pixels a face width."""
        return self.head.framing * self.size * self.pose.scale

    @property
    def origin(self) -> Float[np.ndarray, " 2"]:
        """Where the point between the eyes is at rest."""
        return np.array([self.size * 0.5 - 0.5, self.size * EYE_LINE - 0.5])

    def from_picture(self) -> tuple[np.ndarray, ...]:
        """For every pixel: x and y on the head's plane, then x and y on that of body and back hair."""
        pixels = np.arange(self.size, dtype=np.float32)
        across = ((pixels - self.origin[0]) / self.unit)[None]
        down = ((pixels - self.origin[1]) / self.unit)[:, None]
        pose = self.pose
        u, v = turned(across - pose.x, down - pose.y, -pose.roll)
        sideways, upwards = np.sin(pose.yaw), np.sin(pose.pitch)
        x, y = u, v
        for _ in range(3):
            z = sample(self.look.depth, self.look.canvas, x, y)
            x, y = u / np.cos(pose.yaw) - z * sideways, v / np.cos(pose.pitch) - z * upwards
        still_u, still_v = turned(across - 0.4 * pose.x, down - 0.25 * pose.y, -0.15 * pose.roll)
        steady = step(self.head.chin - 0.25, self.head.chin + 0.35, still_v)
        x_back, y_back = u - 0.22 * sideways, v - 0.22 * upwards
        return x, y, x_back + (still_u - x_back) * steady, y_back + (still_v - y_back) * steady

    def to_picture(self, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
        """Pixels of points on the head's plane."""
        x, y = np.asarray(points, np.float64).T
        pose = self.pose
        z = sample(self.look.depth, self.look.canvas, x[None], y[None])[0].astype(np.float64)
        u = (x + z * np.sin(pose.yaw)) * np.cos(pose.yaw)
        v = (y + z * np.sin(pose.pitch)) * np.cos(pose.pitch)
        u, v = turned(u, v, pose.roll)
        return np.stack([u + pose.x, v + pose.y], axis=1) * self.unit + self.origin


def turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates after a turn about the neck, clockwise in the picture."""
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = x - PIVOT[0], y - PIVOT[1]
    return c * x - s * y + PIVOT[0], s * x + c * y + PIVOT[1]


# Mouth and eyes


def window_of(canvas: Canvas, x: tuple[float, float], y: tuple[float, float]) -> Window:
    """The canvas's pixels between two x and two y."""
    low, high = (canvas.pixels(np.array(p)) for p in ((x[0], y[0]), (x[1], y[1])))
    low = np.clip(np.floor(low).astype(int), 0, canvas.side - 1)
    high = np.clip(np.ceil(high).astype(int), low + 1, canvas.side)
    return slice(low[1], high[1]), slice(low[0], high[0])


def under(canvas: Canvas, y: np.ndarray, curve: np.ndarray, soft: float = 0.0) -> np.ndarray:
    """How much of each pixel is below a curve y(x), in [0, 1]."""
    slope = np.clip(np.gradient(curve) * canvas.scale, -3, 3)
    sharp = canvas.scale / np.sqrt(1 + slope**2) / (1 + soft * canvas.scale)
    return np.clip((y - curve) * sharp + 0.5, 0, 1)


def draw_mouth(
    head: Head, look: Look, lips: Lips, mouth: Float[np.ndarray, "5"]
) -> tuple[Float[np.ndarray, "H W 4"], Window]:
    """Lips, what is between them, and the shades around them; RGB times alpha, and alpha."""
    canvas = look.canvas
    window = window_of(canvas, (-0.33, 0.33), (head.nose - 0.03, head.mouth + 0.30))
    y, x = canvas.y[window[0]], canvas.x[0, window[1]]
    light = np.array(head.light, np.float32) / 255
    aside = x / lips.half
    top, above, below, bottom = (c.astype(np.float32) for c in curves(head, lips, aside))
    within = np.clip((lips.half - np.abs(x)) * canvas.scale * 0.6 + 0.5, 0, 1)
    body = under(canvas, y, top, 0.010) * (1 - under(canvas, y, bottom, 0.012)) * within
    upper, lower = 1 - under(canvas, y, above), under(canvas, y, below)

    # lips: wrinkles go with them
    t_upper = np.clip((y - top) / np.maximum(above - top, 1e-4), 0, 1)
    t_lower = np.clip((y - below) / np.maximum(bottom - below, 1e-4), 0, 1)
    t = np.where(y < (above + below) / 2, t_upper, t_lower + 1).astype(np.float32)
    middle = canvas.side / 2
    columns = np.broadcast_to(aside * head.mouth_width * canvas.scale + middle, t.shape)
    grain = cv2.remap(
        look.grain, columns.astype(np.float32), t * (0.018 * canvas.scale) + 9, cv2.INTER_LINEAR
    )
    curved = 1 - 0.10 * aside**2 + 0.10 * head.contrast * head.light_x * aside
    dark = 0.93 - 0.20 * t_upper**1.5 + 0.06 * np.exp(-(((t_upper - 0.12) / 0.14) ** 2))
    full = 0.99 + 0.17 * np.exp(-(((t_lower - 0.36) / 0.27) ** 2)) - 0.24 * step(0.55, 1, t_lower)
    full -= 0.05 * (1 - step(0.0, 0.10, t_lower))
    shade = (dark * upper + full * (1 - upper)) * curved * (1 + 0.045 * grain)
    spot = np.exp(-(((t_lower - 0.36) / 0.15) ** 2)) * lower
    spot = spot * np.exp(-(((aside - 0.18 * head.light_x) / 0.42) ** 2))
    spot += (
        0.35
        * upper
        * np.exp(-(((t_upper - 0.45) / 0.2) ** 2) - ((np.abs(aside) - 0.25) / 0.15) ** 2)
    )
    shine = spot * (0.25 + 0.75 * head.gloss) * (46 + 30 * lips.rounding) * (0.75 + 0.35 * grain)
    colour = np.array(head.lips, np.float32) * shade[..., None]
    colour = np.clip(colour + shine[..., None], 0, 255)

    # the seam where the lips touch, and their wet inner edges
    seam = np.exp(-(((y - (above + below) / 2) / 0.0065) ** 2)) * (1 - step(0.0, 0.025, lips.gap))
    inner = (
        np.exp(-(((y - above) / 0.010) ** 2)) * upper
        + np.exp(-(((y - below) / 0.008) ** 2)) * lower
    )
    ends = 1 - 0.5 * np.abs(aside) ** 3
    crease = np.clip(0.72 * seam * ends + 0.30 * inner * step(0.0, 0.02, lips.gap), 0, 0.85)
    lay(colour, crease.astype(np.float32), np.array(head.lips, np.float32) * (0.26, 0.16, 0.17))
    hole = np.clip(1 - upper - lower, 0, 1)
    if lips.gap > 0:
        inside = draw_inside(head, canvas, lips, mouth, x, y, above, below)
        lay(colour, hole.astype(np.float32), inside)
    colour *= light

    # shades on the skin: below the lip, at the corners, laugh lines
    shades = 0.22 * np.exp(-(((y - bottom - 0.014) / 0.016) ** 2)) * np.clip(1 - aside**2, 0, 1)
    corner = lips.middle - lips.smile * 0.8
    for side in (-1, 1):
        pit = ((x - side * (lips.half + 0.004)) / 0.017) ** 2 + ((y - corner) / 0.017) ** 2
        shades = shades + 0.42 * np.exp(-pit)
    wide = float(mouth[1])
    along = (y - head.nose + 0.01) / (lips.middle - head.nose + 0.03)
    bow = np.sin(1.3 * np.clip(along, 0, 1.2))
    fold = head.nose_width + 0.02 + (lips.half + 0.05 - head.nose_width) * bow
    line = (
        np.exp(-(((np.abs(x) - fold) / 0.020) ** 2))
        * step(0.0, 0.3, along)
        * (1 - step(0.75, 1.2, along))
    )
    shades = np.clip(shades + (0.22 * wide + 0.03) * line, 0, 0.6)
    patch = np.empty((*body.shape, 4), np.float32)
    tone = np.array(head.skin, np.float32) * (0.42, 0.27, 0.24)
    patch[..., :3] = (shades * (1 - body))[..., None] * tone + body[..., None] * colour
    patch[..., 3] = 255 * (shades * (1 - body) + body)
    return patch, window


def draw_inside(
    head: Head,
    canvas: Canvas,
    lips: Lips,
    mouth: Float[np.ndarray, "5"],
    x: np.ndarray,
    y: np.ndarray,
    above: np.ndarray,
    below: np.ndarray,
) -> np.ndarray:
    """What is seen between the lips: cavity, tongue, lower and upper teeth."""
    opened, wide, rounding, _, tuck = (float(v) for v in mouth)
    side, reach = np.abs(x), lips.half * 0.96
    to_edge = np.minimum(np.minimum(y - above, below - y), (reach - side) * 0.8)
    depth = step(0.0, 0.026, to_edge)[..., None].astype(np.float32)
    colour = np.float32([70, 24, 24]) + depth * (np.float32([20, 7, 9]) - np.float32([70, 24, 24]))
    floor = head.mouth - lips.raised + lips.gap  # the lower lip's inner edge in the middle
    # tongue
    high = 0.010 + 0.055 * opened**2 + 0.015 * wide
    bulge = 1 - (x / (lips.half * 0.74)) ** 2 - ((y - floor - 0.016) / high) ** 2
    tongue = step(0.0, 0.35, bulge)
    tint = (
        0.50
        + 0.42 * np.clip(bulge, 0, 1)
        - 0.13 * np.exp(-((x / 0.012) ** 2)) * step(0, 0.5, bulge)
    )
    lay(
        colour,
        (tongue * (0.2 + 0.65 * opened)).astype(np.float32),
        np.float32([196, 98, 98]) * tint[..., None],
    )
    # teeth: x in teeth from the middle, where in a tooth
    borders = np.array([0, 1.0, 1.75, 2.5, 3.1, 3.6, 4.0]) * head.tooth
    for lower in (True, False):
        place = np.interp(side * (1.35 if lower else 1.0), borders, np.arange(7.0))
        across = np.abs(place % 1 - 0.5) * 2
        uneven = np.interp(place, np.arange(6) + 0.5, [0, 0.35, 0.1, 0.45, 0.8, 1.2]) * 0.010
        rounded = 0.007 * across**5
        if lower:
            edge = (
                floor + 0.004 - 0.020 * opened - 0.018 * wide + 0.3 * x**2 + 0.5 * uneven + rounded
            )
            seen = under(canvas, y, edge.astype(np.float32), 0.004) * step(
                0.0, 0.25, 1 - side / (lips.half * 0.8)
            )
            tone = 0.58 - 0.25 * rounding
        else:
            edge = head.mouth + MOUTH_DEPTH - 0.35 * x**2 - uneven - rounded
            edge = edge + 0.012 * tuck + 0.014 * wide * (1 - 0.6 * opened)
            seen = 1 - under(canvas, y, edge.astype(np.float32), 0.002)
            tone = 0.98 - 0.28 * rounding
        round_off = 1 - 0.10 * across**3 - 0.16 * np.exp(-(((1 - across) / 0.10) ** 2))
        away = 1 - 0.80 * np.clip(side / (reach + 0.02), 0, 1) ** 2.2
        shadow = 0.70 + 0.30 * step(-0.004, 0.022, y - above)
        glaze = 0.06 * np.exp(-(((y - edge + 0.022) / 0.012) ** 2)) * (1 - across**2)
        lit = tone * (round_off * away * shadow + glaze)
        white = np.array(head.teeth, np.float32) * lit[..., None] ** np.float32([1, 1.06, 1.12])
        lay(colour, (seen * 0.97).astype(np.float32), white)
    return colour


def draw_eye(
    head: Head, look: Look, side: int, pose: Pose
) -> tuple[Float[np.ndarray, "H W 4"], Window]:
    """One eye in its lids; RGB times alpha, and alpha."""
    canvas = look.canvas
    middle = side * head.eye_x
    reach = head.eye_width * 1.3
    window = window_of(canvas, (middle - reach, middle + reach), (-0.10, 0.09))
    y, x = canvas.y[window[0]], canvas.x[0, window[1]]
    u = side * (x - middle) / head.eye_width
    blink = float(np.clip(pose.blink, 0, 1))
    upper, lower = (c.astype(np.float32) for c in lids(head, side, blink, np.clip(u, -1, 1)))
    within = np.clip((1 - np.abs(u)) * head.eye_width * canvas.scale + 0.5, 0, 1)
    opening = under(canvas, y, upper) * (1 - under(canvas, y, lower)) * within
    # the ball, shaded by the upper lid and towards its sides
    bright = 0.62 + 0.38 * np.mean(head.skin) / 215
    ball = (0.97 - 0.22 * u**2) * (1 - 0.40 * np.exp(-np.clip(y - upper, 0, None) / 0.018)) * bright
    colour = np.float32([240, 234, 229]) * ball[..., None]
    pink = step(-0.72, -0.95, u) * np.ones_like(y)
    lay(colour, (0.75 * pink).astype(np.float32), np.float32([204, 140, 130]) * bright)
    # iris, pupil, the light's reflection
    size = 0.054
    at = (middle + 0.042 * pose.gaze_x, -0.20 * head.eye_height + 0.022 * pose.gaze_y)
    along, down = (x - at[0]) / size, (y - at[1]) / size
    radius = np.sqrt(along**2 + down**2)
    angle = np.arctan2(down, along)
    fibres = 0.10 * np.sin(angle * 19 + head.seed % 7) + 0.08 * np.sin(angle * 31 + 5 * radius)
    tint = (0.62 + 0.30 * radius + 0.34 * down + fibres) * (1 - 0.75 * step(0.78, 1.0, radius))
    tint = np.clip(tint, 0.08, 1.6) * (1 - 0.45 * np.exp(-np.clip(y - upper, 0, None) / 0.016))
    disc = lambda r: np.clip((r - radius) * size * canvas.scale + 0.5, 0, 1)
    lay(colour, disc(1.0).astype(np.float32), np.array(head.iris, np.float32) * tint[..., None])
    lay(colour, disc(0.44).astype(np.float32), np.float32([14, 11, 11]))
    glint = np.hypot(along - 0.34 * np.sign(head.light_x), down + 0.34)
    glint = np.clip((0.20 - glint) * size * canvas.scale + 0.5, 0, 1)
    glint = glint + 0.25 * np.exp(
        -((along + 0.4 * np.sign(head.light_x)) ** 2 + (down - 0.45) ** 2) / 0.05
    )
    lay(colour, (0.92 * glint).astype(np.float32), np.float32([252, 252, 255]))
    wet = np.exp(-(((y - lower + 0.004) / 0.004) ** 2))
    lay(colour, (0.45 * wet).astype(np.float32), np.float32([222, 168, 156]) * bright)
    colour = np.clip(colour, 0, 255) * (np.array(head.light, np.float32) / 255)
    patch = np.empty((*opening.shape, 4), np.float32)
    patch[..., :3], patch[..., 3] = opening[..., None] * colour, 255 * opening
    # lashes: a line that thickens outwards
    taper = np.clip(0.35 + 0.65 * (u + 1) / 2, 0, 1)
    thick = (0.007 + 0.011 * head.lashes) * taper
    ends = np.clip((1.04 + 0.07 * head.lashes - np.abs(u)) / 0.10, 0, 1) * (u > -1.02)
    rise = 0.20 * head.lashes * np.clip(u - 0.9, 0, None) * head.eye_width
    line = (upper - rise).astype(np.float32)
    lash = (
        under(canvas, y, line - thick, 0.004) * (1 - under(canvas, y, line + 0.004, 0.004)) * ends
    )
    ink = np.array(head.brow_colour, np.float32) * (0.40 - 0.20 * head.lashes)
    below = 0.30 * np.exp(-(((y - lower - 0.004) / 0.005) ** 2)) * np.clip(1 - u**2, 0, 1)
    for mask in (below, 0.88 * lash):
        ink_alpha = mask[..., None].astype(np.float32)
        patch *= 1 - ink_alpha
        patch += ink_alpha * np.append(ink, 255).astype(np.float32)
    return patch, window


# Truth


def landmarks(
    head: Head, look: Look, lips: Lips, pose: Pose, field: Float[np.ndarray, "G G 2"]
) -> Float[np.ndarray, "68 2"]:
    """iBUG's 68 points on the head's plane, with this mouth and these lids, before the head turns."""
    edge = outline(head)
    right = edge[: int(edge[:, 1].argmax()) + 1]
    right = right[right[:, 1] > -0.15]
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(right, axis=0), axis=1))])
    start = np.interp(0.0, right[:, 1], length)
    along = np.linspace(start, length[-1], 9)
    jaw = np.stack([np.interp(along, length, right[:, k]) for k in (0, 1)], axis=1)
    jaw = np.concatenate([jaw * (-1, 1), jaw[-2::-1]])
    brows = []
    for side in (-1, 1):
        upper, lower = brow(head, side)
        middle = upper + (lower - upper) * 0.3
        points = middle[[0, 4, 7, 9, 11]]
        brows.append(points[::-1] if side < 0 else points)
    base, wing = head.nose, head.nose_width
    nose = [(0, -0.01 + (base - 0.05) * k / 3) for k in range(4)]
    nose += [
        (wing * k, base - 0.012 + 0.018 * (1 - abs(k) * 1.2)) for k in (-0.75, -0.38, 0, 0.38, 0.75)
    ]
    rest = np.concatenate([jaw, *brows, nose])
    skin = rest
    for _ in range(8):
        x, y = skin.astype(np.float32).T
        skin = rest + sample(field, look.canvas, x[None], y[None])[0]
    eyes = []
    for side in (-1, 1):
        u = np.array([-1, -0.4, 0.4, 1.0]) * side
        upper, lower = lids(head, side, float(np.clip(pose.blink, 0, 1)), u)
        x = side * (head.eye_x + u * head.eye_width)
        points = np.stack([x, upper], axis=1), np.stack([x, lower], axis=1)[2:0:-1]
        eyes.append(np.concatenate(points))
    aside = np.array([-1, -0.62, -0.24, 0, 0.24, 0.62, 1])
    top, _, _, bottom = curves(head, lips, aside)
    outer = np.concatenate([np.stack([aside, top], 1), np.stack([aside, bottom], 1)[5:0:-1]])
    aside = np.array([-0.96, -0.36, 0, 0.36, 0.96])
    _, above, below, _ = curves(head, lips, aside)
    inner = np.concatenate([np.stack([aside, above], 1), np.stack([aside, below], 1)[3:0:-1]])
    mouth = np.concatenate([outer, inner]) * (lips.half, 1)
    return np.concatenate([skin, *eyes, mouth])
