"""Face parsing and face detection: against their formulas in torch, refusals, precision, both namings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from comparing import channels_first, channels_last, randomise, relative_error
from unavglip_jax import params
from unavglip_jax.convert import bisenet, s3fd
from unavglip_jax.convert.state_dict import ConversionError
from unavglip_jax.models.bisenet import BiSeNet, BiSeNetConfig, upsample
from unavglip_jax.models.s3fd import S3FD, S3FDConfig


class TorchConvNorm(nn.Module):
    def __init__(self, inputs, outputs, kernel):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return functional.relu(self.bn(self.conv(x)))


class TorchBasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if stride > 1:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x):
        hidden = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(hidden + self.downsample(x))


class TorchResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        before = 64
        for stage, width in enumerate((64, 128, 256, 512), start=1):
            first = TorchBasicBlock(before, width, 1 if stage == 1 else 2)
            blocks = nn.Sequential(first, TorchBasicBlock(width, width, 1))
            self.add_module(f"layer{stage}", blocks)
            before = width

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        eighth = self.layer2(self.layer1(x))
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


class TorchRefinement(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.conv = TorchConvNorm(inputs, 128, 3)
        self.conv_atten = nn.Conv2d(128, 128, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(128)

    def forward(self, x):
        x = self.conv(x)
        mean = functional.adaptive_avg_pool2d(x, 1)
        return x * self.bn_atten(self.conv_atten(mean)).sigmoid()


class TorchBiSeNet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.cp = nn.Module()
        self.cp.resnet = TorchResNet18()
        self.cp.arm16, self.cp.arm32 = TorchRefinement(256), TorchRefinement(512)
        self.cp.conv_head32, self.cp.conv_head16 = (TorchConvNorm(128, 128, 3) for _ in range(2))
        self.cp.conv_avg = TorchConvNorm(512, 128, 1)
        self.ffm = nn.Module()
        self.ffm.convblk = TorchConvNorm(256, 256, 1)
        self.ffm.conv1 = nn.Conv2d(256, 64, 1, bias=False)
        self.ffm.conv2 = nn.Conv2d(64, 256, 1, bias=False)
        for name, inputs, middle in (("", 256, 256), ("16", 128, 64), ("32", 128, 64)):
            head = nn.Module()
            head.conv = TorchConvNorm(inputs, middle, 3)
            head.conv_out = nn.Conv2d(middle, classes, 1, bias=False)
            self.add_module(f"conv_out{name}", head)

    def forward(self, images):
        eighth, sixteenth, last = self.cp.resnet(images)
        mean = self.cp.conv_avg(functional.adaptive_avg_pool2d(last, 1))
        context = self.cp.arm32(last) + mean
        context = self.cp.conv_head32(functional.interpolate(context, sixteenth.shape[2:]))
        context = self.cp.arm16(sixteenth) + context
        context = self.cp.conv_head16(functional.interpolate(context, eighth.shape[2:]))
        x = self.ffm.convblk(torch.cat([eighth, context], dim=1))
        mean = functional.adaptive_avg_pool2d(x, 1)
        x = x * self.ffm.conv2(functional.relu(self.ffm.conv1(mean))).sigmoid() + x
        logits = self.conv_out.conv_out(self.conv_out.conv(x))
        size = images.shape[2:]
        full = functional.interpolate(logits, size, mode="bilinear", align_corners=True)
        return logits, full


class TorchL2Norm(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x):
        return x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) * self.weight[:, None, None]


class TorchSFD(nn.Module):
    """S3FD as syncnet_python has it."""

    def __init__(self):
        super().__init__()
        members, before = [], 3
        for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(convolutions):
                members += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            members.append(nn.MaxPool2d(2, ceil_mode=width == 256))
        members += [nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.ReLU()]
        members += [nn.Conv2d(1024, 1024, 1), nn.ReLU()]
        self.vgg = nn.ModuleList(members)
        for stage, width in ((3, 256), (4, 512), (5, 512)):
            self.add_module(f"L2Norm{stage}_3", TorchL2Norm(width))
        extras = [nn.Conv2d(1024, 256, 1), nn.Conv2d(256, 512, 3, 2, 1)]
        extras += [nn.Conv2d(512, 128, 1), nn.Conv2d(128, 256, 3, 2, 1)]
        self.extras = nn.ModuleList(extras)
        widths = (256, 512, 512, 1024, 512, 256)
        self.loc = nn.ModuleList([nn.Conv2d(n, 4, 3, padding=1) for n in widths])
        classes = (4, 2, 2, 2, 2, 2)
        heads = [nn.Conv2d(n, k, 3, padding=1) for n, k in zip(widths, classes, strict=True)]
        self.conf = nn.ModuleList(heads)

    def forward(self, x):
        sources = []
        for index, member in enumerate(self.vgg):
            x = member(x)
            if index in (15, 22, 29):
                sources.append(getattr(self, f"L2Norm{3 + len(sources)}_3")(x))
        sources.append(x)
        for index, conv in enumerate(self.extras):
            x = functional.relu(conv(x))
            if index % 2:
                sources.append(x)
        found = []
        for source, conf, loc in zip(sources, self.conf, self.loc, strict=True):
            logits = conf(source)
            if logits.shape[1] == 4:
                background = logits[:, :3].max(1, keepdim=True).values
                logits = torch.cat([background, logits[:, 3:]], dim=1)
            found.append((logits, loc(source)))
        return found


def with_statistics(module):
    """Random weights, and running statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(1)
    for layer in randomise(module).modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(0.1 * torch.randn(layer.num_features, generator=generator))
            layer.running_var.copy_(1 + 0.1 * torch.rand(layer.num_features, generator=generator))
    return module


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, "f4")


