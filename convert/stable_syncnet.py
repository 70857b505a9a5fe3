"""LatentSync's `stable_syncnet.pt` and `latentsync_syncnet.pt` (the one of MuseTalk 1.5)."""

from unavglip_jax import params
from unavglip_jax.convert.state_dict import (
    ConversionError,
    StateDict,
    place,
    torch_name,
    torch_shape,
)
from unavglip_jax.models.stable_syncnet import PRESETS, StableSyncNet, StableSyncNetConfig
from unavglip_jax.params import Params

MARKS = ("audio_encoder.conv_in.weight", "visual_encoder.down_blocks.0.downsample_conv.weight")


def convert(source: StateDict, what: str = "the checkpoint") -> tuple[StableSyncNetConfig, Params]:
    """StableSyncNet of a state dict in LatentSync's names; the preset is the one of its shapes.

    Raises:
      ConversionError: no preset has these shapes, or a tensor is unknown or missing.
    """
    for name, config in PRESETS.items():
        _, shapes = params.abstract(StableSyncNet, config)
        wanted = {torch_name(path): torch_shape(s.shape, path) for path, s in shapes.items()}
        if all(tuple(source[key].shape) == wanted[key] for key in source.keys() & wanted.keys()):
            return config, place(source, shapes, what=f"{what} (StableSyncNet {name})")
    raise ConversionError(
        f"{what} has the shapes of no known StableSyncNet; the known ones are {', '.join(PRESETS)}"
    )
