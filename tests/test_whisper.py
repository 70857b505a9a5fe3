"""The Whisper encoder against transformers' and the parity vectors, from checkpoint to windows."""

import json
import math
import wave
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import WhisperConfig as TorchConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from comparing import randomise, relative_error
from unavglip_jax import params
from unavglip_jax.convert import parity, whisper
from unavglip_jax.convert.state_dict import ConversionError, to_torch
from unavglip_jax.evaluation import torch_networks
from unavglip_jax.media import audio
from unavglip_jax.models.whisper import Whisper, WhisperConfig, sinusoids

VECTORS = Path(__file__).parent / "vectors"
MELS, CONTEXT, WIDTH, LAYERS = 16, 20, 128, 3
FRONT_ENDS = ["v10", "v15"]


@pytest.fixture(scope="module")
def encoder() -> WhisperEncoder:
    """transformers' encoder with random weights and its plain attention."""
    config = TorchConfig(
        d_model=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=WIDTH // 64,
        encoder_ffn_dim=4 * WIDTH,
        num_mel_bins=MELS,
        max_source_positions=CONTEXT,
        attn_implementation="eager",
    )
    encoder = randomise(WhisperEncoder(config))
    return encoder.requires_grad_()


def checkpoint(encoder, prefix="encoder.", values=lambda p: p.detach()) -> dict:
    return {f"{prefix}{name}": values(p) for name, p in encoder.named_parameters()}


def theirs(encoder, mel, front_end):
    """All hidden states (batch, T/2, layers + 1, width) of a time-major spectrogram."""
    return torch_networks.whisper_states(encoder, mel.swapaxes(1, 2), front_end)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ours(config):
    graphdef, _ = params.abstract(Whisper, config)
    return jax.jit(
        lambda p, mel, front_end: params.bind(graphdef, p)(mel, front_end), static_argnums=2
    )


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_hidden_states_are_transformers(encoder, front_end):
    config, weights = whisper.convert(checkpoint(encoder))
    assert config == WhisperConfig(
        n_mels=MELS,
        n_audio_ctx=CONTEXT,
        n_audio_state=WIDTH,
        n_audio_head=2,
        n_audio_layer=LAYERS,
    )
    mel = numbers(2, 2 * CONTEXT, MELS)
    with torch.no_grad():
        expected = theirs(encoder, torch.from_numpy(mel), front_end)
    found = ours(config)(weights, mel, front_end)
    assert found.shape == (2, CONTEXT, LAYERS + 1, WIDTH)
    for layer in range(LAYERS + 1):
        assert relative_error(found[:, :, layer], expected[:, :, layer]) < 1e-5


def test_the_front_ends_differ_in_the_last_state_only(encoder):
    config, weights = whisper.convert(checkpoint(encoder))
    mel = numbers(1, 2 * CONTEXT, MELS)
    v10, v15 = (np.asarray(ours(config)(weights, mel, front_end)) for front_end in FRONT_ENDS)
    np.testing.assert_allclose(v10[:, :, :-1], v15[:, :, :-1], atol=1e-5)
    assert relative_error(v10[:, :, -1], v15[:, :, -1]) > 0.1


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_gradients_are_transformers(encoder, front_end):
    config, weights = whisper.convert(checkpoint(encoder))
    mel = numbers(2, 2 * CONTEXT, MELS)
    cotangent = numbers(2, CONTEXT, LAYERS + 1, WIDTH, seed=1)

    encoder.zero_grad()
    mel_torch = torch.from_numpy(mel).requires_grad_()
    (theirs(encoder, mel_torch, front_end) * torch.from_numpy(cotangent)).sum().backward()
    zero_if_unused = lambda p: torch.zeros_like(p) if p.grad is None else p.grad
    _, expected = whisper.convert(checkpoint(encoder, values=zero_if_unused))

    run = ours(config)
    loss = lambda weights, mel: (run(weights, mel, front_end) * cotangent).sum()
    by_weight, by_mel = jax.jit(jax.grad(loss, argnums=(0, 1)))(weights, mel)
    assert relative_error(by_mel, mel_torch.grad) < 1e-4
    assert set(by_weight) == set(expected)
    for name, gradient in by_weight.items():
        if front_end == "v10" and name.startswith("ln_post"):
            assert not np.asarray(gradient).any()
        else:
            assert relative_error(gradient, expected[name]) < 1e-4, name


