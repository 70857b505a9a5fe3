"""The published files that packs are made from: listing them, fetching them, making packs, checking packs.

A file's sha256 is in the table only where two public records that do not depend on each other agree on it,
or where it is part of the file's own address. Otherwise the hub is asked: its ETag is the sha256 of a large
file and the git blob of a small one. Where nobody can say, the digest that was found is shown, and the user
decides with `--accept-digest`; nothing is taken on trust silently.
"""

import fcntl
import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from unavglip_jax import assets
from unavglip_jax.assets import DownloadError
from unavglip_jax.config import InputError


class File(NamedTuple):
    """A published file.

    Attributes:
      path: where it lies below UNAVGLIP_ASSETS and the cache.
      becomes: the network of a pack that it is or is part of (`assets.NETWORKS`), or what else it is for.
      megabytes: its size, for information.
      licence: its terms, as far as its authors state them.
      url: where it comes from, on the hub (see `HUB`) or elsewhere.
      sha256: its digest, if known.
      commercial: whether the terms allow more than research.
      member: the file's name in the zip archive that `url` is.
    """

    path: str
    becomes: str
    megabytes: float
    licence: str
    url: str
    sha256: str | None = None
    commercial: bool = True
    member: str | None = None


HUB = re.compile(r"https://huggingface\.co/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def on_hub(repository: str, revision: str, path: str) -> str:
    """The address of a file on the hub."""
    return f"https://huggingface.co/{repository}/resolve/{revision}/{path}"


MUSETALK = ("TMElyralab/MuseTalk", "3ef28bc5cff08c90ad8178a25f1b570cd800170f")
VAE = ("stabilityai/sd-vae-ft-mse", "31f26fdeee1355a5c34592e401dd41e45d25a493")
BISENET = ("ManyOtherFunctions/face-parse-bisent", "0073b233a5a3c4b1377d4dbf49245017938a72b5")
LATENTSYNC = ("ByteDance/LatentSync-1.5", "main")
WHISPER = (
    "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9"  # its address has its sha256
)
OPENRAIL = "CreativeML OpenRAIL-M"

FILES = {
    "musetalk_v10_unet": File(
        "musetalk/pytorch_model.bin", "unet", 3400, OPENRAIL,
        on_hub(*MUSETALK, "musetalk/pytorch_model.bin"),
        "0ee7d5ea03ea75d8dca50ea7a76df791e90633687a135c4a69393abfc0475ffe",
    ),
    "musetalk_v10_config": File(
        "musetalk/musetalk.json", "unet", 0.001, OPENRAIL,
        on_hub(*MUSETALK, "musetalk/musetalk.json"),
    ),
    "musetalk_v15_unet": File(
        "musetalkV15/unet.pth", "unet", 3400, OPENRAIL,
        on_hub(*MUSETALK, "musetalkV15/unet.pth"),
        "7ebf6c98c181e20838e4c0054e96e944ac60d5d692cc01db42839fe11b787007",
    ),
    "musetalk_v15_config": File(
        "musetalkV15/musetalk.json", "unet", 0.001, OPENRAIL,
        on_hub(*MUSETALK, "musetalkV15/musetalk.json"),
        "5b6923aee04d71692e0e9846c471e0a4ea07a4f686d39545e472bd4ba17e1b47",
    ),
    "sd_vae": File(
        "sd-vae-ft-mse/diffusion_pytorch_model.safetensors", "vae", 335, "MIT",
        on_hub(*VAE, "diffusion_pytorch_model.safetensors"),
        "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
    ),
    "sd_vae_config": File(
        "sd-vae-ft-mse/config.json", "vae", 0.001, "MIT",
        on_hub(*VAE, "config.json"),
        "92d3dfb746fca211a2c9e019e285f8597412211728dce3c5bcf4eda0f2d62e7e",
    ),
    "whisper_tiny": File(
        "whisper/tiny.pt", "whisper", 76, "MIT",
        f"https://openaipublic.azureedge.net/main/whisper/models/{WHISPER}/tiny.pt",
        WHISPER,
    ),
    "whisper_tiny_transformers": File(
        "whisper/model.safetensors", "whisper", 151, "Apache-2.0",
        on_hub("openai/whisper-tiny", "169d4a4341b33bc18d8881c4b69c2e104e1cc0af", "model.safetensors"),
        "7ebd0e69e78190ffe1438491fa05cc1f5c1aa3a4c4db3bc1723adbb551ea2395",
    ),
    # A copy; the authors' own is behind a page that no program can fetch.
    "wav2lip_expert": File(
        "lip_sync_expert/lipsync_expert.pth", "wav2lip_syncnet", 197,
        "research and personal use only (LRS2)",
        on_hub("Nekochu/Wav2Lip", "fb925b05f0d353850ee0c56810e4545e274e2b5a", "lipsync_expert.pth"),
        "9b9936c721696446eeed353032cab242a8cf0eed8c46cde540366f6ae5493be5", commercial=False,
    ),
    "syncnet_v2": File(
        "auxiliary/syncnet_v2.model", "syncnet_v2", 55, "MIT (syncnet_python)",
        on_hub(*LATENTSYNC, "auxiliary/syncnet_v2.model"),
        "961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
    ),
    "stable_syncnet": File(
        "stable_syncnet.pt", "stable_syncnet", 1605, "OpenRAIL++",
        on_hub(*LATENTSYNC, "stable_syncnet.pt"),
    ),
    # Of LatentSync 1.0; the one that MuseTalk 1.5 was trained with.
    "latentsync_syncnet": File(
        "syncnet/latentsync_syncnet.pt", "stable_syncnet", 1488, "OpenRAIL++",
        on_hub("ByteDance/LatentSync", "405eda8eab9f65c1a6e0c292a5dee5a08089e2ae", "latentsync_syncnet.pt"),
        "38fa63bad3ed2332f647c40a5dc616cb0e233db8579f698f62af4c41965c4da5",
    ),
    "bisenet": File(
        "face-parse-bisent/79999_iter.pth", "face_parsing", 53,
        "MIT; trained on CelebAMask-HQ, which is for research only",
        on_hub(*BISENET, "79999_iter.pth"),
        "468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
    ),
    "s3fd": File(
        "auxiliary/s3fd-619a316812.pth", "face_detector", 90, "BSD-3-Clause (face-alignment)",
        "https://www.adrianbulat.com/downloads/python-fan/s3fd-619a316812.pth",
        "619a31681264d3f7f7fc7a16a42cbbe8b23f31a256f75a366e5a1bcd59b33543",
    ),
    "s3fd_syncnet": File(
        "auxiliary/sfd_face.pth", "face_detector", 90, "MIT (syncnet_python)",
        on_hub(*LATENTSYNC, "auxiliary/sfd_face.pth"),
        "d54a87c2b7543b64729c9a25eafd188da15fd3f6e02f0ecec76ae1b30d86c491",
    ),
    "vgg19": File(
        "torchvision/vgg19-dcbb9e9d.pth", "vgg19", 575, "BSD-3-Clause; trained on ImageNet",
        "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
        "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
    ),
    "vgg16": File(
        "torchvision/vgg16-397923af.pth", "lpips", 553, "BSD-3-Clause; trained on ImageNet",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "lpips_heads": File(
        "lpips/vgg.pth", "lpips", 0.01, "BSD-2-Clause",
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/"
        "082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
    "w600k_r50": File(
        "buffalo_l/w600k_r50.onnx", "identity", 289, "research only (insightface)",
        "https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_l.zip",
        "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
        commercial=False, member="w600k_r50.onnx",
    ),
    "inception": File(
        "inception-2015-12-05.pt", "FID (evaluate --inception)", 96,
        "Apache-2.0 network in a wrapper under NVIDIA's source code licence",
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4", commercial=False,
    ),
    "i3d": File(
        "auxiliary/i3d_torchscript.pt", "FVD (evaluate --i3d)", 51,
        "Apache-2.0 network (DeepMind); the wrapper's terms are not stated",
        on_hub(*LATENTSYNC, "auxiliary/i3d_torchscript.pt"),
        "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
    ),
}  # fmt: skip

# recipe -> argument of its converter -> name of the file
AUTO_ENCODER = {"vae_file": "sd_vae", "vae_config": "sd_vae_config"}
RECIPES = {
    "musetalk_v10": {
        "unet_file": "musetalk_v10_unet",
        "unet_config": "musetalk_v10_config",
        "whisper_file": "whisper_tiny",
        **AUTO_ENCODER,
    },
    "musetalk_v15": {
        "unet_file": "musetalk_v15_unet",
        "unet_config": "musetalk_v15_config",
        "whisper_file": "whisper_tiny_transformers",
        **AUTO_ENCODER,
    },
    # MuseTalk's UNet is in the adapter's checkpoint, which was never published.
    "unavglip": {
        "unet_config": "musetalk_v10_config",
        "whisper_file": "whisper_tiny",
        **AUTO_ENCODER,
    },
}
PARSER = "bisenet"  # in every pack: MuseTalk blends by it


def show(console: Console | None = None) -> None:
    """Prints the files and the recipes; what is for research only is marked."""
    console = console or Console()
    line = lambda text, style="": console.print(Text(text, style), soft_wrap=True)
    for name, file in FILES.items():
        present = ", here" if any(path.is_file() for path in places(file)) else ""
        line(f"{name}: {file.becomes}, {file.megabytes:.4g} MB{present}", "bold")
        line(f"  {terms(file)}", "" if file.commercial else "red")
        line(f"  {file.url}")
        line(f"  sha256 {file.sha256 or 'not known here; the hub is asked'}")
    line("")
    for recipe, parts in RECIPES.items():
        names = [*parts.values(), PARSER]
        own = "your own --adapter (none was published), " if recipe == "unavglip" else ""
        size = sum(FILES[name].megabytes for name in names)
        line(f"pack {recipe}: {own}{', '.join(names)}; {size:.0f} MB", "bold")


def terms(file: File) -> str:
    """The licence of a file, marked if it allows research only."""
    return file.licence if file.commercial else f"NON-COMMERCIAL: {file.licence}"


def fetch_all(
    names: Sequence[str],
    output: Path | None = None,
    adapter: Path | None = None,
    accept_digest: str | None = None,
    quiet: bool = False,
) -> None:
    """Fetches files, and makes a pack of them if one of the names is a recipe's; see `cli.assets_fetch`.

    Raises:
      InputError: a name is not known, the names do not fit together, or a file cannot be had.
    """
    if unknown := [name for name in names if name not in {**RECIPES, **FILES}]:
        known = ", ".join({**RECIPES, **FILES})
        raise InputError(f"there is no published file or pack {unknown[0]}; there are {known}")
    recipes = [name for name in names if name in RECIPES]
    files = [name for name in names if name in FILES]
    if len(recipes) > 1 or bool(recipes) != bool(output) or not names:
        raise InputError(
            "name files to fetch, or one pack with --output and the files to add to it; "
            "`unavglip assets list` shows both"
        )
    if (adapter is not None) != (recipes == ["unavglip"]):
        raise InputError(
            "unavglip needs --adapter and nothing else takes it: your own checkpoint "
            "(pytorch_model.bin), for none was ever published"
        )
    if accept_digest and (recipes or len(files) != 1):
        raise InputError("--accept-digest is about one file; fetch that file alone, then the rest")
    if recipes:
        build(recipes[0], output, files, adapter, quiet)
    else:
        for name in files:
            print(f"{fetch(name, accept_digest, quiet)} ({terms(FILES[name])})")


def build(
    recipe: str,
    output: Path,
    add: Sequence[str] = (),
    adapter: Path | None = None,
    quiet: bool = False,
) -> None:
    """Fetches what a pack is made of and makes it, complete or not at all.

    Args:
      recipe: a key of `RECIPES`.
      output: folder of the new pack.
      add: files whose networks are added; of those that are for another purpose the path is printed.
      adapter: the checkpoint of UnAvgLip, for its recipe.
      quiet: no progress bars.

    Raises:
      InputError: the folder exists, `add` does not fit together, or a file cannot be had or converted.
    """
    from unavglip_jax.convert import packs

    packs.refuse_existing(output)
    networks = [name for name in dict.fromkeys((PARSER, *add)) if network(FILES[name])]
    for becomes, count in Counter(FILES[name].becomes for name in networks).items():
        if count != (2 if becomes == "lpips" else 1):
            named = [name for name, file in FILES.items() if file.becomes == becomes]
            want = "both" if becomes == "lpips" else "only one"
            raise InputError(f"name {want} of {' and '.join(named)} for a pack's {becomes}")
    files = {
        name: fetch(name, quiet=quiet)
        for name in dict.fromkeys((*RECIPES[recipe].values(), *networks, *add))
    }
    parts = {argument: files[name] for argument, name in RECIPES[recipe].items()}
    with assets.replacement(output) as partial:
        if recipe == "unavglip":
            packs.unavglip_pack(adapter, output=partial, embedder="buffalo_l", **parts)
        else:
            packs.musetalk_pack(recipe.removeprefix("musetalk_"), output=partial, **parts)
        packs.add_files(partial, [files[name] for name in networks])
    for name in add:
        if name not in networks:
            print(f"{files[name]} ({terms(FILES[name])})")


def network(file: File) -> bool:
    """Whether a file is a network of a pack, or part of one."""
    return file.becomes in assets.NETWORKS


def places(file: File) -> Iterator[Path]:
    """Where a file may lie: in the folder that UNAVGLIP_ASSETS names, and in the cache."""
    if offline := os.environ.get("UNAVGLIP_ASSETS"):
        yield Path(offline).expanduser() / file.path
    yield assets.cache_folder() / "published" / file.path


def here(name: str) -> Path | None:
    """The path of a file of `FILES`, checked as `fetch` does; None if it is not here."""
    return fetch(name) if any(path.is_file() for path in places(FILES[name])) else None


def fetch(name: str, accept_digest: str | None = None, quiet: bool = False) -> Path:
    """The path of a file of `FILES`, which is downloaded if it is not here yet.

    It is looked for as `assets.fetch` does: in the folder that UNAVGLIP_ASSETS names, then in the cache
    (`published/` in it); with UNAVGLIP_ASSETS set nothing is downloaded. A download that was interrupted is
    continued. Whatever is returned has the right sha256: `accept_digest` if given, or what an earlier
    download left in `PATH.sha256`, or the table's, or else the hub's.

    Raises:
      InputError: there is no such file, it cannot be had, or it is another than it should be.
    """
    if name not in FILES:
        raise InputError(f"there is no published file {name}; there are {', '.join(FILES)}")
    if accept_digest and not re.fullmatch("[0-9a-f]{64}", accept_digest):
        raise InputError(f"--accept-digest {accept_digest} is no sha256: 64 digits of 0-9 and a-f")
    file = FILES[name]
    *offline, cached = places(file)
    for path in offline:
        if path.is_file():
            if (found := assets.digest(path)) != (wanted := expected(file, path, accept_digest)):
                raise InputError(another(str(path), found, wanted))
            return path
    wanted = expected(file, cached, accept_digest)
    complete = lambda: cached.is_file() and assets.digest(cached) == wanted
    if complete():
        return cached
    try:
        if offline:
            raise DownloadError("nothing is downloaded while UNAVGLIP_ASSETS is set")
        with locked(cached):
            if not complete():  # another process may have been quicker
                download(file, cached, wanted, quiet)
    except (DownloadError, OSError) as error:
        inside = f", take {file.member} out of it" if file.member else ""
        raise InputError(
            f"{name} is not here and could not be downloaded: {' '.join(str(error).split())}; by hand: "
            f"get {file.url}{inside}, put it into a folder as {file.path}, and name the folder in "
            "UNAVGLIP_ASSETS"
        ) from error
    return cached


def expected(file: File, path: Path, accepted: str | None) -> str | None:
    """The sha256 that a file at a path should have: accepted now, or before, or the table's."""
    beside = path.with_name(f"{path.name}.sha256")
    before = beside.read_text().strip() if beside.is_file() else None
    return accepted or before or file.sha256


def another(what: str, found: str, wanted: str | None) -> str:
    """What to say of a file whose digest is wrong, or of which nobody knows the right one."""
    if wanted is None:
        return (
            f"nothing says which sha256 {what} should have; it has {found}; if you trust it, add "
            f"--accept-digest {found}, or write that into a file of its name with .sha256 behind"
        )
    return (
        f"{what} is not the file it should be: its sha256 is {found}, not {wanted}; fetch it again, or, "
        f"only if you know that its authors replaced it, add --accept-digest {found}"
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes from downloading the same file meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def download(file: File, path: Path, wanted: str | None, quiet: bool) -> None:
    """Puts a file of the table at a path, complete and checked or not at all.

    What has arrived stays in a hidden folder beside the path until it is complete, to go on from there.

    Raises:
      DownloadError: it cannot be had.
      OSError: the folder cannot be written.
      InputError: its digest is wrong, or nobody says which is right.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.mkdir(exist_ok=True)
    hub = HUB.fullmatch(file.url)
    url, etag = on_the_hub(*hub.groups()) if hub else (file.url, None)
    if etag is not None and re.fullmatch("[0-9a-f]{64}", etag):
        wanted = wanted or etag
        if wanted != etag:  # said before gigabytes of it arrive rather than after
            raise InputError(another(url, etag, wanted))
    arrived = from_web(url, partial / "download", quiet)
    if file.member:
        archive, arrived = arrived, partial / "member"
        try:
            with zipfile.ZipFile(archive) as members, arrived.open("wb") as out:
                shutil.copyfileobj(members.open(file.member), out)
        except (zipfile.BadZipFile, zlib.error, KeyError) as error:
            shutil.rmtree(partial)
            raise DownloadError(f"{url} has no {file.member} that can be read") from error
    found = assets.digest(arrived)
    if wanted is None and etag == git_blob(arrived):
        wanted = found
    if wanted is None:
        raise InputError(another(url, found, wanted))  # and keep it, for the user's answer
    if found != wanted:
        shutil.rmtree(partial)
        raise InputError(another(url, found, wanted))
    if wanted != file.sha256:
        path.with_name(f"{path.name}.sha256").write_text(f"{wanted}\n")
    os.replace(arrived, path)
    shutil.rmtree(partial)


def git_blob(path: Path) -> str:
    """The name that git gives to a file's contents, by which the hub knows small files."""
    with path.open("rb") as file:
        sha1 = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        while chunk := file.read(CHUNK):
            sha1.update(chunk)
    return sha1.hexdigest()


def on_the_hub(repository: str, revision: str, name: str) -> tuple[str, str | None]:
    """The address of a file at the hub, or the mirror that HF_ENDPOINT names, and the ETag that it has of it.

    The file itself is not downloaded by `huggingface_hub`, which begins again after an interruption.

    Raises:
      DownloadError: the hub cannot be reached, or has no such file.
    """
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    url = huggingface_hub.hf_hub_url(repository, name, revision=revision)
    try:
        return url, huggingface_hub.get_hf_file_metadata(url).etag
    except (OSError, HTTPError) as error:  # transport errors of its HTTP library are no OSError
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DownloadError(f"{url}: {reason}") from error


CHUNK = 1 << 20  # bytes that are read at once
PATIENCE = 60  # seconds without a byte after which a connection is given up


def from_web(url: str, path: Path, quiet: bool) -> Path:
    """Downloads a file to a path, going on behind what is there; returns the path.

    A connection that breaks is made again as long as each one brings something.

    Raises:
      DownloadError: the server cannot be reached, or has no such file.
    """
    text = TextColumn("{task.description}")
    columns = text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with path.open("ab") as out, Progress(*columns, disable=quiet) as progress:
        bar = progress.add_task(url.rpartition("/")[2], total=None)
        show = lambda total: progress.update(bar, completed=out.tell(), total=total)
        complete = False
        while not complete:
            before = out.tell()
            try:
                complete = transfer(url, out, show)
                reason = f"the connection ends at {out.tell()} bytes"
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            if not complete and out.tell() <= before:
                raise DownloadError(f"{url}: {reason}")
    return path


def transfer(url: str, out: BinaryIO, show: Callable[[int | None], None]) -> bool:
    """Appends what is missing of a file, over one connection; whether it is complete then.

    That the parts belong to one version of the file is for the digest of the whole to tell.

    Args:
      url: of the file.
      out: opened for appending.
      show: is told the size of the whole, if known, whenever something has arrived.
    """
    have = out.tell()
    headers = {"User-Agent": "unavglip-jax"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=PATIENCE
        )
    except urllib.error.HTTPError as error:
        if have and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # there is nothing behind what we have
        raise
    with answer:
        if have and answer.status != http.HTTPStatus.PARTIAL_CONTENT:  # it begins from the start
            out.seek(0)
            out.truncate()
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        while chunk := answer.read(CHUNK):
            out.write(chunk)
            show(total)
    return total is None or out.tell() == total


def verify(folder: Path, console: Console | None = None) -> int:
    """Checks digest and shapes of every network of a pack, prints a table, and returns how many are wrong.

    Raises:
      InputError: the folder is no pack.
    """
    console = console or Console()
    pack, problems = assets.read_pack(folder), []
    table = Table("network", "file", "parameters", "sha256", "licence", "", title=str(folder))
    for name, part in pack.components.items():
        try:
            _, weights = assets.load_component(folder, name)
        except InputError as error:
            problems.append(str(error))
            count, verdict = "", "[red]WRONG[/red]"
        else:
            count, verdict = f"{sum(leaf.size for leaf in weights.values()):,}", "right"
        table.add_row(name, part.file, count, part.sha256[:12], part.licence, verdict)
    console.print(table)
    for problem in problems:
        console.print(problem, markup=False, soft_wrap=True)
    return len(problems)
