"""The end of an iteration on the terminal: the figures of all iterations so far, and where the report is."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

# Short: eighty characters are all that many terminals have.
_COLUMNS = ("iteration", "accuracy", "95 % interval", "class mean", "kept", "by hint", "problems")


def show(
    evaluations: Sequence[Mapping[str, Any]], counts: Sequence[Mapping[str, Any] | None], best: int, report: str
) -> None:
    """Prints a row an iteration on standard error, the best accuracy's marked, and the report's path.

    Args:
      evaluations: eval_<split>.json of the base and of iterations 1, 2, ...
      counts: filter.json of the same; None where nothing was drawn.
      best: the best iteration.
      report: path of the report.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, (result, drawn) in enumerate(zip(evaluations, counts, strict=True)):
        low, high = result["ci95"]
        kept: tuple[str, ...] = ("–", "–", "–")
        if drawn is not None:
            kept = (f"{drawn['kept']:,}", f"{drawn['kept_rationalized']:,}", f"{drawn['problems']:,}")
        table.add_row(
            f"{number or 'base'}{' *' if number == best else ''}",
            f"{result['accuracy']:.1%}",
            f"{100 * low:.1f} – {high:.1%}",
            f"{result['mean_of_categories']:.1%}",
            *kept,
            style="bold" if number == best else "",
        )
    console = Console(stderr=True, highlight=False)
    console.print(table)
    console.print(f"* the best so far; the report: {report}", soft_wrap=True)
