"""The three sync networks: sizes, refusals, precision, and StableSyncNet against its formulas in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from comparing import channels_last, randomise, relative_error
from unavglip_jax import params
from unavglip_jax.config import InputError, validate
from unavglip_jax.convert import stable_syncnet, syncnet_v2, wav2lip
from unavglip_jax.convert.state_dict import ConversionError, place, to_torch
from unavglip_jax.evaluation import torch_networks
from unavglip_jax.models.stable_syncnet import PRESETS, StableSyncNet, StableSyncNetConfig
from unavglip_jax.models.syncnet_v2 import SyncNetV2, SyncNetV2Config
from unavglip_jax.models.wav2lip_syncnet import Wav2LipSyncNet, Wav2LipSyncNetConfig

NETWORKS = {
    "wav2lip": (Wav2LipSyncNet, Wav2LipSyncNetConfig()),
    "syncnet_v2": (SyncNetV2, SyncNetV2Config()),
    **{name: (StableSyncNet, config) for name, config in PRESETS.items()},
}

TINY = StableSyncNetConfig(
    audio_encoder={
        "in_channels": 1,
        "size": (4, 3),
        "block_out_channels": (8, 16),
        "downsample_factors": ((2, 1), (2, 3)),
    },
    visual_encoder={
        "in_channels": 6,
        "size": (4, 8),
        "block_out_channels": (8, 16, 16),
        "downsample_factors": ((1, 2), (1, 1), (4, 4)),
        "attention_levels": (1,),
    },
    heads=4,
    norm_num_groups=4,
)


def trainable(shapes):
    return {k: v for k, v in shapes.items() if not k.endswith(("/mean", "/var"))}


def sizes(name):
    """Shapes of the two inputs of a network, for a batch of two."""
    if name == "wav2lip":
        return (2, 80, 16, 1), (2, 48, 96, 15)
    if name == "syncnet_v2":
        return (2, 13, 20, 1), (2, 5, 224, 224, 3)
    encoders = PRESETS[name].audio_encoder, PRESETS[name].visual_encoder
    return tuple((2, *e.size, e.in_channels) for e in encoders)


def both(net, sound, frames):
    """The two embeddings of any of the networks."""
    if isinstance(net, SyncNetV2):
        return net.audio(sound), net.lip(frames)
    return net(sound, frames)


def random_weights(shapes, seed=0):
    """Kernels scaled to keep the size of what they act on; norms that do nothing."""
    rng = np.random.default_rng(seed)

    def one(path, shape):
        if path.endswith("/kernel"):
            return rng.standard_normal(shape, "f4") / np.sqrt(np.prod(shape[:-1]), dtype="f4")
        return np.full(shape, float(path.endswith(("/scale", "/var"))), "f4")

    return {path: one(path, leaf.shape) for path, leaf in shapes.items()}


@pytest.fixture(scope="module")
def tiny():
    """Embeddings, and gradients of the sync loss, of the tiny StableSyncNet here and in torch."""
    theirs = randomise(torch_networks.StableSyncNet(TINY))
    graphdef, shapes = params.abstract(StableSyncNet, TINY)
    weights = place(theirs.state_dict(), shapes)
    rng = np.random.default_rng(0)
    mel, frames = rng.standard_normal((2, 1, 4, 3), "f4"), rng.standard_normal((2, 6, 4, 8), "f4")
    target = np.array([1.0, 0.0], "f4")

    pixels = torch.from_numpy(frames).requires_grad_()
    audio, visual = theirs.audio(torch.from_numpy(mel)), theirs.visual(pixels)
    cosine = (audio * visual).sum(-1)
    functional.binary_cross_entropy(cosine, torch.from_numpy(target)).backward()
    gradients = place({k: v.grad for k, v in theirs.named_parameters()}, shapes)
    expected = (audio.detach(), visual.detach()), gradients, channels_last(pixels.grad)

    def loss(given):
        weights, frames = given
        audio, visual = params.bind(graphdef, weights)(channels_last(mel), frames)
        cosine = (audio * visual).sum(-1)
        cross_entropy = target * jnp.log(cosine) + (1 - target) * jnp.log(1 - cosine)
        return -cross_entropy.mean(), (audio, visual)

    inputs = weights, jnp.asarray(channels_last(frames))
    (_, embeddings), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
    return weights, channels_last(mel), channels_last(frames), (embeddings, *found), expected


@pytest.mark.parametrize(
    ("name", "count", "width"),
    [
        ("wav2lip", 16_435_072, 512),
        ("syncnet_v2", 13_631_616, 1024),
        ("16_pixel", 371_766_496, 2048),
        ("16_pixel_attn", 401_306_080, 2048),
        ("16_latent", 65_544_416, 1024),
        ("25_pixel", 103_742_144, 1024),
    ],
)
def test_parameter_counts_and_embedding_widths(name, count, width):
    network, config = NETWORKS[name]
    graphdef, shapes = params.abstract(network, config)
    assert params.count(trainable(shapes)) == count
    inputs = [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes(name)]
    sound, picture = jax.eval_shape(
        lambda p, *x: both(params.bind(graphdef, p), *x), shapes, *inputs
    )
    assert sound.shape == picture.shape == (2, width)
    assert sound.dtype == picture.dtype == jnp.float32


def test_stable_syncnet_is_the_torch_network(tiny):
    """All kinds of downsampling, attention, equal and different widths."""
    *_, (found, _, _), (expected, _, _) = tiny
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < 1e-5
        np.testing.assert_allclose(np.linalg.norm(ours, axis=-1), 1, atol=1e-6)
        assert np.asarray(ours).min() >= 0


def test_gradients_of_stable_syncnet_are_torchs(tiny):
    """For the frames, which train a generator, and for every weight, which train the network."""
    *_, (_, by_weight, by_frames), (_, expected, frames) = tiny
    assert relative_error(by_frames, frames) < 1e-4
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    for name, leaf in expected.items():
        assert np.abs(by_weight[name] - leaf).max() < 1e-5 * largest, name


def test_stable_syncnet_in_bfloat16_stays_near(tiny):
    weights, mel, frames, (exact, _, _), _ = tiny
    low = TINY.replace(dtype="bfloat16", param_dtype="bfloat16")
    graphdef, shapes = params.abstract(StableSyncNet, low)
    net = jax.jit(lambda p, *x: params.bind(graphdef, p)(*x))
    for ours, rounded in zip(exact, net(params.cast(weights, shapes), mel, frames), strict=True):
        assert rounded.dtype == jnp.float32
        assert np.asarray((ours * rounded).sum(-1)).min() > 0.99


@pytest.mark.parametrize("name", ["wav2lip", "syncnet_v2"])
def test_the_fixed_networks_in_bfloat16_stay_near(name):
    network, config = NETWORKS[name]
    weights = random_weights(params.abstract(network, config)[1])
    rng = np.random.default_rng(0)
    sound, frames = (rng.uniform(size=size).astype("f4")[:1] for size in sizes(name))
    results = []
    for dtype in ("float32", "bfloat16"):
        graphdef, _ = params.abstract(network, config.replace(dtype=dtype))
        net = jax.jit(lambda p, *x, g=graphdef: both(params.bind(g, p), *x))
        results.append(net(weights, sound, frames))
    for exact, rounded in zip(*results, strict=True):
        assert rounded.dtype == jnp.float32
        assert relative_error(rounded, exact) < 0.03


@pytest.mark.parametrize("name", ["wav2lip", "syncnet_v2", "16_pixel"])
@pytest.mark.parametrize("which", ["sound", "frames"])
def test_other_sizes_are_refused_by_name(name, which):
    network, config = NETWORKS[name]
    graphdef, shapes = params.abstract(network, config)
    sound, frames = (list(size) for size in sizes(name))
    wrong = sound if which == "sound" else frames
    wrong[2] += 1
    inputs = [jax.ShapeDtypeStruct(tuple(size), jnp.float32) for size in (sound, frames)]
    with pytest.raises(ValueError, match=rf"must be \(batch, .*\), not .*{wrong[2]}"):
        jax.eval_shape(lambda p, *x: both(params.bind(graphdef, p), *x), shapes, *inputs)


def test_a_configuration_with_unknown_fields_is_refused():
    with pytest.raises(InputError, match="attn_blocks"):
        encoder = TINY.audio_encoder.model_dump() | {"attn_blocks": [0, 0]}
        validate(StableSyncNetConfig, {"audio_encoder": encoder}, "syncnet.yaml")


class Shaped:
    """Stands in for a tensor where only its shape is looked at."""

    def __init__(self, shape):
        self.shape = shape


@pytest.mark.parametrize("converter", [wav2lip, syncnet_v2])
def test_converters_of_the_fixed_networks_are_strict(converter):
    network, config = NETWORKS[converter.__name__.rsplit(".", 1)[1]]
    _, shapes = params.abstract(network, config)
    zeros = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in shapes.items()}
    source = to_torch(zeros) | {"a.num_batches_tracked": np.zeros((), np.int64)}
    assert set(converter.MARKS) < set(source)
    found, weights = converter.convert(source)
    assert found == config
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in shapes.items()}

    changed = {k: v for k, v in source.items() if k != converter.MARKS[0]} | {"more": np.zeros(3)}
    with pytest.raises(ConversionError, match=rf"^a file does.*more.*{converter.MARKS[0]}"):
        converter.convert(changed, "a file")


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_preset_is_found_by_its_shapes(name, monkeypatch):
    """Without the weights, which would be gigabytes: `place` is replaced by what it is asked to do."""
    _, shapes = params.abstract(StableSyncNet, PRESETS[name])
    source = {
        stable_syncnet.torch_name(path): Shaped(stable_syncnet.torch_shape(leaf.shape, path))
        for path, leaf in shapes.items()
    }
    assert set(stable_syncnet.MARKS) < set(source)
    monkeypatch.setattr(stable_syncnet, "place", lambda source, shapes, what: (shapes, what))
    config, (wanted, what) = stable_syncnet.convert(source, "a file")
    assert config == PRESETS[name]
    assert wanted == shapes
    assert what == f"a file (StableSyncNet {name})"

    source["audio_encoder.conv_in.weight"] = Shaped((7, 1, 3, 3))
    with pytest.raises(ConversionError, match=r"^a file .*16_pixel, 16_pixel_attn, 16_latent, 25"):
        stable_syncnet.convert(source, "a file")


def test_a_truncated_stable_syncnet_names_the_preset_and_what_is_missing():
    source = {"audio_encoder.conv_in.weight": np.zeros((64, 1, 3, 3))}
    with pytest.raises(ConversionError, match=r"25_pixel.*161 missing"):
        stable_syncnet.convert(source)
