"""Parameters outside a model: flat `{path: array}` dicts whose paths are the PyTorch names.

`down_blocks/0/resnets/0/conv1/kernel` is PyTorch's `down_blocks.0.resnets.0.conv1.weight`. Freezing,
sharding, converting, saving and averaging are operations on these names.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jaxtyping import Array

Params = dict[str, Array]
Shapes = dict[str, jax.ShapeDtypeStruct]


class KeyStream:
    """Draws one `params` key for each layer of a model under construction.

    Stands in for `nnx.Rngs`, whose counters make the abstract build of a full UNet seven times slower.
    """

    def __init__(self, key: Array):
        self.key, self.count = key, 0

    def params(self) -> Array:
        """The next key."""
        self.count += 1
        return jax.random.fold_in(self.key, self.count)

    __call__ = params


def abstract(network: Callable, config) -> tuple[Any, Shapes]:
    """Graph definition and `{path: ShapeDtypeStruct}` of `network(config)`, without allocating it."""
    graphdef, shapes = traced(network, config)
    return graphdef, dict(shapes)


@cache
def traced(network: Callable, config) -> tuple[Any, Shapes]:
    """`abstract`, worked out once: building a full UNet takes seconds."""
    build = lambda: network(config, rngs=KeyStream(jax.random.key(0)))
    graphdef, state = nnx.split(nnx.eval_shape(build))
    return graphdef, flatten(state)


def init(network: Callable, config, key: Array, only: str = "") -> Params:
    """Freshly initialised parameters of `network(config)`: those whose name contains the pattern `only`."""
    made = lambda key: flatten(nnx.state(network(config, rngs=KeyStream(key))))
    return jax.jit(lambda key: split(only, made(key))[0])(key)


def bind(graphdef, params: Params):
    """The callable model: `bind(graphdef, params)(x)` inside or outside `jax.jit`."""
    return nnx.merge(graphdef, unflatten(params))


def bind_for_training(graphdef, params: Params):
    """As `bind`, but batch norms use the batch's statistics and keep their running mean of them."""
    network = bind(graphdef, params)
    network.train()
    return network


def statistics(network) -> Params:
    """The running statistics of a network's batch norms."""
    return flatten(nnx.state(network, nnx.BatchStat))


class Network(NamedTuple):
    """A network and its weights. Calls are compiled once for a graph definition, whatever the weights."""

    config: Any
    graphdef: Any
    weights: Params

    def __call__(self, x: Array, option: str | None = None) -> Array:
        return apply(self.graphdef, self.weights, x, option)


@partial(jax.jit, static_argnums=(0, 3))
def apply(graphdef, weights: Params, x: Array, option: str | None) -> Array:
    """The arithmetic of a `Network`'s call."""
    network = bind(graphdef, weights)
    return network(x) if option is None else network(x, option)


def compiler_options() -> dict[str, str] | None:
    """On a CPU: XLA's own convolutions, because YNN's pack their weights anew at every call.

    Products of matrices stay with YNN. It makes the full UNet a third faster at batch 1.
    """
    if jax.default_backend() != "cpu":
        return None
    return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def flatten(state) -> Params:
    """`nnx.State` -> `{path: leaf}`."""
    return {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def unflatten(params: Params) -> dict:
    """`{path: leaf}` -> the nested dict, integer keys for list entries, that `nnx.merge` takes."""
    tree: dict = {}
    for name, leaf in params.items():
        *head, last = (int(part) if part.isdigit() else part for part in name.split("/"))
        node = tree
        for part in head:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def match(rules: Iterable[tuple[str, Any]], names: Iterable[str]) -> dict[str, Any]:
    """`{name: value}` by the first rule `(pattern, value)` found in each name.

    Raises:
      KeyError: a name that no rule covers.
    """
    rules = [(re.compile(pattern), value) for pattern, value in rules]

    def first(name):
        for pattern, value in rules:
            if pattern.search(name):
                return value
        raise KeyError(f"no rule matches the parameter {name}")

    return {name: first(name) for name in names}


def split(pattern: str, params: Mapping[str, Any]) -> tuple[dict, dict]:
    """The parameters whose name contains `pattern` (a regular expression), and the others."""
    chosen = {name for name in params if re.search(pattern, name)}
    return (
        {name: leaf for name, leaf in params.items() if name in chosen},
        {name: leaf for name, leaf in params.items() if name not in chosen},
    )


def count(params: Mapping[str, Any]) -> int:
    """Number of scalars."""
    return sum(int(np.prod(leaf.shape)) for leaf in params.values())


def cast(params: Params, shapes: Shapes) -> Params:
    """Every parameter in the dtype its model declares."""
    return {name: jnp.asarray(leaf, shapes[name].dtype) for name, leaf in params.items()}


def save(path: str | Path, params: Mapping[str, Any]) -> None:
    """Writes a safetensors file."""
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in params.items()}
    safetensors.numpy.save_file(tensors, path)


def load(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, by name."""
    return safetensors.numpy.load_file(path)
