"""Metrics of a run: metrics.jsonl and the trackers, wall time by phase, progress bars."""

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
from star_jax.runs.trackers import Tracker

LOG = logging.getLogger("star_jax")


class MetricsLog:
    """Appends to metrics.jsonl and passes the numbers on to the trackers. Only the leader process writes.

    A line is a JSON object: "time" (Unix seconds), "stage", "iteration", "step" and the values. A stage that is
    repeated after a crash writes its lines again: of equal (stage, iteration, step) the last one counts.
    """

    def __init__(self, workdir: Path, trackers: Sequence[Tracker] = ()) -> None:
        self.path, self._trackers = workdir / "metrics.jsonl", trackers

    def log(self, stage: str, iteration: int, step: int, values: dict[str, Any]) -> None:
        """Writes one line. Raises InputError if the file cannot be written."""
        if not processes.is_leader():
            return
        line = {"time": round(time.time(), 3), "stage": stage, "iteration": iteration, "step": step, **values}
        append_line(self.path, json.dumps(line))
        tag = f"{stage}/iteration_{iteration:03d}" if step else stage
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.write(tag, step or iteration, numbers)

    def close(self) -> None:
        """Closes the trackers; a later value opens them again."""
        for tracker in self._trackers:
            tracker.close()


class Phases:
    """Wall-clock profiler. Time is charged to the innermost active phase, or to "other" without one."""

    def __init__(self) -> None:
        self._active, self._seconds, self._since = ["other"], {"other": 0.0}, time.monotonic()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Charges the block to the phase `name`, except for phases inside it."""
        self._charge()
        self._active.append(name)
        try:
            yield
        finally:
            self._charge()
            self._active.pop()

    def take(self) -> dict[str, float]:
        """Phase -> seconds since the last call (or the start), in the order of first appearance."""
        self._charge()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _charge(self) -> None:
        now, name = time.monotonic(), self._active[-1]
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now


def progress(total: int, what: str, unit: str) -> tqdm:
    """A progress bar on standard error, or a widget in a notebook; none without a terminal, and in the leader only."""
    disable = None if processes.is_leader() else True  # None: tqdm looks for a terminal
    return tqdm(total=total, desc=what, unit=unit, disable=disable, leave=False, dynamic_ncols=True, smoothing=0.1)
