"""From published files to a pack and back, and every way in which that must fail."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from test_unet import torch_unet

import commands
from comparing import randomise
from unavglip_jax import assets, params
from unavglip_jax.config import InputError
from unavglip_jax.convert import musetalk, parity, unavglip
from unavglip_jax.convert.formats import read_as
from unavglip_jax.convert.state_dict import ConversionError, place, read, to_torch
from unavglip_jax.models.iresnet import IResNet, IResNetConfig
from unavglip_jax.models.unet import UNet
from unavglip_jax.models.whisper import Whisper, WhisperConfig

VECTORS = Path(__file__).parent / "vectors"


def tensors(arrays) -> dict:
    return {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Published files, tiny, with the names their authors gave them."""
    folder = tmp_path_factory.mktemp("published")
    manifest = json.loads((VECTORS / "unavglip_tiny/manifest.json").read_text())
    # The command takes a Perceiver's heads to be 64 wide, as the published one's are.
    wide = {"0.to_q.weight": [64, 24], "0.to_kv.weight": [128, 24], "0.to_out.weight": [24, 64]}
    for key in manifest["keys"]:
        if key.startswith("image_proj_model.layers"):
            shape = manifest["keys"][key]
            manifest["keys"][key] = wide.get(key.split(".", 3)[3], shape)
    torch.save(tensors(parity.state_dict(manifest)), folder / "adapter.bin")
    json.dump(manifest["config"], (folder / "unet.json").open("w"))
    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, layers_per_block=1)
    save_file(randomise(vae).state_dict(), folder / "vae.safetensors")
    vae.save_config(folder / "vae")
    config = WhisperConfig(n_audio_state=64, n_audio_head=1, n_audio_layer=1, n_audio_ctx=20)
    encoder = to_torch(params.init(Whisper, config, jax.random.key(0)))
    state = {f"encoder.{key}": value for key, value in tensors(encoder).items()}
    state["decoder.token_embedding.weight"] = torch.zeros(3, 2)
    torch.save({"dims": {"n_mels": 80}, "model_state_dict": state}, folder / "tiny.pt")
    torch.save(torch_unet(adapter=False).state_dict(), folder / "unet.pth")
    (folder / "musetalk.json").write_text(torch_unet(adapter=False).to_json_string())
    return folder


COMMON = ("--vae", "vae.safetensors", "--vae-config", "vae/config.json", "--whisper", "tiny.pt")


def common(files):
    return [files / part if "." in part and "--" not in part else part for part in COMMON]


