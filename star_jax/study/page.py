"""study.html and the tables of the terminal, from the runs' files alone: the same runs give the same bytes."""

import base64
import dataclasses
import hashlib
import json
import os
import statistics as python_statistics
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from star_jax import terminal
from star_jax.json_reader import is_present
from star_jax.report import formatting
from star_jax.report.figures import plots
from star_jax.report.figures.plots import SeedDots
from star_jax.report.figures.series import RunGroup
from star_jax.report.page import environment, static_file
from star_jax.report.tables.table import COUNT, ITERATION, NAME, PERCENT, TEXT, Column, Kind, Row, Table
from star_jax.runs.atomic_files import atomic_write
from star_jax.study import comparison, outcomes
from star_jax.study.comparison import Difference
from star_jax.study.execution import Place
from star_jax.study.outcomes import Outcome
from star_jax.study.spec import BASE, Study

NAME_OF_PAGE = "study.html"
_SCRIPTS = ("tables.js", "export.js")


def _shown_gain(difference: Difference) -> tuple[str, str]:
    seeds = difference.over_seeds
    interval = f"{100 * seeds.low:+.1f} to {100 * seeds.high:+.1f}" if seeds else ""
    return f"{100 * difference.gain:+.1f} points", interval


def _exported_gain(difference: Difference) -> tuple[float | None, ...]:
    seeds = difference.over_seeds
    return (difference.gain, seeds.low, seeds.high) if seeds else (difference.gain, None, None)


def _shown_spread(spread: tuple[float, float, float] | None) -> tuple[str, str]:
    if spread is None:
        return "–", ""
    mean, low, high = spread
    return formatting.percent(mean), f"{formatting.percent(low)} to {formatting.percent(high)}" if low < high else ""


_GAIN = Kind(_shown_gain, _exported_gain, ("", ": 95 % from", ": 95 % to"))
_SPREAD = Kind(_shown_spread, lambda spread: spread or (None, None, None), ("", ": lowest", ": highest"))
_P = Kind(lambda p: ("–" if p is None else formatting.p_value(p), ""))
# (p value by Holm's correction, p value without it).
_CORRECTED = Kind(lambda pair: _P.shown(pair[0]), lambda pair: pair, ("", ": uncorrected"))
_RATIO = Kind(lambda ratio: ("–" if ratio == float("inf") else f"{ratio:.2f}×", ""))
_POINTS = Kind(lambda gain: ("–" if gain is None else f"{100 * gain:+.1f} points", ""))


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a study has found so far."""

    study: Study
    path: Path  # of the page
    outcomes: Mapping[str, Mapping[int, Outcome]]  # arm, BASE too -> seed -> outcome of each finished run
    failures: Mapping[Place, str]
    differences: tuple[Difference, ...]

    @property
    def tables(self) -> tuple[Table, Table]:
        """The arms, and their differences to the reference arm."""
        return _arms(self), _differences(self)


def write(study: Study, workdir: Path, failures: Mapping[Place, str]) -> Findings:
    """Reads the study's runs and writes its page. `failures`: run -> why it failed. Raises InputError."""
    found = {
        arm: {
            seed: outcome
            for seed in study.seeds
            if (outcome := outcomes.read(Place(arm, seed).directory(workdir), study.outcome, study.split))
        }
        for arm in (BASE, *study.arms)
    }
    arms = {arm: found[arm] for arm in study.arms}
    differences = tuple(comparison.differences(arms, study.reference, len(study.seeds)))
    findings = Findings(study, workdir / NAME_OF_PAGE, found, dict(failures), differences)
    atomic_write(findings.path, _render(findings))
    return findings


def show(findings: Findings) -> None:
    """Prints the two tables and the path of the page on standard output."""
    for table in findings.tables:
        terminal.say(f"{table.title}\n{_text(table)}\n")
    terminal.say(str(findings.path))


def _text(table: Table) -> str:
    """A table in aligned columns, each as wide as it must be."""
    lines = [[column.heading for column in table.columns]]
    for row in table.rows:
        cells = [terminal.one_line(f"{text} ({note})" if note else text) for _, text, note in table.cells(row)]
        lines.append([*cells, terminal.one_line(row.message)] if row.message else cells)
    complete = [line for line in lines if len(line) == len(table.columns)]
    widths = [max(len(line[i]) for line in complete) for i in range(len(table.columns))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=False)).rstrip() for line in lines)


