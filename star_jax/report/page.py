"""Renders runs as one HTML page. Every text of a run is hostile until it has passed `terminal.visible`."""

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
from star_jax.records import LABELS, RIGHT_WRONG_STEPS, Source, Verdict
from star_jax.report import formatting
from star_jax.report.browser import blocks, examples
from star_jax.report.figures import panels, plots, series
from star_jax.report.marks.estimates import read_audit
from star_jax.report.run_data import Iteration, RunData, setting
from star_jax.report.run_status import notices, run_status
from star_jax.report.samples import SOURCES, health_series, sample_stats
from star_jax.report.tables import comparison, paper
from star_jax.report.tables.headline import has_test_split, headline
from star_jax.terminal import visible

SCRIPTS = ("blocks.js", "links.js", "filters.js", "cells.js", "browser.js", "keyboard.js")
TEMPLATE_FILTERS = ("percent", "count", "duration", "p_value", "clipped")  # of `formatting`, for the templates
# Keys of config.json's `model` that determine the model's size; the others are among the settings.
MODEL_SIZES = ("n_layers", "d_model", "n_heads", "d_mlp", "vocab_size")
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
# Columns of options that are usually off: shown only if one of their numbers is not 0.
RARE_COLUMNS = ("kept_reference", "kept_from_earlier", "hints_kept", "too_long")


def render(runs: Sequence[RunData], page_blocks: blocks.PageBlocks, folder: str, reload: int = 0) -> str:
    """The page of one run, or of several side by side.

    Args:
      page_blocks: of the same runs.
      folder: the name of the folder with the blocks that are not in the page.
      reload: seconds after which the open page reloads itself; 0: never.

    Raises InputError for a broken file.
    """
    script = "".join(_static_file(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = _unique_names(runs)
    groups = series.run_groups(names, runs)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            runs=[
                _run_values(run, name, f"r{index}-") | blocks.template_values(page_blocks, index, folder)
                for index, (run, name) in enumerate(zip(runs, names, strict=True))
            ],
            overlay=plots.accuracy_overlay(groups, "all-") if len(runs) > 1 else None,
            overlays=plots.category_overlays(groups, "class-") if len(runs) > 1 else {},
            paper=paper.table(runs, names),
            reload=reload,
            comparisons=[
                (name, comparison.of_best(runs[0], run)) for name, run in zip(names[1:], runs[1:], strict=True)
            ],
            settings=settings(runs),
            written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            style=Markup(_static_file("page.css") + _static_file("browser.css")),
            script=Markup(script),
            script_hash=digest,
            has_folder=bool(page_blocks.in_folder),
            verdict_columns=VERDICT_COLUMNS,
            labels=_script_labels(),
        )
    )


def accuracy_png(runs: Sequence[RunData]) -> bytes:
    """The page's figure of accuracy as a PNG in its light colours, one panel for each run. Raises InputError."""
    if without := [run.name for run in runs if not plots.has_accuracy(run)]:
        raise InputError(f"report: {without[0]} has no evaluation yet, so there is no accuracy to draw")
    first_rule = _static_file("page.css").partition("}")[0]  # :root, the light one
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", first_rule))
    return plots.accuracy_png(dict(zip(_unique_names(runs), runs, strict=True)), colours)


