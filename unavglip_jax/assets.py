"""Packs, a folder with `pack.yaml` and one safetensors file for each network; and files to download.

Everything that must agree between training and inference is in `pack.yaml` and is read from there, never
from a flag.
"""

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

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
from unavglip_jax.params import Network, Params

DEMO = Path(__file__).parent / "demo_pack"  # small networks, trained on drawn heads

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


def load_network(folder: str | Path, name: str, **changes) -> Network:
    """One network of a pack, ready to be called; arguments and errors as `load_component`'s."""
    config, weights = load_component(folder, name, **changes)
    graphdef, _ = params.abstract(network_of(name)[0], config)
    return Network(config, graphdef, weights)


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

    A face embedder becomes the pack's own, if it has not been used with another.

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
        if "identity" in networks and pack.identity is None:
            own = IdentityEmbedding(embedder="identity", normalisation="unit")
            pack = pack.replace(identity=own)
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
    fields = config.model_dump(mode="json", exclude={"dtype", "param_dtype", "remat"})
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


class Download(NamedTuple):
    """A file that somebody else publishes and that is fetched when it is first needed.

    Attributes:
      package: the Python package whose wheel has it, as pip is asked for it. It is not installed.
      member: the file inside the wheel.
      sha256: digest of the file.
      licence: its terms.
    """

    package: str
    member: str
    sha256: str
    licence: str


MEDIAPIPE = "mediapipe==0.10.21"  # the last version whose wheel has the networks
DOWNLOADS = {
    "face_detection_short_range.tflite": Download(
        MEDIAPIPE,
        "mediapipe/modules/face_detection/face_detection_short_range.tflite",
        "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
        "Apache-2.0",
    ),
    "face_landmark.tflite": Download(
        MEDIAPIPE,
        "mediapipe/modules/face_landmark/face_landmark.tflite",
        "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
        "Apache-2.0",
    ),
}
# Whose wheel does not matter, the file is the same in all; so every machine asks for the same one.
WHEEL = ("--no-deps", "--only-binary", ":all:", "--python-version", "3.11")
WHEEL += ("--platform", "manylinux_2_28_x86_64")
LONGEST = 600  # seconds that a download may take


def fetch(name: str) -> Path:
    """The path of a file of `DOWNLOADS`, which is downloaded if it is not here yet.

    It is looked for in the folder that the environment variable UNAVGLIP_ASSETS names, then in the cache:
    UNAVGLIP_CACHE, or else ~/.cache/unavglip_jax. With UNAVGLIP_ASSETS set nothing is downloaded. Whatever
    is returned has the right digest.

    Raises:
      InputError: it cannot be had, or the one in UNAVGLIP_ASSETS is another file.
    """
    if name not in DOWNLOADS:
        raise InputError(f"there is no download called {name}; there are {', '.join(DOWNLOADS)}")
    wanted = DOWNLOADS[name]
    offline = os.environ.get("UNAVGLIP_ASSETS")
    cache = cache_folder()
    if offline and (path := Path(offline).expanduser() / name).is_file():
        if (found := digest(path)) != wanted.sha256:
            raise InputError(
                f"{path} is not the file it should be: its sha256 is {found}, not {wanted.sha256}; "
                f"replace it by {wanted.member} of the wheel of {wanted.package}"
            )
        return path
    path = cache / name
    if path.is_file() and digest(path) == wanted.sha256:
        return path
    try:
        if offline:
            raise DownloadError("nothing is downloaded while UNAVGLIP_ASSETS is set")
        download(wanted.package, cache)
    except (DownloadError, OSError) as error:
        by_hand = " ".join(("pip download", *WHEEL, wanted.package))
        folder = offline or "a folder of your choice that UNAVGLIP_ASSETS names"
        raise InputError(
            f"{name} is neither in {folder} nor, undamaged, in the cache {cache}, and could not be "
            f"downloaded: {error}; by hand: `{by_hand}`, unzip the wheel, and put {wanted.member} into "
            "either folder"
        ) from error
    return path


def cache_folder() -> Path:
    """Where downloads and compiled programs are kept."""
    return Path(os.environ.get("UNAVGLIP_CACHE") or "~/.cache/unavglip_jax").expanduser()


class DownloadError(RuntimeError):
    """Why a download failed, in one line."""


def download(package: str, cache: Path) -> None:
    """Puts every file of `DOWNLOADS` that a package's wheel has into the cache, each complete or not at all.

    Processes that do so at the same time do not disturb each other; each replaces a file by the same file.

    Raises:
      DownloadError: there is no such wheel to be had, or it has other files than it should.
      OSError: the cache cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download.", dir=cache) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command = [*pip, "--no-input", *WHEEL, "--dest", scratch, package]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
        except subprocess.TimeoutExpired as error:
            raise DownloadError(f"pip took longer than {LONGEST} s") from error
        wheels = sorted(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in said if line.startswith("ERROR")] or said
            raise DownloadError(f"pip says {errors[-1]!r}" if errors else "pip brought no wheel")
        for name, file in DOWNLOADS.items():
            if file.package == package:
                with replacement(cache / name) as partial:
                    unpack(wheels[0], file, partial)


def unpack(wheel: Path, file: Download, path: Path) -> None:
    """Writes a file of a wheel to a path.

    Raises:
      DownloadError: the wheel is damaged or has another file.
    """
    try:
        with zipfile.ZipFile(wheel) as members:
            path.write_bytes(members.read(file.member))
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(f"{wheel.name} has no {file.member} that can be read") from error
    if (found := digest(path)) != file.sha256:
        raise DownloadError(
            f"the sha256 of {file.member} in {wheel.name} is {found}, not {file.sha256}"
        )
