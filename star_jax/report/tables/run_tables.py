"""The tables of one run: evaluations, counts of its stages, settings, and the audit."""

from collections.abc import Mapping, Sequence
from typing import Any

from star_jax.records import LABELS, RIGHT_WRONG_STEPS, Source, Verdict
from star_jax.report.figures import series
from star_jax.report.formatting import count, percent
from star_jax.report.marks.estimates import Audit, MarkRow, Share
from star_jax.report.run_data import Iteration, RunData, setting
from star_jax.report.samples import Health, sample_stats
from star_jax.report.tables import paper
from star_jax.report.tables.headline import Headline
from star_jax.report.tables.table import (
    COUNT,
    DURATION,
    ITERATION,
    NAME,
    PART,
    PERCENT,
    RANKED_ITERATION,
    RATE,
    RATE_OF,
    TEXT,
    Column,
    Kind,
    Row,
    Table,
)

WRONG_STEPS = "right answer, wrong steps"
# Key in filter.json and eval_<split>.json -> heading.
VERDICT_COLUMNS: dict[str, str] = {**{verdict: LABELS[verdict] for verdict in Verdict}, RIGHT_WRONG_STEPS: WRONG_STEPS}
FILTER_COLUMNS: dict[str, str] = {
    "problems": "problems",
    "samples": "samples",
    **VERDICT_COLUMNS,
    "distinct": "distinct texts",
    "mean_tokens": "tokens per sample",
    "rationalization_tried": "rationalization tried",
    "rationalization_right": "rationalization right",
    "kept": "kept",
    "kept_sampled": f"kept, {LABELS[Source.SAMPLED]}",
    "kept_rationalized": f"kept, {LABELS[Source.RATIONALIZED]}",
    "kept_reference": f"kept, {LABELS[Source.REFERENCE]}",
    "kept_from_earlier": "kept from earlier iterations",
    "hints_kept": "hints kept",
    "anchoring": "anchoring, nats",
}
FINE_TUNE_COLUMNS = {
    "examples": "examples",
    "rows": "packed rows",
    "steps": "steps",
    "tokens": "tokens",
    "loss_tokens": "tokens with loss",
    "loss_first": "loss at first step",
    "loss_last": "loss at last step",
    "learning_rate": "learning rate",
    "too_long": "left out, too long",
    "seconds": "time",
}
# Of options that are usually off, and of checks that most tasks lack: shown only if one of their numbers is not 0.
RARE_COLUMNS = ("kept_reference", "kept_from_earlier", "hints_kept", "anchoring", "too_long", RIGHT_WRONG_STEPS)
_CHECKS: dict[bool | None, str] = {True: "steps check out", False: "a step does not", None: "cannot tell"}
_ITERATION = Column("iteration", ITERATION)


def evaluations(run: RunData, headline: Headline | None) -> list[Table]:
    """The accuracy on the split that selects and, if it was evaluated, on the reported one."""
    tables = [_evaluation(run, run.split, "evaluation", "", headline)]
    if any(iteration.report_evaluation for iteration in run.iterations):
        tables.append(_evaluation(run, run.report_split, "report_evaluation", "; it selects nothing", headline))
    return tables


def _evaluation(run: RunData, split: str, of: str, remark: str, headline: Headline | None) -> Table:
    """`of`: the attribute of an iteration that has the evaluation."""
    pairs = [(it.number, getattr(it, of)) for it in run.iterations if getattr(it, of)]
    lenient = any(evaluation.lenient for _, evaluation in pairs)
    means_differ = any(evaluation.mean_differs for _, evaluation in pairs)
    verdicts = _used(VERDICT_COLUMNS, [evaluation.counts for _, evaluation in pairs])
    columns = [
        Column("iteration", RANKED_ITERATION),
        Column("problems"),
        Column("accuracy, all problems, 95 % interval", RATE),
        *([Column("by the lenient reader", RATE)] if lenient else []),
        *([Column("unweighted mean of categories", PERCENT)] if means_differ else []),
        *(Column(VERDICT_COLUMNS[key]) for key in verdicts),
    ]
    rows = [
        Row(
            (
                (number, headline is not None and headline.iteration == number),
                evaluation.overall.n,
                evaluation.overall,
                *([evaluation.lenient] if lenient else []),
                *([evaluation.mean_of_categories] if means_differ else []),
                *(evaluation.counts.get(key) for key in verdicts),
            )
        )
        for number, evaluation in pairs
    ]
    title = f"Accuracy on the {split} split, one completion per problem{remark}"
    return Table(title, f"evaluation_{split}", tuple(columns), tuple(rows), "no evaluation yet")


