"""Checkpoints inside one fine-tuning."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from star_jax.distributed import processes
from star_jax.errors import disk_errors_as_input_errors, is_peer_failure
from star_jax.runs import checksums
from star_jax.weights.checkpoint import LOG, _reason
from star_jax.weights.fingerprint import fingerprint


class TrainStateCheckpointer:
    """Checkpoints inside one fine-tuning: train states, and the totals that go with them.

    The latest two are kept: should one be damaged on disk there is the one before it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Made when it is needed: it makes the directory."""
        return ocp.CheckpointManager(
            self._directory, options=ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        )

    def save(self, state: Any, totals: dict[str, Any]) -> None:
        """Saves a state under its step. Raises RuntimeError if Orbax declines, which it does without a word."""
        about = {"totals": totals, "seal": _content_hash(state, totals)}
        with disk_errors_as_input_errors(self._directory, ValueError):
            saved = self._manager.save(
                int(state.step),
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)),
            )
            self._manager.wait_until_finished()
        if not saved:
            raise RuntimeError(f"Orbax did not save step {int(state.step)} into {self._directory}")

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """(state, totals) of the latest complete and undamaged checkpoint, or None.

        The state is placed as the (possibly abstract) `like` is. Damaged checkpoints are deleted, with a warning each.
        """
        if not processes.broadcast_from_leader(self._directory.is_dir):
            return None
        manager = self._manager  # made by all processes together
        for step in processes.broadcast_from_leader(lambda: sorted(manager.all_steps(), reverse=True)):
            try:
                found, reason = self._restore(step, like), "as another process found"
            except Exception as error:  # as in load_tree
                if is_peer_failure(error):
                    raise
                found, reason = None, _reason(error)
            if np.all(processes.gather(np.array([found is not None]))):
                return found
            LOG.warning("%s: damaged (%s); going on from what is before it", self._directory / str(step), reason)
            manager.delete(step)
        return None

    def _restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        found = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), about=ocp.args.JsonRestore())
        )
        state, totals = type(like)(*found.state), found.about["totals"]
        if _content_hash(state, totals) != found.about["seal"]:
            raise ValueError("its content is not what was saved")
        return state, totals

    def close(self) -> None:
        """Ends the keeping; what is on disk stays. All processes must call this together."""
        if "_manager" in self.__dict__:
            self._manager.close()


def _content_hash(state: Any, totals: dict[str, Any]) -> str:
    return f"{fingerprint(state)} {checksums.of(json.dumps(totals, sort_keys=True).encode())}"
