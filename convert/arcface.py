"""ArcFace's IResNet from insightface's files: PyTorch (`backbone.pth`) and ONNX (`w600k_r50`, `glintr100`).

An exported graph has lost the names, and the batch norms behind convolutions are folded into them. So it
is read along its data flow, and gives the state dict from which it could have been exported.
"""

import math
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from unavglip_jax import params
from unavglip_jax.config import InputError
from unavglip_jax.convert.state_dict import ConversionError, StateDict, listed, place
from unavglip_jax.models.iresnet import IResNet, IResNetConfig
from unavglip_jax.params import Params

MARKS = ("prelu.weight", "layer1.0.prelu.weight", "fc.weight", "features.running_mean")

EPSILON = 1e-5  # of every batch norm of the network
PASSING = ("Identity", "Dropout", "Cast", "Unsqueeze", "Squeeze")  # hand on the numbers they get
ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}


def convert(source: StateDict, what: str = "the checkpoint") -> tuple[IResNetConfig, Params]:
    """The recogniser of a state dict in `arcface_torch`'s names; depth and widths as its tensors show.

    Raises:
      ConversionError: it is not an IResNet, or a tensor is unknown, missing or misshapen.
    """
    firsts = [f"layer{stage}.0.conv1.weight" for stage in range(1, 5)]
    missing = [key for key in (*MARKS, *firsts) if key not in source]
    if missing:
        raise ConversionError(f"{what} is not an IResNet face recogniser: it has no {missing[0]}")
    blocks = Counter(
        m[1] for m in (re.fullmatch(r"layer([1-4])\.\d+\.conv1\.weight", k) for k in source) if m
    )
    widths = [source[key].shape[0] for key in firsts]
    embedding, inputs = source["fc.weight"].shape
    config = IResNetConfig(
        blocks=[blocks[stage] for stage in "1234"],
        widths=widths,
        image_size=16 * math.isqrt(inputs // widths[-1]),
        embedding=embedding,
    )
    _, shapes = params.abstract(IResNet, config)
    return config, place(source, shapes, what=what)


def read_onnx(path: str | Path) -> tuple[IResNetConfig, Params]:
    """The recogniser of an ONNX file, whatever its tensors are called.

    The network takes RGB in [-1, 1]; a graph that does this scaling of bytes itself is converted to one
    that does not.

    Raises:
      InputError: not a file, truncated, not ONNX, or parts of it are missing.
      ConversionError: another network; says which and where it departs from an IResNet.
    """
    path = Path(path)
    graph = Graph(load(path), path)
    try:
        source = state_dict_of(graph)
    except ConversionError as error:
        raise ConversionError(
            f"{path} is {graph.description()} that cannot be read as an IResNet face recogniser "
            f"such as w600k_r50.onnx: {error}"
        ) from error
    return convert(source, str(path))


def load(path: Path) -> Any:
    """The `onnx.ModelProto` in a file, its external tensors included."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise InputError(f"{path} needs onnx to be read; install unavglip-jax[convert]") from error
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of an ONNX face recogniser")
    try:
        model = onnx.load(path, "protobuf", load_external_data=False)
    except DecodeError:
        model = None
    if model is None or not model.graph.node:
        raise InputError(
            f"{path} is not a complete ONNX file (truncated download, or another format); "
            "download it again"
        )
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(
            f"{path} keeps weights in another file, which cannot be read "
            f"({' '.join(str(error).split())}); put it beside this one"
        ) from error
    return model


class Graph:
    """An ONNX graph and who computes with which of its values."""

    def __init__(self, model: Any, path: Path):
        from onnx import numpy_helper

        self.nodes = list(model.graph.node)
        try:
            self.initialisers = {
                tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
            }
            self.initialisers |= {
                node.output[0]: numpy_helper.to_array(attributes(node)["value"])
                for node in self.nodes
                if node.op_type == "Constant" and "value" in attributes(node)
            }
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{path} holds a damaged tensor ({error}); download it again"
            ) from error
        # Old files list the weights among the inputs.
        self.inputs = [i for i in model.graph.input if i.name not in self.initialisers]
        self.outputs = list(model.graph.output)
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.consumers = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.consumers[name].append(node)

    def constant(self, name: str) -> np.ndarray | None:
        """The numbers of a value that depends on no input, `None` for another.

        Their shape is the initialiser's: nodes that only reshape it are passed over, which is right
        for the vectors of this network.
        """
        if name in self.initialisers:
            return self.initialisers[name]
        node = self.producers.get(name)
        if node is None or node.op_type not in (*PASSING, "Reshape", "Transpose"):
            return None
        value = self.constant(node.input[0])
        return value.T if value is not None and node.op_type == "Transpose" else value

    def weights(self, node: Any) -> list[np.ndarray]:
        """The constants behind a node's first input, in float32."""
        found = [self.constant(name) for name in node.input[1:] if name]
        if any(value is None for value in found):
            raise ConversionError(f"the weights of its {node.op_type} {named(node)} are computed")
        return [value.astype(np.float32) for value in found]

    def readers(self, value: str) -> list:
        """The nodes that compute with a value."""
        found = []
        for node in self.consumers[value]:
            passing = node.op_type in PASSING
            found += self.readers(node.output[0]) if passing else [node]
        return found

    def follow(self, value: str, *kinds: str) -> Any:
        """The one node of these kinds that computes with a value."""
        readers = self.readers(value)
        found = [node for node in readers if node.op_type in kinds]
        if len(found) != 1:
            behind = listed([f"{node.op_type} {named(node)}" for node in readers]) or "nothing"
            raise ConversionError(
                f"behind {value} there should be one {' or '.join(kinds)}, not {behind}"
            )
        return found[0]

    def description(self) -> str:
        """What the network seems to be, and the facts that say so."""
        shape = lambda value: tuple(d.dim_value or "?" for d in value.type.tensor_type.shape.dim)
        ins, outs = ([shape(value) for value in values] for values in (self.inputs, self.outputs))
        sizes = {dims[2:] for dims in ins}
        grouped = any(attributes(n).get("group", 1) > 1 for n in self.nodes)
        if len(outs) >= 5:
            guess = "a face detector"
        elif len(ins) > 1:
            guess = "a face swapper or another network of several inputs"
        elif (192, 192) in sizes:
            guess = "a landmark network"
        elif (96, 96) in sizes:
            guess = "an age and gender network"
        elif grouped and [dims[-1:] for dims in outs] == [(512,)]:
            guess = "a MobileFaceNet recogniser"
        else:
            guess = "a network"
        one = lambda what, dims: f"{what} {'x'.join(map(str, dims))}"
        text = lambda what, all: one(what, *all) if len(all) == 1 else f"{len(all)} {what}s"
        kinds = Counter(node.op_type for node in self.nodes).most_common(4)
        ops = ", ".join(f"{count} {kind}" for kind, count in kinds)
        return f"{guess} ({text('input', ins)}; {text('output', outs)}; {ops})"


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes; those left at their defaults are absent."""
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def named(node: Any) -> str:
    """A node's name, or its output's where it has none."""
    return node.name or node.output[0]


def state_dict_of(graph: Graph) -> dict[str, np.ndarray]:
    """The weights of an IResNet's graph under PyTorch's names, every folded batch norm an identity.

    Raises:
      ConversionError: where the graph departs from an IResNet.
    """
    if (len(graph.inputs), len(graph.outputs)) != (1, 1):
        raise ConversionError("it should have one input and one output")
    out: dict[str, np.ndarray] = {}

    def norm(value, name):
        node = graph.follow(value, "BatchNormalization")
        weight, bias, mean, variance = graph.weights(node)
        epsilon = attributes(node).get("epsilon", 1e-5)
        out[f"{name}.weight"], out[f"{name}.bias"] = weight, bias
        out[f"{name}.running_mean"] = mean
        out[f"{name}.running_var"] = variance + np.float32(epsilon - np.float32(EPSILON))
        return node.output[0]

    def folded_norm(bias, name):
        out[f"{name}.weight"], out[f"{name}.bias"] = np.ones_like(bias), bias
        out[f"{name}.running_mean"] = np.zeros_like(bias)
        # In float32 this and epsilon add up to exactly 1, so that x + bias is all that is computed.
        out[f"{name}.running_var"] = np.full_like(bias, 1 - EPSILON)

    def convolution(value, name, norm_name, stride=1, size=3, gain=1.0):
        node = graph.follow(value, "Conv")
        weight, *bias = graph.weights(node)
        has = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1}
        has = has | {"auto_pad": b"NOTSET"} | attributes(node) | {"kernel": weight.shape[2:]}
        wants = {"strides": [stride] * 2, "pads": [size // 2] * 4, "dilations": [1, 1], "group": 1}
        wants |= {"auto_pad": b"NOTSET", "kernel": (size, size)}
        for key, wanted in wants.items():
            if has[key] != wanted:
                raise ConversionError(f"its {named(node)} has {key} {has[key]}, not {wanted}")
        out[f"{name}.weight"] = weight * np.float32(gain)
        bias = bias[0] if bias else np.zeros(len(weight), np.float32)
        value = node.output[0]
        if [reader.op_type for reader in graph.readers(value)] != ["BatchNormalization"]:
            folded_norm(bias, norm_name)
            return value
        value = norm(value, norm_name)
        out[f"{norm_name}.running_mean"] = out[f"{norm_name}.running_mean"] - bias
        return value

    def prelu(value, name):
        node = graph.follow(value, "PRelu")
        out[f"{name}.weight"] = graph.weights(node)[0].reshape(-1)
        return node.output[0]

    def add(*values):
        sums = [{n.output[0] for n in graph.readers(v) if n.op_type == "Add"} for v in values]
        both = set.intersection(*sums)
        if len(both) != 1:
            raise ConversionError(f"{' and '.join(values)} should be added")
        return both.pop()

    value, gain = preprocessing(graph)
    value = prelu(convolution(value, "conv1", "bn1", gain=gain), "prelu")
    stage = block = 0
    while (kinds := sorted(n.op_type for n in graph.readers(value))) != ["BatchNormalization"]:
        if kinds == ["BatchNormalization", "Conv"]:
            stage, block = stage + 1, 0
        elif kinds == ["Add", "BatchNormalization"] and stage:
            block += 1
        else:
            raise ConversionError(f"behind {value} there is no residual block but {listed(kinds)}")
        name, stride = f"layer{stage}.{block}", 1 if block else 2
        hidden = norm(value, f"{name}.bn1")
        hidden = prelu(convolution(hidden, f"{name}.conv1", f"{name}.bn2"), f"{name}.prelu")
        hidden = convolution(hidden, f"{name}.conv2", f"{name}.bn3", stride)
        if not block:
            shortcut = f"{name}.downsample"
            value = convolution(value, f"{shortcut}.0", f"{shortcut}.1", stride, size=1)
        value = add(hidden, value)

    value = linear(graph, norm(value, "bn2"), out)
    if graph.readers(value):
        value = norm(value, "features")
    else:
        folded_norm(np.zeros_like(out["fc.bias"]), "features")
    if more := graph.readers(value):
        raise ConversionError(f"it goes on behind the embedding with {more[0].op_type}")
    return out


def preprocessing(graph: Graph) -> tuple[str, np.ndarray | float]:
    """The value that the first convolution reads, and the factor by which it exceeds faces in [-1, 1].

    Without arithmetic in front that is 1: then insightface itself scales bytes to [-1, 1].
    """
    value, ends = graph.inputs[0].name, None
    while (node := graph.follow(value, "Conv", *ARITHMETIC)).op_type != "Conv":
        constants = [graph.constant(name) for name in node.input]
        if node.op_type in ("Add", "Mul") and constants[1] is None:
            constants.reverse()
        if constants[0] is not None or constants[1] is None:
            raise ConversionError(f"its {node.op_type} {named(node)} is no scaling of the image")
        # What becomes of the bytes 127.5 and 255, which are 0 and 1 in our network's input.
        ends = np.array([[127.5], [255.0]]) if ends is None else ends
        ends = ARITHMETIC[node.op_type](ends, constants[1].reshape(1, -1).astype(np.float64))
        value = node.output[0]
    if ends is None:
        return value, 1.0
    middle, gain = ends
    # The first convolution pads with 0: that has to be the grey that it is in our input.
    if np.abs(middle).max() > 1e-3:
        raise ConversionError(
            f"it maps the byte 127.5 to {np.round(middle, 3).tolist()}; only a graph that maps it to 0 "
            "can be read"
        )
    return value, gain.reshape(1, -1, 1, 1)


def linear(graph: Graph, value: str, out: dict[str, np.ndarray]) -> str:
    """Reads Flatten and the fully connected layer, which may be one node or two."""
    node = graph.follow(value, "Flatten", "Reshape")
    if attributes(node).get("axis", 1) != 1:
        raise ConversionError(f"its Flatten {named(node)} keeps more than the batch")
    node = graph.follow(node.output[0], "Gemm", "MatMul")
    weight, *bias = graph.weights(node)
    if node.op_type == "MatMul":
        out["fc.weight"] = weight.T
        node = graph.follow(node.output[0], "Add")
        bias = [c for c in map(graph.constant, node.input) if c is not None]
    else:
        has = attributes(node)
        if has.get("transA", 0) or has.get("alpha", 1.0) != 1 or has.get("beta", 1.0) != 1:
            raise ConversionError(f"its Gemm {named(node)} is transposed or scaled")
        out["fc.weight"] = weight if has.get("transB", 0) else weight.T
    bias = bias[0].reshape(-1) if bias else np.zeros(len(out["fc.weight"]), np.float32)
    out["fc.bias"] = bias
    return node.output[0]
