"""The tables of a study, for the page and for the terminal."""

import os
import statistics
from urllib.parse import quote

from star_jax.json_reader import is_present
from star_jax.report import formatting
from star_jax.report.tables.several_runs import paired_columns, paired_values
from star_jax.report.tables.table import COUNT, ITERATION, NAME, PERCENT, TEXT, Column, Kind, Row, Table
from star_jax.study.comparison import Difference
from star_jax.study.findings import Findings
from star_jax.study.spec import Place, Study


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


def arms(findings: Findings) -> Table:
    """The accuracy of each arm, and what a run of it took."""
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
        spread = (statistics.fmean(accuracies), min(accuracies), max(accuracies)) if accuracies else None
        tokens = [
            statistics.fmean(getattr(o, which) for o in by_seed.values()) if by_seed else None
            for which in ("sampled", "trained")
        ]
        failed = sum(place.arm == name for place in findings.failures)
        count = f"{len(by_seed)} of {len(study.seeds)}" + f", {failed} failed" * bool(failed)
        title = f"{name} (reference)" if name == study.reference else name
        rows.append(Row((n, title, count, spread, *tokens)))
    iteration = (
        "of the last iteration" if study.outcome == "last" else "of the iteration that is best on the other split"
    )
    return Table(f"Accuracy {iteration}, tokens of a run", "arms", columns, tuple(rows))


def differences(findings: Findings) -> Table:
    """Each arm against the reference arm."""
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


def runs(findings: Findings) -> Table:
    """Each run, against the reference arm's run of its seed. Links are relative to the page."""
    columns = (
        Column("run", NAME),
        Column("iteration", ITERATION),
        Column("accuracy", PERCENT),
        *paired_columns(findings.study.reference),
        Column("p value", _P),
    )
    pairs = {(each.arm, seed): pair for each in findings.differences for seed, pair in each.by_seed.items()}
    rows = []
    for arm, by_seed in findings.outcomes.items():
        for seed, outcome in by_seed.items():
            place = Place(arm, seed)
            report = outcome.run.directory / "report.html"
            link = quote(os.fsencode(os.path.relpath(report, findings.workdir))) if is_present(report) else ""
            head, pair = (str(place), outcome.iteration, outcome.accuracy), pairs.get((arm, seed))
            values = (*paired_values(pair), pair.p) if pair else (len(outcome.solved), *[None] * 5)
            rows.append(Row((*head, *values), link=link))
    return Table(
        "Each run, and McNemar's exact test against the reference arm's of its seed", "runs", columns, tuple(rows)
    )


def options(study: Study) -> Table:
    """What each arm sets."""
    texts = {
        name: ", ".join(f"{key} = {value}" for key, value in formatting.flatten(dict(values)).items())
        for name, values in study.arms.items()
    }
    rows = [Row((name, text or "as the common config")) for name, text in texts.items()]
    return Table("What each arm sets", "options", (Column("arm", NAME), Column("options", TEXT)), tuple(rows))
