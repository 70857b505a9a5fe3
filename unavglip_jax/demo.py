"""The demonstration: a photograph that talks, dubbed with another sentence, and what came of it in figures.

Nothing is filmed or downloaded for it but the two face networks: scikit-image brings the photograph and
espeak-ng speaks.
"""

import time
import wave
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from unavglip_jax import assets
from unavglip_jax.config import InputError
from unavglip_jax.data import photographs, synth
from unavglip_jax.data.motion import head_motion
from unavglip_jax.data.speech import PAUSE, Phoneme, Speech, speak
from unavglip_jax.data.synth import FPS
from unavglip_jax.data.visemes import OPEN, mouth_track
from unavglip_jax.dubbing import dub, generator
from unavglip_jax.dubbing.tasks import Settings, Task
from unavglip_jax.evaluation.sync import Correlation, gap_correlation, lip_gap
from unavglip_jax.faces.tracking import Tracker
from unavglip_jax.media import video

VOICE, WORDS_A_MINUTE = "en-us+f3", 160
SAID = "The blue planet turns below us, and every morning comes again after an hour and a half."
SENTENCE = "Up here, my mother asked, how do people move about? We float from room to room."
FILES = (
    "astronaut.mp4",
    "sentence.wav",
    "dubbed.mp4",
    "dubbed_side_by_side.mp4",
    "dubbed.png",
    "dubbed.json",
)
SEED = 1  # of head motion, blinks and the noise of the camera


class Figures(NamedTuple):
    """What was measured.

    Attributes:
      frames: of the dubbed video.
      sync: of the opening of its lips, by the face mesh, with the one that the sentence asks for.
      undubbed: the same of the true opening of the photograph's lips before.
      wall: seconds from the files to the dubbed file, the networks loaded and compiled before.
      seconds: that each stage of it took; they overlap.
    """

    frames: int
    sync: Correlation
    undubbed: Correlation
    wall: float
    seconds: dict[str, float]


def make(
    output: str | Path,
    settings: Settings | None = None,
    seconds: float = 6.0,
    size: int = 512,
    quiet: bool = False,
) -> Figures:
    """Makes `astronaut.mp4` and `sentence.wav`, dubs the one with the other, and measures.

    The video is dubbed twice. The first time compiles, and writes `dubbed_side_by_side.mp4` and the contact
    sheet `dubbed.png` as well; the second is timed, and writes nothing but `dubbed.mp4` and its report.

    Args:
      output: folder of all of it; what it has of an earlier demonstration is replaced.
      settings: how to dub; by default as `unavglip dub` does.
      seconds: of both.
      size: side of the picture in pixels; even, from 128.
      quiet: no progress bars.

    Raises:
      InputError: an argument is out of range, espeak-ng is missing, there is no pack, or the folder cannot be
        written.
    """
    output, settings = Path(output), settings or Settings()
    if not (np.isfinite(seconds) and seconds >= 1):
        raise InputError(f"{seconds} seconds are too few to see a sentence spoken; give 1 or more")
    synth.check_size(size)
    networks = generator.load(settings.pack, settings.dtype)  # first, should there be none
    dub.make_folder(output)
    said, sentence = (
        lasting(speak(text, VOICE, WORDS_A_MINUTE), seconds) for text in (SAID, SENTENCE)
    )
    source, recording = output / "astronaut.mp4", output / "sentence.wav"
    draw_astronaut(source, said, size, quiet)
    write_wav(recording, sentence)

    task = Task(video_path=source, audio_path=recording, output=output / "dubbed.mp4")
    dub.dub(task, settings.replace(side_by_side=True, contact_sheet=True), networks, quiet)
    start = time.perf_counter()
    report = dub.dub(task, settings, networks, quiet)
    wall = time.perf_counter() - start

    gaps = lip_gaps(task.output)
    found, asked = (opening(speech, len(gaps)) for speech in (said, sentence))
    sync, undubbed = gap_correlation(gaps, asked), gap_correlation(found, asked)
    return Figures(report["frames"], sync, undubbed, wall, report["seconds"])


def lasting(speech: Speech, seconds: float) -> Speech:
    """The speech with silence behind it, or cut off, so that it lasts so many seconds."""
    samples = np.zeros(round(seconds * speech.rate), np.float32)
    kept = min(len(samples), len(speech.samples))
    samples[:kept] = speech.samples[:kept]
    end = len(samples) / speech.rate
    silence = Phoneme(speech.phonemes[-1].stop, end, PAUSE)
    return Speech(samples, speech.rate, tuple(synth.cut([*speech.phonemes, silence], end)))


def draw_astronaut(path: Path, speech: Speech, size: int, quiet: bool) -> None:
    """Writes a video of scikit-image's astronaut who says something, nods and blinks."""
    import skimage.data

    photograph = photographs.prepare(skimage.data.astronaut(), "the astronaut")
    count = round(len(speech.samples) / speech.rate * FPS)
    rng = np.random.default_rng(SEED)
    poses, mouths = head_motion(rng, count, FPS, speech), mouth_track(speech, count, FPS)
    sound = speech.samples, speech.rate
    with (
        dub.progress_bar(quiet) as progress,
        video.write_video(path, size, size, FPS, sound) as put,
    ):
        bar = progress.add_task("photograph", total=count)
        for mouth, pose in zip(mouths, poses, strict=True):
            put(photographs.draw(photograph, mouth, pose, size, rng)[0])
            progress.advance(bar)


def write_wav(path: Path, speech: Speech) -> None:
    """Writes 16-bit mono."""
    samples = np.rint(np.clip(speech.samples, -1, 1) * 32767).astype("<i2")
    with assets.replacement(path) as partial, wave.open(str(partial), "wb") as file:
        file.setparams((1, 2, speech.rate, 0, "NONE", None))
        file.writeframes(samples.tobytes())


def opening(speech: Speech, count: int) -> Float[np.ndarray, " F"]:
    """How far the speech opens the mouth in each frame, 0 to 1."""
    return mouth_track(speech, count, FPS)[:, OPEN]


def lip_gaps(path: Path) -> Float[np.ndarray, " F"]:
    """The gap between the lips in every frame of a video (`sync.lip_gap`), NaN where there is no face."""
    tracker = Tracker(*dub.face_networks())
    meshes = [tracker(frame).mesh for frame in video.read_frames(video.describe(path))]
    return np.array([np.nan if mesh is None else lip_gap(mesh.points) for mesh in meshes])


def summary(figures: Figures) -> str:
    """The figures in a few lines."""
    correlation = lambda found: f"{found.best:.2f} at a lag of {found.lag} frames"
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in figures.seconds.items())
    return (
        f"lip sync: opening of the dubbed lips with the sentence's, correlation {correlation(figures.sync)}"
        f" (of the undubbed: {correlation(figures.undubbed)})\n"
        f"speed: {figures.frames} frames in {figures.wall:.1f} s, {figures.frames / figures.wall:.1f} a "
        "second from file to file, dubbed a second time so that nothing is compiled\n"
        f"seconds a stage, which overlap: {stages}"
    )
