"""VGG and LPIPS against torch networks written here, through the converters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from comparing import channels_first, channels_last, relative_error
from unavglip_jax import params
from unavglip_jax.convert import vgg as converter
from unavglip_jax.convert.state_dict import ConversionError
from unavglip_jax.models.lpips import LPIPS, LPIPSConfig
from unavglip_jax.models.vgg import VGG, member_names

TINY = (4, 6, 8, 10, 12)
COUNTS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions between poolings
FULL = (64, 128, 256, 512, 512)

# torchvision's indices of what losses look at: the output of features[:index].
ENDS_VGG19 = {
    "relu1_1": 2,
    "relu2_1": 7,
    "relu3_1": 12,
    "relu3_3": 16,
    "relu4_1": 21,
    "relu5_1": 30,
}
ENDS_VGG16 = {"relu1_2": 4, "relu2_2": 9, "relu3_3": 16, "relu4_3": 23, "relu5_3": 30}


def torch_vgg(depth, widths=TINY, seed=0) -> nn.Sequential:
    torch.manual_seed(seed)
    members, before = [], 3
    for width, convolutions in zip(widths, COUNTS[depth], strict=True):
        for _ in range(convolutions):
            members += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(members[-2].weight)
            nn.init.normal_(members[-2].bias, std=0.1)
            before = width
        members.append(nn.MaxPool2d(2))
    return nn.Sequential(*members)


def published(features: nn.Sequential) -> dict[str, torch.Tensor]:
    """The state dict as torchvision publishes it, with its classifier."""
    source = {f"features.{key}": tensor for key, tensor in features.state_dict().items()}
    return source | {"classifier.0.weight": torch.ones(2, 3), "classifier.6.bias": torch.ones(2)}


def taps(features: nn.Sequential, x: torch.Tensor, ends) -> list[torch.Tensor]:
    return [features[:end](x) for end in ends]


def images(*shape, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("depth", "widths", "ends", "count"),
    [
        (19, TINY, ENDS_VGG19, None),
        (16, TINY, ENDS_VGG16, None),
        (19, FULL, ENDS_VGG19, 12_944_960),
    ],
)
def test_vgg_is_torchvisions(depth, widths, ends, count):
    theirs = torch_vgg(depth, widths)
    config, weights = converter.convert(published(theirs))
    assert (config.depth, config.widths) == (depth, widths)
    assert count in (None, params.count(weights))
    graphdef, _ = params.abstract(VGG, config)
    x = images(2, 3, 34, 50)  # odd sizes lose a row when pooled

    # In float64: PyTorch's float32 gradient of the full network is off by 2e-3 on some processors, where
    # rounding turns a ReLU.
    tensor = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    outputs = taps(theirs.double(), tensor, ends.values())
    sum(output.square().mean() for output in outputs).backward()

    @jax.jit
    def ours(x):
        found = params.bind(graphdef, weights)(x, tuple(ends))
        return sum((output**2).mean() for output in found), found

    gradient, found = jax.grad(ours, has_aux=True)(channels_last(x))
    for name, output, wanted in zip(ends, found, outputs, strict=True):
        error = relative_error(channels_first(output), wanted.detach())
        print(f"VGG{depth} {name}: {error:.1e}")
        assert error < 1e-5
    error = relative_error(channels_first(gradient), tensor.grad)
    print(f"VGG{depth} gradient: {error:.1e}")
    assert error < 1e-5


def test_only_what_is_asked_for_is_computed_and_in_that_order():
    config, weights = converter.convert(published(torch_vgg(19)))
    graphdef, _ = params.abstract(VGG, config)
    vgg, x = params.bind(graphdef, weights), images(1, 16, 16, 3)
    third, first = vgg(x, ("relu3_3", "relu1_1"))
    assert (third.shape, first.shape) == ((1, 4, 4, 8), (1, 16, 16, 4))
    text = str(jax.make_jaxpr(lambda x: vgg(x, ("relu3_3",)))(x))
    assert text.count("conv_general_dilated[") == 7  # 2 + 2 + 3
    with pytest.raises(ValueError, match="no conv3_3, relu5_3; it ends at relu5_1"):
        vgg(x, ("conv3_3", "relu5_3"))
    with pytest.raises(ValueError, match="3"):
        vgg(x[..., :2], ("relu1_1",))


def test_vgg_in_bfloat16_returns_float32():
    config, weights = converter.convert(published(torch_vgg(19)))
    x, outputs = images(1, 32, 32, 3), []
    for dtype in ("float32", "bfloat16"):
        graphdef, shapes = params.abstract(VGG, config.replace(dtype=dtype, param_dtype=dtype))
        vgg = params.bind(graphdef, params.cast(weights, shapes))
        outputs.append(jax.jit(lambda x: vgg(x, ("relu5_1",))[0])(x))  # noqa: B023
    assert outputs[1].dtype == jnp.float32
    assert 1e-4 < relative_error(outputs[1], outputs[0]) < 5e-2


def test_members_have_torchvisions_numbers():
    names = member_names(19, "relu5_1")
    assert [i for i, name in enumerate(names) if name.startswith("pool")] == [4, 9, 18, 27]
    assert {name: names.index(name) + 1 for name in ENDS_VGG19} == ENDS_VGG19
    names = member_names(16, "relu5_3")
    assert {name: names.index(name) + 1 for name in ENDS_VGG16} == ENDS_VGG16
    with pytest.raises(ValueError, match="VGG16 has no relu3_4"):
        member_names(16, "relu3_4")


def test_other_networks_and_incomplete_files_are_refused():
    source = published(torch_vgg(16))
    with pytest.raises(ConversionError, match=r"alexnet\.pth is neither VGG16 nor VGG19"):
        converter.convert({"features.0.weight": torch.ones(4, 3, 11, 11)}, "alexnet.pth")
    lacking = {key: tensor for key, tensor in source.items() if key != "features.12.bias"}
    with pytest.raises(ConversionError, match=r"1 missing .*features\.12\.bias"):
        converter.convert(lacking)
    with pytest.raises(ConversionError, match=r"1 unknown .*features\.1\.weight"):
        converter.convert(source | {"features.1.weight": torch.ones(4)})
    with pytest.raises(ConversionError, match="need VGG16, not VGG19"):
        converter.convert_lpips(published(torch_vgg(19)), torch_heads())
    with pytest.raises(ConversionError, match="lin4"):
        converter.convert_lpips(source, dict(list(torch_heads().items())[:4]))


def torch_heads(widths=TINY):
    generator = torch.Generator().manual_seed(3)
    return {
        f"lin{i}.model.1.weight": torch.rand((1, width, 1, 1), generator=generator)
        for i, width in enumerate(widths)
    }


def torch_lpips(features, heads, x, y):
    """LPIPS 0.1 from its definition."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    maps = [taps(features, (image - shift) / scale, ENDS_VGG16.values()) for image in (x, y)]
    total = 0
    for a, b, weight in zip(*maps, heads.values(), strict=True):
        a, b = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (a, b))
        total = total + nn.functional.conv2d((a - b).square(), weight).mean((1, 2, 3))
    return total


