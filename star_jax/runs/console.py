"""The table of all iterations so far, on the terminal after each iteration."""

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table

from star_jax import terminal


class Row(NamedTuple):
    """The figures of the base or of an iteration. None: there is none, as of what the base kept."""

    accuracy: float | None
    low: float | None  # of its 95 % interval
    high: float | None
    mean_of_categories: float | None
    kept: float | None = None
    by_hint: float | None = None
    problems: float | None = None


# Short: many terminals are 80 characters wide.
_COLUMNS = ("iteration", "accuracy", "95 % interval", "macro mean", "kept", "by hint", "problems")


def show(rows: Sequence[Row], best: int | None, report: str) -> None:
    """Prints a row for each iteration on standard error, with the best one marked, and the report's path.

    Args:
      rows: the base, then iterations 1, 2, ...
      best: the best iteration.
      report: path of the report.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        interval = None if row.low is None or row.high is None else f"{100 * row.low:.1f} – {row.high:.1%}"
        table.add_row(
            f"{number or 'base'}{' *' if number == best else ''}",
            _percent(row.accuracy),
            interval or "–",
            _percent(row.mean_of_categories),
            *("–" if count is None else f"{count:,.0f}" for count in (row.kept, row.by_hint, row.problems)),
            style="bold" if number == best else "",
        )
    console = terminal.console(stderr=True)
    console.print(table)
    console.print(f"* best so far; report: {terminal.one_line(report)}", soft_wrap=True)


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:.1%}"
