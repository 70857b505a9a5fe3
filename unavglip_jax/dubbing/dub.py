"""From files to file: analyse the faces, then stream the frames through the generator into a video.

Only boxes, landmarks and spectrograms are held for the whole clip; the video is decoded twice.
"""

import json
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from unavglip_jax import __version__, assets, params
from unavglip_jax.config import InputError
from unavglip_jax.dubbing import generator as generators
from unavglip_jax.dubbing import hearing
from unavglip_jax.dubbing.generator import Frame, Generator, generate
from unavglip_jax.dubbing.stream import Clock, background
from unavglip_jax.dubbing.tasks import Settings, Task, output_of
from unavglip_jax.faces import blending, identity
from unavglip_jax.faces.crop import RULES, Box, clip_boxes, crop, held_frames, shift_report
from unavglip_jax.faces.mesh import ibug68
from unavglip_jax.faces.reference import reference_frames
from unavglip_jax.faces.tracking import Tracker
from unavglip_jax.media import audio, video

AHEAD = 16  # decoded frames that wait for the device, and dubbed ones for the encoder
CACHED_REFERENCES = 64  # crops
# Of the mesh's 468 points those that are looked at again; all of them are much for a long video.
KEPT = np.unique([*blending.OUTLINES, *(i for group in identity.FIVE[468] for i in group)])
SHEET = (3, 4)  # rows and columns of a contact sheet


class Faces(NamedTuple):
    """What was found in every frame of the source; a row each.

    Attributes:
      points: x and y of the mesh's points `KEPT` in pixels, NaN where there is no face (see `mesh_of`).
      landmarks: iBUG's 68 points, likewise.
      boxes: the crop boxes, None where the frame passes through.
      sources: the frame whose box and points each frame takes; itself, or one before a short gap.
      references: the frame that shows the generator the person, -1 where there is no face.
      looks: how each face is seen (`identity.Look`), NaN where there is none.
      several: frames in which more than one face was counted.
    """

    points: Float[np.ndarray, "F K 2"]
    landmarks: Float[np.ndarray, "F 68 2"]
    boxes: list[Box | None]
    sources: Int[np.ndarray, " F"]
    references: Int[np.ndarray, " F"]
    looks: Float[np.ndarray, "F 7"]
    several: int


class Shot(NamedTuple):
    """One frame on its way: its picture and how to put the generated face into it."""

    frame: UInt8[np.ndarray, "H W 3"]
    box: Box | None
    mask: UInt8[np.ndarray, "h w"] | None


def dub(task: Task, settings: Settings, generator: Generator, quiet: bool = False) -> dict:
    """Makes one dubbed video and returns what was done, which is also written beside it as JSON.

    Args:
      task: what to dub.
      settings: how.
      generator: what `generator.load` made of the pack.
      quiet: no progress bar.

    Raises:
      InputError: a source cannot be read, no frame has a face, or the output cannot be written. Nothing
        is left behind.
    """
    clock, output = Clock(), output_of(task, settings)
    make_folder(output.parent)
    source = task.crop_path or task.video_path
    picture = video.describe(source, Fraction(settings.fps) if is_images(source) else None)
    samples = clock.call("read sound", video.read_audio, task.audio_path)
    options = {"overlap": settings.overlap, "rest": settings.silence_gate}
    blocks, steps = clock.call(
        "encode sound", hearing.listen, generator.hearing, samples, **options
    )
    rows = hearing.look_up(clock.each("encode sound", blocks), steps)

    count = math.ceil(Fraction(len(samples), audio.SAMPLE_RATE) * picture.fps)
    count = min(count, picture.frames) if task.when_longer == "trim" else count
    windows = audio.window_indices(count, picture.fps, steps, generator.pack.audio_front_end)
    used = min(count, picture.frames)
    del samples  # long ones are large

    with progress_bar(quiet) as progress:
        if task.crop_path:
            search = generator.perceiver is not None and not task.face_embs_path
            faces = ready_crops(picture, used, generator.pack.image_size, search)
        else:
            faces = analyse(task, settings, generator, picture, used, clock, progress)
        personal, conditioning = know_person(task, settings, generator, picture, faces, clock)

        step = generators.make_step(personal, jax.devices())
        batch_size = math.ceil(settings.batch_size / jax.device_count()) * jax.device_count()
        frames = clock.each("decode", ordered_frames(picture, used, count, task.when_longer))
        numbered = zip(source_order(used, count, task.when_longer), frames, strict=True)
        inputs = prepare(numbered, faces, windows, picture, settings, generator.pack, clock)
        inputs = clock.each("wait for frames", background(inputs, AHEAD))
        generated = generate(step, inputs, batch_size, rows, task.guide_scale)
        generated = clock.each("generate", generated)
        pairs = finish(generated, settings, generator.pack, bool(task.crop_path), clock)
        bar = progress.add_task("dubbing", total=count)
        with closing(background(pairs, AHEAD)) as pairs:
            write(pairs, output, picture, task, settings, count, clock, progress, bar)
        # What happened inside "generate" but is not its own work.
        clock.add("generate", -clock.seconds["wait for frames"] - clock.seconds["encode sound"])

    report = report_of(task, settings, generator, picture, faces, count, conditioning, clock)
    with assets.replacement(output.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(report, indent=1, default=str))
    return report