@pytest.fixture(scope="module")
def lpips():
    features, heads = torch_vgg(16), torch_heads()
    config, weights = converter.convert_lpips(published(features), heads)
    assert config == LPIPSConfig(widths=TINY)
    graphdef, shapes = params.abstract(LPIPS, config)
    assert list(weights) == list(shapes)
    return jax.jit(params.bind(graphdef, weights)), features, heads


def test_lpips_is_its_definition(lpips):
    ours, features, heads = lpips
    x, y = images(3, 3, 48, 32), images(3, 3, 48, 32, seed=2)
    tensor = torch.tensor(x, requires_grad=True)
    wanted = torch_lpips(features, heads, tensor, torch.tensor(y))
    wanted.sum().backward()
    x, y = channels_last(x), channels_last(y)
    found = ours(x, y)
    gradient = jax.grad(lambda x: ours(x, y).sum())(x)
    errors = (
        relative_error(found, wanted.detach()),
        relative_error(channels_first(gradient), tensor.grad),
    )
    print("LPIPS, its gradient: {:.1e}, {:.1e}".format(*errors))
    assert errors[0] < 1e-5
    assert errors[1] < 1e-4
    np.testing.assert_allclose(ours(y, x), found, rtol=1e-6)


def test_lpips_of_identical_images_is_zero_with_a_finite_gradient(lpips):
    ours, features, _ = lpips
    # A black pixel's activations may all be zero, where the gradient of the norm does not exist.
    dead = {key: -tensor.abs() for key, tensor in features.state_dict().items()}
    source = published(features) | {f"features.{key}": dead[key] for key in ("0.bias", "28.bias")}
    source["features.28.weight"] = -source["features.28.weight"].abs()
    config, weights = converter.convert_lpips(source, torch_heads())
    graphdef, _ = params.abstract(LPIPS, config)
    network = params.bind(graphdef, weights)
    gradient_of = jax.jit(jax.grad(lambda x, y: network(x, y).sum()))
    x = np.concatenate([images(1, 32, 32, 3), np.zeros((1, 32, 32, 3), np.float32)])
    assert np.all(np.asarray(ours(x, x)) < 1e-12)  # XLA may round the two branches differently
    assert np.all(np.isfinite(gradient_of(x, x)))
    gradient = gradient_of(x, x[::-1])
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0)


def test_lpips_refuses_pairs_that_do_not_match(lpips):
    with pytest.raises(ValueError, match="references"):
        lpips[0](images(1, 32, 32, 3), images(1, 32, 48, 3))


def test_lpips_has_the_published_size():
    _, shapes = params.abstract(LPIPS, LPIPSConfig())
    assert params.count(shapes) == 14_714_688 + 1472  # VGG16's convolutions and the heads
