"""A tiny data set of clips in which every array says which clip and which frame it is of."""

from pathlib import Path

import numpy as np

from unavglip_jax.data import clips
from unavglip_jax.data.clips import Clip, Description

SIZE = 32  # side of a crop in pixels
LAYERS, WIDTH, EMBEDDING = 2, 3, 8
SOURCES = ("a.mp4", "films/b.mp4", "films/c.mov")  # c.mov has the lowest hash: validation

DESCRIPTION = Description(
    image_size=SIZE,
    crop="musetalk_v10",
    audio_front_end="v10",
    whisper="0" * 64,
    embedder="identity",
    embedder_sha256="1" * 64,
    mask="lower_half",
)

# A face seen from the front, in sides of the crop: iBUG's 68 points.
ANGLE = np.pi * (1 - np.arange(17) / 16)


def ellipse(x, y, rx, ry, count, first=np.pi):
    angle = first + 2 * np.pi * np.arange(count) / count
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


FACE = np.concatenate(
    [
        np.stack([0.5 + 0.45 * np.cos(ANGLE), 0.35 + 0.6 * np.sin(ANGLE)], axis=1),  # jaw
        np.stack([np.linspace(0.12, 0.42, 5), np.full(5, 0.22)], axis=1),  # brows
        np.stack([np.linspace(0.58, 0.88, 5), np.full(5, 0.22)], axis=1),
        np.stack([np.full(4, 0.5), np.linspace(0.3, 0.55, 4)], axis=1),  # nose
        np.stack([np.linspace(0.42, 0.58, 5), [0.58, 0.59, 0.6, 0.59, 0.58]], axis=1),
        ellipse(0.28, 0.3, 0.07, 0.03, 6),  # eyes
        ellipse(0.72, 0.3, 0.07, 0.03, 6),
        ellipse(0.5, 0.74, 0.13, 0.05, 12),  # lips
        ellipse(0.5, 0.74, 0.09, 0.02, 8),
    ]
)


def picture(clip: int, frame: int) -> np.ndarray:
    """A crop of one colour, from which `told` tells clip and frame after JPEG has changed it a little."""
    return np.full((SIZE, SIZE, 3), (10 + 20 * clip, 5 * frame, 128), np.uint8)


def told(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clip and frame of some pictures (..., H, W, 3)."""
    colour = pictures.astype(np.float64).mean(axis=(-3, -2))
    return np.rint((colour[..., 0] - 10) / 20).astype(int), np.rint(colour[..., 1] / 5).astype(int)


def tiny_clip(
    number: int, source: str, part: int = 0, frames: int = 40, embeddings: int = 3
) -> Clip:
    """Clip `number`: at most 12 of them, and of at most 50 frames."""
    rng = np.random.default_rng(number)
    opening = 1 + 0.5 * np.sin(np.arange(frames) / 2)[:, None, None]
    landmarks = np.repeat(FACE[None], frames, axis=0)
    landmarks[:, 48:] = (landmarks[:, 48:] - [0.5, 0.74]) * opening + [0.5, 0.74]
    identity = rng.normal(size=(embeddings, EMBEDDING))
    identity /= np.linalg.norm(identity, axis=1, keepdims=True)
    steps = np.arange(2 * frames)[:, None, None] + np.zeros((1, LAYERS, WIDTH))
    return Clip(
        name=f"{source}/{part}",
        source=source,
        start=1.25 * part,
        source_fps="30000/1001",
        frames=[clips.encode_frame(picture(number, i), 95) for i in range(frames)],
        landmarks=(SIZE * landmarks - 0.5).astype(np.float32),
        boxes=np.tile(np.array([10, 20, 110, 140], np.int32), (frames, 1)),
        samples=rng.integers(-8000, 8000, clips.sample_count(frames)).astype(np.int16),
        features=(steps + 200 * number).astype(np.float16),
        identity=identity.astype(np.float32),
        identity_frames=np.arange(embeddings, dtype=np.int32) * 5,
    )


def tiny_clips(sources=SOURCES, parts: int = 2, **changes) -> list[Clip]:
    """`parts` clips of each source, in the order of their names."""
    places = [(source, part) for source in sorted(sources) for part in range(parts)]
    return [tiny_clip(n, source, part, **changes) for n, (source, part) in enumerate(places)]


def write(folder: Path, made: list[Clip]) -> list[Path]:
    """Writes a file for each clip."""
    paths = [folder / f"{i:05d}.npz" for i in range(len(made))]
    for path, clip in zip(paths, made, strict=True):
        clips.save_clip(path, clip)
    return paths


def tiny_data_set(folder: Path, made: list[Clip] | None = None, **changes) -> Path:
    """Builds a data set; four of its six clips are for training."""
    paths = write(folder / "clips", tiny_clips() if made is None else made)
    clips.build(paths, folder / "set", DESCRIPTION.replace(**changes))
    return folder / "set"