def make_folder(folder: Path) -> None:
    """Makes the folder of an output."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made ({error.strerror}); choose another output"
        ) from error


def is_images(path: Path) -> bool:
    """Whether a source has no frame rate of its own."""
    return path.is_dir() or path.suffix.lower() in video.IMAGE_SUFFIXES


# ---- faces ------------------------------------------------------------------------------------------


def analyse(task, settings, generator, picture, used, clock, progress) -> Faces:
    """Finds the face in every frame that is used, and from that boxes and references."""
    bar = progress.add_task("faces", total=used)
    choice, options = task.face, {}
    if task.face_like:
        embed, reference = embedder(settings, generator), video.read_image(task.face_like)
        choice = identity.Likeness(embed, embedding_of(reference, embed, task.face_like))
        options["least_similarity"] = 0.2  # strangers are near 0
    tracker = Tracker(*face_networks(), choice, **options)
    points = np.full((used, len(KEPT), 2), np.nan, np.float32)
    landmarks = np.full((used, 68, 2), np.nan, np.float32)
    looks = np.full((used, len(identity.Look._fields)), np.nan)
    cuts, jumps = [], []  # jumps: the face was found anew, elsewhere perhaps
    last, several = None, 0
    frames = video.read_frames(picture, 0, used)
    with closing(background(clock.each("decode", frames), AHEAD)) as frames:
        for i, frame in enumerate(frames):
            found = clock.call("find faces", tracker, frame)
            if last is not None and found.shot != last.shot:
                cuts.append(i)
            elif last is not None and found.track != last.track:
                jumps.append(i)
            last = found
            several += (found.faces or 0) > 1
            if found.mesh is not None:
                mesh = found.mesh.points[:, :2]
                points[i], landmarks[i] = mesh[KEPT], ibug68(mesh)
                looks[i] = identity.look(frame, mesh)
            progress.advance(bar)
    seen = np.isfinite(points[:, 0, 0])
    if not seen.any():
        raise InputError(
            f"{picture.path} shows no face in any of its {used} frames; use a video whose face is "
            "upright and at least 20 pixels wide"
        )
    size, rule = (picture.height, picture.width), RULES[generator.pack.crop]
    boxes = clip_boxes(
        landmarks, size, rule, picture.fps,
        bbox_shift=task.bbox_shift, smoothing=settings.smoothing, cuts=[*cuts, *jumps],
    )  # fmt: skip
    sources = held_frames(seen, round(settings.hold * picture.fps), cuts)
    boxes = [boxes[i] if i >= 0 else None for i in sources]  # a gap of `hold` takes the last box
    mode = "same" if task.reference == "same" else "other"
    per = "shot" if task.reference == "shot" else "frame"
    references = reference_frames(landmarks, mode, per, cuts)
    return Faces(points, landmarks, boxes, sources, references, looks, several)


def mesh_of(kept: Float[np.ndarray, "K 2"]) -> Float[np.ndarray, "468 2"]:
    """The mesh with the points that were kept; the others are zero."""
    mesh = np.zeros((468, 2), np.float32)
    mesh[KEPT] = kept
    return mesh


def face_networks() -> tuple[Path, Path]:
    """The files of the face detector and the face mesh."""
    return assets.fetch("face_detection_short_range.tflite"), assets.fetch("face_landmark.tflite")


def ready_crops(picture: video.Picture, used: int, size: int, search: bool) -> Faces:
    """A folder of crops: every frame is its own box. Faces are only looked for if `search`."""
    if (picture.width, picture.height) != (size, size):
        raise InputError(
            f"{picture.path} holds images of {picture.width}x{picture.height}; crops for this pack are "
            f"{size}x{size}"
        )
    points = np.full((used, len(KEPT), 2), np.nan, np.float32)
    looks = np.full((used, len(identity.Look._fields)), np.nan)
    if search:
        tracker, border = Tracker(*face_networks()), size // 2
        for i, frame in enumerate(video.read_frames(picture, 0, used)):
            # The detector expects something around a face.
            wide = cv2.copyMakeBorder(frame, *[border] * 4, cv2.BORDER_REPLICATE)
            if (mesh := tracker(wide).mesh) is not None:
                mesh = mesh.points[:, :2] - border
                points[i], looks[i] = mesh[KEPT], identity.look(frame, mesh)
        if not np.isfinite(looks).any():
            raise InputError(
                f"no face was found in the crops of {picture.path}; give the person's embeddings as "
                "face_embs_path"
            )
    boxes, own = [Box(0, 0, size, size)] * used, np.arange(used)
    return Faces(points, np.full((used, 68, 2), np.nan), boxes, own, own, looks, 0)


def embedder(settings: Settings, generator: Generator) -> identity.Embedder:
    """The face embedder that the pack was trained with."""
    wanted = generator.pack.identity.embedder if generator.pack.identity else None
    if wanted == "identity":
        network = assets.load_network(settings.pack, "identity")
        return lambda faces: np.asarray(network(jnp.asarray(faces)))
    if settings.insightface is None:
        raise InputError(
            f"this needs face embeddings by insightface's {wanted or 'buffalo_l'}; give its folder as "
            "`insightface`, or ready embeddings as face_embs_path"
        )
    return identity.InsightFace(settings.insightface.expanduser())


def embedding_of(image, embed, path) -> Float[np.ndarray, "1 512"]:
    """The embedding of the largest face of a photograph."""
    found = Tracker(*face_networks())(image).mesh
    if found is None:
        raise InputError(f"{path} shows no face; give a photograph of the person to dub")
    return identity.embedded(embed, identity.align(image, found.points)[None])


def know_person(
    task, settings, generator, picture, faces, clock
) -> tuple[Generator, list[int] | str]:
    """The generator with the person's identity in it, and where that came from."""
    if generator.perceiver is None:
        return generator, []
    if task.face_embs_path:
        embeddings = read_embeddings(task.face_embs_path)[: task.n_cond]
        return generators.with_identity(generator, embeddings), str(task.face_embs_path)
    unit = generator.pack.identity is None or generator.pack.identity.normalisation == "unit"
    chosen = identity.conditioning_frames(faces.looks, task.n_cond, settings.seed)
    embed, aligned = embedder(settings, generator), {}
    for i in sorted(set(chosen.tolist())):
        frame = next(video.read_frames(picture, i, i + 1))
        aligned[i] = identity.align(frame, mesh_of(faces.points[i]))
    pictures = np.stack([aligned[i] for i in chosen])
    embeddings = clock.call("embed identity", identity.embedded, embed, pictures, unit)
    return generators.with_identity(generator, embeddings), chosen.tolist()


