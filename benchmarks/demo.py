"""What a pack reaches on people, sentences and voices that its training never met.

    python benchmarks/demo.py --folder runs/demo --pack packs/demo --sheet runs/demo/sheet.png
    python benchmarks/demo.py --folder runs/demo --pack packs/demo --identities 3

Each drawn head, and the astronaut's photograph, is filmed saying one sentence (the source), and saying
another with the same movements of the head and the same noise of the camera (the truth). The source is
dubbed with the recording of the other sentence, and every measure is taken of decoded frames: of the dub,
of the truth (what the measure itself can reach) and of the source as it was (what not dubbing reaches).
The source is also dubbed with its own recording, which should give it back.

Videos are made once and kept in the folder; dubs are kept for each pack, by the digest of its `pack.yaml`.
Remove `dubbed` there after a change of the code that dubs.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import skimage.data
import tyro
from jaxtyping import Bool, Float, UInt8
from rich.console import Console
from rich.progress import track
from rich.table import Table

from unavglip_jax import assets, demo
from unavglip_jax.config import InputError
from unavglip_jax.data import photographs, speech, synth
from unavglip_jax.data.motion import Pose, head_motion
from unavglip_jax.data.speech import PAUSE, WOMEN, Phoneme, Speech
from unavglip_jax.data.synth import FPS, Person
from unavglip_jax.data.visemes import MOUTH, OPEN, mouth_track
from unavglip_jax.dubbing import dub, generator
from unavglip_jax.dubbing.generator import Generator
from unavglip_jax.dubbing.tasks import Reference, Settings, Task
from unavglip_jax.evaluation import behaviour, measure, networks, picture, sync
from unavglip_jax.evaluation.networks import Networks
from unavglip_jax.evaluation.tasks import EvaluateSettings
from unavglip_jax.faces import identity
from unavglip_jax.faces.crop import Box, crop, crop_box
from unavglip_jax.faces.mesh import ibug68
from unavglip_jax.faces.tracking import Tracker
from unavglip_jax.media import video

SEED = 20261  # of people and their movements; training draws its own from another
SIZE, COUNT = 256, 100  # pixels a side, and frames of a clip: 4 seconds
BEFORE, AFTER = (0.1, 0.6), 0.5  # seconds of silence; a recording counts as silent from 0.4
PORTRAITS, APART = 24, 20  # pictures that say who somebody is, and frames of movement between them
FACES = 24  # of a video that are embedded
CHEEK = 0.1  # half the side of the patch, in distances between the eyes
RIGID = (*range(27, 31), 36, 39, 42, 45)  # bridge of the nose and corners of the eyes
EXPERTS = ("wav2lip_syncnet", "stable_syncnet")
GUIDES = (0.0, 0.5, 1.0)
SHIPPED = Task.model_fields["guide_scale"].default
TRUTH, SOURCE = "true frames", "undubbed"  # rows beside the dubs

SENTENCES = (
    "My uncle Pete whistles while he waters five rows of beans.",
    "Few of them had ever seen a live wolf up close before.",
    "Beavers moved into the big pool below our farm in May.",
    "Please fold both of the maps before you move off with Phil.",
    "She wove a purple scarf for Mom and a vest for her pup.",
    "Five of the bakers put way too much salt in the soup.",
    "You two may have to pump even more water by hand.",
    "The vet weighed a very plump bunny for us over breakfast.",
    "We never had money to buy a proper roof for the hut.",
    "Move that mop or somebody will soon fall over it.",
    "Who on earth put soapy foam all over my favourite sofa?",
    "Every evening before bed, Bo feeds the moody worms.",
    "A few brave moths flew by above the warm green lamp.",
    "Would you prefer some beef or a big bowl of pea soup?",
    "Most people will forgive a poor but humble poet or two.",
    "Wave to Phoebe from the upper window, will you, Blue?",
    "Vivid blue paint, from my feet up, was all over me.",
    "Papa beat the five eggs and we poured the warm milk in.",
    "If you go by ferry to Oban, please leave before noon.",
    "He wore a woolly vest beneath his new blue uniform.",
    "Both of my poor feet were numb even after the move.",
    "Wipe the foggy window for me with a piece of blue wool.",
    "The new pope vowed that he would bring them all peace.",
    "Few of these moving vans will ever have room for a boat.",
    "We hope to prove that the view over the bay has improved.",
    "Mabel saved me a whole box of free movie posters.",
    "Above the new pub by the sea lives a family of five.",
    "You should leave the beef and the boiled beets in vinegar.",
    "Mike soon grew fond of the wee pigeon above the beam.",
    "Would a lump of butter improve the flavour of the pea pie?",
    "Every voter in the room was given a smooth wooden pebble.",
    "Peter blew a few big bubbles over the fence at me.",
    "I do believe that the plumber will be over here by two.",
    "One huge heavy wheel flew off the vegetable cart beside me.",
    "You may leave my favourite cup of green tea in the oven.",
    "Whoever broke the blue vase may be the one to pay for it.",
    "The five farm boys whooped as the big bull woke up to feed.",
    "Sweep up all of the bits of blue foil for me, Vera.",
    "Moving a beehive is a job best left to Fay and her two women.",
    "The movie people have bought up five whole blocks near our pier.",
    "From over the river, two foxes peeped at me and the sheep.",
    "We fried the mushrooms in olive oil and put pepper on them.",
    "Poor Will has a fever and wants to sleep above the shop.",
    "Far fewer buses move by here when deep snow blows over.",
    "Bob will prove to you that even a feeble weed may bloom.",
    "I wish that my new phone would vibrate when you beep me.",
    "Wolves, believe me, never do bother the people of Fife.",
    "Please be fair to him, and move the whole woodpile over.",
    "The view up here, in the evening, is beyond belief to me.",
    "Both of the moons of Mars would fit easily over Wales, maybe.",
)

Frame = UInt8[np.ndarray, "H W 3"]
Landmarks = Float[np.ndarray, "F 68 2"]
Curve = Float[np.ndarray, " F"]
Measures = dict[str, float]


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
      folder: of everything that is made; a second run goes on in it.
      pack: the networks; by default the ones that come with the package.
      identities: heads, 24 at most. The astronaut comes on top.
      reference: what shows the generator the person, if not what `dub` takes by default.
      sheet: a PNG whose name the contact sheets get, with what they show before its end.
    """

    folder: Path
    pack: Path = assets.DEMO
    identities: int = 20
    reference: Reference | None = None
    sheet: Path | None = None


