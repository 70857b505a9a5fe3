"""Pictures and sound in and out of files: frames stream through, and time is rational.

A picture source is a video, one image or a folder of numbered images. Frames are uint8 RGB arrays
(height, width, 3), upright. Time zero is the first picture of a file: its sound is cut or led in by
silence so that sample 0 belongs to frame 0. Sound files without a picture begin with their first sample.
"""

import contextlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
import pydantic
import soxr
from av.container import InputContainer, OutputContainer
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Float, UInt8

from unavglip_jax.config import Config, InputError
from unavglip_jax.media.audio import SAMPLE_RATE

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
IMAGE_RATE = Fraction(25)  # frames a second of images, unless another is asked for

# Without these swscale takes a short cut from 4:2:0: chroma is not interpolated, and every conversion
# darkens by 1/255. Where chroma lies is then taken from the stream, by the codec's rule if untagged.
ACCURATE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# H.264 means chroma on the left column when it does not say; swscale's own default is the centre.
TO_BT709 = (
    "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp:"
    "out_color_matrix=bt709:out_range=tv:out_chroma_loc=left"
)
BT709, LIMITED_RANGE = 1, 1  # of AVCOL_SPC, AVCOL_PRI and AVCOL_TRC, and of AVCOL_RANGE

BACKWARD_BYTES = 64 << 20  # of frames held at once when reading backwards

AAC_FRAME = 1024  # samples
BIT_RATE_A_CHANNEL = 96_000  # of AAC
# Layouts that FFmpeg's AAC encoder keeps. The others get one with as many channels, or are mixed to mono.
AAC_LAYOUTS = frozenset({"mono", "stereo", "2.1", "3.0", "4.0", "quad", "5.0", "5.1", "6.1", "7.1"})
AAC_LAYOUT_OF_COUNT = dict(
    enumerate(["mono", "stereo", "3.0", "4.0", "5.0", "5.1", "6.1", "7.1"], start=1)
)

# A gap in the timestamps of sound longer than this is a gap in the sound. Milliseconds of containers
# and the frames of codecs make smaller ones that mean nothing.
SOUND_GAP = Fraction(1, 20)

SoundInput = str | Path | tuple[np.ndarray, int]
Recording = tuple[int, str, Iterator[np.ndarray]]  # rate, layout, blocks of (channels, samples)


@dataclass(frozen=True)
class Picture:
    """What there is to know of a picture source before reading it.

    Attributes:
      path: the video, the image or the folder.
      kind: which of the three.
      width: of the upright picture, in pixels.
      height: of the upright picture, in pixels.
      fps: frames a second of what `read_frames` gives, exactly.
      frames: how many it gives.
      stored: how many pictures the source has; at a variable rate, or another than its own, not `frames`.
      pixel_format: FFmpeg's name of what is stored, as yuv420p10le.
      pixel_aspect: width of a pixel over its height, upright.
      has_sound: there is a sound track.
      start: time of the first picture by the container's clock, in seconds.
      matrix: rotation and mirroring (see `display_matrix`).
      images: the files in order; empty for a video.
    """

    path: Path
    kind: Literal["video", "image", "folder"]
    width: int
    height: int
    fps: Fraction
    frames: int
    stored: int
    pixel_format: str = "rgb24"
    pixel_aspect: Fraction = Fraction(1)
    has_sound: bool = False
    start: Fraction = Fraction(0)
    matrix: tuple[int, int, int, int] = (1, 0, 0, 1)
    images: tuple[Path, ...] = ()

    @property
    def duration(self) -> Fraction:
        """Seconds."""
        return self.frames / self.fps


@dataclass(frozen=True)
class Sound:
    """What there is to know of a sound track before reading it.

    Attributes:
      path: the sound file, or the video that it belongs to.
      rate: samples a second of each channel.
      channels: how many.
      layout: FFmpeg's name of what they are, as "stereo" and "5.1".
    """

    path: Path
    rate: int
    channels: int
    layout: str


class Encoding(Config):
    """How a video is written.

    Attributes:
      codec: libx264 runs everywhere; h264_nvenc needs an NVIDIA GPU that has an encoder.
      crf: constant quality, 0 best to 51 worst; NVENC's `cq`.
      preset: speed against size, by the codec's names; both codecs have slow, medium and fast. By default
        x264's veryfast and NVENC's fast: at 16 veryfast is as near to the picture as fast is at 18, and
        takes less than half of its time and up to a half more bytes.
      audio_bit_rate: of the AAC track, bits a second; by default 96 000 for each channel.
    """

    codec: Literal["libx264", "h264_nvenc"] = "libx264"
    crf: int = pydantic.Field(16, ge=0, le=51)
    preset: str | None = None
    audio_bit_rate: int | None = pydantic.Field(None, ge=8000)


