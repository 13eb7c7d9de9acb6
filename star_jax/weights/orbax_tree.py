"""Trees of arrays on disk, by Orbax: written in chunks, so that any mesh can restore them."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from star_jax.errors import InputError, disk_errors_as_input_errors, is_peer_failure
from star_jax.weights import placement

CHUNK_BYTES = 2**27


def save_tree(directory: Path, tree: Any) -> None:
    """Writes a tree of arrays. Raises InputError.

    In addition to the arrays the host needs memory for about one more copy of the largest of them.
    """
    handler, args = _handler_and_args(tree)
    with disk_errors_as_input_errors(directory, ValueError), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(directory.absolute(), args=args)


def start_save(directory: Path, tree: Any) -> ocp.AsyncCheckpointer:
    """Starts to write a tree of arrays in background threads; the result's `close()` waits for them. Raises InputError.

    Orbax keeps the arrays of `tree` alive until they are written.
    """
    handler, args = _handler_and_args(tree)
    checkpointer = ocp.AsyncCheckpointer(handler)
    with disk_errors_as_input_errors(directory, ValueError):
        checkpointer.save(directory.absolute(), args=args)
    return checkpointer


def load_tree(directory: Path, target: Any) -> Any:
    """The tree that was saved in a directory.

    Args:
      target: a tree of jax.ShapeDtypeStruct with shardings. Arrays are restored in its dtypes onto its shardings.

    Raises InputError if the stored names or shapes differ from the target's, or files are missing or damaged.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(directory.absolute()).item_metadata
            if metadata is None:
                raise ValueError("the Orbax checkpoint is missing or incomplete")
            _check_shapes(directory, metadata.tree, target)
            return checkpointer.restore(directory.absolute(), target)
    except InputError:
        raise
    except Exception as error:  # Orbax and TensorStore raise errors of many types for a damaged file
        if is_peer_failure(error):
            raise
        raise InputError(
            f"{directory}: cannot be restored ({root_cause(error)}); delete {directory.parent} to have it made or "
            "converted again"
        ) from error


def root_cause(error: BaseException) -> str:
    """The first line of the error at the start of a chain of causes, at most 200 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0][:200]


def _handler_and_args(tree: Any) -> tuple[ocp.PyTreeCheckpointHandler, Any]:
    """Orbax's handler and arguments for saving a tree.

    Without compression, which shrinks weights by a tenth and doubles the time. The handler's write limit must exceed
    the largest array.
    """
    largest_bytes = max(leaf.nbytes for leaf in jax.tree.leaves(tree))
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=1 + largest_bytes // 10**9, use_compression=False)
    chunked = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree)
    return handler, ocp.args.PyTreeSave(tree, save_args=chunked)


def _check_shapes(directory: Path, stored: Any, target: Any) -> None:
    """Raises InputError for the first leaf that differs: Orbax would raise many lines, in another thread."""
    stored_shapes, target_shapes = (
        {placement.leaf_name(path): list(leaf.shape) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
        for tree in (stored, target)
    )
    for name in sorted(stored_shapes.keys() | target_shapes.keys()):
        shape, expected = stored_shapes.get(name, "missing"), target_shapes.get(name, "missing")
        if shape != expected:
            raise InputError(
                f"{directory}: cannot be restored: {name} is {shape}, the model's sizes require {expected}"
            )
