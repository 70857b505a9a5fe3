"""UnAvgLip's adapter checkpoint, `pytorch_model.bin` of 1313 keys, in both directions.

`unet.*` is the MuseTalk UNet with its attention processors, `image_proj_model.*` the Perceiver, and
`adapter_modules.N.*` the processors once more: the same tensors under the name that training used.
"""

from typing import NamedTuple

import numpy as np

from unavglip_jax import params
from unavglip_jax.convert import musetalk
from unavglip_jax.convert.state_dict import (
    ConversionError,
    StateDict,
    array,
    listed,
    place,
    to_torch,
)
from unavglip_jax.models.perceiver import Perceiver, PerceiverConfig
from unavglip_jax.models.unet import UNet, UNetConfig
from unavglip_jax.params import Params

MARKS = ("unet.conv_in.weight", "image_proj_model.latents", "adapter_modules.1.to_k_ip.weight")


class Adapter(NamedTuple):
    """What an adapter checkpoint holds."""

    unet_config: UNetConfig  # with its LoRA rank and identity attention
    unet: Params  # base and processors together
    perceiver_config: PerceiverConfig
    perceiver: Params


def convert(
    source: StateDict,
    published: dict | None = None,
    dim_head: int = 64,
    what: str = "the checkpoint",
) -> Adapter:
    """The UNet with its adapter, and the Perceiver.

    Args:
      source: the state dict of UnAvgLip's adapter module.
      published: the contents of `musetalk.json` (see `convert.musetalk`).
      dim_head: channels a head of the Perceiver, which no tensor shows.
      what: names the checkpoint in errors.

    Raises:
      ConversionError: a tensor is unknown, missing or misshapen, or the two names of one adapter tensor
        hold different values.
    """
    parts = {"unet": {}, "image_proj_model": {}, "adapter_modules": {}}
    unknown = []
    for key, tensor in source.items():
        head, _, rest = key.partition(".")
        parts[head].__setitem__(rest, tensor) if head in parts else unknown.append(key)
    if unknown or not all(parts.values()):
        absent = [name for name, part in parts.items() if not part]
        found = f"unknown {listed(unknown)}" if unknown else f"nothing under {listed(absent)}"
        raise ConversionError(
            f"{what} is not an UnAvgLip adapter checkpoint: {found}", len(unknown)
        )

    base = {key: t for key, t in parts["unet"].items() if ".processor." not in key}
    config = musetalk.config_of(base, published or {}, what)
    config = config.replace(
        lora_rank=musetalk.shape(parts["adapter_modules"], "0.to_q_lora.down.weight")[0],
        identity="tokens",
    )
    named = name_adapter(parts["adapter_modules"], config, what)
    compare(named, {k: t for k, t in parts["unet"].items() if ".processor." in k}, what)
    _, shapes = params.abstract(UNet, config)
    unet = place(base | named, shapes, what=what)

    perceiver_config = perceiver_config_of(parts["image_proj_model"], dim_head)
    _, shapes = params.abstract(Perceiver, perceiver_config)
    perceiver = place(parts["image_proj_model"], shapes, what=f"the Perceiver of {what}")
    return Adapter(config, unet, perceiver_config, perceiver)


def processors(config: UNetConfig) -> list[str]:
    """Names of the attention processors in the order of `adapter_modules`: down, up, mid."""
    levels = list(enumerate(config.cross_attention))
    blocks = [(f"down_blocks.{i}", config.layers_per_block) for i, has in levels if has]
    up = list(enumerate(reversed(config.cross_attention)))
    blocks += [(f"up_blocks.{i}", config.layers_per_block + 1) for i, has in up if has]
    blocks += [("mid_block", 1)]
    return [
        f"{block}.attentions.{i}.transformer_blocks.0.{attention}.processor"
        for block, count in blocks
        for i in range(count)
        for attention in ("attn1", "attn2")
    ]


def name_adapter(modules: StateDict, config: UNetConfig, what: str) -> dict:
    """`{N}.{rest}` under the names that the same tensors have in the UNet."""
    names, out, unknown = processors(config), {}, []
    for key, tensor in modules.items():
        number, _, rest = key.partition(".")
        if number.isdigit() and int(number) < len(names):
            out[f"{names[int(number)]}.{rest}"] = tensor
        else:
            unknown.append(f"adapter_modules.{key}")
    if unknown:
        raise ConversionError(
            f"{what} has {listed(unknown)}, but this UNet has {len(names)} attentions", len(unknown)
        )
    return out


def compare(named: dict, duplicates: dict, what: str) -> None:
    """Refuses a checkpoint whose two copies of the adapter differ."""
    alone = sorted(named.keys() ^ duplicates.keys())
    if alone:
        raise ConversionError(
            f"{what} has only one of the two names of {len(alone)} adapter tensors ({listed(alone)})"
        )
    differ = [key for key in named if not np.array_equal(array(named[key]), array(duplicates[key]))]
    if differ:
        raise ConversionError(
            f"{what} holds different values under adapter_modules and under unet for {len(differ)} "
            f"tensors ({listed(differ)}); which were trained cannot be known"
        )


def perceiver_config_of(source: StateDict, dim_head: int) -> PerceiverConfig:
    """The configuration that the Perceiver's tensors show."""
    _, queries, dim = musetalk.shape(source, "latents")
    return PerceiverConfig(
        dim=dim,
        depth=len({key.split(".")[1] for key in source if key.startswith("layers.")}),
        dim_head=dim_head,
        heads=musetalk.shape(source, "layers.0.0.to_q.weight")[0] // dim_head,
        num_queries=queries,
        embedding_dim=musetalk.shape(source, "proj_in.weight")[1],
        output_dim=musetalk.shape(source, "proj_out.weight")[0],
        ff_mult=musetalk.shape(source, "layers.0.1.1.weight")[0] // dim,
    )


def export(unet_config: UNetConfig, unet: Params, perceiver: Params) -> dict[str, np.ndarray]:
    """The state dict that UnAvgLip's own loader expects, key for key, as numpy arrays.

    The two names of an adapter tensor share one array.
    """
    theirs = to_torch(unet)
    out = {f"unet.{key}": value for key, value in theirs.items()}
    out |= {f"image_proj_model.{key}": value for key, value in to_torch(perceiver).items()}
    for number, name in enumerate(processors(unet_config)):
        for key, value in theirs.items():
            if key.startswith(f"{name}."):
                out[f"adapter_modules.{number}.{key.removeprefix(f'{name}.')}"] = value
    return out
