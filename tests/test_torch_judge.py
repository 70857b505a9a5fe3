"""PyTorch against JAX on one pack and clip: they agree, and whatever is changed in either is found."""

import copy
import importlib
import json
import math
import sys
import wave
from fractions import Fraction
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

import tiny
from comparing import channels_first, relative_error
from unavglip_jax import assets, evaluation, params
from unavglip_jax.config import InputError
from unavglip_jax.convert import parity, stable_syncnet, syncnet_v2, unavglip, wav2lip
from unavglip_jax.dubbing import generator
from unavglip_jax.evaluation import sync, torch_judge, torch_networks
from unavglip_jax.media import video
from unavglip_jax.models.perceiver import Perceiver, PerceiverConfig
from unavglip_jax.models.stable_syncnet import PRESETS, EncoderConfig, StableSyncNetConfig
from unavglip_jax.models.syncnet_v2 import SyncNetV2Config
from unavglip_jax.models.unet import merge_lora
from unavglip_jax.models.vae import VAEConfig
from unavglip_jax.models.wav2lip_syncnet import Wav2LipSyncNetConfig

VECTORS = Path(__file__).parent / "vectors"
SECONDS, FRAMES, GUIDE_SCALE = 0.48, 3, 0.6
KEY = jax.random.key(0, impl="rbg")

# As 16_pixel, but narrow and with attention.
STABLE = StableSyncNetConfig(
    audio_encoder=EncoderConfig(
        in_channels=1,
        size=(80, 52),
        block_out_channels=(4, 4, 8),
        downsample_factors=((5, 2), (4, 5), (5, 7)),
        attention_levels=(2,),
    ),
    visual_encoder=EncoderConfig(
        in_channels=48,
        size=(128, 256),
        block_out_channels=(4, 4, 8, 8),
        downsample_factors=((2, 4), (4, 4), (4, 4), (4, 4)),
        attention_levels=(2,),
    ),
    heads=2,
    norm_num_groups=2,
)


def drawn(name: str, config) -> tuple:
    """A component of a pack with random weights."""
    return config, params.init(assets.network_of(name)[0], config, KEY), "random", "none"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small spend their time in waiting for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two packs, with the adapter and without; a clip."""
    folder = tmp_path_factory.mktemp("judge")
    tiny.write_pack(folder / "unavglip")
    experts = {"syncnet_v2": SyncNetV2Config(), "wav2lip_syncnet": Wav2LipSyncNetConfig()}
    experts["stable_syncnet"] = STABLE
    assets.add_components(folder / "unavglip", {k: drawn(k, c) for k, c in experts.items()})

    about = tiny.DESCRIPTION | {"system": "musetalk", "audio_front_end": "v15", "identity": None}
    about |= {"crop": "musetalk_v15"}
    generator_alone = {
        name: (*assets.load_component(folder / "unavglip", name), "random", "none")
        for name in ("unet", "vae", "whisper")
    }
    assets.write_pack(folder / "musetalk", about, generator_alone)

    tiny.talking_photo(folder / "in.mp4", seconds=1.0)
    with wave.open(str(folder / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", None))
        file.writeframes(np.rint(tiny.speech(1.2) * 32767).astype("<i2").tobytes())
    return folder


@pytest.fixture(scope="module")
def made(work):
    return generator.load(work / "unavglip")


@pytest.fixture(scope="module")
def clip(work, made):
    files = (work / name for name in ("unavglip", "in.mp4", "speech.wav"))
    return torch_judge.read_clip(made, *files, SECONDS)


@pytest.fixture(scope="module")
def load():
    """`torch_networks.load`, which reads each network once."""
    return cache(torch_networks.load)


@pytest.fixture
def loaded_once(monkeypatch, load):
    """PyTorch's networks are not read again for each test."""
    monkeypatch.setattr(torch_networks, "load", load)


def altered(load, component: str, tensor: str):
    """`torch_networks.load` that changes one tensor of one network a little."""

    def change(folder, name, **options):
        config, network = load(folder, name, **options)
        if name == component:
            network = copy.deepcopy(network)
            network.state_dict()[tensor].mul_(1.05)
        return config, network

    return change


