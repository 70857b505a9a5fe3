"""Mouth shapes from phonemes, with coarticulation.

Every sound has a target for jaw and lips and a dominance over them that rises before the sound and falls
behind it; the mouth is the mean of all targets weighted by dominance (Cohen and Massaro, Modeling
coarticulation in synthetic visual speech, 1993). Lips round long before an o, vowels of unstressed
syllables hardly open, and k looks like its neighbours. Closed lips and the lower lip at the teeth are not
left to the mean: they happen in every p, b, m, f and v.
"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from unavglip_jax.config import InputError
from unavglip_jax.data.motion import smooth_step
from unavglip_jax.data.speech import CLOSED, PAUSE, STRESS, Speech

# Each in [0, 1]. open: jaw opening, from lips that just touch to the widest vowel; wide: corners spread, as
# in ee; round: corners drawn in and lips forward, as in o, u and w; press: lips pressed together, as in p,
# b and m; tuck: lower lip under the upper teeth, as in f and v. All zero is the mouth at rest.
MOUTH = ("open", "wide", "round", "press", "tuck")
OPEN = MOUTH.index("open")


class Shape(NamedTuple):
    """Target of a sound, and how much it insists on it: for the jaw and for the lips' wide and round."""

    open: float
    wide: float
    round: float
    jaw: float = 1.0
    lips: float = 1.0


SHAPES = {
    "ɑ": Shape(1.0, 0.0, 0.0, 1.3),
    "a": Shape(1.0, 0.15, 0.0, 1.3),
    "æ": Shape(0.9, 0.4, 0.0, 1.3),
    "ʌ": Shape(0.72, 0.05, 0.0, 0.9, 0.7),
    "ɐ": Shape(0.55, 0.05, 0.0, 0.7, 0.5),
    "ɒ": Shape(0.85, 0.0, 0.35),
    "ɔ": Shape(0.72, 0.0, 0.6),
    "o": Shape(0.55, 0.0, 0.85, 1.0, 1.5),
    "ʊ": Shape(0.32, 0.0, 0.7),
    "u": Shape(0.22, 0.0, 1.0, 1.0, 1.6),
    "ʉ": Shape(0.24, 0.0, 0.85, 1.0, 1.5),
    "ɛ": Shape(0.7, 0.4, 0.0),
    "e": Shape(0.55, 0.6, 0.0),
    "ɪ": Shape(0.42, 0.5, 0.0, 0.9, 0.7),
    "i": Shape(0.28, 1.0, 0.0, 1.0, 1.3),
    "ə": Shape(0.42, 0.1, 0.0, 0.6, 0.4),
    "ɜ": Shape(0.42, 0.0, 0.35),
    "j": Shape(0.22, 0.7, 0.0, 0.7, 0.6),
    "w": Shape(0.12, 0.0, 1.0, 1.0, 2.0),
    "r": Shape(0.25, 0.0, 0.5, 0.8, 0.7),
    "l": Shape(0.4, 0.15, 0.0, 0.6, 0.2),
    "t": Shape(0.18, 0.2, 0.0, 0.6, 0.15),
    "ɾ": Shape(0.25, 0.2, 0.0, 0.5, 0.15),
    "s": Shape(0.1, 0.4, 0.0, 1.2, 0.3),
    "ʃ": Shape(0.16, 0.0, 0.6, 1.2, 0.8),
    "θ": Shape(0.26, 0.15, 0.0, 1.0, 0.4),
    "k": Shape(0.34, 0.1, 0.0, 0.4, 0.15),
    "h": Shape(0.4, 0.1, 0.0, 0.2, 0.1),
    "p": Shape(0.1, 0.1, 0.0, 0.12, 0.08),
    "f": Shape(0.06, 0.15, 0.0, 1.2, 0.3),
    PAUSE: Shape(0.0, 0.0, 0.0, 1.2, 1.2),
}
# Sounds that look like one of these.
ALIKE = {
    "ᵻ": "ɪ", "ʍ": "w", "ɹ": "r", "d": "t", "n": "t", "z": "s", "ʒ": "ʃ", "tʃ": "ʃ", "dʒ": "ʃ", "ð": "θ",
    "ɡ": "k", "ŋ": "k", "x": "k", "ʔ": "k", "b": "p", "m": "p", "v": "f", "ɚ": "ɜ", "ɝ": "ɜ", "ɫ": "l",
    "ʲ": "j",
}  # fmt: skip
LABIALS, LABIODENTALS = ("p", "b", "m"), ("f", "v")
VOWELS = "ɑaæʌɐɒɔoʊuʉɛeɪiəɜᵻɚɝ"
MARKS = STRESS + "ˌː:\u0329\u032a" + CLOSED  # stress, length, and how a consonant is made

