"""Evaluation of many clips: clips per minute against the way of the published scripts.

    python benchmarks/evaluation.py                   # minutes on two cores
    python benchmarks/evaluation.py --clips 64 --syncnet

The plain way is that of UnAvgLip's evaluation and its like: every frame goes to a PNG file, faces are cropped
in place, all of a clip is loaded into memory, and each metric is a loop over frames in PyTorch, SSIM by
pytorch_msssim as there. It gets our face tracker, quicker than the published detectors, and works out PSNR,
SSIM and MS-SSIM of the crop, PSNR and SSIM of the mouth, with `--syncnet` LSE-C and LSE-D too. Ours works out
all that it can, among it the same numbers, and writes the report. Both run in processes of their own, one
after the other, on the same clips. Numbers differ in the third digit, for OpenCV's decoding takes a short cut
with colours.
"""

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import jax
import numpy as np
import torch
import tyro
from pytorch_msssim import ms_ssim, ssim
from rich.console import Console
from rich.table import Table

from unavglip_jax import assets, params
from unavglip_jax.data import synth
from unavglip_jax.dubbing import dub
from unavglip_jax.evaluation import evaluate, measure, picture, sync, torch_judge
from unavglip_jax.evaluation.tasks import EvaluateSettings, pair
from unavglip_jax.faces.crop import crop
from unavglip_jax.faces.mesh import box_of, ibug68
from unavglip_jax.faces.tracking import Tracker
from unavglip_jax.media import video
from unavglip_jax.models.syncnet_v2 import SyncNetV2, SyncNetV2Config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DESCRIPTION = {
    "system": "unavglip", "audio_front_end": "v10", "crop": "musetalk_v10", "mask": "lower_half",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
      clips: how many.
      seconds: length of each.
      size: side of the picture, in pixels.
      syncnet: also SyncNet v2, full size with random weights; clips must be longer than 2 s.
      processes: of ours; by default one for each core.
    """

    clips: int = 8
    seconds: float = 3.0
    size: int = 256
    syncnet: bool = False
    processes: int | None = None


def write_clips(folder: Path, options: Options) -> tuple[Path, Path]:
    """Synthetic heads, and the same with noise."""
    true, made = folder / "true", folder / "made"
    synth.synthesise(
        options.clips, 1, options.seconds, options.size, true, photograph_share=0, quiet=True
    )
    rng = np.random.default_rng(0)
    for path in true.rglob("*.mp4"):
        source, copy = video.describe(path), made / path.relative_to(true)
        copy.parent.mkdir(parents=True)
        with video.write_video(copy, source.width, source.height, source.fps, path) as put:
            for frame in video.read_frames(source):
                put(np.clip(frame + rng.normal(0, 4, frame.shape), 0, 255).astype(np.uint8))
    return true, made


def write_pack(folder: Path) -> Path:
    """A pack with a random SyncNet v2."""
    config = SyncNetV2Config()
    weights = params.init(SyncNetV2, config, jax.random.key(0, impl="rbg"))
    assets.write_pack(folder, DESCRIPTION, {"syncnet_v2": (config, weights, "random", "none")})
    return folder


# ---- the plain way -----------------------------------------------------------------------------------


def plainly(true: Path, made: Path, pack: Path | None) -> dict[str, float]:
    """The metrics of all clips, clip by clip and metric by metric."""
    expert = torch_judge.expert(pack, "syncnet_v2") if pack else None
    rows = [plain_clip(*both, expert) for both in zip(files(true), files(made), strict=True)]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def files(folder: Path) -> list[Path]:
    """The videos of a folder."""
    return sorted(folder.rglob("*.mp4"))


def plain_clip(true: Path, made: Path, expert: sync.Expert | None) -> dict[str, float]:
    """The metrics of one clip."""
    with tempfile.TemporaryDirectory() as scratch:
        sides = [extract(path, Path(scratch) / name) for path, name in ((true, "a"), (made, "b"))]
        landmarks, extents = find(sides[0])
        for side in sides:
            for path, points in zip(side, landmarks, strict=True):
                box = measure.face_box(points, cv2.imread(str(path)).shape[:2])
                cv2.imwrite(str(path), crop(cv2.imread(str(path)), box))
        a, b = (torch.stack([load(path) for path in side]) for side in sides)
    boxes = [mouth(points, true) for points in landmarks]
    metrics = {
        "psnr": np.mean([plain_psnr(x, y) for x, y in zip(a, b, strict=True)]),
        "ssim": np.mean([plain_ssim(x, y) for x, y in zip(a, b, strict=True)]),
        "ms_ssim": np.mean([plain_ssim(x, y, ms_ssim) for x, y in zip(a, b, strict=True)]),
    }
    cut = lambda x, box: x[:, box.y1 : box.y2, box.x1 : box.x2]
    mouths = [(cut(x, box), cut(y, box)) for x, y, box in zip(a, b, boxes, strict=True)]
    metrics["mouth_psnr"] = np.mean([plain_psnr(*both) for both in mouths])
    metrics["mouth_ssim"] = np.mean([plain_ssim(*both) for both in mouths])
    if expert:
        frames = list(video.read_frames(video.describe(made)))
        (track,) = sync.face_tracks(extents)
        crops = list(sync.track_crops(frames, track))
        score = sync.lse(expert, crops, video.read_audio(made))
        metrics |= {"lse_c": score.lse_c, "lse_d": score.lse_d}
    return metrics


def extract(path: Path, folder: Path) -> list[Path]:
    """Writes every frame of a video to a PNG file."""
    folder.mkdir()
    source, paths = cv2.VideoCapture(str(path)), []
    while (read := source.read())[0]:
        paths.append(folder / f"{len(paths):08d}.png")
        cv2.imwrite(str(paths[-1]), read[1])
    return paths


def find(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks and extents of the face in each image."""
    tracker = Tracker(*dub.face_networks())
    meshes = [tracker(cv2.imread(str(path))[..., ::-1]).mesh.points[:, :2] for path in paths]
    return np.stack([ibug68(mesh) for mesh in meshes]), np.stack([box_of(mesh) for mesh in meshes])


def mouth(points: np.ndarray, path: Path):
    """The mouth's box in the crop."""
    source = video.describe(path)
    box = measure.face_box(points, (source.height, source.width))
    size = (measure.SIDE, measure.SIDE)
    return picture.mouth_box(measure.in_pictures(points, np.array(box), size), size)


def load(path: Path) -> torch.Tensor:
    """An image in [0, 1], (3, H, W)."""
    image = torch.from_numpy(cv2.imread(str(path))).to(DEVICE)
    return image.permute(2, 0, 1).float() / 255


def plain_psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of one pair."""
    return float(10 * torch.log10(1 / ((a - b) ** 2).mean()))


def plain_ssim(a: torch.Tensor, b: torch.Tensor, metric: Callable = ssim) -> float:
    """Of one pair, by pytorch_msssim as published."""
    return float(metric(a[None], b[None], data_range=1.0))


# ---- both --------------------------------------------------------------------------------------------


def ours(true: Path, made: Path, pack: Path | None, processes: int | None) -> dict[str, float]:
    """`unavglip evaluate`, its report included."""
    tasks, _ = pair(true, made)
    with tempfile.TemporaryDirectory() as output:
        settings = EvaluateSettings(output=output, pack=pack, processes=processes)
        results = evaluate.evaluate(tasks, settings, quiet=True)
    return {name: found["mean"] for name, found in results["metrics"].items()}


def timed(work: Callable[[], dict[str, float]]) -> tuple[float, float, float, dict[str, float]]:
    """Seconds, seconds of processor time, peak memory of the largest process in MB, and the result."""
    start = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - start
    for child in multiprocessing.active_children():  # only those that ended are counted
        child.join()
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    processor = sum(one.ru_utime + one.ru_stime for one in used)
    return seconds, processor, max(one.ru_maxrss for one in used) / 1024, found


def main(options: Options) -> None:
    """Measures both and prints a table."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        true, made = write_clips(Path(folder), options)
        pack = write_pack(Path(folder) / "pack") if options.syncnet else None
        ways = {
            "PNG files and PyTorch loops": partial(plainly, true, made, pack),
            "unavglip evaluate": partial(ours, true, made, pack, options.processes),
        }
        results = {}
        for name, work in ways.items():
            with ProcessPoolExecutor(1, context) as own:
                results[name] = own.submit(timed, work).result()
    shown = list(next(iter(results.values()))[-1])
    table = Table(
        title=f"{options.clips} clips of {options.seconds:g} s, {options.size} pixels, {DEVICE}"
    )
    for head in ("", "clips a minute", "processor s", "peak MB", *shown):
        table.add_column(head, justify="right" if head else "left")
    for name, (seconds, processor, memory, found) in results.items():
        speed = f"{60 * options.clips / seconds:.1f}", f"{processor:.0f}", f"{memory:.0f}"
        table.add_row(name, *speed, *(f"{found[key]:.4f}" for key in shown))
    Console(width=140).print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,)))
