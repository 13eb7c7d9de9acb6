"""What a run says while it works: metrics.jsonl and its sinks, seconds by phase, progress bars."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from star_jax.distributed import processes
from star_jax.runs.atomic_files import append_line
from star_jax.runs.trackers import Sink

LOG = logging.getLogger("star_jax")


class MetricsLog:
    """Appends to metrics.jsonl, and hands the numbers on to the sinks.

    A line is {"time" (unix seconds), "stage", "iteration", "step", and the values}. A stage that is repeated
    after a crash writes its lines again: of equal (stage, iteration, step) the last counts. Of several processes
    the first writes.
    """

    def __init__(self, workdir: Path, sinks: Sequence[Sink] = ()) -> None:
        self._path, self._sinks = workdir / "metrics.jsonl", sinks

    def log(self, stage: str, iteration: int, step: int, values: dict[str, Any]) -> None:
        """Writes one line of numbers. Raises InputError when the file cannot be written."""
        if not processes.is_leader():
            return
        line = {"time": round(time.time(), 3), "stage": stage, "iteration": iteration, "step": step, **values}
        append_line(self._path, json.dumps(line))
        tag = f"{stage}/iteration_{iteration:03d}" if step else stage
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        for sink in self._sinks:
            sink.write(tag, step or iteration, numbers)

    def close(self) -> None:
        """Closes the sinks; a later value opens them again."""
        for sink in self._sinks:
            sink.close()


class Phases:
    """Where the wall time goes. All of it is some phase's: the innermost open one's, or "other" outside of any."""

    def __init__(self) -> None:
        self._open, self._seconds, self._since = ["other"], {"other": 0.0}, time.monotonic()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """The block belongs to the phase `name`; the phase around it goes on behind it."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def take(self) -> dict[str, float]:
        """Phase -> seconds since the last call (or the beginning), in the order of their first appearance."""
        self._charge()
        taken, self._seconds = self._seconds, {}
        return taken

    def _charge(self) -> None:
        now, name = time.monotonic(), self._open[-1]
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now


def progress(total: int, what: str, unit: str) -> tqdm:
    """A progress bar on standard error, in a notebook a widget.

    It is silent where that is not a terminal, and in all processes but the first.
    """
    silent = None if processes.is_leader() else True
    return tqdm(total=total, desc=what, unit=unit, disable=silent, leave=False, dynamic_ncols=True, smoothing=0.1)