def _render(findings: Findings) -> str:
    study, script = findings.study, "".join(static_file(name) for name in _SCRIPTS)
    curves = [
        RunGroup((name,), tuple(o.run for o in by_seed.values())) for name, by_seed in _arm_outcomes(findings).items()
    ]
    finished = sum(len(by_seed) for by_seed in _arm_outcomes(findings).values())
    return (
        environment()
        .get_template("study.html.j2")
        .render(
            name=findings.path.parent.resolve().name or "study",
            study=study,
            planned=len(study.arms) * len(study.seeds),
            finished=finished,
            failures=[(str(place), message) for place, message in findings.failures.items()],
            dots=plots.seed_dots(_dots(findings), "dots-") if finished else None,
            curves=plots.accuracy_overlay(curves, "curves-") if study.outcome == "last" else None,
            tables=[*findings.tables, _by_seed(findings), _options(study)],
            style=Markup(static_file("page.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _arm_outcomes(findings: Findings) -> dict[str, Mapping[int, Outcome]]:
    return {arm: by_seed for arm, by_seed in findings.outcomes.items() if arm != BASE and by_seed}


def _dots(findings: Findings) -> list[SeedDots]:
    """One row for the base and each arm with a finished run, numbered as in the table."""
    return [
        SeedDots(n, name, tuple(o.accuracy for o in by_seed.values()), name == findings.study.reference)
        for n, (name, by_seed) in enumerate(findings.outcomes.items())
        if by_seed
    ]


def _arms(findings: Findings) -> Table:
    study = findings.study
    columns = (
        Column("", COUNT),
        Column("arm", NAME),
        Column("runs", TEXT),
        Column(f"{study.split} accuracy, mean and range", _SPREAD),
        Column("tokens sampled", COUNT),
        Column("tokens trained on", COUNT),
    )
    rows = []
    for n, (name, by_seed) in enumerate(findings.outcomes.items()):
        accuracies = [outcome.accuracy for outcome in by_seed.values()]
        spread = (python_statistics.fmean(accuracies), min(accuracies), max(accuracies)) if accuracies else None
        tokens = [
            python_statistics.fmean(getattr(o, which) for o in by_seed.values()) if by_seed else None
            for which in ("sampled", "trained")
        ]
        failed = sum(place.arm == name for place in findings.failures)
        runs = f"{len(by_seed)} of {len(study.seeds)}" + f", {failed} failed" * bool(failed)
        title = f"{name} (reference)" if name == study.reference else name
        rows.append(Row((n, title, runs, spread, *tokens)))
    iteration = (
        "of the last iteration" if study.outcome == "last" else "of the iteration that is best on the other split"
    )
    return Table(f"Accuracy {iteration}, tokens of a run", "arms", columns, tuple(rows))


def _differences(findings: Findings) -> Table:
    columns = (
        Column("arm", NAME),
        Column("difference, 95 % over seeds", _GAIN),
        Column("these models", _CORRECTED),
        Column("the method", _CORRECTED),
        Column("sampled", _RATIO),
        Column("trained on", _RATIO),
        Column("reading", TEXT),
    )
    rows = tuple(
        Row(
            (
                d.arm,
                d,
                (d.p_models_corrected, d.p_models),
                (d.p_method_corrected, d.over_seeds.p if d.over_seeds else None),
                d.sampled,
                d.trained,
                d.reading,
            )
        )
        for d in findings.differences
    )
    title = f"Against {findings.study.reference}"
    return Table(title, "differences", columns, rows, empty=f"no arm has a seed in common with it yet; {title.lower()}")


def _by_seed(findings: Findings) -> Table:
    reference = findings.study.reference
    columns = (
        Column("run", NAME),
        Column("iteration", ITERATION),
        Column("accuracy", PERCENT),
        Column("problems", COUNT),
        Column("both right", COUNT),
        Column(f"only {reference}", COUNT),
        Column("only this run", COUNT),
        Column("difference", _POINTS),
        Column("p value", _P),
    )
    pairs = {(each.arm, seed): pair for each in findings.differences for seed, pair in each.by_seed.items()}
    rows = []
    for arm, by_seed in findings.outcomes.items():
        for seed, outcome in by_seed.items():
            place = Place(arm, seed)
            report = outcome.run.directory / "report.html"
            link = quote(os.fsencode(os.path.relpath(report, findings.path.parent))) if is_present(report) else ""
            head, pair = (str(place), outcome.iteration, outcome.accuracy), pairs.get((arm, seed))
            if pair:
                counts = (pair.problems, pair.both, pair.first, pair.second)
                rows.append(Row((*head, *counts, pair.gain, pair.p), link=link))
            else:
                rows.append(Row((*head, len(outcome.solved), *[None] * 5), link=link))
    return Table(
        "Each run, and McNemar's exact test against the reference arm's of its seed", "runs", columns, tuple(rows)
    )


def _options(study: Study) -> Table:
    rows = [Row((name, ", ".join(_flat(options)) or "as the common config")) for name, options in study.arms.items()]
    return Table("What each arm sets", "options", (Column("arm", NAME), Column("options", TEXT)), tuple(rows))


def _flat(options: Mapping[str, object], prefix: str = "") -> list[str]:
    """ "star.iterations = 3", ... of nested options."""
    texts = []
    for key, value in options.items():
        nested = isinstance(value, Mapping)
        texts += _flat(value, f"{prefix}{key}.") if nested else [f"{prefix}{key} = {json.dumps(value)}"]  # type: ignore[arg-type]
    return texts
