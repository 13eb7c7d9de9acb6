"""The tables of several runs side by side, and the paper's table."""

from collections.abc import Sequence

from star_jax.evaluation.statistics import Paired
from star_jax.report import formatting
from star_jax.report.figures import series
from star_jax.report.run_data import RunData
from star_jax.report.run_status import run_status
from star_jax.report.tables import comparison
from star_jax.report.tables.headline import headline
from star_jax.report.tables.paper import PaperTable
from star_jax.report.tables.table import COUNT, DURATION, ITERATION, NAME, PERCENT, RATE, TEXT, Column, Kind, Row, Table

_POINTS = Kind(lambda gain: ("–" if gain is None else f"{100 * gain:+.1f} points", ""))
# (as the paper prints it, share without hint, share by rationalization).
_USED = Kind(lambda used: (used[0], ""), lambda used: used, ("", ": without hint", ": by rationalization"))
# (p value, comparisons among which it was chosen).
_P = Kind(
    lambda pair: (formatting.p_value(pair[0]), f"(of {pair[1]} pairs)" if pair[1] > 1 else ""),
    lambda pair: pair,
    ("", ": pairs among which it was chosen"),
)


def runs_table(runs: Sequence[RunData], names: Sequence[str], links: Sequence[str]) -> Table:
    """A row with the headline of each run. `links`: where their names lead to."""
    columns = (
        Column("run", NAME),
        Column("status", TEXT),
        Column("split", NAME),
        Column("base accuracy", PERCENT),
        Column("best iteration", ITERATION),
        Column("its accuracy, 95 % interval", RATE),
        Column("on the split that selects", PERCENT),
        Column("wall-clock time", DURATION),
    )
    rows = [
        Row((name, run_status(run), *_headline_values(run), _seconds(run)), link=link)
        for run, name, link in zip(runs, names, links, strict=True)
    ]
    return Table("The runs", "runs", columns, tuple(rows))


def _headline_values(run: RunData) -> tuple[object, ...]:
    found = headline(run)
    if not found:
        return "–", None, None, None, None
    base = found.base.accuracy if found.base else None
    return found.split, base, found.iteration, found.best, found.selecting.accuracy


def _seconds(run: RunData) -> float | None:
    return sum(series.stage_seconds(run).values()) or None


def paired_table(runs: Sequence[RunData], names: Sequence[str]) -> Table:
    """The best iteration of each other run against the first run's, problem by problem."""
    columns = (
        Column("run", NAME),
        Column("split", NAME),
        *paired_columns(names[0]),
        Column("p value", _P),
    )
    rows = []
    for name, run in zip(names[1:], runs[1:], strict=True):
        compared = comparison.of_best(runs[0], run)
        if compared is None:
            rows.append(Row((name,), message="no problems that both evaluated"))
            continue
        rows.append(Row((name, compared.split, *paired_values(compared.paired), (compared.p, compared.choices))))
    return Table(f"Against {names[0]}, problem by problem", "paired_tests", columns, tuple(rows))


def paired_columns(first: str) -> tuple[Column, ...]:
    """The columns of `paired_values`. `first`: the name of the run that the others are compared with."""
    return (
        Column("problems", COUNT),
        Column("both right", COUNT),
        Column(f"only {first}", COUNT),
        Column("only this run", COUNT),
        Column("difference of accuracy", _POINTS),
    )


def paired_values(paired: Paired) -> tuple[float, ...]:
    """Two runs on the same problems, as a row has them."""
    return paired.problems, paired.both, paired.first, paired.second, paired.gain


def paper_rows(table: PaperTable) -> Table:
    """The paper's rows with the runs' rows after it."""
    columns = (
        Column("row", NAME),
        Column("accuracy, 95 % interval", RATE),
        Column("share of train problems used", _USED),
    )
    rows = [
        Row(
            (f"{row.run}: {row.label}" if row.run else row.label, row.rate, (row.used, *row.used_shares)),
            css="own" if row.run else "",
        )
        for row in table.rows
    ]
    return Table(table.title, "next_to_the_paper", columns, tuple(rows))
