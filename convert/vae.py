"""stabilityai/sd-vae-ft-mse and other diffusers AutoencoderKL files, legacy or current names."""

import re

from unavglip_jax import params
from unavglip_jax.convert.musetalk import shape
from unavglip_jax.convert.state_dict import StateDict, place
from unavglip_jax.models.vae import VAE, VAEConfig
from unavglip_jax.params import Params

MARKS = ("encoder.conv_in.weight", "decoder.conv_in.weight", "post_quant_conv.weight")

LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def convert(
    source: StateDict, published: dict | None = None, what: str = "the checkpoint"
) -> tuple[VAEConfig, Params]:
    """The auto-encoder of a state dict in diffusers' names.

    Args:
      source: the state dict; the mid attentions under the names before or since diffusers 0.15.
      published: the contents of its `config.json`, for what no tensor shows (norm groups and scaling
        factor; 32 and 0.18215 without it).
      what: names the checkpoint in errors.

    Raises:
      ConversionError: a tensor is unknown, missing or misshapen.
    """
    published = published or {}
    levels = len({key.split(".")[2] for key in source if key.startswith("encoder.down_blocks.")})
    firsts = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(levels)]
    config = VAEConfig(
        in_channels=shape(source, "encoder.conv_in.weight")[1],
        out_channels=shape(source, "decoder.conv_out.weight")[0],
        block_out_channels=[shape(source, first)[0] for first in firsts],
        layers_per_block=sum(
            bool(re.fullmatch(r"encoder\.down_blocks\.0\.resnets\.\d+\.conv1\.weight", key))
            for key in source
        ),
        latent_channels=shape(source, "post_quant_conv.weight")[0],
        norm_num_groups=published.get("norm_num_groups", 32),
        scaling_factor=published.get("scaling_factor", 0.18215),
    )
    _, shapes = params.abstract(VAE, config)
    return config, place(source, shapes, rename=current_name, what=what)


def current_name(key: str) -> str:
    """The name since diffusers 0.15 of a mid-attention tensor; other names are unchanged."""
    old = "|".join(LEGACY)
    return re.sub(
        rf"(mid_block\.attentions\.0)\.({old})\.", lambda m: f"{m[1]}.{LEGACY[m[2]]}.", key
    )
