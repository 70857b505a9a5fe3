"""The identity Perceiver against the golden numbers and torch's own decoder layer."""

import jax
import numpy as np
import pytest
import torch
from test_unet import recipe, wave

from comparing import relative_error
from unavglip_jax import params
from unavglip_jax.convert.state_dict import place
from unavglip_jax.models.layers import audio_positions
from unavglip_jax.models.perceiver import DecoderLayer, Perceiver, PerceiverConfig

ORDER = {  # PyTorch's order of parameters, which the golden numbers count
    "latents": (1, 4, 384), "proj_in.weight": (384, 512), "proj_in.bias": (384,),
    "proj_out.weight": (384, 384), "proj_out.bias": (384,),
    "norm_out.weight": (384,), "norm_out.bias": (384,),
}  # fmt: skip
for i in range(4):
    ORDER |= {
        f"layers.{i}.0.norm1.weight": (384,), f"layers.{i}.0.norm1.bias": (384,),
        f"layers.{i}.0.norm2.weight": (384,), f"layers.{i}.0.norm2.bias": (384,),
        f"layers.{i}.0.to_q.weight": (1280, 384), f"layers.{i}.0.to_kv.weight": (2560, 384),
        f"layers.{i}.0.to_out.weight": (384, 1280),
        f"layers.{i}.1.0.weight": (384,), f"layers.{i}.1.0.bias": (384,),
        f"layers.{i}.1.1.weight": (1536, 384), f"layers.{i}.1.3.weight": (384, 1536),
    }  # fmt: skip
NORMS = ("norm1.weight", "norm2.weight", "norm_out.weight", ".1.0.weight")


@pytest.fixture(scope="module")
def golden():
    source = {name: t + 1 if name.endswith(NORMS) else t for name, t in recipe(ORDER).items()}
    graphdef, shapes = params.abstract(Perceiver, PerceiverConfig())
    assert (params.count(shapes), len(shapes)) == (12_939_264, 51)
    weights = place(source, shapes)
    return jax.jit(lambda x: params.bind(graphdef, weights)(x))


@pytest.mark.parametrize(
    ("n", "first", "total", "squares"),
    [
        (1, [-1.5872648, 0.8184683, -0.7513236, -0.8351247], 6.75733132, 3055.36440683),
        (3, [-1.5872347, 0.8185651, -0.7514876, -0.8349567], 6.75614342, 3055.37007384),
    ],
)
def test_resampler_gives_the_golden_numbers(golden, n, first, total, squares):
    out = np.asarray(golden(wave(0.11, 2, n, 512)), np.float64)
    assert out.shape == (2, 4, 384)
    np.testing.assert_allclose(out[0, 0, :4], first, atol=2e-6)
    np.testing.assert_allclose([out.sum(), (out**2).sum()], [total, squares], rtol=2e-5)


def test_order_of_embeddings_does_not_matter(golden):
    x = wave(0.11, 1, 3, 512)
    np.testing.assert_allclose(golden(x), golden(x[:, ::-1]), atol=2e-6)


def test_decoder_layer_equals_torch():
    dim = 128
    theirs = torch.nn.TransformerDecoderLayer(dim, dim // 64, batch_first=True).eval()
    source = {}
    for key, tensor in theirs.state_dict().items():
        if "in_proj" in key:  # torch packs q, k and v into one matrix
            for name, part in zip(("to_q", "to_k", "to_v"), tensor.chunk(3), strict=True):
                source[key.replace("in_proj_", f"{name}.")] = part
        else:
            source[key] = tensor
    kw = {"dtype": np.float32, "param_dtype": np.float32}
    build = lambda config, rngs: DecoderLayer(dim, rngs=rngs, **kw)
    graphdef, shapes = params.abstract(build, None)
    weights = place(source, shapes)
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 4, dim), np.float32)
    memory = rng.standard_normal((2, 3, dim), np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(latents), torch.tensor(memory))
    assert relative_error(params.bind(graphdef, weights)(latents, memory), expected) < 1e-5


def test_decoder_variant_gives_the_same_kind_of_tokens():
    config = PerceiverConfig(dim=64, depth=2, heads=2, embedding_dim=16, variant="decoder")
    graphdef, _ = params.abstract(Perceiver, config)
    weights = params.init(Perceiver, config, jax.random.key(0))
    for n in (1, 3):  # upstream's argument order works for 1 and 4 embeddings only
        assert params.bind(graphdef, weights)(wave(0.11, 2, n, 16)).shape == (2, 4, 384)


def test_audio_positions_give_the_golden_numbers():
    positions = audio_positions(50, 384)
    np.testing.assert_allclose(positions[1, :4], [0.84147, 0.54030, 0.81525, 0.57911], atol=5e-6)
    np.testing.assert_allclose(positions[49, :4], [-0.95375, 0.30059, 0.40681, -0.91351], atol=5e-6)
    np.testing.assert_allclose(positions[49, 382:], [0.00514076, 0.99998679], atol=5e-9)
