"""The `unavglip` command."""

import sys
from pathlib import Path
from typing import Literal

import tyro

from unavglip_jax import assets
from unavglip_jax.config import InputError

app = tyro.extras.SubcommandApp()
convert = tyro.extras.SubcommandApp()
app.command(convert, name="convert", help="Published checkpoints to packs, and back.")


@convert.command(name="musetalk")
def convert_musetalk(
    version: Literal["v10", "v15"],
    unet: Path,
    vae: Path,
    whisper: Path,
    output: Path,
    unet_config: Path | None = None,
    vae_config: Path | None = None,
) -> None:
    """Make a pack of MuseTalk from its published files.

    Args:
      version: v10 or v15; no tensor shows it, and sound and crop are prepared differently.
      unet: pytorch_model.bin (v10) or unet.pth (v15).
      vae: sd-vae-ft-mse, .bin or .safetensors.
      whisper: tiny.pt (OpenAI), or the transformers weights.
      output: folder of the new pack.
      unet_config: musetalk.json, checked against the weights.
      vae_config: the VAE's config.json.
    """
    from unavglip_jax.convert import packs

    packs.musetalk_pack(version, unet, vae, whisper, output, unet_config, vae_config)
    print_pack(output)


@convert.command(name="unavglip")
def convert_unavglip(
    checkpoint: Path,
    vae: Path,
    whisper: Path,
    output: Path,
    embedder: Literal["buffalo_l", "antelopev2"] = "buffalo_l",
    unet_config: Path | None = None,
    vae_config: Path | None = None,
) -> None:
    """Make a pack of UnAvgLip from an adapter checkpoint.

    Args:
      checkpoint: pytorch_model.bin of an UnAvgLip training run (1313 keys, MuseTalk's UNet included).
      vae: sd-vae-ft-mse, .bin or .safetensors.
      whisper: tiny.pt (OpenAI), or the transformers weights.
      output: folder of the new pack.
      embedder: the insightface pack whose unit-norm embeddings the adapter is used with.
      unet_config: musetalk.json, checked against the weights.
      vae_config: the VAE's config.json.
    """
    from unavglip_jax.convert import packs

    packs.unavglip_pack(checkpoint, vae, whisper, output, embedder, unet_config, vae_config)
    print_pack(output)


@convert.command(name="add")
def convert_add(pack: Path, files: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Add networks to a pack: SyncNets, face parsing and detection, perceptual and identity networks.

    Args:
      pack: an existing pack.
      files: published checkpoints; what each is, is found from its contents. LPIPS needs its heads
        and torchvision's VGG16 in one call.
    """
    from unavglip_jax.convert import packs

    packs.add_files(pack, files)
    print_pack(pack)


@convert.command(name="export")
def convert_export(pack: Path, output: Path) -> None:
    """Write the adapter of a pack as the checkpoint that UnAvgLip's own loader expects.

    Args:
      pack: a pack with an adapter.
      output: the pytorch_model.bin to write.
    """
    from unavglip_jax.convert import packs

    keys = packs.export_adapter(pack, output)
    print(f"wrote {output}: {keys} keys")


@app.command
def parity(folder: tyro.conf.Positional[Path]) -> None:
    """Check every network against stored outputs of the original PyTorch networks.

    Args:
      folder: holds vector folders, each with manifest.json and io.npz, at any depth.
    """
    from unavglip_jax.convert import parity

    if not parity.check(folder):
        sys.exit(1)


def print_pack(folder: Path) -> None:
    """Prints what a pack holds."""
    import rich
    from rich.table import Table

    pack = assets.read_pack(folder)
    table = Table("network", "file", "MB", "sha256", "licence", title=f"{folder}: {pack.system}")
    for name, part in pack.components.items():
        size = (Path(folder) / part.file).stat().st_size / 1e6
        table.add_row(name, part.file, f"{size:.1f}", part.sha256[:12], part.licence)
    rich.print(table)


def main() -> None:
    """Runs one command; bad input is one sentence and exit code 1."""
    try:
        app.cli(prog="unavglip", config=(tyro.conf.OmitArgPrefixes,))
    except InputError as error:
        sys.exit(f"error: {error}")
