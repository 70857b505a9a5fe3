"""Dubbing end to end: seconds a stage, frames per second, peak memory against length, and a PyTorch loop.

    python benchmarks/dub.py                          # a small random pack
    python benchmarks/dub.py --pack packs/unavglip --dtype bfloat16 --batch-size 16

The PyTorch loop runs the same pack on diffusers modules, one batch after the other, as the published
programs do: decode, crop, networks, paste, encode. It is given the face boxes and the audio features, so
it has less to do. Both run in this process, on the same clip; tests/test_generator.py holds their pictures
against each other.
"""

import subprocess
import sys
import tempfile
import time
import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import jax
import numpy as np
import skimage.data
import torch
import tyro
from rich.console import Console
from rich.table import Table

from unavglip_jax import assets, params
from unavglip_jax.dubbing import dub, generator, hearing
from unavglip_jax.dubbing.tasks import Settings, Task
from unavglip_jax.evaluation import torch_networks
from unavglip_jax.faces import blending, identity
from unavglip_jax.faces.crop import Box, crop
from unavglip_jax.faces.tracking import Tracker
from unavglip_jax.media import audio, video
from unavglip_jax.models.iresnet import IResNet, IResNetConfig
from unavglip_jax.models.layers import audio_positions
from unavglip_jax.models.perceiver import Perceiver, PerceiverConfig
from unavglip_jax.models.unet import UNet, UNetConfig, merge_lora
from unavglip_jax.models.vae import VAE, VAEConfig
from unavglip_jax.models.whisper import Whisper, WhisperConfig

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FPS = Fraction(25)


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
      pack: the networks; by default small random ones, whose pictures mean nothing.
      seconds: length of the clip for the comparison.
      lengths: lengths of the clips for the memory, in seconds.
      size: side of the picture, in pixels.
      batch_size: frames a step.
      dtype: of the networks.
    """

    pack: Path | None = None
    seconds: float = 6.0
    lengths: tuple[float, ...] = (20.0, 600.0)
    size: int = 512
    batch_size: int = 8
    dtype: str = "float32"


def random_pack(folder: Path, image_size: int) -> Path:
    """A pack of small networks with random weights."""
    unet = UNetConfig(
        block_out_channels=(32, 64, 64, 64), lora_rank=8, identity="tokens", norm_num_groups=8
    )
    networks = {
        "vae": (VAE, VAEConfig(block_out_channels=(16, 32, 32, 32), norm_num_groups=8)),
        "whisper": (Whisper, WhisperConfig()),
        "perceiver": (Perceiver, PerceiverConfig()),
        "identity": (IResNet, IResNetConfig(blocks=(1, 1, 1, 1), widths=(8, 16, 16, 16))),
    }
    key = jax.random.key(0, impl="rbg")
    made = {k: (c, params.init(network, c, key)) for k, (network, c) in networks.items()}
    adapter, base = params.split("/processor/", params.init(UNet, unet, key))
    made |= {"unet": (unet.replace(lora_rank=0, identity="none"), base), "adapter": (unet, adapter)}
    description = {
        "system": "unavglip", "audio_front_end": "v10", "crop": "musetalk_v10", "mask": "lower_half",
        "image_size": image_size, "identity": {"embedder": "identity", "normalisation": "unit"},
    }  # fmt: skip
    described = {name: (*network, "random", "none") for name, network in made.items()}
    assets.write_pack(folder, description, described)
    return folder


def clip(folder: Path, seconds: float, size: int) -> tuple[Path, Path]:
    """The astronaut's photograph, moved and zoomed, and a sound that swells three times a second."""
    picture, sound = folder / f"{seconds:.0f}s.mp4", folder / f"{seconds:.0f}s.wav"
    photo = skimage.data.astronaut()
    with video.write_video(picture, size, size, FPS, encoding=video.Encoding(preset="fast")) as put:
        for i in range(round(seconds * FPS)):
            zoom = size / 512 * (1.2 + 0.1 * np.sin(i / 20))
            shift = size / 2 - 225 * zoom + 4 * np.sin(i / 9), size / 3 - 130 * zoom
            matrix = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
            put(cv2.warpAffine(photo, matrix, (size, size), flags=cv2.INTER_AREA))
    t = np.arange(round(seconds * audio.SAMPLE_RATE)) / audio.SAMPLE_RATE
    samples = (0.5 - 0.5 * np.cos(6 * np.pi * t)) * 0.3 * np.sin(2 * np.pi * 220 * t)
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, audio.SAMPLE_RATE, 0, "NONE", None))
        file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())
    return picture, sound


def torch_generator(pack: Path, dtype: torch.dtype, **options):
    """The UNet and the VAE of a pack as diffusers modules, LoRA merged; options as `unet`'s."""
    config, weights = assets.load_generator(pack)
    weights, config = merge_lora(weights, config)
    unet = torch_networks.build("unet", config, weights, **options)
    _, vae = torch_networks.load(pack, "vae")
    return unet.to(DEVICE, dtype), vae.to(DEVICE, dtype)


