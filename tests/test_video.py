"""Reading and writing against the ffmpeg program, and every kind of bad input."""

import os
import resource
import subprocess
import sys
import wave
from fractions import Fraction

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from skimage import data

from unavglip_jax.config import InputError
from unavglip_jax.media import video
from unavglip_jax.media.video import Encoding

H, W = 96, 128
FAST = Encoding(preset="ultrafast", crf=10)
RATES = [Fraction(n, d) for n, d in [(24000, 1001), (24, 1), (25, 1), (30000, 1001)]]
RATES += [Fraction(30), Fraction(50), Fraction(60)]
# Without these ffmpeg itself is off by one, and by tens at edges.
SCALE = "scale=flags=bicubic+accurate_rnd+full_chroma_int"


def ffmpeg(*arguments, input=None) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)]
    return subprocess.run(command, input=input, capture_output=True, check=True).stdout


def moving(count=12, height=H, width=W) -> np.ndarray:
    """A photograph that slides: every frame differs from every other."""
    photo = data.astronaut()[:height, 100 : 100 + width + 2 * count]
    return np.stack([photo[:, 2 * i : 2 * i + width] for i in range(count)])


def encode(path, *options, frames=None, fps="25"):
    """A video of `frames` made by ffmpeg."""
    frames = moving() if frames is None else frames
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", fps, "-i", "-"]
    ffmpeg(*source, *options, path, input=frames.tobytes())
    return path


