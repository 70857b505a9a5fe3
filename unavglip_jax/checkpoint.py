"""Checkpoints of a run: saved beside the training, kept N, never half written, never silently skipped.

A checkpoint holds groups of arrays (an orbax item each, so that a user of the averaged weights reads only
those) and the run's configuration. Frozen weights are not in it; the configuration names their digests.
"""

from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from unavglip_jax.config import InputError

Groups = Mapping[str, Any]  # name -> tree of arrays

# A copy of an array on each device is written by all of them, a slice by each; for small ones, of which there
# are thousands, the cutting takes longer than the writing.
WHOLE = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)
ARRAYS = ocp.type_handlers.create_type_handler_registry((jax.Array, WHOLE))


@contextmanager
def manager(folder: str | Path, keep: int | None, groups: Iterable[str]):
    """A checkpoint manager; leaving the block waits for a save under way.

    Args:
      folder: of the checkpoints.
      keep: how many, the newest; None for all.
      groups: their names.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    # Orbax must know what each item is before it says what is in one.
    handlers = {name: ocp.PyTreeCheckpointHandler(type_handler_registry=ARRAYS) for name in groups}
    handlers["config"] = ocp.JsonCheckpointHandler()
    folder = Path(folder).absolute()
    with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as opened:
        yield opened


def save(manager: ocp.CheckpointManager, step: int, groups: Groups, config: dict) -> None:
    """Starts saving; the arrays are copied before it returns, so they may be donated afterwards."""
    if step in manager.all_steps():
        return
    items = {name: ocp.args.PyTreeSave(tree) for name, tree in storable(groups).items()}
    arguments = ocp.args.Composite(**items, config=ocp.args.JsonSave(config))
    manager.save(step, args=arguments, force=True)


def restore(manager: ocp.CheckpointManager, step: int, groups: Groups) -> Groups:
    """The groups of a checkpoint, with the shardings and dtypes of those given (arrays or their shapes).

    Raises:
      InputError: the checkpoint is damaged, or holds other arrays than those asked for.
    """
    where = f"{manager.directory}/{step}"
    target = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
    wanted = jax.tree.map(target, storable(groups))
    try:
        stored = manager.item_metadata(step)
        for name, tree in wanted.items():
            compare(name, stored[name], tree, where)
        items = {
            name: ocp.args.PyTreeRestore(tree, ocp.checkpoint_utils.construct_restore_args(tree))
            for name, tree in wanted.items()
        }
        found = manager.restore(step, args=ocp.args.Composite(**items))
    except InputError:
        raise
    # Orbax and tensorstore raise whatever they meet in a damaged file.
    except Exception as error:
        raise damaged(manager, step, error) from error
    single = lambda name: isinstance(groups[name], jax.Array)
    return {
        name: (found[name]["value"] if single(name) else found[name]) if name in wanted else tree
        for name, tree in groups.items()
    }


def storable(groups: Groups) -> Groups:
    """The groups as orbax takes them: none that is empty, none that is a single array."""
    return {
        name: {"value": tree} if isinstance(tree, jax.Array) else tree
        for name, tree in groups.items()
        if jax.tree.leaves(tree)
    }


def read_config(manager: ocp.CheckpointManager, step: int) -> dict:
    """The configuration of the run that wrote a checkpoint."""
    try:
        return manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))[
            "config"
        ]
    except Exception as error:
        raise damaged(manager, step, error) from error


def damaged(manager: ocp.CheckpointManager, step: int, error: Exception) -> InputError:
    """The error for a checkpoint that cannot be read; names the one before it."""
    earlier = [s for s in manager.all_steps() if s < step]
    advice = (
        f"to go on from step {max(earlier)} remove the folder"
        if earlier
        else "there is none before it; remove the folder to start anew"
    )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return InputError(f"{manager.directory}/{step} is damaged ({reason}); {advice}")


def compare(group: str, stored, wanted, where: str) -> None:
    """Refuses to restore arrays of other names or shapes; orbax would say so in thousands of lines."""
    as_shapes = lambda tree: {
        jax.tree_util.keystr(path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    has, needs = as_shapes(stored), as_shapes(wanted)
    # A tuple of an optimizer's state comes back as a list or a dict, so only the sizes can be told apart.
    if isinstance(wanted, dict) and all(hasattr(leaf, "shape") for leaf in wanted.values()):
        wrong = sorted(has.keys() ^ needs.keys()) or sorted(k for k in needs if has[k] != needs[k])
    else:
        wrong = [] if sorted(has.values()) == sorted(needs.values()) else ["other sizes"]
    if wrong:
        raise InputError(
            f"{where} does not fit this configuration: {group}: {', '.join(wrong[:3])}; "
            "go on with the run's own configuration, or choose another output"
        )
