"""The adversarial term: a patch discriminator that is trained along, spectrally normalised."""

import jax
from jaxtyping import Array

from unavglip_jax import params
from unavglip_jax.config import validate
from unavglip_jax.models.discriminator import Discriminator, DiscriminatorConfig, singular_vectors
from unavglip_jax.training import losses
from unavglip_jax.training.objective import Models, key_of
from unavglip_jax.training.settings import Losses, Settings


def wanted(weight: Losses) -> bool:
    """Whether a term needs the discriminator."""
    return bool(weight.adversarial or weight.matching)


def new(settings: Settings) -> tuple[DiscriminatorConfig, params.Params]:
    """A new discriminator (MuseTalk 1.5's unless described), with the vectors of its normalisation."""
    described = settings.objective.networks.get("discriminator", {})
    fields = described | {"dtype": settings.dtype, "param_dtype": "float32"}
    config = validate(DiscriminatorConfig, fields, "objective.networks.discriminator")
    key = key_of(settings, "discriminator")
    weights = params.init(Discriminator, config, key)
    return config, weights | singular_vectors(weights, jax.random.fold_in(key, 1))


def terms(models: Models, shown: tuple[Array, Array], started: Array) -> dict:
    """The generator's terms, 0 until the discriminator is trained a little."""
    discriminate, (real, fake) = models["discriminator"], shown

    def matching():
        return losses.feature_matching(discriminate(real)[1], discriminate(fake)[1])

    return {
        "adversarial": lambda: started * losses.generator_loss(discriminate(fake)[0]),
        "matching": lambda: started * matching(),
    }


def judge(models: Models, shown: tuple[Array, Array]) -> tuple[Array, dict[str, Array]]:
    """The discriminator's loss."""
    (real, _), (fake, _) = (models["discriminator"](x) for x in shown)
    loss = losses.discriminator_loss(real, fake)
    return loss, {"discriminator": loss}
