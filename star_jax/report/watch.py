"""`python -m star_jax.report --watch`: rewrites the page while its runs are in progress."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from star_jax import report, terminal
from star_jax.errors import InputError
from star_jax.json_reader import is_present
from star_jax.report.run_data import file_stamps, read_run
from star_jax.report.run_status import is_finished


def watch(workdirs: Sequence[Path], target: Path | None, seconds: int) -> None:
    """Writes the page, and rewrites it whenever a file of a run has changed, until every run is finished.

    The open page reloads itself every `seconds`; the last page that is written does not. A broken file is reported once
    on standard error and read again after the next change, since a stopped run may be repaired. A directory whose run
    is being set up is waited for. Raises InputError if the first page cannot be written.
    """
    # Not report.html: the run itself writes that one, without the reload.
    target = target or workdirs[0] / ("live.html" if len(workdirs) == 1 else "live_comparison.html")
    for workdir in workdirs:
        _wait_for_config(workdir)
    stamps = file_stamps(workdirs)  # taken before the page is written, which may miss later changes
    terminal.say(str(report.write(workdirs, target, reload=seconds)))
    last_error = ""
    while not _all_finished(workdirs):
        time.sleep(seconds)
        new_stamps = file_stamps(workdirs)
        if new_stamps == stamps:
            continue
        stamps = new_stamps
        try:
            report.write(workdirs, target, reload=seconds)
            last_error = ""
        except InputError as error:
            if str(error) != last_error:
                last_error = str(error)
                terminal.say(f"star_jax: {terminal.one_line(last_error)}", sys.stderr)
    report.write(workdirs, target)
    terminal.say(f"{target}: finished")


def _wait_for_config(workdir: Path) -> None:
    """Waits while a run that holds the directory's lock has not written config.json yet; a released lock is empty."""
    config, lock = workdir / "config.json", workdir / "LOCK"
    told = False
    while not is_present(config) and is_present(lock) and lock.stat().st_size:
        if not told:
            terminal.say(f"{workdir}: waiting for config.json")
        told = True
        time.sleep(1)


def _all_finished(workdirs: Sequence[Path]) -> bool:
    try:
        return all(is_finished(read_run(workdir)) for workdir in workdirs)
    except InputError:
        return False
