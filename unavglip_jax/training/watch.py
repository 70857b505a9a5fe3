"""What a run shows of itself: a progress bar, a JSONL log, TensorBoard, loss curves and pictures."""

import csv
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import jax
import numpy as np
import rich
from jaxtyping import Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from unavglip_jax import assets, params
from unavglip_jax.params import Params
from unavglip_jax.training.settings import Settings

# Products and sums a second of one device at full speed in bfloat16 without sparsity, by the vendors.
PEAKS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


class Log:
    """The log of a run in its folder; does nothing in processes but the first.

    Lines of `log.jsonl` behind the step at which the run goes on are dropped: they will come again.
    """

    def __init__(self, folder: Path, start: int, steps: int):
        self.folder, self.active = folder, jax.process_index() == 0
        if not self.active:
            return
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        kept = [line for line in read(self.path) if line["step"] <= start]
        with assets.replacement(self.path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.file = self.path.open("a")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        self.bar = Progress(*columns, TimeRemainingColumn())
        self.task = self.bar.add_task("training", total=steps, completed=start)
        self.bar.start()

    def write(self, step: int, metrics: Mapping[str, float], group: str = "train") -> None:
        """Adds a line after so many steps."""
        if not self.active:
            return
        line = {"step": step, **{f"{group}/{k}": round_off(v) for k, v in metrics.items()}}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        for name, value in metrics.items():
            self.board.add_scalar(f"{group}/{name}", value, step)
        if "loss" in metrics:
            self.bar.update(self.task, completed=step, description=f"loss {metrics['loss']:.4f}")
        else:
            shown = ", ".join(f"{k} {v:.4f}" for k, v in metrics.items())
            self.bar.print(f"step {step}: {group}: {shown}")

    def pictures(self, step: int, found: Mapping[str, jax.Array]) -> None:
        """Writes the pictures of a validation."""
        if self.active and found:
            grid(found, self.folder / f"validation/{step:07d}.png")

    def curves(self) -> None:
        """Draws the log so far."""
        if self.active:
            curves(self.folder)

    def close(self) -> None:
        """Ends the bar and closes the files."""
        if self.active:
            self.bar.stop()
            self.board.close()
            self.file.close()


@contextmanager
def log(folder: Path, start: int, steps: int):
    """A `Log` that is closed when the block ends."""
    opened = Log(folder, start, steps)
    try:
        yield opened
    finally:
        opened.close()


def round_off(value: float) -> float:
    """Seven digits, which is all that float32 has."""
    return float(f"{float(value):.7g}")


def read(path: Path) -> list[dict]:
    """The lines of a log; one that was being written when the run was killed is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def curves(folder: Path) -> None:
    """Draws `curves.png` and writes `curves.csv` from the log of a run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read(folder / "log.jsonl")
    names = sorted({name for line in lines for name in line} - {"step"})
    if not names:
        return
    with (
        assets.replacement(folder / "curves.csv") as partial,
        partial.open("w", newline="") as file,
    ):
        writer = csv.DictWriter(file, ["step", *names])
        writer.writeheader()
        writer.writerows(lines)
    columns, rows = 4, math.ceil(len(names) / 4)
    figure = Figure(figsize=(4 * columns, 2.6 * rows))
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, columns, place)
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set_title(name, fontsize=9)
    edge = 0.12 / rows  # matplotlib's own layout takes longer than the drawing
    figure.subplots_adjust(0.05, edge, 0.98, 1 - edge, wspace=0.3, hspace=0.35)
    FigureCanvasAgg(figure)
    with assets.replacement(folder / "curves.png") as partial:
        figure.savefig(partial, format="png", dpi=80)


