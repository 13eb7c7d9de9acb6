"""Renders runs as one HTML page. Every text of a run is hostile until it has passed `terminal.visible`."""

import base64
import datetime
import functools
import hashlib
import importlib.resources
import re
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from star_jax.errors import InputError
from star_jax.records import LABELS, Verdict
from star_jax.report import formatting
from star_jax.report.browser import blocks, examples
from star_jax.report.figures import panels, plots, series
from star_jax.report.marks.estimates import Audit, read_audit
from star_jax.report.run_data import RunData, setting
from star_jax.report.run_status import notices, run_status
from star_jax.report.samples import SOURCES, Health, health_series
from star_jax.report.tables import comparison, paper, run_tables, several_runs
from star_jax.report.tables.headline import has_test_split, headline
from star_jax.report.tables.table import file_name
from star_jax.terminal import visible

SCRIPTS = (
    "blocks.js",
    "links.js",
    "filters.js",
    "diff.js",
    "cells.js",
    "browser.js",
    "keyboard.js",
    "tables.js",
    "export.js",
)
TEMPLATE_FILTERS = (
    "percent",
    "count",
    "duration",
    "p_value",
    "clipped",
    "breakable",
)  # of `formatting`, for the templates
# Keys of config.json's `model` that determine the model's size; the others are among the settings.
MODEL_SIZES = ("n_layers", "d_model", "n_heads", "d_mlp", "vocab_size")
# Parts of a run: anchor, title.
PARTS = (
    ("figures", "Figures"),
    ("health", "Health of sampling"),
    ("counts", "Counts"),
    ("audit", "Audit of the reasoning"),
    ("rationales", "Rationales"),
    ("examples", "What the model was trained on"),
)


def render(runs: Sequence[RunData], page_blocks: blocks.PageBlocks, folder: str, reload: int = 0) -> str:
    """The page of one run, or of several side by side.

    Args:
      page_blocks: of the same runs.
      folder: the name of the folder with the blocks that are not in the page.
      reload: seconds after which the open page reloads itself; 0: never.

    Raises InputError for a broken file.
    """
    names = _unique_names(runs)
    groups, of_paper = series.run_groups(names, runs), paper.table(runs, names)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            runs=[
                _run_values(run, name, f"r{index}-") | blocks.template_values(page_blocks, index, folder)
                for index, (run, name) in enumerate(zip(runs, names, strict=True))
            ],
            overlay=plots.accuracy_overlay(groups, "all-") if len(runs) > 1 else None,
            overlays=plots.category_overlays(groups, "class-") if len(runs) > 1 else {},
            paper=several_runs.paper_rows(of_paper) if of_paper else None,
            reload=reload,
            of_runs=several_runs.runs_table(runs, names, [f"#r{index}-run" for index in range(len(runs))]),
            of_pairs=several_runs.paired_table(runs, names),
            settings=run_tables.settings(runs, names, [formatting.flatten(run.config) for run in runs]),
            written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            style=Markup(static_file("page.css") + static_file("browser.css")),
            **script_values(SCRIPTS),
            has_folder=bool(page_blocks.in_folder),
            labels=_script_labels(),
        )
    )


def accuracy_png(runs: Sequence[RunData]) -> bytes:
    """The page's figure of accuracy as a PNG in its light colours, one panel for each run. Raises InputError."""
    if without := [run.name for run in runs if not plots.has_accuracy(run)]:
        raise InputError(f"report: {without[0]} has no evaluation yet, so there is no accuracy to draw")
    first_rule = static_file("page.css").partition("}")[0]  # :root, the light one
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", first_rule))
    return plots.accuracy_png(dict(zip(_unique_names(runs), runs, strict=True)), colours)


@functools.cache  # a run writes its page after every iteration, and compiling a template takes 0.1 s
def environment() -> jinja2.Environment:
    """The templates with their filters; every value is escaped and visible."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("star_jax.report", "templates"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(formatting, name) for name in TEMPLATE_FILTERS}
    environment.filters |= {"file_name": lambda parts: file_name(*parts)}
    environment.filters |= {"label": lambda value: LABELS.get(value, value)}
    return environment


def _script_labels() -> Markup:
    """JSON of the labels that the scripts show."""
    return formatting.script_json(
        {
            "verdicts": {verdict: LABELS[verdict] for verdict in Verdict},
            "sources": {source: LABELS[source] for source in SOURCES},
            "wrongSteps": run_tables.WRONG_STEPS,
        }
    )


def _run_values(run: RunData, name: str, prefix: str) -> dict[str, Any]:
    """What the template needs of a run, except its blocks."""
    losses, health, audit = series.loss_series(run), health_series(run), read_audit(run)
    against_base = comparison.with_base(run)
    fine_tune_losses = [curve for curve in losses if curve.stage == series.FINE_TUNE]
    base_losses = [curve for curve in losses if curve.stage != series.FINE_TUNE]
    base_and_best = [steps for steps in series.step_count_series(run) if steps.iteration in (0, run.best)]
    return {
        "run": run,
        "name": name,
        "prefix": prefix,
        "task": setting(run.config, "task.name"),
        "is_addition": setting(run.config, "task.name") == "arithmetic",
        "model": [
            (key, text) for key, text in formatting.flatten(run.config.get("model")).items() if key in MODEL_SIZES
        ],
        "status": run_status(run),
        "headline": headline(run),
        "has_test_split": has_test_split(run.config),
        "against_base": against_base,
        "against_base_in": blocks.evaluation_collection(run, f"eval_{against_base.split}") if against_base else "",
        "seconds": series.stage_seconds(run),
        "notices": notices(run),
        "accuracy": plots.accuracy(run, f"{prefix}accuracy-"),
        "kept": plots.kept(run, f"{prefix}kept-"),
        "loss": plots.loss(fine_tune_losses, f"{prefix}loss-", "Training loss by step"),
        "base_loss": plots.loss(base_losses, f"{prefix}base-loss-", "Training loss of the base model by step"),
        "starts_differ": len(set(series.first_trained_on(run).values())) > 1,
        "steps": plots.solution_steps(base_and_best, f"{prefix}steps-"),
        "health": panels.health_plots(health, f"{prefix}health-"),
        "parts": [part for part in PARTS if part[0] != "health" or health],
        "tables": _tables(run, health, audit),
        "examples": examples.training_examples(run),
        "audit": audit,
    }


def _tables(run: RunData, health: Sequence[Health], audit: Audit) -> dict[str, Any]:
    """The run's tables by name; None for one that the page leaves out."""
    return {
        "evaluations": run_tables.evaluations(run, headline(run)),
        "several_samples": run_tables.with_several_samples(run),
        "by_category": run_tables.by_category(run),
        "train_problems": run_tables.train_problems(run),
        "fine_tuning": run_tables.fine_tuning(run),
        "problems_used": run_tables.problems_used(health),
        "effort": run_tables.effort(run),
        "paper_settings": run_tables.paper_settings(run),
        "marks": run_tables.marks(audit),
        "step_checks": run_tables.step_checks(audit),
    }


def _unique_names(runs: Sequence[RunData]) -> list[str]:
    """The runs' directory names, with a number if a name occurs twice."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names, start=1)]


def script_values(names: Sequence[str]) -> dict[str, str]:
    """What a template needs of files in static/: `script`, and `script_hash` for the page's content policy."""
    script = "".join(static_file(name) for name in names)
    return {
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def static_file(name: str) -> str:
    """The text of a file in static/."""
    return importlib.resources.files("star_jax.report").joinpath("static", name).read_text(encoding="utf-8")
