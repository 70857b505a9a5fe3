"""One clip: what networks on the device say of its pictures, its faces, and its sound.

The videos are read again for this: decoding costs less than moving pictures between processes. Threads read
several clips side by side, and the device works for one of them at a time.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import cv2
import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from unavglip_jax import assets, published
from unavglip_jax.config import InputError, validate
from unavglip_jax.dubbing import dub
from unavglip_jax.evaluation import behaviour, measure, picture, sync
from unavglip_jax.evaluation import identity as identities
from unavglip_jax.evaluation.measure import Comparison, Frame, Pair
from unavglip_jax.evaluation.tasks import EvaluateSettings, EvaluateTask
from unavglip_jax.faces import identity
from unavglip_jax.faces.crop import RULES, CropRule, crop, crop_box
from unavglip_jax.media import audio, video

FID_FRAMES = 16  # of a clip, spread over it: neighbours say the same
APART = (
    0.2  # seconds that sound and picture may differ in length without a word; AAC adds up to 0.1
)
# What each network of lip sync is measured for, and what its scores are called by.
SYNCNETS = {
    "syncnet_v2": ("LSE-C and LSE-D", "lse"),
    "wav2lip_syncnet": ("the score of Wav2Lip's expert", "wav2lip"),
    "stable_syncnet": ("the score of StableSyncNet", "stable"),
}
CROWDS = {"inception": "FID", "i3d": "FVD"}  # network -> metric

Series = dict[str, Float[np.ndarray, " F"]]
P = ParamSpec("P")
T = TypeVar("T")


class Networks(NamedTuple):
    """What runs on the device; None or absent for what is not there.

    Attributes:
      embed: of faces.
      lpips: distance of pairs of pictures.
      experts: of lip sync, by kind.
      inception: features for FID.
      i3d: features for FVD.
      rule: of the crops that experts see.
    """

    embed: identity.Embedder | None = None
    lpips: Callable | None = None
    experts: Mapping[str, sync.Expert] = {}
    inception: Callable | None = None
    i3d: Callable | None = None
    rule: CropRule = RULES["musetalk_v10"]


# ---- what there is -----------------------------------------------------------------------------------


def left_out(settings: EvaluateSettings) -> dict[str, str]:
    """A sentence for each network that the settings do not give, by its name."""
    has = assets.read_pack(settings.pack).components if settings.pack else {}
    adding = "`unavglip convert add` adds one"
    metrics = {"identity": "identity (CSIM)", "lpips": "LPIPS"}
    metrics |= {kind: metric for kind, (metric, _) in SYNCNETS.items()}
    reasons = {
        name: f"{settings.pack} has no {name}; {adding}" if settings.pack else "no pack was given"
        for name in metrics
        if name not in has and not (name == "identity" and settings.insightface)
    }
    if stable := has.get("stable_syncnet"):
        config = validate(assets.network_of("stable_syncnet")[1], stable.config, "stable_syncnet")
        try:
            sync.view("stable_syncnet", config)
        except InputError as error:  # one of latents is of no use here, and no reason to stop
            reasons["stable_syncnet"] = str(error)
    sentences = {name: f"{metrics[name]} was left out: {why}" for name, why in reasons.items()}
    for name, metric in CROWDS.items():
        if getattr(settings, name) is None:
            how = f"`unavglip assets fetch {name}` brings it, or --{name} names its file"
            sentences[name] = f"{metric} was left out: its network is not here; {how}"
    return sentences


def with_fetched(settings: EvaluateSettings) -> EvaluateSettings:
    """The settings, with the networks of FID and FVD where `unavglip assets fetch` has brought them."""
    unnamed = [name for name in CROWDS if getattr(settings, name) is None]
    return settings.replace(**{name: published.here(name) for name in unnamed})


def load(settings: EvaluateSettings) -> Networks:
    """The networks that the settings give.

    Raises:
      InputError: one of them is damaged.
    """
    wanted = lambda name: name not in missing
    missing, lock = left_out(settings), threading.Lock()
    alone = lambda function: one_at_a_time(function, lock)
    found = {}
    if wanted("identity"):
        found["embed"] = alone(identities.embedder(settings.pack, settings.insightface))
    if wanted("lpips"):
        found["lpips"] = alone(picture.lpips(settings.pack))
    if wanted("inception"):
        found["inception"] = alone(picture.inception(settings.inception.expanduser()))
    if wanted("i3d"):
        found["i3d"] = alone(picture.i3d(settings.i3d.expanduser()))
    experts = {kind: load_expert(settings, kind) for kind in SYNCNETS if wanted(kind)}
    found["experts"] = {
        kind: expert._replace(picture=alone(expert.picture), sound=alone(expert.sound))
        for kind, expert in experts.items()
    }
    if settings.pack:
        found["rule"] = RULES[assets.read_pack(settings.pack).crop]
    return Networks(**found)


def load_expert(settings: EvaluateSettings, kind: str) -> sync.Expert:
    """A lip-sync network by the back end that was asked for."""
    if settings.backend == "jax":
        return sync.expert(settings.pack, kind, jax.devices())
    from unavglip_jax.evaluation import torch_judge

    return torch_judge.expert(settings.pack, kind)


def one_at_a_time(function: Callable[P, T], lock: threading.Lock) -> Callable[P, T]:
    """The function, for which threads wait until the lock is free: of several, memory would not do."""

    @wraps(function)
    def waiting(*arguments: P.args, **options: P.kwargs) -> T:
        with lock:
            return function(*arguments, **options)

    return waiting


# ---- pictures ----------------------------------------------------------------------------------------


def look(
    networks: Networks, task: EvaluateTask, pair: Pair, comparison: Comparison, batch: int
) -> tuple[Series, dict[str, Float[np.ndarray, "N D"]]]:
    """LPIPS of each pair of pictures, and the features of some for FID and FVD of all clips.

    Args:
      networks: see `load`.
      task: what is compared.
      pair: its videos.
      comparison: what is known of them.
      batch: pictures at once.

    Returns:
      The series, and features by name: "inception_true", "inception_made", "i3d_true", "i3d_made".
    """
    if not (networks.lpips or networks.inception or networks.i3d):
        return {}, {}
    has_box = (comparison.boxes >= 0).all(axis=(1, 2))
    crowd, row = spread(has_box), first_in_a_row(has_box)
    distances = np.full(pair.count, np.nan)
    inception, small = [], []
    with closing(measure.pictures(pair, comparison.boxes, task)) as pictures:
        shown = ((i, both) for i, both in enumerate(pictures) if both is not None)
        while part := list(islice(shown, batch)):
            numbers = np.array([i for i, _ in part])
            sides = np.stack([np.stack(both) for _, both in part], axis=1)  # true, made
            if networks.lpips:
                # filled up, so that the network is compiled for one size only
                true, made = sides[:, np.resize(np.arange(len(part)), batch)]
                distances[numbers] = networks.lpips(made, true)[: len(part)]
            chosen = sides[:, np.isin(numbers, crowd)]
            if networks.inception and chosen.shape[1]:
                inception.append([networks.inception(side) for side in chosen])
            if networks.i3d:
                small += [
                    [cv2.resize(side, (picture.I3D_SIDE,) * 2, interpolation=cv2.INTER_AREA)
                     for side in pairs]
                    for pairs in sides[:, np.isin(numbers, row)].swapaxes(0, 1)
                ]  # fmt: skip
    features = {}
    if inception:
        true, made = (np.concatenate(side) for side in zip(*inception, strict=True))
        features |= {"inception_true": true, "inception_made": made}
    if small:
        true, made = networks.i3d(np.stack(small, axis=1))[:, None]
        features |= {"i3d_true": true, "i3d_made": made}
    return {"lpips": distances} if networks.lpips else {}, features


def spread(has_box: Bool[np.ndarray, " F"]) -> Int[np.ndarray, " n"]:
    """The frames whose pictures count for FID: evenly spread over those that have a box."""
    known = np.flatnonzero(has_box)
    places = np.linspace(0, len(known) - 1, min(FID_FRAMES, len(known)))
    return known[places.round().astype(int)]


def first_in_a_row(has_box: Bool[np.ndarray, " F"]) -> Int[np.ndarray, " n"]:
    """The first frames in a row that FVD takes; none if there is always one without a box between."""
    length = picture.I3D_FRAMES
    complete = np.convolve(has_box, np.ones(length, int), "valid") == length
    return np.argmax(complete) + np.arange(length if complete.any() else 0)


def recognise(
    embed: identity.Embedder | None,
    task: EvaluateTask,
    pair: Pair,
    comparison: Comparison,
    settings: EvaluateSettings,
) -> tuple[Series, dict[str, float]]:
    """CSIM and Euclidean distance of each pair of faces, and the likeness to given embeddings.

    Faces are taken from the pictures that are compared, as published: a crop stretches them.
    """
    if embed is None:
        return {}, {}
    person = dub.read_embeddings(Path(task.face_embs_path)) if task.face_embs_path else None
    every, five = settings.identity_every, (comparison.true.five, comparison.made.five)
    seen = []  # generated faces, to compare with the given person

    def face(image, points, box):
        if not np.isfinite(points).all():
            return None
        return identity.align(image, measure.in_pictures(points, box, image.shape[:2]))

    def aligned() -> Iterator[tuple]:
        for i, both in enumerate(measure.pictures(pair, comparison.boxes, task)):
            if i % every:
                continue
            true = made = None
            if both is not None:
                true, made = (face(both[k], five[k][i], comparison.boxes[i, k]) for k in (0, 1))
            if person is not None and made is not None and len(seen) < FID_FRAMES:
                seen.append(made)
            yield made, true

    found = identities.likeness(embed, aligned(), settings.batch_size)
    series = {name: np.full(pair.count, np.nan) for name in ("csim", "identity_distance")}
    series["csim"][::every], series["identity_distance"][::every] = found
    if not seen:
        return series, {}
    alike = identity.cosine(identity.embedded(embed, np.stack(seen)), person)
    return series, {"csim_person": float(alike.mean())}


# ---- sound -------------------------------------------------------------------------------------------


def listen(
    networks: Networks, task: EvaluateTask, pair: Pair, comparison: Comparison
) -> tuple[Series, dict[str, float], list[str]]:
    """Lip sync and motion in silence, and a sentence for what the sound cannot tell.

    The scores of a clip are the means over its face tracks, but the offset is that of the longest.
    """
    path = sound_of(task, pair)
    if path is None:
        return (
            {},
            {},
            ["lip sync by networks and motion in silence were left out: there is no sound"],
        )
    samples, made, notes = video.read_audio(path), comparison.made, []
    heard, shown = len(samples) / audio.SAMPLE_RATE, float(pair.made.duration)
    if abs(heard - shown) > APART:
        notes.append(
            f"the recording lasts {heard:.2f} s, the generated video {shown:.2f} s: lip sync is "
            "measured while both go on"
        )
    quiet = behaviour.silent_frames(samples, pair.count, pair.made.fps)
    motion = behaviour.mouth_motion(made.gaps, quiet, pair.made.fps)
    scores = {
        "silent_motion": motion.silent,
        "speaking_motion": motion.speaking,
        "silent_open": motion.open,
    }
    if not networks.experts:
        return {}, scores, notes
    order = sync.order_at_25(pair.count, pair.made.fps)
    tracks = sync.face_tracks(made.extents[order], made.shots[order])
    if not tracks:
        notes.append(
            "lip sync by networks was left out: no face larger than "
            f"{sync.LEAST_FACE} pixels is seen for more than {sync.LEAST_TRACK / sync.FPS:g} s"
        )
        return {}, scores, notes
    series = {}
    for kind, expert in networks.experts.items():
        metric, prefix = SYNCNETS[kind]
        try:
            found = [
                score(expert, pair, made.landmarks, order, track, samples, networks.rule)
                for track in tracks
            ]
        except InputError as error:
            notes.append(f"{metric} was left out: {error}")
            continue
        for field in ("lse_c", "lse_d") if kind == "syncnet_v2" else ("cosine", "confidence"):
            name = f"{prefix}_{field.removeprefix('lse_')}"
            scores[name] = float(np.mean([getattr(one, field) for one in found]))
        scores[f"{prefix}_offset"] = float(max(found, key=lambda one: len(one.series)).offset)
        values = series[f"{prefix}_series"] = np.full(pair.count, np.nan)
        for track, one in zip(tracks, found, strict=True):
            values[order[track.first : track.first + len(one.series)]] = one.series
    return series, scores, notes


def score(
    expert: sync.Expert,
    pair: Pair,
    landmarks: Float[np.ndarray, "F 68 2"],
    order: Int[np.ndarray, " n"],
    track: sync.Track,
    samples: Float[np.ndarray, " N"],
    rule: CropRule,
) -> sync.LipSync | sync.Agreement:
    """What a network says of one face track; `order` has the frames at 25 a second."""
    numbers = order[track.first : track.first + len(track.boxes)]
    part = sync.track_samples(track, samples)
    with closing(video.read_frames(pair.made, int(numbers[0]), int(numbers[-1]) + 1)) as frames:
        shown = sync.in_order(frames, numbers - numbers[0])
        if expert.view.kind == "syncnet_v2":
            return sync.lse(expert, sync.track_crops(shown, track), part)
        return sync.agreement(expert, face_crops(shown, landmarks[numbers], rule), part)


def face_crops(
    frames: Iterable[Frame], landmarks: Float[np.ndarray, "F 68 2"], rule: CropRule
) -> Iterator[Frame]:
    """The crops of a track, which begins with a face; frames without one take the box before."""
    box = None
    for frame, points in zip(frames, landmarks, strict=False):
        if np.isfinite(points).all():
            box = crop_box(points, frame.shape[:2], rule) or box
        yield crop(frame, box, sync.CROP_SIDE)


def sound_of(task: EvaluateTask, pair: Pair) -> Path | None:
    """The recording that the mouth should follow."""
    if task.audio:
        return task.audio
    if pair.made.has_sound:
        return task.generated_video_path
    return task.gt_video_path if pair.true.has_sound else None