# ---- Pictures in -----------------------------------------------------------------------------------


def describe(path: str | Path, fps: Fraction | None = None) -> Picture:
    """Looks at a picture source. A video is read through once, without decoding, so it is known whole.

    Args:
      path: a video of any format that FFmpeg reads, an image, or a folder of images whose names end in a
        number (1.png, 2.png, ..., 10.png), which gives their order.
      fps: frames a second to read at. By default images have 25 and a video has its own: its nominal rate
        as FFmpeg guesses it from the header and timestamps (23.976 is 24000/1001), or, where the
        timestamps vary so much that this is more than twice the average, the average.

    Raises:
      InputError: it is missing, empty, damaged or cut off, holds no picture, or the folder's names
        give no order. Cut off is a video without its index, with fewer packets than the index names, or
        that ends more than a second (and 2 %) before the length in its header. Where the header states
        none, as in MPEG-TS, what is there is the video.
    """
    path = Path(path)
    if fps is not None and (not isinstance(fps, Fraction | int) or fps <= 0):
        raise InputError(
            f"{path}: the frame rate is {fps!r}; it must be a positive fraction, as 24000/1001"
        )
    if os.path.isdir(path):  # Path.is_dir raises where a folder above is not to be entered
        return describe_images(path, "folder", numbered_images(path), fps)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return describe_images(path, "image", (path,), fps)
    return describe_video(path, fps)


