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
LOG_SECONDS = 60  # between two lines of a stage's progress where there is no terminal


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


class Progress:
    """Progress of a stage: a bar on standard error or in a notebook; without a terminal, a line in the log a minute.

    Only the leader process shows it. Use it as a context manager.
    """

    def __init__(self, total: int, what: str, unit: str) -> None:
        """`total`: of the `unit`s to do; `what`: the stage, as the bar and the lines call it."""
        disable = None if processes.is_leader() else True  # None: tqdm looks for a terminal
        self._bar = tqdm(
            total=total, desc=what, unit=unit, disable=disable, leave=False, dynamic_ncols=True, smoothing=0.1
        )
        self._total, self._what, self._unit, self.done = total, what, unit, 0
        self._logged = (time.monotonic(), 0)  # when the latest line was written, and what was done then

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *args: object) -> None:
        self._bar.close()

    def advance(self, count: int, note: str = "") -> None:
        """`count` more are done; `note` is shown next to their number until the next call."""
        self.done += count
        self._bar.update(count)
        self._bar.set_postfix_str(note)
        now, (before, done_before) = time.monotonic(), self._logged
        if not self._bar.disable or not processes.is_leader() or now - before < LOG_SECONDS:
            return
        self._logged = now, self.done
        minutes = (now - before) / (self.done - done_before) * (self._total - self.done) / 60
        left = f"about {minutes:,.0f} min left" if minutes > 1 else "less than a minute left"
        done = f"{self.done:,} of {self._total:,} {self._unit}s"
        LOG.info("%s: %s", self._what, ", ".join(filter(None, (done, note, left))))
