"""A tiny pack, and clips that a tiny generator can learn from: a mouth that is as open as the sound says."""

from pathlib import Path

import cv2
import numpy as np
import yaml
from test_unet import CONTEXT

import tiny
import tiny_data
from unavglip_jax import assets
from unavglip_jax.data import clips
from unavglip_jax.data.clips import Description

LAYERS = 5


def description(pack: Path) -> Description:
    found = assets.read_pack(pack)
    digest = lambda name: found.components[name].sha256
    return Description(
        image_size=found.image_size,
        crop=found.crop,
        audio_front_end=found.audio_front_end,
        whisper=digest("whisper"),
        embedder="identity",
        embedder_sha256=digest("identity"),
        mask=found.mask,
    )


def face(person: int, opening: float) -> np.ndarray:
    """A face of one colour with a dark mouth."""
    rng = np.random.default_rng(person)
    skin = rng.integers(120, 230, 3)
    image = np.broadcast_to(skin, (tiny.SIZE, tiny.SIZE, 3)).astype(np.uint8).copy()
    centre = tiny.SIZE // 2, round(0.74 * tiny.SIZE)
    cv2.ellipse(image, centre, (5, 1 + round(5 * opening)), 0, 0, 360, (40, 10, 10), -1)
    return image


def clip(number: int, source: str, frames: int = 40) -> clips.Clip:
    """The features' first channel is the opening; so is the loudness of the sound."""
    made = tiny_data.tiny_clip(number, source, frames=frames)
    rng = np.random.default_rng([number, 1])
    opening = 0.5 - 0.5 * np.cos(np.cumsum(rng.uniform(0.2, 1.0, frames)))
    steps = np.repeat(opening, 2)
    features = rng.normal(0, 0.1, (2 * frames, LAYERS, CONTEXT))
    features[..., :8] += 4 * steps[:, None, None] - 2
    loud = np.repeat(opening, clips.sample_count(frames) // frames)
    tone = np.sin(2 * np.pi * 220 * np.arange(len(loud)) / 16000)
    identity = np.random.default_rng(number + 50).normal(size=(3, tiny.EMBEDDING))
    identity /= np.linalg.norm(identity, axis=1, keepdims=True)
    return made._replace(
        frames=[clips.encode_frame(face(number, x), 95) for x in opening],
        samples=np.rint(12000 * loud * tone).astype(np.int16),
        features=features.astype(np.float16),
        identity=identity.astype(np.float32),
    )


def write_data(folder: Path, pack: Path) -> Path:
    """A data set of four people, one of them for validation."""
    names = (*tiny_data.SOURCES, "d.mp4")
    paths = tiny_data.write(folder / "clips", [clip(i, name) for i, name in enumerate(names)])
    clips.build(paths, folder / "set", description(pack))
    return folder / "set"


def write_settings(folder: Path, **changes) -> Path:
    """A training configuration beside its pack and its data, made if they are not there."""
    pack, data = folder / "pack", folder / "data" / "set"
    if not pack.exists():
        tiny.write_pack(pack)
        write_data(folder / "data", pack)
    values = {
        "objective": {"kind": "unavglip", "pack": str(pack), "losses": {"pixel": 1.0}},
        "data": {"path": str(data), "batch_size": 4, "sample": {"frames": 1}},
        "optimizer": {"learning_rate": 3e-3},
        "output": str(folder / "run"),
        "steps": 4,
        "log_every": 1,
        "validate_every": 0,
        "checkpoint_every": 2,
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path
