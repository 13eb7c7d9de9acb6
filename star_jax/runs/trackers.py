"""Where metrics.jsonl's numbers go besides: TensorBoard events and Weights & Biases, under the same names."""

import contextlib
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from star_jax.errors import InputError, disk_errors_as_input_errors
from star_jax.runs.atomic_files import atomic_write

LOG = logging.getLogger("star_jax")


class Sink(Protocol):
    """Takes scalars; a value that comes after `close` opens it again."""

    def write(self, tag: str, step: int, values: Mapping[str, float]) -> None:
        """Takes `values` of one step (or iteration) under the names tag/<key>."""

    def close(self) -> None:
        """Hands over what is buffered."""


class TensorBoard:
    """An events file in the run's directory; every process that goes on with the run begins another."""

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self._writer: Any = None

    def write(self, tag: str, step: int, values: Mapping[str, float]) -> None:
        # Not tensorboard's EventFileWriter: that one imports TensorFlow where it is installed, for ten seconds.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=f"{tag}/{name}", simple_value=value) for name, value in values.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
        with disk_errors_as_input_errors(self._workdir):
            writer = self._open()
            writer.write(event.SerializeToString())
            writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):  # every value was flushed; the disk that is full now was not then
                self._writer.close()
            self._writer = None

    def _open(self) -> Any:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._writer is None:
            name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
            self._writer = RecordWriter(open(self._workdir / name, "wb"))  # noqa: SIM115
            self._writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        return self._writer


class WeightsAndBiases:
    """A run of a Weights & Biases project, the same one for every process that goes on with this directory.

    Its id is kept in the file wandb_id; WANDB_MODE=offline writes below the run's directory, for `wandb sync` later.
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
            # Steps of its own for every curve: W&B's one counter never goes back, as a resumed stage does.
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
            name = self._id()
            # W&B names a run's files by the second, and begins them anew where they are there.
            while any(self._workdir.glob(f"wandb/*-{time.strftime('%Y%m%d_%H%M%S')}-{name}")):
                time.sleep(0.1)
            try:
                self._run = self._wandb.init(
                    project=self._project,
                    id=name,
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
        """The id this directory's run has had from the first; made where there is none."""
        path = self._workdir / "wandb_id"
        with disk_errors_as_input_errors(path):
            known = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        if not re.fullmatch(r"[0-9a-z]{8,32}", known):
            known = secrets.token_hex(6)
            atomic_write(path, known + "\n")
        return known
