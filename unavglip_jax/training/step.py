"""One update of the weights, as a function of the state, the frozen weights and a batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from unavglip_jax import assets, params, sharding
from unavglip_jax.models.discriminator import Discriminator, normalised, power_iteration
from unavglip_jax.params import Params
from unavglip_jax.training.objective import Batch, Metrics, Models, Objective, part
from unavglip_jax.training.settings import Optimizer, Settings

STATISTICS = r"/(mean|var)$"  # of batch norms
VECTORS = r"^discriminator/.*/(u|v)$"  # of spectral normalisation


class State(NamedTuple):
    """What a step changes.

    Attributes:
      step: updates so far.
      train: weights of the objective, float32.
      ema: their average over the last updates.
      adversary: weights of the discriminator; empty without one.
      rest: what changes without a gradient: statistics of batch norms, vectors of spectral normalisation.
      optimizer: of `train`.
      adversary_optimizer: of `adversary`.
    """

    step: Int[Array, ""]
    train: Params
    ema: Params
    adversary: Params
    rest: Params
    optimizer: Any
    adversary_optimizer: Any


def split(objective: Objective) -> tuple[Params, Params, Params, Params]:
    """Which weights are trained, which are the adversary's, which change by themselves, which are frozen."""
    train, others = params.split(objective.trainable, objective.weights)
    statistics, train = params.split(STATISTICS, train)
    vectors, others = params.split(VECTORS, others)
    adversary, frozen = params.split("^discriminator/", others)
    return train, adversary, statistics | vectors, frozen


def schedule(config: Optimizer, steps: int) -> optax.Schedule:
    """The learning rate by the number of updates so far."""
    top, warmup = config.learning_rate, config.warmup
    after = optax.constant_schedule(top)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(top, max(1, steps - warmup))
    rise = optax.linear_schedule(0.0, top, max(1, warmup))
    return optax.join_schedules([rise, after], [warmup])


def optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """AdamW or Muon, after clipping."""
    rate, decay, (first, second) = schedule(config, steps), config.weight_decay, config.betas
    if config.kind == "muon":
        update = optax.contrib.muon(
            rate,
            eps=config.epsilon,
            weight_decay=decay,
            adam_b1=first,
            adam_b2=second,
            adam_weight_decay=decay,
            muon_weight_dimension_numbers=matrices,
            consistent_rms=0.2,
        )
    else:
        update = optax.adamw(rate, first, second, config.epsilon, weight_decay=decay)
    return optax.chain(optax.clip_by_global_norm(config.clip), update)


def matrices(weights: Params) -> dict[str, optax.contrib.MuonDimensionNumbers | None]:
    """Which weights Muon takes for matrices, and how: kernels, of all that goes in by all that comes out."""
    return {
        name: optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)
        if name.endswith("/kernel")
        else None
        for name, leaf in weights.items()
    }


def optimizers(settings: Settings) -> tuple[optax.GradientTransformation, ...]:
    """Those of the objective and of its adversary."""
    return (
        optimizer(settings.optimizer, settings.steps),
        optimizer(settings.objective.adversary.optimizer, settings.steps),
    )


def initial(objective: Objective, settings: Settings, mesh: Mesh) -> tuple[State, Params]:
    """The state before the first step, and the frozen weights, on the devices of the mesh."""
    place = lambda weights: sharding.put(weights, sharding.place(mesh, weights))
    train, adversary, rest, frozen = (place(weights) for weights in split(objective))
    whole = sharding.replicated(mesh)

    def begin(transformation, weights):
        placement = {name: leaf.sharding for name, leaf in weights.items()}
        shapes = jax.eval_shape(transformation.init, weights)
        shardings = sharding.like(shapes, placement, whole)
        return jax.jit(transformation.init, out_shardings=shardings)(weights)

    own, others = optimizers(settings)
    step = jax.make_array_from_callback((), whole, lambda _: jnp.zeros((), jnp.int32))
    ema = jax.tree.map(jnp.copy, train)  # donated beside `train`, it needs memory of its own
    optimizing = begin(own, train), begin(others, adversary)
    return State(step, train, ema, adversary, rest, *optimizing), frozen


