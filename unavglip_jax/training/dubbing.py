"""Training the generator: UnAvgLip's adapter over a frozen MuseTalk UNet, or the whole UNet."""

from collections.abc import Callable, Mapping
from functools import cache

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unavglip_jax import assets, params
from unavglip_jax.config import InputError
from unavglip_jax.data.pipeline import SampleOptions
from unavglip_jax.models.layers import audio_positions, l2_normalize
from unavglip_jax.models.unet import fold_timestep, init_identity
from unavglip_jax.training import adversary, losses
from unavglip_jax.training.objective import Batch, Models, Objective, found, key_of, load, named
from unavglip_jax.training.settings import Settings

EXPERTS = {  # losses -> network that they need
    "perceptual": "vgg19",
    "pyramid": "vgg19",
    "lpips": "lpips",
    "identity": "identity",
}


def build(settings: Settings) -> Objective:
    """The objective of the kinds "unavglip" (arXiv 2503.06397) and "musetalk_v10" (arXiv 2410.10122).

    The masked picture is the target's, and not, as UnAvgLip's published trainer has it, the reference's.

    Raises:
      InputError: the pack lacks a network that is needed.
    """
    adapts, weight = settings.objective.kind == "unavglip", settings.objective.losses
    needed = {expert: f"losses.{k}" for k, expert in EXPERTS.items() if getattr(weight, k)}
    if weight.sync:
        needed[sync_expert(settings)] = "losses.sync"
    for name, why in needed.items():
        found(settings, name, why)  # before the large ones are loaded
    unet_config, unet = adapter(settings) if adapts else whole_unet(settings)
    vae_config, vae = load(settings, "vae", "training a generator", remat=settings.remat)
    networks, weights = {"unet": unet_config, "vae": vae_config}, {"unet": unet, "vae": vae}
    for name, why in needed.items():
        networks[name], weights[name] = load(settings, name, why)
    if adapts:
        # A new one is the published one, fitted to the embeddings and to the UNet's context.
        networks["perceiver"], weights["perceiver"] = load(
            settings, "perceiver", "training UnAvgLip", trained=True
        )
    if adversary.wanted(weight):
        networks["discriminator"], weights["discriminator"] = adversary.new(settings)

    return Objective(
        networks=networks,
        weights=named(**weights),
        trainable=r"^perceiver/|^unet/.*/processor/" if adapts else r"^unet/",
        sample=sample(settings),
        loss=lambda *given: loss(settings, *given),
        judge=adversary.judge if adversary.wanted(weight) else None,
        evaluate=lambda *given: evaluate(settings, *given),
        makes=("adapter", "perceiver") if adapts else ("unet",),
    )


def sample(settings: Settings) -> SampleOptions:
    """What the samples hold."""
    kind, weight = settings.objective.kind, settings.objective.losses
    fields = ["target", "reference", "hidden", "landmarks", "windows"]
    fields += ["identity", "aspect"] if kind == "unavglip" or weight.identity else []
    fields += ["mel"] if weight.sync else []
    return settings.data.sample.replace(fields=tuple(fields))


def adapter(settings: Settings):
    """The frozen UNet, its time branch folded, with an adapter: the pack's, or a new one."""
    folder, dtype = settings.objective.pack, settings.dtype
    changes = {"dtype": dtype, "param_dtype": dtype, "remat": settings.remat}
    config, weights = assets.load_generator(folder, **changes)
    described = settings.objective.networks.get("adapter")
    if described is not None and config.identity != "none":
        raise InputError(
            f"objective.networks describes an adapter, and {folder} has one; leave one out"
        )
    if config.identity == "none":
        described = described or {"lora_rank": 128}
        config = config.replace(identity="tokens", **described)
        key = key_of(settings, "adapter")
        new = params.init(assets.network_of("unet")[0], config, key, only="/processor/")
        weights = init_identity(weights | new)
    weights, config = fold_timestep(weights, config)
    return config, weights


