"""The demonstration pack from nothing: `python -m unavglip_jax.training.demo --folder runs/demo`.

Drawn heads speak, and everything is learnt from them: an audio encoder from speech alone, a face embedder
from some of the heads, an auto-encoder, the UNet and UnAvgLip's adapter over it from all of them and from
warped copies of a photograph, and an expert of lip sync from fewer people who speak for longer. What each
run does is in `configs/train/demo_*.yaml`. A second run goes on where the first one stopped.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console

from unavglip_jax import assets, configs
from unavglip_jax.data import clips, preprocess, synth
from unavglip_jax.data.settings import PreprocessSettings
from unavglip_jax.models.whisper import WhisperConfig
from unavglip_jax.training import export, hearing, loop, settings

SEED = 11  # of the heads; those that are measured have another
SIZE = 256  # pixels a side of their pictures
WIDE = 1.5  # how far the generator's open their mouths: it opens mouths less than it saw
DESCRIPTION = {
    "system": "musetalk",
    "audio_front_end": "v15",
    "crop": "musetalk_v15",
    "mask": "mouth_and_jaw",
    "image_size": 128,
    "identity": {"embedder": "identity", "normalisation": "unit"},
}
WHISPER = WhisperConfig(n_audio_state=128, n_audio_head=4, n_audio_layer=0)
LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Options:
    """What to make.

    Attributes:
      folder: of everything; a second run goes on in it.
      identities: drawn people, of one second each.
      few: of these, those that the embedder learns from.
      photographs: warped copies of the photograph, of one second each, that the generator learns from.
      speakers: people of 30 s, that the expert learns from.
      recordings: of up to 30 s, that the audio encoder learns from.
      scale: factor of all numbers of steps.
    """

    folder: Path = Path("runs/demo")
    identities: int = 1300
    few: int = 320
    photographs: int = 320
    speakers: int = 120
    recordings: int = 800
    scale: float = 1.0


def main(options: Options) -> None:
    """Runs all stages that are not done."""
    console, began, folder = Console(), time.perf_counter(), options.folder

    def done(stage: str) -> None:
        console.print(f"{stage}: done after {time.perf_counter() - began:.0f} s")

    whisper = hearing_pack(folder / "packs/whisper", options)
    done("audio encoder")
    short = Footage(folder / "heads", clips=1, seconds=1.0, articulation=WIDE)
    plain = data_set(folder / "sets/plain", short, options.few, whisper, embeddings=0)
    done("the first heads")
    embedder = trained("identity", folder, whisper, plain, options)
    done("face embedder")
    short = short._replace(photographs=options.photographs)
    data = data_set(folder / "sets/embedded", short, options.identities, embedder, embeddings=4)
    done("all heads, and the photograph's")
    vae = trained("vae", folder, embedder, data, options)
    done("auto-encoder")
    unet = trained("unet", folder, vae, data, options)
    done("UNet")
    sharp = trained("sharpen", folder, unet, data, options)
    done("UNet, sharper")
    adapter = trained("adapter", folder, sharp, data, options)
    done("adapter")
    long = Footage(folder / "speakers", clips=5, seconds=6.0)
    spoken = data_set(folder / "sets/long", long, options.speakers, adapter, embeddings=0)
    done("speakers")
    whole = trained("syncnet", folder, adapter, spoken, options)
    done("expert")
    shrink(whole, folder / "packs/demo")
    console.print(f"wrote {folder / 'packs/demo'}")


def hearing_pack(folder: Path, options: Options) -> Path:
    """A pack with nothing but the audio encoder."""
    if not folder.exists():
        steps = max(2, round(8000 * options.scale))
        weights, report = hearing.pretrain(WHISPER, "v15", options.recordings, steps)
        print(report)
        source = f"learnt from {options.recordings} synthetic recordings, {steps} steps"
        assets.write_pack(folder, DESCRIPTION, {"whisper": (WHISPER, weights, source, LICENCE)})
    return folder


class Footage(NamedTuple):
    """Where drawn people are kept, how often, how long and how widely each speaks; and photographs too."""

    folder: Path
    clips: int
    seconds: float
    articulation: float = 1.0
    photographs: int = 0


def data_set(folder: Path, footage: Footage, people: int, pack: Path, embeddings: int) -> Path:
    """The clips of the first so many people, drawn if there is no data set yet; a person is a folder."""
    if not (folder / clips.NAME).exists():  # there may be more people since
        videos, count, seconds, articulation, photographs = footage
        draw = lambda number, where, share: synth.synthesise(
            number, count, seconds, SIZE, where, SEED,
            photograph_share=share, articulation=articulation,
        )  # fmt: skip
        draw(people, videos, 0.0)
        if photographs:
            draw(photographs, videos / "photographs", 1.0)
        chosen = PreprocessSettings(
            min_seconds=0.48, min_face=60, identities=embeddings, max_offset=None, people="folder"
        )
        preprocess.preprocess(videos, folder, pack, chosen, quiet=True)
    return folder


def trained(name: str, folder: Path, pack: Path, data: Path, options: Options) -> Path:
    """The pack with what `demo_{name}.yaml` trains in it."""
    result = folder / "packs" / name
    if not result.exists():
        path = Path(configs.__file__).parent / f"train/demo_{name}.yaml"
        found = settings.read(path)
        found = found.replace(
            objective=found.objective.replace(pack=pack),
            data=found.data.replace(path=data),
            output=folder / "runs" / name,
            steps=max(2, round(found.steps * options.scale)),
        )
        loop.train(found)
        export.export(found.output, result)
    return result


def shrink(pack: Path, output: Path) -> None:
    """A copy of a pack whose weights are kept in float16, of half the size."""
    if output.exists():
        return
    found, networks = assets.read_pack(pack), {}
    for name, component in found.components.items():
        config, weights = assets.load_component(pack, name)
        half = {k: jnp.asarray(v, jnp.float16) for k, v in weights.items()}
        networks[name] = (config, half, component.source, LICENCE)
    assets.write_pack(output, found.model_dump(mode="json", exclude={"components"}), networks)


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(assets.cache_folder() / "compiled"))
    main(tyro.cli(Options))