@pytest.fixture(scope="module")
def parser():
    theirs = with_statistics(TorchBiSeNet(7))
    return theirs, bisenet.convert(theirs.state_dict())


@pytest.fixture(scope="module")
def detector():
    theirs = randomise(TorchSFD())
    source = theirs.state_dict()
    assert set(s3fd.MARKS_SYNCNET) < set(source)
    return theirs, s3fd.convert(source)


@pytest.mark.parametrize(("size", "larger"), [((64, 64), (512, 512)), ((3, 5), (24, 40))])
def test_upsampling_keeps_the_corners_as_torch_does(size, larger):
    x = images(2, 4, *size)
    expected = functional.interpolate(
        torch.from_numpy(x), larger, mode="bilinear", align_corners=True
    )
    found = jax.jit(lambda x: upsample(x, larger))(channels_last(x))
    assert relative_error(channels_first(found), expected) < 1e-5
    np.testing.assert_array_equal(found[:, -1, -1], x[:, :, -1, -1])


def test_bisenet_is_the_torch_network(parser):
    """Without its auxiliary heads, at a size that is no square."""
    theirs, (config, weights) = parser
    assert config == BiSeNetConfig(n_classes=7)
    graphdef, _ = params.abstract(BiSeNet, config)
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        logits, full = theirs(torch.from_numpy(x))
    ours = jax.jit(
        lambda p, x: (params.bind(graphdef, p)(x), params.bind(graphdef, p).full_size(x))
    )
    found = ours(weights, channels_last(x))
    assert found[0].shape == (2, 8, 12, 7)
    assert relative_error(channels_first(found[0]), logits) < 1e-5
    assert relative_error(channels_first(found[1]), full) < 1e-5


def test_the_syncnet_variant_of_s3fd_is_the_torch_network(detector):
    """An odd number of rows and columns before the third pooling tells it from the other variant."""
    theirs, (config, weights) = detector
    assert config == S3FDConfig(variant="syncnet")
    graphdef, shapes = params.abstract(S3FD, config)
    assert params.count(shapes) == 22_459_110
    x = 50 * images(1, 3, 68, 84)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x))
    found = jax.jit(lambda p, x: params.bind(graphdef, p)(x))(weights, channels_last(x))
    assert found[1][0].shape == (1, 9, 11, 2)
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert relative_error(channels_first(a), b) < 1e-5


def test_both_variants_of_s3fd_have_the_same_parameters(detector):
    _, (_, weights) = detector
    _, shapes = params.abstract(S3FD, S3FDConfig())
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in shapes.items()}


@pytest.mark.parametrize("network", ["parser", "detector"])
def test_bfloat16_stays_near(network, request):
    _, (config, weights) = request.getfixturevalue(network)
    kind = BiSeNet if network == "parser" else S3FD
    x = images(1, 64, 64, 3) * (1 if network == "parser" else 50)
    results = []
    for dtype in ("float32", "bfloat16"):
        graphdef, _ = params.abstract(kind, config.replace(dtype=dtype))
        net = jax.jit(lambda p, x, g=graphdef: params.bind(g, p)(x))
        results.append(jax.tree.leaves(net(weights, x)))
    for exact, rounded in zip(*results, strict=True):
        assert rounded.dtype == jnp.float32
        assert relative_error(rounded, exact) < 0.05


@pytest.mark.parametrize(
    ("kind", "config", "size", "message"),
    [
        (BiSeNet, BiSeNetConfig(), (1, 500, 512, 3), r"\(500, 512\) must be multiples of 32"),
        (BiSeNet, BiSeNetConfig(), (1, 3, 512, 512), r"\(batch, any, any, 3\), not \(1, 3, 512"),
        (S3FD, S3FDConfig(), (1, 20, 64, 3), r"\(20, 64\) must have at least 32 pixels"),
        (S3FD, S3FDConfig(), (64, 64, 3), r"\(batch, any, any, 3\), not \(64, 64, 3\)"),
    ],
)
def test_other_sizes_are_refused(kind, config, size, message):
    graphdef, shapes = params.abstract(kind, config)
    run = lambda p, x: params.bind(graphdef, p)(x)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(run, shapes, jax.ShapeDtypeStruct(size, jnp.float32))


@pytest.mark.parametrize(
    ("converter", "fixture", "lost"),
    [(bisenet, "parser", "conv_out.conv_out.weight"), (s3fd, "detector", "extras.3.bias")],
)
def test_converters_are_strict(converter, fixture, lost, request):
    theirs, _ = request.getfixturevalue(fixture)
    source = theirs.state_dict() | {"more.weight": torch.zeros(3)}
    del source[lost]
    with pytest.raises(ConversionError, match=r"^a file .*1 unknown \(more.weight\); ") as error:
        converter.convert(source, "a file")
    assert "missing" in str(error.value)