# ---- Videos ------------------------------------------------------------------------------------------


def clips(folder: Path, identities: int) -> list[Path]:
    """The folders of the clips, the astronaut's last; what is not there yet is made."""
    if not 1 <= identities <= len(SENTENCES) // 2 - 1:
        raise InputError(
            f"{identities} heads cannot have two sentences each of {len(SENTENCES)}; "
            f"give 1 to {len(SENTENCES) // 2 - 1}"
        )
    settings = {"seed": SEED, "size": SIZE, "frames": COUNT, "sentences": list(SENTENCES)}
    synth.agree_on_settings(folder, settings | {"voices": list(speech.HELD_OUT)})
    last = len(SENTENCES) // 2 - 1  # the astronaut's number, whatever the number of heads
    names = {i: f"{i:02d}" for i in range(identities)} | {last: synth.ASTRONAUT}
    missing = [i for i, name in names.items() if not (folder / name).exists()]
    for i in track(missing, "videos", disable=not missing):
        photograph = None
        if i == last:
            photograph = "astronaut", photographs.prepare(skimage.data.astronaut(), "astronaut")
        someone = synth.person(SEED, i, photograph)
        woman = i == last or someone.voice.rpartition("+")[2] in WOMEN
        with assets.replacement(folder / names[i]) as partial:
            partial.mkdir()
            film(partial, i, someone._replace(voice=speech.HELD_OUT[woman]))
    return [folder / name for name in names.values()]


