"""S3FD: face-alignment's `s3fd-619a316812.pth`, and syncnet_python's and LatentSync's `sfd_face.pth`."""

from unavglip_jax import params
from unavglip_jax.convert.state_dict import StateDict, place
from unavglip_jax.models.s3fd import S3FD, SOURCES, TRUNK, S3FDConfig
from unavglip_jax.params import Params

MARKS = ("conv3_3_norm.weight", "fc6.weight", "fc7_mbox_conf.weight")
MARKS_SYNCNET = ("vgg.0.weight", "L2Norm3_3.weight", "extras.0.weight", "loc.0.weight")

VGG = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
TRUNK_NAMES = [f"conv{s}_{i}" for s, (_, n) in enumerate(TRUNK, 1) for i in range(1, n + 1)]

SYNCNET = {
    **{f"vgg.{index}": name for index, name in zip(VGG, TRUNK_NAMES, strict=True)},
    "vgg.31": "fc6",
    "vgg.33": "fc7",
    **{f"extras.{i}": name for i, name in enumerate(("conv6_1", "conv6_2", "conv7_1", "conv7_2"))},
    **{f"L2Norm{stage}_3": f"conv{stage}_3_norm" for stage in (3, 4, 5)},
    **{f"conf.{i}": f"{name}_mbox_conf" for i, (name, _) in enumerate(SOURCES)},
    **{f"loc.{i}": f"{name}_mbox_loc" for i, (name, _) in enumerate(SOURCES)},
}


def convert(source: StateDict, what: str = "the checkpoint") -> tuple[S3FDConfig, Params]:
    """The detector of a state dict in either naming, which also says which variant it is.

    Raises:
      ConversionError: a tensor is unknown, missing or misshapen.
    """
    config = S3FDConfig(variant="syncnet" if MARKS_SYNCNET[0] in source else "face_alignment")
    _, shapes = params.abstract(S3FD, config)
    return config, place(source, shapes, rename=face_alignment_name, what=what)


def face_alignment_name(key: str) -> str:
    """The tensor's name in `s3fd-619a316812.pth`."""
    module, _, leaf = key.rpartition(".")
    return f"{SYNCNET.get(module, module)}.{leaf}"
