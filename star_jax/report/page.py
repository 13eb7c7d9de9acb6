"""Lays a run out as one HTML page. Everything that comes from a run is hostile text until it has passed `visible`."""

import base64
import datetime
import functools
import hashlib
import importlib.resources
import json
import re
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from star_jax.errors import InputError
from star_jax.evaluation import statistics
from star_jax.report import audited, blocks, draws, figures, panels, paper, series, state, texts, words
from star_jax.report.health import health_series
from star_jax.report.load import Iteration, Run, setting, verdicts

SCRIPTS = ("blocks.js", "choose.js", "cells.js", "browser.js", "keys.js")
# Of config.json's `model`: what makes the model's size. The rest is among the settings.
MODEL_SIZES = ("n_layers", "d_model", "n_heads", "d_mlp", "vocab_size")
# filter.json's key and eval_dev.json's -> the column's heading.
VERDICT_COLUMNS = {
    "right": "right",
    "wrong": "wrong",
    "unparsable": "unparsable",
    "truncated": "cut off",
    "right_wrong_steps": "right answer, wrong steps",
}
FILTER_COLUMNS = {
    "problems": "problems",
    "samples": "samples",
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


def render(runs: Sequence[Run], shelf: blocks.Shelf, folder: str, reload: int = 0) -> str:
    """The page of one run, or of several side by side, that loads itself anew after `reload` seconds (0: never).

    `folder`: the name of the one that holds the blocks of `shelf` that are beside the page. Raises InputError for a
    broken file of texts.
    """
    script = "".join(_resource(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = _names(runs)
    groups = series.groups(names, runs)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            runs=[
                _run_view(run, name, f"r{index}-") | blocks.view(shelf, index, folder)
                for index, (run, name) in enumerate(zip(runs, names, strict=True))
            ],
            overlay=figures.overlay(groups, "all-") if len(runs) > 1 else None,
            overlays=figures.overlays(groups, "class-") if len(runs) > 1 else {},
            paper=paper.table(runs, names),
            reload=reload,
            comparisons=[(name, _best_against(runs[0], run)) for name, run in zip(names[1:], runs[1:], strict=True)],
            settings=settings(runs),
            written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            style=Markup(_resource("page.css") + _resource("browser.css")),
            script=Markup(script),
            script_hash=digest,
            beside=bool(shelf.beside),
            verdict_columns=VERDICT_COLUMNS,
        )
    )


@functools.cache  # a run writes its page after every iteration, and a template takes a tenth of a second to compile
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("star_jax.report", "templates"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else texts.visible(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(words, name) for name in ("percent", "count", "duration", "chance")}
    environment.filters |= {"clipped": texts.clipped}
    return environment


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


def _best_against(first: Run, second: Run) -> statistics.Paired | None:
    """The best iterations of two runs, on the problems both were asked; None where there are none."""
    if first.split != second.split:
        return None
    return statistics.paired(_of_best(first), _of_best(second))


def _of_best(run: Run) -> dict[str, bool]:
    best = series.best(run)
    return _of(run, best.iteration) if best else {}


def _of(run: Run, number: int) -> dict[str, bool]:
    found = next((iteration for iteration in run.iterations if iteration.number == number), None)
    return verdicts(run, found, run.split) if found else {}


def _run_view(run: Run, name: str, prefix: str) -> dict[str, Any]:
    """What the template needs to know of a run, but for its rationales."""
    losses, health = series.loss_series(run), health_series(run)
    filtered = [(iteration, counts) for iteration in run.iterations if (counts := _filter_counts(iteration))]
    tuned = [(iteration, iteration.fine_tuned) for iteration in run.iterations if iteration.fine_tuned]
    overall = {point.iteration: point for point in series.overall_series(run)}
    return {
        "run": run,
        "name": name,
        "prefix": prefix,
        "task": list(_flatten(run.config.get("task")).items()),
        "model": [(key, text) for key, text in _flatten(run.config.get("model")).items() if key in MODEL_SIZES],
        "standing": state.standing(run),
        "base": overall.get(0),
        "best": series.best(run),
        "gained": statistics.paired(_of(run, 0), _of_best(run)),
        "means": {point.iteration: point.accuracy for point in series.mean_series(run)},
        "seconds": series.stage_seconds(run),
        "notices": state.notices(run),
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
        "introduced": len(set(series.introductions(run).values())) > 1,
        "steps": figures.steps(_base_and_best(run), f"{prefix}steps-"),
        "health": panels.health(health, f"{prefix}health-"),
        "health_rows": health,
        "effort": series.effort_series(run),
        "settings_diff": [(key, [of_paper, own], False) for key, of_paper, own in paper.settings_diff(run)],
        "filtered": filtered,
        "filter_columns": _columns(FILTER_COLUMNS, [counts for _, counts in filtered]),
        "tuned": tuned,
        "restart_from": setting(run.config, "star.restart_from") or "base",
        "fine_tune_columns": _columns(FINE_TUNE_COLUMNS, [numbers for _, numbers in tuned]),
        "examples": texts.kept_picks(run),
        "audit": audited.audit(run),
    }


def _base_and_best(run: Run) -> list[series.Steps]:
    """The steps of the base and of the best iteration, of those that have any."""
    best = series.best(run)
    return [steps for steps in series.steps_series(run) if best and steps.iteration in (0, best.iteration)]


def _filter_counts(iteration: Iteration) -> dict[str, float]:
    """filter.json's counts; before there is one, the draws so far counted by verdict."""
    if iteration.filtered:
        return iteration.filtered.counts
    samples = draws.drawn(iteration, "samples")
    return {"samples": samples.draws, **samples.verdicts} if samples else {}


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
    return importlib.resources.files("star_jax.report").joinpath("static", name).read_text(encoding="utf-8")
