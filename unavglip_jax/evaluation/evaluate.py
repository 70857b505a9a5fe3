"""Many clips: `unavglip evaluate`.

Worker processes read videos, compare pictures and find faces (`measure`); a thread for each of them then
asks the networks (`networks`). What is done is kept in `{output}/clips`, a JSON for each clip, so that a run
that was stopped is continued, and several processes share the clips (see `dub.shard`). Whichever finds all
of them done writes the report.
"""

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.progress import MofNCompleteColumn, Progress

from unavglip_jax import __version__, assets
from unavglip_jax.config import InputError
from unavglip_jax.data.synth import prepare_process
from unavglip_jax.dubbing import dub
from unavglip_jax.dubbing.stream import Clock
from unavglip_jax.evaluation import behaviour, figures, measure, networks, report
from unavglip_jax.evaluation.measure import Comparison, Job
from unavglip_jax.evaluation.networks import Networks, Series
from unavglip_jax.evaluation.tasks import EvaluateSettings, EvaluateTask

Compare = Callable[[Job], Comparison]


def evaluate(
    tasks: Mapping[str, EvaluateTask],
    settings: EvaluateSettings,
    quiet: bool = False,
    unpaired: Sequence[str] = (),
) -> dict | None:
    """Measures all clips, or this process's share of them, and writes the report.

    The folder `settings.output` gets `results.json`, `results.csv` and `report.html`. A clip that cannot be
    read is listed there and does not keep the others from being measured.

    Args:
      tasks: what to compare, by name.
      settings: how.
      quiet: no progress bar.
      unpaired: clips that only one of two folders has; they are named in the report.

    Returns:
      What is in `results.json`; None if other processes still have clips to measure.

    Raises:
      InputError: a network is damaged, or the output cannot be written.
    """
    settings = networks.with_fetched(settings)
    dub.make_folder(settings.output / "clips")
    pack = assets.read_pack(settings.pack).components if settings.pack else {}
    digests = {name: component.sha256 for name, component in pack.items()}
    marks = {name: fingerprint(task, settings, digests) for name, task in tasks.items()}
    mine = dub.shard(tasks)
    todo = [name for name in mine if not is_done(settings, name, marks[name])]
    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    with Progress(*columns, disable=quiet) as progress:
        bar = progress.add_task("clips", total=len(mine), completed=len(mine) - len(todo))
        for name, found in measured({name: tasks[name] for name in todo}, settings):
            record = {"name": name, "made_with": marks[name], **found}
            with figures.output(record_path(settings, name)) as partial:
                partial.write_text(json.dumps(record))
            progress.advance(bar)
    if not all(is_done(settings, name, marks[name]) for name in tasks):
        return None
    paths = {name: record_path(settings, name) for name in tasks}
    return report.write(tasks, paths, settings, networks.left_out(settings), unpaired)


# ---- what is done ------------------------------------------------------------------------------------


def record_path(settings: EvaluateSettings, name: str) -> Path:
    """Where the figures of a clip are, whatever its name is; features for FID and FVD go beside them."""
    return settings.output / "clips" / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.json"


def is_done(settings: EvaluateSettings, name: str, mark: str) -> bool:
    """Whether a clip was measured, in the same way and from the same files."""
    try:
        return figures.read(record_path(settings, name))["made_with"] == mark
    except FileNotFoundError:
        return False


