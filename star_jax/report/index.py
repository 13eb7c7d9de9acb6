"""An index of the runs in a folder: `python -m star_jax.report --index=DIR`. A broken run costs only its row."""

import datetime
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from star_jax.errors import InputError
from star_jax.json_reader import is_present
from star_jax.records import natural_order
from star_jax.report.page import environment, script_values, static_file
from star_jax.report.run_data import RunData, file_stamps, read_run, setting
from star_jax.report.run_status import run_status
from star_jax.report.tables.headline import headline
from star_jax.report.tables.table import COUNT, ITERATION, NAME, PERCENT, RATE, TEXT, Column, Row, Table
from star_jax.runs.layout import iteration_number
from star_jax.terminal import one_line

DEPTH = 3  # levels of folders below the index's in which runs are looked for
GENERATOR = "star_jax.report index"  # in the head of every index, which replaces no other file
COLUMNS = (
    Column("run", NAME),
    Column("accuracy, 95 % interval", RATE),
    Column("status", TEXT),
    Column("split", NAME),
    Column("problems", COUNT),
    Column("iteration", ITERATION),
    Column("base accuracy", PERCENT),
    Column("task", NAME),
    Column("model", NAME),
    Column("last change, UTC", NAME),
)


def render(folder: Path, page: Path) -> str:
    """The index of a folder, to be written to `page`: links are relative to it.

    Raises InputError if the folder cannot be read, or if it has no run.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such directory; --index takes a folder of runs")
    try:
        os.listdir(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    runs = sorted(_run_directories(folder, DEPTH), key=lambda path: natural_order(str(path)))
    if not runs:
        raise InputError(f"{folder}: has no run directory, nor have the folders in it, {DEPTH} levels deep")
    table = Table("Runs", "index", COLUMNS, tuple(_row(run, folder, page) for run in runs))
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            generator=GENERATOR,
            name=folder.resolve().name or "folder",
            of_runs=table,
            broken=sum(row.css == "broken" for row in table.rows),
            written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            style=Markup(static_file("page.css")),
            **script_values(("tables.js",)),
        )
    )


_PARTS = ("provenance.json", "metrics.jsonl", "base", "problems_train.jsonl")  # of a run that lost its config.json


def _run_directories(folder: Path, depth: int) -> Iterator[Path]:
    """The run directories in a folder, without links. Runs have no runs in them."""
    try:
        folders = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:  # no folder of this user's
        return
    has_config = is_present(folder / "config.json") and is_present(folder / "checksums.json")  # else another model's
    has_parts = any(is_present(folder / name) for name in _PARTS)  # else the --output of an evaluation
    if has_config or (has_parts and any(iteration_number(path) is not None for path in folders)):
        yield folder
    elif depth:
        for path in folders:
            yield from _run_directories(path, depth - 1)


def _row(directory: Path, folder: Path, page: Path) -> Row:
    """The row of a run; of a broken one its name and error."""
    name = str(directory.relative_to(folder)) if directory != folder else directory.resolve().name
    stamps = file_stamps([directory]).values()
    changed = max((nanoseconds for nanoseconds, _ in stamps), default=0) / 1e9
    date = datetime.datetime.fromtimestamp(changed, datetime.UTC).strftime("%Y-%m-%d %H:%M") if changed else "–"
    link = ""
    if is_present(directory / "report.html"):
        link = quote(os.fsencode(os.path.relpath(directory / "report.html", page.parent)))
    try:
        values = _values(read_run(directory))
    except InputError as error:
        message = one_line(str(error)).replace(f"{directory}{os.sep}", "")
        return Row((name,), "broken", link, message)
    return Row((name, *values, date), link=link)


def _values(run: RunData) -> tuple[object, ...]:
    """Accuracy to model. Raises InputError for a broken file."""
    found = headline(run)
    values: tuple[object, ...] = ("–", None, None, None)
    if found:
        values = found.split, found.best.n, found.iteration, found.base.accuracy if found.base else None
    return (
        found.best if found else None,
        run_status(run),
        *values,
        str(setting(run.config, "task.name") or "–"),
        _model(run),
    )


def _model(run: RunData) -> str:
    architecture, layers, width = (
        setting(run.config, f"model.{key}") for key in ("architecture", "n_layers", "d_model")
    )
    parts = [architecture, layers and f"{layers} layer{'s' * (layers != 1)}", width and f"width {width}"]
    return ", ".join(str(part) for part in parts if part) or "–"