def decode(path, height=H, width=W, filters=SCALE) -> np.ndarray:
    """All pictures of a video by ffmpeg, as int."""
    options = ["-vf", filters, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    raw = ffmpeg("-i", path, *options, "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3).astype(int)


def read(path, **options) -> np.ndarray:
    return np.stack(list(video.read_frames(video.describe(path, **options)))).astype(int)


def write(path, frames, fps=25, **options):
    options.setdefault("encoding", FAST)
    with video.write_video(path, frames.shape[2], frames.shape[1], fps, **options) as put:
        for frame in frames:
            put(frame)
    return path


def tone(seconds, rate, frequencies=(440,), amplitude=0.25) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    tones = [amplitude * np.sin(2 * np.pi * f * time) for f in frequencies]
    return np.stack(tones).astype(np.float32)


def click(at, seconds, rate) -> np.ndarray:
    """Silence but for 10 ms of a rising tone that begins at a time, the same at every rate."""
    time = np.arange(round(seconds * rate)) / rate - float(at)
    chirp = 0.5 * np.sin(np.pi * 100 * time) ** 2 * np.sin(2 * np.pi * (500 + 1e5 * time) * time)
    return np.where((time >= 0) & (time < 0.01), chirp, 0)[None].astype(np.float32)


def sound_file(path, samples, rate, *options, layout=None):
    """`samples`, (channels, N) float32, as any format that ffmpeg writes."""
    channels = ["-channel_layout", layout] if layout else ["-ac", len(samples)]
    source = ["-f", "f32le", "-ar", rate, *channels, "-i", "-"]
    ffmpeg(*source, *options, path, input=np.ascontiguousarray(samples.T).tobytes())
    return path


def lag(heard, truth) -> int:
    """By how many samples `heard` comes later than `truth`."""
    n = 2 * max(len(heard), len(truth))
    found = np.fft.irfft(np.fft.rfft(heard, n) * np.conj(np.fft.rfft(truth, n)))
    at = int(np.argmax(found))
    return at - n if at > n // 2 else at


def pitches(samples, rate) -> list[int]:
    """The loudest frequency of each channel, to 10 Hz."""
    middle = samples[:, rate // 10 : rate // 5]
    return [round(10 * float(np.argmax(np.abs(np.fft.rfft(s))))) for s in middle]


# ---- Pictures in


H264, LOSSLESS = ["-c:v", "libx264", "-crf", "8"], ["-c:v", "ffv1"]
TAGGED = ["-vf", "scale=out_color_matrix=bt709:out_range={0}", "-colorspace", "bt709"]
TAGGED += ["-color_range", "{0}", "-pix_fmt", "yuv420p"]
KINDS = {
    # name: (options of the encoder, where the decoder says that chroma lies)
    "untagged.mp4": ([*H264, "-pix_fmt", "yuv420p"], "left"),
    "limited709.mp4": ([*H264, *(o.format("tv") for o in TAGGED)], "left"),
    "full709.mp4": ([*H264, *(o.format("pc") for o in TAGGED)], "left"),
    "ten_bits.mp4": ([*H264, "-pix_fmt", "yuv420p10le"], "left"),
    "444.mkv": ([*H264, "-pix_fmt", "yuv444p"], "left"),
    "422.mov": ([*H264, "-pix_fmt", "yuv422p"], "left"),
    "b_frames.avi": ([*H264, "-pix_fmt", "yuv420p"], "left"),
    "stamps.flv": ([*H264, "-pix_fmt", "yuv420p"], "left"),
    "bare.h264": ([*H264, "-pix_fmt", "yuv420p"], "left"),
    "late.ts": ([*H264, "-pix_fmt", "yuv420p"], "left"),
    "motion.avi": (["-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p"], "center"),
    "alpha.mov": (["-c:v", "prores_ks", "-pix_fmt", "yuva444p10le"], "center"),
    "rgb.mkv": ([*LOSSLESS, "-pix_fmt", "bgr0"], "center"),
    "gray.mkv": ([*LOSSLESS, "-pix_fmt", "gray"], "center"),
    "sixteen.mkv": ([*LOSSLESS, "-pix_fmt", "gbrp16le"], "center"),
}


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_of_ffmpeg(tmp_path, name):
    options, chroma = KINDS[name]
    path = encode(tmp_path / name, *options)
    picture = video.describe(path)
    assert (picture.width, picture.height, picture.fps) == (W, H, 25)
    assert (picture.frames, picture.stored, picture.duration) == (12, 12, Fraction(12, 25))
    theirs = decode(path, filters=f"{SCALE}:in_chroma_loc={chroma}")
    ours = read(path)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 2
    if "gray" not in name:
        assert np.abs(ours - moving()).mean() < 6


def test_odd_sizes_in(tmp_path):
    frames = moving(4, 77, 113)
    path = encode(tmp_path / "odd.mkv", *LOSSLESS, "-pix_fmt", "yuv420p", frames=frames)
    assert np.abs(read(path) - decode(path, 77, 113)).max() <= 2


@pytest.mark.parametrize("rotation", [["90"], ["-90"], ["180"], ["90", "-display_hflip"]], ids=str)
def test_rotation_and_mirroring(tmp_path, rotation):
    plain = encode(tmp_path / "plain.mp4", *H264, "-pix_fmt", "yuv444p", "-aspect", "2:1")
    path = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", *rotation, "-i", plain, "-c", "copy", path)
    width, height = (W, H) if rotation == ["180"] else (H, W)
    theirs = decode(path, height, width)
    picture = video.describe(path)
    assert (picture.width, picture.height) == (width, height)
    assert picture.pixel_aspect == (Fraction(3, 2) if width == W else Fraction(2, 3))
    assert np.abs(read(path) - theirs).max() <= 2


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("fps", [None, Fraction(25), RATES[0]], ids=str)
def test_variable_rate_is_resampled_by_presentation_time(tmp_path, suffix, fps):
    path = tmp_path / f"variable.{suffix}"
    keep = "select='not(between(mod(n,11),3,6))*not(eq(mod(n,5),4))'"
    source = ["-f", "lavfi", "-i", f"testsrc2=r=30:d=2:s={W}x{H}", "-vf", keep]
    ffmpeg(*source, "-fps_mode", "vfr", "-pix_fmt", "yuv444p", path)
    picture = video.describe(path, fps)
    assert picture.stored < 40
    if fps is None and suffix == "mp4":  # MKV counts milliseconds: there the average is taken
        assert picture.fps == 30
    theirs = decode(path, filters=f"fps={picture.fps},{SCALE}")
    ours = read(path, fps=fps)
    assert picture.frames == len(ours)
    assert abs(len(ours) - len(theirs)) <= 1
    n = min(len(ours), len(theirs))
    assert np.abs(ours[:n] - theirs[:n]).max() <= 2


def test_another_rate_than_its_own(tmp_path):
    path = encode(tmp_path / "a.mkv", *LOSSLESS, "-pix_fmt", "bgr0", frames=moving(30), fps="30")
    ours = read(path, fps=Fraction(10))
    assert len(ours) == 10
    assert read(path, fps=Fraction(60)).shape[0] == 60
    np.testing.assert_array_equal(ours[5], moving(30)[16])  # of 14, 15, 16 the latest in its slot


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "b.avi", "c.h264"])
def test_reading_again_in_parts_and_backwards(tmp_path, name, monkeypatch):
    path = encode(tmp_path / name, *H264, "-g", "10", "-pix_fmt", "yuv420p", frames=moving(40))
    picture = video.describe(path)
    forwards = list(video.read_frames(picture))
    forwards[3][:] = 0  # the caller's own
    forwards = list(video.read_frames(picture))
    for start, stop in [(0, 1), (1, 3), (9, 12), (10, 11), (25, 99), (39, 40), (40, 41)]:
        part = list(video.read_frames(picture, start, stop))
        assert len(part) == len(forwards[start:stop])
        assert all((a == b).all() for a, b in zip(part, forwards[start:stop], strict=True))
    monkeypatch.setattr(video, "BACKWARD_BYTES", 3 * H * W * 9)
    backwards = list(video.read_backwards(picture))
    assert all((a == b).all() for a, b in zip(backwards[::-1], forwards, strict=True))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux does")
def test_an_iterator_that_is_left_closes_its_file(tmp_path):
    path = encode(tmp_path / "a.mp4", *H264)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        frames = video.read_frames(video.describe(path))
        next(frames)
        frames.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_images(tmp_path):
    frames = moving(11)
    for i, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f"{i + 1}.png"), frame[..., ::-1])
    (tmp_path / "notes.txt").write_text("not an image")
    picture = video.describe(tmp_path)
    assert (picture.kind, picture.frames, picture.fps, picture.has_sound) == (
        "folder",
        11,
        25,
        False,
    )
    np.testing.assert_array_equal(read(tmp_path), frames)
    np.testing.assert_array_equal(list(video.read_frames(picture, 4, 6)), frames[4:6])
    np.testing.assert_array_equal(list(video.read_backwards(picture)), frames[::-1])
    one = video.describe(tmp_path / "3.png", RATES[0])
    assert (one.kind, one.frames, one.fps) == ("image", 1, RATES[0])
    np.testing.assert_array_equal(list(video.read_frames(one)), frames[2:3])


