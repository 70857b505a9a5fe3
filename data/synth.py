"""Synthetic talking heads, whose every mouth shape is known: `unavglip synth`.

Nobody is filmed: espeak-ng speaks, its phonemes move a mouth, and a drawn head or a warped photograph wears
it. All that is random comes from the seed, the identity and the clip's number, so that a clip is the same
whichever process makes it, and when.
"""

import contextlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from fractions import Fraction
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unavglip_jax.config import InputError
from unavglip_jax.data import heads
from unavglip_jax.data.motion import Pose, head_motion
from unavglip_jax.data.speech import MEN, PAUSE, VOICES, WOMEN, Phoneme, Speech, sentence, speak
from unavglip_jax.data.visemes import MOUTH, OPEN, VISEMES, mouth_track
from unavglip_jax.media.video import read_image, write_video

if TYPE_CHECKING:
    from unavglip_jax.data.photographs import Photograph

FPS = Fraction(25)
SMALLEST = 128  # pixels; at 64 x264 does not encode the same pictures the same way every time
ASTRONAUT = "astronaut"  # the photograph that comes with scikit-image
SETTINGS = "synth.json"  # what all clips of an output folder share
WOMENS_LASHES = 0.45  # `heads.random_head` gives women longer lashes and men shorter ones, always
SILENCE_BEFORE, SILENCE_BETWEEN = (0.05, 0.3), (0.1, 0.6)  # seconds


class Person(NamedTuple):
    """An identity.

    Attributes:
      look: a procedural head, or a photograph.
      source: "procedural", or the photograph's name.
      voice: one of `VOICES`.
      words_a_minute: how fast they usually speak.
      pitch: how high, as in `speak`.
    """

    look: "heads.Head | Photograph"
    source: str
    voice: str
    words_a_minute: int
    pitch: int

    def draw(
        self,
        mouth: Float[np.ndarray, " 5"],
        pose: Pose,
        size: int,
        rng: np.random.Generator | None = None,
    ) -> tuple[UInt8[np.ndarray, "P P 3"], Float[np.ndarray, "68 2"]]:
        """The picture and its landmarks; with `rng`, and the noise of a camera."""
        if isinstance(self.look, heads.Head):
            return heads.draw(self.look, mouth, pose, size, rng)
        from unavglip_jax.data import photographs

        return photographs.draw(self.look, mouth, pose, size, rng)


class Job(NamedTuple):
    """One clip to make.

    Attributes:
      identity: its number.
      clip: number of the clip.
      seconds: its length.
      size: pixels a side.
      seed: of everything.
      articulation: how wide the mouth opens, as in `synthesise`.
      video: where the clip goes; the truth goes beside it.
      photograph: the identity's, with its name, if it is one.
    """

    identity: int
    clip: int
    seconds: float
    size: int
    seed: int
    articulation: float
    video: Path
    photograph: "tuple[str, Photograph] | None"


def synthesise(
    identities: int,
    clips: int,
    seconds: float,
    size: int,
    output: str | Path,
    seed: int = 0,
    photographs: Sequence[str | Path] = (),
    photograph_share: float = 0.1,
    first_identity: int = 0,
    articulation: float = 1.0,
    processes: int | None = None,
    quiet: bool = False,
) -> int:
    """Makes clips of talking heads with their truth; what an earlier run has made is left as it is.

    A clip is `{output}/{identity:05d}/{clip:03d}.mp4`, H.264 and AAC at 25 frames a second. The `.npz` of
    the same name holds `mouth` (F, 5) and `mouth_names` (see `visemes.MOUTH`), `landmarks` (F, 68, 2) in
    pixels, `phonemes` (P,) and `phoneme_times` (P, 2) in seconds, `identity`, `source` ("procedural" or the
    photograph's name), `text` (its end may be cut off in the clip) and `voice`. It is written first: where
    the video is, both are complete.

    Args:
      identities: how many.
      clips: for each identity.
      seconds: of each clip.
      size: side of the picture in pixels; even.
      output: the folder; it may hold clips of the same settings already.
      seed: of everything.
      photographs: pictures with a face; by default the astronaut, if scikit-image is installed.
      photograph_share: of identities that are one of the photographs and not procedural.
      first_identity: number of the first identity, to share the work among machines.
      articulation: factor of how far mouths open; none opens wider than the widest vowel. A network that
        guesses what it does not hear opens mouths less than those that it learnt from.
      processes: by default one for each core that this process may use.
      quiet: no progress bar.

    Returns:
      How many clips were made.

    Raises:
      InputError: an argument is out of range, a photograph is missing or has no face, or the folder cannot
        be written or holds clips of other settings.
    """
    output = Path(output)
    for what, value in (("identities", identities), ("clips", clips)):
        if value < 1:
            raise InputError(f"{value} {what} are none to make; give at least 1")
    if not (math.isfinite(seconds) and round(seconds * FPS) >= 1):
        raise InputError(f"{seconds} seconds are no clip; give more, such as 6")
    check_size(size)
    if seed < 0 or first_identity < 0:
        raise InputError("the seed and the first identity must not be negative")
    if not 0 < articulation <= 4:
        raise InputError(f"an articulation of {articulation} is no speech; give 1, or up to 4")
    if processes is not None and processes < 1:
        raise InputError(f"{processes} processes can do nothing; give at least 1")
    files = photograph_files(photographs, photograph_share)
    agree_on_settings(output, dict(seconds=seconds, size=size, seed=seed, photographs=files,
                                   photograph_share=photograph_share if files else 0.0,
                                   articulation=articulation))  # fmt: skip
    numbers = range(first_identity, first_identity + identities)
    video = lambda identity, clip: output / f"{identity:05d}" / f"{clip:03d}.mp4"
    missing = [pair for pair in product(numbers, range(clips)) if not video(*pair).exists()]
    ready = prepared(files, photograph_share, seed, sorted({identity for identity, _ in missing}))
    jobs = [
        Job(*pair, seconds, size, seed, articulation, video(*pair), ready.get(pair[0]))
        for pair in missing
    ]
    columns = TextColumn("talking heads"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=quiet) as bar:
        task = bar.add_task("", total=identities * clips, completed=identities * clips - len(jobs))
        for _ in done(jobs, processes or len(os.sched_getaffinity(0))):
            bar.advance(task)
    return len(jobs)