def with_several_samples(run: RunData) -> Table | None:
    """Majority vote and pass@k of evaluations with several samples per problem; None without one."""
    results = [(it.number, name, result) for it in run.iterations for name, result in it.sampled.items()]
    ks = sorted({k for _, _, result in results for k in result.pass_at})
    verdicts = _used(VERDICT_COLUMNS, [result.counts for _, _, result in results])
    columns = [
        _ITERATION,
        Column("evaluation", TEXT),
        Column("problems"),
        Column("majority vote, 95 % interval", RATE),
        *(Column(f"pass@{k}", RATE) for k in ks),
        *(Column(f"samples: {VERDICT_COLUMNS[key]}") for key in verdicts),
    ]
    rows = [
        Row(
            (
                number,
                name.title,
                result.majority.n,
                result.majority,
                *(result.pass_at.get(k) for k in ks),
                *(result.counts.get(key) for key in verdicts),
            )
        )
        for number, name, result in results
    ]
    title = "Accuracy with several samples per problem"
    return Table(title, "several_samples", tuple(columns), tuple(rows)) if rows else None


def by_category(run: RunData) -> Table | None:
    """The accuracy in each category by iteration; None without categories."""
    evaluated = [it for it in run.iterations if it.evaluation]
    columns = [Column("category", NAME)]
    columns += [Column(f"iteration {it.number}" if it.number else "base", RATE_OF) for it in evaluated]
    rows = [
        Row((label or "no category", *(it.evaluation.by_category.get(label) for it in evaluated if it.evaluation)))
        for label in run.categories
    ]
    title = "Accuracy by category, in numbers"
    return Table(title, "accuracy_by_category", tuple(columns), tuple(rows)) if rows else None


def train_problems(run: RunData) -> Table:
    """What each iteration sampled for its train problems, and what was kept."""
    rows = [(it.number, counts) for it in run.iterations if (counts := _filter_counts(it))]
    return _counts("Train problems: what was sampled, and what was kept", "train_problems", FILTER_COLUMNS, rows)


def fine_tuning(run: RunData) -> Table:
    """The numbers of each fine-tuning."""
    title = f"Fine-tuning, each time from the {setting(run.config, 'star.restart_from') or 'base'} weights"
    rows = [(it.number, it.fine_tuning) for it in run.iterations if it.fine_tuning]
    return _counts(title, "fine_tuning", FINE_TUNE_COLUMNS, rows)


def _counts(
    title: str, name: str, headings: Mapping[str, str], rows: Sequence[tuple[int, Mapping[str, float]]]
) -> Table:
    used = _used(headings, [counts for _, counts in rows])
    columns = (_ITERATION, *(Column(headings[key], DURATION if key == "seconds" else COUNT) for key in used))
    return Table(title, name, columns, tuple(Row((n, *(counts.get(key) for key in used))) for n, counts in rows))


def _used(headings: Mapping[str, str], counts: Sequence[Mapping[str, float]]) -> list[str]:
    """The keys of the columns to show: those of RARE_COLUMNS only where a number of theirs is not 0."""
    return [key for key in headings if key not in RARE_COLUMNS or any(values.get(key) for values in counts)]


def _filter_counts(iteration: Iteration) -> dict[str, float]:
    """The counts of filter.json; before it exists, the samples so far counted by verdict."""
    if iteration.filter_result:
        return iteration.filter_result.counts
    stats = sample_stats(iteration, "samples")
    return {"samples": stats.samples, **stats.verdicts} if stats else {}


def problems_used(health: Sequence[Health]) -> Table | None:
    """The train problems used and never solved, by iteration; None before the first samples."""
    columns = (
        _ITERATION,
        Column("problems"),
        Column("used, solved without hint", PERCENT),
        Column("used, by rationalization", PERCENT),
        Column("used together", PERCENT),
        Column("tried so far"),
        Column("solved so far"),
        Column("never solved so far", PART),
        Column("kept that mention a hint"),
    )
    rows = tuple(
        Row(
            (
                row.iteration,
                len(row.sampled.tried),
                row.used(Source.SAMPLED),
                row.used(Source.RATIONALIZED),
                row.used_together,
                row.tried_so_far,
                row.solved_so_far,
                (row.never_solved, row.tried_so_far),
                sum(row.kept.leaks.values()) if row.kept else None,
            )
        )
        for row in health
    )
    return Table("Train problems used, and never solved", "problems_used", columns, rows) if rows else None


