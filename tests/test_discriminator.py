"""The patch discriminator and its spectral norm against a torch network written here."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from comparing import channels_first, channels_last, randomise, relative_error
from unavglip_jax import params
from unavglip_jax.convert.state_dict import place
from unavglip_jax.models.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    normalised,
    power_iteration,
    singular_vectors,
)

TINY = DiscriminatorConfig(widths=(4, 6, 8))
SHARP = TINY.replace(norm=False, differences=4.0)
PUBLISHED = DiscriminatorConfig()


class TorchBlock(nn.Module):
    def __init__(self, inputs, width, norm, pool):
        super().__init__()
        self.conv = nn.utils.spectral_norm(nn.Conv2d(inputs, width, 4))
        self.norm = nn.InstanceNorm2d(width, affine=True) if norm else None
        self.pool = nn.AvgPool2d(2) if pool else nn.Identity()

    def forward(self, x):
        x = self.conv(x)
        x = self.norm(x) if self.norm else x
        return self.pool(nn.functional.leaky_relu(x, 0.2))


class TorchDiscriminator(nn.Module):
    def __init__(self, widths, norm=True, differences=0.0):
        super().__init__()
        torch.manual_seed(0)  # spectral_norm draws its vectors
        self.differences = differences
        sizes = zip((9 if differences else 3, *widths), widths, strict=False)
        self.down_blocks = nn.ModuleList(
            TorchBlock(*size, norm and i > 0, i < len(widths) - 1) for i, size in enumerate(sizes)
        )
        self.conv = nn.utils.spectral_norm(nn.Conv2d(widths[-1], 1, 1))

    def forward(self, x):
        if self.differences:
            right = nn.functional.pad(x[..., 1:] - x[..., :-1], (0, 1))
            down = nn.functional.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
            x = torch.cat([x, self.differences * right, self.differences * down], dim=1)
        features = []
        for block in self.down_blocks:
            x = block(x)
            features.append(x)
        return self.conv(x), features


def converted(theirs, shapes):
    """Parameters and singular vectors; torch counts a kernel's inputs channel by channel."""
    state = theirs.state_dict()
    ending = lambda name: {k: t for k, t in state.items() if k.endswith(name)}
    weights = {k: t for k, t in state.items() if not k.endswith(("weight_u", "weight_v"))}
    weights = place(weights, shapes, lambda key: key.replace("weight_orig", "weight"))
    vectors = {
        key.replace(".", "/").replace("weight_u", "u"): u.numpy().copy()
        for key, u in ending("weight_u").items()
    }
    for key, v in ending("weight_v").items():
        rows, columns, inputs, _ = weights[
            key.replace(".", "/").replace("weight_v", "kernel")
        ].shape
        v = v.numpy().reshape(inputs, rows, columns).transpose(1, 2, 0)
        vectors[key.replace(".", "/").replace("weight_v", "v")] = v.reshape(-1).copy()
    return weights, vectors


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def objective(scores, features):
    """Some number in which every output counts."""
    return ((1 - scores) ** 2).mean() + sum((feature**2).mean() for feature in features)


@pytest.fixture(scope="module")
def tiny():
    return both(TINY)


@cache
def both(config):
    """Torch's network and ours, compiled once for all tests."""
    graphdef, shapes = params.abstract(Discriminator, config)
    theirs = randomise(TorchDiscriminator(config.widths, config.norm, config.differences))
    weights, vectors = converted(theirs, shapes)

    def loss(weights, vectors, images):
        found = params.bind(graphdef, normalised(weights, vectors))(images)
        return objective(*found), found

    gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 2), has_aux=True))
    return theirs, shapes, weights, vectors, gradients


@pytest.mark.parametrize(
    ("config", "training"),
    [(TINY, True), (TINY, False), (SHARP, True)],
    ids=["training", "not", "sharp"],
)
def test_scores_features_and_gradients_are_torchs(config, training):
    """In training PyTorch takes a step of the power iteration before each pass; in evaluation none."""
    theirs, shapes, weights, _, gradients = both(config)
    _, before = converted(theirs, shapes)
    images = random_images(2, 3, 41, 38, seed=1)  # odd sizes lose a row when pooled
    theirs.train(training)
    theirs.zero_grad()
    pixels = torch.tensor(images, requires_grad=True)
    wanted = theirs(pixels)
    objective(*wanted).backward()

    _, vectors = converted(theirs, shapes)  # as torch has advanced them
    ours = power_iteration(weights, before) if training else before
    name = "down_blocks/1/conv/v"
    assert (relative_error(before[name], vectors[name]) > 1e-3) == training
    for name, vector in vectors.items():
        assert relative_error(ours[name], vector) < 1e-5, name

    (_, (scores, features)), (by_weight, by_image) = gradients(weights, ours, channels_last(images))
    for found, output in zip((scores, *features), (wanted[0], *wanted[1]), strict=True):
        assert relative_error(channels_first(found), output.detach()) < 1e-5
    assert relative_error(channels_first(by_image), pixels.grad) < 1e-5
    expected = place(
        {k.replace("weight_orig", "weight"): p.grad for k, p in theirs.named_parameters()}, shapes
    )
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    worst = {name: np.abs(by_weight[name] - leaf).max() for name, leaf in expected.items()}
    print(f"gradients: {max(worst.values()) / largest:.1e}")
    assert max(worst.values()) < 2e-5 * largest, worst


