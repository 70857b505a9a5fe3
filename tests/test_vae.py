"""The auto-encoder against diffusers' AutoencoderKL."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from comparing import channels_first, channels_last, randomise, relative_error
from unavglip_jax import params
from unavglip_jax.convert import vae
from unavglip_jax.convert.state_dict import ConversionError
from unavglip_jax.models.vae import VAE, VAEConfig, fold, unfold


@pytest.fixture(scope="module")
def theirs():
    model = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
    )
    return randomise(model)


@pytest.fixture(scope="module")
def ours(theirs):
    config, weights = vae.convert(theirs.state_dict(), dict(theirs.config))
    return config, params.abstract(VAE, config)[0], weights


def images(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def test_moments_and_gradient_equal_diffusers(theirs, ours):
    _, graphdef, weights = ours
    x = images(2, 3, 32, 48)  # not square
    given = torch.tensor(x, requires_grad=True)
    posterior = theirs.encode(given).latent_dist
    (posterior.mean**2).mean().backward()
    forward = jax.jit(lambda w, x: params.bind(graphdef, w).moments(x))
    mean, logvar = forward(weights, channels_last(x))
    assert relative_error(channels_first(mean), posterior.mean.detach()) < 1e-5
    assert relative_error(channels_first(logvar), posterior.logvar.detach()) < 1e-5
    gradient = jax.jit(jax.grad(lambda x: (forward(weights, x)[0] ** 2).mean()))(channels_last(x))
    assert relative_error(channels_first(gradient), given.grad) < 1e-4


def test_decode_equals_diffusers_and_undoes_the_scaling(theirs, ours):
    config, graphdef, weights = ours
    z = np.random.default_rng(1).standard_normal((2, 4, 16, 24), np.float32)
    with torch.no_grad():
        expected = theirs.decode(torch.tensor(z)).sample
    decode = jax.jit(lambda w, z: params.bind(graphdef, w).decode(z))
    found = decode(weights, channels_last(z) * config.scaling_factor)
    assert relative_error(channels_first(found), expected) < 1e-5


def test_encode_is_the_scaled_mode(ours):
    config, graphdef, weights = ours
    x = channels_last(images(1, 3, 16, 16))
    model = params.bind(graphdef, weights)
    np.testing.assert_array_equal(model.encode(x), model.moments(x)[0] * config.scaling_factor)


@pytest.mark.parametrize("as_convolution", [False, True])
def test_legacy_attention_names_convert_to_the_same(theirs, ours, as_convolution):
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, tensor in theirs.state_dict().items():
        for new, legacy in renamed.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{legacy}.")
        if as_convolution and "attentions.0" in key and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        old[key] = tensor
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in old
    _, weights = vae.convert(old, dict(theirs.config))
    assert weights.keys() == ours[2].keys()
    assert all((weights[name] == ours[2][name]).all() for name in weights)


def test_a_missing_tensor_is_named(theirs):
    source = dict(theirs.state_dict())
    del source["decoder.mid_block.resnets.1.conv2.bias"]
    with pytest.raises(
        ConversionError, match=r"1 missing \(decoder.mid_block.resnets.1.conv2.bias\)"
    ):
        vae.convert(source, dict(theirs.config))


def test_bfloat16_stays_near_float32(ours):
    config, graphdef, weights = ours
    half = config.replace(dtype="bfloat16", param_dtype="bfloat16")
    half_graph, shapes = params.abstract(VAE, half)
    x = channels_last(images(1, 3, 32, 32))
    plain = params.bind(graphdef, weights).moments(x)[0]
    found = params.bind(half_graph, params.cast(weights, shapes)).moments(x)[0]
    error = relative_error(found, plain)
    print(f"bfloat16 against float32: {error:.1e}")
    assert found.dtype == jnp.float32 and 1e-4 < error < 5e-2


def test_full_size_has_the_published_number_of_parameters():
    _, shapes = params.abstract(VAE, VAEConfig())
    assert (params.count(shapes), len(shapes)) == (83_653_863, 248)


def test_without_groups_there_are_no_norms(theirs, ours):
    plain = copy.deepcopy(theirs)
    for module in [m for m in plain.modules() if not isinstance(m, torch.nn.GroupNorm)]:
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    config, _, weights = ours
    graphdef, shapes = params.abstract(VAE, config.replace(norm_num_groups=0))
    weights = {name: value for name, value in weights.items() if "norm" not in name}
    assert weights.keys() == shapes.keys()
    x = images(2, 3, 32, 48)
    with torch.no_grad():
        expected = plain.decode(plain.encode(torch.tensor(x)).latent_dist.mean).sample

    def found(weights, x):
        vae = params.bind(graphdef, weights)
        return vae.decode(vae.encode(x))

    found = channels_first(jax.jit(found)(weights, channels_last(x)))
    assert relative_error(found, expected) < 1e-5


def test_patches_are_pixels_in_another_order():
    x = images(2, 8, 12, 3)
    patches = fold(x, 4)
    # PyTorch's order is colour by colour, ours pixel by pixel
    theirs = torch.nn.functional.pixel_unshuffle(torch.tensor(channels_first(x)), 4)
    theirs = theirs.reshape(2, 3, 16, 2, 3).permute(0, 3, 4, 2, 1).reshape(2, 2, 3, 48)
    assert np.array_equal(patches, theirs)
    assert np.array_equal(unfold(patches, 4), x)


def test_patches_shrink_the_latents_and_come_back_as_images():
    config = VAEConfig(
        patch_size=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4
    )
    weights = params.init(VAE, config, jax.random.key(0, impl="rbg"))
    vae = params.bind(params.abstract(VAE, config)[0], weights)
    latents = vae.encode(images(1, 32, 64, 3))
    assert latents.shape == (1, 4, 8, 4)
    assert vae.decode(latents).shape == (1, 32, 64, 3)