def read_embeddings(path: Path) -> Float[np.ndarray, "n 512"]:
    """Face embeddings in numpy's or (UnAvgLip's) PyTorch's format; no code in the file is run."""
    if path.suffix not in (".pt", ".pth"):
        return identity.read_embeddings(path)
    from unavglip_jax.convert.state_dict import array, load_torch

    if not path.is_file():
        raise InputError(
            f"{path}: no such file; give face embeddings or leave face_embs_path empty"
        )
    found = load_torch(path)
    if not hasattr(found, "shape"):
        raise InputError(f"{path} holds a {type(found).__name__}, not a tensor of face embeddings")
    return identity.as_embeddings(array(found), str(path))


# ---- the stream -------------------------------------------------------------------------------------


def source_order(used: int, count: int, when_longer: str) -> Iterator[int]:
    """The source frame of each output frame. Ping-pong shows the first and last twice, as published."""
    for i in range(count):
        turn, at = divmod(i, used)
        if when_longer == "hold":
            yield min(i, used - 1)
        else:
            yield used - 1 - at if when_longer == "ping-pong" and turn % 2 else at


def ordered_frames(picture: video.Picture, used: int, count: int, when_longer: str) -> Iterator:
    """The source frames in that order, read as a stream."""
    given, turn, last = 0, 0, None
    while given < count:
        if last is not None and (used == 1 or when_longer == "hold"):
            yield last.copy()
            given += 1
            continue
        back = when_longer == "ping-pong" and turn % 2
        frames = video.read_backwards(picture) if back else video.read_frames(picture, 0, used)
        with closing(frames):
            for frame in frames:
                yield frame
                given, last = given + 1, frame
                if given == count:
                    return
        turn += 1


