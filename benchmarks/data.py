"""Feeding a training: our records and Grain against PyTorch's DataLoader over upstream's files.

    python benchmarks/data.py                       # about a minute

Upstream (UnAvgLip, as MuseTalk 1.0 before it) stores each frame as a PNG file and its two steps of audio
features as an npy file, and computes the mel of the whole recording for every sample. Both sides make the
same samples of five frames: target and reference pictures, masked copy or mask, audio windows, 16 rows of
mel, identity embedding. Upstream's go on as float32 in [0, 1], ours as uint8, since the device normalises.

Everything, worker processes included, is tied to one core, and all files are in the page cache. The schemes
take turns, each time in a new process; a figure is the median of the rounds. On a quiet machine samples a
second and samples per second of processor time agree; the latter is what counts where others work too.
"""

import functools
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import librosa
import numpy as np
import skimage.data
import torch
import tyro
from rich.console import Console
from rich.table import Table

from unavglip_jax.data import clips, pipeline

FIELDS = ("target", "reference", "hidden", "windows", "mel", "identity")
WIDTH, LAYERS = 384, 5  # of whisper-tiny's features


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
      videos: clips in the data set.
      repeats: how often ours lists each. Grain's shuffle of N clips takes 65536 / N steps for each of them,
        which with a dozen is milliseconds; a data set to train on has hundreds.
      seconds: length of a clip.
      quality: of the JPEG files.
      batch_size: samples a batch.
      rounds: how often each scheme is measured.
      measured: seconds a scheme is measured in a round.
      core: the processor's core that everything runs on.
    """

    videos: int = 12
    repeats: int = 40
    seconds: float = 6.0
    quality: int = 95
    batch_size: int = 8
    rounds: int = 5
    measured: float = 2.0
    core: int = min(os.sched_getaffinity(0))


def crops(rng: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Pictures of a face that moves a little, 256 pixels a side, with some camera noise, RGB."""
    photo, phase = skimage.data.astronaut(), rng.uniform(0, 6, 3)
    gain = rng.uniform(0.8, 1.1)
    for i in range(count):
        zoom = 2.0 + 0.1 * np.sin(i / 20 + phase[0])
        shift = 128 - 225 * zoom + 4 * np.sin(i / 9 + phase[1]), 128 - 120 * zoom
        matrix = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
        image = cv2.warpAffine(photo, matrix, (256, 256), flags=cv2.INTER_CUBIC) * gain
        yield np.clip(image + rng.normal(0, 1.5, image.shape), 0, 255).astype(np.uint8)


