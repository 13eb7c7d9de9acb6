"""The report of runs in every state, in a real browser: each renders, says what it is, and no figure is blank."""

import io
import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from star_jax import report
from tests.report.report_browser_test import browser, opened  # noqa: F401
from tests.report.report_numbers_test import big_run
from tests.report.report_test import make_run, put, remove


def half_done(folder: Path) -> Path:
    remove(make_run(folder), "iter_002/DONE", "iter_002/[!s]*")
    return folder


def failed(folder: Path) -> Path:
    """Nothing was right, so the run ended with an error before it kept anything."""
    remove(make_run(folder), "iter_002", "iter_001/DONE", "iter_001/[!s]*")
    path = folder / "iter_001/samples.jsonl"
    path.write_text(path.read_text().replace('"right"', '"wrong"'))
    put(folder / "iter_001/rationalizations.jsonl", [])
    return folder


def zero_kept(folder: Path) -> Path:
    """As a run leaves it that was told to go on with nothing."""
    failed(folder)
    put(folder / "iter_001/kept.jsonl", [])
    put(folder / "iter_001/filter.json", {"problems": 8, "samples": 8, "right": 0, "kept": 0})
    return folder


def only_config(folder: Path) -> Path:
    remove(make_run(folder), "[!c]*")
    return folder


STATES = {
    "half done": (half_done, "rationalizing comes next"),
    "failed": (failed, "no completion reached a right answer"),
    "zero kept": (zero_kept, "it kept nothing"),
    "one iteration": (lambda folder: make_run(folder, iterations=1), "done: 1 of 1 iterations"),
    "base only": (lambda folder: make_run(folder, iterations=0), "done: the base model is evaluated"),
    "just begun": (only_config, "no evaluation yet"),
    "whole": (big_run, "done: 3 of 3 iterations"),
}


def pixels(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]


def blank(locator) -> bool:
    """Whether a figure as the screen shows it is but axes: fewer than ten pixels have a colour that is no grey."""
    return int((np.ptp(pixels(locator.screenshot()), axis=-1) > 0.15).sum()) < 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
def test_every_state_renders(opened, tmp_path, state, scheme):  # noqa: F811
    make, words = STATES[state]
    page = opened(report.write(make(tmp_path / "run")), scheme=scheme)
    assert words in page.locator(".glance").inner_text()
    plots = page.locator("svg.plot")
    assert (plots.count() > 0) == (state != "just begun")
    empty = [plots.nth(index).get_attribute("aria-label") for index in range(plots.count()) if blank(plots.nth(index))]
    assert empty == (["Examples kept by iteration, by source"] if state == "zero kept" else [])


def test_a_whole_run_has_every_figure(opened, tmp_path):  # noqa: F811
    run = big_run(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as file:
        for stage, step in [("fine_tune", 10), ("fine_tune", 20), ("pretrain", 5), ("pretrain", 10)]:
            file.write(
                json.dumps({"stage": stage, "iteration": int(stage[0] == "f"), "step": step, "loss": 1 / step}) + "\n"
            )
    page = opened(report.write(run))
    words = page.locator("body").inner_text()
    for figure in ("Figure 1.", "Figure 2.", "Figure 3.", "Figure 3b.", "Figure 4."):
        assert figure in words
    assert page.locator("svg.plot").count() == 5 + 7, "the figures, and the signs of health"
    assert not any(blank(page.locator("svg.plot").nth(index)) for index in range(12))
    for heading in ("Health of the draws", "beside the paper's section 4.1", "Time and tokens", "never solved so far"):
        assert heading.lower() in words.lower()


def test_runs_side_by_side_have_a_figure_a_class(opened, tmp_path):  # noqa: F811
    runs = [big_run(tmp_path / "a", 0), big_run(tmp_path / "b", 1), make_run(tmp_path / "c")]
    page = opened(report.write(runs, tmp_path / "all.html"), width=390)
    words = page.locator("body").inner_text()
    assert "a, b: mean and range of 2" in words and "Settings that differ" in words
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    plots = page.locator("svg.plot")
    assert [index for index in range(plots.count()) if blank(plots.nth(index))] == []