def failed(made, clip) -> list[str]:
    """The stages of the generator at which JAX and PyTorch differ."""
    with jax.default_matmul_precision("highest"):
        stages = torch_judge.generator_stages(made, clip, FRAMES, GUIDE_SCALE)
    assert len(stages) == 5
    return [stage.name for stage in stages if not stage.passes]


# ---- the check --------------------------------------------------------------------------------------


def test_a_pack_with_adapter_and_syncnets_agrees(work, monkeypatch):
    monkeypatch.setattr(sync, "BATCH", 8)
    files = (work / name for name in ("unavglip", "in.mp4", "speech.wav"))
    stages = torch_judge.check_parity(*files, frames=FRAMES, seconds=0.8)
    for stage in stages:
        print(stage)
        assert stage.passes, stage
    assert [stage.name for stage in stages] == [
        "audio features", "identity tokens", "encoded latents", "dubbed latents", "frames",
        "syncnet_v2, picture", "syncnet_v2, sound", "LSE-C", "LSE-D",
        "wav2lip_syncnet, picture", "wav2lip_syncnet, sound",
        "stable_syncnet, picture", "stable_syncnet, sound",
    ]  # fmt: skip
    limits = {stage.name: stage.limit for stage in stages}
    assert limits["frames"] == 1 / 255 and limits["LSE-C"] == limits["LSE-D"] == 1e-3


def test_a_pack_without_adapter_agrees(work):
    files = (work / name for name in ("musetalk", "in.mp4", "speech.wav"))
    stages = torch_judge.check_parity(*files, frames=FRAMES, seconds=SECONDS)
    names = ["audio features", "encoded latents", "dubbed latents", "frames"]
    assert [stage.name for stage in stages if stage.passes] == names
    assert len(stages) == 4


@pytest.mark.parametrize(
    ("component", "tensor", "first"),
    [
        ("whisper", "layers.1.self_attn.v_proj.weight", "audio features"),
        ("perceiver", "layers.0.0.to_kv.weight", "identity tokens"),
        ("vae", "encoder.conv_in.weight", "encoded latents"),
        ("unet", "time_embedding.linear_1.weight", "dubbed latents"),
        ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
         "dubbed latents"),
        ("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_v_ip.weight",
         "dubbed latents"),
        ("vae", "decoder.conv_out.weight", "frames"),
    ],
)  # fmt: skip
def test_another_weight_in_torch_is_found(made, clip, load, monkeypatch, component, tensor, first):
    monkeypatch.setattr(torch_networks, "load", altered(load, component, tensor))
    assert failed(made, clip)[:1] == [first]


def test_another_weight_in_jax_is_found(made, clip, loaded_once):
    weights = made.unet.weights | {"conv_out/bias": made.unet.weights["conv_out/bias"] + 0.01}
    changed = made._replace(unet=made.unet._replace(weights=weights))
    assert failed(changed, clip) == ["dubbed latents", "frames"]


def test_an_altered_stage_is_found(made, clip, loaded_once, monkeypatch):
    def check(expected, owner, name, other):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, other)
            assert failed(made, clip) == expected

    check(["dubbed latents", "frames"], torch_judge, "positions", lambda n, c: torch.zeros(n, c))
    step, states = generator.make_step, torch_networks.whisper_states
    no_guide = lambda made: lambda *inputs: step(made)(*inputs[:-1], np.float32(0))
    check(["frames"], generator, "make_step", no_guide)
    other_end = lambda encoder, mel, _: states(encoder, mel, "v15")
    everything_after = ["audio features", "dubbed latents", "frames"]
    check(everything_after, torch_networks, "whisper_states", other_end)


def test_differences():
    one = np.array([1.0, -4.0])
    assert torch_judge.difference(one, one) == torch_judge.difference(0 * one, 0 * one) == 0
    assert torch_judge.difference(one + [0, 0.5], one) == 0.125
    assert torch_judge.difference(one + [0, 0.5], one, relative=False) == 0.5
    for wrong in ([1.0, math.nan], [math.inf, -4.0], [1.0, -4.0, 0.0]):
        assert torch_judge.difference(np.array(wrong), one) == math.inf
        assert not torch_judge.Stage("a", torch_judge.difference(np.array(wrong), one), 1e9).passes
    assert torch_judge.difference(np.uint8([0]), np.uint8([255]), relative=False) == 255