def prepare(numbered, faces, windows, picture, settings, pack, clock) -> Iterator[Frame]:
    """The inputs of the generator for each frame."""
    size = pack.image_size
    lower, cache = generators.lower_half(size), OrderedDict()

    def reference(number: int, own: int, own_crop):
        if number in (own, -1):
            return own_crop
        if number not in cache:
            frame = next(video.read_frames(picture, number, number + 1))
            cache[number] = crop(frame, faces.boxes[number], size)
            if len(cache) > CACHED_REFERENCES:
                cache.popitem(last=False)
        cache.move_to_end(number)
        return cache[number]

    def inputs(i: int, number: int, frame) -> Frame:
        box, source = faces.boxes[number], int(faces.sources[number])
        if box is None:
            return Frame(None, Shot(frame, None, None))
        own = crop(frame, box, size)
        shown = reference(int(faces.references[source]), source, own)
        points, mask, hidden = mesh_of(faces.points[source]), None, lower
        wanted = settings.blend == "mesh" or pack.mask == "mouth_and_jaw"
        if wanted and np.isfinite(points).all():
            mask = blending.mesh_mask(points, box, frame.shape[:2], pack.mask)
            if pack.mask == "mouth_and_jaw":
                hidden = cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA) > 0
        if settings.blend == "half":
            mask = blending.half_mask(box, frame.shape[:2])
        return Frame((own, shown, hidden, windows[i]), Shot(frame, box, mask))

    for i, (number, frame) in enumerate(numbered):
        yield clock.call("crop", inputs, i, number, frame)


def finish(generated, settings, pack, crops: bool, clock) -> Iterator[tuple]:
    """Each source frame with its finished one."""
    parse = None if crops or settings.blend in ("mesh", "half") else parser(settings, pack)
    # No published program blends by the mesh, so there is no blur to agree with.
    kernel = cv2.INTER_LANCZOS4 if settings.blend == "mesh" else cv2.INTER_LINEAR

    def paste(face, shot: Shot):
        if face is None:
            return shot.frame
        if crops:
            return blending.half_paste(face, shot.frame)
        mask = parse(shot.frame, shot.box) if parse else shot.mask
        return blending.paste(shot.frame, face, shot.box, mask, kernel)

    for face, shot in generated:
        yield shot.frame, clock.call("paste", paste, face, shot)


def parser(settings: Settings, pack: assets.Pack) -> Callable:
    """Opacity by face parsing, with the published blend of the pack's crop rule."""
    _, graphdef, weights = assets.load_network(settings.pack, "face_parsing")
    blend = blending.BLENDS["unavglip" if pack.system == "unavglip" else pack.crop]
    blend = blend.replace(region=settings.blend)

    def mask(frame, box):
        found = np.asarray(
            face_classes(graphdef, weights, blending.parsing_input(frame, box, blend))
        )
        return blending.parsing_mask(found, box, blend)

    return mask


