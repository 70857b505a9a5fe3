"""Fetching published files from servers that misbehave, packs made of them, and checking packs."""

import hashlib
import http.server
import inspect
import io
import os
import re
import threading
import zipfile
from functools import partial
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from rich.console import Console
from safetensors.torch import save_file
from test_unet import torch_unet

from comparing import randomise
from unavglip_jax import assets, params, published
from unavglip_jax.config import InputError
from unavglip_jax.convert import packs
from unavglip_jax.convert.state_dict import to_torch, torch_name, torch_shape
from unavglip_jax.models.bisenet import BiSeNet, BiSeNetConfig
from unavglip_jax.models.whisper import Whisper, WhisperConfig
from unavglip_jax.published import File

DATA = np.random.default_rng(0).bytes(3 * published.CHUNK + 12345)
SHA256 = hashlib.sha256(DATA).hexdigest()
fetch = partial(published.fetch, quiet=True)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files` {path: bytes}; `cuts` are how many bytes the next answers break off after."""

    files: dict
    cuts: list
    requests: list
    ranges = True
    etags: dict  # path -> ETag
    moved: dict  # path -> (address, ETag): where the hub keeps a large file

    def do_GET(self):
        path, asked = self.path, self.headers["Range"]
        type(self).requests.append((self.command, path, asked))
        if path in self.moved:
            address, etag = self.moved[path]
            self.send_response(302)
            self.send_header("Location", address)
            self.send_header("X-Linked-Etag", f'"{etag}"')
            return self.end_headers()
        if path not in self.files:
            return self.send_error(404)
        data, begin = self.files[path], 0
        if asked and self.ranges:
            begin = int(re.fullmatch(r"bytes=(\d+)-\d*", asked)[1])
            if begin >= len(data):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if path in self.etags:
            self.send_header("ETag", f'"{self.etags[path]}"')
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        if self.command == "GET":
            cut = self.cuts.pop(0) if self.cuts else None
            self.wfile.write(data[begin:][:cut])
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server of its own on this machine, an empty cache, and no offline folder."""
    fresh = {"files": {}, "cuts": [], "requests": [], "etags": {}, "moved": {}}
    handler = type("Fresh", (Server,), fresh)
    monkeypatch.setenv("UNAVGLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UNAVGLIP_ASSETS", raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        handler.address = f"http://127.0.0.1:{running.server_port}"
        yield handler
        running.shutdown()


@pytest.fixture
def web(server, monkeypatch):
    """The server with a file, and that file in the table."""
    server.files["/net.bin"] = DATA
    entry = File("folder/net.bin", "unet", 3, "MIT", f"{server.address}/net.bin", SHA256)
    monkeypatch.setitem(published.FILES, "net", entry)
    return server


@pytest.fixture
def hub(server, monkeypatch):
    """The server as the hub, with a large file and a small one, which the true client talks to."""
    large, small = (f"/owner/repository/resolve/main/{n}" for n in ("large.bin", "small.json"))
    elsewhere = server.address.replace("127.0.0.1", "localhost")
    server.files |= {"/cdn/1": DATA, small: b"{}"}
    server.moved[large] = (f"{elsewhere}/cdn/1", SHA256)
    server.etags |= {"/cdn/1": "of-no-meaning", small: hashlib.sha1(b"blob 2\0{}").hexdigest()}
    for path in (large, small):
        entry = File(Path(path).name, "unet", 3, "MIT", f"https://huggingface.co{path}")
        monkeypatch.setitem(published.FILES, entry.path, entry)
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return server


def cached(tmp_path) -> list[str]:
    """What the cache holds but for locks."""
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock"]
    return sorted(str(p.relative_to(tmp_path / "cache/published")) for p in files)


def replace(monkeypatch, name, **changes):
    monkeypatch.setitem(published.FILES, name, published.FILES[name]._replace(**changes))


def in_place_of(name):
    """The changes that make an entry of the table the file of another."""
    return {"path": published.FILES[name].path, "sha256": published.FILES[name].sha256}


# ---- from the web ----------------------------------------------------------------------------------


def test_a_file_is_downloaded_once(web, tmp_path):
    path = fetch("net")
    assert path == tmp_path / "cache/published/folder/net.bin" and path.read_bytes() == DATA
    assert fetch("net") == path and len(web.requests) == 1
    assert cached(tmp_path) == ["folder/net.bin"]
    path.write_bytes(b"damaged")
    assert fetch("net").read_bytes() == DATA and len(web.requests) == 2


def test_a_broken_connection_is_made_again_from_where_it_ended(web):
    web.cuts = [1000, 2_000_000]
    assert fetch("net").read_bytes() == DATA
    assert [asked for *_, asked in web.requests] == [None, "bytes=1000-", "bytes=2001000-"]


def test_a_download_that_was_given_up_is_continued_by_the_next(web, tmp_path):
    web.cuts = [70_000, 0]
    with pytest.raises(InputError, match="the connection ends at 70000 bytes"):
        fetch("net")
    assert cached(tmp_path) == ["folder/.net.bin.partial/download"]
    web.requests.clear()
    assert fetch("net").read_bytes() == DATA
    assert web.requests == [("GET", "/net.bin", "bytes=70000-")]
    assert cached(tmp_path) == ["folder/net.bin"]


def test_a_server_without_ranges_begins_again(web):
    web.ranges, web.cuts = False, [1000, 2000]
    assert fetch("net").read_bytes() == DATA


def test_a_part_of_another_file_is_found_out_and_not_kept(web, tmp_path):
    web.cuts = [70_000, 0]
    with pytest.raises(InputError):
        fetch("net")
    web.files["/net.bin"] = bytes(len(DATA))
    with pytest.raises(InputError, match=f"not {SHA256}; fetch it again"):
        fetch("net")
    assert cached(tmp_path) == []
    web.files["/net.bin"] = DATA
    assert fetch("net").read_bytes() == DATA


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"!", b"", b"<html>"])
def test_a_file_of_another_size_is_refused(web, tmp_path, data):
    web.files["/net.bin"] = data
    with pytest.raises(InputError, match="is not the file it should be") as error:
        fetch("net")
    assert hashlib.sha256(data).hexdigest() in str(error.value) and cached(tmp_path) == []


def test_what_cannot_be_had_is_explained(web, monkeypatch):
    del web.files["/net.bin"]
    with pytest.raises(InputError, match=r"HTTP Error 404.* by hand: get http.*folder/net\.bin"):
        fetch("net")
    replace(monkeypatch, "net", url="http://127.0.0.1:9/net.bin")
    with pytest.raises(InputError, match=r"could not be downloaded.*refused"):
        fetch("net")
    with pytest.raises(InputError, match="there is no published file nte"):
        fetch("nte")


def test_an_unknown_digest_is_for_the_user_to_accept(web, monkeypatch, tmp_path):
    replace(monkeypatch, "net", sha256=None)
    with pytest.raises(InputError, match=f"it has {SHA256}; if you trust it, add --accept-digest"):
        fetch("net")
    with pytest.raises(InputError, match="not the file it should be"):
        fetch("net", "0" * 64)
    with pytest.raises(InputError, match="is no sha256"):
        fetch("net", "yes")
    with pytest.raises(InputError):
        fetch("net")
    web.requests.clear()
    assert fetch("net", SHA256).read_bytes() == DATA
    assert web.requests == [("GET", "/net.bin", f"bytes={len(DATA)}-")]  # nothing came twice
    assert fetch("net").read_bytes() == DATA and len(web.requests) == 1  # and it is remembered
    assert (tmp_path / "cache/published/folder/net.bin.sha256").read_text().strip() == SHA256


def test_a_file_inside_an_archive(web, monkeypatch, tmp_path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("inner.onnx", DATA)
    web.files["/net.bin"] = archive.getvalue()
    replace(monkeypatch, "net", member="inner.onnx")
    assert fetch("net").read_bytes() == DATA and cached(tmp_path) == ["folder/net.bin"]
    replace(monkeypatch, "net", member="other.onnx", path="folder/other.onnx")
    with pytest.raises(InputError, match=r"has no other\.onnx.*take other\.onnx out of it"):
        fetch("net")
    damaged = bytearray(archive.getvalue())
    damaged[1000:3000] = bytes(2000)
    for web.files["/net.bin"] in (bytes(damaged), archive.getvalue()[:-100], b"<html>"):
        replace(monkeypatch, "net", member="inner.onnx")
        with pytest.raises(InputError, match=r"has no inner\.onnx that can be read"):
            fetch("net")
    assert cached(tmp_path) == ["folder/net.bin"]


def test_the_offline_folder_comes_first_and_stops_downloads(web, monkeypatch, tmp_path):
    monkeypatch.setenv("UNAVGLIP_ASSETS", str(tmp_path / "mine"))
    with pytest.raises(InputError, match="nothing is downloaded while UNAVGLIP_ASSETS is set"):
        fetch("net")
    assert not (tmp_path / "cache").exists()
    in_cache, mine = tmp_path / "cache/published/folder/net.bin", tmp_path / "mine/folder/net.bin"
    for path in (in_cache, mine):
        path.parent.mkdir(parents=True)
        path.write_bytes(DATA)
        assert fetch("net") == path
    mine.write_bytes(b"another")
    with pytest.raises(InputError, match=r"mine/folder/net\.bin is not the file it should be"):
        fetch("net")
    mine.write_bytes(DATA)
    replace(monkeypatch, "net", sha256=None)
    with pytest.raises(InputError, match="nothing says which sha256"):
        fetch("net")
    assert fetch("net", SHA256) == mine
    mine.with_name("net.bin.sha256").write_text(f"{SHA256}\n")
    assert fetch("net") == mine and not web.requests


def test_a_file_wanted_at_the_same_time_is_downloaded_once(web, tmp_path):
    threads = [threading.Thread(target=fetch, args=("net",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(web.requests) == 1 and cached(tmp_path) == ["folder/net.bin"]


# ---- from the hub ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "data"), [("large.bin", DATA), ("small.json", b"{}")])
def test_the_hub_says_which_digest_is_right(hub, tmp_path, name, data):
    assert fetch(name).read_bytes() == data
    asked = len(hub.requests)
    assert fetch(name).read_bytes() == data and len(hub.requests) == asked
    assert cached(tmp_path) == [name, f"{name}.sha256"]


def test_a_file_of_the_hub_is_continued_too(hub, tmp_path):
    hub.cuts = [1_000_000, 0]
    with pytest.raises(InputError, match="the connection ends at 1000000 bytes"):
        fetch("large.bin")
    hub.requests.clear()
    assert fetch("large.bin").read_bytes() == DATA
    assert [asked for *_, asked in hub.requests if asked] == ["bytes=1000000-"] * 2  # redirected
    assert cached(tmp_path) == ["large.bin", "large.bin.sha256"]


@pytest.mark.parametrize("name", ["large.bin", "small.json"])
def test_a_file_that_is_not_the_hubs_is_refused(hub, tmp_path, name):
    hub.files = {path: bytes(len(data)) for path, data in hub.files.items()}
    with pytest.raises(InputError, match=r"is not the file it should be|nothing says which sha256"):
        fetch(name)
    assert name not in cached(tmp_path)


def test_a_file_that_changed_on_the_hub_is_not_even_downloaded(hub, monkeypatch):
    replace(monkeypatch, "large.bin", sha256="0" * 64)
    with pytest.raises(InputError, match=f"its sha256 is {SHA256}, not 0000"):
        fetch("large.bin")
    assert {method for method, *_ in hub.requests} == {"HEAD"}


def test_what_the_hub_has_not(hub, monkeypatch):
    url = published.FILES["large.bin"].url
    replace(monkeypatch, "large.bin", url=f"{url}.gone")
    with pytest.raises(InputError, match=r"could not be downloaded: http.*404 Not Found"):
        fetch("large.bin")
    hub.etags["/owner/repository/resolve/main/small.json"] = "neither-nor"
    with pytest.raises(InputError, match="nothing says which sha256"):
        fetch("small.json")
    assert fetch("small.json", hashlib.sha256(b"{}").hexdigest()).read_bytes() == b"{}"
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:9/{repo_id}/{revision}/{filename}",
    )
    replace(monkeypatch, "large.bin", url=url)
    with pytest.raises(InputError, match="could not be downloaded"):
        fetch("large.bin")


# ---- the table -------------------------------------------------------------------------------------


def test_the_table_can_be_used():
    for name, file in published.FILES.items():
        assert file.url.startswith("https://"), name
        on_hub = published.HUB.fullmatch(file.url)
        assert bool(on_hub) == ("huggingface.co" in file.url), name
        assert re.fullmatch("[0-9a-f]{64}", file.sha256) if file.sha256 else on_hub, name
        assert Path(file.path).suffix and not Path(file.path).is_absolute() and file.licence
        if digits := re.search(r"-([0-9a-f]{8,})\.pth", file.url):  # PyTorch's own convention
            assert file.sha256.startswith(digits[1])
    paths = [file.path for file in published.FILES.values()]
    assert len(set(paths)) == len(paths)
    assert {name for parts in published.RECIPES.values() for name in parts.values()} <= set(
        published.FILES
    )
    assert not published.RECIPES.keys() & published.FILES.keys()


def test_the_list_marks_what_is_not_for_commerce(server, tmp_path):
    console = Console(file=io.StringIO(), width=60)
    published.show(console)
    text = console.file.getvalue()
    for name, file in published.FILES.items():
        about = text.split(f"\n{name}: ")[-1].split("sha256")[0]
        assert ("NON-COMMERCIAL" in about) == (name in ("wav2lip_expert", "w600k_r50", "inception"))
        assert file.url in about and file.licence in about
    assert ", here" not in text
    (tmp_path / "cache/published/whisper").mkdir(parents=True)
    (tmp_path / "cache/published/whisper/tiny.pt").touch()
    published.show(console)
    assert console.file.getvalue().count(", here") == 1


# ---- packs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An offline folder of tiny networks under the published names."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("musetalkV15", "sd-vae-ft-mse", "whisper", "face-parse-bisent"):
        (folder / name).mkdir()
    unet = torch_unet(adapter=False)
    torch.save(unet.state_dict(), folder / "musetalkV15/unet.pth")
    (folder / "musetalkV15/musetalk.json").write_text(unet.to_json_string())
    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, layers_per_block=1)
    randomise(vae).save_pretrained(folder / "sd-vae-ft-mse")
    config = WhisperConfig(n_audio_state=64, n_audio_head=1, n_audio_layer=1, n_audio_ctx=20)
    encoder = to_torch(params.init(Whisper, config, jax.random.key(0)))
    state = {f"encoder.{key}": torch.from_numpy(value.copy()) for key, value in encoder.items()}
    save_file(state, folder / "whisper/model.safetensors")
    _, shapes = params.abstract(BiSeNet, BiSeNetConfig())
    state = {torch_name(p): torch.zeros(torch_shape(s.shape, p)) for p, s in shapes.items()}
    torch.save(state, folder / "face-parse-bisent/79999_iter.pth")
    return folder


@pytest.fixture
def offline(files, monkeypatch, server):
    monkeypatch.setenv("UNAVGLIP_ASSETS", str(files))
    for name, file in published.FILES.items():
        if (path := files / file.path).is_file():
            replace(monkeypatch, name, sha256=assets.digest(path))
    return files


def test_a_recipe_becomes_a_pack_that_is_checked(offline, tmp_path):
    pack = tmp_path / "packs/musetalk15"
    published.fetch_all(["musetalk_v15"], pack, quiet=True)
    found = assets.read_pack(pack)
    assert (found.system, found.audio_front_end) == ("musetalk", "v15")
    assert list(found.components) == ["unet", "vae", "whisper", "face_parsing"]
    assert found.components["unet"].source == "unet.pth"
    with pytest.raises(InputError, match="exists"):
        published.fetch_all(["musetalk_v15"], pack, quiet=True)

    console = Console(file=io.StringIO(), width=120)
    assert published.verify(pack, console) == 0
    table = console.file.getvalue()
    unet = sum(value.numel() for value in torch_unet(adapter=False).parameters())
    assert f"{unet:,}" in table and "WRONG" not in table
    with (pack / "vae.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    (pack / "whisper.safetensors").unlink()
    console = Console(file=io.StringIO(), width=120)
    assert published.verify(pack, console) == 2
    text = console.file.getvalue()
    assert text.count("WRONG") == 2 and "is damaged or was changed" in text
    assert "the pack's whisper is missing" in text


def test_a_pack_is_made_whole_or_not_at_all(offline, tmp_path, monkeypatch):
    parser = published.FILES["bisenet"]
    replace(monkeypatch, "bisenet", **in_place_of("musetalk_v15_unet"))
    with pytest.raises(InputError, match="part of a new pack"):
        published.fetch_all(["musetalk_v15"], tmp_path / "pack", quiet=True)
    monkeypatch.setitem(published.FILES, "bisenet", parser)
    with pytest.raises(InputError, match="vgg19 is not here"):
        published.fetch_all(["musetalk_v15", "vgg19"], tmp_path / "pack", quiet=True)
    assert not [p for p in tmp_path.iterdir() if p.name != "cache"]


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        ([], {}, "name files to fetch"),
        (["vgg18"], {}, "no published file or pack vgg18"),
        (["musetalk_v15"], {}, "with --output"),
        (["vgg19"], {"output": "pack"}, "with --output"),
        (["musetalk_v15", "musetalk_v10"], {"output": "pack"}, "one pack"),
        (["unavglip"], {"output": "pack"}, "unavglip needs --adapter"),
        (["musetalk_v15"], {"output": "pack", "adapter": "a.bin"}, "nothing else takes it"),
        (["musetalk_v15"], {"output": "pack", "accept_digest": SHA256}, "about one file"),
        (["vgg19", "vgg16"], {"accept_digest": SHA256}, "about one file"),
        (["musetalk_v15", "vgg16"], {"output": "pack"}, "name both of vgg16 and lpips_heads"),
        (["musetalk_v15", "s3fd", "s3fd_syncnet"], {"output": "pack"}, "name only one of s3fd"),
    ],
)
def test_names_that_do_not_fit_together(server, tmp_path, names, options, says):
    paths = {k: tmp_path / v if k in ("output", "adapter") else v for k, v in options.items()}
    with pytest.raises(InputError, match=says):
        published.fetch_all(names, **paths, quiet=True)
    assert not list(tmp_path.iterdir())


def test_the_unavglip_recipe_takes_ones_own_adapter(offline, tmp_path, monkeypatch):
    called = {}
    signature = inspect.signature(packs.unavglip_pack)

    def pack_of(*arguments, **named):
        called.update(signature.bind(*arguments, **named).arguments)
        called["output"].mkdir()

    monkeypatch.setattr(packs, "unavglip_pack", pack_of)
    monkeypatch.setattr(packs, "add_files", lambda *_: None)
    replace(monkeypatch, "whisper_tiny", **in_place_of("whisper_tiny_transformers"))
    replace(monkeypatch, "musetalk_v10_config", **in_place_of("musetalk_v15_config"))
    published.fetch_all(["unavglip"], tmp_path / "pack", tmp_path / "own.bin", quiet=True)
    assert (called["checkpoint"], called["embedder"]) == (tmp_path / "own.bin", "buffalo_l")
    names = [called[part].name for part in ("vae_file", "vae_config", "unet_config")]
    assert names == ["diffusion_pytorch_model.safetensors", "config.json", "musetalk.json"]
    assert (tmp_path / "pack").is_dir()


def test_plain_files_are_fetched_and_named(web, capsys):
    published.fetch_all(["net"], quiet=True)
    assert capsys.readouterr().out.strip().endswith("folder/net.bin (MIT)")
