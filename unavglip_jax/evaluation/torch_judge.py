"""Whether the JAX networks compute what PyTorch does: both run the same pack on the same clip.

Decoding, faces, crops, spectrograms and windows are the same numpy code for both; from there on each goes
its own way, PyTorch on `torch_networks`. JAX runs as dubbing does, LoRA merged, time step folded and identity
cached; PyTorch as published, without any of it.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from unavglip_jax import assets, params
from unavglip_jax.config import AudioFrontEnd, InputError, NetworkConfig, validate
from unavglip_jax.dubbing import dub, generator, hearing
from unavglip_jax.dubbing.stream import Clock
from unavglip_jax.dubbing.tasks import Settings, Task
from unavglip_jax.evaluation import sync
from unavglip_jax.faces import identity
from unavglip_jax.faces.crop import crop
from unavglip_jax.faces.mesh import box_of
from unavglip_jax.media import video
from unavglip_jax.media.audio import SAMPLE_RATE, gather_windows, window_indices
from unavglip_jax.models.layers import audio_positions
from unavglip_jax.models.whisper import WhisperConfig

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    from unavglip_jax.evaluation import torch_networks
except ImportError as error:
    raise InputError(
        f"running networks by PyTorch needs torch, diffusers and transformers ({error}); install "
        "unavglip-jax[eval]"
    ) from error

EXPERTS = ("syncnet_v2", "wav2lip_syncnet", "stable_syncnet")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

RELATIVE = 1e-4  # max|a - b| / max|b|, as for the parity vectors
LEVEL = 1 / 255  # of a sample of a frame
SCORE = 1e-3  # of LSE-C and LSE-D


class Stage(NamedTuple):
    """What was found at one stage.

    Attributes:
      name: of the stage.
      difference: the largest, of JAX from PyTorch; infinite where a value is not finite.
      limit: what it may be.
    """

    name: str
    difference: float
    limit: float

    @property
    def passes(self) -> bool:
        """Whether the two agree."""
        return self.difference <= self.limit


def check_parity(
    pack: str | Path,
    picture: str | Path,
    sound: str | Path,
    frames: int = 8,
    seconds: float = 4.0,
    guide_scale: float = 0.5,
) -> list[Stage]:
    """Runs JAX and PyTorch on a clip and compares them stage by stage, each fed with its own stage before.

    Audio features, identity tokens, latents before and after the UNet, frames, and of the SyncNets that the
    pack has the embeddings, with LSE-C and LSE-D of SyncNet v2. A StableSyncNet of latents, which evaluation
    cannot use, is left out. The person is one of random embeddings, so that no embedder is needed.

    Args:
      pack: its folder.
      picture: a video with a face.
      sound: the recording to dub it with, which may be the video itself.
      frames: how many are dubbed, spread over the clip.
      seconds: how much of the clip is used, from its beginning.
      guide_scale: factor of the identity attention.

    Raises:
      InputError: a file cannot be read, the pack lacks a network of the generator, or there is no face.
    """
    made = generator.load(pack)
    clip = read_clip(made, Path(pack), Path(picture), Path(sound), seconds)
    with jax.default_matmul_precision("highest"):
        stages = generator_stages(made, clip, frames, guide_scale)
        for kind in EXPERTS:
            if (part := made.pack.components.get(kind)) and usable(kind, part):
                stages += expert_stages(clip, kind)
    return stages


def difference(ours: np.ndarray, theirs: np.ndarray, relative: bool = True) -> float:
    """max|a - b|, over max|b| if `relative`; infinite where either is not finite."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return math.inf
    scale = np.abs(theirs).max() if relative else 1.0
    return float(np.abs(ours - theirs).max() / (scale or 1.0))


@contextmanager
def exactly() -> Iterator[None]:
    """Inference, whose convolutions are float32 on a GPU too."""
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


# ---- the clip ---------------------------------------------------------------------------------------


