"""From folders of videos to a data set of talking clips: `unavglip preprocess`.

Each video is cut by a worker process (`footage`); this one adds what needs jax: audio features, identity
embeddings and the judgement of the lip-sync expert. What is done is kept in `{output}/work`: clips, and for
each video a journal, which is written last. So a run that is killed, at whatever moment, is continued by the
next one, several runs share the videos, and the data set is built when all videos have their journals.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import rich
from jaxtyping import Array, Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from unavglip_jax import assets, params
from unavglip_jax.config import Config, InputError, validate
from unavglip_jax.data import clips
from unavglip_jax.data.clips import FPS, Clip, Description
from unavglip_jax.data.footage import Job, Reason
from unavglip_jax.data.settings import PreprocessSettings
from unavglip_jax.dubbing import dub, hearing
from unavglip_jax.dubbing.hearing import Hearing
from unavglip_jax.dubbing.stream import Clock
from unavglip_jax.faces import identity
from unavglip_jax.media import audio

VIDEO_SUFFIXES = frozenset(
    [
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ts",
    ]
    + [".webm", ".wmv"]
)
WORKER = (sys.executable, "-m", "unavglip_jax.data.footage")
STEPS = audio.STEP_RATE // FPS  # of the audio features, a frame

EXPERT_WINDOW = 5  # frames that Wav2Lip's expert sees at once
EXPERT_BATCH = 32  # windows
EXPERT_REACH = 15  # frames by which sound and mouth are shifted against each other


class StoredClip(Config):
    """A clip that waits for the data set: its file below `work/clips`, and where it is in the source."""

    file: str
    start: float
    seconds: float


class Rejection(Config):
    """A part of a source, in seconds, that is no clip."""

    start: float
    seconds: float
    reason: Reason


class Journal(Config):
    """What became of one source.

    Attributes:
      source: its path below the input folder.
      bytes: its size; with another size it is another video.
      made_with: digest of the settings and of what the pack decides.
      seconds: how long it is.
      clips: what was stored.
      rejected: what was not.
      stages: seconds of work in each.
      error: why it is quarantined; None for a good one.
    """

    source: str
    bytes: int
    made_with: str
    seconds: float = 0
    clips: tuple[StoredClip, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    stages: Mapping[str, float] = pydantic.Field(default_factory=dict)
    error: str | None = None


class Plan(NamedTuple):
    """What a run works with.

    Attributes:
      input: folder of the videos.
      work: folder of clips and journals.
      scratch: folder of what this run has not finished.
      pack_folder: the pack.
      pack: what is in it.
      description: what holds for all clips.
      settings: what becomes a clip.
      made_with: digest of the settings and of what the pack decides.
    """

    input: Path
    work: Path
    scratch: Path
    pack_folder: Path
    pack: assets.Pack
    description: Description
    settings: PreprocessSettings
    made_with: str


class Networks(NamedTuple):
    """What adds to the clips; None for what the pack has not."""

    hearing: Hearing | None
    embed: identity.Embedder | None
    expert: params.Network | None


def preprocess(
    input: str | Path,
    output: str | Path,
    pack: str | Path,
    settings: PreprocessSettings | None = None,
    shard: int = 0,
    shards: int = 1,
    processes: int | None = None,
    quiet: bool = False,
) -> dict:
    """Makes a data set of all videos below a folder, or this run's share of it.

    The run that finds all videos done builds the data set (`clips.build`) in `output`, a contact sheet
    `samples.png`, and, as every run, the list `quarantine.jsonl` of videos that could not be read.

    Args:
      input: folder of videos, at any depth.
      output: folder of the data set; `output/work` is for this program and can be removed at the end.
      pack: decides crop, image size, audio features and identity embeddings.
      settings: what becomes a clip.
      shard: number of this run among those that share the videos, from 0.
      shards: how many runs there are, on one host or on many with `output` in common.
      processes: worker processes; by default one for each core.
      quiet: no progress bar and no table.

    Returns:
      The summary: `sources`, `clips`, `hours`, `rejected` (number and seconds by reason), `quarantined`
      (source, reason and journal), `missing` (number of sources that are not done, by shard), `data_set`
      (its folder, or None if some are missing) and `stages` (seconds of work).

    Raises:
      InputError: there is no video, the pack lacks something, the output was begun with other settings
        or another pack, is in use by another run for the same shard, or cannot be written; or no video
        gave a clip.
    """
    input, output, settings = Path(input), Path(output), settings or PreprocessSettings()
    sizes = sources_in(input)
    if not 0 <= shard < shards:
        raise InputError(f"the shard is {shard} of {shards}; give one from 0 to {shards - 1}")
    described = assets.read_pack(pack)
    description = description_of(pack, described, settings)
    made_with = fingerprint(described, settings, description)
    work, share = output / "work", f"{shard}-of-{shards}"
    plan = Plan(
        input,
        work,
        work / f"scratch-{share}",
        Path(pack),
        described,
        description,
        settings,
        made_with,
    )
    for folder in ("clips", "journals"):
        dub.make_folder(work / folder)
    with locked(work / f"{share}.lock", f"shard {shard} of {shards} of {output}"):
        shutil.rmtree(plan.scratch, ignore_errors=True)  # of a run that was killed
        dub.make_folder(plan.scratch)
        mine = dict(list(sizes.items())[shard::shards])
        done = read_journals(work, mine, made_with)
        todo = {name: size for name, size in mine.items() if name not in done}
        with progress_bar(quiet) as progress:
            bar = progress.add_task("videos", total=len(mine), completed=len(done))
            for _ in run(plan, todo, processes or os.cpu_count() or 1):
                progress.advance(bar)
        shutil.rmtree(plan.scratch)
    journals = read_journals(work, sizes, made_with)
    missing = Counter(i % shards for i, name in enumerate(sizes) if name not in journals)
    summary = summary_of(work, len(sizes), journals, missing)
    write_quarantine(output, summary["quarantined"])
    if not missing and summary["clips"]:
        build(output, list(journals.values()), description)
        summary["data_set"] = str(output)
    if not quiet:
        print_summary(summary, output)
    if not missing and not summary["clips"]:
        raise InputError(
            f"none of the {len(sizes)} videos in {input} gave a clip; see {output}/quarantine.jsonl and "
            f"the reasons in {work}/journals, and change the settings"
        )
    return summary


# ---- sources and what is known of them ----------------------------------------------------------------


def sources_in(folder: Path) -> dict[str, int]:
    """The videos below a folder, by their suffix: relative paths in a fixed order, and sizes in bytes."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds the videos")
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and path.name[0] != "." and path.is_file()
    }
    if not sizes:
        endings = ", ".join(sorted(VIDEO_SUFFIXES))
        raise InputError(f"{folder} holds no video; put files there that end in one of {endings}")
    return dict(sorted(sizes.items()))


