"""Configuration: frozen pydantic models that refuse what they do not know, read from YAML."""

from pathlib import Path
from typing import Literal, Self, TypeVar

import pydantic
import yaml

Dtype = Literal["float32", "bfloat16", "float16"]

# The convention of the Whisper features: "v10" is MuseTalk 1.0, UnAvgLip and LatentSync, "v15" MuseTalk 1.5.
AudioFrontEnd = Literal["v10", "v15"]


class InputError(ValueError):
    """Something the user gave is wrong. The message is one sentence: what, where, what to do."""


class Config(pydantic.BaseModel):
    """A frozen record whose unknown fields are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    def replace(self, **changes) -> Self:
        """A validated copy with some fields changed."""
        return type(self)(**{**self.model_dump(), **changes})


class NetworkConfig(Config):
    """What every network has: the dtype it computes in and the dtype its weights are kept in.

    Norms, softmax and the head compute in float32 whatever these say.
    """

    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"


C = TypeVar("C", bound=Config)
S = TypeVar("S", bound=Config)


def load_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file.

    Raises:
      InputError: the file is missing, is not YAML, or holds something other than a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a YAML configuration")
    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold a mapping of names to values")
    return found


def validate(kind: type[C], values: dict, where: str) -> C:
    """`kind(**values)`, with pydantic's findings turned into one sentence about `where`."""
    try:
        return kind(**values)
    except pydantic.ValidationError as error:
        findings = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()
        )
        raise InputError(f"{where}: {findings}") from error


def load_tasks(
    path: str | Path, settings: type[S], task: type[C], needed: tuple[str, ...]
) -> tuple[S | None, dict[str, C]]:
    """The settings and the tasks of a YAML file of UnAvgLip's form.

    Args:
      path: of the file: task name -> fields, and maybe our `settings`, for all of them, beside the tasks.
      settings: what `settings` holds.
      task: what a task holds.
      needed: fields that every task has, for the messages.

    Raises:
      InputError: a field is unknown or missing, or there is no task.
    """
    found = load_yaml(path)
    shared = found.pop("settings", None)
    if shared is not None:
        shared = validate(settings, shared, f"{path}, settings")
    tasks = {}
    for name, fields in found.items():
        if not isinstance(fields, dict):
            raise InputError(
                f"{path}, {name}: a task holds fields such as {needed[0]}, not {fields!r}"
            )
        tasks[str(name)] = validate(task, fields, f"{path}, {name}")
    if not tasks:
        raise InputError(f"{path} holds no task; add one with {' and '.join(needed)}")
    return shared, tasks
