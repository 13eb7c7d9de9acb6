"""The run as one self-contained HTML page: figures, tables, and the rationales to page through. No JAX here.

load.py       a run's files -> plain values
series.py     what each figure plots
figures.py    series -> SVG
texts.py      texts made safe to show, and the examples picked
blocks.py     the draws and their problems, compressed, in the page and beside it
audit_file.py the text file in which a person marks kept rationales
audited.py    what the marks and the machine's checks come to
page.py       all of it -> page.html.j2 with browser.html.j2, page.css with browser.css, and the scripts:
blocks.js     unpacks what blocks.py packed
choose.js     filters, search, and what a link says of them
cells.js      the parts of a row
browser.js    the rows, one problem's history
keys.js       the keyboard
"""

from collections.abc import Sequence
from pathlib import Path

from star_jax.errors import InputError
from star_jax.report import blocks
from star_jax.report.load import Run, read_run
from star_jax.report.page import picture, render
from star_jax.runs.atomic_files import atomic_write


def write(workdirs: Path | Sequence[Path], target: Path | None = None, reload: int = 0) -> Path:
    """Writes the page of a run, or of several side by side, and returns its path.

    `target` defaults to report.html in the (first) run's directory; it is written aside and renamed, so a
    reader never sees half a page. Texts that are too many for one file go into a folder beside it, report_texts. A
    run may be unfinished. `reload`: the page loads itself anew after so many seconds; 0: never. Raises InputError when
    a directory is not a run's, when a file in it is broken, or when the page cannot be written.
    """
    runs = _read(workdirs)
    path = runs[0].directory / "report.html" if target is None else Path(target)
    if path.is_dir():
        raise InputError(f"report: {path} is a directory; the page needs the name of a file")
    shelf, folder = blocks.pack_page_data(runs), path.with_name(f"{path.stem}_texts")
    blocks.store(shelf, folder)
    page = render(runs, shelf, folder.name, reload)
    atomic_write(path, page, shared=True)  # a run may be writing it just now
    blocks.clear(shelf, folder)
    return path


def figure(workdirs: Path | Sequence[Path]) -> bytes:
    """Accuracy by class against the iteration as a PNG: the page's Figure 1, a panel a run.

    Raises InputError when a directory is not a run's, when a file in it is broken, or before the first evaluation.
    """
    return picture(_read(workdirs))


def _read(workdirs: Path | Sequence[Path]) -> list[Run]:
    directories = [Path(workdirs)] if isinstance(workdirs, (str, Path)) else [Path(path) for path in workdirs]
    if not directories:
        raise InputError("report: needs the directory of at least one run")
    return [read_run(directory) for directory in directories]
