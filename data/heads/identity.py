"""Who somebody is: the numbers a head is drawn from, and people drawn at random."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Colour = tuple[float, float, float]  # sRGB, 0 to 255


def palette(colours: str) -> list[tuple[int, int, int]]:
    """Colours as they are written for the web."""
    return [tuple(bytes.fromhex(colour)) for colour in colours.split()]


SKINS = np.array(palette("f6d9c8 eec6ac e2b494 d09d7a ba8562 9c6a4c 7c513a 664332 56392d"))
HAIR_COLOURS = palette("1c1818 2e211b 4a3224 704c30 966c42 c49c64 debe8a 964828 682e22")
GREYS = palette("8a8886 c4c2be")
IRISES = palette("3e2618 5e3e24 7e6034 586a4a 547896 6e808c")
COMMON = 3  # of hair colours and irises, the first ones: those of every skin
LIPSTICKS = palette("b02c3a c6545a 96364c d06e64 782430")
EARRINGS = palette("d6b460 ced0d6")
FRAMES = palette("221e20 523222 8c8e94 343a54")
LININGS = palette("ecece8 c8d6e8 2c2e36")

BEARDS = ("none", "stubble", "moustache", "goatee", "short", "full")
GLASSES = ("none", "round", "square", "wide")
CLOTHES = ("crew", "v", "shirt", "jacket", "hood", "turtleneck")
BACKGROUNDS = ("plain", "gradient", "vignette", "shapes", "room")


class Hair(NamedTuple):
    """A cut."""

    top: float  # height above the skull
    side: float  # thickness beside it
    ends: float  # y where the hair in front of the ears ends
    edge: tuple[tuple[float, ...], tuple[float, ...]]  # on the forehead; see `LINE`
    back: float | None = None  # y where the hair behind the head ends
    spread: float = 0.0  # half the width of the hair behind the head
    curl: float = 0.0  # 0 straight to 1 curled; above .5 the strands have no direction
    rough: float = 0.01  # how uneven the outline is


# Edges of hair on the forehead: x, in halves of the skull's width from the parting's side, and y.
LINE = (-0.8, -0.68, -0.3, 0, 0.3, 0.68, 0.8), (-0.3, -0.46, -0.53, -0.54, -0.53, -0.46, -0.3)
PARTED = (
    (-0.82, -0.72, -0.45, -0.1, 0.3, 0.65, 0.84),
    (-0.26, -0.44, -0.56, -0.50, -0.42, -0.32, -0.18),
)
FRINGE = (
    (-0.84, -0.72, -0.4, 0.0, 0.4, 0.72, 0.84),
    (-0.12, -0.19, -0.215, -0.235, -0.215, -0.19, -0.12),
)
CURTAINS = (-0.9, -0.8, -0.45, 0, 0.45, 0.8, 0.9), (0.05, -0.22, -0.42, -0.6, -0.42, -0.22, 0.05)
RECEDING = (
    (-0.86, -0.80, -0.58, -0.2, 0.2, 0.58, 0.86),
    (-0.24, -0.46, -0.62, -0.58, -0.58, -0.62, -0.24),
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
MASCULINE_CUTS = tuple(CUTS)[:9]  # as far as the afro
FEMININE_CUTS = (*tuple(CUTS)[9:], "curls", "afro", "fringe")


@dataclass(frozen=True)
class Head:
    """An identity. Lengths are in face widths, angles in radians, the rest in [0, 1] or [-1, 1]."""

    seed: int  # of the skin's and hair's texture
    framing: float  # width of the face in picture sides

    skin: Colour  # in full light
    flush: float  # redness of cheeks, nose and ears
    texture: float  # contrast of pores and mottling
    freckles: float  # how many
    wrinkles: float  # how deep
    shine: float

    temple: float  # half the width of the forehead
    jaw: float  # half the width at the jaw's angle
    chin_width: float  # half
    chin: float  # y of its lowest point
    crown: float  # y of the top of the skull
    cheekbones: float  # how much they stand out

    eye_x: float  # from the middle to an eye's centre
    eye_width: float  # half
    eye_height: float  # half of the opening
    eye_tilt: float  # how much higher the outer corner is
    eye_fold: float  # from the upper lid's edge to its crease
    iris: Colour
    lashes: float  # how strong
    shadow: float  # make-up above the eyes
    brow_y: float  # of the middle
    brow_thickness: float  # at the thickest
    brow_arch: float  # height of the arch

    nose: float  # y of its base
    nose_width: float  # half the width at the wings
    bridge: float  # half the width of its bridge
    nose_height: float  # of its tip above the face

    mouth: float  # y of the closed lips' seam
    mouth_width: float  # half the width at rest
    upper_lip: float  # thickness
    lower_lip: float  # thickness
    bow: float  # depth of the cupid's bow
    smile: float  # how much the corners turn up at rest
    lips: Colour
    gloss: float  # of the lips
    teeth: Colour
    tooth: float  # width of a front tooth

    ear: float  # half its height
    ear_out: float  # how far it stands out
    earring: Colour | None

    cut: str  # of `CUTS`
    hair: Colour
    hairline: float  # how much higher the hair begins
    volume: float  # factor of the hair's thickness
    parting: int  # its side, -1 or 1
    beard: str  # of `BEARDS`
    beard_colour: Colour
    beard_density: float
    brow_colour: Colour

    glasses: str  # of `GLASSES`
    frame: Colour  # of the glasses
    neck: float  # half its width
    clothes: str  # of `CLOTHES`
    cloth: Colour
    lining: Colour  # of what is below the cloth, and of patterns
    stripes: float  # how strong

    background: str  # of `BACKGROUNDS`
    wall: tuple[Colour, Colour]  # of the background
    light_x: float  # where the light comes from, -1 left to 1 right
    light_y: float  # how high
    light: Colour
    contrast: float  # of light and shade
    noise: float  # standard deviation of the camera's noise, in grey levels


def random_head(rng: np.random.Generator) -> Head:
    """An identity drawn at random; what usually goes together in people goes together here."""
    real = lambda low, high: float(rng.uniform(low, high))
    chance = lambda share: bool(rng.random() < share)
    choice = lambda options: options[int(rng.integers(len(options)))]
    seed = int(rng.integers(2**31))
    feminine = chance(0.5)
    age = real(0, 1) ** 1.3
    tone = real(0, len(SKINS) - 1)
    low, high = SKINS[int(tone)], SKINS[min(int(tone) + 1, len(SKINS) - 1)]
    skin = low + (high - low) * (tone % 1)
    skin = skin * (1 + real(-0.03, 0.03) * np.array([1.0, 0.1, -1.2])) * real(0.96, 1.02)
    darkness = tone / (len(SKINS) - 1)
    common = COMMON if darkness > 0.45 else None
    hair = np.array(choice(HAIR_COLOURS[:common])) * real(0.85, 1.15)
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
    painted = np.array(choice(LIPSTICKS))
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
        iris=colour(np.array(choice(IRISES[:common])) * real(0.85, 1.15)),
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
        earring=choice(EARRINGS) if feminine and chance(0.35) else None,
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
        frame=colour(choice(FRAMES)),
        neck=real(0.25, 0.28) if feminine else real(0.30, 0.35),
        clothes=choice(CLOTHES),
        cloth=colour(first),
        lining=colour(np.array(choice(LININGS)) * real(0.9, 1)),
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
