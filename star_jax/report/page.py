"""Lays a run out as one HTML page. Everything that comes from a run is hostile text until it has passed `visible`."""

import base64
import datetime
import hashlib
import importlib.resources
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from star_jax import alarms, significance
from star_jax.errors import InputError
from star_jax.report import audited, figures, series, texts
from star_jax.report.load import Iteration, Run, setting, verdicts

# Of config.json's `model`: what makes the model's size. The rest is among the settings.
MODEL_SIZES = ("n_layers", "d_model", "n_heads", "d_mlp", "vocab_size")
# filter.json's key and eval_dev.json's -> the column's heading.
VERDICT_COLUMNS = {
    "right": "right",
    "wrong": "wrong",
    "unparsable": "unparsable",
    "cut_off": "cut off",
    "right_wrong_steps": "right answer, wrong steps",
}
FILTER_COLUMNS = {
    "problems": "problems",
    "draws": "draws",
    **VERDICT_COLUMNS,
    "distinct": "distinct texts",
    "mean_tokens": "tokens a draw",
    "rationalization_tried": "rationalization tried",
    "rationalization_right": "rationalization right",
    "kept": "kept",
    "kept_sampled": "kept, sampled",
    "kept_rationalized": "kept, rationalized",
    "kept_reference": "kept, reference answer",
    "kept_from_earlier": "kept from earlier iterations",
    "hints_kept": "hints kept",
}
# Columns of options that are off as a rule: they stand only where one of their numbers is not 0.
RARE_COLUMNS = ("kept_reference", "kept_from_earlier", "hints_kept", "too_long")
FINE_TUNE_COLUMNS = {
    "examples": "examples",
    "rows": "packed rows",
    "steps": "steps",
    "tokens": "tokens",
    "loss_tokens": "tokens with loss",
    "loss_first": "first loss",
    "loss_last": "last loss",
    "learning_rate": "learning rate",
    "too_long": "left out, too long",
    "seconds": "time",
}


def render(runs: Sequence[Run]) -> str:
    """The page of one run, or of several side by side. Raises InputError for a broken file of texts."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("star_jax.report", "."),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else texts.visible(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "count": count, "duration": duration, "chance": chance}
    environment.filters |= {"clipped": texts.clipped}
    script = _resource("browser.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = _names(runs)
    budget = texts.MOST_CHARACTERS // len(runs)
    return environment.get_template("page.html.j2").render(
        runs=[
            _run_view(run, name, f"r{index}-", budget)
            for index, (run, name) in enumerate(zip(runs, names, strict=True))
        ],
        overlay=figures.overlay(names, runs, "all-") if len(runs) > 1 else None,
        comparisons=[(name, _best_against(runs[0], run)) for name, run in zip(names[1:], runs[1:], strict=True)],
        settings=settings(runs),
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup(_resource("page.css")),
        script=Markup(script),
        script_hash=digest,
        verdict_columns=VERDICT_COLUMNS,
    )


def picture(runs: Sequence[Run]) -> bytes:
    """Figure 1 of the page as a PNG, a panel a run, in the page's light colours. Raises InputError."""
    if bare := [run.name for run in runs if not figures.has_accuracy(run)]:
        raise InputError(f"report: {bare[0]} has no evaluation yet, so there is no accuracy to draw")
    first_rule = _resource("page.css").partition("}")[0]  # :root, the light one
    light = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", first_rule))
    return figures.picture(dict(zip(_names(runs), runs, strict=True)), light)