@pytest.fixture(scope="module")
def pack(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs") / "unavglip"
    done = commands.unavglip(
        "convert", "unavglip", "--checkpoint", files / "adapter.bin", "--unet-config",
        files / "unet.json", *common(files), "--output", folder,
    )  # fmt: skip
    assert "perceiver" in done.stdout
    return folder


def test_adapter_to_pack_and_back_is_the_identity(files, pack, tmp_path):
    done = commands.unavglip("convert", "export", "--pack", pack, "--output", tmp_path / "back.bin")
    assert "1289 keys" in done.stdout
    published, exported = (
        torch.load(p, weights_only=True) for p in (files / "adapter.bin", tmp_path / "back.bin")
    )
    assert published.keys() == exported.keys()
    assert all(torch.equal(published[key], exported[key]) for key in published)
    # The two names of an adapter tensor are one tensor, as UnAvgLip's loader makes them.
    one = exported["adapter_modules.0.to_q_lora.up.weight"]
    name = unavglip.processors(assets.load_generator(pack)[0])[0]
    assert one.data_ptr() == exported[f"unet.{name}.to_q_lora.up.weight"].data_ptr()


def test_pack_says_what_inference_must_know(pack):
    found = assets.read_pack(pack)
    assert (found.system, found.audio_front_end, found.crop) == ("unavglip", "v10", "musetalk_v10")
    assert found.identity.normalisation == "unit"
    assert set(found.components) == {"unet", "adapter", "perceiver", "vae", "whisper"}
    for component in found.components.values():
        assert component.sha256 == assets.digest(pack / component.file)
        assert component.source and component.licence
    assert sorted(p.name for p in pack.iterdir()) == sorted(
        ["pack.yaml", *(c.file for c in found.components.values())]
    )


def test_generator_of_a_pack_is_the_checkpoints(files, pack):
    config, weights = assets.load_generator(pack, param_dtype="bfloat16")
    source = unavglip.convert(
        read(files / "adapter.bin"), json.loads((files / "unet.json").read_text())
    )
    assert config.replace(param_dtype="float32") == source.unet_config
    assert weights.keys() == source.unet.keys()
    lora = "mid_block/attentions/0/transformer_blocks/0/attn1/processor/to_q_lora/up/kernel"
    np.testing.assert_array_equal(weights[lora], source.unet[lora])
    assert weights["conv_in/kernel"].dtype == "bfloat16"


@pytest.mark.parametrize("version", ["v10", "v15"])
def test_musetalk_to_pack(files, tmp_path, version):
    commands.unavglip(
        "convert", "musetalk", "--version", version, "--unet", files / "unet.pth", "--unet-config",
        files / "musetalk.json", *common(files), "--output", tmp_path / "pack",
    )  # fmt: skip
    assert assets.read_pack(tmp_path / "pack").audio_front_end == version
    _, weights = assets.load_component(tmp_path / "pack", "unet")
    theirs = torch_unet(adapter=False).state_dict()
    np.testing.assert_array_equal(
        weights["down_blocks/0/resnets/0/conv1/kernel"],
        theirs["down_blocks.0.resnets.0.conv1.weight"].permute(2, 3, 1, 0),
    )


def test_networks_are_added_by_what_they_are(pack, files, tmp_path):
    keys = json.loads((VECTORS / "syncnet_v2/manifest.json").read_text())
    state = {key: torch.zeros(shape) for key, shape in keys["keys"].items()}
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "unknown.model")
    before = assets.read_pack(pack)
    commands.unavglip("convert", "add", "--pack", pack, tmp_path / "unknown.model")
    assert "syncnet_v2" in assets.read_pack(pack).components
    done = commands.unavglip("convert", "add", "--pack", pack, tmp_path / "unknown.model", expect=1)
    assert "has a syncnet_v2 already" in done.stderr
    done = commands.unavglip("convert", "add", "--pack", pack, files / "unet.pth", expect=1)
    assert "is a Stable-Diffusion UNet, which is part of a new pack" in done.stderr
    (pack / assets.read_pack(pack).components["syncnet_v2"].file).unlink()
    assets.write_description(pack, before)


# ---- what must fail --------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (os.system, ("true",))


