"""Looking at a data set: `unavglip dataset inspect` and `unavglip dataset verify`."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import track
from rich.table import Table

from unavglip_jax.config import InputError
from unavglip_jax.data.clips import (
    FPS,
    Clip,
    Clips,
    Description,
    Split,
    decode_frame,
    faults,
    open_data_set,
    person_of,
    replacing,
)
from unavglip_jax.data.pipeline import INNER_LIPS, steady_points

SHOWN = 8  # frames of a clip in a row
UPPER_LIP, LOWER_LIP = slice(61, 64), (67, 66, 65)  # inner border, facing each other


class Figures(NamedTuple):
    """What is counted of one clip.

    Attributes:
      frames: how many.
      source: the video it is from.
      face: side of the crop box in the source, in pixels; the median over the frames.
      low: the smallest coordinate of a landmark, in sides of the crop.
      high: the largest.
      opening: distance of the lips, in distances between the eyes: the 95th less the 5th percentile.
      loudness: root of the mean square, in dB of full scale.
      embeddings: how many.
      jpeg: bytes a frame.
    """

    frames: int
    source: str
    face: float
    low: float
    high: float
    opening: float
    loudness: float
    embeddings: int
    jpeg: float


def figures(clip: Clip, description: Description) -> Figures:
    """Counts one clip."""
    points = steady_points(clip.landmarks)
    gaps = np.linalg.norm(points[:, UPPER_LIP] - points[:, LOWER_LIP], axis=-1).mean(axis=1)
    spread = np.percentile(gaps, 95) - np.percentile(gaps, 5)
    power = np.mean((clip.samples / 32768) ** 2)
    sides = (clip.boxes[:, 2:] - clip.boxes[:, :2]).max(axis=1)
    return Figures(
        frames=len(clip.frames),
        source=clip.source,
        face=float(np.median(sides)),
        low=float(clip.landmarks.min()) / description.image_size,
        high=float(clip.landmarks.max()) / description.image_size,
        opening=float(spread),
        loudness=10 * float(np.log10(max(power, 1e-10))),
        embeddings=len(clip.identity),
        jpeg=sum(map(len, clip.frames)) / len(clip.frames),
    )


def inspect(
    folder: str | Path,
    split: Split,
    count: int,
    output_png: str | Path,
    seed: int = 0,
    console: Console | None = None,
) -> None:
    """Prints statistics of a split, and draws random clips with their landmarks, a row each.

    Raises:
      InputError: the folder is no data set, or has no such split.
    """
    console = console or Console()
    if count < 1:
        raise InputError(f"{count} clips cannot be drawn; give at least 1")
    source, description = open_data_set(folder, split)
    seen = [figures(clip, description) for clip in track(source, "reading", console=console)]
    console.print(summary(f"{folder}, {split}", seen, description))
    numbers = np.random.default_rng(seed).permutation(len(source))[:count]
    sheet = np.concatenate([row(source[int(i)], description) for i in sorted(numbers)])
    _, data = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    with replacing(Path(output_png)) as partial:
        partial.write_bytes(data.tobytes())
    console.print(f"{len(numbers)} clips are drawn in {output_png}")


def summary(title: str, seen: list[Figures], description: Description) -> Table:
    """The figures of all clips as a table."""
    table = Table("", "lowest", "median", "highest", title=title)
    of = lambda name: np.array([getattr(clip, name) for clip in seen], np.float64)
    total = of("frames").sum() / FPS
    table.add_row("clips", "", str(len(seen)), "")
    table.add_row("videos", "", str(len({clip.source for clip in seen})), "")
    table.add_row("hours", "", f"{total / 3600:.3g}", "")
    table.add_row("with embeddings", "", f"{(of('embeddings') > 0).mean():.0%}", "")
    rows = {
        "seconds a clip": of("frames") / FPS,
        "clips a video": np.array(list(Counter(clip.source for clip in seen).values())),
        "crop box in the video, pixels": of("face"),
        "smallest landmark, crops": of("low"),
        "largest landmark, crops": of("high"),
        "spread of the mouth's opening, eye distances": of("opening"),
        "loudness, dB": of("loudness"),
        "embeddings a clip": of("embeddings"),
        "JPEG, kB a frame": of("jpeg") / 1000,
    }
    for name, values in rows.items():
        cells = (values.min(), np.median(values), values.max())
        table.add_row(name, *(f"{cell:.3g}" for cell in cells))
    made = description.model_dump(exclude={"sources"}).items()
    table.caption = ", ".join(f"{name} {value}" for name, value in made if value is not None)
    return table


def row(clip: Clip, description: Description) -> UInt8[np.ndarray, "H 8*W 3"]:
    """Frames from all over a clip side by side, with their landmarks."""
    size = description.image_size
    drawn = []
    for i in np.linspace(0, len(clip.frames) - 1, SHOWN).round().astype(int):
        image = decode_frame(clip.frames[i])
        for number, point in enumerate(clip.landmarks[i]):
            colour = (255, 80, 80) if number in range(*INNER_LIPS.indices(68)) else (80, 255, 80)
            centre = np.rint(point * 16).astype(int).tolist()
            cv2.circle(image, centre, 16 * size // 200, colour, -1, cv2.LINE_AA, shift=4)
        drawn.append(image)
    cv2.putText(
        drawn[0], clip.name, (4, size - 6), cv2.FONT_HERSHEY_SIMPLEX, size / 640, (255,) * 3
    )
    return np.concatenate(drawn, axis=1)


def verify(folder: str | Path, console: Console | None = None) -> int:
    """Checks every record of a data set, prints what is wrong, and returns how many things are.

    Raises:
      InputError: the folder is no data set.
    """
    console = console or Console()
    _, description = open_data_set(folder, "train")
    names, places, problems, clips = Counter(), {}, 0, 0
    for split in description.sources:
        source, _ = open_data_set(folder, split, checked=True)
        for number in track(range(len(source)), f"checking {split}", console=console):
            clips += 1
            for problem in record_problems(source, number, description, split, names, places):
                console.print(f"{split}, record {number}: {problem}", markup=False)
                problems += 1
    listed = {name for sources in description.sources.values() for name in sources}
    for name in sorted(listed - places.keys()):
        console.print(
            f"no clip of the {description.people} {name}, which metadata.json lists", markup=False
        )
        problems += 1
    plural = "" if problems == 1 else "s"
    console.print(f"{folder}: {clips} clips, {problems or 'no'} problem{plural}", markup=False)
    return problems


def record_problems(
    source: Clips,
    number: int,
    description: Description,
    split: Split,
    names: Counter,
    places: dict[str, Split],
) -> Iterator[str]:
    """What is wrong with one record; adds its clip to `names` and its person to `places`."""
    try:
        clip = source[number]
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        yield f"cannot be read: {' '.join(str(error).split())}"
        return
    names[clip.name] += 1
    if names[clip.name] > 1:
        yield f"{clip.name}: another clip has this name"
    person, what = person_of(clip.source, description.people), description.people
    if places.setdefault(person, split) != split:
        yield f"{clip.name}: its {what} is in the {places[person]} split as well"
    if person not in description.sources[split]:
        yield f"{clip.name}: metadata.json does not list its {what} for this split"
    if found := faults(clip, description):
        yield f"{clip.name}: {'; '.join(found)}"
        return
    size = description.image_size
    for i, data in enumerate(clip.frames):
        try:
            height, width = decode_frame(data).shape[:2]
        except InputError:
            yield f"{clip.name}: frame {i} is no picture"
            continue
        if (height, width) != (size, size):
            yield f"{clip.name}: frame {i} is {width}x{height} pixels, not {size}x{size}"
    if clip.landmarks.min() < -size or clip.landmarks.max() > 2 * size:
        yield f"{clip.name}: landmarks are far outside the crop"
    if not (clip.boxes[:, :2] < clip.boxes[:, 2:]).all():
        yield f"{clip.name}: a box is empty"
    if len(clip.frames) < description.shortest:
        yield f"{clip.name}: it is shorter than the shortest clip in metadata.json"