def grid(pictures: Mapping[str, Float[np.ndarray, "B H W 3"]], path: Path, rows: int = 6) -> None:
    """Writes a PNG with a column for each title and a row for each clip, images in [-1, 1]."""
    columns = []
    for title, images in pictures.items():
        images = np.clip(np.asarray(images[:rows]) * 127.5 + 127.5, 0, 255).astype(np.uint8)
        label = np.full((20, images.shape[2], 3), 255, np.uint8)
        cv2.putText(label, title, (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        columns.append(np.concatenate([label, *images]))
    _, encoded = cv2.imencode(".png", np.concatenate(columns, axis=1)[..., ::-1])
    with assets.replacement(path) as partial:
        partial.write_bytes(encoded.tobytes())


class Meter:
    """How long steps take, and how much of that they wait for samples."""

    def __init__(self, settings: Settings, compiled):
        self.frames = settings.data.batch_size * settings.data.sample.frames
        found = compiled.cost_analysis() or {}
        self.flops = float(found.get("flops", 0.0))  # of one device
        self.began = time.perf_counter()
        self.waited, self.spent, self.steps = 0.0, 0.0, 0

    def waits(self, batches: Iterator) -> Iterator:
        """The same batches. Time until the next one is asked for is counted by `step`."""
        while True:
            self.began = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - self.began
            yield batch

    def step(self) -> None:
        """Ends a step; what comes before the next batch is asked for does not count."""
        self.spent += time.perf_counter() - self.began
        self.steps += 1

    def read(self) -> dict[str, float]:
        """Means over the steps since the last reading."""
        seconds = self.spent / self.steps
        found = {
            "step_seconds": seconds,
            "data_wait": self.waited / self.spent,
            "frames_a_second": self.frames / seconds,
        }
        device = jax.local_devices()[0]
        if (peak := peak_flops(device)) and self.flops:
            found["mfu"] = self.flops / seconds / peak
        if (held := memory(device)) is not None:
            found["memory_gib"] = held
        self.waited, self.spent, self.steps = 0.0, 0.0, 0
        return found


def numbers(metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    """Metrics on this host."""
    return {name: float(value) for name, value in metrics.items()}


def peak_flops(device) -> float | None:
    """Products and sums a second of a device at full speed, if it is a known one."""
    return next((peak for name, peak in PEAKS.items() if name in device.device_kind), None)


def memory(device) -> float | None:
    """The most that was held of a device's memory, in GiB, if it says so."""
    found = device.memory_stats() or {}
    return found["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in found else None


def describe(groups: Mapping[str, Params], compiled) -> None:
    """Prints the parameters by group and network, the memory of a device, and the step's FLOPs."""
    table = Table("group", "network", "tensors", "parameters", "MiB", title="parameters")
    for group, weights in groups.items():
        for name in sorted({path.split("/")[0] for path in weights}):
            part = {k: v for k, v in weights.items() if k.startswith(f"{name}/")}
            size = sum(leaf.size * leaf.dtype.itemsize for leaf in part.values()) / 2**20
            table.add_row(group, name, f"{len(part)}", f"{params.count(part):,}", f"{size:.1f}")
    rich.print(table)
    found = compiled.memory_analysis()
    table = Table("memory of each device", "MiB")
    for name in ("argument", "output", "temp", "alias", "generated_code"):
        size = getattr(found, f"{name}_size_in_bytes", None)
        if size is not None:
            table.add_row(name.replace("_", " "), f"{size / 2**20:.1f}")
    rich.print(table)
    cost = compiled.cost_analysis() or {}
    print(f"FLOPs of a step on each device: {cost.get('flops', float('nan')):.4g}")


def dump(folder: Path, step: int, batch: Mapping[str, jax.Array]) -> Path:
    """Writes this process's rows of a batch as an npz file and says where."""
    path = folder / f"bad_batch_{step}_{os.getpid()}.npz"
    local = {
        name: np.concatenate([np.asarray(shard.data) for shard in unique(array)])
        for name, array in batch.items()
    }
    with assets.replacement(path) as partial, partial.open("wb") as file:
        np.savez(file, **local)
    return path


def unique(array: jax.Array) -> Sequence:
    """The shards of an array that this process has, each part once, in order."""
    shards = {str(shard.index): shard for shard in array.addressable_shards}
    return sorted(shards.values(), key=lambda shard: shard.index[0].start or 0)