def film(folder: Path, number: int, who: Person) -> None:
    """The videos of one person, with their truth, and the two recordings."""
    rng = np.random.default_rng([SEED, number, 1])
    own, driving = (recording(rng, SENTENCES[2 * number + k], who) for k in (0, 1))
    poses = head_motion(rng, COUNT, FPS, own)
    for name, said in (("source", own), ("true", driving)):
        mouths = mouth_track(said, COUNT, FPS)
        # The same noise in both, so that the true frames can be told from the source's by the mouth only.
        shoot(folder / f"{name}.mp4", who, mouths, poses, np.random.default_rng([SEED, number, 2]))
        demo.write_wav(folder / f"{name}.wav", said)
    elsewhere = head_motion(rng, PORTRAITS * APART, FPS)[::APART]
    shoot(folder / "portraits.mp4", who, np.zeros((PORTRAITS, len(MOUTH))), elsewhere, rng)


def shoot(path: Path, who: Person, mouths, poses: list[Pose], rng: np.random.Generator) -> None:
    """A video without sound, and beside it the mouth and the landmarks of every frame."""
    landmarks = []
    with video.write_video(path, SIZE, SIZE, FPS) as put:
        for mouth, pose in zip(mouths, poses, strict=True):
            image, points = who.draw(mouth, pose, SIZE, rng)
            put(image)
            landmarks.append(points)
    np.savez(path.with_suffix(".npz"), mouth=mouths, landmarks=np.array(landmarks))


def recording(rng: np.random.Generator, text: str, who: Person) -> Speech:
    """A sentence with silence around it, as long as a clip; spoken faster if it would not fit."""
    seconds, pace = float(COUNT / FPS), who.words_a_minute
    room = seconds - BEFORE[0] - AFTER
    while len((said := speech.speak(text, who.voice, pace, who.pitch)).samples) > room * said.rate:
        pace += 5
    length = len(said.samples) / said.rate
    start = rng.uniform(BEFORE[0], min(BEFORE[1], seconds - AFTER - length))
    first = round(start * said.rate)
    start = first / said.rate
    samples = np.zeros(round(seconds * said.rate), np.float32)
    samples[first : first + len(said.samples)] = 0.7 * said.samples / np.abs(said.samples).max()
    spoken = [Phoneme(start + p.start, start + p.stop, p.symbol) for p in said.phonemes]
    around = [Phoneme(0.0, start, PAUSE), *spoken, Phoneme(start + length, seconds, PAUSE)]
    return Speech(samples, said.rate, tuple(synth.cut(around, seconds)))


# ---- Dubs --------------------------------------------------------------------------------------------


class Mode(NamedTuple):
    """How clips are dubbed.

    Attributes:
      generator: the networks.
      settings: where they are; all else is the default, for that is what ships.
      reference: as in `Task`.
      folder: of the dubs.
    """

    generator: Generator
    settings: Settings
    reference: Reference
    folder: Path


def dubbed(mode: Mode, clip: Path, guide: float, sound: str = "true") -> Path:
    """The clip's source dubbed with one of its recordings, unless an earlier run has done it."""
    output = mode.folder / f"{clip.name}-{sound}-{guide:g}.mp4"
    if not output.with_suffix(".json").exists():  # which is written last
        dub.dub(task(mode, clip, guide, sound, output), mode.settings, mode.generator, quiet=True)
    return output


def task(mode: Mode, clip: Path, guide: float, sound: str, output: Path) -> Task:
    """What to dub."""
    return Task(
        video_path=clip / "source.mp4",
        audio_path=clip / f"{sound}.wav",
        guide_scale=guide,
        reference=mode.reference,
        output=output,
    )


def speed(mode: Mode, clip: Path) -> float:
    """Frames a second from files to file, once everything is compiled."""
    with tempfile.TemporaryDirectory() as scratch:
        work = task(mode, clip, SHIPPED, "true", Path(scratch) / "dub.mp4")
        dub.dub(work, mode.settings, mode.generator, quiet=True)
        start = time.perf_counter()
        dub.dub(work, mode.settings, mode.generator, quiet=True)
        return COUNT / (time.perf_counter() - start)


# ---- Measures ----------------------------------------------------------------------------------------


