"""From published files to packs, and from a pack back to UnAvgLip's checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from unavglip_jax import assets, params
from unavglip_jax.config import InputError
from unavglip_jax.convert import (
    arcface,
    bisenet,
    musetalk,
    s3fd,
    stable_syncnet,
    syncnet_v2,
    unavglip,
    vae,
    vgg,
    wav2lip,
    whisper,
)
from unavglip_jax.convert.formats import FORMATS, identify, read_as
from unavglip_jax.convert.state_dict import StateDict, read


def musetalk_pack(
    version: str,
    unet_file: Path,
    vae_file: Path,
    whisper_file: Path,
    output: Path,
    unet_config: Path | None,
    vae_config: Path | None,
) -> None:
    """Writes a pack of MuseTalk 1.0 ("v10") or 1.5 ("v15"); see `cli.convert_musetalk`."""
    refuse_existing(output)
    source, found = read_as(unet_file, "unet")
    converted = musetalk.convert(source, musetalk.read_published(unet_config), str(unet_file))
    networks = {"unet": (*converted, unet_file.name, found.licence)}
    networks |= common_networks(vae_file, whisper_file, vae_config)
    description = {
        "system": "musetalk",
        "audio_front_end": version,
        "crop": f"musetalk_{version}",
        "mask": "lower_half",
    }
    assets.write_pack(output, description, networks)


def unavglip_pack(
    checkpoint: Path,
    vae_file: Path,
    whisper_file: Path,
    output: Path,
    embedder: str,
    unet_config: Path | None,
    vae_config: Path | None,
) -> None:
    """Writes a pack of UnAvgLip from its adapter checkpoint; see `cli.convert_unavglip`."""
    refuse_existing(output)
    source, found = read_as(checkpoint, "adapter")
    published = musetalk.read_published(unet_config)
    converted = unavglip.convert(source, published, what=str(checkpoint))
    adapter, base = params.split("/processor/", converted.unet)
    base_config = converted.unet_config.replace(lora_rank=0, identity="none")
    origin = (checkpoint.name, found.licence)
    networks = {
        "unet": (base_config, base, *origin),
        "adapter": (converted.unet_config, adapter, *origin),
        "perceiver": (converted.perceiver_config, converted.perceiver, *origin),
        **common_networks(vae_file, whisper_file, vae_config),
    }
    description = {
        "system": "unavglip",
        "audio_front_end": "v10",
        "crop": "musetalk_v10",
        "mask": "lower_half",
        "identity": {"embedder": embedder, "normalisation": "unit"},
    }
    assets.write_pack(output, description, networks)


def refuse_existing(output: Path) -> None:
    """Fails before minutes of work rather than after."""
    if output.exists():
        raise InputError(f"{output} exists; remove it or choose another --output")


def common_networks(
    vae_file: Path, whisper_file: Path, vae_config: Path | None
) -> dict[str, tuple]:
    """The VAE and the audio encoder, as `assets.write_pack` takes them."""
    source, vae_format = read_as(vae_file, "vae")
    auto_encoder = vae.convert(source, musetalk.read_published(vae_config), str(vae_file))
    source, whisper_format = read_as(whisper_file, "whisper")
    encoder = whisper.convert(source, str(whisper_file))
    return {
        "vae": (*auto_encoder, vae_file.name, vae_format.licence),
        "whisper": (*encoder, whisper_file.name, whisper_format.licence),
    }


CONVERTERS = {
    "wav2lip_syncnet": wav2lip.convert,
    "stable_syncnet": stable_syncnet.convert,
    "syncnet_v2": syncnet_v2.convert,
    "face_parsing": bisenet.convert,
    "face_detector": s3fd.convert,
    "vgg19": vgg.convert,
    "identity": arcface.convert,
}


def add_files(pack: Path, files: Sequence[Path]) -> None:
    """Adds the networks of published files to a pack; see `cli.convert_add`."""
    networks, vgg16, heads = {}, None, None
    for path in files:
        if path.suffix == ".onnx":
            licence = "non-commercial research only (insightface)"
            networks["identity"] = (*arcface.read_onnx(path), path.name, licence)
            continue
        source = read(path)
        found = identify(source)
        if found is None:
            known = ", ".join(f.title for f in FORMATS)
            raise InputError(f"{path} is none of the formats that can be read: {known}")
        if found.component == "vgg16":
            vgg16 = (path, source)
        elif found.component == "lpips":
            heads = (path, source)
        elif found.component in CONVERTERS:
            converted = CONVERTERS[found.component](source, str(path))
            networks[found.component] = (*converted, path.name, found.licence)
        else:
            raise InputError(
                f"{path} is {found.title}, which is part of a new pack; make one instead"
            )
    if (vgg16 is None) != (heads is None):
        raise InputError(
            "LPIPS needs both torchvision's VGG16 and the LPIPS heads; give both files"
        )
    if vgg16 and heads:
        converted = vgg.convert_lpips(vgg16[1], heads[1], f"{vgg16[0]} with {heads[0]}")
        names = f"{vgg16[0].name}, {heads[0].name}"
        networks["lpips"] = (*converted, names, "BSD-3-Clause and BSD-2-Clause")
    assets.add_components(pack, networks)


def export_adapter(pack: Path, output: Path) -> int:
    """Writes UnAvgLip's `pytorch_model.bin` from a pack and returns its number of keys.

    Raises:
      InputError: the pack has no adapter, or the output exists.
    """
    import torch

    refuse_existing(output)
    if "adapter" not in assets.read_pack(pack).components:
        raise InputError(f"{pack} has no adapter to export; it is not a pack of UnAvgLip")
    config, unet = assets.load_generator(pack)
    _, perceiver = assets.load_component(pack, "perceiver")
    exported = unavglip.export(config, unet, perceiver)
    shared = {id(value): value for value in exported.values()}  # some have several names
    tensors = {number: torch.tensor(value) for number, value in shared.items()}
    state: StateDict = {key: tensors[id(value)] for key, value in exported.items()}
    with assets.replacement(output) as partial:
        torch.save(state, partial)
    return len(state)
