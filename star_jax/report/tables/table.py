"""A table of the page as plain values: the page shows them rounded, its CSV file has them in full."""

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from star_jax.evaluation.results import Rate
from star_jax.report import formatting
from star_jax.terminal import one_line, visible

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
# A spreadsheet takes a cell that begins with one of these for a formula; some accept the full-width forms.
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the cells of a column are.

    Attributes:
      shown: value -> (text, smaller note), as the page shows it.
      exported: value -> its columns in the CSV file.
      endings: of the headings of those columns.
      css: class of the column's cells.
    """

    shown: Callable[[Any], tuple[str, str]]
    exported: Callable[[Any], Sequence[Any]] = lambda value: (value,)
    endings: tuple[str, ...] = ("",)
    css: str = ""


def _shown_rate(rate: Rate | None) -> tuple[str, str]:
    if rate is None:
        return "–", ""
    known = rate.low is not None and rate.high is not None
    note = f"{formatting.percent(rate.low)} to {formatting.percent(rate.high)}" if known else ""
    return formatting.percent(rate.accuracy), note


def _shown_part(part: tuple[float, float]) -> tuple[str, str]:
    n, total = part
    return formatting.count(n), formatting.percent(n / total) if total else ""


def _exported_rate(rate: Rate | None) -> tuple[float | None, ...]:
    return (rate.accuracy, rate.low, rate.high) if rate else (None, None, None)


_INTERVAL = ("", ": 95 % from", ": 95 % to")

TEXT = Kind(lambda text: (text, ""), css="text")  # a sentence, which wraps
NAME = Kind(lambda text: (text, ""), css="name")
COUNT = Kind(lambda number: (formatting.count(number), ""))
PERCENT = Kind(lambda share: (formatting.percent(share), ""))  # a share in 0..1
DURATION = Kind(lambda seconds: (formatting.duration(seconds), ""), endings=(" in seconds",))
# The number of an iteration, 0 for the base; with a second value: whether it is the best.
ITERATION = Kind(lambda number: ("–" if number is None else str(number or "base"), ""))
RANKED_ITERATION = Kind(
    lambda pair: (f"{pair[0] or 'base'}{', best' if pair[1] else ''}", ""),
    lambda pair: (pair[0], int(pair[1])),
    ("", ": is best"),
)
RATE = Kind(_shown_rate, _exported_rate, _INTERVAL)
# A Rate, with the number of problems in its note.
RATE_OF = Kind(
    lambda rate: (_shown_rate(rate)[0], f"{_shown_rate(rate)[1]} of {formatting.count(rate.n)}") if rate else ("–", ""),
    lambda rate: (*_exported_rate(rate), rate.n if rate else None),
    (*_INTERVAL, ": problems"),
)
# (part, whole), both counts.
PART = Kind(_shown_part, lambda part: (part[0],))


@dataclasses.dataclass(frozen=True)
class Column:
    """A column; its heading is shown and exported."""

    heading: str
    kind: Kind = COUNT


@dataclasses.dataclass(frozen=True)
class Row:
    """A row: one value for each column; with a `message` in place of all but the first."""

    values: tuple[Any, ...]
    css: str = ""  # class of the row
    link: str = ""  # address of where the first cell leads to
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page. `name`: of its file, without its run and suffix."""

    title: str
    name: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    empty: str = "nothing yet"  # shown if there is no row

    def cells(self, row: Row) -> list[tuple[Column, str, str]]:
        """(column, text, smaller note) of each cell as the page shows it."""
        return [(column, *column.kind.shown(value)) for column, value in self._pairs(row)]

    def _pairs(self, row: Row) -> list[tuple[Column, Any]]:
        columns = self.columns[:1] if row.message else self.columns
        return list(zip(columns, row.values, strict=True))

    def text(self) -> str:
        """The table in aligned columns for a terminal, each as wide as it must be."""
        lines = [[column.heading for column in self.columns]]
        for row in self.rows:
            cells = [one_line(f"{text} ({note})" if note else text) for _, text, note in self.cells(row)]
            lines.append([*cells, one_line(row.message)] if row.message else cells)
        complete = [line for line in lines if len(line) == len(self.columns)]  # the others end in a message
        widths = [max(len(line[i]) for line in complete) for i in range(len(self.columns))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines
        )

    def csv(self) -> str:
        """The table as CSV (RFC 4180): shares in 0..1, times in seconds, an empty cell for what is not on record."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\r\n")
        writer.writerow(_cell(c.heading + ending) for c in self.columns for ending in c.kind.endings)
        for row in self.rows:
            cells = [_cell(value) for column, cell in self._pairs(row) for value in column.kind.exported(cell)]
            if row.message:
                width = sum(len(column.kind.endings) for column in self.columns)
                cells += [_cell(row.message)] + [""] * (width - len(cells) - 1)
            writer.writerow(cells)
        return buffer.getvalue()

    def csv_address(self) -> str:
        """The CSV file as a data: URL, so that a page on disk needs neither a network nor a script to save it."""
        return f"data:text/csv;charset=utf-8,{quote(self.csv(), safe='/:,;()!*')}"


def file_name(*parts: str) -> str:
    """The parts as one name of a file, without its suffix; characters that no system refuses."""
    return re.sub(r"[^\w.-]+", "_", "-".join(part for part in parts if part), flags=re.ASCII).strip("._-")[:100]


def _cell(value: Any) -> Any:
    """A value as it may stand in a CSV file. A text that a spreadsheet would take for a formula gets an apostrophe."""
    if value is None or (isinstance(value, float) and not abs(value) < float("inf")):
        return ""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