class Film(NamedTuple):
    """A video and the face in it.

    Attributes:
      frames: all of them.
      mesh: x and y of the face mesh's points in pixels, NaN where no face was found.
    """

    frames: list[Frame]
    mesh: Float[np.ndarray, "F 468 2"]


class Case(NamedTuple):
    """What a clip's videos are measured by.

    Attributes:
      source: the undubbed video.
      true: the video of the driving sentence.
      opening: of the mouth for the driving sentence, in [0, 1].
      landmarks: of the true video, as it was drawn.
      own_opening: of the mouth for the source's sentence.
      own: landmarks of the source, as it was drawn.
      samples: the driving recording at 16 kHz.
      silent: the frames in which nobody speaks in it.
    """

    source: Film
    true: Film
    opening: Curve
    landmarks: Landmarks
    own_opening: Curve
    own: Landmarks
    samples: Float[np.ndarray, " N"]
    silent: Bool[np.ndarray, " F"]

    @property
    def chance(self) -> float:
        """Correlation of the two true openings."""
        return sync.pearson(self.opening, self.own_opening)


def frames_of(path: Path) -> list[Frame]:
    """The frames of a clip's video; a recording may ask for one more at its end."""
    return list(video.read_frames(video.describe(path)))[:COUNT]


def watched(path: Path) -> Film:
    """Reads a video and finds the face in it."""
    tracker, frames = Tracker(*dub.face_networks()), frames_of(path)
    meshes = [tracker(frame).mesh for frame in frames]
    none = np.full((468, 2), np.nan)
    return Film(frames, np.stack([none if m is None else m.points[:, :2] for m in meshes]))


def case_of(clip: Path) -> Case:
    """Reads a clip."""
    samples = video.read_audio(clip / "true.wav")
    drawn = [truth(clip, name) for name in ("true", "source")]
    return Case(
        *(watched(clip / f"{name}.mp4") for name in ("source", "true")),
        *(curve for found in drawn for curve in (found["mouth"][:, OPEN], found["landmarks"])),
        samples,
        behaviour.silent_frames(samples, COUNT, FPS),
    )


def truth(clip: Path, name: str) -> dict[str, np.ndarray]:
    """Mouth and landmarks of a video, as it was drawn."""
    with np.load(clip / f"{name}.npz") as found:
        return dict(found)


def measured(found: Film, case: Case, judges: Networks) -> Measures:
    """The measures of a video, which should be the true one, that need no network of the pack."""
    gaps, true_gaps = (sync.lip_gap(seen.mesh) for seen in (found, case.true))
    follows = sync.gap_correlation(gaps, case.opening)
    boxes = [picture.mouth_box(points, (SIZE, SIZE)) for points in case.landmarks]
    lower, mouth = likeness(found.frames, case.true.frames, case.landmarks, judges)
    resting = lambda gaps: behaviour.mouth_motion(gaps, case.silent, FPS).open
    still = [flicker(seen.frames, case.own) for seen in (found, case.source)]
    return {
        "correlation": follows.in_step,
        "drawn": sync.pearson(gaps, sync.lip_gap(case.landmarks)),
        "lag": float(follows.lag),
        "amplitude": spread(gaps) / spread(true_gaps),
        "leak": sync.pearson(gaps, case.own_opening) - case.chance,
        "energy": energy(found.frames, boxes) / energy(case.true.frames, boxes),
        "lower": lower,
        "mouth": mouth,
        "rest": resting(gaps) - resting(true_gaps),
        "flicker": still[0] / still[1],
    }


def spread(gaps: Curve) -> float:
    """How widely a mouth opens and shuts."""
    return float(np.nanstd(gaps)) if np.isfinite(gaps).any() else float("nan")