def test_images_with_alpha_of_sixteen_bits_and_gray(tmp_path):
    frame = moving(1)[0]
    clear = np.zeros((H, W, 1), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), np.concatenate([frame[..., ::-1], clear], 2))
    cv2.imwrite(str(tmp_path / "b.tif"), frame[..., ::-1].astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "c.bmp"), frame[..., 0])
    np.testing.assert_array_equal(read(tmp_path / "a.png")[0], frame)
    np.testing.assert_array_equal(read(tmp_path / "b.tif")[0], frame)
    np.testing.assert_array_equal(read(tmp_path / "c.bmp")[0], frame[..., :1].repeat(3, -1))


# ---- Picture out


@pytest.mark.parametrize("fps", RATES, ids=str)
def test_rate_count_and_times_are_exact(tmp_path, fps):
    frames = moving(25)
    path = write(tmp_path / "a.mp4", frames, fps, sound=(tone(3, 44100), 44100))
    picture = video.describe(path)
    assert (picture.fps, picture.frames, picture.stored) == (fps, 25, 25)
    with av.open(str(path)) as container:
        stream, sound = container.streams.video[0], container.streams.audio[0]
        assert (stream.average_rate, stream.guessed_rate, stream.frames) == (fps, fps, 25)
        assert (stream.start_time, sound.start_time) == (0, 0)
        assert stream.duration * stream.time_base == 25 / fps
        assert sound.duration == round(25 / fps * 44100)
        times = [frame.pts * stream.time_base for frame in container.decode(stream)]
    assert times == [i / fps for i in range(25)]
    assert len(decode(path)) == 25
    assert path.read_bytes()[:4096].find(b"moov") > 0  # playing can start before all is there


