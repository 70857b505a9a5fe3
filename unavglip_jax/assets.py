"""Packs: a folder with `pack.yaml` and one safetensors file for each network.

Everything that must agree between training and inference is in `pack.yaml` and is read from there, never
from a flag.
"""

import hashlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import yaml

from unavglip_jax import params
from unavglip_jax.config import (
    AudioFrontEnd,
    Config,
    InputError,
    NetworkConfig,
    load_yaml,
    validate,
)
from unavglip_jax.params import Params

# component -> module and class of its network; its configuration is the class of the same name + Config.
NETWORKS = {
    "unet": ("unet", "UNet"),
    "adapter": ("unet", "UNet"),  # only the names under `processor/`; the rest is `unet`'s
    "perceiver": ("perceiver", "Perceiver"),
    "vae": ("vae", "VAE"),
    "whisper": ("whisper", "Whisper"),
    "wav2lip_syncnet": ("wav2lip_syncnet", "Wav2LipSyncNet"),
    "stable_syncnet": ("stable_syncnet", "StableSyncNet"),
    "syncnet_v2": ("syncnet_v2", "SyncNetV2"),
    "vgg19": ("vgg", "VGG"),
    "lpips": ("lpips", "LPIPS"),
    "identity": ("iresnet", "IResNet"),
    "face_parsing": ("bisenet", "BiSeNet"),
    "face_detector": ("s3fd", "S3FD"),
}


class Component(Config):
    """One network of a pack.

    Attributes:
      file: its safetensors file, inside the pack's folder.
      sha256: digest of that file.
      config: the configuration of its network, by field.
      source: the file or model that the weights came from.
      licence: the terms of that source.
    """

    file: str
    sha256: str
    config: dict
    source: str
    licence: str


class IdentityEmbedding(Config):
    """Which face embeddings the Perceiver was trained on. Spaces of different embedders do not mix."""

    embedder: (
        str  # an insightface pack (buffalo_l, antelopev2), or "identity": the pack's own network
    )
    normalisation: Literal["unit", "raw"]


class Pack(Config):
    """The contents of `pack.yaml`.

    Attributes:
      system: what the networks together are.
      audio_front_end: the convention of the Whisper features.
      crop: the rule that makes the crop box from landmarks.
      mask: which part of the crop is hidden from the generator and replaced.
      image_size: side of the crop in pixels, as the generator sees it.
      identity: the identity embeddings, for systems that use them.
      components: the networks by name (see `NETWORKS`).
    """

    system: Literal["unavglip", "musetalk"]
    audio_front_end: AudioFrontEnd
    crop: Literal["musetalk_v10", "musetalk_v15"]
    mask: Literal["lower_half", "mouth_and_jaw"]
    image_size: int = 256
    identity: IdentityEmbedding | None = None
    components: dict[str, Component]


def network_of(component: str) -> tuple[type, type[NetworkConfig]]:
    """The network class of a component and its configuration class."""
    module, name = NETWORKS[component]
    module = importlib.import_module(f"unavglip_jax.models.{module}")
    return getattr(module, name), getattr(module, f"{name}Config")


def read_pack(folder: str | Path) -> Pack:
    """The description of a pack.

    Raises:
      InputError: the folder is no pack, or its description does not hold what it must.
    """
    folder = Path(folder)
    if not (folder / "pack.yaml").is_file():
        raise InputError(
            f"{folder} is not a pack: it has no pack.yaml; make one with `unavglip convert`"
        )
    pack = validate(Pack, load_yaml(folder / "pack.yaml"), str(folder / "pack.yaml"))
    for name, component in pack.components.items():
        if name not in NETWORKS:
            raise InputError(f"{folder}/pack.yaml: there is no network called {name}")
        if Path(component.file).name != component.file:
            raise InputError(f"{folder}/pack.yaml: {component.file} is not a plain file name")
    return pack


