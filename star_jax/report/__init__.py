"""A run as one self-contained HTML page: figures, tables and a browser of its rationales. No JAX here.

run_data.py     a run directory -> plain values; samples.py: statistics of its long files
run_status.py   where the run stands, and warnings
figures/        values -> SVG
marks/          hand marks of kept rationales (written by star_jax.audit)
browser/        problems and samples, compressed, for the scripts in static/
tables/         comparisons of runs, and the paper's results and settings next to the run's
page.py         all of it -> templates/page.html.j2
index.py        the runs in a folder -> templates/index.html.j2
"""

from collections.abc import Sequence
from pathlib import Path

from star_jax.errors import InputError, disk_errors_as_input_errors
from star_jax.json_reader import open_regular
from star_jax.report import index
from star_jax.report.browser import blocks
from star_jax.report.page import accuracy_png, render
from star_jax.report.run_data import RunData, read_run
from star_jax.runs.atomic_files import atomic_write, check_output

_HEAD = b"<!DOCTYPE html>"  # of every page


def write(workdirs: Path | Sequence[Path], target: Path | None = None, reload: int = 0) -> Path:
    """Writes the page of a run, or of several side by side, and returns its path. Runs may be unfinished.

    The page is replaced atomically. Texts that exceed its budget go into a folder next to it, e.g. report_texts.

    Args:
      workdirs: run directories.
      target: the page; default: report.html in the run directory, comparison.html in the first of several.
      reload: seconds after which the open page reloads itself; 0: never.

    Raises InputError if a directory is not a run's, if a file in it is broken, or if the page cannot be written.
    """
    runs = _read_runs(workdirs)
    # A comparison never replaces the report of its first run.
    default = runs[0].directory / ("report.html" if len(runs) == 1 else "comparison.html")
    path = default if target is None else Path(target)
    if target is not None:
        _check_output(path)
    page_blocks, folder = blocks.pack_page_data(runs), path.with_name(f"{path.stem}_texts")
    blocks.write_folder(page_blocks, folder)
    page = render(runs, page_blocks, folder.name, reload)
    atomic_write(path, page, shared=True)  # a run may be writing the same page
    blocks.delete_stale(page_blocks, folder)
    return path


def write_index(folder: Path, target: Path | None = None) -> Path:
    """Writes the index of the runs in a folder, by default to index.html in it, and returns its path.

    Raises InputError if the folder cannot be read or has no run, or if the page cannot be written.
    """
    path = Path(folder) / "index.html" if target is None else Path(target)
    page = index.render(Path(folder), path)
    check_output(path)
    if path.exists():
        with disk_errors_as_input_errors(path), open_regular(path) as file:
            if index.GENERATOR.encode() not in file.read(1000):
                raise InputError(f"{path}: holds something else than an index; delete it or give --output=FILE")
    atomic_write(path, page)
    return path


def _check_output(path: Path) -> None:
    """Raises InputError for an output that no page can be written to, and for one that would replace another file."""
    check_output(path)
    if path.exists():
        with disk_errors_as_input_errors(path), open_regular(path) as file:
            head = file.read(len(_HEAD))
        if head and head != _HEAD:
            raise InputError(f"--output={path}: holds something else than a report; delete it or give another file")


def figure(workdirs: Path | Sequence[Path]) -> bytes:
    """The page's figure of accuracy by category against the iteration, as a PNG; one panel for each run.

    Raises InputError if a directory is not a run's, if a file in it is broken, or before the first evaluation.
    """
    return accuracy_png(_read_runs(workdirs))


def _read_runs(workdirs: Path | Sequence[Path]) -> list[RunData]:
    directories = [Path(workdirs)] if isinstance(workdirs, (str, Path)) else [Path(path) for path in workdirs]
    if not directories:
        raise InputError("report: needs at least one run directory")
    return [read_run(directory) for directory in directories]
