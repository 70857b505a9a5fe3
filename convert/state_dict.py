"""Published checkpoints: reading them safely, and placing every tensor or saying what does not fit."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from unavglip_jax.config import InputError
from unavglip_jax.params import Params, Shapes

StateDict = Mapping[str, Any]  # {PyTorch name: torch tensor or numpy array}


class ConversionError(InputError):
    """A checkpoint does not fit the network; lists what is unknown, missing, doubled or misshapen."""

    def __init__(self, message: str, left_over: int = 0):
        super().__init__(message)
        self.left_over = left_over


def read(path: str | Path) -> StateDict:
    """The tensors of a `.pt`, `.pth`, `.bin`, `.model` or `.safetensors` file, memory-mapped if possible.

    Training checkpoints are opened to their weights (`state_dict`, `model_state_dict`), and the
    `module.` prefix of data-parallel training is removed.

    Raises:
      InputError: not a file, truncated, some other format, or a pickle that would run code.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the weights file inside it")
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a downloaded checkpoint")
    if path.suffix == ".safetensors":
        try:
            return safetensors.numpy.load_file(path)
        except (safetensors.SafetensorError, ValueError) as error:
            raise InputError(
                f"{path} is not a complete safetensors file ({error}); download it again"
            ) from error
    return unwrap(load_torch(path), path)


def load_torch(path: Path) -> Any:
    """`torch.load` that never runs code, memory-mapped where the file is in the current zip format."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path} needs PyTorch to be read; install unavglip-jax[convert]"
        ) from error
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).lower()
        if "unsupported global" in reason or "unsupported class" in reason:
            raise InputError(
                f"{path} contains pickled code, which is not run here; get its weights as "
                "safetensors or as a plain state dict"
            ) from error
        raise InputError(
            f"{path} is not a complete PyTorch checkpoint (truncated download, or another format); "
            "download it again"
        ) from error


def unwrap(found: Any, path: Path) -> StateDict:
    """The state dict inside a training checkpoint, without `module.` prefixes."""
    for key in ("state_dict", "model_state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path} holds a {type(found).__name__}, not a state dict of tensors")
    strange = [str(key) for key, value in found.items() if not hasattr(value, "shape")]
    if strange:
        raise InputError(f"{path} is not a state dict: {listed(strange)} are no tensors")
    if all(key.startswith("module.") for key in found):
        found = {key.removeprefix("module."): value for key, value in found.items()}
    return found


def array(tensor: Any) -> np.ndarray:
    """A torch tensor or an array as numpy; bfloat16, which numpy lacks, as float32."""
    if isinstance(tensor, np.ndarray):
        return tensor
    tensor = tensor.detach()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def place(
    source: StateDict,
    shapes: Shapes,
    rename: Callable[[str], str | None] = lambda key: key,
    what: str = "the checkpoint",
) -> Params:
    """Every tensor of `source` at the parameter of the same name, in flax's layout and dtype.

    Args:
      source: PyTorch names and tensors.
      shapes: the network's parameters (`params.abstract`).
      rename: the PyTorch name the network uses for a key of the file, or `None` for a tensor that is
        knowingly not needed. BatchNorm's `num_batches_tracked` never is.
      what: names the checkpoint in errors.

    Raises:
      ConversionError: one message that lists all unknown, doubled, misshapen and missing tensors.
    """
    params, origin, unknown, doubled, misshapen = {}, {}, [], [], []
    for key, tensor in source.items():
        name = None if key.endswith("num_batches_tracked") else rename(key)
        if name is None:
            continue
        path = path_of(name, shapes)
        if path is None:
            unknown.append(key)
        elif path in params:
            doubled.append(f"{key} and {origin[path]}")
        else:
            value = in_layout(tensor, shapes[path].shape, path)
            if value is None:
                has, wants = tuple(tensor.shape), torch_shape(shapes[path].shape, path)
                misshapen.append(f"{key} is {has}, the network has {wants}")
            else:
                params[path] = np.ascontiguousarray(value, shapes[path].dtype)
            origin[path] = key
    missing = [torch_name(path) for path in shapes if path not in origin]

    problems = [
        f"{len(names)} {kind} ({listed(names)})"
        for kind, names in (
            ("unknown", unknown),
            ("missing", missing),
            ("doubled", doubled),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise ConversionError(
            f"{what} does not fit the network: {'; '.join(problems)}", len(unknown)
        )
    return {path: params[path] for path in shapes}


LEAVES = {
    "weight": ("kernel", "scale", "embedding"),
    "running_mean": ("mean",),
    "running_var": ("var",),
}


def path_of(name: str, shapes: Shapes) -> str | None:
    """Our path for a PyTorch name: the leaf is called what the network calls it."""
    *head, leaf = name.split(".")
    paths = ("/".join([*head, ours]) for ours in LEAVES.get(leaf, (leaf,)))
    return next((path for path in paths if path in shapes), None)


def torch_name(path: str) -> str:
    """PyTorch's name for one of our paths."""
    *head, leaf = path.split("/")
    theirs = {ours: torch for torch, all_ours in LEAVES.items() for ours in all_ours}
    return ".".join([*head, theirs.get(leaf, leaf)])


def in_layout(tensor: Any, shape: tuple[int, ...], path: str) -> np.ndarray | None:
    """PyTorch's (out, in, spatial...) as flax's (spatial..., in, out); `None` if it cannot be `shape`."""
    value = array(tensor)
    if path.endswith("kernel") and value.ndim >= 2:
        if value.ndim == 4 and len(shape) == 2 and value.shape[2:] == (1, 1):
            value = value[:, :, 0, 0]  # old files keep some linear layers as 1x1 convolutions
        value = np.moveaxis(value, (0, 1), (-1, -2))
    return value if value.shape == tuple(shape) else None


def torch_shape(shape: tuple[int, ...], path: str) -> tuple[int, ...]:
    """PyTorch's shape of one of our parameters."""
    is_kernel = path.endswith("kernel") and len(shape) >= 2
    return (shape[-1], shape[-2], *shape[:-2]) if is_kernel else tuple(shape)


def to_torch(params: Params) -> dict[str, np.ndarray]:
    """The inverse of `place`: PyTorch's names and layout, as numpy arrays."""
    out = {}
    for path, leaf in params.items():
        value = np.asarray(leaf)
        if path.endswith("kernel") and value.ndim >= 2:
            value = np.moveaxis(value, (-1, -2), (0, 1))
        out[torch_name(path)] = np.ascontiguousarray(value)
    return out


def listed(names: list[str], limit: int = 8) -> str:
    """The first few names, and how many more there are."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