def whole_unet(settings: Settings):
    """The UNet to be trained, float32."""
    if "adapter" in assets.read_pack(settings.objective.pack).components:
        raise InputError(
            f"{settings.objective.pack} has an adapter, which would not fit another UNet; train "
            "`musetalk_v10` from a pack without one"
        )
    return load(settings, "unet", "training a UNet", trained=True, remat=settings.remat)


def sync_expert(settings: Settings) -> str:
    """The expert that fits the number of frames."""
    frames = settings.data.sample.frames
    if frames not in (5, 16):
        raise InputError(
            f"losses.sync needs samples of 5 frames (Wav2Lip's expert) or 16 (StableSyncNet), and "
            f"data.sample.frames is {frames}"
        )
    return "wav2lip_syncnet" if frames == 5 else "stable_syncnet"


# ---- the forward pass --------------------------------------------------------------------------------


def images(frames: Array) -> Float[Array, "R H W 3"]:
    """uint8 (B, T, H, W, 3) -> float32 (B T, H, W, 3) in [-1, 1], clip by clip."""
    return frames.reshape(-1, *frames.shape[2:]).astype(jnp.float32) / 127.5 - 1


def predict(
    models: Models, batch: Batch, guide_scale: float, lora_scale: float = 1.0
) -> tuple[Float[Array, "R H W 3"], Float[Array, "R h w C"]]:
    """The generated images, and their latents; a row for each frame of each clip."""
    count = batch["target"].shape[1]
    masked = jnp.where(batch["hidden"][..., None], 0, batch["target"])
    seen = models["vae"].encode(jnp.concatenate([images(masked), images(batch["reference"])]))
    latents = jnp.concatenate(jnp.split(jax.lax.stop_gradient(seen), 2), axis=-1)
    windows = batch["windows"].astype(jnp.float32)
    windows = windows.reshape(-1, *windows.shape[2:])
    windows = windows + audio_positions(*windows.shape[1:])
    if "perceiver" in models:
        tokens = models["perceiver"](batch["identity"]).repeat(count, axis=0)
        out = models["unet"](latents, 0, windows, tokens, lora_scale, guide_scale)
    else:
        out = models["unet"](latents, 0, windows)
    return models["vae"].decode(out), out


def loss(settings: Settings, models: Models, batch: Batch, step: Array, key: Array):
    """The weighted sum of the terms that have a weight; the terms; what the discriminator is to see."""
    del key  # nothing is drawn: the VAE's mode is used, and t = 0
    size = batch["target"].shape[2:4]
    prediction, latents = predict(models, batch, settings.objective.guide_scale)
    target, landmarks = images(batch["target"]), batch["landmarks"].reshape(-1, 68, 2)
    hidden = batch["hidden"].reshape(-1, *size, 1).astype(jnp.float32)
    clips = prediction.reshape(*batch["target"].shape[:2], *size, 3)
    true_latents = cache(lambda: models["vae"].encode(target))  # of whichever terms need them
    latent = lambda weight=None: losses.latent_l1(latents, true_latents(), weight)
    others = {
        "latent": latent,
        "latent_hidden": lambda: latent(hidden),
        "latent_mouth": lambda: latent(losses.mouth_weight(landmarks, size)),
        "perceptual": lambda: losses.perceptual(models["vgg19"], prediction, target),
        "sync": lambda: sync_loss(models, batch, clips),
        # Of the picture as it will be seen; what is generated elsewhere may be anything.
        "identity": lambda: losses.identity(
            models["identity"],
            jnp.where(hidden > 0, prediction, target),
            landmarks,
            batch["aspect"].reshape(-1),
            persons(batch),
        ),
    }
    return weighted(settings, models, prediction, target, landmarks, step, hidden, others)