def likeness(
    found: list[Frame], true: list[Frame], landmarks: Landmarks, judges: Networks
) -> tuple[float, float]:
    """PSNR of the lower half of the face's crop and of the mouth: means over the frames, in dB."""
    lower, mouth = [], []
    nearness = lambda *both: min(picture.psnr(*both), measure.HIGHEST_PSNR)
    for a, b, points in zip(found, true, landmarks, strict=True):
        box = crop_box(points, (SIZE, SIZE), judges.rule)
        half = box._replace(y1=(box.y1 + box.y2) // 2)
        lips = picture.mouth_box(points, (SIZE, SIZE))
        lower.append(nearness(measure.cut(a, half), measure.cut(b, half)))
        mouth.append(nearness(measure.cut(a, lips), measure.cut(b, lips)))
    return float(np.mean(lower)), float(np.mean(mouth))


def energy(frames: list[Frame], boxes: list[Box]) -> float:
    """Mean square of the differences of neighbouring pixels in the boxes, in grey levels."""
    total = 0.0
    for frame, box in zip(frames, boxes, strict=True):
        grey = cv2.cvtColor(measure.cut(frame, box), cv2.COLOR_RGB2GRAY).astype(np.float64)
        total += sum(np.mean(np.diff(grey, axis=axis) ** 2) for axis in (0, 1))
    return total / len(frames)


def flicker(frames: list[Frame], landmarks: Landmarks) -> float:
    """`behaviour.flicker` of two patches of skin between the mouth and the jaw, where dubs are pasted.

    The head is held still first, by its drawn landmarks, so that its movements do not count.
    """
    first, rigid = landmarks[0], list(RIGID)
    still = []
    for frame, points in zip(frames, landmarks, strict=True):
        matrix = identity.similarity(points[rigid], first[rigid])
        still.append(cv2.warpAffine(frame, matrix, (SIZE, SIZE), flags=cv2.INTER_CUBIC))
    return float(np.mean([behaviour.flicker(still, box) for box in cheeks(first)]))


def cheeks(points: Float[np.ndarray, "68 2"]) -> list[Box]:
    """The patches of `flicker`: between the corners of the mouth and the jaw beside them."""
    right, left = (points[group].mean(axis=0) for group in identity.FIVE[68][:2])
    half = CHEEK * np.linalg.norm(left - right)
    middles = [(points[corner] + points[jaw]) / 2 for corner, jaw in ((48, 4), (54, 12))]
    corners = [np.concatenate([middle - half, middle + half]) for middle in middles]
    return [Box(*np.rint(box).astype(int).tolist()) for box in corners]


def heard(judges: Networks, found: Film, case: Case) -> Measures:
    """How much better sound and picture agree in step than at other shifts, as LSE-C."""
    expert = next((judges.experts[kind] for kind in EXPERTS if kind in judges.experts), None)
    if expert is None:
        return {}
    if not np.isfinite(found.mesh[0]).all():  # nothing to crop
        return {"confidence": float("nan")}
    landmarks = np.stack([ibug68(mesh) for mesh in found.mesh])
    crops = networks.face_crops(found.frames, landmarks, judges.rule)
    return {"confidence": sync.agreement(expert, crops, case.samples).confidence}


def embedding(judges: Networks, found: Film) -> Float[np.ndarray, " 512"]:
    """Who is in a video: the mean over some of its frames, of length 1."""
    seen = np.flatnonzero(np.isfinite(found.mesh).all(axis=(1, 2)))
    if not len(seen):
        return np.full(identity.WIDTH, np.nan, np.float32)
    chosen = seen[np.linspace(0, len(seen) - 1, FACES).round().astype(int)]
    faces = np.stack([identity.align(found.frames[i], found.mesh[i]) for i in chosen])
    mean = identity.embedded(judges.embed, faces).mean(axis=0)
    return mean / np.linalg.norm(mean)


def recognised(judges: Networks, found: Film, gallery: np.ndarray, number: int) -> Measures:
    """How like a face is to portraits of its own and of all others."""
    if judges.embed is None:
        return {}
    cosines = gallery @ embedding(judges, found)
    own, others = cosines[number], np.delete(cosines, number)
    others = float(others.max(initial=-1.0))
    return {"own": float(own), "others": others, "nearest": float(own > others)}


def measure_clip(
    mode: Mode, clip: Path, guides: Sequence[float], judges: Networks, gallery, number: int
) -> dict[str, Measures]:
    """The measures of the true frames, of the dubs and of the undubbed source."""
    case = case_of(clip)
    films = {TRUTH: case.true}
    films |= {dub_row(guide): watched(dubbed(mode, clip, guide)) for guide in guides}
    films |= {SOURCE: case.source}
    rows = {
        name: measured(found, case, judges) | recognised(judges, found, gallery, number)
        for name, found in films.items()
    }
    for name in (TRUTH, dub_row(SHIPPED), SOURCE):  # the expert takes longer than all else together
        rows[name] |= heard(judges, films[name], case)
    shipped, without = rows[dub_row(SHIPPED)], rows.get(dub_row(0.0), {})
    if "own" in shipped and without:
        shipped["gain"] = shipped["own"] - without["own"]
    back = frames_of(dubbed(mode, clip, SHIPPED, "source"))
    halves = likeness(back, case.source.frames, case.own, judges)
    shipped |= dict(zip(("self_lower", "self_mouth"), halves, strict=True))
    rows["chance"] = {"correlation": case.chance, "nearest": 1 / len(gallery)}
    return rows


def dub_row(guide: float) -> str:
    """What the dubs of one `guide_scale` are called in the tables."""
    return f"guide {guide:g}"


# ---- Tables ------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """A figure over some clips and what it should be.

    Attributes:
      name: for the reader.
      key: of the measure.
      over: how the clips' values become one figure.
      low: the least that is good.
      high: the most that is good.
    """

    name: str
    key: str
    over: Callable[[Sequence[float]], float] = np.mean
    low: float = -np.inf
    high: float = np.inf

    def met(self, value: float) -> bool:
        """Whether a figure is what it should be."""
        return bool(self.low <= value <= self.high)


def farthest(values: Sequence[float]) -> float:
    """The one that is farthest from zero."""
    return max(values, key=abs)


TARGETS = (
    Target("lip gap against the true opening: correlation", "correlation", low=0.92),
    Target("  worst clip", "correlation", np.min, low=0.8),
    Target("  with the gap between the drawn lips instead", "drawn"),
    Target("  lag, frames, worst clip", "lag", farthest, 0, 0),
    Target("amplitude / truth's, narrowest", "amplitude", np.min, low=0.7),
    Target("  widest", "amplitude", np.max, high=1.3),
    Target("correlation with the source's opening, above chance", "leak", high=0.1),
    Target("  worst clip", "leak", np.max, high=0.1),
    Target("gradient energy of the mouth / truth's", "energy", low=0.75),
    Target("  worst clip", "energy", np.min),
    Target("self-reconstruction, lower half, PSNR dB", "self_lower", low=30),
    Target("  mouth", "self_mouth", low=30),
    Target("against the true frames, lower half, PSNR dB", "lower"),
    Target("  mouth", "mouth"),
    Target("nearest to their own portraits, share", "nearest", low=0.95),
    Target("cosine with their own portraits", "own"),
    Target("  with the nearest of the others", "others"),
    Target("  gained by identity tokens", "gain", low=np.nextafter(0, 1)),
    Target("confidence of the pack's expert / truth's", "confidence", low=0.8),
    Target("lips apart in silence, share of frames above truth's", "rest", high=0.1),
    Target("flicker of the cheek / source's", "flicker", high=2),
    Target("  worst clip", "flicker", np.max, high=2),
)
# The astronaut is one clip.
HERS = tuple(
    target._replace(low=0.85 if target.key == "correlation" else target.low)
    for target in TARGETS
    if target.name.strip() != "worst clip"
)
COLUMNS = {
    "correlation": "corr", "lag": "lag", "amplitude": "amp", "leak": "leak", "energy": "grad",
    "self_lower": "self low", "self_mouth": "self mth", "lower": "low", "mouth": "mouth",
    "own": "own", "others": "others", "confidence": "conf", "rest": "rest", "flicker": "flick",
}  # fmt: skip


DIGITS = dict.fromkeys(("self_lower", "self_mouth", "lower", "mouth"), 1)
DIGITS |= dict.fromkeys(("amplitude", "leak", "energy", "confidence", "rest", "flicker"), 2)


def summary(title: str, clips: list[dict[str, Measures]], targets: Sequence[Target]) -> Table:
    """A row for each figure: its target, whether what ships meets it, and the figure of every way."""
    shipped = dub_row(SHIPPED)
    others = [name for name in clips[0] if name not in (shipped, TRUTH)]
    columns = [TRUTH, shipped, *others]
    table = Table(title=title)
    for head in ("", "target", "met", *columns):
        table.add_column(head, justify="right" if head else "left")
    for target in targets:
        values = {name: figure(target, [clip[name] for clip in clips]) for name in columns}
        bounds = [f"{sign} {bound:.3g}" for sign, bound in (("≥", target.low), ("≤", target.high))
                  if np.isfinite(bound)]  # fmt: skip
        if target.low == target.high:
            bounds = [f"{target.low:g}"]
        elif 0 < target.low < 1e-9:
            bounds = ["> 0"]
        known = values[shipped] is not None
        met = ("yes" if target.met(values[shipped]) else "NO") if known and bounds else ""
        shown = [shown_as(target.key, values[name]) for name in columns]
        table.add_row(target.name, ", ".join(bounds), met, *shown)
    return table


def figure(target: Target, rows: Sequence[Measures]) -> float | None:
    """The figure of one way over the clips; None where it has no such measure."""
    values = [row[target.key] for row in rows if target.key in row]
    return float(target.over(values)) if values else None


def shown_as(key: str, value: float | None) -> str:
    """A value in digits that mean something."""
    if value is None:
        return ""
    return f"{value:+.0f}" if key == "lag" else f"{value:.{DIGITS.get(key, 3)}f}"


def each(clips: Mapping[str, dict[str, Measures]]) -> Table:
    """A row for each clip as it ships; what breaks a rule for every clip has a star."""
    table = Table(title=f"each clip, {dub_row(SHIPPED)}; * beyond what every clip should reach")
    for head in ("", "ceiling", *COLUMNS.values()):
        table.add_column(head, justify="right" if head else "left")
    rules = {}
    for target in TARGETS:
        if target.over is not np.mean:
            rules.setdefault(target.key, []).append(target)
    for name, rows in clips.items():
        row, cells = rows[dub_row(SHIPPED)], []
        for key in COLUMNS:
            value = row.get(key)
            broken = value is not None and not all(t.met(value) for t in rules.get(key, ()))
            cells.append(shown_as(key, value) + "*" * broken)
        table.add_row(name, f"{rows[TRUTH]['correlation']:.3f}", *cells)
    return table


def shares(clips: list[dict[str, Measures]]) -> None:
    """Makes confidences shares of the true frames' mean over the clips, whose own may be near zero."""
    clips = [rows for rows in clips if "confidence" in rows[TRUTH]]
    mean = np.mean([rows[TRUTH]["confidence"] for rows in clips]) if clips else 1.0
    for rows in clips:
        for row in rows.values():
            if "confidence" in row:
                row["confidence"] /= mean


# ---- Contact sheets ----------------------------------------------------------------------------------


def sheet(clips: Mapping[str, tuple[Path, Path]], rule) -> UInt8[np.ndarray, "h w 3"]:
    """Clips beside each other: source, truth and dub in columns, six moments in rows, crops in full size.

    Args:
      clips: what to write above each -> its folder and its dub.
      rule: of the crops.
    """
    parts = []
    for label, (clip, path) in clips.items():
        found, own = truth(clip, "true"), truth(clip, "source")
        films = [frames_of(clip / "source.mp4"), frames_of(clip / "true.mp4"), frames_of(path)]
        rows = [banner(f"{label}: source, truth, dub", len(films) * measure.SIDE)]
        for moment, i in moments(found["mouth"], own["mouth"]).items():
            box = crop_box(found["landmarks"][i], (SIZE, SIZE), rule)
            shown = [crop(frames[i], box, measure.SIDE) for frames in films]
            rows += [banner(f"{moment}, frame {i}", len(films) * measure.SIDE), np.hstack(shown)]
        parts += [np.vstack(rows), np.full((sum(map(len, rows)), 16, 3), 255, np.uint8)]
    return np.hstack(parts[:-1])


def moments(mouth: Float[np.ndarray, "F 5"], own: Float[np.ndarray, "F 5"]) -> dict[str, int]:
    """Frames to look at: of the true mouth, and one in which the source's differs most from it."""
    opening, wide, round_, press, tuck = mouth.T
    curves = {"widest open": opening, "p b m": press, "f v": tuck, "oo": round_, "ee": wide}
    curves["shut, and the source is open"] = own[:, 0] - opening
    return {name: int(np.argmax(curve)) for name, curve in curves.items()}


def banner(text: str, width: int) -> UInt8[np.ndarray, "24 w 3"]:
    """A line of text."""
    image = np.full((24, width, 3), 255, np.uint8)
    cv2.putText(image, text, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return image


def write_sheets(path: Path, mode: Mode, clips: Mapping[str, Path], results, rule) -> list[Path]:
    """The worst three heads by correlation and by gradient energy, and the astronaut."""
    shipped = {name: rows[dub_row(SHIPPED)] for name, rows in results.items()}
    heads = [name for name in shipped if name != synth.ASTRONAUT]
    worst = lambda key: sorted(heads, key=lambda name: shipped[name][key])[:3]
    chosen = {"correlation": worst("correlation"), "energy": worst("energy")}
    written = []
    for what, names in (chosen | {synth.ASTRONAUT: [synth.ASTRONAUT]}).items():
        key = what if what in chosen else "correlation"
        shown = {
            f"{name} ({COLUMNS[key]} {shipped[name][key]:.3f})": (
                clips[name],
                dubbed(mode, clips[name], SHIPPED),
            )
            for name in names
        }
        written.append(path.with_stem(f"{path.stem}_{what}"))
        with assets.replacement(written[-1]) as partial:
            cv2.imwrite(str(partial), sheet(shown, rule)[..., ::-1])
    return written


def main(options: Options) -> None:
    """Makes what is missing, and prints the tables."""
    if options.sheet and options.sheet.suffix.lower() != ".png":
        raise InputError(f"{options.sheet} does not end in .png; contact sheets are PNG files")
    console = Console(width=140)
    folders = {clip.name: clip for clip in clips(options.folder / "clips", options.identities)}
    made, settings = generator.load(options.pack), Settings(pack=options.pack)
    reference = options.reference or Task.model_fields["reference"].default
    digest = assets.digest(options.pack / "pack.yaml")[:12]
    mode = Mode(made, settings, reference, options.folder / "dubbed" / f"{digest}-{reference}")
    judges = networks.load(EvaluateSettings(pack=options.pack))
    guides = sorted({*GUIDES, SHIPPED}) if made.perceiver is not None else [SHIPPED]
    gallery = np.zeros((len(folders), identity.WIDTH))
    if judges.embed is not None:
        films = (watched(clip / "portraits.mp4") for clip in folders.values())
        gallery = np.stack([embedding(judges, found) for found in films])
    results = {}
    for number, (name, clip) in enumerate(track(folders.items(), "clips", len(folders))):
        results[name] = measure_clip(mode, clip, guides, judges, gallery, number)
    heads = [rows for name, rows in results.items() if name != synth.ASTRONAUT]
    hers = [results[synth.ASTRONAUT]]
    shares(heads)
    shares(hers)
    how = f"reference {reference!r}; {dub_row(SHIPPED)} ships"
    console.print(summary(f"{len(heads)} heads, {how}", heads, TARGETS))
    console.print(summary(f"the astronaut, {how}", hers, HERS))
    console.print(each(results))
    pace = speed(mode, next(iter(folders.values())))
    console.print(f"{pace:.1f} frames/s from files to file, {SIZE} pixels, without compilation")
    if options.sheet:
        written = write_sheets(options.sheet, mode, folders, results, judges.rule)
        console.print(f"wrote {', '.join(map(str, written))}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
