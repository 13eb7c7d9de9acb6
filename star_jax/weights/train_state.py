"""Checkpoints inside one fine-tuning, so that a killed run continues from its latest one."""

import functools
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from star_jax.distributed import processes
from star_jax.errors import InputError, disk_errors_as_input_errors, is_peer_failure
from star_jax.json_reader import refuse_special_files
from star_jax.runs import checksums
from star_jax.runs.atomic_files import refuse_links
from star_jax.weights import orbax_tree
from star_jax.weights.fingerprint import fingerprint
from star_jax.weights.finite import non_finite_leaf
from star_jax.weights.orbax_tree import root_cause

LOG = logging.getLogger("star_jax")


class TrainStateCheckpointer:
    """Checkpoints of one fine-tuning: the train state, and the running totals (loss sums, counts) that belong to it.

    Keeps the latest two, so that one damaged checkpoint costs only the steps since the one before it. All processes
    must make the same calls together.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Lazy, because it creates the directory."""
        directory = self._directory
        processes.broadcast_from_leader(lambda: refuse_links(directory.parent, directory, below=True))
        processes.broadcast_from_leader(lambda: refuse_special_files(directory, f"delete {directory}"))
        return ocp.CheckpointManager(
            orbax_tree.orbax_path(self._directory),
            options=ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False),
        )

    def save(self, state: Any, totals: dict[str, Any]) -> None:
        """Saves a state under its step number, and reads it again; orbax_tree.check_stored has what that costs.

        Raises RuntimeError if that step, or a later one, is saved already: Orbax only returns False then. Raises
        InputError for errors of the disk, if a value is not finite (nothing is written then), or if other content is
        on disk than in memory.
        """
        if name := non_finite_leaf(state):
            raise InputError(
                f"step {int(state.step)}: {name} holds values that are not finite numbers; such a state is not saved"
            )
        state_fingerprint = fingerprint(state)
        about = {"totals": totals, "content_hash": _content_hash(state_fingerprint, totals)}
        with disk_errors_as_input_errors(self._directory, ValueError):
            saved = self._manager.save(
                int(state.step),
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)),
            )
            self._manager.wait_until_finished()
        if not saved:
            raise RuntimeError(f"Orbax did not save step {int(state.step)} into {self._directory}")
        orbax_tree.check_stored(self._directory / str(int(state.step)) / "state", state, state_fingerprint)

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """(state, totals) of the latest complete and undamaged checkpoint, or None.

        Deletes damaged checkpoints, with a warning for each.

        Args:
          like: a train state, possibly abstract, with the shapes, dtypes and shardings to restore.
        """
        if not processes.broadcast_from_leader(self._directory.is_dir):
            return None
        manager = self._manager  # created by all processes together
        for step in processes.broadcast_from_leader(lambda: sorted(manager.all_steps(), reverse=True)):
            try:
                restored, reason = self._restore(step, like), "found by another process"
            except Exception as error:  # as in orbax_tree.load_tree
                if is_peer_failure(error):
                    raise
                restored, reason = None, root_cause(error)
            if np.all(processes.gather(np.array([restored is not None]))):
                return restored
            LOG.warning(
                "%s: damaged (%s); continuing from the checkpoint before it", self._directory / str(step), reason
            )
            manager.delete(step)
        return None

    def _restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        stored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), about=ocp.args.JsonRestore())
        )
        state, totals = type(like)(*stored.state), stored.about["totals"]
        if _content_hash(fingerprint(state), totals) != stored.about["content_hash"]:
            raise ValueError("its content is not what was saved")
        return state, totals

    def close(self) -> None:
        """Frees Orbax's threads. The checkpoints stay on disk."""
        if "_manager" in self.__dict__:
            self._manager.close()


def latest_step(directory: Path) -> int:
    """The step of the latest complete checkpoint in a TrainStateCheckpointer's directory; 0: none. It may be damaged.

    Orbax writes a checkpoint under another name, and renames its folder to the number of its step.
    """
    return processes.broadcast_from_leader(
        lambda: max((int(path.name) for path in directory.glob("*") if path.name.isdecimal()), default=0)
    )


def _content_hash(state_fingerprint: str, totals: dict[str, Any]) -> str:
    return f"{state_fingerprint} {checksums.of(json.dumps(totals, sort_keys=True).encode())}"
