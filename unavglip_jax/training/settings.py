"""What to train and how: one YAML file, fields of which `name.of.field=value` on the command line changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from unavglip_jax.config import Config, Dtype, InputError, load_yaml, validate
from unavglip_jax.data.pipeline import SampleOptions
from unavglip_jax.sharding import MeshConfig

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Positive = pydantic.PositiveInt


class Losses(Config):
    """Weights of the terms of the generator's loss; a term of weight 0 is not computed.

    `training.losses` says what each is. Experts (`sync`, `identity`, `perceptual`, `lpips`) come from
    the pack.

    Attributes:
      pixel: L1 of the whole image; `pixel_lower_half`, `pixel_mouth` of that part.
      gradient: L1 of image gradients on the hidden part.
      latent: L1 of latents; `latent_hidden`, `latent_mouth` of that part, which need no decoding and so
        cost half as much as those of pixels.
      perceptual: UnAvgLip's, relu3_3 of VGG19 on the lower half.
      pyramid: MuseTalk 1.5's, VGG19 at four scales.
      lpips: LPIPS.
      sync: Wav2Lip's expert on five frames, or StableSyncNet on sixteen.
      identity: ArcFace.
      adversarial: least squares, by a discriminator of mouths that is trained along.
      matching: feature matching of that discriminator.
    """

    pixel: float = 0.0
    pixel_lower_half: float = 0.0
    pixel_mouth: float = 0.0
    gradient: float = 0.0
    latent: float = 0.0
    latent_hidden: float = 0.0
    latent_mouth: float = 0.0
    perceptual: float = 0.0
    pyramid: float = 0.0
    lpips: float = 0.0
    sync: float = 0.0
    identity: float = 0.0
    adversarial: float = 0.0
    matching: float = 0.0


class Optimizer(Config):
    """Clipping, AdamW or Muon, a schedule of the learning rate, and averaging of the weights.

    Attributes:
      kind: "adamw", or "muon" (Jordan 2024; scaled as Liu et al. 2025, so that learning rates mean what they
        do for AdamW), which gives kernels updates whose singular values are alike, and the rest AdamW's
        with Nesterov momentum.
      learning_rate: at its highest.
      schedule: after warming up "cosine" falls to 0 at the last step; "constant" stays.
      warmup: steps over which it rises from 0.
      betas: of Adam.
      epsilon: of Adam.
      weight_decay: of all weights.
      clip: largest norm of all gradients together.
      ema: the average follows the weights by 1 - ema a step, faster at first.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: pydantic.PositiveFloat = 1e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: pydantic.NonNegativeInt = 0
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 1e-2
    clip: pydantic.PositiveFloat = 1.0
    ema: Share = 0.999


class Adversary(Config):
    """The discriminator of the adversarial term.

    Attributes:
      start: the step at which the term begins.
      size: side, in pixels, of the mouths that it sees; from fewer than 53 no patch would be left.
      optimizer: its own.
    """

    start: pydantic.NonNegativeInt = 1000
    size: Annotated[int, pydantic.Field(ge=53)] = 64
    optimizer: Optimizer = Optimizer(learning_rate=5e-6, betas=(0.5, 0.999))


class Objective(Config):
    """What is trained, in what.

    Attributes:
      kind: "unavglip" trains the Perceiver, LoRA and the identity's keys and values over a frozen UNet;
        "musetalk_v10" the whole UNet; "wav2lip_syncnet" and "stable_syncnet" an expert of lip sync; "vae"
        the auto-encoder; "identity" the face embedder.
      pack: the networks that are there. One that is trained and is in the pack goes on from its weights.
      networks: configuration of networks that the pack does not have, by component.
      losses: of the generator or the auto-encoder.
      adversary: for their adversarial term.
      kl: weight of the auto-encoder's Kullback-Leibler term.
      guide_scale: of identity attention while training.
    """

    kind: Literal[
        "unavglip", "musetalk_v10", "wav2lip_syncnet", "stable_syncnet", "vae", "identity"
    ]
    pack: Path
    networks: dict[str, dict[str, Any]] = pydantic.Field(default_factory=dict)
    losses: Losses = Losses()
    adversary: Adversary = Adversary()
    kl: float = 1e-6
    guide_scale: float = 1.0


class Data(Config):
    """The samples.

    Attributes:
      path: a data set that `unavglip preprocess` made.
      batch_size: samples a step, over all devices and processes.
      workers: processes that make samples; 0 for threads.
      sample: what a sample holds; the objective says which fields.
    """

    path: Path
    batch_size: Positive = 8
    workers: pydantic.NonNegativeInt = 0
    sample: SampleOptions = SampleOptions()


class Settings(Config):
    """A run.

    Attributes:
      output: folder of checkpoints, logs and pictures. A run whose folder has a checkpoint goes on from it.
      steps: updates.
      seed: of new weights, order of samples, and all else that is drawn.
      dtype: that the networks compute in, and frozen weights are kept in; trained ones are float32.
      remat: compute the UNet's and VAE's activations again in the backward pass, instead of keeping them.
      accumulate: parts of a batch that go through the networks one after the other.
      log_every: steps.
      checkpoint_every: steps.
      keep: checkpoints, the newest.
      validate_every: steps; 0 for never.
      validation_batches: at most so many.
    """

    objective: Objective
    data: Data
    output: Path
    steps: Positive
    optimizer: Optimizer = Optimizer()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0
    dtype: Dtype = "float32"
    remat: bool = False
    accumulate: Positive = 1
    log_every: Positive = 10
    checkpoint_every: Positive = 1000
    keep: Positive = 3
    validate_every: pydantic.NonNegativeInt = 1000
    validation_batches: Positive = 8


def read(path: str | Path, changes: Sequence[str] = ()) -> Settings:
    """The settings of a YAML file, with some fields changed.

    Args:
      path: the file. `include: other.yaml`, beside it, gives what it does not say.
      changes: such as "data.path=clips" or "mesh.fsdp=4"; values are YAML.

    Raises:
      InputError: a file is missing, a field is unknown, missing or wrong, or a change is none.
    """
    values = load_yaml(path)
    if included := values.pop("include", None):
        values = merged(load_yaml(Path(path).parent / included), values)
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not name:
            raise InputError(f"{change!r} changes nothing; write it as data.batch_size=16")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{change!r}: the value is not valid YAML") from error
        for part in reversed(name.split(".")):
            value = {part: value}
        values = merged(values, value)
    return validate(Settings, values, str(path))


def merged(below: dict, above: dict) -> dict:
    """Both mappings in one; where both have a value, that of `above`."""
    out = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(out.get(name), dict)
        out[name] = merged(out[name], value) if both else value
    return out
