"""What a training run trains and minimises, as plain data that the loop knows how to run."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from unavglip_jax import assets, params
from unavglip_jax.config import InputError, NetworkConfig, validate
from unavglip_jax.data.pipeline import SampleOptions
from unavglip_jax.params import Params
from unavglip_jax.training.settings import Settings

Models = Mapping[str, Any]  # component -> network with its weights, to be called
Batch = Mapping[str, Array]
Metrics = dict[str, Array]


class Objective(NamedTuple):
    """One thing that can be trained.

    Attributes:
      networks: configuration of each network, by component; all in `assets.NETWORKS`, but "discriminator".
      weights: all their parameters, `component/path`, the trained ones float32.
      trainable: pattern of the names that are trained.
      sample: what a sample holds.
      loss: (models, batch, step, key) -> (loss, metrics, shown); `shown` is what the adversary is to see.
      judge: (models, shown) -> (loss, metrics) of the discriminator, which is trained along; or None.
      evaluate: (models, batch) -> (metrics with a number for each row, pictures (B, H, W, 3) by title).
      makes: the components that training gives a pack.
    """

    networks: dict[str, NetworkConfig]
    weights: Params
    trainable: str
    sample: SampleOptions
    loss: Callable[[Models, Batch, Array, Array], tuple[Array, Metrics, Any]]
    judge: Callable[[Models, Any], tuple[Array, Metrics]] | None
    evaluate: Callable[[Models, Batch], tuple[Metrics, dict[str, Array]]]
    makes: tuple[str, ...]


def load(
    settings: Settings, name: str, why: str, trained: bool = False, **changes
) -> tuple[NetworkConfig, Params]:
    """A network of the pack, or a new one as `objective.networks` describes it.

    Args:
      settings: of the run.
      name: the component.
      why: what needs it, for the error if it is in neither.
      trained: whether its weights are kept in float32.
      **changes: of its configuration.

    Raises:
      InputError: there is no such network.
    """
    wanted = settings.objective
    changes |= {
        "dtype": settings.dtype,
        "param_dtype": "float32" if trained else settings.dtype,
    }
    if found(settings, name, why, trained):
        return assets.load_component(wanted.pack, name, **changes)
    network, kind = assets.network_of(name)
    config = validate(kind, wanted.networks[name] | changes, f"objective.networks.{name}")
    return config, params.init(network, config, key_of(settings, name))


def found(settings: Settings, name: str, why: str, trained: bool = False) -> bool:
    """Whether the pack has a network; if not, it is described. Arguments and errors as `load`'s."""
    wanted = settings.objective
    if name in assets.read_pack(wanted.pack).components:
        if name in wanted.networks:
            raise InputError(
                f"objective.networks describes a {name}, and {wanted.pack} has one; leave one out"
            )
        return True
    if name not in wanted.networks:
        raise InputError(
            f"{wanted.pack} has no {name}, which {why} needs; add one with `unavglip convert add`"
            + (f", or describe a new one as objective.networks.{name}" if trained else "")
        )
    return False


def key_of(settings: Settings, name: str) -> Array:
    """The random key of a new network: of the run's seed and its name."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    # This generator's code compiles several times faster than the default's.
    return jax.random.fold_in(jax.random.key(settings.seed, impl="rbg"), number)


def named(**networks: Params) -> Params:
    """The parameters of several networks in one dict, `component/path`."""
    return {
        f"{name}/{path}": leaf
        for name, weights in networks.items()
        for path, leaf in weights.items()
    }


def part(weights: Params, component: str) -> Params:
    """The parameters of one network out of those of all, under their own names."""
    head = f"{component}/"
    return {name.removeprefix(head): x for name, x in weights.items() if name.startswith(head)}
