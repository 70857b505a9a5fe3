"""Training an expert of lip sync to tell sound in step with the lips from the same clip's sound elsewhere."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from unavglip_jax.config import InputError
from unavglip_jax.data.pipeline import SampleOptions
from unavglip_jax.training import losses
from unavglip_jax.training.dubbing import images
from unavglip_jax.training.objective import Batch, Models, Objective, load, named
from unavglip_jax.training.settings import Settings

FRAMES = {"wav2lip_syncnet": 5, "stable_syncnet": 16}


def build(settings: Settings) -> Objective:
    """The objective of the kinds "wav2lip_syncnet" (arXiv 2008.10010) and "stable_syncnet" (2412.09262).

    Raises:
      InputError: the samples have another number of frames than the expert sees.
    """
    kind, frames = settings.objective.kind, settings.data.sample.frames
    if frames != FRAMES[kind]:
        raise InputError(f"data.sample.frames is {frames}; a {kind} sees {FRAMES[kind]} frames")
    config, weights = load(settings, kind, f"training a {kind}", trained=True)
    return Objective(
        networks={kind: config},
        weights=named(**{kind: weights}),
        trainable=f"^{kind}/",
        sample=sample(settings),
        loss=loss,
        judge=None,
        evaluate=evaluate,
        makes=(kind,),
    )


def sample(settings: Settings) -> SampleOptions:
    """What the samples hold."""
    return settings.data.sample.replace(fields=("target", "mel", "mel_wrong"))


def cosines(models: Models, batch: Batch) -> Float[Array, "B 2"]:
    """Of each clip with its own sound, and with that of another moment."""
    [(kind, expert)] = models.items()
    frames = images(batch["target"]).reshape(batch["target"].shape)
    if kind == "wav2lip_syncnet":
        picture = expert.face(losses.expert_input(frames))
    else:
        size = expert.config.visual_encoder.size
        picture = expert.visual(losses.stable_input(frames, size))
    heard = jnp.concatenate([batch["mel"], batch["mel_wrong"]]).swapaxes(1, 2)[..., None]
    sounds = jnp.stack(jnp.split(expert.audio(heard), 2), axis=1)
    return jnp.einsum("bd,bnd->bn", picture, sounds, precision="highest")


def loss(models: Models, batch: Batch, step: Array, key: Array):
    """Binary cross-entropy over pairs in step and as many out of step."""
    del step, key
    found = cosines(models, batch)
    right, wrong = losses.in_step(found[:, 0], 1.0), losses.in_step(found[:, 1], 0.0)
    accuracy = jnp.mean((found > 0.5) == jnp.array([True, False]))
    return (right + wrong) / 2, {"accuracy": accuracy, "right": right, "wrong": wrong}, None


def evaluate(models: Models, batch: Batch):
    """Share of pairs told rightly: each against 0.5, and the two of a clip against each other."""
    found = cosines(models, batch)
    metrics = {
        "accuracy": ((found > 0.5) == jnp.array([True, False])).mean(axis=1),
        "ordered": (found[:, 0] > found[:, 1]).astype(jnp.float32),
        "cosine_right": found[:, 0],
        "cosine_wrong": found[:, 1],
    }
    return metrics, {}