def read_frames(
    picture: Picture, start: int = 0, stop: int | None = None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames of a source one by one; every call reads it anew.

    A video is resampled to `picture.fps` by presentation time, as FFmpeg does it: each picture goes to
    the frame nearest to its time, stays until the next picture, and the later one wins where two meet. A
    constant rate comes out as it is. Colours follow the matrix and range that the stream states, and
    BT.601 limited where it states none; the rotation and mirroring of its metadata are applied. Alpha is
    dropped, as ffmpeg does; deeper samples are rounded to 8 bits; HDR is not tone-mapped. One decoded frame
    is held, besides the few inside the decoder.

    Args:
      picture: the source.
      start: the first frame to give. A video is entered at the key frame before it.
      stop: the frame to end before; by default all are given.

    Returns:
      `picture.frames` arrays (less where start and stop say so) that are the caller's own.

    Raises:
      InputError: the source cannot be decoded, or changes its size.
    """
    stop = picture.frames if stop is None else min(stop, picture.frames)
    if picture.kind != "video":
        for path in picture.images[start:stop]:
            yield of_size(picture, read_image(path))
        return
    if start >= stop:
        return
    with opened(picture.path) as container:
        stream = picture_stream(container, picture.path)
        stream.thread_type = "AUTO"
        pictures = timed(stream, picture, start)
        to_rgb = VideoReformatter()
        given, waiting = start, None  # how long a picture stays is known when the next one comes
        for frame, slot in pictures:
            rgb = None
            while waiting is not None and given < min(slot, stop):
                rgb = upright(to_rgb, waiting, picture.matrix) if rgb is None else rgb.copy()
                yield of_size(picture, rgb)
                given += 1
            if given >= stop:
                return
            waiting = frame


def read_backwards(picture: Picture) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames of a source from the last to the first.

    They are read forwards in pieces of 64 MB, each from the key frame before it, which takes several times
    as long as reading forwards: the memory stays the same however long the video.
    """
    piece = max(8, BACKWARD_BYTES // (3 * picture.width * picture.height))
    for stop in range(picture.frames, 0, -piece):
        frames = list(read_frames(picture, max(0, stop - piece), stop))
        while frames:
            yield frames.pop()


def describe_images(
    path: Path, kind: Literal["image", "folder"], images: tuple[Path, ...], fps: Fraction | None
) -> Picture:
    """The `Picture` of images, after looking at the first."""
    height, width, _ = read_image(images[0]).shape
    fps = Fraction(fps or IMAGE_RATE)
    return Picture(path, kind, width, height, fps, len(images), len(images), images=images)


def numbered_images(folder: Path) -> tuple[Path, ...]:
    """The images of a folder by the number at the end of their names: 2.png before 10.png."""
    numbers = {}
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error
    for path in paths:
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        found = re.search(r"\d+$", path.stem)
        if not found:
            raise InputError(
                f"{path} has no number; name the images of a folder 1.png, 2.png and so on"
            )
        other = numbers.setdefault(int(found[0]), path)
        if other != path:
            raise InputError(f"{other} and {path} have the same number; remove one of them")
    if not numbers:
        raise InputError(
            f"{folder} holds no images; put them there as 1.png, 2.png and so on, or give a video"
        )
    return tuple(numbers[number] for number in sorted(numbers))


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """An image as RGB, turned upright by its EXIF data; alpha is dropped.

    Raises:
      InputError: it is missing, or no image.
    """
    check_file(path)
    try:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB)
    except OSError as error:
        raise unreadable(path, error) from error
    except cv2.error:
        image = None
    if image is None:
        raise InputError(
            f"{path} is not an image that can be decoded; save it again as PNG or JPEG"
        )
    return image


def describe_video(path: Path, fps: Fraction | None) -> Picture:
    """The `Picture` of a video, from its header, its first picture and all of its timestamps."""
    with opened(path) as container:
        stream = picture_stream(container, path)
        first = next(decoded(container, stream), None)
        if first is None:
            raise no_pictures(path)
        start = picture_time(first, stream)
        matrix = display_matrix(first)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        width, height = first.width, first.height
        if sideways(matrix):
            width, height, aspect = height, width, 1 / aspect
        pixel_format, has_sound = first.format.name, bool(container.streams.audio)
        nominal = nominal_rate(stream)
    times, last = stored_times(path, start)
    fps = rate_of(times, nominal) if fps is None else fps
    start = times[0] if start is None else start
    return Picture(
        path=path,
        kind="video",
        width=width,
        height=height,
        fps=Fraction(fps),
        frames=max(1, slot_of(times[-1] + last, start, fps)),
        stored=len(times),
        pixel_format=pixel_format,
        pixel_aspect=Fraction(aspect),
        has_sound=has_sound,
        start=start,
        matrix=matrix,
    )


def nominal_rate(stream) -> Fraction:
    """The frame rate of a video track by FFmpeg's guess from its header and its first packets."""
    return stream.guessed_rate or stream.average_rate or IMAGE_RATE


def no_pictures(path: Path) -> InputError:
    """The error for a video track of zero length."""
    return InputError(f"{path} has a video track without a picture in it; export it again")


def rate_of(times: list[Fraction], nominal: Fraction) -> Fraction:
    """The rate to read pictures at that are shown at these times in seconds (see `describe`)."""
    if len(times) < 2 or times[-1] == times[0]:
        return nominal
    average = (len(times) - 1) / (times[-1] - times[0])
    return nominal if nominal <= 2 * average else average.limit_denominator(1001)


def stored_times(path: Path, start: Fraction | None) -> tuple[list[Fraction], Fraction]:
    """When each picture of a video is shown, and for how long the last one is, in seconds.

    Args:
      path: the video.
      start: time of its first picture; what is shown earlier cannot be decoded. None: unknown.

    Raises:
      InputError: the file is cut off: it ends in the middle of something, or says that it is longer.
    """
    times, durations = [], []
    packets, end = 0, Fraction(0)
    with opened(path) as container:
        stream = picture_stream(container, path)
        step = 1 / nominal_rate(stream)
        for packet in container.demux():
            if packet.size == 0:  # the end of a track; AVI: the last picture stays
                continue
            if packet.is_corrupt:
                raise InputError(
                    f"{path} is damaged or cut off at {float(end):.2f} seconds; export or copy it again"
                )
            stamp = packet.dts if timed_by_dts(stream) else packet.pts
            time = None if stamp is None else stamp * packet.time_base
            duration = (packet.duration or 0) * packet.time_base
            end = end if time is None else max(end, time + duration)
            if packet.stream_index != stream.index:
                continue
            packets += 1
            if packet.is_discard or (None not in (start, time) and time < start):
                continue
            if time is None:
                time = times[-1] + step if times else start or Fraction(0)
            times.append(time)
            durations.append(duration or step)
        promised, stop = 0, None
        if "mp4" in container.format.name and None not in (stream.start_time, stream.duration):
            # MP4 says how long a packet is in decoding order, so only the track's end can be trusted.
            promised = stream.frames
            stop = (stream.start_time + stream.duration) * stream.time_base
        begin = Fraction(container.start_time or 0, av.time_base)
        stated = Fraction(container.duration or 0, av.time_base)
    if promised > packets or (end and stated - (end - begin) > max(1, stated / 50)):
        raise InputError(
            f"{path} is cut off: it ends after {float(end - begin):.2f} of {float(stated):.2f} seconds; "
            "export or copy it again"
        )
    if not times:
        raise no_pictures(path)
    last = max(range(len(times)), key=times.__getitem__)
    if stop is not None and stop > times[last]:
        durations[last] = stop - times[last]
    return sorted(times), durations[last]


def timed(stream, picture: Picture, first: int) -> Iterator[tuple[av.VideoFrame | None, int]]:
    """The decoded pictures of a video, each with the number of the frame that it is first shown at.

    Behind the last comes (None, the number of frames).

    Args:
      stream: the video track of a container that was not read from yet.
      picture: the source.
      first: the frame to begin at; up to it pictures may be left out, but not the one it shows.
    """
    container, frames = stream.container, None
    # One frame early, for pictures are moved by up to half a frame to the grid.
    wanted = picture.start + (first - 1) / picture.fps
    if first > 1 and stream.start_time is not None and not timed_by_dts(stream):
        container.seek(int(wanted / stream.time_base), stream=stream)
        frames = decoded(container, stream)
        frame = next(frames, None)
        time = None if frame is None else picture_time(frame, stream)
        if time is None or time > wanted:  # the entry is too late
            container.seek(0)
            frames = None
        else:
            yield frame, slot_of(time, picture.start, picture.fps)
    step, last, first_dts = 1 / nominal_rate(stream), None, None
    for frame in frames or decoded(container, stream):
        time = picture_time(frame, stream)
        if timed_by_dts(stream) and frame.dts is not None:
            first_dts = frame.dts if first_dts is None else first_dts
            time = picture.start + (frame.dts - first_dts) * stream.time_base
        if time is None:
            time = picture.start if last is None else last + step
        last = time
        yield frame, slot_of(time, picture.start, picture.fps)
    yield None, picture.frames


def slot_of(time: Fraction, start: Fraction, fps: Fraction) -> int:
    """The number of the frame nearest to a time."""
    return math.floor((time - start) * fps + Fraction(1, 2))


def timed_by_dts(stream) -> bool:
    """AVI has no presentation times: what FFmpeg calls so is wrong, and only the order counts."""
    return stream.container.format.name == "avi"


def picture_time(frame: av.VideoFrame, stream) -> Fraction | None:
    """When a picture is shown, in seconds; None in streams without presentation times."""
    if timed_by_dts(stream) or frame.pts is None:
        return None
    return frame.pts * stream.time_base


def picture_stream(container: InputContainer, path: Path):
    """The video track of a container; cover art is none."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise InputError(
        f"{path} has no picture; give a video, an image or a folder of numbered images"
    )


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """What the metadata say of rotation and mirroring: (x, y) is shown at (a x + c y, b x + d y).

    Only the first frame is asked, whose answer holds for the whole track: PyAV's side data and its frame
    hold each other, so that a frame that was asked keeps its memory until the garbage collector comes.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    return a, b, c, d


def sideways(matrix: tuple[int, int, int, int]) -> bool:
    """The shown picture is as wide as the stored one is high."""
    a, b, _, _ = matrix
    return abs(b) > abs(a)


def upright(
    to_rgb: VideoReformatter, frame: av.VideoFrame, matrix: tuple[int, int, int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """A decoded picture as RGB, turned and mirrored to the nearest quarter as its metadata say."""
    rgb = to_rgb.reformat(frame, format="rgb24", interpolation=ACCURATE).to_ndarray()
    a, b, c, d = matrix
    if sideways(matrix):
        rgb, a, d = rgb.swapaxes(0, 1), c, b
    if a < 0:
        rgb = rgb[:, ::-1]
    if d < 0:
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


def of_size(picture: Picture, frame: np.ndarray) -> np.ndarray:
    """`frame`, if it has the size of the source."""
    height, width, _ = frame.shape
    if (width, height) != (picture.width, picture.height):
        raise InputError(
            f"{picture.path} changes its size from {picture.width}x{picture.height} to {width}x{height}; "
            "scale all of it to one size"
        )
    return frame


# ---- Sound in --------------------------------------------------------------------------------------


def describe_sound(path: str | Path) -> Sound:
    """Looks at the first sound track of a file.

    Raises:
      InputError: the file is missing, empty or damaged, or has no sound.
    """
    path = Path(path)
    with opened(path) as container:
        stream = sound_stream(container, path)
        # Some decoders know rate and layout only when they have seen a frame.
        frame = next(decoded(container, stream, tolerant=True), None)
        if frame is None or not frame.sample_rate:
            raise no_samples(path)
        return Sound(path, frame.sample_rate, frame.layout.nb_channels, frame.layout.name)


def read_sound(path: str | Path) -> Iterator[Float[np.ndarray, "C N"]]:
    """The first sound track of a file in blocks of float32 samples at its own rate, in [-1, 1].

    Sample 0 belongs to the first picture where the file has one. A gap of more than 50 ms is filled with
    silence, and so is what cannot be decoded, so that the rest stays in step. A WAV or MP3 that was
    cut off is read to the cut.

    Raises:
      InputError: the file is missing, empty or damaged, has no sound or none that lasts, changes rate
        or channels on the way, or contains values that are infinite or not a number.
    """
    path = Path(path)
    sound, start = describe_sound(path), picture_start(path)
    given = 0  # samples
    with opened(path) as container:
        stream = sound_stream(container, path)
        # Planar arrays of eight channels crash PyAV; packed ones do not.
        packed = av.AudioResampler(format="flt")
        limit = Fraction(container.duration or 60 * av.time_base, av.time_base)
        for frame in decoded(container, stream, tolerant=True):
            if (frame.sample_rate, frame.layout.nb_channels) != (sound.rate, sound.channels):
                raise InputError(
                    f"{path} changes its sound from {sound.rate} Hz and {sound.channels} channels to "
                    f"{frame.sample_rate} Hz and {frame.layout.nb_channels}; convert it to WAV first"
                )
            time = None if frame.pts is None else frame.pts * frame.time_base
            if start is None:  # no picture: the first sample is time zero
                start = time
            blocks = [b.to_ndarray().reshape(-1, sound.channels).T for b in packed.resample(frame)]
            block = np.concatenate(blocks, axis=1) if len(blocks) != 1 else blocks[0]
            if time is not None and start is not None:
                ahead = round((time - start) * sound.rate) - given
                # Timestamps that leap past the end are broken; following them would be an hour of silence.
                if 0 < ahead <= limit * sound.rate and (
                    given == 0 or ahead > SOUND_GAP * sound.rate
                ):
                    given += ahead
                    yield from silence(sound.channels, ahead)
                elif given == 0 and ahead < 0:  # heard before the first picture is seen
                    block = block[:, -ahead:]
                    if not block.size:
                        continue
            if not np.isfinite(block).all():
                raise InputError(
                    f"{path} contains values that are infinite or not a number, after "
                    f"{given / sound.rate:.2f} seconds; export it again"
                )
            given += block.shape[1]
            yield block
    if not given:
        raise no_samples(path)


def read_audio(path: str | Path, rate: int = SAMPLE_RATE) -> Float[np.ndarray, " N"]:
    """The recording as the networks hear it: mono float32, 16 kHz, sample 0 at the first picture.

    Channels are weighted as for a centre loudspeaker (front left and right 0.71, surround 0.5, no low
    frequency effects) and divided by the sum of the weights, so that stereo gives the mean.

    Raises:
      InputError: see `read_sound`.
    """
    sound = describe_sound(path)
    blocks = mixed(read_sound(path), sound.layout)
    samples = np.concatenate(list(resampled(blocks, 1, sound.rate, rate)), axis=1)[0]
    if not len(samples):
        raise no_samples(Path(path))
    return samples


def picture_start(path: Path) -> Fraction | None:
    """The time of a file's first picture, in seconds; None if it has none."""
    with opened(path) as container:
        try:
            stream = picture_stream(container, path)
        except InputError:
            return None
        if timed_by_dts(stream):
            return Fraction(0)
        frame = next(decoded(container, stream), None)
        return None if frame is None else picture_time(frame, stream)


def sound_stream(container: InputContainer, path: Path):
    """The first sound track of a container."""
    if not container.streams.audio:
        raise InputError(f"{path} has no sound; give a recording, or a video with a sound track")
    return container.streams.audio[0]


def no_samples(path: Path) -> InputError:
    """The error for a recording of zero length."""
    return InputError(f"{path} has a sound track of zero length; give a recording that lasts")


def silence(channels: int, samples: int) -> Iterator[Float[np.ndarray, "C N"]]:
    """So many samples of silence, in blocks."""
    for start in range(0, samples, 1 << 16):
        yield np.zeros((channels, min(1 << 16, samples - start)), np.float32)


def mixed(
    blocks: Iterator[Float[np.ndarray, "C N"]], layout: str
) -> Iterator[Float[np.ndarray, "1 N"]]:
    """Blocks of sound mixed to one channel (see `read_audio`)."""
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    loudness = {"LFE": 0, "LFE2": 0, "FL": 0.5**0.5, "FR": 0.5**0.5}
    surround = {name: 0.5 for name in ("BL", "BR", "SL", "SR", "BC")}
    weights = np.array([(loudness | surround).get(name, 1) for name in names], np.float32)
    weights = weights / weights.sum() if weights.any() else weights + 1 / len(weights)
    for block in blocks:
        yield (weights @ block)[None]


def resampled(
    blocks: Iterator[Float[np.ndarray, "C N"]], channels: int, source: int, target: int
) -> Iterator[Float[np.ndarray, "C M"]]:
    """Blocks of sound at another rate, by soxr at high quality: no delay, aliases below -120 dB."""
    if source == target:
        yield from blocks
        return
    stream = soxr.ResampleStream(source, target, channels, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block.T)).reshape(-1, channels).T
    rest = stream.resample_chunk(np.zeros((0, channels), np.float32), last=True)
    yield rest.reshape(-1, channels).T


def rechunked(
    blocks: Iterator[Float[np.ndarray, "C N"]], size: int
) -> Iterator[Float[np.ndarray, "C size"]]:
    """Blocks of sound cut anew, each `size` samples long but the last."""
    kept, length = [], 0
    for block in blocks:
        kept.append(block)
        length += block.shape[1]
        if length >= size:
            whole = np.concatenate(kept, axis=1)
            for start in range(0, length - size + 1, size):
                yield whole[:, start : start + size]
            kept, length = [whole[:, length - length % size :]], length % size
    if length:
        yield np.concatenate(kept, axis=1)


# ---- Picture and sound out -------------------------------------------------------------------------


@contextmanager
def write_video(
    path: str | Path,
    width: int,
    height: int,
    fps: Fraction,
    sound: SoundInput | None = None,
    encoding: Encoding | None = None,
    pixel_aspect: Fraction = Fraction(1),
) -> Iterator[Callable[[UInt8[np.ndarray, "H W 3"]], None]]:
    """Writes H.264 and AAC into one MP4 file: complete when the block ends well, otherwise not at all.

    The block gets a function that takes one frame. Picture and sound start together at zero; frame i is
    shown at i / fps, exactly. The sound is encoded along with the frames and ends with the last one, to
    the sample by the container's clock (a decoder may give the rest of the last AAC frame, under 1024
    samples, as well); a shorter recording ends earlier. It keeps its rate where AAC has that, else the
    next one that AAC has, and its channels up to 7.1. Colours are converted to BT.709 limited range and
    tagged as such; 4:2:0, unless width or height is odd: then 4:4:4, the only way to keep
    the size, which VLC, mpv, ffmpeg, Chrome and Firefox play, but QuickTime and most hardware do not.

    Args:
      path: ends in .mp4; is replaced if it exists. The folder exists.
      width: of the frames, in pixels.
      height: of the frames, in pixels.
      fps: frames a second.
      sound: the recording: a file (see `read_sound`), or samples, (N,) or (channels, N) in [-1, 1], and
        their rate. None: no sound.
      encoding: codec and quality.
      pixel_aspect: width of a pixel over its height, as `Picture.pixel_aspect`.

    Raises:
      InputError: the folder is missing, read-only or full, the codec is not to be had, the recording
        cannot be read, or no frame was written.
    """
    path, fps, encoding = Path(path), Fraction(fps), encoding or Encoding()
    recording = None if sound is None else sound_format(sound)
    with scratch(path) as partial:
        output = None
        try:
            with no_failure(path):
                options = container_options(recording)
                output = av.open(f"file:{partial}", "w", format="mp4", container_options=options)
            aspect = Fraction(pixel_aspect)
            put_picture = picture_encoder(output, path, width, height, fps, encoding, aspect)
            put_sound = recording and sound_encoder(output, path, recording, encoding)
            with no_failure(path):
                output.start_encoding()

            written = 0

            def write(frame: UInt8[np.ndarray, "H W 3"]) -> None:
                nonlocal written
                put_picture(frame, written)
                written += 1
                if put_sound:
                    put_sound(written / fps)

            yield write
            if not written:
                raise InputError(f"{path}: there was no frame to write; give at least one")
            put_picture(None, written)
            if put_sound:
                put_sound(written / fps, last=True)
            with no_failure(path):
                output.close()
        except BaseException:
            # Without its name the file cannot be finished, which would rewrite all of it.
            partial.unlink(missing_ok=True)
            if output is not None:
                with contextlib.suppress(Exception):
                    output.close()
            raise


def container_options(recording: Recording | None) -> dict[str, str]:
    """Options of the MP4 file: its index in front, its clock that of the sound."""
    options = {"movflags": "+faststart"}
    if recording:
        # The length of a track is kept in this clock, which by default ticks once a millisecond.
        options["movie_timescale"] = str(aac_rate(recording[0]))
    return options


def picture_encoder(
    output: OutputContainer,
    path: Path,
    width: int,
    height: int,
    fps: Fraction,
    encoding: Encoding,
    pixel_aspect: Fraction,
) -> Callable[[np.ndarray | None, int], None]:
    """Adds a video track; gives what encodes a frame and its number, or None for the end."""
    preset = encoding.preset or {"libx264": "veryfast", "h264_nvenc": "fast"}[encoding.codec]
    quality = {"preset": preset, "crf": str(encoding.crf)}
    if encoding.codec == "h264_nvenc":
        quality = {"preset": preset, "rc": "vbr", "cq": str(encoding.crf)}
    try:
        stream = output.add_stream(encoding.codec, rate=fps, options=quality)
    except av.codec.codec.UnknownCodecError as error:
        raise InputError(
            f"{path}: this build of PyAV has no {encoding.codec}; use codec libx264"
        ) from error
    pixel_format = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
    stream.bit_rate = 0  # the quality decides
    stream.time_base = stream.codec_context.time_base = 1 / fps
    if pixel_aspect != 1:
        stream.sample_aspect_ratio = pixel_aspect
    context = stream.codec_context
    context.color_range, context.colorspace = LIMITED_RANGE, BT709
    context.color_primaries, context.color_trc = BT709, BT709
    try:
        context.open()
    except (av.FFmpegError, OSError) as error:
        remedy = "use codec libx264 with a preset from ultrafast to veryslow"
        if encoding.codec == "h264_nvenc":
            remedy = "it needs an NVIDIA GPU with an encoder, which A100 and H100 lack: use libx264"
        raise InputError(
            f"{path}: {encoding.codec} with preset {preset} cannot encode {width}x{height} here "
            f"({reason(error)}); {remedy}"
        ) from error

    graph = av.filter.Graph()
    rgb24 = av.VideoFormat("rgb24", width, height)
    source = graph.add_buffer(width=width, height=height, format=rgb24, time_base=1 / fps)
    steps = graph.add("scale", TO_BT709), graph.add("format", pixel_format), graph.add("buffersink")
    graph.link_nodes(source, *steps).configure()

    def put(frame: np.ndarray | None, number: int) -> None:
        if frame is not None:
            if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
                raise ValueError(
                    f"frame {number} is {frame.dtype} {frame.shape}, not uint8 {(height, width, 3)}"
                )
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = number, 1 / fps
            graph.push(picture)
            frame = graph.pull()
            frame.pts, frame.time_base, frame.duration = number, 1 / fps, 1
        with no_failure(path):
            output.mux(stream.encode(frame))

    return put


def sound_encoder(
    output: OutputContainer, path: Path, recording: Recording, encoding: Encoding
) -> Callable[..., None]:
    """Adds a sound track; gives what encodes the recording up to a time, in seconds."""
    source_rate, layout, blocks = recording
    rate, aac_layout = aac_rate(source_rate), aac_layout_of(layout)
    if aac_layout == "mono" and layout != "mono":
        blocks = mixed(blocks, layout)
    channels = av.AudioLayout(aac_layout).nb_channels
    chunks = rechunked(resampled(blocks, channels, source_rate, rate), AAC_FRAME)
    stream = output.add_stream("aac", rate=rate, layout=aac_layout)
    stream.bit_rate = encoding.audio_bit_rate or BIT_RATE_A_CHANNEL * channels
    stream.time_base = Fraction(1, rate)
    done = 0  # samples

    def put(until: Fraction, last: bool = False) -> None:
        nonlocal done
        end = round(until * rate)
        while done + (1 if last else AAC_FRAME) <= end:
            chunk = next(chunks, None)
            if chunk is None:
                break
            chunk = np.clip(chunk[:, : end - done], -1, 1)
            packed = np.ascontiguousarray(chunk.T, np.float32).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=aac_layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, done, Fraction(1, rate)
            done += chunk.shape[1]
            with no_failure(path):
                output.mux(stream.encode(frame))
        if last:
            with no_failure(path):
                output.mux(stream.encode(None))

    return put


def sound_format(sound: SoundInput) -> Recording:
    """Rate, layout and blocks of a recording."""
    if isinstance(sound, str | Path):
        found = describe_sound(sound)
        return found.rate, found.layout, read_sound(sound)
    samples, rate = sound
    samples = np.atleast_2d(samples)
    if not np.issubdtype(samples.dtype, np.floating) or samples.ndim != 2 or not samples.size:
        raise InputError(
            f"the recording is {samples.dtype} {samples.shape}; give floats in [-1, 1], (channels, samples)"
        )
    if samples.shape[0] not in AAC_LAYOUT_OF_COUNT:
        raise InputError(f"the recording has {samples.shape[0]} channels; give one to eight")
    if not np.isfinite(samples).all():
        raise InputError("the recording contains values that are infinite or not a number")
    return int(rate), AAC_LAYOUT_OF_COUNT[samples.shape[0]], iter([samples.astype(np.float32)])


def aac_rate(rate: int) -> int:
    """The lowest sampling rate of AAC that is not below `rate`, or its highest."""
    rates = sorted(av.Codec("aac", "w").audio_rates)
    return next((r for r in rates if r >= rate), rates[-1])


def aac_layout_of(layout: str) -> str:
    """The layout that a recording gets in AAC; channels keep their order."""
    if layout in AAC_LAYOUTS:
        return layout
    return AAC_LAYOUT_OF_COUNT.get(av.AudioLayout(layout).nb_channels, "mono")


# ---- Files -----------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """A file opened for reading; what FFmpeg finds wrong in the block becomes one sentence.

    Raises:
      InputError: it is missing, empty, not readable, or not what FFmpeg reads.
    """
    check_file(path)
    try:
        # A playlist must not make FFmpeg fetch what it names from elsewhere.
        options = {"protocol_whitelist": "file"}
        container = av.open(f"file:{path}", container_options=options, metadata_errors="replace")
    except PermissionError as error:
        raise unreadable(path, error) from error
    except (av.FFmpegError, OSError) as error:
        raise InputError(
            f"{path} cannot be read ({reason(error)}); it is not video or sound, or was cut off while it "
            "was written; export it again"
        ) from error
    with container:
        try:
            yield container
        except av.FFmpegError as error:
            raise InputError(
                f"{path} is damaged or cut off ({reason(error)}); export or copy it again"
            ) from error


def decoded(container: InputContainer, stream, tolerant: bool = False) -> Iterator:
    """The decoded frames of a track.

    Before the first frame, and everywhere if `tolerant`, packets that cannot be decoded are left out, as
    FFmpeg does: a recording of a broadcast begins in the middle, an MP3 ends with a tag.
    """
    begun = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if begun and not tolerant:
                raise
            continue
        for frame in frames:
            begun = True
            yield frame


def check_file(path: Path) -> None:
    """Raises InputError unless there is a file with something in it."""
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file; check the path")
        if path.is_dir():
            raise InputError(f"{path} is a folder; give a file")
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{path} is empty; export or copy it again")
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> InputError:
    """The error for what the system does not let us read."""
    return InputError(f"{path} cannot be read ({reason(error)}); check the permissions")


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A path beside `path` that takes its name when the block ends well, and goes when it does not.

    Raises:
      InputError: the folder is missing or does not take files, or the name is not one for MP4.
    """
    if path.suffix.lower() != ".mp4":
        raise InputError(f"{path} does not end in .mp4; the output is an MP4 file")
    try:
        if not path.parent.is_dir():
            raise InputError(f"{path.parent}: no such folder; make it, or choose another output")
        if path.is_dir():
            raise InputError(f"{path} is a folder; choose another output")
        folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent))
    except OSError as error:
        raise InputError(
            f"{path.parent} does not take files ({reason(error)}); choose another output"
        ) from error
    try:
        yield folder / path.name
        with no_failure(path):
            (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def no_failure(path: Path) -> Iterator[None]:
    """What goes wrong in writing `path` becomes one sentence."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise InputError(
            f"{path} could not be written ({reason(error)}); free some space or choose another output"
        ) from error


def reason(error: OSError | av.FFmpegError) -> str:
    """What the system or FFmpeg says of an error, in words."""
    return error.strerror or type(error).__name__
