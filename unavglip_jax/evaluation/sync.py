"""Whether the lips go with the sound.

Three networks that were trained to tell (SyncNet v2 behind LSE-C and LSE-D, Wav2Lip's expert, StableSyncNet),
and measures against a truth that is known. All networks see 25 frames a second: `order_at_25` says which
frames these are. Each is an `Expert`, run by JAX (`expert`) or by PyTorch (`torch_judge`) alike.

Offsets are in frames of 25 a second. A positive one means that the sound comes too early: frame i goes with
the sound of frame i - offset, and delaying the sound by `offset` puts it right.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from unavglip_jax import assets, params
from unavglip_jax.config import InputError, NetworkConfig
from unavglip_jax.dubbing.generator import placements
from unavglip_jax.faces.crop import RULES, checked_frame, checked_landmarks, edges
from unavglip_jax.faces.identity import FIVE, INNER_LIPS
from unavglip_jax.media import audio
from unavglip_jax.training.losses import LIPS, expert_input, stable_input

FPS = 25
SHIFTS = 15  # frames each way that sound and picture are tried at
SAMPLES_A_FRAME = audio.SAMPLE_RATE // FPS
BATCH = 32  # windows at once

# Face tracks, as in syncnet_python and LatentSync.
LONGEST_GAP = 25  # frames that a track may have no face for
LEAST_OVERLAP = 0.5  # intersection over union of a track's boxes in a row
LEAST_TRACK = 50  # frames; a track is longer (100 in syncnet_python, 50 in LatentSync)
LEAST_FACE = 100  # pixels; a face is larger
CROP_MARGIN = 0.4
SYNCNET_SIDE = 224
GREY = 110  # around the frame

CROP_SIDE = 256  # of crops by the pack's rule
STILL = 1e-12  # mean square, in squared distances between the eyes, of a gap that does not move

T = TypeVar("T")


# ---- networks ----------------------------------------------------------------------------------------


class View(NamedTuple):
    """What a network sees and hears at once.

    Attributes:
      kind: "syncnet_v2", "wav2lip_syncnet" or "stable_syncnet", as in a pack.
      frames: pictures in a row, at 25 a second.
      side: pixels a side of the crops it is given. "syncnet_v2" takes `track_crops`, the others crops by the
        pack's rule, resized to 256x256.
      features: of samples at 16 kHz, (T, C).
      rate: rows of them a second.
      rows: of them that go with the pictures.
    """

    kind: str
    frames: int
    side: int
    features: Callable[[Float[np.ndarray, " N"]], Float[np.ndarray, "T C"]]
    rate: int
    rows: int


class Expert(NamedTuple):
    """A network and its weights, whoever runs it.

    Attributes:
      view: what it sees and hears.
      picture: RGB crops in a row, uint8 (n, side, side, 3), to an embedding for each of the
        n - view.frames + 1 windows of them, float32 (m, D).
      sound: feature rows of m windows, float32 (m, view.rows, C), to embeddings, float32 (m, D).
    """

    view: View
    picture: Callable[[UInt8[np.ndarray, "n S S 3"]], Float[np.ndarray, "m D"]]
    sound: Callable[[Float[np.ndarray, "m R C"]], Float[np.ndarray, "m D"]]


def view(kind: str, config: NetworkConfig) -> View:
    """What a network of a kind and configuration sees and hears.

    Raises:
      InputError: it is a StableSyncNet of latents, which needs a VAE that evaluation does not have.
    """
    if kind == "syncnet_v2":
        return View(kind, 5, SYNCNET_SIDE, audio.syncnet_mfcc, 100, 20)
    if kind == "wav2lip_syncnet":
        return View(kind, 5, CROP_SIDE, audio.wav2lip_mel, audio.MEL_RATE, 16)
    picture, sound = config.visual_encoder, config.audio_encoder
    if picture.size[1] != 2 * picture.size[0]:
        raise InputError(
            "the pack's stable_syncnet sees latents, not pictures; evaluation needs one that sees the "
            "lower halves of crops, such as 16_pixel"
        )
    frames = picture.in_channels // 3
    return View(kind, frames, CROP_SIDE, audio.wav2lip_mel, audio.MEL_RATE, sound.size[1])


def expert(folder: str | Path, kind: str, devices: Sequence | None = None) -> Expert:
    """A network of a pack, run by JAX; its windows are divided over the devices.

    Args:
      folder: the pack.
      kind: "syncnet_v2", "wav2lip_syncnet" or "stable_syncnet".
      devices: the first one if not given.

    Raises:
      InputError: the pack has none, or it is damaged.
    """
    network = assets.load_network(folder, kind)
    devices = list(devices or jax.devices()[:1])
    batch, whole = placements(devices)
    weights = jax.device_put(network.weights, whole)
    seen = view(kind, network.config)

    def picture(crops):
        count = len(crops) - seen.frames + 1
        starts = np.minimum(np.arange(-(-count // len(devices)) * len(devices)), count - 1)
        inputs = jax.device_put(crops, whole), jax.device_put(starts, batch)
        return np.asarray(see(kind, seen.frames, network.graphdef, weights, *inputs))[:count]

    def sound(rows):
        more = -len(rows) % len(devices)
        filled = np.concatenate([rows, rows[:1].repeat(more, axis=0)])
        return np.asarray(hear(network.graphdef, weights, jax.device_put(filled, batch)))[
            : len(rows)
        ]

    return Expert(seen, picture, sound)


@partial(jax.jit, static_argnums=(0, 1, 2))
def see(kind, frames, graphdef, weights, crops, starts):
    """Embeddings of the windows of crops, uint8 RGB, that begin at `starts`."""
    windows = crops[starts[:, None] + np.arange(frames)].astype(jnp.float32)
    network = params.bind(graphdef, weights)
    with jax.default_matmul_precision("highest"):
        if kind == "syncnet_v2":
            return network.lip(windows[..., ::-1])
        if kind == "wav2lip_syncnet":
            return network.face(expert_input(windows / 127.5 - 1))
        size = network.config.visual_encoder.size
        return network.visual(stable_input(windows / 127.5 - 1, size))


@partial(jax.jit, static_argnums=0)
def hear(graphdef, weights, rows):
    """Embeddings of feature rows (m, R, C)."""
    with jax.default_matmul_precision("highest"):
        return params.bind(graphdef, weights).audio(rows.swapaxes(1, 2)[..., None])


class Embeddings(NamedTuple):
    """Of the windows of a clip, one beginning at each frame.

    Attributes:
      picture: of the pictures.
      sound: of the sound at the same time.
    """

    picture: Float[np.ndarray, "N D"]
    sound: Float[np.ndarray, "N D"]


def embeddings(
    expert: Expert, crops: Iterable[UInt8[np.ndarray, "S S 3"]], samples: Float[np.ndarray, " N"]
) -> Embeddings:
    """The embeddings of a clip; its crops are taken a batch at a time.

    As published there is one window less than there could be: min(frames, samples // 640) - view.frames.

    Args:
      expert: the network.
      crops: of the frames at 25 a second (`order_at_25`), RGB, `expert.view.side` pixels a side.
      samples: of the recording at 16 kHz, beginning with the first crop.

    Raises:
      InputError: the clip is shorter than one window.
    """
    seen = expert.view
    heard = len(samples) // SAMPLES_A_FRAME  # frames that have sound
    picture, windows = [], 0
    for part in overlapping(islice(crops, heard), seen):
        filled = np.concatenate([part, part[-1:].repeat(BATCH + seen.frames - 1 - len(part), 0)])
        picture.append(expert.picture(filled)[: len(part) - seen.frames + 1])
        windows += len(picture[-1])
    count = windows - 1
    if count < 1:
        raise InputError(
            f"the clip has {heard} frames of sound and {windows} windows of {seen.frames} frames of "
            f"picture at 25 a second; {seen.kind} needs more than {seen.frames} of both"
        )
    features = seen.features(samples)
    sound = []
    for start in range(0, count, BATCH):
        numbers = np.minimum(np.arange(start, start + BATCH), count - 1)
        rows = (seen.rate * numbers // FPS)[:, None] + np.arange(seen.rows)
        sound.append(expert.sound(features[rows]))
    return Embeddings(np.concatenate(picture)[:count], np.concatenate(sound)[:count])


def overlapping(
    crops: Iterable[UInt8[np.ndarray, "S S 3"]], seen: View
) -> Iterator[UInt8[np.ndarray, "n S S 3"]]:
    """The crops in parts of `BATCH` windows; the last may have fewer. Parts share crops, not windows."""
    held, size = [], BATCH + seen.frames - 1
    for crop in crops:
        if crop.shape != (seen.side, seen.side, 3) or crop.dtype != np.uint8:
            raise InputError(
                f"a crop is {crop.dtype} of the shape {crop.shape}; {seen.kind} needs uint8 RGB of "
                f"{seen.side}x{seen.side} pixels"
            )
        held.append(crop)
        if len(held) == size:
            yield np.stack(held)
            held = held[BATCH:]
    if len(held) >= seen.frames:
        yield np.stack(held)


# ---- scores ------------------------------------------------------------------------------------------


class LipSync(NamedTuple):
    """What SyncNet v2 says.

    Attributes:
      lse_c: confidence: the median of the mean distances at all shifts, less the least. More is better.
      lse_d: the least mean distance. Less is better.
      offset: at which it is; positive if the sound is early (see the module).
      series: the confidence around each window: the same of its own distances, median of nine windows.
    """

    lse_c: float
    lse_d: float
    offset: int
    series: Float[np.ndarray, " N"]


def lse(
    expert: Expert, crops: Iterable[UInt8[np.ndarray, "S S 3"]], samples: Float[np.ndarray, " N"]
) -> LipSync:
    """LSE-C and LSE-D (arXiv 2008.10010) of one face track; arguments as for `embeddings`.

    The published tools store the crops as a video and its frames as JPEG on the way, which changes the
    scores a little; here they are not compressed.
    """
    return distances_to_scores(distances(*embeddings(expert, crops, samples)))


def distances(
    picture: Float[np.ndarray, "N D"], sound: Float[np.ndarray, "N D"], shifts: int = SHIFTS
) -> Float[np.ndarray, "N 2*shifts+1"]:
    """Of each picture to the sound at shifts -15 to 15; column j is the sound of frame i + j - 15.

    Where there is no such sound the embedding is zero, as published, and its distance counts.
    """
    heard = np.pad(sound, [(shifts, shifts), (0, 0)])
    columns = [
        np.linalg.norm(picture - heard[j : j + len(picture)] + 1e-6, axis=1)
        for j in range(2 * shifts + 1)
    ]
    return np.stack(columns, axis=1)


def distances_to_scores(found: Float[np.ndarray, "N 2*shifts+1"]) -> LipSync:
    """The scores from the distances of `distances`."""
    means = found.mean(axis=0, dtype=np.float64)
    least, median = int(np.argmin(means)), float(np.median(means))
    series = median_filter(median - found[:, least], 9)
    shifts = found.shape[1] // 2
    return LipSync(
        median - float(means[least]), float(means[least]), shifts - least, series.astype(np.float32)
    )


class Agreement(NamedTuple):
    """What an expert with cosines says (Wav2Lip's, StableSyncNet).

    Attributes:
      cosine: mean over the clip, in step, in [0, 1].
      best: the highest mean cosine at any shift.
      offset: that shift; positive if the sound is early (see the module).
      confidence: `best` less the median over the shifts.
      series: the cosine of each window, in step.
    """

    cosine: float
    best: float
    offset: int
    confidence: float
    series: Float[np.ndarray, " N"]


def agreement(
    expert: Expert, crops: Iterable[UInt8[np.ndarray, "S S 3"]], samples: Float[np.ndarray, " N"]
) -> Agreement:
    """How well sound and picture agree; arguments as for `embeddings`."""
    return cosines_to_scores(*embeddings(expert, crops, samples))


def cosines_to_scores(
    picture: Float[np.ndarray, "N D"], sound: Float[np.ndarray, "N D"], shifts: int = SHIFTS
) -> Agreement:
    """The scores from embeddings of unit length; pairs at a shift that do not exist do not count."""
    count = len(picture)
    series = (picture * sound).sum(axis=1)
    means = {}
    # Shifts that leave less than half of the pairs would win by chance.
    for offset in sorted(range(-min(shifts, count // 2), min(shifts, count // 2) + 1), key=abs):
        late, early = max(offset, 0), max(-offset, 0)
        pairs = picture[late : count - early] * sound[early : count - late]
        means[offset] = float(pairs.sum(axis=1).mean())
    offset = max(means, key=means.get)
    confidence = means[offset] - float(np.median(list(means.values())))
    return Agreement(means[0], means[offset], offset, confidence, series)


# ---- what the networks are shown ---------------------------------------------------------------------


def order_at_25(count: int, fps: Fraction) -> Int[np.ndarray, " F"]:
    """The frames of a video to show at 25 a second: at each time the one that is nearest to it.

    Args:
      count: frames of the video.
      fps: its frames a second.
    """
    fps = Fraction(fps)
    slots = math.ceil(count * FPS / fps)
    nearest = [math.ceil(slot * fps / FPS - Fraction(1, 2)) for slot in range(slots)]
    return np.minimum(np.array(nearest, np.int64), count - 1)


def in_order(items: Iterable[T], order: Iterable[int]) -> Iterator[T]:
    """The items with these numbers, which never fall; the items are taken as they are needed."""
    order = iter(order)
    wanted = next(order, None)
    for number, item in enumerate(items):
        while number == wanted:
            yield item
            wanted = next(order, None)
        if wanted is None:
            return


class Track(NamedTuple):
    """A face over successive frames.

    Attributes:
      first: number of its first frame.
      boxes: left, top, right and bottom in pixels, in every frame.
    """

    first: int
    boxes: Float[np.ndarray, "N 4"]


def face_tracks(
    boxes: Float[np.ndarray, "F 4"],
    shots: Int[np.ndarray, " F"] | None = None,
    least_track: int = LEAST_TRACK,
    least_face: float = LEAST_FACE,
) -> list[Track]:
    """The tracks of a face, for `track_crops`.

    As the published tools make them, with these differences: the boxes are those of our tracker's mesh
    (`faces.mesh.box_of`: hairline to chin, ear to ear) instead of S3FD's in a picture of a quarter the
    size; there is one face a frame, the one that was dubbed; shots are the tracker's.

    Args:
      boxes: of the face in each frame at 25 a second, NaN where there is none.
      shots: of each frame (`tracking.FaceTrack.shot`); no track goes over a change.
      least_track: tracks are longer than so many frames.
      least_face: the larger of a track's mean width and height is above so many pixels.
    """
    shots = np.zeros(len(boxes), int) if shots is None else np.asarray(shots)
    found = np.flatnonzero(np.isfinite(boxes).all(axis=1))
    tracks = []
    for shot in np.unique(shots[found]):
        left = [int(i) for i in found if shots[i] == shot]
        while left:
            track = [left[0]]
            for i in left[1:]:
                if i - track[-1] > LONGEST_GAP:
                    break
                if intersection_over_union(boxes[i], boxes[track[-1]]) > LEAST_OVERLAP:
                    track.append(i)
            left = sorted(set(left) - set(track))
            if len(track) <= least_track:
                continue
            frames = np.arange(track[0], track[-1] + 1)
            whole = np.stack([np.interp(frames, track, edge) for edge in boxes[track].T], axis=1)
            if (whole[:, 2:] - whole[:, :2]).mean(axis=0).max() > least_face:
                tracks.append(Track(track[0], whole))
    return sorted(tracks, key=lambda track: track.first)


def intersection_over_union(a: Float[np.ndarray, " 4"], b: Float[np.ndarray, " 4"]) -> float:
    """Of two boxes: left, top, right, bottom."""
    inner = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    area = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner
    return float(inner / area) if area > 0 else 0.0


def track_crops(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]], track: Track
) -> Iterator[UInt8[np.ndarray, "224 224 3"]]:
    """The crops of a track for "syncnet_v2": mouth and chin in the middle, steadied over 13 frames.

    Args:
      frames: RGB, beginning with the track's first.
      track: what to crop.
    """
    left, top, right, bottom = track.boxes.T
    half = median_filter(np.maximum(right - left, bottom - top) / 2, 13)
    middle_x, middle_y = (median_filter(x, 13) for x in ((left + right) / 2, (top + bottom) / 2))
    for frame, s, x, y in zip(frames, half, middle_x, middle_y, strict=False):
        checked_frame(frame)
        # The frame is thought larger by `edge` on all sides, which decides how fractions are cut.
        edge = int(s * (1 + 2 * CROP_MARGIN))
        rows = int(y + edge - s), int(y + edge + s * (1 + 2 * CROP_MARGIN))
        across = s * (1 + CROP_MARGIN)
        columns = int(x + edge - across), int(x + edge + across)
        larger = cv2.copyMakeBorder(frame, *[edge] * 4, cv2.BORDER_CONSTANT, value=(GREY,) * 3)
        face = larger[slice(*rows), slice(*columns)]
        yield cv2.resize(face, (SYNCNET_SIDE, SYNCNET_SIDE), interpolation=cv2.INTER_LINEAR)


def median_filter(values: Float[np.ndarray, " N"], size: int) -> Float[np.ndarray, " N"]:
    """The median of `size` values around each; those beyond the ends are 0, as in scipy's `medfilt`."""
    padded = np.pad(values, size // 2)
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, size), axis=1)


def track_samples(track: Track, samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, " n"]:
    """The part of a recording, at 16 kHz, that goes with a track at 25 frames a second."""
    return samples[
        track.first * SAMPLES_A_FRAME : (track.first + len(track.boxes)) * SAMPLES_A_FRAME
    ]


# ---- against the truth -------------------------------------------------------------------------------


def lip_gap(points: Float[np.ndarray, "*F P C"]) -> Float[np.ndarray, "*F"]:
    """Distance between the inner lips, in distances between the eyes; NaN where there is no face.

    Args:
      points: of one face or of every frame: iBUG's 68 or the mesh of 468, in pixels.
    """
    points = np.asarray(points, np.float64)
    if points.ndim < 2 or points.shape[-2] not in FIVE:
        raise InputError(
            f"landmarks of the shape {points.shape} are not known; give iBUG's 68 points or the mesh of 468"
        )
    kind, flat = points.shape[-2], points[..., :2]
    right, left = (flat[..., group, :].mean(axis=-2) for group in FIVE[kind][:2])
    upper, lower = (flat[..., i, :] for i in INNER_LIPS[kind])
    return np.linalg.norm(lower - upper, axis=-1) / np.linalg.norm(left - right, axis=-1)


class Correlation(NamedTuple):
    """How the opening of a mouth goes with the true one.

    Attributes:
      in_step: Pearson's, without a shift; NaN where one of the two does not move.
      lag: frames by which the found one comes later than the true one, where they go together best.
      best: Pearson's there.
    """

    in_step: float
    lag: int
    best: float


def gap_correlation(
    found: Float[np.ndarray, " F"], true: Float[np.ndarray, " F"], max_lag: int = 6
) -> Correlation:
    """The correlation of two series of gaps, at no lag and at the best; frames with NaN are left out."""
    found, true = np.asarray(found, np.float64), np.asarray(true, np.float64)
    if found.shape != true.shape or found.ndim != 1:
        raise InputError(
            f"{found.shape} gaps cannot be compared with {true.shape}; align the clips first"
        )
    count, at = len(true), {}
    max_lag = min(max_lag, max(count - 1, 0))
    for lag in sorted(range(-max_lag, max_lag + 1), key=abs):
        late, early = max(lag, 0), max(-lag, 0)
        at[lag] = pearson(found[late : count - early], true[early : count - late])
    known = [lag for lag in at if np.isfinite(at[lag])]
    best = max(known, key=at.get, default=0)
    return Correlation(at[0], best, at[best])


def pearson(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> float:
    """The correlation where both are known; NaN for less than three pairs and for what does not vary."""
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 3:
        return float("nan")
    x, y = (values[known] - values[known].mean() for values in (x, y))
    if min(x @ x, y @ y) < STILL * len(x):
        return float("nan")
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


class LandmarkDistance(NamedTuple):
    """Mean distance of landmarks from the true ones (LMD); frame by frame, NaN where one has no face.

    Attributes:
      mouth: of the lips' 20 points, once the middles of both mouths are put together (Chen et al., Lip
        Movements Generation at a Glance, 2018); in percent of the true distance between the eyes.
      face: of all 68, as they are; likewise.
      mouth_pixels: as `mouth`, in pixels of the true face's crop (MuseTalk's rule) at 256x256.
      face_pixels: as `face`, likewise.
    """

    mouth: Float[np.ndarray, " F"]
    face: Float[np.ndarray, " F"]
    mouth_pixels: Float[np.ndarray, " F"]
    face_pixels: Float[np.ndarray, " F"]


def landmark_distance(
    found: Float[np.ndarray, "F 68 2"], true: Float[np.ndarray, "F 68 2"]
) -> LandmarkDistance:
    """LMD of every frame of a clip; landmarks in pixels of frames of the same size."""
    found, true = (checked_landmarks(points, "F 68 2") for points in (found, true))
    if found.shape != true.shape:
        raise InputError(
            f"landmarks of {len(found)} frames cannot be compared with those of {len(true)}; align the "
            "clips first"
        )
    right, left = (true[:, group].mean(axis=1) for group in FIVE[68][:2])
    eyes = np.linalg.norm(left - right, axis=1)[:, None, None] / 100
    box = edges(true, RULES["musetalk_v10"])
    pixel = (box[:, 2:] - box[:, :2])[:, None] / CROP_SIDE
    away = found - true
    lips = away[:, LIPS] - away[:, LIPS].mean(axis=1, keepdims=True)
    length = lambda difference: np.linalg.norm(difference, axis=-1).mean(axis=-1)
    return LandmarkDistance(
        length(lips / eyes), length(away / eyes), length(lips / pixel), length(away / pixel)
    )
