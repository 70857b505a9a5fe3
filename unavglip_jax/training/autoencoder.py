"""Training an auto-encoder of faces, for packs of one's own."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from unavglip_jax.config import InputError
from unavglip_jax.data.pipeline import SampleOptions
from unavglip_jax.params import Params
from unavglip_jax.training import adversary, losses
from unavglip_jax.training.dubbing import EXPERTS, images, weighted
from unavglip_jax.training.objective import Batch, Models, Objective, found, load, named
from unavglip_jax.training.settings import Settings

TERMS = ("pixel", "pixel_lower_half", "pixel_mouth", "gradient", "pyramid", "lpips")


def build(settings: Settings) -> Objective:
    """The objective of the kind "vae": reconstruction, and a little Kullback-Leibler divergence.

    Raises:
      InputError: a term is wanted that an auto-encoder does not have, or a network is missing.
    """
    weight = settings.objective.losses
    others = [k for k, v in weight if v and k not in (*TERMS, "adversarial", "matching")]
    if others:
        raise InputError(f"losses.{others[0]} is not a term of an auto-encoder; set it to 0")
    networks, weights, why = {}, {}, "training an auto-encoder"
    networks["vae"], weights["vae"] = load(settings, "vae", why, trained=True, remat=settings.remat)
    if not found(settings, "vae", why, trained=True):
        weights["vae"] = quieter(weights["vae"])
    for name in {expert for term, expert in EXPERTS.items() if getattr(weight, term)}:
        networks[name], weights[name] = load(settings, name, "a loss")
    if adversary.wanted(weight):
        networks["discriminator"], weights["discriminator"] = adversary.new(settings)
    return Objective(
        networks=networks,
        weights=named(**weights),
        trainable=r"^vae/",
        sample=sample(settings),
        loss=lambda *given: loss(settings, *given),
        judge=adversary.judge if adversary.wanted(weight) else None,
        evaluate=evaluate,
        makes=("vae",),
    )


def quieter(weights: Params) -> Params:
    """A new auto-encoder whose latents are drawn with a deviation of about e^-2.

    They would begin with as much noise as signal, and lose it slowly.
    """
    bias = weights["quant_conv/bias"]
    return weights | {"quant_conv/bias": bias.at[len(bias) // 2 :].add(-4.0)}


def sample(settings: Settings) -> SampleOptions:
    """What the samples hold."""
    return settings.data.sample.replace(fields=("target", "landmarks"))


def loss(settings: Settings, models: Models, batch: Batch, step: Array, key: Array):
    """The weighted terms of a reconstruction from a sample of the posterior."""
    target, vae = images(batch["target"]), models["vae"]
    mean, logvar = vae.moments(target)
    drawn = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
    prediction = vae.decode(drawn * vae.config.scaling_factor)
    landmarks = batch["landmarks"].reshape(-1, 68, 2)
    total, values, shown = weighted(
        settings, models, prediction, target, landmarks, step, hidden=None, others={}
    )
    values["kl"] = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean()
    values["latent_deviation"] = mean.std()
    return total + settings.objective.kl * values["kl"], values, shown


def evaluate(models: Models, batch: Batch):
    """Peak signal-to-noise ratio of reconstructions, for the whole crop and the mouth."""
    target, vae = images(batch["target"]), models["vae"]
    prediction = jnp.clip(vae.decode(vae.encode(target)), -1, 1)
    count, size = batch["target"].shape[1], target.shape[1:3]
    mouth = losses.mouth_weight(batch["landmarks"].reshape(-1, 68, 2), size)
    psnr = lambda weight: losses.psnr(prediction, target, weight).reshape(-1, count).mean(axis=1)
    metrics = {"psnr": psnr(jnp.ones_like(mouth)), "psnr_mouth": psnr(mouth)}
    return metrics, {"target": target[::count], "prediction": prediction[::count]}
