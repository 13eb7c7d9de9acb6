"""The report of runs in every state, in Chromium: it renders, shows the status, and no figure is blank."""

import io
import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from star_jax import report
from tests.support.report_runs import make_big_run, make_run, put, remove


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
    """A run with selection.min_kept = 0."""
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
    "just started": (only_config, "no evaluation yet"),
    "finished": (make_big_run, "done: 3 of 3 iterations"),
}


def pixels(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]


def blank(locator) -> bool:
    """True if a figure on the screen has nothing but axes: fewer than ten pixels are not grey."""
    return int((np.ptp(pixels(locator.screenshot()), axis=-1) > 0.15).sum()) < 10


@pytest.mark.slow
def test_every_state_renders_in_light_and_dark(open_page, tmp_path):
    wrong = []
    for number, (state, (make, words)) in enumerate(STATES.items()):
        path = report.write(make(tmp_path / str(number)))
        for scheme in ("light", "dark"):
            page = open_page(path, scheme=scheme)
            plots = page.locator("svg.plot").all()
            blanks = [plot.get_attribute("aria-label") for plot in plots if blank(plot)]
            expected = ["Examples kept by iteration, by source"] if state == "zero kept" else []
            has_words = words in page.locator(".glance").inner_text()
            if not has_words or blanks != expected or (len(plots) > 0) != (state != "just started"):
                wrong.append((state, scheme, has_words, blanks, len(plots)))
    assert not wrong


def test_a_whole_run_has_every_figure(open_page, tmp_path):
    run = make_big_run(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as file:
        for stage, step in [("fine_tune", 10), ("fine_tune", 20), ("pretrain", 5), ("pretrain", 10)]:
            file.write(
                json.dumps({"stage": stage, "iteration": int(stage[0] == "f"), "step": step, "loss": 1 / step}) + "\n"
            )
    page = open_page(report.write(run))
    words = page.locator("body").inner_text()
    for figure in (
        "Accuracy.",
        "Examples kept.",
        "Training loss.",
        "Training loss of the base model,",
        "Steps of solutions.",
    ):
        assert figure in words
    assert page.locator("svg.plot").count() == 5 + 9, "five figures and nine panels"
    assert not any(blank(page.locator("svg.plot").nth(index)) for index in range(12))
    for heading in ("Health of sampling", "next to the paper's section 4.1", "Time and tokens", "never solved so far"):
        assert heading.lower() in words.lower()


@pytest.mark.slow
def test_runs_side_by_side_have_a_figure_for_each_category(open_page, tmp_path):
    runs = [make_big_run(tmp_path / "a", 0), make_big_run(tmp_path / "b", 1), make_run(tmp_path / "c")]
    page = open_page(report.write(runs, tmp_path / "all.html"), width=390)
    words = page.locator("body").inner_text()
    assert "a, b: mean and range of 2 runs" in words and "Settings that differ" in words
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    plots = page.locator("svg.plot")
    assert [index for index in range(plots.count()) if blank(plots.nth(index))] == []