def weighted(
    settings: Settings,
    models: Models,
    prediction: Float[Array, "R H W 3"],
    target: Float[Array, "R H W 3"],
    landmarks: Float[Array, "R 68 2"],
    step: Array,
    hidden: Float[Array, "R H W 1"] | None,
    others: Mapping[str, Callable[[], Array]],
):
    """What `loss` gives, from the terms that compare pictures and from others; none is computed in vain."""
    weight, size = settings.objective.losses, target.shape[1:3]
    lower_half = losses.lower_half(*size)
    mouth = lambda: losses.mouth_weight(landmarks, size)
    terms, shown = dict(others), None
    terms["pixel"] = lambda: losses.pixel_l1(prediction, target)
    terms["pixel_lower_half"] = lambda: losses.pixel_l1(prediction, target, lower_half)
    terms["pixel_mouth"] = lambda: losses.pixel_l1(prediction, target, mouth())
    terms["gradient"] = lambda: losses.gradient_l1(prediction, target, hidden)
    terms["pyramid"] = lambda: losses.perceptual_pyramid(models["vgg19"], prediction, target)
    terms["lpips"] = lambda: models["lpips"](prediction, target).mean()
    if adversary.wanted(weight):
        side = settings.objective.adversary.size
        crop = lambda x: losses.mouth_crops(x, landmarks, (side, side))
        shown = crop(target), crop(prediction)
        terms |= adversary.terms(models, shown, step >= settings.objective.adversary.start)
    values = {name: term() for name, term in terms.items() if getattr(weight, name)}
    total = sum(getattr(weight, name) * value for name, value in values.items())
    return total, values, shown


def sync_loss(models: Models, batch: Batch, clips: Float[Array, "B T H W 3"]) -> Array:
    """By whichever expert there is."""
    mel = batch["mel"].swapaxes(1, 2)[..., None]
    if "wav2lip_syncnet" in models:
        return losses.sync(models["wav2lip_syncnet"], mel, losses.expert_input(clips))
    expert = models["stable_syncnet"]
    return losses.sync(expert, mel, losses.stable_input(clips, expert.config.visual_encoder.size))


def persons(batch: Batch) -> Float[Array, "R E"]:
    """The mean embedding of the person in each frame: of `identity`, or of `person` if the two differ."""
    known = batch.get("person", batch["identity"])
    return known.mean(axis=1).repeat(batch["target"].shape[1], axis=0)


# ---- validation --------------------------------------------------------------------------------------


def evaluate(settings: Settings, models: Models, batch: Batch):
    """How near the generated frames come to the true ones, a number for each clip; and pictures of them.

    With an adapter, the same for the UNet without it ("base_").
    """
    count, size = batch["target"].shape[1], batch["target"].shape[2:4]
    target, landmarks = images(batch["target"]), batch["landmarks"].reshape(-1, 68, 2)
    hidden = batch["hidden"].reshape(-1, *size, 1)
    variants = {"": (settings.objective.guide_scale, 1.0)}
    if "perceiver" in models:
        variants["base_"] = (0.0, 0.0)
    by_clip = lambda x: x.reshape(-1, count).mean(axis=1)
    within = lambda x, w: by_clip((x * w).sum(axis=(1, 2, 3)) / (3 * w.sum(axis=(1, 2, 3))))
    mouth = losses.mouth_weight(landmarks, size)
    metrics, pictures = {}, {"reference": images(batch["reference"]), "target": target}
    for name, scales in variants.items():
        prediction = jnp.clip(predict(models, batch, *scales)[0], -1, 1)
        finished = jnp.where(hidden, prediction, target)
        off = jnp.abs(finished - target)
        for part, weight in {"hidden": hidden.astype(jnp.float32), "mouth": mouth}.items():
            metrics[f"{name}l1_{part}"] = within(off, weight)
            metrics[f"{name}psnr_{part}"] = by_clip(losses.psnr(finished, target, weight))
        if "identity" in models:
            faces = losses.warp_faces(finished, landmarks, batch["aspect"].reshape(-1))
            who = l2_normalize(models["identity"](faces))
            metrics[f"{name}identity"] = by_clip((who * l2_normalize(persons(batch))).sum(-1))
        if "wav2lip_syncnet" in models and "mel" in batch:
            clips = finished.reshape(*batch["target"].shape[:2], *size, 3)
            mel = batch["mel"].swapaxes(1, 2)[..., None]
            sound, picture = models["wav2lip_syncnet"](mel, losses.expert_input(clips))
            metrics[f"{name}sync"] = (sound * picture).sum(axis=-1)
        pictures["base" if name else "prediction"] = finished
    return metrics, {title: x[::count] for title, x in pictures.items()}
