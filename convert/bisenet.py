"""The face parser `79999_iter.pth`."""

from unavglip_jax import params
from unavglip_jax.convert.state_dict import StateDict, place
from unavglip_jax.models.bisenet import BiSeNet, BiSeNetConfig
from unavglip_jax.params import Params

MARKS = ("cp.resnet.conv1.weight", "ffm.convblk.conv.weight", "conv_out.conv_out.weight")


def convert(source: StateDict, what: str = "the checkpoint") -> tuple[BiSeNetConfig, Params]:
    """The parser of a state dict in face-parsing.PyTorch's names, without its auxiliary heads.

    Raises:
      ConversionError: a tensor is unknown, missing or misshapen.
    """
    config = BiSeNetConfig(n_classes=len(source[MARKS[-1]]) if MARKS[-1] in source else 19)
    _, shapes = params.abstract(BiSeNet, config)
    return config, place(source, shapes, rename=main_head, what=what)


def main_head(key: str) -> str | None:
    """The name; `None` for the two heads that only training uses."""
    return None if key.startswith(("conv_out16.", "conv_out32.")) else key
