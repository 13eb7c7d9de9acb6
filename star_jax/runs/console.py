"""The table of all iterations so far, on the terminal after each iteration."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

# Short: many terminals are 80 characters wide.
_COLUMNS = ("iteration", "accuracy", "95 % interval", "macro mean", "kept", "by hint", "problems")


def show(
    evaluations: Sequence[Mapping[str, Any]], counts: Sequence[Mapping[str, Any] | None], best: int, report: str
) -> None:
    """Prints a row for each iteration on standard error, with the best one marked, and the report's path.

    Args:
      evaluations: eval_<split>.json of the base and of iterations 1, 2, ...
      counts: filter.json of the same; None for the base, which has none.
      best: the best iteration.
      report: path of the report.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, (result, count) in enumerate(zip(evaluations, counts, strict=True)):
        low, high = result["ci95"]
        cells: tuple[str, ...] = ("–", "–", "–")
        if count is not None:
            cells = (f"{count['kept']:,}", f"{count['kept_rationalized']:,}", f"{count['problems']:,}")
        table.add_row(
            f"{number or 'base'}{' *' if number == best else ''}",
            f"{result['accuracy']:.1%}",
            f"{100 * low:.1f} – {high:.1%}",
            f"{result['mean_of_categories']:.1%}",
            *cells,
            style="bold" if number == best else "",
        )
    console = Console(stderr=True, highlight=False)
    console.print(table)
    console.print(f"* best so far; report: {report}", soft_wrap=True)
