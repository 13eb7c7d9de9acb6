"""Trees of arrays on disk, by Orbax: written in chunks, so that any mesh can restore them, and read again afterwards.

Orbax reports some incomplete saves in its log only. So no save counts before `check_stored` has read it.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils.epath.gpath import PosixGPath

from star_jax.distributed import processes
from star_jax.errors import InputError, disk_errors_as_input_errors, first_line, is_peer_failure
from star_jax.json_reader import refuse_special_files
from star_jax.weights import fingerprint, placement
from star_jax.weights.finite import non_finite_leaf

CHUNK_BYTES = 2**27


def save_tree(directory: Path, tree: Any) -> str:
    """Writes a tree of arrays, reads it again, and returns its fingerprint.

    In addition to the arrays the host needs memory for about one more copy of the largest of them. Raises InputError
    if a value is not finite (nothing is written then), for errors of the disk, and if other content is on disk than in
    memory; see `check_stored` for what that costs. All processes must call this together.
    """
    save = Save(directory, tree, background=False)
    save.finish()
    return save.fingerprint


class Save:
    """A save of a tree of arrays, by default in background threads; `finish` waits for them and reads what they wrote.

    In the background it takes a copy of the arrays in host memory, so the caller may free or donate them.

    Attributes:
      fingerprint: of the tree.
    """

    def __init__(self, directory: Path, tree: Any, background: bool = True) -> None:
        if name := non_finite_leaf(tree):
            raise InputError(
                f"{directory}: {name} holds values that are not finite numbers; such weights are not saved"
            )
        self.fingerprint = fingerprint.fingerprint(tree)
        self._directory = directory
        self._like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        # Orbax keeps its arrays alive until they are written; with a host copy that is no memory of the devices.
        handler, args = _handler_and_args(placement.to_host(tree) if background else tree)
        self._checkpointer = (ocp.AsyncCheckpointer if background else ocp.Checkpointer)(handler)
        with disk_errors_as_input_errors(directory, ValueError):
            self._checkpointer.save(orbax_path(directory), args=args)

    def finish(self) -> None:
        """Waits for the writes and raises InputError unless the tree is on disk as it was in memory."""
        self.wait()
        check_stored(self._directory, self._like, self.fingerprint)

    def wait(self) -> None:
        """Waits for the writes and frees Orbax's threads."""
        with disk_errors_as_input_errors(self._directory, ValueError):
            self._checkpointer.close()


def load_tree(directory: Path, target: Any) -> Any:
    """The tree that was saved in a directory.

    Args:
      target: a tree of jax.ShapeDtypeStruct with shardings. Arrays are restored in its dtypes onto its shardings.

    Raises InputError if the stored names or shapes differ from the target's, or files are missing or damaged.
    """
    refuse_special_files(directory, remedy(directory.parent))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(orbax_path(directory)).item_metadata
            if metadata is None:
                raise ValueError("the Orbax checkpoint is missing or incomplete")
            _check_shapes(directory, metadata.tree, target)
            return checkpointer.restore(orbax_path(directory), target)
    except InputError:
        raise
    except Exception as error:  # Orbax and TensorStore raise errors of many types for a damaged file
        if is_peer_failure(error):
            raise
        raise InputError(
            f"{directory}: cannot be restored ({root_cause(error)}); {remedy(directory.parent)}"
        ) from error


def check_stored(directory: Path, like: Any, expected_fingerprint: str) -> None:
    """Raises InputError unless a directory holds exactly the leaves of `like`, with this fingerprint.

    Reads the stored chunks with TensorStore, without Orbax's metadata and without a device. The leader alone reads,
    one piece of a leaf at a time: for the 135 million float32 weights of SmolLM2, 0.54 GB from the page cache, this
    takes 1.9 seconds of one CPU core.

    Args:
      like: a tree with the shapes and dtypes of what was saved.
    """

    def problem() -> str:
        try:
            return _difference(directory, like, expected_fingerprint)
        except Exception as error:  # TensorStore raises errors of many types
            return root_cause(error)

    if reason := processes.broadcast_from_leader(problem):
        raise InputError(
            f"{directory}: what is on disk is not what was saved ({reason}); check the disk and its free space, "
            "and rerun"
        )


def orbax_path(directory: Path) -> PosixGPath:
    """The absolute path in the form that Orbax takes."""
    return _LiteralPath(directory.absolute())


class _LiteralPath(PosixGPath):
    """A path whose own name is not a pattern.

    epath's `glob` joins path and pattern. Orbax finds the files to merge with it: in a directory called "run[1]" it
    finds none, and leaves the checkpoint incomplete without an error.
    """

    def glob(self, pattern: str) -> Iterator["_LiteralPath"]:
        for path in glob.glob(os.path.join(glob.escape(str(self)), pattern)):
            yield type(self)(path)


def remedy(directory: Path) -> str:
    """What to do where the weights of a model directory are damaged.

    A finished iteration is not looked into again, so its marker has to go with its weights.
    """
    done = directory.parent / "DONE"
    if done.exists():
        return f"delete {directory} and {done}, and rerun the run's command to have it trained again"
    return f"delete {directory} to have it made or converted again"


def root_cause(error: BaseException) -> str:
    """The first line of the error at the start of a chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _handler_and_args(tree: Any) -> tuple[ocp.PyTreeCheckpointHandler, Any]:
    """Orbax's handler and arguments for saving a tree.

    Without compression, which shrinks weights by a tenth and doubles the time. The handler's write limit must exceed
    the largest array.
    """
    largest_bytes = max(leaf.nbytes for leaf in jax.tree.leaves(tree))
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=1 + largest_bytes // 10**9, use_compression=False)
    chunked = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree)
    return handler, ocp.args.PyTreeSave(tree, save_args=chunked)


def _difference(directory: Path, like: Any, expected_fingerprint: str) -> str:
    """How the stored leaves differ from those of `like`; "" if they do not."""
    base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{directory.absolute()}/"}}
    keys = tensorstore.KvStore.open(base).result().list().result()
    stored = {key.decode().removesuffix("/.zarray") for key in keys if key.endswith(b"/.zarray")}
    leaves = {
        placement.leaf_name(path, "."): (path, leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]
    }
    if differing := sorted(stored ^ leaves.keys()):
        return f"{differing[0]} is {'surplus' if differing[0] in stored else 'missing'}"
    arrays = {}
    for name, (_, leaf) in leaves.items():
        spec = {"driver": "zarr", "kvstore": {**base, "path": f"{name}/"}}
        arrays[name] = array = tensorstore.open(spec, read=True, open=True).result()
        if (array.shape, array.dtype.numpy_dtype) != (leaf.shape, leaf.dtype):
            return f"{name} is {array.shape} {array.dtype.numpy_dtype}, not {leaf.shape} {leaf.dtype}"
    found = fingerprint.of_host_arrays(
        (jax.tree_util.keystr(path), leaf.shape, leaf.dtype, _pieces(arrays[name]))
        for name, (path, leaf) in leaves.items()
    )
    return "" if found == expected_fingerprint else f"its fingerprint is {found}, not {expected_fingerprint}"


def _pieces(array: Any) -> Iterator[np.ndarray]:
    """The stored array, split along its first axis where its chunks are: none is read twice."""
    if not array.shape:
        yield array.read().result()
        return
    rows = array.chunk_layout.read_chunk.shape[0]
    for start in range(0, array.shape[0], rows):
        yield array[start : start + rows].read().result()


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
