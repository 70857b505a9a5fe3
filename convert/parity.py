"""Every network against stored outputs of the original PyTorch networks.

A vector folder holds `manifest.json` (the state dict of a real checkpoint by name and shape, the network's
configuration, and the inputs) and `io.npz` (the outputs). Weights and inputs follow a rule from a seed, so
that nothing large is stored. Which network a folder is for is found from its keys.
"""

import json
import math
import sys
import time
import wave
import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from unavglip_jax import params
from unavglip_jax.assets import network_of
from unavglip_jax.config import InputError
from unavglip_jax.convert import (
    bisenet,
    s3fd,
    stable_syncnet,
    syncnet_v2,
    unavglip,
    vae,
    wav2lip,
    whisper,
)
from unavglip_jax.convert.formats import identify
from unavglip_jax.convert.state_dict import ConversionError, StateDict
from unavglip_jax.media import audio
from unavglip_jax.models.whisper import sinusoids

TOLERANCE = 1e-4  # of max|a - b| / max|b|, float32

Outputs = dict[str, np.ndarray]


class Row(NamedTuple):
    """What the check of one folder found."""

    name: str
    parameters: int = 0
    consumed: int = 0
    left_over: int = 0
    error: float = math.nan
    seconds: float = 0.0
    verdict: str = "no network yet"


# ---- the rule ---------------------------------------------------------------------------------------


def generator(name: str, seed: int) -> np.random.Generator:
    """The random numbers that belong to a name."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))


def weight(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The tensor of a state-dict key: fan-in scaled matrices, norms near 1, biases near 0."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    x = generator(key, seed).standard_normal(tuple(shape), dtype=np.float32)
    if key.endswith("running_var"):
        return 1 + 0.1 * np.abs(x)
    if key.endswith("running_mean"):
        return 0.1 * x
    if len(shape) >= 2:
        return x / np.float32(np.sqrt(math.prod(shape[1:])))
    return np.float32(0.1) * x + np.float32(key.endswith("weight"))


def normal(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A standard-normal input array."""
    return generator(f"input:{name}", seed).standard_normal(tuple(shape), dtype=np.float32)


