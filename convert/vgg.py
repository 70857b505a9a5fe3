"""torchvision's VGG16 and VGG19 (`vgg16-397923af.pth`, `vgg19-dcbb9e9d.pth`), and LPIPS's heads `vgg.pth`."""

from unavglip_jax import params
from unavglip_jax.convert.state_dict import ConversionError, StateDict, place
from unavglip_jax.models.lpips import LPIPS, OUTPUTS, LPIPSConfig
from unavglip_jax.models.vgg import VGG, VGGConfig, member_names
from unavglip_jax.params import Params

MARKS_VGG16 = ("features.2.weight", "features.17.weight", "features.28.weight")
MARKS_VGG19 = ("features.2.weight", "features.16.weight", "features.28.weight")
MARKS_LPIPS = ("lin0.model.1.weight", "lin4.model.1.weight")

LAST = {16: OUTPUTS[-1], 19: VGGConfig().last}


def convert(source: StateDict, what: str = "the checkpoint") -> tuple[VGGConfig, Params]:
    """The convolutions that the losses use: VGG16 up to relu5_3, VGG19 up to relu5_1.

    The classifier and what lies behind that ReLU are left out.

    Raises:
      ConversionError: it is neither VGG, or a tensor is unknown, missing or misshapen.
    """
    if all(mark in source for mark in MARKS_VGG19):
        depth = 19
    elif all(mark in source for mark in MARKS_VGG16):
        depth = 16
    else:
        raise ConversionError(
            f"{what} is neither VGG16 nor VGG19 without batch norm; give torchvision's file"
        )
    names = member_names(depth, LAST[depth])
    firsts = [f"features.{names.index(f'conv{stage}_1')}.weight" for stage in range(1, 6)]
    missing = [key for key in firsts if key not in source]
    if missing:
        raise ConversionError(f"{what} is not a complete VGG{depth}: it has no {missing[0]}")
    widths = [source[key].shape[0] for key in firsts]
    config = VGGConfig(depth=depth, last=LAST[depth], widths=widths)

    def needed(key):
        part, _, rest = key.partition(".")
        index = rest.split(".")[0]
        behind = part == "features" and index.isdigit() and int(index) >= len(names)
        return None if part == "classifier" or behind else key

    _, shapes = params.abstract(VGG, config)
    return config, place(source, shapes, rename=needed, what=what)


def convert_lpips(
    vgg16: StateDict, heads: StateDict, what: str = "the checkpoints"
) -> tuple[LPIPSConfig, Params]:
    """LPIPS of the two files that hold it: torchvision's VGG16, and the heads trained on it.

    Raises:
      ConversionError: the first is not VGG16, or a tensor is unknown, missing or misshapen.
    """
    vgg, trunk = convert(vgg16, what)
    if vgg.depth != 16:
        raise ConversionError(f"{what}: these LPIPS heads need VGG16, not VGG{vgg.depth}")
    config = LPIPSConfig(widths=vgg.widths)
    _, shapes = params.abstract(LPIPS, config)
    rest = {name: shape for name, shape in shapes.items() if not name.startswith("net/")}
    placed = {f"net/{name}": leaf for name, leaf in trunk.items()} | place(heads, rest, what=what)
    return config, {name: placed[name] for name in shapes}
