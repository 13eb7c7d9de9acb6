"""Keeps the page fresh while its runs go on."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from star_jax import report
from star_jax.errors import InputError
from star_jax.report.load import read_run
from star_jax.report.state import finished


def watch(workdirs: Sequence[Path], target: Path | None, seconds: int) -> None:
    """Writes the page, and again whenever a file of a run has changed, until every run is finished.

    The open page loads itself anew after `seconds`, but for the last one that is written. A file that cannot be read
    is told of on standard error, once, and tried again with the next change: a run that is stopped may be mended.
    Raises InputError where the first page cannot be written.
    """
    # Not report.html: the run itself writes that one, and its pages do not load themselves anew.
    target = target or workdirs[0] / "live.html"
    before = _state(workdirs)  # before the page: what changes meanwhile may not be in it
    print(report.write(workdirs, target, reload=seconds), flush=True)
    told = ""
    while not _all_finished(workdirs):
        time.sleep(seconds)
        now = _state(workdirs)
        if now == before:
            continue
        before = now
        try:
            report.write(workdirs, target, reload=seconds)
            told = ""
        except InputError as error:
            if str(error) != told:
                told = str(error)
                print(f"star_jax: {told}", file=sys.stderr)
    report.write(workdirs, target)
    print(f"{target}: finished", flush=True)


def _all_finished(workdirs: Sequence[Path]) -> bool:
    try:
        return all(finished(read_run(workdir)) for workdir in workdirs)
    except InputError:
        return False


def _state(workdirs: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """What tells a change: time and size of every file of the runs that the page is made from."""
    found = {}
    for workdir in workdirs:
        for folder in (workdir, *workdir.glob("iter_*")):
            with contextlib.suppress(OSError):  # a file aside that has its name by now, a folder made anew
                for entry in os.scandir(folder):
                    if entry.name.endswith((".json", ".jsonl", ".part", ".txt")) or entry.name == "DONE":
                        about = entry.stat()
                        found[entry.path] = about.st_mtime_ns, about.st_size
    return found