def effort(run: RunData) -> Table | None:
    """Time and tokens of each iteration; None if no phase is on record."""
    rows = series.effort_series(run)
    if not rows:
        return None
    phases = rows[0].columns
    columns = (
        _ITERATION,
        *(Column(name.replace("_", " "), DURATION) for name in phases),
        Column("total", DURATION),
        Column("tokens sampled"),
        Column("tokens per second, sampling"),
        Column("tokens trained on"),
    )
    values = [
        Row((r.iteration, *(r.seconds.get(name) for name in phases), r.total, r.sampled, r.speed, r.trained))
        for r in rows
    ]
    return Table("Time and tokens", "time_and_tokens", columns, tuple(values))


def settings(runs: Sequence[RunData], names: Sequence[str], flat: Sequence[Mapping[str, str]]) -> tuple[Table, Table]:
    """(settings that differ between the runs, all settings), one column for each run.

    Args:
      flat: dotted key -> value of each run.
    """
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = []
    for key in keys:
        values = [of_run.get(key, "–") for of_run in flat]
        rows.append(Row((key, *values), css="differs" if len(set(values)) > 1 else ""))
    columns = (Column("setting", TEXT), *(Column(name, TEXT) for name in (names if len(runs) > 1 else ["value"])))
    differing = tuple(row for row in rows if row.css)
    title = "All settings" if len(runs) > 1 else "Settings"
    return (
        Table("Settings that differ", "settings_that_differ", columns, differing),
        Table(title, "settings", columns, tuple(rows)),
    )


def paper_settings(run: RunData) -> Table | None:
    """The settings that differ from the paper's; None if none does."""
    columns = (Column("setting", TEXT), Column("the paper", TEXT), Column("this run", TEXT))
    rows = tuple(Row(values) for values in paper.settings_diff(run))
    title = "Settings that differ from the paper's"
    return Table(title, "settings_unlike_the_paper", columns, rows) if rows else None


def marks(audit: Audit) -> Table | None:
    """The rates of a person's marks; None if nothing is marked."""
    if not audit.rates:
        return None
    columns = (
        Column("source", NAME),
        Column("rationales"),
        Column("of", NAME),
        *(Column(mark, _SHARE) for mark in audit.rates.counted[0].shares),
    )
    groups: list[tuple[str, list[MarkRow]]] = [
        ("marked", audit.rates.counted),
        ("kept, weighted", audit.rates.weighted),
    ]
    rows = [Row((_label(r.label), r.n, of, *r.shares.values())) for of, of_group in groups for r in of_group]
    return Table("Marks by source", "audit_marks", columns, tuple(rows))


def step_checks(audit: Audit) -> Table | None:
    """The machine's checks of the steps of all that was kept; None if the task cannot check steps."""
    if not audit.checked:
        return None
    columns = [_ITERATION]
    for source in audit.checked[0][1]:
        columns.append(Column(f"{_label(source)}: kept"))
        columns += [Column(f"{_label(source)}: {heading}", PART) for heading in _CHECKS.values()]
    rows = []
    for number, by_source in audit.checked:
        values: list[Any] = []
        for counter in by_source.values():
            values += [counter.total(), *((counter[check], counter.total()) for check in _CHECKS)]
        rows.append(Row((number, *values)))
    return Table("Steps checked by machine, of all that was kept", "step_checks", tuple(columns), tuple(rows))


def _label(source: str) -> str:
    return next((label for key, label in LABELS.items() if key == source), source)


def _shown_share(share: Share) -> tuple[str, str]:
    text = percent(share.share) if share.count is None else f"{count(share.count)} ({percent(share.share)})"
    return text, f"{percent(share.low)} to {percent(share.high)}" if share.low is not None else ""


_SHARE = Kind(
    _shown_share,
    lambda share: (share.count, share.share, share.low, share.high),
    (": marks", ": share", ": 95 % from", ": 95 % to"),
)