def key_of(name: str) -> str:
    """The name of a source's files in `work`, whatever its own is."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:20]


def journal_path(work: Path, name: str) -> Path:
    """Where the journal of a source is."""
    return work / "journals" / f"{key_of(name)}.json"


def read_journals(work: Path, sizes: Mapping[str, int], made_with: str) -> dict[str, Journal]:
    """The journals of those sources that are done and have the same size as then."""
    found = {}
    for name, size in sizes.items():
        path = journal_path(work, name)
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); remove it") from error
        journal = validate(Journal, values, str(path))
        if journal.made_with != made_with:
            raise InputError(
                f"{work.parent} was begun with other settings or another pack than now, see {path}; "
                f"give the same ones, choose another --output, or remove {work}"
            )
        if journal.bytes == size:
            found[name] = journal
    return found


def description_of(
    folder: str | Path, pack: assets.Pack, settings: PreprocessSettings
) -> Description:
    """What holds for all clips."""
    embedder = embedder_of(folder, pack, settings)
    sha256 = {name: component.sha256 for name, component in pack.components.items()}
    return Description(
        image_size=pack.image_size,
        crop=pack.crop,
        audio_front_end=pack.audio_front_end,
        whisper=sha256.get("whisper"),
        embedder=embedder,
        embedder_sha256=sha256.get("identity") if embedder == "identity" else None,
        mask=pack.mask,
        jpeg_quality=settings.jpeg_quality,
        people=settings.people,
    )


def embedder_of(folder: str | Path, pack: assets.Pack, settings: PreprocessSettings) -> str | None:
    """The name of what makes identity embeddings: that which the pack was trained with, if it was."""
    if settings.identities == 0:
        return None
    if pack.identity is None:
        own = "identity" if "identity" in pack.components else None
        return settings.insightface.name if settings.insightface else own
    wanted = pack.identity.embedder
    if wanted != "identity" and settings.insightface is None:
        raise InputError(
            f"{folder} was trained with face embeddings by insightface's {wanted}; give its folder as "
            "`insightface`, or 0 `identities` for a data set without embeddings"
        )
    return wanted


def fingerprint(pack: assets.Pack, settings: PreprocessSettings, description: Description) -> str:
    """A digest of all that the clips depend on, besides the videos."""
    expert = pack.components.get("wav2lip_syncnet") if settings.max_offset is not None else None
    decisive = [
        settings.model_dump(mode="json", exclude={"insightface"}),
        description.model_dump(mode="json"),
        expert and expert.sha256,
    ]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


# ---- the work -----------------------------------------------------------------------------------------


def run(plan: Plan, todo: Mapping[str, int], processes: int) -> Iterator[str]:
    """Does sources, given with their sizes, and gives the name of each when its journal is written."""
    if not todo:
        return
    settings = plan.settings
    if plan.description.embedder is None:
        settings = settings.replace(identities=0)
    detector, face_mesh = dub.face_networks()
    job = Job(
        path="", source="", folder="", detector=detector, face_mesh=face_mesh, crop=plan.pack.crop,
        image_size=plan.pack.image_size, settings=settings,
    )  # fmt: skip
    with workers(min(processes, len(todo))) as ask:
        waiting = {}
        for name in todo:
            folder = plan.scratch / key_of(name)
            own = {"path": plan.input / name, "source": name, "folder": folder}
            waiting[ask(job.model_copy(update=own))] = name
        networks = load_networks(plan)
        for future in as_completed(waiting):
            name, answer = waiting.pop(future), future.result()
            if "fatal" in answer:
                raise InputError(f"{answer['fatal']}; free some space or choose another --output")
            store(plan, name, todo[name], answer, networks)
            yield name


def store(plan: Plan, name: str, size: int, answer: dict, networks: Networks) -> None:
    """Completes the clips of a source, moves them to where they stay, and writes the journal, last."""
    key, clock = key_of(name), Clock()
    folder, target = plan.scratch / key, plan.work / "clips" / key
    if "error" not in answer:
        try:
            answer |= complete(folder, answer, networks, plan.settings.max_offset, clock)
        except InputError as error:
            answer = {"error": str(error)}
    journal = Journal(source=readable(name), bytes=size, made_with=plan.made_with)
    if "error" in answer:
        journal = journal.replace(error=answer["error"])
    else:
        journal = journal.replace(
            seconds=answer["seconds"],
            clips=[
                {"file": f"{key}/{n:03d}.npz", "start": a / FPS, "seconds": (b - a) / FPS}
                for n, (a, b) in enumerate(answer["clips"])
                if (folder / f"{n:03d}.npz").exists()
            ],
            rejected=[
                {"start": a / FPS, "seconds": (b - a) / FPS, "reason": reason}
                for a, b, reason in sorted(answer["rejected"])
            ],
            stages=answer["stages"] | clock.seconds,
        )
    try:
        shutil.rmtree(target, ignore_errors=True)  # of a run that was killed before its journal
        if journal.clips:
            os.replace(folder, target)
        shutil.rmtree(folder, ignore_errors=True)
        written = plan.scratch / f"{key}.json"
        written.write_text(journal.model_dump_json(indent=1))
        os.replace(written, journal_path(plan.work, name))
    except OSError as error:
        raise InputError(
            f"{plan.work} does not take files ({error.strerror}); free some space or choose another "
            "--output"
        ) from error


def complete(
    folder: Path, answer: dict, networks: Networks, max_offset: int | None, clock: Clock
) -> dict:
    """Adds features and embeddings to the clips that a worker cut, and drops those out of step.

    The features are those of the whole recording, as dubbing hears it: a clip gets its part of them.
    """
    if not answer["clips"]:
        return {}
    features = None
    if networks.hearing:
        samples = np.load(folder / "sound.npy", allow_pickle=False)
        features = clock.call("encode sound", hearing.encode, networks.hearing, samples)
    (folder / "sound.npy").unlink()
    rejected = list(answer["rejected"])
    for n, (start, stop) in enumerate(answer["clips"]):
        path, faces = folder / f"{n:03d}.npz", folder / f"{n:03d}.faces.npy"
        clip, aligned = clips.load_clip(path), np.load(faces, allow_pickle=False)
        faces.unlink()
        if networks.expert:
            late = clock.call("lip-sync expert", sound_lag, networks.expert, clip)
            if abs(late) > max_offset:
                rejected.append((start, stop, "out of step"))
                path.unlink()
                continue
        if features is not None:
            part = features[STEPS * start : STEPS * stop]
            clip = clip._replace(features=part.astype(np.float16))
        if networks.embed:
            who = clock.call("embed identity", identity.embedded, networks.embed, aligned)
            clip = clip._replace(identity=who)
        clips.save_clip(path, clip)
    return {"rejected": rejected}


def load_networks(plan: Plan) -> Networks:
    """The networks of the pack that add to the clips."""
    folder, has, settings = plan.pack_folder, plan.pack.components, plan.settings
    embed = None
    if plan.description.embedder == "identity":
        network = assets.load_network(folder, "identity")
        embed = lambda faces: np.asarray(network(jnp.asarray(faces)))
    elif plan.description.embedder:
        embed = identity.InsightFace(settings.insightface.expanduser())
    judge = settings.max_offset is not None and "wav2lip_syncnet" in has
    return Networks(
        hearing.load(folder) if "whisper" in has else None,
        embed,
        assets.load_network(folder, "wav2lip_syncnet") if judge else None,
    )


def sound_lag(expert: params.Network, clip: Clip) -> int:
    """By how many frames the sound comes too late for the mouth, as Wav2Lip's expert sees it.

    The shift, up to 15 frames either way, at which sound and mouth agree best over the whole clip.
    """
    count = len(clip.frames) - EXPERT_WINDOW + 1
    mel = audio.wav2lip_mel(clip.samples / np.float32(32768))
    sounds = [audio.mel_window(mel, i, Fraction(FPS)).T[..., None] for i in range(count)]
    mouths = [lower_face(frame) for frame in clip.frames]
    heard, seen = [], []
    for start in range(0, count, EXPERT_BATCH):
        numbers = np.minimum(np.arange(start, start + EXPERT_BATCH), count - 1)
        windows = [np.concatenate(mouths[i : i + EXPERT_WINDOW], axis=-1) for i in numbers]
        batch = np.stack([sounds[i] for i in numbers]), np.stack(windows)
        for found, vectors in zip(
            (heard, seen), judge(expert.graphdef, expert.weights, *batch), strict=True
        ):
            found.extend(np.asarray(vectors)[: count - start])
    agreement = np.stack(heard) @ np.stack(seen).T
    reach = min(EXPERT_REACH, count // 2)
    # below the diagonal the sound of a later window meets the mouth of an earlier one
    means = {lag: np.diagonal(agreement, -lag).mean() for lag in range(-reach, reach + 1)}
    return max(means, key=lambda lag: (means[lag], -abs(lag)))


@partial(jax.jit, static_argnums=0)
def judge(graphdef, weights: params.Params, mel: Array, frames: Array) -> tuple[Array, Array]:
    """The expert's unit vectors of sounds and mouths."""
    return params.bind(graphdef, weights)(mel, frames)