def uniform(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An input array uniform in [0, 1)."""
    return generator(f"input:{name}", seed).random(tuple(shape), dtype=np.float32)


def draw(manifest: dict) -> dict[str, np.ndarray]:
    """The inputs of a manifest, channels last."""
    arrays = {}
    for name, (kind, shape, *affine) in manifest["inputs"].items():
        x = {"normal": normal, "uniform": uniform}[kind](name, shape, manifest["seed"])
        if affine:
            x = x * np.float32(affine[0]) + np.float32(affine[1])
        arrays[name] = np.moveaxis(x, 1, -1) if x.ndim > 3 else x
    return arrays


def state_dict(manifest: dict) -> StateDict:
    """The weights of a manifest."""
    processors = {name: i for i, name in enumerate(manifest.get("processors", []))}

    def name(
        key,
    ):  # an UnAvgLip processor's tensor has two names and follows the rule of the second
        layer, dot, rest = key.removeprefix("unet.").partition(".processor.")
        known = dot and f"{layer}.processor" in processors
        return f"adapter_modules.{processors[f'{layer}.processor']}.{rest}" if known else key

    def tensor(key, shape):
        if key.endswith(("positional_embedding", "embed_positions.weight")):
            return sinusoids(*shape) if key.startswith("encoder.") else np.zeros(shape, np.float32)
        return weight(name(key), tuple(shape), manifest["seed"])

    return {key: tensor(key, shape) for key, shape in manifest["keys"].items()}


# ---- one function for each network: manifest -> parameters and the outputs under the stored names ------


def run(component: str, config, weights, method: Callable, *inputs) -> np.ndarray:
    """One jitted call of `method(model, *inputs)`; its outputs channels first, as PyTorch's."""
    graphdef, _ = params.abstract(network_of(component)[0], config)
    out = jax.jit(lambda w, *x: method(params.bind(graphdef, w), *x))(weights, *inputs)
    return jax.tree.map(
        lambda x: np.moveaxis(np.asarray(x), -1, 1) if x.ndim > 3 else np.asarray(x), out
    )


def unavglip_outputs(manifest: dict, source: StateDict, folder: Path) -> tuple[int, Outputs]:
    """The adapter checkpoint: identity tokens, the adapted UNet and the bare one."""
    found = unavglip.convert(source, manifest["config"], manifest["resampler"]["dim_head"])
    x = draw(manifest)
    perceive = partial(run, "perceiver", found.perceiver_config, found.perceiver)
    tokens = perceive(lambda m, e: m(e), x["id_embeds"])
    time_and_sound = manifest["timestep"], x["audio"]
    scales = manifest["lora_scale"], manifest["ip_scale"]
    adapted = partial(run, "unet", found.unet_config, found.unet)
    base = found.unet_config.replace(lora_rank=0, identity="none")
    bare = partial(run, "unet", base, params.split("/processor/", found.unet)[1])
    outputs = {
        "id_tokens": tokens,
        "out": adapted(lambda m, x, e: m(x, *time_and_sound, e, *scales), x["latents"], tokens),
        "out_base": bare(lambda m, x: m(x, *time_and_sound), x["latents"]),
    }
    return params.count(found.unet) + params.count(found.perceiver), outputs


def vae_outputs(manifest: dict, source: StateDict, folder: Path) -> tuple[int, Outputs]:
    """Moments of the image and the decoded latents."""
    config, weights = vae.convert(source, manifest["config"])
    x = draw(manifest)
    mean, logvar = run("vae", config, weights, lambda m, x: m.moments(x), x["image"])
    scaled = x["latents"] * np.float32(config.scaling_factor)
    decoded = run("vae", config, weights, lambda m, z: m.decode(z), scaled)
    return params.count(weights), {"mean": mean, "logvar": logvar, "decoded": decoded}


def whisper_outputs(manifest: dict, source: StateDict, folder: Path) -> tuple[int, Outputs]:
    """From a recording to features (v1.0) or to the windows of video frames (v1.5)."""
    config, weights = whisper.convert(source)
    speech = [*folder.glob("speech.wav"), *sorted(folder.parent.glob("*/speech.wav"))]
    if not speech:
        raise ConversionError(f"{folder} and the folders beside it have no speech.wav")
    with wave.open(str(speech[0])) as file:
        samples = np.frombuffer(file.readframes(-1), "<i2").astype(np.float32) / 32768

    def features(samples, front_end):
        segments, steps = audio.whisper_segments(samples, front_end, config.n_mels)
        encode = lambda m, mel: m(mel, front_end)[0].swapaxes(0, 1)
        states = [run("whisper", config, weights, encode, part[None]) for part in segments]
        return np.concatenate(states, axis=1)[:, :steps].swapaxes(0, 1)

    if "dims" in manifest:
        long = features(np.resize(samples, 33 * audio.SAMPLE_RATE), "v10")
        short = features(samples, "v10")
        outputs = {
            "mel": audio.whisper_log_mel(samples).T,
            "hf_mel": audio.whisper_segments(samples, "v15")[0][0][:1000].T,
            "features": short[::20],
            "features_shape": np.array(short.shape),
            "features33_shape": np.array(long.shape),
            "features33_boundary": long[1498:1502],
        }
        return params.count(weights), outputs

    states, outputs = features(samples, "v15"), {}
    for key, frames in np.load(folder / "io.npz").items():
        if key.startswith("frames_"):
            fps = Fraction(key.removeprefix("frames_"))
            count = audio.published_window_count(len(samples), fps, "v15")
            lead = 2 * math.ceil(audio.STEP_RATE / fps)
            indices = audio.window_indices(count, fps, len(states), "v15", lead)[frames[1:]]
            outputs[key] = np.array([count, *frames[1:]])
            outputs[key.replace("frames", "chunks")] = audio.gather_windows(states, indices)[:, ::5]
    return params.count(weights), outputs


def wav2lip_outputs(manifest: dict, source: StateDict, folder: Path) -> tuple[int, Outputs]:
    """The two embeddings of Wav2Lip's expert."""
    config, weights = wav2lip.convert(source)
    x = draw(manifest)
    sound, face = run(
        "wav2lip_syncnet", config, weights, lambda m, a, f: m(a, f), x["mel"], x["face"]
    )
    return params.count(weights), {"audio_embedding": sound, "face_embedding": face}


def syncnet_v2_outputs(manifest: dict, source: StateDict, folder: Path) -> tuple[int, Outputs]:
    """The two embeddings of SyncNet v2."""
    config, weights = syncnet_v2.convert(source)
    x = draw(manifest)
    embed = partial(run, "syncnet_v2", config, weights)
    outputs = {
        "audio_embedding": embed(lambda m, a: m.audio(a), x["mfcc"]),
        "lip_embedding": embed(lambda m, f: m.lip(f), x["lip"]),
    }
    return params.count(weights), outputs


def stable_syncnet_outputs(manifest: dict, source: StateDict, folder: Path) -> tuple[int, Outputs]:
    """The two embeddings of StableSyncNet."""
    config, weights = stable_syncnet.convert(source)
    x = draw(manifest)
    sound, face = run(
        "stable_syncnet", config, weights, lambda m, a, f: m(a, f), x["audio"], x["image"]
    )
    return params.count(weights), {"audio_embedding": sound, "vision_embedding": face}


def bisenet_outputs(manifest: dict, source: StateDict, folder: Path) -> tuple[int, Outputs]:
    """Class logits, of which every fourth row and column is stored, and the classes."""
    config, weights = bisenet.convert(source)
    logits = run(
        "face_parsing", config, weights, lambda m, x: m.full_size(x), draw(manifest)["image"]
    )
    outputs = {"out": logits[:, :, ::4, ::4], "argmax": logits.argmax(axis=1).astype(np.uint8)}
    return params.count(weights), outputs


def s3fd_outputs(manifest: dict, source: StateDict, folder: Path) -> tuple[int, Outputs]:
    """Class logits and boxes at six strides."""
    config, weights = s3fd.convert(source)
    pairs = run("face_detector", config, weights, lambda m, x: m(x), draw(manifest)["image"])
    flat = [array for pair in pairs for array in pair]
    return params.count(weights), {f"o{i}": array for i, array in enumerate(flat)}


NETWORKS = {
    "adapter": unavglip_outputs,
    "vae": vae_outputs,
    "whisper": whisper_outputs,
    "wav2lip_syncnet": wav2lip_outputs,
    "syncnet_v2": syncnet_v2_outputs,
    "stable_syncnet": stable_syncnet_outputs,
    "face_parsing": bisenet_outputs,
    "face_detector": s3fd_outputs,
}


# ---- the check --------------------------------------------------------------------------------------


def check_folder(folder: Path) -> Row:
    """Converts and runs the network of one vector folder and compares every stored output."""
    manifest = json.loads((folder / "manifest.json").read_text())
    found = identify(manifest["keys"])
    if found is None or found.component not in NETWORKS:
        return Row(folder.name)
    start = time.monotonic()
    try:
        with jax.default_matmul_precision("highest"):
            count, outputs = NETWORKS[found.component](manifest, state_dict(manifest), folder)
    except (ConversionError, KeyError) as error:
        left_over = error.left_over if isinstance(error, ConversionError) else 0
        reason = f"the manifest has no {error}" if isinstance(error, KeyError) else str(error)
        seconds = time.monotonic() - start
        return Row(folder.name, left_over=left_over, seconds=seconds, verdict=f"FAIL: {reason}")
    with np.load(folder / "io.npz") as stored:
        expected = dict(stored)
    if (folder / "window_indices.json").is_file():
        expected |= published_windows(folder)
        outputs |= our_windows(folder, outputs["features_shape"][0])
    worst = max(difference(outputs.get(name), theirs) for name, theirs in expected.items())
    verdict = "pass" if worst <= TOLERANCE else "FAIL"
    seconds = time.monotonic() - start
    return Row(folder.name, count, len(manifest["keys"]), 0, worst, seconds, verdict)


def published_windows(folder: Path) -> Outputs:
    """Stored feature indices of every video frame, by frame rate."""
    stored = json.loads((folder / "window_indices.json").read_text())
    return {f"windows at {fps}": np.array(indices) for fps, indices in stored.items()}


def our_windows(folder: Path, steps: int) -> Outputs:
    """The same from our rule."""
    outputs = {}
    for name, theirs in published_windows(folder).items():
        fps = Fraction(name.removeprefix("windows at "))
        outputs[name] = audio.window_indices(len(theirs), fps, int(steps), "v10")
    return outputs


def difference(ours: np.ndarray | None, theirs: np.ndarray) -> float:
    """max|a - b| / max|b|; for integers, the share of entries that differ."""
    if ours is None or ours.shape != theirs.shape:
        return math.inf
    if not np.issubdtype(theirs.dtype, np.floating):
        return float(np.mean(ours != theirs))
    error = np.abs(ours.astype(np.float64) - theirs).max() / np.abs(theirs).max()
    return float(error) if np.isfinite(error) else math.inf


def check(folder: str | Path) -> bool:
    """Checks every vector folder at or below `folder`, prints a table, and says whether all passed.

    Raises:
      InputError: there is none.
    """
    folders = sorted(path.parent for path in Path(folder).rglob("manifest.json"))
    if not folders:
        raise InputError(f"{folder} holds no vector folder (manifest.json beside io.npz)")
    table = Table("network", "parameters", "keys", "left over", "largest error", "s", "verdict")
    rows = []
    for path in folders:
        row = check_folder(path)
        rows.append(row)
        error = "" if math.isnan(row.error) else f"{row.error:.1e}"
        numbers = [f"{row.parameters:,}", str(row.consumed), str(row.left_over), error]
        table.add_row(row.name, *numbers, f"{row.seconds:.1f}", row.verdict)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return not any(row.verdict.startswith("FAIL") for row in rows)