FIRST_SHARE = 0.55  # of a diphthong's time that its first part takes
REDUCED = 0.9  # opening of a vowel without stress
# Seconds in which dominance falls to 1/e: jaw, wide, round; before the sound, and behind it.
BEFORE, BEHIND = np.array([0.03, 0.035, 0.08]), np.array([0.03, 0.035, 0.04])
CORE = 0.6  # share of a sound's time in which its dominance is full
PAUSE_DELAY, PAUSE_EARLY = (
    0.05,
    0.06,
)  # seconds by which the mouth closes late and opens early in pauses
SMOOTHING = 0.012  # seconds, standard deviation
STEP = 0.005  # seconds between the points at which the curves are computed
# Seconds from which on a target counts for nothing: dominance falls e-fold in at most 0.08.
REACH = 2.0

# Seconds that lips take to press, and to part with the jaw.
PRESSING, PARTING = 0.055, 0.07
TURN = 0.01  # seconds from one contact to the other, as in "of people"
TUCKED_OPEN = 0.08  # opening in the middle of f and v

FASTEST = 15.0  # openings a second: 0.6 in a frame at 25 a second

LOUDNESS_WINDOW = 0.08  # seconds
LOUDNESS_RANGE = 0.82, 1.06  # factor of the opening, from quiet to loud speech

# Mouths to look at, one for each kind; heads are judged by them.
VISEMES = {
    "rest": (0.0, 0.0, 0.0, 0.0, 0.0),
    "p b m": (0.0, 0.05, 0.0, 1.0, 0.0),
    "f v": (0.08, 0.15, 0.0, 0.0, 1.0),
    "th": (0.26, 0.15, 0.0, 0.0, 0.0),
    "t d n": (0.18, 0.2, 0.0, 0.0, 0.0),
    "s z": (0.1, 0.4, 0.0, 0.0, 0.0),
    "sh ch": (0.16, 0.0, 0.6, 0.0, 0.0),
    "w": (0.12, 0.0, 1.0, 0.0, 0.0),
    "oo": (0.22, 0.0, 1.0, 0.0, 0.0),
    "oh": (0.55, 0.0, 0.85, 0.0, 0.0),
    "aw": (0.72, 0.0, 0.6, 0.0, 0.0),
    "ah": (1.0, 0.0, 0.0, 0.0, 0.0),
    "a": (0.9, 0.4, 0.0, 0.0, 0.0),
    "eh": (0.7, 0.4, 0.0, 0.0, 0.0),
    "ih": (0.42, 0.5, 0.0, 0.0, 0.0),
    "ee": (0.28, 1.0, 0.0, 0.0, 0.0),
}


class Gesture(NamedTuple):
    """One target over a time, in seconds, of full dominance."""

    start: float
    stop: float
    shape: Shape


def mouth_track(speech: Speech, count: int, fps: Fraction) -> Float[np.ndarray, "F 5"]:
    """The mouth in every frame, in the order of `MOUTH`; frame i is at i / fps seconds.

    After the end of the speech the mouth rests.

    Args:
      speech: sounds with their times, and samples, whose loudness opens the mouth a little more or less.
      count: frames.
      fps: frames a second.

    Raises:
      InputError: a sound is not English.
    """
    times = np.arange(count) / float(fps)
    if not count:
        return np.zeros((0, len(MOUTH)))
    grid = np.arange(0, max(times[-1], len(speech.samples) / speech.rate) + 2 * STEP, STEP)
    jaw_and_lips = dominated(gestures(speech), grid)
    jaw_and_lips[:, 0] *= loudness(speech, grid)
    jaw_and_lips = smoothed(jaw_and_lips)
    press, parted, shut = (
        contact(speech, LABIALS, grid, ramp) for ramp in (PRESSING, PARTING, TURN)
    )
    tuck, bitten = (contact(speech, LABIODENTALS, grid, ramp) for ramp in (PARTING, TURN))
    jaw_and_lips[:, 0] = jaw_and_lips[:, 0] * (1 - tuck) + TUCKED_OPEN * tuck
    opening = limited(jaw_and_lips[:, 0] * (1 - parted))
    track = np.column_stack([opening, jaw_and_lips[:, 1:], press * (1 - bitten), tuck * (1 - shut)])
    return np.stack([np.interp(times, grid, column) for column in track.clip(0, 1).T], axis=1)


