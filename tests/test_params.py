"""Parameters by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unavglip_jax import params


class Net(nnx.Module):
    def __init__(self, config, *, rngs):
        self.blocks = nnx.List([nnx.Linear(config, config, rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(config, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def test_names_are_pytorchs_and_shapes_need_no_memory():
    graphdef, shapes = params.abstract(Net, 3)
    assert set(shapes) == {
        "blocks/0/kernel", "blocks/0/bias", "blocks/1/kernel", "blocks/1/bias", "norm/scale", "norm/bias",
    }  # fmt: skip
    assert all(isinstance(shape, jax.ShapeDtypeStruct) for shape in shapes.values())
    assert params.count(shapes) == 2 * (9 + 3) + 6
    weights = params.init(Net, 3, jax.random.key(0))
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in shapes.items()}
    x = jnp.arange(6.0).reshape(2, 3)
    by_hand = (x @ weights["blocks/0/kernel"]) @ weights["blocks/1/kernel"]
    by_hand = (by_hand - by_hand.mean(1, keepdims=True)) / jnp.sqrt(
        by_hand.var(1, keepdims=True) + 1e-6
    )
    np.testing.assert_allclose(params.bind(graphdef, weights)(x), by_hand, rtol=1e-4)


def test_every_layer_gets_its_own_key_and_the_same_again():
    one, again = (params.init(Net, 3, jax.random.key(0)) for _ in range(2))
    assert (one["blocks/0/kernel"] != one["blocks/1/kernel"]).all()
    assert all((one[name] == again[name]).all() for name in one)
    assert (
        params.init(Net, 3, jax.random.key(1))["blocks/0/kernel"] != one["blocks/0/kernel"]
    ).all()


def test_rules_take_the_first_match_and_miss_nothing():
    names = ["a/kernel", "a/bias", "b/kernel"]
    rules = ((r"^a/", 1), (r"kernel$", 2))
    assert params.match(rules, names) == {"a/kernel": 1, "a/bias": 1, "b/kernel": 2}
    with pytest.raises(KeyError, match="no rule matches the parameter c/bias"):
        params.match(rules, [*names, "c/bias"])


def test_split_is_a_partition():
    weights = {"a/up/kernel": 1, "a/kernel": 2, "b/down/kernel": 3}
    chosen, others = params.split(r"/(up|down)/", weights)
    assert chosen == {"a/up/kernel": 1, "b/down/kernel": 3} and others == {"a/kernel": 2}


def test_files_keep_names_shapes_and_dtypes(tmp_path):
    weights = {
        "a/0/kernel": np.asfortranarray(np.arange(6.0, dtype=np.float32).reshape(2, 3)),
        "b": jnp.ones((2,), jnp.bfloat16),
    }
    params.save(tmp_path / "x.safetensors", weights)
    found = params.load(tmp_path / "x.safetensors")
    assert found.keys() == weights.keys()
    for name, leaf in weights.items():
        assert found[name].dtype == leaf.dtype
        np.testing.assert_array_equal(found[name], leaf)