def test_every_published_form_gives_the_same_parameters(encoder):
    config, expected = whisper.convert(checkpoint(encoder))
    decoder = {"layers.0.fc1.weight": np.zeros((2, 3)), "embed_tokens.weight": np.zeros((3, 2))}
    openai = {f"encoder.{name}": value for name, value in to_torch(expected).items()}
    openai |= {
        "decoder.token_embedding.weight": np.zeros((5, 2)),
        "decoder.blocks.0.x": np.zeros(1),
    }
    model = checkpoint(encoder, "model.encoder.")
    model |= {f"model.decoder.{key}": value for key, value in decoder.items()}
    model |= {"proj_out.weight": np.zeros((3, 2))}
    bare = checkpoint(encoder) | {f"decoder.{key}": value for key, value in decoder.items()}
    half = {key: torch.as_tensor(value).half() for key, value in bare.items()}

    for source, marks, atol in (
        (openai, whisper.MARKS_OPENAI, 0),
        (model, whisper.MARKS_TRANSFORMERS_MODEL, 0),
        (bare, whisper.MARKS_TRANSFORMERS, 0),
        (half, whisper.MARKS_TRANSFORMERS, 1e-3),
    ):
        assert all(mark in source for mark in marks)
        found_config, found = whisper.convert(source)
        assert found_config == config
        assert list(found) == list(expected)
        for name, value in found.items():
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=atol)


@pytest.mark.parametrize("form", ["openai", "transformers"])
@pytest.mark.parametrize(
    ("width", "layers", "heads", "n_mels"),
    [
        (384, 4, 6, 80),
        (512, 6, 8, 80),
        (768, 12, 12, 80),
        (1024, 24, 16, 80),
        (1280, 32, 20, 80),
        (1280, 32, 20, 128),
    ],
    ids=["tiny", "base", "small", "medium", "large-v2", "large-v3"],
)
def test_published_sizes_are_read_from_the_tensors(form, width, layers, heads, n_mels):
    position, block = {
        "openai": ("encoder.positional_embedding", "encoder.blocks.{}.mlp.0.bias"),
        "transformers": (
            "model.encoder.embed_positions.weight",
            "model.encoder.layers.{}.fc1.bias",
        ),
    }[form]
    conv = position.rpartition("encoder.")[0] + "encoder.conv1.weight"
    empty = lambda *shape: np.broadcast_to(np.float32(0), shape)
    source = {conv: empty(width, n_mels, 3), position: empty(1500, width)}
    source |= {block.format(i): empty(4 * width) for i in range(layers)}
    assert whisper.config_of(source, "it") == WhisperConfig(
        n_mels=n_mels,
        n_audio_ctx=1500,
        n_audio_state=width,
        n_audio_head=heads,
        n_audio_layer=layers,
    )


def test_misfits_are_listed(encoder):
    source = checkpoint(encoder)
    del source["encoder.layers.1.fc1.bias"]
    source["encoder.layers.0.fc3.weight"] = torch.zeros(2, 2)
    source["model.mystery"] = torch.zeros(1)
    source["encoder.layer_norm.bias"] = torch.zeros(5)
    with pytest.raises(ConversionError) as error:
        whisper.convert(source, "bad.pt")
    message = str(error.value)
    assert message.startswith("bad.pt does not fit")
    assert "2 unknown (encoder.layers.0.fc3.weight, model.mystery)" in message
    assert "1 missing (blocks.1.mlp.0.bias)" in message
    assert "encoder.layer_norm.bias is (5,), the network has (128,)" in message