def spoil(folder: Path, kind: str) -> Path:
    """A file or folder that is no checkpoint."""
    path = folder / f"{kind}.pt"
    state = {"a.weight": torch.zeros(300, 300)}
    if kind == "folder":
        path.mkdir()
    elif kind == "code":
        torch.save({"a.weight": Evil()}, path)
    elif kind == "old code":
        path.write_bytes(pickle.dumps({"a.weight": Evil()}, protocol=2))
    elif kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "truncated old":
        torch.save(state, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "truncated safetensors":
        path = folder / "short.safetensors"
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "web page":
        path.write_text("<!DOCTYPE html><html>404</html>")
    elif kind == "empty":
        path.touch()
    elif kind == "numbers":
        torch.save({"a": 1.0}, path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("folder", "is a folder"),
        ("missing", "no such file"),
        ("code", "pickled code"),
        ("old code", "pickled code"),
        ("truncated", "not a complete PyTorch checkpoint"),
        ("truncated old", "not a complete PyTorch checkpoint"),
        ("truncated safetensors", "not a complete safetensors file"),
        ("web page", "not a complete PyTorch checkpoint"),
        ("empty", "not a complete PyTorch checkpoint"),
        ("numbers", "not a state dict"),
        ("tensor", "not a state dict"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, kind, says):
    with pytest.raises(InputError, match=says) as error:
        read(spoil(tmp_path, kind))
    assert "\n" not in str(error.value)


def test_training_checkpoints_are_opened(tmp_path):
    state = {"module.a.weight": torch.ones(2)}
    torch.save(
        {"state_dict": state, "optimizer": {"lr": 1e-4}, "global_step": 5}, tmp_path / "x.pth"
    )
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("x.pth", "old.pth"):
        assert list(read(tmp_path / name)) == ["a.weight"]


def test_half_precision_files_become_float32(tmp_path):
    theirs = torch_unet(adapter=False).to(torch.bfloat16)
    torch.save(theirs.state_dict(), tmp_path / "unet.pth")
    published = json.loads(theirs.to_json_string())
    _, weights = musetalk.convert(read(tmp_path / "unet.pth"), published)
    assert weights["conv_in/kernel"].dtype == np.float32
    np.testing.assert_array_equal(weights["conv_in/bias"], theirs.conv_in.bias.detach().float())


def test_everything_that_does_not_fit_is_in_one_message():
    theirs = torch_unet(adapter=False)
    config = musetalk.config_of(theirs.state_dict(), json.loads(theirs.to_json_string()), "x")
    _, shapes = params.abstract(UNet, config)
    source = dict(theirs.state_dict())
    source["surplus.weight"] = torch.zeros(1)
    source["copy"] = source["conv_in.bias"]
    source["conv_out.weight"] = torch.zeros(4, 32, 1, 1)
    del source["conv_norm_out.bias"]
    with pytest.raises(ConversionError) as error:
        place(source, shapes, lambda key: "conv_in.bias" if key == "copy" else key, "unet.pth")
    message = str(error.value)
    assert "1 unknown (surplus.weight)" in message
    assert "1 missing (conv_norm_out.bias)" in message
    assert "1 doubled (copy and conv_in.bias)" in message
    assert "conv_out.weight is (4, 32, 1, 1), the network has (4, 32, 3, 3)" in message
    assert error.value.left_over == 1


def test_another_network_is_named(files, tmp_path):
    with pytest.raises(InputError, match="is a Stable-Diffusion VAE, not a Stable-Diffusion UNet"):
        read_as(files / "vae.safetensors", "unet")
    state = dict(torch_unet(adapter=False).state_dict())
    state["up_blocks.1.motion_modules.0.temporal_transformer.norm.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "latentsync_unet.pt")
    with pytest.raises(InputError, match="is LatentSync's UNet"):
        read_as(tmp_path / "latentsync_unet.pt", "unet")
    with pytest.raises(ConversionError, match=r"is a Stable Diffusion UNet .4 input channels"):
        musetalk.convert(torch_unet(4, adapter=False).state_dict())
    torch.save({"strange": torch.zeros(2)}, tmp_path / "strange.pt")
    with pytest.raises(InputError, match="first tensors are strange"):
        read_as(tmp_path / "strange.pt", "vae")


def test_the_wrong_unet_configuration_is_named(files, tmp_path):
    wrong = json.loads((files / "musetalk.json").read_text()) | {"in_channels": 9}
    (tmp_path / "musetalk.json").write_text(json.dumps(wrong))
    done = commands.unavglip(
        "convert", "musetalk", "--version", "v10", "--unet", files / "unet.pth", "--unet-config",
        tmp_path / "musetalk.json", *common(files), "--output", tmp_path / "pack", expect=1,
    )  # fmt: skip
    assert "configuration says in_channels 9" in done.stderr and "has 8" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["musetalk.json"]  # nothing is left behind


def test_differing_copies_of_an_adapter_tensor_are_refused(files):
    source = dict(read(files / "adapter.bin"))
    published = json.loads((files / "unet.json").read_text())
    key = "adapter_modules.3.to_v_ip.weight"
    with pytest.raises(ConversionError, match=r"different values .* for 1 tensors"):
        unavglip.convert(source | {key: source[key] + 1e-3}, published)
    with pytest.raises(ConversionError, match=r"adapter_modules\.99\.x, but this UNet has 32"):
        unavglip.convert(source | {"adapter_modules.99.x": source[key]}, published)
    with pytest.raises(ConversionError, match="only one of the two names of 1 adapter"):
        unavglip.convert({k: v for k, v in source.items() if k != key}, published)
    with pytest.raises(ConversionError, match="nothing under image_proj_model"):
        unavglip.convert({k: v for k, v in source.items() if "image_proj" not in k}, published)


def test_a_failed_write_leaves_nothing(pack, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("No space left on device")

    config, weights = assets.load_component(pack, "vae")
    monkeypatch.setattr(params, "save", fail)
    fields = assets.read_pack(pack).model_dump(exclude={"components"})
    before = sorted(pack.iterdir())
    with pytest.raises(OSError, match="No space"):
        assets.write_pack(tmp_path / "new", fields, {"vae": (config, weights, "x", "y")})
    with pytest.raises(OSError, match="No space"):
        assets.add_components(pack, {"lpips": (config, weights, "x", "y")})
    assert not list(tmp_path.iterdir())
    assert sorted(pack.iterdir()) == before


def test_an_added_embedder_is_the_packs_own(tmp_path):
    config, key = (
        IResNetConfig(blocks=(1, 1, 1, 1), widths=(4, 4, 4, 4)),
        jax.random.key(0, impl="rbg"),
    )
    network = (config, params.init(IResNet, config, key), "x", "y")
    fields = {"system": "musetalk", "audio_front_end": "v10", "crop": "musetalk_v10"}
    assets.write_pack(tmp_path / "pack", fields | {"mask": "lower_half"}, {})
    assert assets.read_pack(tmp_path / "pack").identity is None
    assets.add_components(tmp_path / "pack", {"identity": network})
    assert assets.read_pack(tmp_path / "pack").identity.embedder == "identity"


def test_a_damaged_pack_is_refused(pack, tmp_path):
    with pytest.raises(InputError, match=r"no pack\.yaml"):
        assets.read_pack(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in pack.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = bytearray((copy / "vae.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "vae.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="damaged or was changed"):
        assets.load_component(copy, "vae")
    with pytest.raises(InputError, match=r"has no lpips; it has .*unet"):
        assets.load_component(copy, "lpips")
    description = yaml.safe_load((pack / "pack.yaml").read_text())
    for change, says in (
        ({"mask": "all"}, "mask"),
        ({"colour": 1}, "colour"),
        (
            {"components": {"vae": description["components"]["vae"] | {"file": "../x"}}},
            "plain file name",
        ),
    ):
        (copy / "pack.yaml").write_text(yaml.safe_dump(description | change))
        with pytest.raises(InputError, match=says):
            assets.read_pack(copy)


def test_the_command_explains_itself(pack, files):
    assert "convert" in commands.unavglip("--help").stdout
    program = Path(sys.executable).with_name("unavglip")
    line = [program, "convert", "export", "--pack", files, "--output", "x"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    done = commands.unavglip("convert", "export", "--pack", pack, "--output", pack, expect=1)
    assert "exists" in done.stderr


@pytest.mark.full
def test_converting_the_full_unet_takes_less_than_two_and_a_half_files(tmp_path):
    _, shapes = params.abstract(UNet, musetalk.UNetConfig())
    random = np.random.default_rng(0)
    state = {p: random.standard_normal(s.shape, np.float32) for p, s in shapes.items()}
    torch.save(tensors(to_torch(state)), tmp_path / "pytorch_model.bin")
    del state
    program = f"""
from pathlib import Path
from unavglip_jax.convert import musetalk
from unavglip_jax.convert.formats import read_as
from unavglip_jax import assets
config, weights = musetalk.convert(read_as({str(tmp_path / "pytorch_model.bin")!r}, "unet")[0])
fields = dict(system="musetalk", audio_front_end="v10", crop="musetalk_v10", mask="lower_half")
assets.write_pack({str(tmp_path / "pack")!r}, fields, dict(unet=(config, weights, "x", "y")))
peak = next(s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s)
print(int(peak.split()[1]) * 1024)  # not ru_maxrss, which begins with the parent's
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    size = (tmp_path / "pytorch_model.bin").stat().st_size
    print(f"peak {int(done.stdout) / 1e9:.2f} GB for a file of {size / 1e9:.2f} GB")
    assert size > 3.39e9 and int(done.stdout) < 2.5 * size
