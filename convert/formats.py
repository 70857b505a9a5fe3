"""Which published file is this? Every format that can be read, by key names that it alone has."""

from pathlib import Path
from typing import NamedTuple

from unavglip_jax.config import InputError
from unavglip_jax.convert import (
    arcface,
    bisenet,
    musetalk,
    s3fd,
    stable_syncnet,
    syncnet_v2,
    unavglip,
    vae,
    vgg,
    wav2lip,
    whisper,
)
from unavglip_jax.convert.state_dict import StateDict, read


class Format(NamedTuple):
    """One published format.

    Attributes:
      component: the network of a pack that it becomes (`assets.NETWORKS`).
      title: what it is called in messages.
      marks: PyTorch key names that are all present in it, and in no format further down.
      licence: the terms of the published weights, as far as their authors state them.
    """

    component: str
    title: str
    marks: tuple[str, ...]
    licence: str


LATENTSYNC_UNET = (
    "conv_in.weight",
    "up_blocks.1.motion_modules.0.temporal_transformer.norm.weight",
)

FORMATS = (
    Format("latentsync_unet", "LatentSync's UNet", LATENTSYNC_UNET, "OpenRAIL++"),
    Format("adapter", "an UnAvgLip adapter checkpoint", unavglip.MARKS, "MIT (README of UnAvgLip)"),
    Format("unet", "a Stable-Diffusion UNet", musetalk.MARKS, "CreativeML OpenRAIL-M"),
    Format("vae", "a Stable-Diffusion VAE", vae.MARKS, "MIT"),
    Format("whisper", "Whisper (OpenAI's file)", whisper.MARKS_OPENAI, "MIT"),
    Format("whisper", "Whisper (transformers)", whisper.MARKS_TRANSFORMERS, "Apache-2.0"),
    Format("whisper", "Whisper (transformers)", whisper.MARKS_TRANSFORMERS_MODEL, "Apache-2.0"),
    Format(
        "wav2lip_syncnet",
        "Wav2Lip's lip-sync expert",
        wav2lip.MARKS,
        "research and personal use only (LRS2)",
    ),
    Format("stable_syncnet", "LatentSync's SyncNet", stable_syncnet.MARKS, "OpenRAIL++"),
    Format("syncnet_v2", "SyncNet v2 of Chung and Zisserman", syncnet_v2.MARKS, "MIT"),
    Format("face_parsing", "BiSeNet face parsing", bisenet.MARKS, "MIT; trained on CelebAMask-HQ"),
    Format("face_detector", "S3FD", s3fd.MARKS, "BSD-3-Clause (face-alignment)"),
    Format("face_detector", "S3FD (syncnet_python)", s3fd.MARKS_SYNCNET, "MIT (syncnet_python)"),
    Format(
        "identity", "ArcFace's IResNet", arcface.MARKS, "non-commercial research only (insightface)"
    ),
    Format("lpips", "LPIPS heads", vgg.MARKS_LPIPS, "BSD-2-Clause"),
    Format("vgg19", "torchvision's VGG19", vgg.MARKS_VGG19, "BSD-3-Clause; trained on ImageNet"),
    Format("vgg16", "torchvision's VGG16", vgg.MARKS_VGG16, "BSD-3-Clause; trained on ImageNet"),
)


def identify(source: StateDict) -> Format | None:
    """The format of a state dict, or `None` for one that cannot be read."""
    return next((f for f in FORMATS if all(mark in source for mark in f.marks)), None)


def read_as(path: str | Path, component: str) -> tuple[StateDict, Format]:
    """The state dict of a file that must become `component`.

    Raises:
      InputError: the file cannot be read, or is another network; the message says which.
    """
    source = read(path)
    found = identify(source)
    if found is None:
        first = ", ".join(list(source)[:3])
        raise InputError(
            f"{path} is no checkpoint that can be converted; its first tensors are {first}"
        )
    if found.component != component:
        wanted = " or ".join(dict.fromkeys(f.title for f in FORMATS if f.component == component))
        raise InputError(f"{path} is {found.title}, not {wanted}")
    return source, found