class Clip(NamedTuple):
    """What both are given.

    Attributes:
      pack: the folder of the networks.
      source: the video.
      faces: of its first frames.
      samples: of the beginning of the recording, at 16 kHz.
    """

    pack: Path
    source: video.Picture
    faces: dub.Faces
    samples: Float[np.ndarray, " N"]

    def order(self) -> Int[np.ndarray, " n"]:
        """The frames with a face and its box among those at 25 a second."""
        points, boxes = self.faces.points, self.faces.boxes
        order = sync.order_at_25(len(boxes), self.source.fps)
        return np.array([i for i in order if boxes[i] and np.isfinite(points[i]).all()], np.int64)

    def frames(self, order: Iterable[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The frames with these numbers, which never fall."""
        return sync.in_order(video.read_frames(self.source), order)


def read_clip(
    made: generator.Generator, pack: Path, picture: Path, sound: Path, seconds: float
) -> Clip:
    """Reads the beginning of a clip and finds its face as dubbing does.

    Raises:
      InputError: a file cannot be read, or there is no face.
    """
    source = video.describe(picture)
    samples = video.read_audio(sound)[: round(seconds * SAMPLE_RATE)]
    used = min(source.frames, math.ceil(len(samples) * source.fps / SAMPLE_RATE))
    task, settings = Task(video_path=picture, audio_path=sound), Settings(pack=pack)
    faces = dub.analyse(task, settings, made, source, used, Clock(), dub.progress_bar(True))
    clip = Clip(pack, source, faces, samples)
    if not len(clip.order()):
        raise InputError(
            f"{picture} has no face that can be cropped in its first {seconds:g} s; use another video, "
            "or more of it"
        )
    return clip


# ---- the generator ----------------------------------------------------------------------------------


class Whisper(NamedTuple):
    """The audio encoder as `hearing` calls it."""

    config: WhisperConfig
    encoder: nn.Module

    def __call__(
        self, mel: Float[np.ndarray, "B T M"], front_end: AudioFrontEnd
    ) -> Float[np.ndarray, "B T/2 L C"]:
        """All hidden states."""
        with exactly():
            mel = tensor(mel).transpose(1, 2)
            return array(torch_networks.whisper_states(self.encoder, mel, front_end))


class Outputs(NamedTuple):
    """What a generator makes of some frames, stage by stage.

    Attributes:
      encoded: latents of the crops without their hidden parts, then of the references.
      dubbed: latents of the result.
      crops: the result.
    """

    encoded: Float[np.ndarray, "B h w 8"]
    dubbed: Float[np.ndarray, "B h w 4"]
    crops: UInt8[np.ndarray, "B H W 3"]


def generator_stages(
    made: generator.Generator, clip: Clip, frames: int, guide_scale: float
) -> list[Stage]:
    """From the recording to the frames."""
    config, encoder = load(clip.pack, "whisper")
    judge = hearing.Hearing(Whisper(config, encoder), made.pack.audio_front_end)
    features = [hearing.encode(side, clip.samples) for side in (made.hearing, judge)]
    stages = [Stage("audio features", difference(*features), RELATIVE)]

    tokens = None
    if made.perceiver is not None:
        random = np.random.default_rng(0)
        width = made.perceiver.config.embedding_dim
        people = identity.unit(random.standard_normal((4, width), np.float32))
        _, perceiver = load(clip.pack, "perceiver")
        with exactly():
            tokens = perceiver(tensor(people)[None])
        ours = made.perceiver(people[None])
        stages.append(Stage("identity tokens", difference(ours, array(tokens)), RELATIVE))
        made = generator.with_identity(made, people)

    inputs = chosen_inputs(made.pack, clip, len(features[0]), frames)
    ours = jax_outputs(made, inputs, features[0], guide_scale)
    theirs = torch_outputs(clip.pack, inputs, features[1], tokens, guide_scale)
    stages += [
        Stage("encoded latents", difference(ours.encoded, theirs.encoded), RELATIVE),
        Stage("dubbed latents", difference(ours.dubbed, theirs.dubbed), RELATIVE),
    ]
    levels = difference(ours.crops, theirs.crops, relative=False)
    return [*stages, Stage("frames", levels / 255, LEVEL)]


def chosen_inputs(pack: assets.Pack, clip: Clip, steps: int, frames: int) -> list[generator.Frame]:
    """The inputs of some frames, spread over those that have a box."""
    source, faces = clip.source, clip.faces
    boxed = [i for i, box in enumerate(faces.boxes) if box is not None]
    chosen = {boxed[i] for i in np.linspace(0, len(boxed) - 1, frames).round().astype(int)}
    windows = window_indices(len(faces.boxes), source.fps, steps, pack.audio_front_end)
    numbered = enumerate(video.read_frames(source, 0, len(faces.boxes)))
    settings = Settings(pack=clip.pack)
    every = dub.prepare(numbered, faces, windows, source, settings, pack, Clock())
    return [frame for i, frame in enumerate(every) if i in chosen]


def stacked(inputs: list[generator.Frame]) -> list[np.ndarray]:
    """Crops, references, hidden pixels and windows, each with a batch axis."""
    return [np.stack(x) for x in zip(*(frame.inputs for frame in inputs), strict=True)]


def jax_outputs(
    made: generator.Generator,
    inputs: list[generator.Frame],
    features: Float[np.ndarray, "L S C"],
    guide_scale: float,
) -> Outputs:
    """What dubbing makes, and the latents of the same networks."""
    crops, references, hidden, indices = stacked(inputs)
    images = np.concatenate([np.where(hidden[..., None], 0, crops), references])
    images = images.astype(np.float32) / 127.5 - 1
    latents = call(made.vae.graphdef, "encode", made.vae.weights, images)
    encoded = np.concatenate(np.split(np.asarray(latents), 2), axis=-1)
    windows = gather_windows(features, indices)
    windows = windows + audio_positions(*windows.shape[1:])
    unet = made.unet.graphdef, "__call__", made.unet.weights
    dubbed = call(*unet, encoded, 0, windows, None, 1.0, guide_scale)
    step, rows = generator.make_step(made), hearing.look_up([features], len(features))
    made_crops = generator.generate(step, inputs, len(inputs), rows, guide_scale)
    return Outputs(encoded, np.asarray(dubbed), np.stack([found for found, _ in made_crops]))


@partial(jax.jit, static_argnums=(0, 1))
def call(graphdef, method: str, weights: params.Params, *inputs) -> jax.Array:
    """A method of a network."""
    return getattr(params.bind(graphdef, weights), method)(*inputs)


@exactly()
def torch_outputs(
    pack: Path,
    inputs: list[generator.Frame],
    features: Float[np.ndarray, "L S C"],
    tokens: Float[Tensor, "1 M D"] | None,
    guide_scale: float,
) -> Outputs:
    """The same by diffusers' networks, step by step as published."""
    crops, references, hidden, indices = stacked(inputs)
    config, vae = load(pack, "vae")
    image = lambda x: tensor(x).float().permute(0, 3, 1, 2) / 255 * 2 - 1
    encode = lambda x: config.scaling_factor * vae.encode(image(x)).latent_dist.mode()
    blanked = crops * ~hidden[..., None]
    encoded = torch.cat([encode(blanked), encode(references)], dim=1)

    heard = tensor(gather_windows(features, indices))
    heard = heard + positions(*heard.shape[1:])
    options = {"guide_scale": guide_scale}
    if tokens is not None:
        heard = torch.cat([heard, tokens.expand(len(heard), -1, -1)], dim=1)
        options["tokens"] = tokens.shape[1]
    _, unet = load(pack, "unet", **options)
    dubbed = unet(encoded, 0, heard).sample
    pixels = (vae.decode(dubbed / config.scaling_factor).sample / 2 + 0.5).clamp(0, 1) * 255
    last = lambda x: array(x.permute(0, 2, 3, 1))
    return Outputs(last(encoded), last(dubbed), last(pixels.round().byte()))


def positions(length: int, width: int) -> Float[Tensor, "length width"]:
    """What MuseTalk adds to the audio tokens: sines at even channels, cosines at odd."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(DEVICE)


# ---- the judges of lip sync -------------------------------------------------------------------------


def expert(pack: str | Path, kind: str) -> sync.Expert:
    """`sync.expert`, run by PyTorch; resizing and stacking of the crops included.

    Raises:
      InputError: the pack has no such network, it is damaged, or it is a StableSyncNet of latents.
    """
    config, network = load(pack, kind)
    seen = sync.view(kind, config)
    embed = {"syncnet_v2": "lip", "wav2lip_syncnet": "face", "stable_syncnet": "visual"}[kind]
    embed = getattr(network, embed)

    @exactly()
    def picture(crops):
        frames = tensor(crops).float().permute(0, 3, 1, 2)
        if kind == "wav2lip_syncnet":
            frames = functional.interpolate(frames, (96, 96), mode="bilinear")
            frames = frames[:, :, 48:].flip(1) / 255
        if kind == "stable_syncnet":
            frames = frames[:, :, frames.shape[2] // 2 :] / 255 * 2 - 1
            size = config.visual_encoder.size
            frames = functional.interpolate(frames, size, mode="bilinear", antialias=True)
        count = len(frames) - seen.frames + 1
        windows = torch.stack([frames[i : i + seen.frames] for i in range(count)])
        if kind == "syncnet_v2":
            return array(embed(windows.flip(2).transpose(1, 2)))
        return array(embed(windows.flatten(1, 2)))

    @exactly()
    def sound(rows):
        return array(network.audio(tensor(rows).transpose(1, 2)[:, None]))

    return sync.Expert(seen, picture, sound)


def usable(kind: str, component: assets.Component) -> bool:
    """Whether evaluation can use a network, which it cannot if that sees latents."""
    config = validate(assets.network_of(kind)[1], component.config, kind)
    try:
        sync.view(kind, config)
    except InputError:
        return False
    return True


def expert_stages(clip: Clip, kind: str) -> list[Stage]:
    """Embeddings of a network and, of SyncNet v2, the scores."""
    order, samples, faces = clip.order(), clip.samples, clip.faces
    if kind == "syncnet_v2":
        extents = np.stack([box_of(faces.points[i]) for i in order])
        tracks = sync.face_tracks(extents, least_track=0, least_face=0)
        track = max(tracks, key=lambda track: len(track.boxes))
        order, samples = order[track.first :], sync.track_samples(track, samples)
        crops = lambda: sync.track_crops(clip.frames(order), track)
    else:
        side, boxes = sync.CROP_SIDE, [faces.boxes[i] for i in order]
        crops = lambda: map(partial(crop, size=side), clip.frames(order), boxes)
    experts = sync.expert(clip.pack, kind), expert(clip.pack, kind)
    ours, theirs = (sync.embeddings(one, crops(), samples) for one in experts)
    stages = [
        Stage(f"{kind}, picture", difference(ours.picture, theirs.picture), RELATIVE),
        Stage(f"{kind}, sound", difference(ours.sound, theirs.sound), RELATIVE),
    ]
    if kind == "syncnet_v2":
        found = sync.distances_to_scores(sync.distances(*ours))
        pairs = zip(("LSE-C", "LSE-D"), (found.lse_c, found.lse_d), scores(*theirs), strict=True)
        stages += [Stage(name, difference(a, b, relative=False), SCORE) for name, a, b in pairs]
    return stages


@exactly()
def scores(
    picture: Float[np.ndarray, "N D"], sound: Float[np.ndarray, "N D"]
) -> tuple[float, float]:
    """LSE-C and LSE-D of the embeddings of a clip, by PyTorch's own distances and median."""
    picture, sound = tensor(picture), tensor(sound)
    heard = functional.pad(sound, (0, 0, sync.SHIFTS, sync.SHIFTS))
    shifted = heard.unfold(0, len(picture), 1).unbind()
    means = torch.stack([functional.pairwise_distance(picture, x.T).mean() for x in shifted])
    return float(means.median() - means.min()), float(means.min())


# ---- between the two --------------------------------------------------------------------------------


def load(pack: str | Path, name: str, **options) -> tuple[NetworkConfig, nn.Module]:
    """`torch_networks.load`, on the GPU if there is one."""
    config, network = torch_networks.load(pack, name, **options)
    return config, network.to(DEVICE)


def tensor(x: np.ndarray) -> Tensor:
    """A copy on the device."""
    return torch.tensor(x, device=DEVICE)


def array(x: Tensor) -> np.ndarray:
    """Back again."""
    return x.cpu().numpy()