# ---- lip sync ---------------------------------------------------------------------------------------


def test_another_syncnet_is_found(clip, monkeypatch):
    """By its embeddings and, for SyncNet v2, by its scores."""
    random = np.random.default_rng(0)
    picture, sound = random.standard_normal((2, 20, 1024)).astype("f4")
    slightly = sync.Embeddings(picture, 1.0003 * sound)
    found = iter([sync.Embeddings(picture, sound), slightly])
    monkeypatch.setattr(sync, "embeddings", lambda *_: next(found))
    *embeddings, lse_c, lse_d = torch_judge.expert_stages(clip, "syncnet_v2")
    assert [stage.passes for stage in embeddings] == [True, False]
    assert (lse_c.name, lse_d.name) == ("LSE-C", "LSE-D")
    assert lse_d.difference > 1e-3 and not lse_d.passes


@pytest.mark.parametrize(
    ("tensor", "passes"),
    [
        ("face_encoder.2.conv_block.0.weight", [False, True]),
        ("audio_encoder.1.conv_block.0.weight", [True, False]),
    ],
)
def test_another_weight_of_an_expert_is_found(clip, load, monkeypatch, tensor, passes):
    monkeypatch.setattr(sync, "BATCH", 8)
    monkeypatch.setattr(torch_networks, "load", altered(load, "wav2lip_syncnet", tensor))
    stages = torch_judge.expert_stages(clip, "wav2lip_syncnet")
    assert [stage.passes for stage in stages] == passes


def test_another_look_at_the_crops_is_found(clip, monkeypatch):
    monkeypatch.setattr(sync, "BATCH", 8)
    tensor = torch_judge.tensor  # RGB for BGR
    swapped = lambda x: tensor(x[..., ::-1].copy() if x.shape[-1] == 3 else x)
    monkeypatch.setattr(torch_judge, "tensor", swapped)
    picture, sound = torch_judge.expert_stages(clip, "wav2lip_syncnet")
    assert not picture.passes and sound.passes


def test_the_scores_are_those_of_the_definition():
    """A sound that is the picture three frames later, and noise: the least distance is known."""
    random = np.random.default_rng(0)
    picture, noise = random.standard_normal((2, 60, 16)).astype("f4")
    sound = np.roll(picture, -3, axis=0)
    lse_c, lse_d = torch_judge.scores(picture, sound + 0.1 * noise)
    ours = sync.distances_to_scores(sync.distances(picture, sound + 0.1 * noise))
    np.testing.assert_allclose([lse_c, lse_d], [ours.lse_c, ours.lse_d], atol=1e-5)
    # frames 0 to 2 have no sound there: their distance is their own length
    exact = (
        np.linalg.norm(0.1 * noise, axis=1)[:57].sum() + np.linalg.norm(picture[:3], axis=1).sum()
    )
    assert abs(lse_d - exact / 60) < 1e-3
    assert lse_c > 3


def test_a_stable_syncnet_of_latents_is_left_out():
    of = lambda config: assets.Component(
        file="a", sha256="", config=config.model_dump(mode="json"), source="", licence=""
    )
    assert torch_judge.usable("stable_syncnet", of(STABLE))
    assert not torch_judge.usable("stable_syncnet", of(PRESETS["16_latent"]))
    assert torch_judge.usable("syncnet_v2", of(SyncNetV2Config()))


# ---- the networks -----------------------------------------------------------------------------------


def vectors(name: str):
    """Weights, inputs channels first and outputs of an original network."""
    manifest = json.loads((VECTORS / name / "manifest.json").read_text())
    inputs = {
        key: torch.tensor(channels_first(x) if x.ndim > 3 else x)
        for key, x in parity.draw(manifest).items()
    }
    return manifest, parity.state_dict(manifest), inputs, np.load(VECTORS / name / "io.npz")