def settings(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """(dotted key, its value as JSON in each run, whether the runs differ), in the order the configs have them."""
    flat = [_flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [(key, [values.get(key, "–") for values in flat]) for key in keys]
    return [(key, values, len(set(values)) > 1) for key, values in rows]


def standing(run: Run) -> str:
    """Where the run stands, in words, as far as its files tell: a run that was stopped looks like one that goes on."""
    planned = setting(run.config, "star.iterations")
    of_planned = f" of {planned}" if isinstance(planned, int) else ""
    by_number = {iteration.number: iteration for iteration in run.iterations}
    if max(by_number, default=0) == 0:
        evaluated = 0 in by_number and by_number[0].evaluation is not None
        if evaluated and planned == 0:
            return "done: the base model is evaluated, and no iteration was asked for"
        return f"the base model is evaluated; iteration 1{of_planned} comes next" if evaluated else "no evaluation yet"
    finished = [number for number, iteration in by_number.items() if iteration.done and number > 0]
    if isinstance(planned, int) and len(finished) >= planned:
        return f"done: {planned} of {planned} iterations"
    current = max(finished, default=0) + 1
    if current not in by_number:
        return f"iteration {max(finished, default=0)}{of_planned} done"
    return f"iteration {current}{of_planned}, in progress or stopped; {_stage(run, by_number[current])}"


def percent(fraction: float | None) -> str:
    """0.4125 -> "41.2 %"; None -> a dash."""
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def count(value: float | None) -> str:
    """12000 -> "12,000"; 0.000123 -> "0.000123"; None -> a dash."""
    if value is None:
        return "–"
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """3725 -> "1 h 2 min"; 85.2 -> "1 min 25 s"; 7.25 -> "7.2 s"; None -> a dash."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{round(seconds / 60) // 60:,} h {round(seconds / 60) % 60} min"


def chance(p: float) -> str:
    """A p value: 0.0312 -> "p = 0.031"; 1e-9 -> "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _best_against(first: Run, second: Run) -> significance.Paired | None:
    """The best iterations of two runs, on the problems both were asked; None where there are none."""
    if first.split != second.split:
        return None
    return significance.paired(_of_best(first), _of_best(second))


def _of_best(run: Run) -> dict[str, bool]:
    best = series.best(run)
    return _of(run, best.iteration) if best else {}


def _of(run: Run, number: int) -> dict[str, bool]:
    found = next((iteration for iteration in run.iterations if iteration.number == number), None)
    return verdicts(run, found, run.split) if found else {}


def _run_view(run: Run, name: str, prefix: str, budget: int) -> dict[str, Any]:
    """What the template needs to know of a run; `budget`: characters its table of rationales may take."""
    losses = series.loss_series(run)
    filtered = [(iteration, counts) for iteration in run.iterations if (counts := _filter_counts(iteration))]
    tuned = [(iteration, iteration.fine_tuned) for iteration in run.iterations if iteration.fine_tuned]
    overall = {point.iteration: point for point in series.overall_series(run)}
    data, shown, total = texts.rationales(run, budget)
    return {
        "run": run,
        "name": name,
        "prefix": prefix,
        "task": list(_flatten(run.config.get("task")).items()),
        "model": [(key, text) for key, text in _flatten(run.config.get("model")).items() if key in MODEL_SIZES],
        "standing": standing(run),
        "base": overall.get(0),
        "best": series.best(run),
        "gained": significance.paired(_of(run, 0), _of_best(run)),
        "means": {point.iteration: point.accuracy for point in series.mean_series(run)},
        "seconds": series.stage_seconds(run),
        "notices": _notices(run),
        "accuracy": figures.accuracy(run, f"{prefix}accuracy-"),
        "kept": figures.kept(run, f"{prefix}kept-"),
        "loss": figures.loss(
            [line for line in losses if line.stage == series.FINE_TUNE], f"{prefix}loss-", "Training loss by step"
        ),
        "base_loss": figures.loss(
            [line for line in losses if line.stage != series.FINE_TUNE],
            f"{prefix}base-loss-",
            "Training loss of the base model by step",
        ),
        "filtered": filtered,
        "filter_columns": _columns(FILTER_COLUMNS, [counts for _, counts in filtered]),
        "tuned": tuned,
        "restart_from": setting(run.config, "star.restart_from") or "base",
        "fine_tune_columns": _columns(FINE_TUNE_COLUMNS, [numbers for _, numbers in tuned]),
        "examples": texts.kept_picks(run),
        "audit": audited.audit(run),
        "data": data,
        "shown": shown,
        "total": total,
    }


def _stage(run: Run, iteration: Iteration) -> str:
    """The stage an unfinished iteration is at, from the files it has."""
    samples, rationalizations = iteration.draws.sampled, iteration.draws.rationalized
    if iteration.filtered is None and not setting(run.config, "star.direct"):
        rationalizes = setting(run.config, "star.rationalize")
        if samples is None:
            return "sampling comes next"
        if rationalizes and rationalizations is None:
            return "rationalizing comes next"
        if not samples["right"] and not (rationalizations and rationalizations["right"]):
            return "no completion reached a right answer, so there is nothing to keep"
    if iteration.filtered is None:
        return "filtering comes next"
    if iteration.filtered.counts.get("kept") == 0:
        return "it kept nothing, so there is nothing to fine-tune on"
    if iteration.fine_tuned is None:
        return "fine-tuning comes next"
    return "evaluating comes next" if iteration.evaluation is None else "all of its stages are on disk"


def _filter_counts(iteration: Iteration) -> dict[str, float]:
    """filter.json's counts; before there is one, the draws so far counted by verdict."""
    if iteration.filtered:
        return iteration.filtered.counts
    if iteration.draws.sampled is None:
        return {}
    return {"draws": iteration.draws.sampled.total(), **iteration.draws.sampled}


def _notices(run: Run) -> list[str]:
    """What a reader should know before trusting the page."""
    notices = []
    if not run.config:
        notices.append("config.json is missing or empty, so the page cannot say what was run.")
    if run.unread_metrics:
        notices.append(
            f"{run.unread_metrics} line(s) of metrics.jsonl could not be read (torn by a kill, as a rule); "
            "they are left out."
        )
    for iteration in run.iterations:
        drawn = iteration.draws.sampled
        counts = iteration.filtered.counts if iteration.filtered else {}
        if drawn is not None and "draws" in counts and counts["draws"] != drawn.total():
            notices.append(
                f"Iteration {iteration.number}: filter.json counts {count(counts['draws'])} draws, "
                f"samples.jsonl holds {count(drawn.total())}; they are not of the same run."
            )
    return [*notices, *_alarms(run)]


def _alarms(run: Run) -> list[str]:
    """What star_jax.alarms says of each iteration and the one before it."""
    found = []
    for before, now in itertools.pairwise(run.iterations):
        signs = []
        if before.filtered and now.filtered:
            signs += alarms.of_draws(before.filtered.counts, now.filtered.counts)
        if before.evaluation and now.evaluation:
            rates = [(e.overall.accuracy, e.overall.low, e.overall.high) for e in (before.evaluation, now.evaluation)]
            signs += alarms.of_accuracy(*rates)
        found += [f"Iteration {now.number}: {sign}." for sign in signs]
    return found


def _columns(columns: dict[str, str], rows: Sequence[dict[str, float]]) -> dict[str, str]:
    """The columns worth showing of a table with these rows; see RARE_COLUMNS."""
    return {
        key: heading for key, heading in columns.items() if key not in RARE_COLUMNS or any(row.get(key) for row in rows)
    }


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key -> value; texts as they are, the rest as JSON."""
    if isinstance(value, dict) and value:
        return {
            name: text
            for key, item in value.items()
            for name, text in _flatten(item, f"{prefix}.{key}" if prefix else key).items()
        }
    if not prefix:
        return {}
    return {prefix: value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)}


def _names(runs: Sequence[Run]) -> list[str]:
    """A name for each run that tells it from the others: its directory's, with a number where that recurs."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names, start=1)]


def _resource(name: str) -> str:
    return importlib.resources.files("star_jax.report").joinpath(name).read_text(encoding="utf-8")