def test_one_frame(tmp_path):
    path = write(tmp_path / "a.mp4", moving(1), RATES[3])
    assert (video.describe(path).fps, len(read(path))) == (RATES[3], 1)


def test_colours_come_back(tmp_path):
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255]]
    colours += [[255, 255, 255], [0, 0, 0], [224, 172, 140], [96, 60, 44], [128, 128, 128]]
    patches = np.array(colours, np.uint8).repeat(32, 0)[None].repeat(32, 0)
    path = write(tmp_path / "a.mp4", patches[None].repeat(3, 0))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.color_range, stream.colorspace) == (1, 1)
        assert (stream.color_primaries, stream.color_trc) == (1, 1)
        assert (frame.color_range, frame.colorspace) == (1, 1)

    def means(frames):
        return frames.reshape(3, 32, -1, 32, 3)[:, 4:-4, :, 4:-4].mean((0, 1, 3))

    assert np.abs(means(read(path)) - colours).max() < 2
    capture = cv2.VideoCapture(str(path))
    theirs = np.stack([capture.read()[1][..., ::-1] for _ in range(3)])
    assert np.abs(means(theirs) - colours).max() < 3
    assert np.abs(means(decode(path, *patches.shape[:2], "null")) - colours).max() < 3


def test_generations_do_not_drift(tmp_path):
    """ffmpeg's and PyAV's defaults darken a picture by 1/255 each time."""
    frames = moving(3)
    for _ in range(3):
        path = write(tmp_path / "a.mp4", frames, encoding=FAST.replace(crf=1, preset="ultrafast"))
        frames = read(path).astype(np.uint8)
    difference = frames.astype(int) - moving(3)
    assert np.abs(difference.mean((0, 1, 2))).max() < 0.3
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("height, width", [(77, 113), (76, 113), (64, 64), (78, 112)])
def test_any_size_out(tmp_path, height, width):
    frames = moving(4, height, width)
    path = write(tmp_path / "a.mp4", frames)
    assert read(path).shape == decode(path, height, width).shape == frames.shape
    assert np.abs(read(path) - frames).mean() < 3


def test_pixel_aspect_is_kept(tmp_path):
    path = write(tmp_path / "a.mp4", moving(2), pixel_aspect=Fraction(16, 15))
    assert video.describe(path).pixel_aspect == Fraction(16, 15)


def test_frames_of_the_wrong_kind(tmp_path):
    with pytest.raises(ValueError, match="frame 0 is float64"):
        write(tmp_path / "a.mp4", moving(1) / 255)
    with (
        pytest.raises(ValueError, match=r"\(96, 127, 3\)"),
        video.write_video(tmp_path / "a.mp4", W, H, 25) as put,
    ):
        put(moving(1)[0, :, 1:])
    assert not list(tmp_path.iterdir())


# ---- Sound


def test_picture_and_sound_start_together(tmp_path):
    """A flash and a click at the same frame, at several rates, come back at the same time."""
    for fps, rate in [(RATES[0], 44100), (Fraction(25), 48000), (RATES[3], 16000)]:
        frames = np.zeros((40, 64, 64, 3), np.uint8)
        frames[17] = 255
        source = click(17 / fps, 40 / fps, rate)
        sound = sound_file(tmp_path / "click.wav", source, rate, "-c:a", "pcm_f32le")
        path = write(tmp_path / "a.mp4", frames, fps, sound=sound)
        assert int(np.argmax(read(path).mean((1, 2, 3)))) == 17
        heard = np.concatenate(list(video.read_sound(path)), axis=1)[0]
        assert lag(heard, source[0]) == 0
        theirs = ffmpeg("-i", path, "-f", "f32le", "-ac", 1, "-ar", rate, "-")
        assert lag(np.frombuffer(theirs, np.float32), source[0]) == 0
        assert 0 <= len(heard) - source.shape[1] < 1024
        heard = video.read_audio(path)
        assert lag(heard, click(17 / fps, 40 / fps, 16000)[0]) == 0


