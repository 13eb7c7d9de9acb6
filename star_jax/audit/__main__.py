"""Writes a sample of a run's kept rationales for a person to mark.

    python -m star_jax.audit --workdir=DIR [--n=50] [--iteration=N|last|all] [--output=FILE]

The file is audit.txt in the run directory. Its rationales are sampled in equal parts by source (sampled, rationalized)
and category. Mark them in any editor: then python -m star_jax.report and this command show how much of the reasoning
is sound. The same command with a larger --n adds items at the end of the file and changes none of the others.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from star_jax import terminal
from star_jax.audit.mark_sample import MarkSample, cell_order, extend
from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.report.marks import audit_file, estimates
from star_jax.report.marks.audit_file import MARKS
from star_jax.report.marks.estimates import MarkRow
from star_jax.report.run_data import RunData, read_run
from star_jax.runs.atomic_files import check_output


def main() -> None:
    """The command line at the head of this file."""
    parser = Parser("audit", __doc__)
    parser.add_path("--workdir", required=True, help="a run directory")
    parser.add_number("--n", 1, 10**8, default=50, metavar="N", help="number of items in the file (default: 50)")
    parser.add_argument(
        "--iteration",
        metavar="N|last|all",
        help="iterations to sample from (default: those of the file's items; the last one for a new file)",
    )
    parser.add_path(
        "--output",
        metavar="FILE",
        help=f"the file (default: {audit_file.NAME} in the run directory, where the report looks for it)",
    )
    arguments = parser.parse_args()
    if arguments.output:
        check_output(arguments.output)
    path = arguments.output or arguments.workdir / audit_file.NAME
    run = read_run(arguments.workdir)
    _print_summary(run, path, extend(run, path, arguments.n, arguments.iteration), arguments.n)


def _print_summary(run: RunData, path: Path, sample: MarkSample, n: int) -> None:
    """Prints the file's content, the rates of its marks, and what to do next."""
    console = terminal.console()
    marked = [(item, cell) for item, cell in sample.items if item.mark]
    total = len(sample.items)
    console.print(
        f"{terminal.one_line(str(path))}: {total} items, {sample.new} of them new; {len(marked)} marked", soft_wrap=True
    )
    if sample.requested > n:
        console.print(f"The file has {sample.requested} items, more than --n={n}: all of them stay.")
    if sample.requested < n:
        console.print(f"Only {sample.requested} rationales were kept, fewer than --n={n}.")
    for fault in (item.fault for item, _ in sample.items if item.fault):
        console.print(f"{terminal.one_line(fault)}. Until then this mark is not counted.", soft_wrap=True)
    console.print(_cell_table(sample))
    if marked:
        rates = estimates.mark_rates(marked, sample.sizes)
        console.print("Marks in percent, with 95 % intervals; weighted: for all that was kept.")
        console.print(_rate_table("as marked", rates.counted))
        console.print(_rate_table("weighted", rates.weighted))
    if len(marked) < total:
        words = ", ".join(f"{mark} ({mark[0]})" for mark in MARKS)
        console.print(f'Write one of these, or its letter, after each "mark:" in the file: {words}.', soft_wrap=True)
    if path.resolve() == (run.directory / audit_file.NAME).resolve():
        workdir = terminal.one_line(shlex.quote(str(run.directory)))
        console.print(f"Then: python -m star_jax.report --workdir={workdir}", soft_wrap=True)
    else:
        console.print(f"The report reads {audit_file.NAME} of the run directory, not this file.")


def _cell_table(sample: MarkSample) -> Table:
    """Rationales kept, items and marks; one row for each cell."""
    table = _table("iteration", "source", "category", "kept", "items", "marked")
    for cell in sorted(sample.sizes, key=lambda c: (c.iteration, *cell_order(c))):
        items = [item for item, item_cell in sample.items if item_cell == cell]
        counts = (sample.sizes[cell], len(items), sum(bool(item.mark) for item in items))
        category = terminal.one_line(cell.category) or "–"
        table.add_row(str(cell.iteration), cell.source, category, *(f"{count:,}" for count in counts))
    return table


def _rate_table(title: str, rows: Sequence[MarkRow]) -> Table:
    """Shares of the marks, at most 80 characters wide; one row for each source."""
    table = _table(title, "n", *(mark.replace(" ", "\n") for mark in MARKS))
    for row in rows:
        shares = []
        for share in row.shares.values():
            ends = () if share.low is None or share.high is None else (share.low, share.high)
            interval = "–".join(f"{100 * end:.0f}" for end in ends)
            shares.append(f"{100 * share.share:.0f}{interval and f' ({interval})'}")
        table.add_row(row.label, f"{row.n:,}", *shares)
    return table


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


if __name__ == "__main__":
    exit_on_bad_input(main)