def test_both_names_of_one_tensor_are_refused(encoder):
    source = checkpoint(encoder)
    source["encoder.ln_post.bias"] = source["encoder.layer_norm.bias"]
    with pytest.raises(ConversionError, match="doubled"):
        whisper.convert(source)


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"encoder.conv1.weight": np.zeros((8, 4, 3))},
        {"encoder.conv1.weight": np.zeros((8, 4, 3, 3)), "encoder.positional_embedding": np.eye(8)},
    ],
    ids=["empty", "no positions", "another network"],
)
def test_other_networks_are_refused(source):
    with pytest.raises(ConversionError, match=r"other\.bin is not a Whisper encoder"):
        whisper.convert(source, "other.bin")


def test_positions_of_a_new_network_are_transformers():
    fresh = params.init(
        Whisper, WhisperConfig(n_audio_state=WIDTH, n_audio_head=2), jax.random.key(0)
    )
    untouched = WhisperEncoder(TorchConfig(d_model=WIDTH, encoder_attention_heads=2))
    expected = untouched.embed_positions.weight.detach()
    np.testing.assert_allclose(
        fresh["positional_embedding"], expected, atol=1e-4
    )  # theirs in float32


def speech() -> np.ndarray:
    with wave.open(str(VECTORS / "whisper_tiny" / "speech.wav")) as file:
        assert (file.getnchannels(), file.getframerate()) == (1, 16000)
        return np.frombuffer(file.readframes(-1), "<i2").astype(np.float32) / 32768


def encode_audio(run, samples, front_end):
    """The features of a recording on the device, every row from `steps` on zero, and `steps`.

    The number of rows, 1500 for each segment and one more, is the same for many recordings.
    """
    segments, steps = audio.whisper_segments(samples, front_end)
    states = jnp.concatenate([run(segment[None])[0] for segment in segments])
    states = jnp.pad(states, [(0, 1), (0, 0), (0, 0)])
    return jnp.where(jnp.arange(len(states))[:, None, None] < steps, states, 0), steps


def features(name, samples, front_end):
    """`encode_audio` with the network of a folder of vectors."""
    manifest = json.loads((VECTORS / name / "manifest.json").read_text())
    source = {
        key: sinusoids(*shape) if "position" in key else parity.weight(key, shape, manifest["seed"])
        for key, shape in manifest["keys"].items()
        if not key.startswith("decoder.")
    }
    config, weights = whisper.convert(source)
    run = ours(config)
    return encode_audio(lambda mel: run(weights, mel, front_end), samples, front_end)


@pytest.fixture(scope="module")
def vectors():
    return {
        name: np.load(VECTORS / name / "io.npz") for name in ("whisper_tiny", "whisper_tiny_v15")
    }


def test_speech_to_features_is_musetalk_10(vectors):
    found, steps = features("whisper_tiny", speech(), "v10")
    assert (steps, *found.shape[1:]) == tuple(vectors["whisper_tiny"]["features_shape"])
    assert relative_error(found[:steps:20], vectors["whisper_tiny"]["features"]) < 1e-4


def test_features_join_over_the_thirtieth_second(vectors):
    samples = np.resize(speech(), 33 * 16000)
    found, steps = features("whisper_tiny", samples, "v10")
    assert (steps, *found.shape[1:]) == tuple(vectors["whisper_tiny"]["features33_shape"])
    assert relative_error(found[1498:1502], vectors["whisper_tiny"]["features33_boundary"]) < 1e-4


def test_speech_to_windows_is_musetalk_15(vectors):
    samples = speech()
    found, steps = features("whisper_tiny_v15", samples, "v15")
    on_device = jax.jit(lambda rows, at: rows[at].reshape(len(at), -1, rows.shape[-1]))
    for fps in (24, 25, 30):
        count, *frames = vectors["whisper_tiny_v15"][f"frames_{fps}"]
        expected = vectors["whisper_tiny_v15"][f"chunks_{fps}"]
        assert audio.published_window_count(len(samples), Fraction(fps), "v15") == count
        lead = 2 * math.ceil(50 / fps)
        indices = audio.window_indices(count, Fraction(fps), steps, "v15", lead)[frames]
        windows = audio.gather_windows(np.asarray(found[:steps]), indices)
        assert relative_error(windows[:, ::5], expected) < 1e-4
        np.testing.assert_array_equal(on_device(found, indices), windows)