def load_component(folder: str | Path, name: str, **changes) -> tuple[NetworkConfig, Params]:
    """Configuration and parameters of one network of a pack, checked against digest and shapes.

    Args:
      folder: the pack.
      name: the component, a key of `NETWORKS`.
      **changes: configuration fields to change, such as `dtype` and `param_dtype`.

    Raises:
      InputError: the component is missing, damaged, or does not fit its configuration.
    """
    folder, pack = Path(folder), read_pack(folder)
    if name not in pack.components:
        has = ", ".join(pack.components)
        raise InputError(
            f"{folder} has no {name}; it has {has}. Add one with `unavglip convert add`"
        )
    component = pack.components[name]
    path = folder / component.file
    if not path.is_file():
        raise InputError(f"{path}: the pack's {name} is missing; convert it again")
    if (found := digest(path)) != component.sha256:
        raise InputError(
            f"{path} is damaged or was changed: its sha256 is {found}, pack.yaml says {component.sha256}"
        )
    network, kind = network_of(name)
    config = validate(kind, component.config | changes, f"{folder}/pack.yaml, {name}")
    _, shapes = params.abstract(network, config)
    if name == "adapter":
        shapes, _ = params.split("/processor/", shapes)
    loaded = params.load(path)
    wrong = sorted(shapes.keys() ^ loaded.keys()) or sorted(
        path for path in shapes if shapes[path].shape != loaded[path].shape
    )
    if wrong:
        raise InputError(
            f"{path} does not fit its configuration in pack.yaml: {', '.join(wrong[:5])}"
        )
    return config, params.cast(loaded, shapes)


def load_generator(folder: str | Path, **changes) -> tuple[NetworkConfig, Params]:
    """The UNet of a pack, with its adapter where there is one; arguments as `load_component`'s."""
    config, weights = load_component(folder, "unet", **changes)
    if "adapter" in read_pack(folder).components:
        config, adapter = load_component(folder, "adapter", **changes)
        weights = weights | adapter
    return config, weights


def write_pack(folder: str | Path, description: Mapping, networks: Mapping[str, tuple]) -> Pack:
    """Writes a new pack, complete or not at all.

    Args:
      folder: does not exist yet.
      description: the fields of `Pack` but `components`.
      networks: component -> (configuration, parameters, source, licence).

    Raises:
      InputError: the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder} exists; remove it or choose another --output")
    with replacement(folder) as partial:
        partial.mkdir()
        components = {name: write_component(partial, name, *net) for name, net in networks.items()}
        pack = Pack(**description, components=components)
        write_description(partial, pack)
    return pack


def add_components(folder: str | Path, networks: Mapping[str, tuple]) -> Pack:
    """Adds networks to a pack; `networks` as in `write_pack`.

    Raises:
      InputError: a component of that name is there.
    """
    folder, pack = Path(folder), read_pack(folder)
    for name in networks:
        if name in pack.components:
            raise InputError(
                f"{folder} has a {name} already; remove it from pack.yaml to replace it"
            )
    written = {}
    try:
        for name, network in networks.items():
            written[name] = write_component(folder, name, *network)
        pack = pack.replace(components=pack.components | written)
        write_description(folder, pack)
    except BaseException:
        for component in written.values():
            (folder / component.file).unlink(missing_ok=True)
        raise
    return pack


def write_component(
    folder: Path, name: str, config: NetworkConfig, weights: Params, source: str, licence: str
) -> Component:
    """Writes one network's file and describes it."""
    path = folder / f"{name}.safetensors"
    params.save(path, weights)
    fields = config.model_dump(mode="json", exclude={"dtype", "param_dtype"})
    return Component(
        file=path.name, sha256=digest(path), config=fields, source=source, licence=licence
    )


def write_description(folder: Path, pack: Pack) -> None:
    """Writes `pack.yaml`."""
    with replacement(folder / "pack.yaml") as partial:
        partial.write_text(yaml.safe_dump(pack.model_dump(mode="json"), sort_keys=False, width=100))


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """A path beside `path` that takes its name when the block ends well, and goes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield scratch / path.name
        os.replace(scratch / path.name, path)
    finally:
        shutil.rmtree(scratch)


def digest(path: str | Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
