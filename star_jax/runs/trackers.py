"""Trackers: TensorBoard and Weights & Biases get the numbers of metrics.jsonl under the same names."""

import contextlib
import logging
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from star_jax.errors import InputError, disk_errors_as_input_errors
from star_jax.runs.atomic_files import atomic_write, refuse_links

LOG = logging.getLogger("star_jax")


class Tracker(Protocol):
    """Takes scalars. A value after `close` opens it again."""

    def write(self, tag: str, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of one step (or iteration) under the names tag/<key>."""

    def close(self) -> None:
        """Writes what is buffered."""


class TensorBoard:
    """Events files in the run directory, one for each process that continues the run."""

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self._writer: Any = None

    def write(self, tag: str, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=f"{tag}/{name}", simple_value=value) for name, value in values.items()]
        with disk_errors_as_input_errors(self._workdir):
            writer = self._open()
            writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
            writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):  # all values were flushed before the disk became full
                self._writer.close()
            self._writer = None

    def _open(self) -> Any:
        # Not SummaryWriter: its thread writes later, loses values at a kill, and hides errors of the disk.
        from tensorboardX.event_file_writer import EventsWriter

        if self._writer is None:  # the suffix: otherwise two files of one second have one name
            self._writer = EventsWriter(str(self._workdir / "events"), f".{os.getpid()}.{time.time_ns()}")
        return self._writer


class WeightsAndBiases:
    """A run of a Weights & Biases project, the same one for all processes that continue this run directory.

    Its id is stored in the file wandb_id. WANDB_MODE=offline writes into the run directory, for `wandb sync` later.
    """

    def __init__(self, workdir: Path, project: str, config: Mapping[str, Any]) -> None:
        """Opens the project's run. Raises InputError where the package or the login is missing."""
        try:
            import wandb
        except ImportError as error:
            raise InputError(
                f"wandb={project!r} needs the package wandb: pip install wandb, or leave the setting empty"
            ) from error
        self._wandb, self._workdir, self._project, self._config = wandb, workdir, project, config
        self._run: Any = None
        self._tags: set[str] = set()
        self._open()

    def write(self, tag: str, step: int, values: Mapping[str, float]) -> None:
        run = self._open()
        if tag not in self._tags:
            # A separate step metric for each tag: W&B's global step never decreases, and a resumed stage's does.
            run.define_metric(f"{tag}/step", hidden=True)
            run.define_metric(f"{tag}/*", step_metric=f"{tag}/step")
            self._tags.add(tag)
        run.log({f"{tag}/step": step} | {f"{tag}/{name}": value for name, value in values.items()})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run, self._tags = None, set()

    def _open(self) -> Any:
        if self._run is None:
            run_id = self._id()
            refuse_links(self._workdir, self._workdir / "wandb")
            # W&B names a run's files by the second and overwrites existing ones.
            while any(self._workdir.glob(f"wandb/*-{time.strftime('%Y%m%d_%H%M%S')}-{run_id}")):
                time.sleep(0.1)
            try:
                self._run = self._wandb.init(
                    project=self._project,
                    id=run_id,
                    name=self._workdir.resolve().name,
                    config=dict(self._config),
                    dir=str(self._workdir),
                    resume="allow",
                    allow_val_change=True,  # star.iterations may have been raised
                    settings=self._wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True),
                )
            except (self._wandb.Error, OSError) as error:
                reason = " ".join(str(error).split()).rstrip(".")
                raise InputError(
                    f"wandb={self._project!r}: {reason}; or set WANDB_MODE=offline, or leave the setting empty"
                ) from error
            if self._run.url:  # offline there is none
                LOG.info("wandb: %s", self._run.url)
        return self._run

    def _id(self) -> str:
        """The W&B id of this run directory, created by the first process."""
        path = self._workdir / "wandb_id"
        with disk_errors_as_input_errors(path):
            run_id = path.read_text(encoding="ascii", errors="replace").strip() if path.is_file() else ""
        if not re.fullmatch(r"[0-9a-z]{8,32}", run_id):
            run_id = secrets.token_hex(6)
            atomic_write(path, run_id + "\n")
        return run_id
