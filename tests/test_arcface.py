"""IResNet against a torch one written here, from state dicts and from ONNX files as people publish them."""

import warnings

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from comparing import channels_first, channels_last, relative_error
from unavglip_jax import params
from unavglip_jax.config import InputError
from unavglip_jax.convert import arcface
from unavglip_jax.convert.state_dict import ConversionError, to_torch
from unavglip_jax.models.iresnet import BLOCKS, IResNet, IResNetConfig

TINY = IResNetConfig(blocks=(1, 2, 1, 3), widths=(6, 8, 10, 12), image_size=32, embedding=16)


class TorchBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if stride != 1:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x):
        hidden = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(hidden)) + self.downsample(x)


class TorchIResNet(nn.Module):
    def __init__(self, config: IResNetConfig):
        super().__init__()
        before = config.widths[0]
        self.conv1 = nn.Conv2d(3, before, 3, padding=1, bias=False)
        self.bn1, self.prelu = nn.BatchNorm2d(before), nn.PReLU(before)
        for stage, (count, width) in enumerate(zip(config.blocks, config.widths, strict=True), 1):
            blocks = [TorchBlock(before, width, 2)]
            blocks += [TorchBlock(width, width, 1) for _ in range(count - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            before = width
        self.bn2, self.dropout = nn.BatchNorm2d(before), nn.Dropout(0.0)
        self.fc = nn.Linear(before * (config.image_size // 16) ** 2, config.embedding)
        self.features = nn.BatchNorm1d(config.embedding)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(torch.flatten(self.dropout(self.bn2(x)), 1)))


def random_iresnet(config: IResNetConfig, seed=0) -> TorchIResNet:
    """Random weights and statistics; no two tensors are equal, so none can be exchanged unnoticed."""
    torch.manual_seed(seed)
    network = TorchIResNet(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.4)
    return network.eval()


def faces(config, count=2, seed=1):
    shape = (count, 3, config.image_size, config.image_size)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def ours(config, weights, x):
    graphdef, _ = params.abstract(IResNet, config)
    return np.asarray(jax.jit(lambda x: params.bind(graphdef, weights)(x))(channels_last(x)))


@pytest.fixture(scope="module")
def tiny():
    theirs = random_iresnet(TINY)
    x = faces(TINY)
    with torch.no_grad():
        return theirs, x, theirs(torch.tensor(x)).numpy()


# ---- the network and its state dict ------------------------------------------------------------------


def test_network_is_insightfaces(tiny):
    theirs, x, wanted = tiny
    config, weights = arcface.convert(theirs.state_dict())
    assert config == TINY
    tensor = torch.tensor(x, requires_grad=True)
    theirs(tensor).square().sum().backward()
    graphdef, _ = params.abstract(IResNet, config)

    @jax.jit
    def loss(x):
        found = params.bind(graphdef, weights)(x)
        return (found**2).sum(), found

    gradient, found = jax.grad(loss, has_aux=True)(channels_last(x))
    errors = relative_error(found, wanted), relative_error(channels_first(gradient), tensor.grad)
    print("IResNet, its gradient: {:.1e}, {:.1e}".format(*errors))
    assert max(errors) < 1e-5
    back = to_torch(weights)
    for key, tensor in theirs.state_dict().items():
        assert key.endswith("num_batches_tracked") or np.array_equal(back[key], tensor), key


def test_bfloat16_computes_norms_in_float32(tiny):
    theirs, x, wanted = tiny
    config, weights = arcface.convert(theirs.state_dict())
    half = config.replace(dtype="bfloat16", param_dtype="bfloat16")
    _, shapes = params.abstract(IResNet, half)
    found = ours(half, params.cast(weights, shapes), x)
    error = relative_error(found, wanted)
    print(f"bfloat16: {error:.1e}")
    assert found.dtype == np.float32
    assert 1e-4 < error < 2e-2


@pytest.mark.parametrize(
    ("depth", "millions"), [(18, 24.03), (34, 34.14), (50, 43.59), (100, 65.16)]
)
def test_published_depths_have_their_parameters(depth, millions):
    config = IResNetConfig(blocks=BLOCKS[depth])
    with torch.device("meta"):
        theirs = TorchIResNet(config)
    _, shapes = params.abstract(IResNet, config)
    statistics, trained = params.split("/(mean|var)$", shapes)
    assert params.count(trained) == sum(p.numel() for p in theirs.parameters())
    assert params.count(statistics) == sum(
        b.numel() for name, b in theirs.named_buffers() if "running" in name
    )
    assert round(params.count(trained) / 1e6, 2) == millions


def test_other_inputs_are_refused(tiny):
    theirs, x, _ = tiny
    config, weights = arcface.convert(theirs.state_dict())
    with pytest.raises(ValueError, match=r"faces must be .*32, 32, 3"):
        ours(config, weights, x[..., :16])
    with pytest.raises(ConversionError, match=r"vgg\.pth is not an IResNet"):
        arcface.convert({"features.0.weight": torch.ones(1)}, "vgg.pth")
    lacking = theirs.state_dict()
    del lacking["layer4.2.bn3.running_var"]
    with pytest.raises(ConversionError, match=r"1 missing \(layer4\.2\.bn3\.running_var\)"):
        arcface.convert(lacking)


# ---- ONNX --------------------------------------------------------------------------------------------


def export(network, config, path, *, opset=11, folded=True, **options):
    mode = torch.onnx.TrainingMode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            torch.zeros(1, 3, config.image_size, config.image_size),
            path,
            dynamo=False,
            opset_version=opset,
            training=mode.EVAL if folded else mode.PRESERVE,
            input_names=["input.1"],
            dynamic_axes={"input.1": {0: "batch"}},
            **{"do_constant_folding": folded} | options,
        )
    return path


def run_onnx(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def check(path, x, limit=1e-5):
    """Error of the converted network against onnxruntime on the same file."""
    config, weights = arcface.read_onnx(path)
    error = relative_error(ours(config, weights, x), run_onnx(path, x))
    print(f"{path.name}: {error:.1e}")
    assert error < limit
    return config, weights


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory):
    return export(tiny[0], TINY, tmp_path_factory.mktemp("arcface") / "w600k.onnx")


def change(file, path, edit):
    model = onnx.load(file)
    edit(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def kinds(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def test_published_onnx(file, tiny):
    _, x, wanted = tiny
    assert kinds(file).count("BatchNormalization") == sum(TINY.blocks) + 2  # the others are folded
    config, weights = check(file, x)
    assert config == TINY
    assert relative_error(ours(config, weights, x), wanted) < 1e-5
    scale = weights["layer1/0/bn2/scale"]
    epsilon = np.float32(1e-5)
    assert np.all(scale / np.sqrt(weights["layer1/0/bn2/var"] + epsilon) == 1)
    assert not weights["layer1/0/bn2/mean"].any()


@pytest.mark.parametrize(
    ("opset", "folded", "constants"), [(13, True, True), (17, False, True), (20, False, False)]
)
def test_other_exports(opset, folded, constants, tiny, tmp_path):
    """Later opsets, batch norms not folded, constants computed in the graph."""
    path = tmp_path / f"opset{opset}.onnx"
    export(tiny[0], TINY, path, opset=opset, folded=folded, do_constant_folding=constants)
    config, weights = check(path, tiny[1])
    assert config == TINY
    if not folded:
        assert all(
            np.array_equal(leaf, weights[name])
            for name, leaf in arcface.convert(tiny[0].state_dict())[1].items()
        )


def test_shared_weights(tmp_path):
    """The exporter stores equal tensors once and hands them on through Identity nodes."""
    torch.manual_seed(0)
    path = export(TorchIResNet(TINY).eval(), TINY, tmp_path / "shared.onnx")
    assert "Identity" in kinds(path)
    check(path, faces(TINY))


def test_scrambled_names_and_order_of_branches(file, tiny, tmp_path):
    def scramble(model):
        graph = model.graph
        values = [v for node in graph.node for v in (*node.input, *node.output)]
        values += [tensor.name for tensor in graph.initializer]
        numbers = np.random.default_rng(0).permutation(10_000)
        new = {name: str(n) for name, n in zip(dict.fromkeys(values), numbers, strict=False)}
        for node in graph.node:
            node.name = ""
            node.input[:] = [new[name] for name in node.input]
            node.output[:] = [new[name] for name in node.output]
            if node.op_type == "Add":
                node.input[:] = [node.input[1], node.input[0]]
        for entry in (*graph.initializer, *graph.input, *graph.output):
            entry.name = new[entry.name]
        del graph.value_info[:]
        tensors = list(graph.initializer)
        del graph.initializer[:]
        graph.initializer.extend(reversed(tensors))

    path = change(file, tmp_path / "scrambled.onnx", scramble)
    _, weights = check(path, tiny[1])
    plain = arcface.read_onnx(file)[1]
    assert all(np.array_equal(weights[name], plain[name]) for name in plain)


def scalar(model, name, value):
    model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.float32), name))
    return name


def in_front(*steps):
    """Puts arithmetic on constants before the first node."""

    def edit(model):
        first = model.graph.node[0]
        value = first.input[0]
        for index, (kind, constant) in reversed(list(enumerate(steps))):
            before = f"step{index - 1}" if index else value
            inputs = [before, scalar(model, f"constant{index}", constant)]
            model.graph.node.insert(0, helper.make_node(kind, inputs, [f"step{index}"]))
        first.input[0] = f"step{len(steps) - 1}"

    return edit


def double(graph):
    value = graph.node[0].input[0]
    graph.node[0].input[0] = "twice"
    graph.node.insert(0, helper.make_node("Add", [value, value], ["twice"]))


@pytest.mark.parametrize(
    "steps",
    [
        (("Sub", 127.5), ("Mul", 0.0078125)),
        (("Sub", 127.5), ("Div", 127.5)),
        (("Mul", 1 / 127.5), ("Add", -1.0)),
    ],
)
def test_scaling_of_bytes_in_the_graph(steps, file, tiny, tmp_path):
    path = change(file, tmp_path / "scaling.onnx", in_front(*steps))
    x = tiny[1]
    found = ours(*arcface.read_onnx(path), x)
    error = relative_error(found, run_onnx(path, 127.5 * x + 127.5))
    print(f"{steps}: {error:.1e}")
    assert error < 1e-5


def test_scaling_that_cannot_be_folded(file, tmp_path):
    path = change(file, tmp_path / "twice.onnx", lambda m: double(m.graph))
    with pytest.raises(ConversionError, match="Add twice is no scaling of the image"):
        arcface.read_onnx(path)
    path = change(file, tmp_path / "mean.onnx", in_front(("Sub", 123.7), ("Mul", 0.017)))
    with pytest.raises(ConversionError, match=r"maps the byte 127\.5 to \[0\.065\]"):
        arcface.read_onnx(path)


def test_tail_in_two_nodes_and_another_epsilon(file, tiny, tmp_path):
    """MatMul and Add for Gemm, weights turned in the graph, a reshape, no batch norm at the end."""

    def edit(model):
        graph = model.graph
        flatten, gemm = (
            next(n for n in graph.node if n.op_type == kind) for kind in ("Flatten", "Gemm")
        )
        last = graph.node[-1]
        assert last.op_type == "BatchNormalization"
        shape = numpy_helper.from_array(np.array([0, -1]), "flat")
        graph.initializer.append(shape)
        tail = [
            helper.make_node("Cast", [flatten.input[0]], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["cast", "flat"], ["row"]),
            helper.make_node("Transpose", [gemm.input[1]], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["row", "turned"], ["product"]),
            helper.make_node("Add", [gemm.input[2], "product"], [last.output[0]]),
        ]
        for node in (flatten, gemm, last):
            graph.node.remove(node)
        graph.node.extend(tail)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "epsilon":
                    attribute.f = 2e-5

    check(change(file, tmp_path / "tail.onnx", edit), tiny[1])


def test_tail_of_old_exporters(file, tiny, tmp_path):
    """Once ONNX's batch norm needed three axes, and PyTorch's exporter added one for it."""

    def edit(model):
        norm = model.graph.node[-1]
        squeeze = helper.make_node("Squeeze", ["normed"], [norm.output[0]], axes=[2])
        unsqueeze = helper.make_node("Unsqueeze", [norm.input[0]], ["longer"], axes=[2])
        norm.input[0], norm.output[0] = "longer", "normed"
        model.graph.node.insert(len(model.graph.node) - 1, unsqueeze)
        model.graph.node.append(squeeze)

    check(change(file, tmp_path / "old.onnx", edit), tiny[1])


def test_half_precision_weights(file, tiny, tmp_path):
    def edit(model):
        for tensor in model.graph.initializer:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            cast = helper.make_node(
                "Cast", [f"{tensor.name}.16"], [tensor.name], to=TensorProto.FLOAT
            )
            tensor.CopyFrom(numpy_helper.from_array(half, f"{tensor.name}.16"))
            model.graph.node.insert(0, cast)

    check(change(file, tmp_path / "half.onnx", edit), tiny[1])


def test_external_weights(file, tiny, tmp_path):
    path = tmp_path / "external.onnx"
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(onnx.load(file), path, **options)
    check(path, tiny[1])
    (tmp_path / "weights.bin").rename(tmp_path / "elsewhere.bin")
    with pytest.raises(InputError, match="keeps weights in another file"):
        arcface.read_onnx(path)
    content = (tmp_path / "elsewhere.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"keeps weights in another file|damaged tensor"):
        arcface.read_onnx(path)


def detector(path):
    """What SCRFD looks like from outside: one picture in, scores, boxes and points of three levels out."""
    shape = [1, 3, "?", "?"]
    image = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, shape)
    kernel = numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["input.1", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
    ]
    outputs = []
    for i in range(9):
        nodes.append(helper.make_node("Sigmoid", ["r"], [f"out{i}"]))
        outputs.append(helper.make_tensor_value_info(f"out{i}", TensorProto.FLOAT, None))
    graph = helper.make_graph(nodes, "detector", [image], outputs, [kernel])
    onnx.save(helper.make_model(graph), path)


def classifier(path, size=112, grouped=False):
    """A ReLU network: not an IResNet, whatever its shapes."""
    groups = 3 if grouped else 1
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, groups=groups), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    )
    network = nn.Sequential(*network, nn.Flatten(), nn.Linear(6, 512)).eval()
    export(network, TINY.replace(image_size=size), path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            detector,
            r"is a face detector \(input 1x3x\?x\?; 9 outputs; 9 Sigmoid.*one input and one output",
        ),
        (lambda path: classifier(path, 192), r"is a landmark network .* has strides \[2, 2\]"),
        (lambda path: classifier(path, 96), "is an age and gender network"),
        (lambda path: classifier(path, grouped=True), "is a MobileFaceNet recogniser"),
        (classifier, r"is a network \(input .*x3x112x112; output .*x512; "),
    ],
)
def test_other_networks_are_named(make, message, tmp_path):
    path = tmp_path / "net.onnx"
    make(path)
    with pytest.raises(ConversionError, match=message) as caught:
        arcface.read_onnx(path)
    print(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda g: g.node[3].attribute.extend([helper.make_attribute("group", 2)]), "group"),
        (
            lambda g: g.node.append(helper.make_node("Relu", [g.output[0].name], ["more"])),
            "goes on",
        ),
    ],
)
def test_departures_are_named(edit, message, file, tmp_path):
    model = onnx.load(file)
    edit(model.graph)
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    with pytest.raises(ConversionError, match=message):
        arcface.read_onnx(path)


def test_files_that_are_no_onnx(file, tmp_path):
    content = file.read_bytes()
    for name, text in (
        ("truncated.onnx", content[: len(content) // 2]),
        ("stub.onnx", content[:20]),
        ("empty.onnx", b""),
        (
            "text.onnx",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 174383860\n",
        ),
        ("page.onnx", b"<!DOCTYPE html><html><body>404</body></html>"),
    ):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(InputError, match=rf"{name} is not a complete ONNX file"):
            arcface.read_onnx(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        arcface.read_onnx(tmp_path / "absent.onnx")
    with pytest.raises(InputError, match="no such file"):
        arcface.read_onnx(tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("depth", [50, 100])
def test_full_size_onnx(depth, tmp_path):
    config = IResNetConfig(blocks=BLOCKS[depth])
    path = export(random_iresnet(config), config, tmp_path / f"r{depth}.onnx")
    found, _ = check(path, faces(config), limit=1e-4)
    assert found == config