def check_size(size: int) -> None:
    """Raises InputError if a picture cannot have this size."""
    if size < SMALLEST or size % 2:
        raise InputError(
            f"pictures of {size} pixels cannot be made; give an even size from {SMALLEST}"
        )


# ---- Processes -------------------------------------------------------------------------------------


def done(jobs: list[Job], processes: int) -> Iterator[None]:
    """Makes the clips, on several cores; one item for each that is made."""
    processes = min(processes, len(jobs))
    if processes <= 1:
        yield from map(make_clip, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=prepare_process) as pool:
        try:
            for future in as_completed([pool.submit(make_clip, job) for job in jobs]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def prepare_process() -> None:
    """Makes a worker process use one core, leave Ctrl-C to its parent, and end when that is killed."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# ---- One clip --------------------------------------------------------------------------------------


def make_clip(job: Job) -> None:
    """Makes one clip and its truth."""
    someone = person(job.seed, job.identity, job.photograph)
    rng = np.random.default_rng([job.seed, job.identity, 1 + job.clip])
    count = round(job.seconds * FPS)
    speech, text = monologue(rng, someone, Fraction(count) / FPS)
    mouths = mouth_track(speech, count, FPS)
    mouths[:, OPEN] = np.minimum(job.articulation * mouths[:, OPEN], 1)
    poses = head_motion(rng, count, FPS, speech)
    landmarks = []
    with no_failure(job.video), scratch_folder(job.video) as scratch:
        sound = speech.samples, speech.rate
        with write_video(scratch / "clip.mp4", job.size, job.size, FPS, sound) as write:
            for mouth, pose in zip(mouths, poses, strict=True):
                picture, points = someone.draw(mouth, pose, job.size, rng)
                write(picture)
                landmarks.append(points)
        np.savez_compressed(
            scratch / "clip.npz",
            mouth=mouths.astype(np.float32),
            mouth_names=np.array(MOUTH),
            landmarks=np.array(landmarks, np.float32),
            phonemes=np.array([phoneme.symbol for phoneme in speech.phonemes]),
            phoneme_times=np.array([phoneme[:2] for phoneme in speech.phonemes]),
            identity=np.int64(job.identity),
            source=np.array(someone.source),
            text=np.array(text),
            voice=np.array(someone.voice),
        )
        os.replace(scratch / "clip.npz", job.video.with_suffix(".npz"))
        os.replace(scratch / "clip.mp4", job.video)


def person(seed: int, identity: int, photograph: "tuple[str, Photograph] | None") -> Person:
    """The identity of a number."""
    rng = np.random.default_rng([seed, identity])
    source, look = photograph or ("procedural", heads.random_head(rng))
    variants = MEN + WOMEN
    if isinstance(look, heads.Head):
        variants = WOMEN if look.lashes > WOMENS_LASHES else MEN
    voices = [voice for voice in VOICES if voice.rpartition("+")[2] in variants]
    voice = voices[rng.integers(len(voices))]
    return Person(look, source, voice, int(rng.integers(145, 186)), int(rng.integers(38, 63)))


def monologue(rng: np.random.Generator, who: Person, seconds: Fraction) -> tuple[Speech, str]:
    """Sentences with pauses between them, cut off after so many seconds; and their text."""
    blocks, phonemes, texts, length, rate = [], [], [], 0, 0
    silence = rng.uniform(*SILENCE_BEFORE)
    speed, pitch = (
        who.words_a_minute + int(rng.integers(-8, 9)),
        who.pitch + int(rng.integers(-4, 5)),
    )
    while not rate or length < seconds * rate:
        texts.append(sentence(rng))
        said = speak(texts[-1], who.voice, speed, pitch)
        rate = said.rate
        blocks += [np.zeros(round(silence * rate), np.float32), said.samples]
        spoken = (length + len(blocks[-2])) / rate
        phonemes.append(Phoneme(length / rate, spoken, PAUSE))
        phonemes += [Phoneme(spoken + start, spoken + stop, s) for start, stop, s in said.phonemes]
        length += len(blocks[-2]) + len(blocks[-1])
        silence = rng.uniform(*SILENCE_BETWEEN)
    samples = np.concatenate(blocks)[: round(seconds * rate)]
    samples *= rng.uniform(0.4, 0.9) / np.abs(samples).max(initial=1e-3)
    return Speech(samples, rate, tuple(cut(phonemes, len(samples) / rate))), " ".join(texts)


def cut(phonemes: list[Phoneme], end: float) -> Iterator[Phoneme]:
    """The phonemes before a time, with pauses in a row made one."""
    kept = [p._replace(stop=min(p.stop, end)) for p in phonemes if p.start < min(p.stop, end)]
    for i, phoneme in enumerate(kept):
        if phoneme.symbol == PAUSE and i + 1 < len(kept) and kept[i + 1].symbol == PAUSE:
            kept[i + 1] = kept[i + 1]._replace(start=phoneme.start)
        else:
            yield phoneme


# ---- Photographs -----------------------------------------------------------------------------------


def photograph_files(photographs: Sequence[str | Path], share: float) -> dict[str, str]:
    """Path, or `ASTRONAUT`, of each photograph to use -> sha256 of its file."""
    if not 0 <= share <= 1:
        raise InputError(f"a share of {share} cannot be photographs; give 0 to 1")
    for path in map(Path, photographs):
        if not path.is_file():
            raise InputError(f"{path}: no such photograph; give an image file with a face")
    if not share:
        return {}
    if photographs:
        return {str(path): sha256(Path(path).read_bytes()).hexdigest() for path in photographs}
    try:
        import skimage.data
    except ImportError:
        return {}
    return {ASTRONAUT: sha256(skimage.data.astronaut().tobytes()).hexdigest()}


def prepared(
    files: dict[str, str], share: float, seed: int, numbers: Sequence[int]
) -> dict[int, tuple[str, "Photograph"]]:
    """Name and photograph of each identity that has one."""
    names, chosen = list(files), {}
    for identity in numbers if files else ():
        kind, which = np.random.default_rng([seed, identity, 0]).random(2)
        if kind < share:
            chosen[identity] = names[int(which * len(names))]
    if not chosen:
        return {}
    from unavglip_jax.data import photographs

    ready = {}
    for name in set(chosen.values()):
        if name == ASTRONAUT:
            import skimage.data

            image = skimage.data.astronaut()
        else:
            image = read_image(Path(name))
        ready[name] = photographs.prepare(image, name)
    return {identity: (name, ready[name]) for identity, name in chosen.items()}


# ---- Contact sheet ---------------------------------------------------------------------------------


def contact_sheet(
    path: str | Path,
    identities: int = 8,
    size: int = 192,
    seed: int = 0,
    photographs: Sequence[str | Path] = (),
    photograph_share: float = 0.1,
    first_identity: int = 0,
) -> None:
    """Writes a PNG with one row for each identity of `synthesise` and one column for each of `VISEMES`.

    Raises:
      InputError: as `synthesise`, or the path does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} does not end in .png; the contact sheet is a PNG file")
    if identities < 1:
        raise InputError(f"{identities} identities are none to draw; give at least 1")
    check_size(size)
    numbers = range(first_identity, first_identity + identities)
    files = photograph_files(photographs, photograph_share)
    ready = prepared(files, photograph_share, seed, numbers)
    names = [np.full((24, size, 3), 255, np.uint8) for _ in VISEMES]
    for label, name in zip(names, VISEMES, strict=True):
        cv2.putText(label, name, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    rows = [np.hstack(names)]
    for identity in numbers:
        someone = person(seed, identity, ready.get(identity))
        mouths = map(np.array, VISEMES.values())
        rows.append(np.hstack([someone.draw(mouth, Pose(), size)[0] for mouth in mouths]))
    encoded = cv2.imencode(".png", cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))[1]
    with no_failure(path), scratch_folder(path) as scratch:
        (scratch / path.name).write_bytes(encoded.tobytes())
        os.replace(scratch / path.name, path)


# ---- Files -----------------------------------------------------------------------------------------


def agree_on_settings(output: Path, settings: dict) -> None:
    """Notes the settings in a new output folder; in a used one they must be the same."""
    path = output / SETTINGS
    settings = json.loads(json.dumps(settings))
    with no_failure(output):
        if not path.is_file():
            with scratch_folder(path) as scratch:
                (scratch / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
                os.replace(scratch / SETTINGS, path)
            return
        try:
            found = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is damaged; choose another output") from error
    if found != settings:
        other = [name for name in settings if found.get(name) != settings[name]]
        raise InputError(
            f"{output} holds clips made with another {', '.join(other)}, see {SETTINGS}; "
            "choose another output"
        )


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` while the block lasts; one that a killed run has left there is removed."""
    folder = path.parent / f".{path.name}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def no_failure(path: Path) -> Iterator[None]:
    """Turns the system's refusal to write into one sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); choose another output"
        ) from error