def lower_face(frame: bytes) -> Float[np.ndarray, "48 96 3"]:
    """The mouth as the expert sees it: BGR in [0, 1]."""
    face = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR)
    return cv2.resize(face, (96, 96), interpolation=cv2.INTER_AREA)[48:].astype(np.float32) / 255


# ---- worker processes ---------------------------------------------------------------------------------


@contextlib.contextmanager
def workers(count: int) -> Iterator[Callable[[Job], Future]]:
    """Processes that cut videos (`footage.serve`), each with a thread that speaks to it.

    The block gets `ask(job)`, whose future gives the answer. A process that
    dies, for a decoder can bring it down, is replaced; its video is answered by an error.
    """
    own, started = threading.local(), []
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a worker for each core

    def start():
        log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with its process)
        # Ctrl-C is for this process, which ends the others.
        process = subprocess.Popen(
            WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True, env=os.environ | single,
        )  # fmt: skip
        started.append((process, log))
        if process.stdout.readline() != "ready\n":
            raise InputError(f"no video can be processed: {death(process, log)}; repair that first")
        return process, log

    def ask(job: Job) -> dict:
        if readable(job.source) != job.source:
            return {"error": f"{readable(job.source)}: the name is not UTF-8; rename the file"}
        process, log = own.worker = getattr(own, "worker", None) or start()
        try:
            print(job.model_dump_json(), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer.endswith("\n"):
            return json.loads(answer)
        own.worker = None
        return {"error": f"{job.path} could not be processed: {death(process, log)}"}

    pool = ThreadPoolExecutor(count)
    try:
        yield lambda job: pool.submit(ask, job)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process, _ in started:
            process.kill()
        pool.shutdown()
        for process, log in started:
            process.communicate()
            log.close()


def death(process: subprocess.Popen, log) -> str:
    """Why a worker ended, in words."""
    status = process.wait()
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    log.seek(0)
    said = log.read().decode(errors="replace").split("\n")
    last = [line.strip() for line in said if line.strip()][-1:]
    return f"its process ended with status {status} ({' '.join(last) or 'without a word'})"


def readable(name: str) -> str:
    """A name as text that can be stored."""
    return os.fsencode(name).decode(errors="backslashreplace")


# ---- files --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, what: str | None = None) -> Iterator[None]:
    """Holds a lock, which ends with the process. `what` is busy; without it the lock is waited for."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if what else 0))
        except BlockingIOError as error:
            raise InputError(
                f"another run is at work on {what}; wait for it, or give each run its own --shard"
            ) from error
        yield


def build(output: Path, journals: Sequence[Journal], description: Description) -> None:
    """Builds the data set from all clips and draws some of them, unless that is done."""
    work = output / "work"
    files = [clip.file for journal in journals for clip in journal.clips]
    sources = [journal.model_dump(mode="json", exclude={"stages"}) for journal in journals]
    state = hashlib.sha256(json.dumps(sources).encode()).hexdigest()
    mark = work / "built"
    with locked(work / "build.lock"):
        if mark.exists() and mark.read_text() == state and (output / clips.NAME).is_dir():
            return
        for left in output.glob(f".{clips.NAME}.*"):  # by a run that was killed
            shutil.rmtree(left)
        clips.build([work / "clips" / file for file in files], output, description)
        with assets.replacement(output / "samples.png") as partial:
            cv2.imwrite(str(partial), samples_of([work / "clips" / file for file in files]))
        with assets.replacement(mark) as partial:
            partial.write_text(state)


def samples_of(files: Sequence[Path]) -> np.ndarray:
    """A contact sheet, BGR, of the middle frames of some random clips, with their landmarks."""
    count = min(len(files), dub.SHEET[0] * dub.SHEET[1])
    moments = []
    for i in sorted(np.random.default_rng(0).choice(len(files), count, replace=False)):
        clip = clips.load_clip(files[i])
        middle = len(clip.frames) // 2
        face = cv2.imdecode(np.frombuffer(clip.frames[middle], np.uint8), cv2.IMREAD_COLOR)
        scale = 320 / len(face)
        face = cv2.resize(face, (320, 320), interpolation=cv2.INTER_AREA)
        for x, y in (clip.landmarks[middle] + 0.5) * scale:
            cv2.circle(face, (round(float(x)), round(float(y))), 2, (0, 255, 0), -1, cv2.LINE_AA)
        moments.append(face)
    return dub.contact_sheet(moments)


def write_quarantine(output: Path, quarantined: Sequence[dict]) -> None:
    """The list of videos that could not be processed, a JSON a line."""
    with assets.replacement(output / "quarantine.jsonl") as partial:
        partial.write_text("".join(f"{json.dumps(entry)}\n" for entry in quarantined))


# ---- what is said -------------------------------------------------------------------------------------


def summary_of(work: Path, sources: int, journals: Mapping[str, Journal], missing: Counter) -> dict:
    """All journals in figures."""
    rejected: dict[str, dict] = {}
    stages = Counter()
    for journal in journals.values():
        stages.update(journal.stages)
        for part in journal.rejected:
            counted = rejected.setdefault(part.reason, {"parts": 0, "seconds": 0.0})
            counted["parts"] += 1
            counted["seconds"] += part.seconds
    stored = [clip for journal in journals.values() for clip in journal.clips]
    return {
        "sources": sources,
        "source_hours": sum(journal.seconds for journal in journals.values()) / 3600,
        "clips": len(stored),
        "hours": sum(clip.seconds for clip in stored) / 3600,
        "rejected": rejected,
        "quarantined": [
            {
                "source": journal.source,
                "reason": journal.error,
                "journal": str(journal_path(work, name)),  # without it the video is tried again
            }
            for name, journal in journals.items()
            if journal.error
        ],
        "missing": dict(missing),
        "data_set": None,
        "stages": dict(stages),
    }


def print_summary(summary: dict, output: Path) -> None:
    """Prints the summary as a table, and what comes next."""
    table = Table("", "number", "hours", title=f"{output}")
    table.add_row("videos", str(summary["sources"]), f"{summary['source_hours']:.2f}")
    table.add_row("clips", str(summary["clips"]), f"{summary['hours']:.2f}")
    for reason, counted in sorted(summary["rejected"].items()):
        table.add_row(
            f"rejected: {reason}", str(counted["parts"]), f"{counted['seconds'] / 3600:.2f}"
        )
    table.add_row("quarantined", str(len(summary["quarantined"])), "")
    rich.print(table)
    if summary["missing"]:
        left = ", ".join(f"{n} of shard {i}" for i, n in sorted(summary["missing"].items()))
        print(f"the data set is not built yet: videos are missing, {left}")
    if summary["data_set"]:
        print(f"the data set is in {output}; see {output / 'samples.png'}")


def progress_bar(quiet: bool) -> Progress:
    """A bar with videos and the time left."""
    description = TextColumn("{task.description}")
    columns = description, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, disable=quiet)