@pytest.mark.parametrize(
    ("name", "folder", "converter", "methods"),
    [
        ("syncnet_v2", "syncnet_v2", syncnet_v2,
         {"mfcc": ("audio", "audio"), "lip": ("lip", "lip")}),
        ("wav2lip_syncnet", "wav2lip_syncnet_color", wav2lip,
         {"mel": ("audio", "audio"), "face": ("face", "face")}),
        ("stable_syncnet", "latentsync_syncnet_16_latent", stable_syncnet,
         {"audio": ("audio", "audio"), "image": ("visual", "vision")}),
    ],
)  # fmt: skip
def test_syncnets_are_the_originals(name, folder, converter, methods):
    """`methods`: input of the vectors -> method of ours, and its embedding in the vectors."""
    _, source, x, outputs = vectors(folder)
    network = torch_networks.build(name, *converter.convert(source))
    for key, (method, output) in methods.items():
        found = getattr(network, method)(x[key])
        assert relative_error(found, outputs[f"{output}_embedding"]) < 1e-5, key


def test_the_adapted_unet_is_the_original():
    manifest, source, x, outputs = vectors("unavglip_tiny")
    found = unavglip.convert(source, manifest["config"], manifest["resampler"]["dim_head"])
    perceiver = torch_networks.build("perceiver", found.perceiver_config, found.perceiver)
    tokens = perceiver(x["id_embeds"])
    assert relative_error(tokens, outputs["id_tokens"]) < 1e-5
    scales = {"lora_scale": manifest["lora_scale"], "guide_scale": manifest["ip_scale"]}

    def run(config, weights):
        unet = torch_networks.build("unet", config, weights, **scales)
        context = torch.cat([x["audio"], tokens], dim=1)
        return unet(x["latents"], manifest["timestep"], context).sample

    assert relative_error(run(found.unet_config, found.unet), outputs["out"]) < 1e-5
    merged, config = merge_lora(found.unet, found.unet_config, manifest["lora_scale"])
    assert config.lora_rank == 0
    assert relative_error(run(config, merged), outputs["out"]) < 1e-5


def test_the_perceiver_with_decoder_layers_is_the_jax_one():
    """No vectors of it are small."""
    config = PerceiverConfig(dim=128, depth=2, embedding_dim=16, variant="decoder")
    graphdef, shapes = params.abstract(Perceiver, config)
    random = np.random.default_rng(1)
    weights = {k: 0.2 * random.standard_normal(s.shape, np.float32) for k, s in shapes.items()}
    x = random.standard_normal((2, 3, 16), np.float32)
    theirs = torch_networks.build("perceiver", config, weights)(torch.tensor(x))
    ours = jax.jit(lambda w, x: params.bind(graphdef, w)(x))(weights, x)
    assert relative_error(theirs, ours) < 1e-5


def test_an_auto_encoder_that_diffusers_does_not_have_is_refused():
    for changes in ({"patch_size": 4}, {"norm_num_groups": 0}):
        with pytest.raises(InputError, match="patches or without norms, which diffusers"):
            torch_networks.vae(VAEConfig(**changes))


def test_what_cannot_be_loaded_is_named(work):
    with pytest.raises(InputError, match="there is no identity in PyTorch; there are unet, vae"):
        torch_networks.load(work / "unavglip", "identity")
    with pytest.raises(InputError, match="musetalk has no perceiver"):
        torch_networks.load(work / "musetalk", "perceiver")
    with pytest.raises(InputError, match=r"musetalk has no syncnet_v2"):
        torch_judge.expert(work / "musetalk", "syncnet_v2")


def test_a_clip_without_a_face_is_named(work, made):
    files = (work / name for name in ("unavglip", "wall.mp4", "speech.wav"))
    with video.write_video(work / "wall.mp4", 160, 120, Fraction(25)) as put:
        for _ in range(3):
            put(np.full((120, 160, 3), 90, np.uint8))
    with pytest.raises(InputError, match=r"wall\.mp4 shows no face"):
        torch_judge.read_clip(made, *files, SECONDS)


@pytest.mark.parametrize("package", ["torch", "diffusers", "transformers"])
def test_a_package_that_is_not_installed_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, torch_networks.__name__)
    monkeypatch.delattr(evaluation, "torch_networks")
    with pytest.raises(InputError, match=rf"{package}.*; install unavglip-jax\[eval\]"):
        importlib.reload(torch_judge)