def torch_loop(made, settings, report, tokens, features, task: Task, output: Path) -> float:
    """Seconds that the published way of dubbing takes, with PyTorch's networks.

    `tokens` are the identity's (1, M, D), with M = 0 for systems without one.
    """
    dtype, batch_size = getattr(torch, settings.dtype), settings.batch_size
    options = {"tokens": tokens.shape[1], "guide_scale": task.guide_scale}
    unet, vae = torch_generator(settings.pack, dtype, **options)
    picture, size = video.describe(task.video_path), made.pack.image_size
    front_end = made.pack.audio_front_end
    indices = audio.window_indices(report["frames"], picture.fps, len(features), front_end)
    image = lambda x: torch.tensor(np.stack(x)).to(DEVICE).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
    hidden, scale = generator.lower_half(size), made.vae.config.scaling_factor
    positions = audio_positions(10 * features.shape[1], features.shape[2])

    start = time.perf_counter()
    frames = list(video.read_frames(picture))  # the published programs hold them all
    boxes = [Box(*box) for box in report["boxes"]]
    crops = [crop(frame, box, size) for frame, box in zip(frames, boxes, strict=True)]
    sound = task.audio_path
    with (
        torch.inference_mode(),
        video.write_video(output, picture.width, picture.height, picture.fps, sound) as put,
    ):
        for first in range(0, len(frames), batch_size):
            part = crops[first : first + batch_size]
            masked = [np.where(hidden[..., None], 0, x).astype(np.uint8) for x in part]
            encode = lambda x: vae.encode(image(x)).latent_dist.mode() * scale
            latents = torch.cat([encode(masked), encode(part)], dim=1)
            window = audio.gather_windows(features, indices[first : first + len(part)]) + positions
            context = np.concatenate([window, tokens.repeat(len(window), axis=0)], axis=1)
            out = unet(latents, 0, torch.tensor(context).to(DEVICE, dtype)).sample
            pixels = (vae.decode(out / scale).sample / 2 + 0.5).clamp(0, 1) * 255
            for i, face in enumerate(
                pixels.round().permute(0, 2, 3, 1).byte().cpu().numpy(), first
            ):
                mask = blending.half_mask(boxes[i], frames[i].shape[:2])
                put(blending.paste(frames[i], face, boxes[i], mask))
    return time.perf_counter() - start


def embeddings(made, report: dict, settings: Settings) -> np.ndarray:
    """Those of the frames that the dubbing chose."""
    picture = video.describe(Path(report["task"]["video_path"]))
    tracker, faces = Tracker(*dub.face_networks()), {}
    for i, frame in enumerate(video.read_frames(picture)):
        points = tracker(frame).mesh.points
        if i in report["identity_from"]:
            faces[i] = identity.align(frame, points)
    chosen = np.stack([faces[i] for i in report["identity_from"]])
    return identity.embedded(dub.embedder(settings, made), chosen)


def peak_memory(pack: Path, picture: Path, sound: Path, batch_size: int, dtype: str) -> float:
    """Peak resident memory, in MiB, of the command that dubs a clip."""
    program = """
import sys
from pathlib import Path
from unavglip_jax.cli import CLI, app
app.cli(args=sys.argv[1:], config=CLI)
status = Path("/proc/self/status").read_text()
print("peak", int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""
    output = picture.with_name("memory.mp4")
    options = {"pack": pack, "video": picture, "audio": sound, "output": output, "dtype": dtype}
    options |= {"batch-size": batch_size, "preset": "ultrafast"}
    flags = [str(x) for name, value in options.items() for x in (f"--{name}", value)]
    command = [sys.executable, "-c", program, "dub", *flags, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split("peak")[1])


def main(options: Options) -> None:
    """Prints two tables."""
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pack = options.pack or random_pack(folder / "pack", 256)
        picture, sound = clip(folder, options.seconds, options.size)
        task = Task(video_path=picture, audio_path=sound, output=folder / "jax.mp4")
        settings = Settings(
            pack=pack, batch_size=options.batch_size, dtype=options.dtype, blend="half"
        )
        made = generator.load(pack, options.dtype)
        dub.dub(task, settings, made, quiet=True)  # compiles
        start = time.perf_counter()
        report = dub.dub(task, settings, made, quiet=True)
        seconds = time.perf_counter() - start

        features = hearing.encode(made.hearing, video.read_audio(sound))
        tokens = np.zeros((1, 0, features.shape[2]), np.float32)
        if made.perceiver is not None:
            tokens = np.asarray(made.perceiver(embeddings(made, report, settings)[None]))
        arguments = (settings, report, tokens, features, task, folder / "torch.mp4")
        torch_loop(made, *arguments)
        torch_seconds = torch_loop(made, *arguments)

        versions = (
            f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__}"
        )
        table = Table(
            "stage", "seconds", title=f"{versions}; {report['frames']} frames of {options.size}"
        )
        for stage, value in report["seconds"].items():
            table.add_row(stage, f"{value:.2f}")
        for name, value in (("end to end", seconds), ("PyTorch loop", torch_seconds)):
            table.add_row(name, f"{value:.2f} = {report['frames'] / value:.1f} frames/s")
        table.add_row("ratio", f"{torch_seconds / seconds:.2f}")
        console.print(table)

        table = Table("seconds of video", "peak memory (MiB)", title="memory against length")
        # Small crops, because memory is a matter of length and ten minutes are many frames.
        light = options.pack or random_pack(folder / "light", 64)
        for length in options.lengths:
            files = clip(folder, length, options.size // 2)
            peak = peak_memory(light, *files, options.batch_size, options.dtype)
            table.add_row(f"{length:.0f}", f"{peak:.0f}")
        console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