def gestures(speech: Speech) -> list[Gesture]:
    """The targets of all sounds; diphthongs, and vowels with an r or l in one symbol, have several."""
    end = len(speech.samples) / speech.rate
    found = []
    for start, stop, symbol in speech.phonemes:
        if symbol == PAUSE:
            # The core of a short pause is empty, so that the mouth hardly rests in it.
            core = min(start + PAUSE_DELAY, stop), max(stop - PAUSE_EARLY, start)
            middle = (start + stop) / 2
            if core[0] >= core[1]:
                core = middle, middle
            found.append(Gesture(*core, SHAPES[PAUSE]))
            continue
        units = units_of(symbol)
        rest = len(units) - 1
        shares = [FIRST_SHARE] + [(1 - FIRST_SHARE) / rest] * rest if rest else [1.0]
        stressed = STRESS in symbol
        for unit, share in zip(units, shares, strict=True):
            shape, length = SHAPES[ALIKE.get(unit, unit)], share * (stop - start)
            if unit in VOWELS and not stressed:
                shape = shape._replace(open=REDUCED * shape.open)
            margin = length * (1 - CORE) / 2
            found.append(Gesture(start + margin, start + length - margin, shape))
            start += length
    return [*found, Gesture(end + PAUSE_DELAY, np.inf, SHAPES[PAUSE])]


def units_of(symbol: str) -> list[str]:
    """The sounds that a phoneme's symbol is made of, as keys of `SHAPES` and `ALIKE`."""
    plain = "".join(letter for letter in symbol if letter not in MARKS)
    units = [plain] if plain in ALIKE else list(plain)
    if unknown := [unit for unit in units if unit not in SHAPES and unit not in ALIKE]:
        raise InputError(f"no mouth shape is known for the sound {unknown[0]!r}; speak English")
    return units


def dominated(targets: list[Gesture], grid: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T 3"]:
    """Open, wide and round: means of the targets weighted by their dominance at each time.

    A target that is seconds away counts for nothing, and is left out, or long speech would take long.
    """
    parts = np.array_split(grid, max(1, round(len(grid) * STEP / REACH)))
    near = lambda t, part: part[0] - REACH < t.stop and t.start < part[-1] + REACH
    return np.concatenate([weighed([t for t in targets if near(t, p)], p) for p in parts])


def weighed(targets: list[Gesture], grid: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T 3"]:
    """`dominated` for some of the targets."""
    start, stop = (
        np.array([getattr(g, side) for g in targets])[:, None] for side in Gesture._fields[:2]
    )
    away = np.where(grid < start, grid - start, np.maximum(grid - stop, 0))  # (targets, T)
    values = np.array([g.shape[:3] for g in targets])
    insists = np.array([(g.shape.jaw, g.shape.lips, g.shape.lips) for g in targets])
    columns = []
    for i in range(3):
        exponent = -np.where(away < 0, -away / BEFORE[i], away / BEHIND[i])
        exponent += np.log(insists[:, i, None])
        dominance = np.exp(
            exponent - exponent.max(axis=0)
        )  # where all are weak the nearest decides
        columns.append(values[:, i] @ dominance / dominance.sum(axis=0))
    return np.stack(columns, axis=1)


def contact(
    speech: Speech, sounds: tuple[str, ...], grid: Float[np.ndarray, " T"], ramp: float
) -> Float[np.ndarray, " T"]:
    """1 while lips are in contact in some sounds, 0 from `ramp` seconds before and behind."""
    closed = np.zeros_like(grid)
    for start, stop, symbol in speech.phonemes:
        plain = symbol.replace(CLOSED, "").strip(MARKS)
        # A stop's lips are shut in its closure and not after it.
        if plain not in sounds or (plain in ("p", "b") and CLOSED not in symbol):
            continue
        away = np.maximum(np.maximum(start - grid, grid - stop), 0)
        closed = np.maximum(closed, smooth_step(1 - away / ramp))
    return closed


def loudness(speech: Speech, grid: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """The factor of the opening: the sound's level against the loud parts of the speech."""
    window = max(1, round(LOUDNESS_WINDOW * speech.rate))
    power = np.concatenate([[0.0], np.cumsum(speech.samples.astype(np.float64) ** 2)])
    middle = np.round(grid * speech.rate).astype(int)
    first, last = (
        np.clip(middle + side, 0, len(power) - 1) for side in (-window // 2, window // 2)
    )
    level = np.sqrt((power[last] - power[first]) / window)
    full = np.percentile(level[level > 0], 80) if level.any() else 1.0
    least, most = LOUDNESS_RANGE
    return least + (most - least) * np.clip(level / full, 0, 1)


def limited(opening: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """The greatest opening that is nowhere above the given one and changes by `FASTEST` at most.

    So a short vowel between closed lips stays small, and the lips stay closed.
    """
    slope = FASTEST * STEP * np.arange(len(opening))
    opening = np.minimum.accumulate(opening - slope) + slope
    return np.minimum.accumulate((opening - slope[::-1])[::-1])[::-1] + slope[::-1]


def smoothed(curves: Float[np.ndarray, "T C"]) -> Float[np.ndarray, "T C"]:
    """The curves without corners: averaged by a Gaussian over time."""
    reach = round(4 * SMOOTHING / STEP)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) * STEP / SMOOTHING) ** 2)
    padded = np.pad(curves, ((reach, reach), (0, 0)), "edge")
    return np.stack(
        [np.convolve(column, weights / weights.sum(), "valid") for column in padded.T], axis=1
    )
