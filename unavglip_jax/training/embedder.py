"""Training a small face embedder, for packs of one's own."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unavglip_jax.data.pipeline import SampleOptions
from unavglip_jax.models.layers import l2_normalize
from unavglip_jax.training import losses
from unavglip_jax.training.dubbing import images
from unavglip_jax.training.losses import Images, Landmarks
from unavglip_jax.training.objective import Batch, Models, Objective, key_of, load, named
from unavglip_jax.training.settings import Settings


def build(settings: Settings, people: int) -> Objective:
    """The objective of the kind "identity": whose face it is, with ArcFace's margin (arXiv 1801.07698).

    Args:
      settings: of the run.
      people: how many there are to tell apart; every source of the data set counts as one.
    """
    config, weights = load(settings, "identity", "training an embedder", trained=True)
    shape = (people, config.embedding)
    directions = 0.01 * jax.random.normal(key_of(settings, "directions"), shape)
    return Objective(
        networks={"identity": config},
        weights=named(identity=weights) | {"directions/kernel": directions},
        trainable=r"^identity/|^directions/",
        sample=sample(settings),
        loss=loss,
        judge=None,
        evaluate=evaluate,
        makes=("identity",),
    )


def sample(settings: Settings) -> SampleOptions:
    """What the samples hold."""
    return settings.data.sample.replace(fields=("target", "landmarks", "aspect", "label"))


def seen(batch: Batch) -> tuple[Images, Landmarks, Float[Array, " R"]]:
    """Frames, landmarks and the aspect of the crops; a row for each frame of each clip."""
    landmarks, aspect = batch["landmarks"].reshape(-1, 68, 2), batch["aspect"].reshape(-1)
    return images(batch["target"]), landmarks, aspect


def surrounded(
    frames: Images, landmarks: Landmarks, aspect: Float[Array, " B"], key: Array
) -> Images:
    """Aligned faces of which every other has somebody else's picture around it instead of black.

    Where the crop ends, a face cut from it is black, and a face cut from a whole frame, as for a data set or
    a dub, is not. An embedder that has only seen black there takes the two for different people.
    """
    faces = losses.warp_faces(frames, landmarks, aspect)
    inside = losses.warp_faces(jnp.ones_like(frames[..., :1]), landmarks, aspect) > 0
    shape = (len(faces), *faces.shape[1:3], 3)
    others = jax.image.resize(jnp.roll(frames, 1, axis=0), shape, "linear")
    bare = jax.random.bernoulli(key, shape=(len(faces), 1, 1, 1))
    return jnp.where(inside | bare, faces, others)


def loss(models: Models, batch: Batch, step: Array, key: Array):
    """ArcFace's over the people of the training split."""
    del step
    found = models["identity"](surrounded(*seen(batch), key))
    labels = batch["label"].repeat(batch["target"].shape[1])
    # With ArcFace's scale of 64 a new network does not move; 16 is for few people.
    value = losses.arcface_margin(found, models["directions"]["kernel"], labels, scale=16.0)
    cosines = l2_normalize(found) @ l2_normalize(models["directions"]["kernel"]).T
    return value, {"accuracy": jnp.mean(cosines.argmax(axis=1) == labels)}, None


def evaluate(models: Models, batch: Batch):
    """Whether the nearest other clip shows the same person, by the clips' mean embeddings."""
    by_clip = lambda rows: rows.reshape(*batch["target"].shape[:2], -1)
    frames = l2_normalize(models["identity"](losses.warp_faces(*seen(batch))))
    found = l2_normalize(by_clip(frames).mean(axis=1))
    others = jnp.where(jnp.eye(len(found), dtype=bool), -2.0, found @ found.T)
    same = batch["label"][:, None] == batch["label"]
    same = same & ~jnp.eye(len(found), dtype=bool)
    mean = lambda mask: jnp.where(mask, others, 0).sum(1) / jnp.maximum(mask.sum(1), 1)
    metrics = {
        "nearest": jnp.take_along_axis(same, others.argmax(1)[:, None], axis=1)[:, 0] * 1.0,
        "cosine_same": mean(same),
        "cosine_other": mean(~same & (others > -2)),
    }
    return metrics, {}