@pytest.mark.parametrize("later", ["sound", "picture"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_sound_keeps_its_place_against_the_picture(tmp_path, later, suffix):
    plain = sound_file(tmp_path / "click.wav", click(0.8, 2, 48000), 48000)
    still = encode(tmp_path / "still.mp4", *H264, frames=moving(50))
    shift, plays = ["-itsoffset", "0.3"], ["-i", plain]
    inputs = ["-i", still, *shift, *plays] if later == "sound" else [*shift, "-i", still, *plays]
    path = tmp_path / f"a.{suffix}"
    ffmpeg(*inputs, "-c:v", "copy", "-c:a", "aac", "-ac", 2, path)
    at = 0.8 + (0.3 if later == "sound" else -0.3)
    # Some containers count milliseconds.
    assert abs(lag(video.read_audio(path), click(at, 2, 16000)[0])) <= 16
    assert video.describe(path).frames == 50


SOUNDS = {
    "unsigned8.wav": ["-c:a", "pcm_u8"],
    "16.wav": ["-c:a", "pcm_s16le"],
    "24.wav": ["-c:a", "pcm_s24le"],
    "32.wav": ["-c:a", "pcm_s32le"],
    "float.wav": ["-c:a", "pcm_f32le"],
    "double.wav": ["-c:a", "pcm_f64le"],
    "a.flac": [],
    "a.mp3": ["-b:a", "192k"],
    "a.m4a": ["-b:a", "192k"],
    "a.ogg": ["-c:a", "libvorbis"],
    "a.opus": ["-c:a", "libopus", "-b:a", "192k", "-ar", "48000"],
}


@pytest.mark.parametrize("name", SOUNDS)
def test_any_sound_file_is_heard_alike(tmp_path, name):
    source = tone(1, 44100, (440, 1000)) + click(0.5, 1, 44100)
    path = sound_file(tmp_path / name, source, 44100, *SOUNDS[name])
    sound = video.describe_sound(path)
    assert (sound.rate, sound.channels) == (48000 if "opus" in name else 44100, 2)
    heard = video.read_audio(path)
    truth = (tone(1, 16000, (440, 1000)) + click(0.5, 1, 16000)).mean(0)
    assert (heard.dtype, heard.ndim) == (np.float32, 1)
    assert -60 <= len(heard) - len(truth) < 1200  # codecs fill their last frame up, or leave it
    assert lag(heard, truth) == 0
    error = np.abs(heard[800:15000] - truth[800:15000]).max()
    assert error < (0.01 if name == "unsigned8.wav" else 1e-3 if ".wav" in name else 0.05)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 48000, 96000])
def test_resampling_to_16_khz(tmp_path, rate):
    path = sound_file(tmp_path / "a.wav", tone(1, rate, (1000,)), rate, "-c:a", "pcm_f32le")
    heard = video.read_audio(path)
    assert abs(len(heard) - 16000) <= 1
    np.testing.assert_allclose(heard[800:15000], tone(1, 16000, (1000,))[0, 800:15000], atol=2e-4)
    if rate > 22050:  # what 16 kHz cannot hold must vanish, not fold
        sound_file(path, tone(1, rate, (9000,)), rate, "-c:a", "pcm_f32le")
        assert np.abs(video.read_audio(path)[800:15000]).max() < 1e-4


LAYOUTS = {1: "mono", 2: "stereo", 4: "quad", 6: "5.1", 7: "6.1", 8: "7.1"}


@pytest.mark.parametrize("channels", LAYOUTS)
def test_channels_and_rate_of_the_recording_are_kept(tmp_path, channels):
    frequencies = [100 if i == 3 and channels > 4 else 300 + 100 * i for i in range(channels)]
    samples = tone(1, 44100, frequencies)
    pcm, layout = ["-c:a", "pcm_s24le"], LAYOUTS[channels]
    recording = sound_file(tmp_path / "a.wav", samples, 44100, *pcm, layout=layout)
    assert len(video.read_audio(recording)) == 16000
    path = write(tmp_path / "a.mp4", moving(25), sound=recording)
    sound = video.describe_sound(path)
    assert (sound.rate, sound.channels) == (44100, channels)
    heard = np.concatenate(list(video.read_sound(path)), axis=1)
    assert pitches(heard, 44100) == frequencies
    assert 44100 <= heard.shape[1] < 44100 + 1024
    signal, noise = samples[:2, 2000:40000], (heard[:2, :44100] - samples[:2])[:, 2000:40000]
    assert 10 * np.log10((signal**2).mean() / (noise**2).mean()) > 30


