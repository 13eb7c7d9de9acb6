"""study.html, from the runs' files alone: the same runs give the same bytes."""

from pathlib import Path

from markupsafe import Markup

from star_jax.report.figures import plots
from star_jax.report.figures.plots import SeedDots
from star_jax.report.figures.series import RunGroup
from star_jax.report.page import environment, script_values, static_file
from star_jax.runs.atomic_files import atomic_write
from star_jax.study import tables
from star_jax.study.findings import Findings

NAME = "study.html"


def write(findings: Findings) -> Path:
    """Writes the page into the study's directory, and returns its path. Raises InputError if it cannot be written."""
    path = findings.workdir / NAME
    atomic_write(path, _render(findings))
    return path


def _render(findings: Findings) -> str:
    study, finished = findings.study, findings.finished_arms
    curves = [RunGroup((name,), tuple(o.run for o in by_seed.values())) for name, by_seed in finished.items()]
    return (
        environment()
        .get_template("study.html.j2")
        .render(
            name=findings.workdir.resolve().name or "study",
            study=study,
            planned=len(study.arms) * len(study.seeds),
            finished=sum(len(by_seed) for by_seed in finished.values()),
            failures=[(str(place), message) for place, message in findings.failures.items()],
            dots=plots.seed_dots(_dots(findings), "dots-") if finished else None,
            curves=plots.accuracy_overlay(curves, "curves-") if study.outcome == "last" else None,
            findings=[tables.arms(findings), tables.differences(findings)],
            details=[tables.runs(findings), tables.options(study)],
            style=Markup(static_file("page.css")),
            **script_values(("tables.js", "export.js")),
        )
    )


def _dots(findings: Findings) -> list[SeedDots]:
    """One row for the base and each arm with a finished run, numbered as in the table."""
    return [
        SeedDots(n, name, tuple(o.accuracy for o in by_seed.values()), name == findings.study.reference)
        for n, (name, by_seed) in enumerate(findings.outcomes.items())
        if by_seed
    ]