def bind(objective: Objective, weights: Mapping[str, Array], training: bool) -> Models:
    """Every network with its weights. While training, batch norms of trained networks take the batch's."""
    models: dict[str, Any] = {}
    for name in sorted({path.split("/")[0] for path in weights}):
        own = part(weights, name)
        if name not in objective.networks:
            models[name] = own
            continue
        network = Discriminator if name == "discriminator" else assets.network_of(name)[0]
        graphdef, _ = params.abstract(network, objective.networks[name])
        if name == "discriminator":
            vectors, own = params.split(r"/(u|v)$", own)
            own = normalised(own, vectors)
        learns = training and name in objective.makes
        models[name] = (params.bind_for_training if learns else params.bind)(graphdef, own)
    return models


def averaged(state: State, frozen: Params) -> Params:
    """The weights that are validated: averaged ones, and none of the discriminator's."""
    _, statistics = params.split(VECTORS, state.rest)
    return state.ema | statistics | frozen


def make_update(objective: Objective, settings: Settings, mesh: Mesh) -> Callable:
    """`update(state, frozen, batch)` -> the next state and metrics. The state is given away."""
    own, others = optimizers(settings)

    def loss_of(train, adversary, rest, frozen, batch, step, key):
        models = bind(objective, train | adversary | rest | frozen, training=True)
        loss, metrics, shown = objective.loss(models, batch, step, key)
        kept = {
            f"{name}/{path}": value
            for name in objective.makes
            if name in models
            for path, value in params.statistics(models[name]).items()
        }
        return loss, (metrics | {"loss": loss}, shown, rest | kept)

    def judged(adversary, rest, shown):
        return objective.judge(bind(objective, adversary | rest, training=True), shown)

    def gradients(state, rest, frozen, batch, key):
        """Those of one part of a batch, what they make of `rest`, and metrics."""
        out, grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.train, state.adversary, rest, frozen, batch, state.step, key
        )
        metrics, shown, rest = out[1]
        against = {}
        if objective.judge:
            vectors, _ = params.split(VECTORS, rest)
            found = power_iteration(
                part(state.adversary, "discriminator"), part(vectors, "discriminator")
            )
            rest = rest | {f"discriminator/{name}": value for name, value in found.items()}
            own_rest = {name: rest[name] for name in vectors}
            shown = jax.lax.stop_gradient(shown)
            out, against = jax.value_and_grad(judged, has_aux=True)(
                state.adversary, own_rest, shown
            )
            metrics = metrics | out[1]
        return (grads, against, metrics), rest

    def update(state: State, frozen: Params, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
        parts, rest = divided(batch, settings.accumulate, mesh), state.rest
        if settings.accumulate == 1:
            batch = jax.tree.map(lambda x: x[0], parts)
            (grads, against, metrics), rest = gradients(state, rest, frozen, batch, key)
        else:

            def one(rest, numbered):
                i, batch = numbered
                out, rest = gradients(state, rest, frozen, batch, jax.random.fold_in(key, i))
                return rest, out

            numbers = jnp.arange(settings.accumulate)
            rest, out = jax.lax.scan(one, rest, (numbers, parts))
            grads, against, metrics = jax.tree.map(lambda x: x.mean(axis=0), out)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        metrics["learning_rate"] = schedule(settings.optimizer, settings.steps)(state.step)
        updates, optimizing = own.update(grads, state.optimizer, state.train)
        train = optax.apply_updates(state.train, updates)
        adversary, opposing = state.adversary, state.adversary_optimizer
        if objective.judge:
            updates, opposing = others.update(against, opposing, adversary)
            adversary = optax.apply_updates(adversary, updates)
        decay = jnp.minimum(settings.optimizer.ema, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), state.ema, train)
        return State(state.step + 1, train, ema, adversary, rest, optimizing, opposing), metrics

    return update


def divided(batch: Batch, count: int, mesh: Mesh) -> Batch:
    """(B, ...) -> (count, B / count, ...): every device keeps its rows, a share of them in each part."""
    by_row = NamedSharding(mesh, P(None, ("data", "fsdp")))

    def divide(x):
        x = x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, by_row)

    return jax.tree.map(divide, batch)


def compiled(
    objective: Objective, settings: Settings, mesh: Mesh, state: State, frozen: Params, batch: Batch
):
    """`make_update`'s, compiled for these arrays; it keeps where they lie, and gives the state away."""
    update = make_update(objective, settings, mesh)
    kept = jax.tree.map(lambda x: x.sharding, state), sharding.replicated(mesh)
    lowered = jax.jit(update, donate_argnums=0, out_shardings=kept).lower(state, frozen, batch)
    return lowered.compile(params.compiler_options())