def test_side_speakers_and_strange_rates_are_made_to_fit(tmp_path):
    samples = tone(1, 37000, range(300, 900, 100))
    recording = sound_file(tmp_path / "a.wav", samples, 37000, layout="5.1(side)")
    path = write(tmp_path / "a.mp4", moving(25), sound=recording)
    sound = video.describe_sound(path)
    assert (sound.rate, sound.layout) == (44100, "5.1")
    many = sound_file(tmp_path / "b.wav", tone(1, 8000, range(200, 1400, 100)), 8000)
    path = write(tmp_path / "a.mp4", moving(25), sound=many)
    assert (video.describe_sound(path).rate, video.describe_sound(path).channels) == (8000, 1)
    assert len(video.read_audio(many)) == 16000


def test_speech_in_the_centre_is_not_lost_in_the_mix(tmp_path):
    samples = np.zeros((6, 16000), np.float32)
    samples[2], samples[3] = tone(1, 16000)[0], 0.9
    path = sound_file(tmp_path / "a.wav", samples, 16000, "-c:a", "pcm_f32le", layout="5.1")
    heard = video.read_audio(path)
    np.testing.assert_allclose(heard, samples[2] / (1 + 2**0.5 + 1), atol=1e-5)


def test_sound_ends_with_the_picture_or_before(tmp_path):
    for seconds in (0.4, 5):
        recording = (tone(seconds, 48000), 48000)
        path = write(tmp_path / "a.mp4", moving(25), sound=recording)
        assert len(read(path)) == 25
        with av.open(str(path)) as container:
            assert container.streams.audio[0].duration == min(seconds, 1) * 48000


def test_a_cover_is_no_picture(tmp_path):
    cv2.imwrite(str(tmp_path / "1.png"), moving(1)[0])
    recording = sound_file(tmp_path / "a.wav", click(0.4, 1, 44100), 44100)
    inputs = ["-i", recording, "-i", tmp_path / "1.png", "-map", "0", "-map", "1"]
    path = tmp_path / "a.mp3"
    ffmpeg(*inputs, "-c:v", "copy", "-disposition:v", "attached_pic", path)
    assert lag(video.read_audio(path), click(0.4, 1, 16000)[0]) == 0
    with pytest.raises(InputError, match="has no picture"):
        video.describe(path)


def test_gaps_in_the_sound_are_filled(tmp_path):
    still = encode(tmp_path / "still.mp4", *H264, frames=moving(50))
    recording = sound_file(tmp_path / "click.wav", click(1.5, 2, 48000), 48000)
    path = tmp_path / "a.mkv"
    cut = ["-af", "aselect='not(between(t,0.5,1))'", "-c:a", "pcm_s16le", "-c:v", "copy"]
    ffmpeg("-i", still, "-i", recording, *cut, path)
    assert abs(lag(video.read_audio(path), click(1.5, 2, 16000)[0])) <= 16


