"""face-alignment's face detector, `s3fd-619a316812.pth`."""

from unavglip_jax import params
from unavglip_jax.convert.state_dict import StateDict, place
from unavglip_jax.models.s3fd import S3FD, S3FDConfig
from unavglip_jax.params import Params

MARKS = ("conv3_3_norm.weight", "fc6.weight", "fc7_mbox_conf.weight")


def convert(source: StateDict, what: str = "the checkpoint") -> tuple[S3FDConfig, Params]:
    """The detector of a state dict in face-alignment's names.

    Raises:
      ConversionError: a tensor is unknown, missing or misshapen.
    """
    config = S3FDConfig(variant="face_alignment")
    _, shapes = params.abstract(S3FD, config)
    return config, place(source, shapes, what=what)
