"""MuseTalk's UNet: `pytorch_model.bin` (1.0) and `unet.pth` (1.5) with `musetalk.json`."""

import json
import re
from pathlib import Path

from unavglip_jax import params
from unavglip_jax.config import InputError
from unavglip_jax.convert.state_dict import ConversionError, StateDict, place
from unavglip_jax.models.unet import UNet, UNetConfig
from unavglip_jax.params import Params

CROSS_ATTENTION = "{}.attentions.0.transformer_blocks.0.attn2.to_k.weight"
MARKS = ("conv_in.weight", "time_embedding.linear_1.weight", CROSS_ATTENTION.format("mid_block"))


def convert(
    source: StateDict, published: dict | None = None, what: str = "the checkpoint"
) -> tuple[UNetConfig, Params]:
    """The base UNet of a MuseTalk checkpoint.

    Args:
      source: a state dict in diffusers' names.
      published: the contents of `musetalk.json`; the widths come from the tensors, the number of heads
        and of norm groups, which no tensor shows, from here (8 and 32 without it).
      what: names the checkpoint in errors.

    Raises:
      ConversionError: a tensor is unknown, missing or misshapen, the configuration is another
        network's, or the checkpoint is not MuseTalk's.
    """
    config = config_of(source, published or {}, what)
    _, shapes = params.abstract(UNet, config)
    return config, place(source, shapes, what=what)


def config_of(source: StateDict, published: dict, what: str) -> UNetConfig:
    """The configuration that the tensors show, held against the published one."""
    missing = [key for key in MARKS if key not in source]
    if missing:
        raise ConversionError(f"{what} is not a Stable-Diffusion UNet: it has no {missing[0]}")
    levels = 1 + max(int(m[1]) for m in (re.match(r"down_blocks\.(\d+)\.", k) for k in source) if m)
    widths = [shape(source, f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)]
    context = shape(source, CROSS_ATTENTION.format("mid_block"))[1]
    channels = shape(source, "conv_in.weight")[1]
    if channels == 4 or context >= 768:
        raise ConversionError(
            f"{what} is a Stable Diffusion UNet ({channels} input channels, context of {context}), not "
            "MuseTalk's (8 and 384); give MuseTalk's pytorch_model.bin or unet.pth"
        )
    found = {
        "in_channels": channels,
        "out_channels": shape(source, "conv_out.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": sum(
            bool(re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.conv1\.weight", key))
            for key in source
        ),
        "cross_attention_dim": context,
    }
    for key, value in found.items():
        if published.get(key, value) != value:
            raise ConversionError(
                f"the UNet configuration says {key} {published[key]} and {what} has {value}; use the "
                "musetalk.json that was published with these weights"
            )
    attention = [CROSS_ATTENTION.format(f"down_blocks.{i}") in source for i in range(levels)]
    return UNetConfig(
        **found,
        cross_attention=attention,
        heads=published.get("attention_head_dim", 8),  # diffusers' old name for their number
        norm_num_groups=published.get("norm_num_groups", 32),
    )


def shape(source: StateDict, key: str) -> tuple[int, ...]:
    """Shape of one tensor, or the error that it is missing."""
    if key not in source:
        raise ConversionError(f"the checkpoint has no {key}")
    return tuple(source[key].shape)


def read_published(path: str | Path | None) -> dict:
    """The published JSON configuration, or nothing without a path."""
    if path is None:
        return {}
    try:
        return json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as JSON ({error}); give the configuration published with the weights"
        ) from error
