"""`syncnet_v2.model` of Chung and Zisserman."""

from unavglip_jax import params
from unavglip_jax.convert.state_dict import StateDict, place
from unavglip_jax.models.syncnet_v2 import SyncNetV2, SyncNetV2Config
from unavglip_jax.params import Params

MARKS = ("netcnnaud.0.weight", "netcnnlip.0.weight", "netfcaud.0.weight", "netfclip.0.weight")


def convert(source: StateDict, what: str = "the checkpoint") -> tuple[SyncNetV2Config, Params]:
    """SyncNet of a state dict in syncnet_python's names.

    Raises:
      ConversionError: a tensor is unknown, missing or misshapen.
    """
    config = SyncNetV2Config()
    _, shapes = params.abstract(SyncNetV2, config)
    return config, place(source, shapes, what=what)