@partial(jax.jit, static_argnums=0)
def face_classes(graphdef, weights, image):
    """BiSeNet's class of every pixel."""
    return params.bind(graphdef, weights).full_size(image[None])[0].argmax(axis=-1)


def write(pairs, output, picture, task, settings, count, clock, progress, bar) -> None:
    """Encodes the frames, and whatever else was asked for, as they come."""
    width, height = picture.width, picture.height
    sheet_at = np.unique(np.linspace(0, count - 1, math.prod(SHEET)).round().astype(int))
    moments = []
    with ExitStack() as stack:
        sound, options = task.audio_path, (settings.encoding, picture.pixel_aspect)
        open_video = lambda path, width: stack.enter_context(
            video.write_video(path, width, height, picture.fps, sound, *options)
        )
        put, put_both = open_video(output, width), None
        if settings.side_by_side:
            put_both = open_video(output.with_stem(f"{output.stem}_side_by_side"), 2 * width)
        for i, (before, after) in enumerate(pairs):
            clock.call("encode", put, after)
            if put_both:
                clock.call("encode", put_both, np.concatenate([before, after], axis=1))
            if settings.contact_sheet and i in sheet_at:
                moments.append(after)
            progress.advance(bar)
    if settings.contact_sheet:
        with assets.replacement(output.with_suffix(".png")) as partial:
            cv2.imwrite(str(partial), contact_sheet(moments)[..., ::-1])


def contact_sheet(moments: list[UInt8[np.ndarray, "H W 3"]]) -> UInt8[np.ndarray, "h w 3"]:
    """A few frames in a grid, each 320 pixels wide."""
    height = round(320 * moments[0].shape[0] / moments[0].shape[1])
    small = [cv2.resize(m, (320, height), interpolation=cv2.INTER_AREA) for m in moments]
    rows, columns = SHEET
    small += [np.zeros_like(small[0])] * (rows * columns - len(small))
    return np.concatenate(
        [np.concatenate(small[r * columns : (r + 1) * columns], axis=1) for r in range(rows)]
    )


def report_of(task, settings, generator, picture, faces, count, conditioning, clock) -> dict:
    """What was done, in plain data."""
    passed = [i for i, box in enumerate(faces.boxes) if box is None]
    own = np.arange(len(faces.boxes))
    described = np.isfinite(faces.landmarks).any()
    return {
        "version": __version__,
        "task": task.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "pack": generator.pack.model_dump(mode="json"),
        "fps": str(picture.fps),
        "frames": count,
        "source_frames": len(faces.boxes),
        "frames_with_a_face": int((faces.sources == own).sum()),
        "frames_held": int(((faces.sources >= 0) & (faces.sources != own)).sum()),
        "frames_passed_through": passed,
        "searches_that_found_several_faces": faces.several,
        "bbox_shift": shift_report(faces.landmarks, task.bbox_shift) if described else "",
        "identity_from": conditioning,
        "boxes": faces.boxes,
        "seconds": {stage: round(seconds, 3) for stage, seconds in clock.seconds.items()},
    }


class Rate(ProgressColumn):
    """Frames per second of a progress bar."""

    def render(self, task) -> Text:
        """The column's text."""
        return Text(f"{task.finished_speed or task.speed or 0:.1f} fps")


def progress_bar(quiet: bool) -> Progress:
    """A bar with frames, frames per second and the time left."""
    description = TextColumn("{task.description}")
    columns = description, BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn()
    return Progress(*columns, disable=quiet)


def shard(tasks: dict[str, Task]) -> dict[str, Task]:
    """The tasks of this process: number UNAVGLIP_PROCESS_ID of UNAVGLIP_NUM_PROCESSES that share the list."""
    count = int(os.environ.get("UNAVGLIP_NUM_PROCESSES", "1"))
    index = int(os.environ.get("UNAVGLIP_PROCESS_ID", "0"))
    if not 0 <= index < count:
        raise InputError(f"UNAVGLIP_PROCESS_ID is {index}; it must be between 0 and {count - 1}")
    return dict(list(tasks.items())[index::count])