def fingerprint(task: EvaluateTask, settings: EvaluateSettings, digests: Mapping[str, str]) -> str:
    """A digest of all that the figures of a clip depend on; of files their sizes and times."""
    decisive = settings.model_dump(mode="json", exclude={"output", "processes", "batch_size"})
    files = [
        task.gt_video_path, task.generated_video_path, task.audio, task.source, task.truth,
        task.face_embs_path, task.gt_video_path.with_suffix(".npz"),
        task.generated_video_path.with_suffix(".json"),
    ]  # fmt: skip
    stated = [stamp(Path(file)) for file in files if file]
    everything = [__version__, decisive, task.model_dump(mode="json"), dict(digests), stated]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def stamp(path: Path) -> list:
    """Sizes and times of a file, or of those in a folder; nothing for what is not there."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


# ---- the work ----------------------------------------------------------------------------------------


def measured(
    tasks: Mapping[str, EvaluateTask], settings: EvaluateSettings
) -> Iterator[tuple[str, dict]]:
    """The figures of clips in plain data, with their names, in the order in which they are done."""
    if not tasks:
        return
    loaded, face_networks = networks.load(settings), dub.face_networks()
    count = min(settings.processes or len(os.sched_getaffinity(0)), len(tasks))
    threads = ThreadPoolExecutor(count)
    with workers(count) as compare:

        def of(name: str) -> tuple[str, dict]:
            job = Job(tasks[name], *face_networks, settings.max_seconds)
            features = record_path(settings, name).with_suffix(".npz")
            return name, figures_of(job, compare, loaded, settings, features)

        try:
            for future in as_completed([threads.submit(of, name) for name in tasks]):
                yield future.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


@contextmanager
def workers(count: int) -> Iterator[Compare]:
    """Processes that compare, one for each of `count` threads; for a single one, this process.

    The block gets what `measure.compare` is, for threads to call. A process that dies, for a decoder can
    bring it down, is replaced, and its clip is an InputError.
    """
    own, started = threading.local(), []

    def start() -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, context, initializer=prepare_process)
        started.append(pool)
        return pool

    def compare(job: Job) -> Comparison:
        if count == 1:
            return measure.compare(job)
        own.pool = getattr(own, "pool", None) or start()
        try:
            return own.pool.submit(measure.compare, job).result()
        except BrokenProcessPool as error:
            own.pool = None
            raise InputError(
                f"{job.task.generated_video_path} or its ground truth brought down the process that read "
                "them; export them again"
            ) from error

    try:
        yield compare
    finally:
        for pool in started:
            pool.shutdown(wait=False, cancel_futures=True)


def figures_of(
    job: Job, compare: Compare, loaded: Networks, settings: EvaluateSettings, features_path: Path
) -> dict:
    """The figures of one clip; why there are none, if it cannot be read."""
    task, clock = job.task, Clock()
    stated = {"task": task.model_dump(mode="json")}
    try:
        found = clock.call("compare", compare, job)
        pair = measure.open_pair(task, settings.max_seconds)
        seen, features = clock.call(
            "look", networks.look, loaded, task, pair, found, settings.batch_size
        )
        faces, likeness = clock.call(
            "recognise", networks.recognise, loaded.embed, task, pair, found, settings
        )
        heard, in_step, remarks = clock.call("listen", networks.listen, loaded, task, pair, found)
    except InputError as error:
        return stated | {"error": str(error)}
    if features:
        with figures.output(features_path) as partial:
            np.savez(partial, **features)
    series = found.series | seen | faces | heard
    scores = {name: behaviour.mean(values) for name, values in series.items()}
    scores |= found.scores | likeness | in_step
    if task.result_save_path:
        save_as_published(Path(task.result_save_path), scores, series)
    return stated | {
        "error": None,
        "frames": pair.count,
        "fps": str(pair.made.fps),
        "notes": found.notes + remarks,
        "metrics": {
            metric.key: figures.number(scores[metric.key])
            for metric in figures.METRICS
            if metric.key in scores
        },
        "series": {key: [figures.number(x) for x in values] for key, values in series.items()},
        "boxes": found.boxes.tolist(),
        "published": as_published(scores, series),
        "features": bool(features),
        "seconds": {stage: round(seconds, 3) for stage, seconds in clock.seconds.items()},
    }


# ---- UnAvgLip's form ---------------------------------------------------------------------------------


def as_published(scores: Mapping[str, float], series: Series) -> dict:
    """The figures of a clip under the names of UnAvgLip's `results.json`."""
    number, who, lip_sync = figures.number, None, None
    seen = np.isfinite(series.get("csim", np.nan))
    if seen.any():
        same, apart = (series[key][seen] for key in ("csim", "identity_distance"))
        who = {
            "avg_cosine_similarity": number(same.mean()),
            "avg_l2_distance": number(apart.mean()),
            "std_cosine_similarity": number(same.std()),
            "std_l2_distance": number(apart.std()),
            "num_valid_pairs": int(seen.sum()),
        }
    if "lse_c" in scores:
        lip_sync = {key: number(scores[key]) for key in ("lse_c", "lse_d", "lse_offset")}
    quality = {"avg_ssim_score": number(scores["ssim"]), "avg_psnr_score": number(scores["psnr"])}
    return {"visual_quality": quality, "identity_consistency": who, "lip_sync": lip_sync}


def save_as_published(path: Path, scores: Mapping[str, float], series: Series) -> None:
    """Writes them where the task wants them: a .json file, or `results.json` in a folder."""
    path = path if path.suffix == ".json" else path / "results.json"
    dub.make_folder(path.parent)
    with figures.output(path) as partial:
        partial.write_text(json.dumps(as_published(scores, series), indent=4))