def settings(runs: Sequence[RunData]) -> list[tuple[str, list[str], bool]]:
    """(dotted key, its value as JSON in each run, whether the runs differ), in the order of the configs."""
    flat = [_flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [(key, [values.get(key, "–") for values in flat]) for key in keys]
    return [(key, values, len(set(values)) > 1) for key, values in rows]


@functools.cache  # a run writes its page after every iteration, and compiling a template takes 0.1 s
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("star_jax.report", "templates"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(formatting, name) for name in TEMPLATE_FILTERS}
    environment.filters |= {"label": lambda value: LABELS.get(value, value)}
    return environment


def _script_labels() -> Markup:
    """JSON of the labels that the scripts show."""
    return formatting.script_json(
        {
            "verdicts": {verdict: LABELS[verdict] for verdict in Verdict},
            "sources": {source: LABELS[source] for source in SOURCES},
            "wrongSteps": WRONG_STEPS,
        }
    )


def _run_values(run: RunData, name: str, prefix: str) -> dict[str, Any]:
    """What the template needs of a run, except its blocks."""
    losses, health = series.loss_series(run), health_series(run)
    fine_tune_losses = [curve for curve in losses if curve.stage == series.FINE_TUNE]
    base_losses = [curve for curve in losses if curve.stage != series.FINE_TUNE]
    filter_rows = [(iteration, counts) for iteration in run.iterations if (counts := _filter_counts(iteration))]
    fine_tune_rows = [(iteration, iteration.fine_tuning) for iteration in run.iterations if iteration.fine_tuning]
    base_and_best = [steps for steps in series.step_count_series(run) if steps.iteration in (0, run.best)]
    return {
        "run": run,
        "name": name,
        "prefix": prefix,
        "task": setting(run.config, "task.name"),
        "is_addition": setting(run.config, "task.name") == "arithmetic",
        "model": [(key, text) for key, text in _flatten(run.config.get("model")).items() if key in MODEL_SIZES],
        "status": run_status(run),
        "headline": headline(run),
        "sampled": [(it, name, result) for it in run.iterations for name, result in it.sampled.items()],
        "has_test_split": has_test_split(run.config),
        "against_base": comparison.with_base(run),
        "seconds": series.stage_seconds(run),
        "notices": notices(run),
        "accuracy": plots.accuracy(run, f"{prefix}accuracy-"),
        "kept": plots.kept(run, f"{prefix}kept-"),
        "loss": plots.loss(fine_tune_losses, f"{prefix}loss-", "Training loss by step"),
        "base_loss": plots.loss(base_losses, f"{prefix}base-loss-", "Training loss of the base model by step"),
        "starts_differ": len(set(series.first_trained_on(run).values())) > 1,
        "steps": plots.solution_steps(base_and_best, f"{prefix}steps-"),
        "health": panels.health_plots(health, f"{prefix}health-"),
        "health_rows": health,
        "effort": series.effort_series(run),
        "settings_diff": [(key, [of_paper, of_run], False) for key, of_paper, of_run in paper.settings_diff(run)],
        "filter_rows": filter_rows,
        "filter_columns": _used_columns(FILTER_COLUMNS, [counts for _, counts in filter_rows]),
        "fine_tune_rows": fine_tune_rows,
        "fine_tune_columns": _used_columns(FINE_TUNE_COLUMNS, [numbers for _, numbers in fine_tune_rows]),
        "restart_from": setting(run.config, "star.restart_from") or "base",
        "examples": examples.training_examples(run),
        "audit": read_audit(run),
    }


def _filter_counts(iteration: Iteration) -> dict[str, float]:
    """The counts of filter.json; before it exists, the samples so far counted by verdict."""
    if iteration.filter_result:
        return iteration.filter_result.counts
    stats = sample_stats(iteration, "samples")
    return {"samples": stats.samples, **stats.verdicts} if stats else {}


def _used_columns(columns: dict[str, str], rows: Sequence[dict[str, float]]) -> dict[str, str]:
    """The columns that a table with these rows shows; see RARE_COLUMNS."""
    return {
        key: heading for key, heading in columns.items() if key not in RARE_COLUMNS or any(row.get(key) for row in rows)
    }


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key -> value: texts unchanged, everything else as JSON."""
    if isinstance(value, dict) and value:
        return {
            name: text
            for key, item in value.items()
            for name, text in _flatten(item, f"{prefix}.{key}" if prefix else key).items()
        }
    if not prefix:
        return {}
    return {prefix: value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)}


def _unique_names(runs: Sequence[RunData]) -> list[str]:
    """The runs' directory names, with a number if a name occurs twice."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names, start=1)]


def _static_file(name: str) -> str:
    return importlib.resources.files("star_jax.report").joinpath("static", name).read_text(encoding="utf-8")