# ---- Memory


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="measures as Linux does")
@pytest.mark.parametrize("job", ["write", "read", "backwards"])
def test_memory_does_not_grow_with_length(tmp_path, job):
    program = """if True:
        import sys
        import numpy as np
        from unavglip_jax.media import video
        job, folder, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3])
        path, wav = f"{folder}/{seconds}.mp4", f"{folder}/{seconds}.wav"
        if job == "write":
            frames = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)
            fast = video.Encoding(preset="ultrafast", crf=40)
            with video.write_video(path, 64, 64, 25, wav, fast) as put:
                for i in range(25 * seconds):
                    put(frames[i % 4])
        else:
            video.BACKWARD_BYTES = 1 << 18
            read = video.read_frames if job == "read" else video.read_backwards
            assert sum(1 for _ in read(video.describe(path))) == 25 * seconds
            if job == "read":
                assert sum(b.shape[1] for b in video.read_sound(path)) >= 48000 * seconds
        # Not ru_maxrss: that includes the parent's memory at the fork.
        print(next(line.split()[1] for line in open("/proc/self/status") if "VmHWM" in line))
    """
    peak = {}
    for seconds in (5, 60):
        if job == "write":
            sound_file(tmp_path / f"{seconds}.wav", tone(seconds, 48000, (300, 400)), 48000)
        else:
            ffmpeg(
                *["-f", "lavfi", "-i", f"testsrc2=r=25:d={seconds}:s=64x64"],
                *["-f", "lavfi", "-i", f"sine=r=48000:d={seconds}"],
                *["-preset", "ultrafast", "-pix_fmt", "yuv420p", tmp_path / f"{seconds}.mp4"],
            )
        command = [sys.executable, "-c", program, job, str(tmp_path), str(seconds)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        peak[seconds] = int(found.stdout) / 1024
    # A minute of this sound as float32 is 23 MB, of these frames 18 MB.
    assert peak[60] - peak[5] < 8, peak


# ---- Failures


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt, InputError])
@pytest.mark.parametrize("written", [0, 1, 60])
def test_a_failure_leaves_nothing(tmp_path, kind, written):
    frames = moving(1).repeat(60, 0)
    target = tmp_path / "a.mp4"
    for old in (None, b"old"):
        if old:
            target.write_bytes(old)
        with (
            pytest.raises(kind),
            video.write_video(target, W, H, 25, (tone(3, 48000), 48000), FAST) as put,
        ):
            for frame in frames[:written]:
                put(frame)
            raise kind("no more")
        assert list(tmp_path.iterdir()) == ([target] if old else [])
        assert not old or target.read_bytes() == old


def test_success_leaves_one_file_and_replaces(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"old")
    path = write(tmp_path / "a.mp4", moving(3))
    assert list(tmp_path.iterdir()) == [path]
    assert len(read(path)) == 3


@pytest.mark.parametrize(
    "name, message",
    [
        ("none/a.mp4", "no such folder"),
        ("a.avi", "does not end in .mp4"),
        ("folder.mp4", "is a folder"),
        ("file.txt/a.mp4", "no such folder"),
    ],
)
def test_outputs_that_cannot_be(tmp_path, name, message):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file.txt").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        write(tmp_path / name, moving(1))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_takes_no_files(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")  # root may write into any folder

    monkeypatch.setattr(video.tempfile, "mkdtemp", refuse)
    with pytest.raises(InputError, match=r"does not take files \(Permission denied\)"):
        write(tmp_path / "a.mp4", moving(1))