def test_gradient_of_spectral_norm_is_the_slope(tiny):
    _, _, weights, vectors, _ = tiny
    for _ in range(3):  # the norm of a kernel must not be near 0
        vectors = power_iteration(weights, vectors)
    weights = {name: leaf for name, leaf in weights.items() if name.endswith("kernel")}
    rng = np.random.default_rng(0)
    rows, direction = (
        {name: rng.standard_normal(leaf.shape, "f4") for name, leaf in weights.items()}
        for _ in range(2)
    )
    dot = lambda a, b: sum((a[name] * b[name]).sum() for name in a)
    f = jax.jit(lambda w: dot(rows, normalised(w, vectors)))
    moved = lambda step: {name: leaf + step * direction[name] for name, leaf in weights.items()}
    slope = (f(moved(1e-3)) - f(moved(-1e-3))) / 2e-3
    expected = dot(direction, jax.grad(f)(weights))
    # if the norm were a constant, the gradient would be another
    frozen = {n: rows[n] * normalised(weights, vectors)[n] / weights[n] for n in rows}
    assert abs(slope - expected) < 2e-3 * abs(expected)
    assert abs(dot(direction, frozen) - expected) > 0.02 * abs(expected)


def test_power_iteration_finds_the_largest_singular_values(tiny):
    _, shapes, weights, _, _ = tiny
    vectors = singular_vectors(shapes, jax.random.key(0))
    for vector in vectors.values():
        np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-6)
    advance = jax.jit(power_iteration)
    for _ in range(300):
        vectors = advance(weights, vectors)
    out = normalised(weights, vectors)
    assert set(out) == set(weights)
    for name, leaf in weights.items():
        if name.endswith("/kernel"):
            values = np.linalg.svd(np.reshape(out[name], (-1, leaf.shape[-1])), compute_uv=False)
            assert abs(values[0] - 1) < 1e-3, name
        else:
            assert out[name] is leaf


def test_vectors_have_no_gradient(tiny):
    _, _, weights, vectors, _ = tiny
    total = lambda params, vectors: sum(leaf.sum() for leaf in normalised(params, vectors).values())
    for leaf in jax.grad(total, argnums=1)(weights, vectors).values():
        assert not np.any(leaf)
    advanced = lambda params: sum(v.sum() for v in power_iteration(params, vectors).values())
    for leaf in jax.grad(advanced)(weights).values():
        assert not np.any(leaf)


def test_published_size_names_and_patches():
    graphdef, shapes = params.abstract(Discriminator, PUBLISHED)
    assert params.count(shapes) == 2_758_849
    with torch.device("meta"):
        theirs = TorchDiscriminator(PUBLISHED.widths)
    assert {k.replace("weight_orig", "weight") for k, _ in theirs.named_parameters()} == {
        name.replace("/", ".").replace("kernel", "weight").replace("scale", "weight")
        for name in shapes
    }
    for side, patches in ((224, 22), (256, 26)):
        images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
        scores, features = jax.eval_shape(lambda p, x: params.bind(graphdef, p)(x), shapes, images)
        assert scores.shape == (2, patches, patches, 1)
        assert [feature.shape[-1] for feature in features] == [64, 128, 256, 512]
        assert features[-1].shape == (2, patches, patches, 512)


def test_bfloat16_gives_float32_scores_near(tiny):
    _, _, weights, vectors, _ = tiny
    images, found = random_images(1, 40, 40, 3), []
    for dtype in ("float32", "bfloat16"):
        graphdef, shapes = params.abstract(
            Discriminator, TINY.replace(dtype=dtype, param_dtype=dtype)
        )
        cast = params.cast(normalised(weights, vectors), shapes)
        scores, features = jax.jit(params.bind(graphdef, cast))(images)
        assert {x.dtype for x in (scores, *features)} == {jnp.dtype("float32")}
        found.append(scores)
    assert 1e-4 < relative_error(found[1], found[0]) < 5e-2


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (3, 3)])
def test_images_too_small_for_a_patch_are_refused(tiny, size):
    _, _, weights, _, _ = tiny
    graphdef, _ = params.abstract(Discriminator, TINY)
    network = params.bind(graphdef, weights)
    with pytest.raises(ValueError, match=r"too small for a discriminator of 3 blocks"):
        network(random_images(1, *size, 3))
    with pytest.raises(ValueError, match=r"images must be \(batch, any, any, 3\)"):
        network(random_images(1, 40, 40, 4))
    scores, _ = network(random_images(1, 25, 25, 3))
    assert scores.shape == (1, 1, 1, 1)