def write_data(folder: Path, options: Options) -> None:
    """The same clips as a data set of ours, and as upstream's files, in folders `ours` and `theirs`."""
    rng, count, paths = np.random.default_rng(0), round(25 * options.seconds), []
    for number in range(options.videos):
        name, pictures = f"video_{number}", list(crops(rng, count))
        features = rng.normal(size=(2 * count, LAYERS, WIDTH)).astype(np.float16)
        samples = np.clip(rng.normal(0, 3000, 640 * count), -32768, 32767).astype(np.int16)
        embedding = rng.normal(size=(4, 512)).astype(np.float32)
        embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)

        images, audios = (folder / "theirs" / kind / name for kind in ("images", "audios"))
        images.mkdir(parents=True)
        audios.mkdir(parents=True)
        for i, picture in enumerate(pictures):
            cv2.imwrite(str(images / f"{i}.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            steps = features[2 * i : 2 * i + 2].reshape(10, WIDTH)
            np.save(audios / f"{i}.npy", steps.astype(np.float32))
        np.save(audios.with_name(f"{name}_id.npy"), embedding[:1])
        with wave.open(str(audios) + ".wav", "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(samples.tobytes())

        paths.append(folder / f"{name}.npz")
        clip = clips.Clip(
            name=f"{name}.mp4/0",
            source=f"{name}.mp4",
            start=0.0,
            source_fps="25",
            frames=[clips.encode_frame(picture, options.quality) for picture in pictures],
            landmarks=rng.uniform(0, 255, (count, 68, 2)).astype(np.float32),
            boxes=np.zeros((count, 4), np.int32),
            samples=samples,
            features=features,
            identity=embedding,
            identity_frames=np.arange(4, dtype=np.int32),
        )
        clips.save_clip(paths[-1], clip)
    description = clips.Description(
        image_size=256,
        crop="musetalk_v10",
        audio_front_end="v10",
        whisper="random",
        embedder="random",
        mask="lower_half",
        jpeg_quality=options.quality,
    )
    clips.build(paths, folder / "ours", description, share=0)
    for path in paths:
        path.unlink()


# ---- the two schemes ---------------------------------------------------------------------------------


class Files(torch.utils.data.Dataset):
    """Upstream's loader, written from its description, without its defects in time and order."""

    def __init__(self, folder: Path):
        self.folder = folder
        videos = sorted((folder / "images").iterdir())
        self.counts = [(path.name, len(os.listdir(path))) for path in videos]

    def __len__(self) -> int:
        return 100_000  # an index means nothing: every sample is a random one

    def pictures(self, video: str, start: int) -> np.ndarray:
        """Five frames, float32 (5, 3, 256, 256) in [0, 1]."""
        names = [self.folder / "images" / video / f"{start + i}.png" for i in range(5)]
        images = [cv2.cvtColor(cv2.imread(str(name)), cv2.COLOR_BGR2RGB) for name in names]
        return np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(index)
        video, count = self.counts[rng.integers(len(self.counts))]
        while True:
            t, r = rng.integers(2, count - 6), rng.integers(0, count - 4)
            if abs(t - r) >= 6:
                break
        target = self.pictures(video, t)
        mask = np.ones_like(target)
        mask[:, :, 128:] = 0
        audios = self.folder / "audios"
        steps = [
            [np.load(audios / video / f"{t + i + k}.npy") for k in range(-2, 3)] for i in range(5)
        ]
        samples, _ = librosa.load(audios / f"{video}.wav", sr=16_000)
        first = int(80 * t / 25)
        out = {
            "ref_image": self.pictures(video, r),
            "image": target,
            "masked_images": target * mask,
            "masks": mask,
            "audio_features": np.array(steps).reshape(5, 50, WIDTH),
            "mel": librosa_mel(samples)[None, :, first : first + 16],
            "id": np.repeat(np.load(audios / f"{video}_id.npy")[None], 5, axis=0),
        }
        return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in out.items()}


def librosa_mel(samples: np.ndarray) -> np.ndarray:
    """Wav2Lip's mel of a whole recording with librosa, float32 (80, T)."""
    emphasised = np.append(samples[:1], samples[1:] - 0.97 * samples[:-1])
    spectrum = np.abs(librosa.stft(emphasised, n_fft=800, hop_length=200, win_length=800))
    decibels = 20 * np.log10(np.maximum(1e-5, mel_bank() @ spectrum)) - 20
    return np.clip(8 * (decibels + 100) / 100 - 4, -4, 4).astype(np.float32)


@functools.cache
def mel_bank() -> np.ndarray:
    """The filters, which upstream makes once too."""
    return librosa.filters.mel(sr=16_000, n_fft=800, n_mels=80, fmin=55, fmax=7600)


def torch_batches(folder: Path, options: Options, workers: int, seed: int) -> Iterator:
    generator = torch.Generator().manual_seed(seed)
    loader = torch.utils.data.DataLoader(
        Files(folder / "theirs"),
        options.batch_size,
        shuffle=True,
        num_workers=workers,
        generator=generator,
        multiprocessing_context="spawn" if workers else None,
    )
    return iter(loader)


def grain_batches(folder: Path, options: Options, workers: int, seed: int) -> Iterator:
    source, description = clips.open_data_set(folder / "ours", "train")
    source.records.places *= options.repeats  # see Options
    wanted = pipeline.SampleOptions(fields=FIELDS, n_cond=1)
    return iter(
        pipeline.train_dataset(
            source, description, wanted, options.batch_size, seed, workers=workers
        )
    )


# ---- measuring ---------------------------------------------------------------------------------------


class Rates(NamedTuple):
    """Samples a second, and samples per second of processor time of all processes."""

    wall: float
    processor: float


def processor_seconds() -> float:
    """Time that this process and its workers have used."""
    used = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        used += sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return used


def measure(make: Callable, folder: Path, options: Options, workers: int, seed: int) -> Rates:
    """Rates of a scheme, after what is made ahead has been used up."""
    on_one_thread()
    batches = make(folder, options, workers, seed)
    for _ in range(6):
        next(batches)
    wall, used, made = time.perf_counter(), processor_seconds(), 0
    while time.perf_counter() - wall < options.measured:
        next(batches)
        made += options.batch_size
    found = Rates(made / (time.perf_counter() - wall), made / (processor_seconds() - used))
    if hasattr(batches, "close"):
        batches.close()
    return found


def on_one_thread() -> None:
    """Keeps libraries from sharing the core with themselves."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def milliseconds(call: Callable[[int], object], times: int = 60) -> float:
    """Processor time of one call, the median."""
    seen = []
    for i in range(times):
        start = time.process_time()
        call(i)
        seen.append(1e3 * (time.process_time() - start))
    return statistics.median(seen)


def parts(folder: Path, options: Options) -> dict[str, float]:
    """Where the time of one of our samples goes, in ms."""
    on_one_thread()
    pipeline.keep_memory()
    source, description = clips.open_data_set(folder / "ours", "train")
    clip, rng = source[0], np.random.default_rng(0)
    take = lambda *fields: (
        lambda _: pipeline.sample(clip, description, pipeline.SampleOptions(fields=fields), rng)
    )
    return {
        "reading the record": milliseconds(lambda i: source[i % len(source)]),
        "decoding ten frames": milliseconds(take("target", "reference")),
        "audio windows": milliseconds(take("windows")),
        "mel": milliseconds(take("mel")),
    }


def alone(call: Callable, *arguments):
    """The result of a call in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(call, *arguments).result()


def size(folder: Path) -> float:
    """Megabytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(options: Options) -> None:
    """Measures every scheme, in turns, and prints one table."""
    console = Console(width=110)
    # Before any process starts: threads that libraries make when imported are tied to the core too.
    os.sched_setaffinity(0, {options.core})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(folder, options)
        about = [
            f"{processor()}, one core, load {os.getloadavg()[0]:.1f}",
            f"python {platform.python_version()}, {time.strftime('%Y-%m-%d')}",
            f"{options.videos} clips of {options.seconds:g} s, five-frame samples of 256 pixels",
            f"JPEG quality {options.quality}, batches of {options.batch_size}",
        ]
        console.print("; ".join(about))
        schemes = {"DataLoader, PNG and npy": torch_batches, "ours": grain_batches}
        seen = {(name, workers): [] for name in schemes for workers in (0, 1)}
        for seed in range(options.rounds):
            for name, workers in seen:
                found = alone(measure, schemes[name], folder, options, workers, seed)
                seen[name, workers].append(found)
        rates = {
            key: Rates(*map(statistics.median, zip(*x, strict=True))) for key, x in seen.items()
        }
        sizes = dict(
            zip(schemes, (size(folder / name) for name in ("theirs", "ours")), strict=True)
        )
        table = Table()
        columns = ("samples/s", "lowest", "highest", "ratio", "per processor s", "ratio", "MB")
        table.add_column("scheme")
        for column in ("workers", *columns):
            table.add_column(column, justify="right")
        for (name, workers), rate in rates.items():
            walls = [found.wall for found in seen[name, workers]]
            base = rates["DataLoader, PNG and npy", workers]
            figures = (rate.wall, min(walls), max(walls), rate.wall / base.wall)
            figures += (rate.processor, rate.processor / base.processor)
            cells = [f"{figure:.1f}" for figure in figures]
            table.add_row(name, str(workers), *cells, f"{sizes[name]:.0f}")
        console.print(table)
        spent = alone(parts, folder, options)
        spent = ", ".join(f"{name} {ms:.1f} ms" for name, ms in spent.items())
        console.print(
            f"processor time of one of our samples: {spent}; load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