@pytest.mark.parametrize("room", [0, 20_000])
def test_a_full_disk(tmp_path, room):
    """A limit on the size of files stands for the disk: writing fails in the same places."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(InputError, match=r"could not be written.*free some space") as caught:
            write(tmp_path / "a.mp4", moving(30), sound=(tone(3, 48000), 48000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no frame to write"):
        write(tmp_path / "a.mp4", moving(1)[:0])
    assert not list(tmp_path.iterdir())


def test_the_default_keeps_what_a_slower_preset_keeps(tmp_path):
    frames = moving(24, 256, 256)
    ours = write(tmp_path / "ours.mp4", frames, encoding=Encoding())
    slower = encode(
        tmp_path / "slower.mp4", *["-c:v", "libx264", "-crf", "18", "-preset", "fast"],
        *["-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709"], "-pix_fmt", "yuv420p",
        frames=frames,
    )  # fmt: skip
    error = lambda path: ((read(path).astype(float) - frames) ** 2).mean()
    assert error(ours) < 1.05 * error(slower)
    assert ours.stat().st_size < 1.8 * slower.stat().st_size


def test_codecs_that_are_not_to_be_had(tmp_path):
    try:
        write(tmp_path / "a.mp4", moving(12, 256, 256), encoding=Encoding(codec="h264_nvenc"))
    except InputError as error:
        assert "h264_nvenc" in str(error) and "libx264" in str(error)
        assert not list(tmp_path.iterdir())
    else:  # a machine that has it
        assert read(tmp_path / "a.mp4").shape == (12, 256, 256, 3)
    with pytest.raises(InputError, match="preset quick"):
        write(tmp_path / "b.mp4", moving(1), encoding=Encoding(preset="quick"))
    with pytest.raises(ValueError, match="crf"):
        Encoding(crf=52)


def cut_copy(source, target, share):
    whole = source.read_bytes()
    target.write_bytes(whole[: int(len(whole) * share)])
    return target


def test_videos_that_are_none(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 50)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n")
    sound_file(tmp_path / "sound.mp4", tone(1, 16000), 16000)
    cases = {
        "missing.mp4": "no such file",
        "empty.mp4": "is empty",
        "text.mp4": "cannot be read .* export it again",
        "list.mp4": "cannot be read",
        "sound.mp4": "has no picture",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            video.describe(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    for fps in (0, -1, 23.976):
        with pytest.raises(InputError, match="frame rate is"):
            video.describe(tmp_path / "empty.mp4", fps)


def test_a_video_track_without_pictures(tmp_path):
    for name in ("a.mp4", "a.mkv", "a.avi"):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
            container.start_encoding()
        with pytest.raises(InputError, match=rf"{name} (has|cannot be read)"):
            video.describe(tmp_path / name)


@pytest.mark.parametrize("kind", ["index_behind.mp4", "index_in_front.mp4", "a.mkv"])
def test_videos_that_were_cut_off(tmp_path, kind):
    options = ["-movflags", "+faststart"] if "front" in kind else []
    whole = encode(tmp_path / kind, *H264, *options, frames=moving(75))
    assert video.describe(whole).frames == 75
    path = cut_copy(whole, tmp_path / f"cut_{kind}", 0.5)
    with pytest.raises(InputError, match="cut off") as caught:
        video.describe(path)
    assert path.name in str(caught.value)


def test_a_video_that_changes_its_size(tmp_path):
    parts = [moving(10), moving(10, 64, 64)]
    streams = [encode(tmp_path / f"{i}.ts", *H264, frames=f) for i, f in enumerate(parts)]
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(s.read_bytes() for s in streams))
    picture = video.describe(path)
    with pytest.raises(InputError, match="changes its size from 128x96 to 64x64"):
        list(video.read_frames(picture))


def test_folders_of_images_that_are_none(tmp_path):
    with pytest.raises(InputError, match="holds no images"):
        video.describe(tmp_path)
    cv2.imwrite(str(tmp_path / "7.png"), moving(1)[0])
    cv2.imwrite(str(tmp_path / "cover.png"), moving(1)[0])
    with pytest.raises(InputError, match="has no number"):
        video.describe(tmp_path)
    (tmp_path / "cover.png").rename(tmp_path / "07.png")
    with pytest.raises(InputError, match="the same number"):
        video.describe(tmp_path)
    cv2.imwrite(str(tmp_path / "8.png"), moving(1)[0, 1:])
    (tmp_path / "07.png").unlink()
    with pytest.raises(InputError, match="changes its size"):
        read(tmp_path)
    for content in (b"not a PNG", b""):
        (tmp_path / "7.png").write_bytes(content)
        with pytest.raises(InputError, match=r"7\.png is (not an image|empty)"):
            video.describe(tmp_path)


def test_sound_that_is_none(tmp_path):
    with wave.open(str(tmp_path / "zero.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
    encode(tmp_path / "silent.mp4", *H264)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("This is not a sound.\n" * 50)
    bad = tone(1, 16000)
    for name, value in [("nan.wav", np.nan), ("inf.wav", np.inf)]:
        bad[0, 9000] = value
        sound_file(tmp_path / name, bad, 16000, "-c:a", "pcm_f32le")
    cases = {
        "missing.wav": "no such file",
        "empty.wav": "is empty",
        "text.wav": "cannot be read",
        "zero.wav": "zero length",
        "silent.mp4": "has no sound",
        "nan.wav": "not a number, after 0.",
        "inf.wav": "infinite",
    }
    for name, message in cases.items():
        for use in (
            lambda path: video.read_audio(path),
            lambda path: write(tmp_path / "out.mp4", moving(30), sound=path),
        ):
            with pytest.raises(InputError, match=message) as caught:
                use(tmp_path / name)
            assert name in str(caught.value) and "\n" not in str(caught.value)
            assert not (tmp_path / "out.mp4").exists()
    for samples in (np.zeros((1, 0)), np.zeros(9, np.int16), np.full(9, np.nan), np.ones((9, 5))):
        with pytest.raises(InputError, match="the recording"):
            write(tmp_path / "out.mp4", moving(1), sound=(samples, 16000))
