"""star_jax.report.figures: the SVGs draw the series; the PNG has the page's light colours."""

import io
import re

import matplotlib.image
import numpy as np
import pytest

from star_jax import report
from star_jax.errors import InputError
from star_jax.report.figures import panels, plots, series
from star_jax.report.run_data import RunData, read_run
from star_jax.report.samples import health_series
from tests.support.commands import ROOT
from tests.support.report_runs import make_big_run, make_run

LIGHT = dict(re.findall(r"--([\w-]+): #(\w{6})", (ROOT / "star_jax/report/static/page.css").read_text().split("}")[0]))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunData:
    return read_run(make_big_run(tmp_path_factory.mktemp("numbers")))


def test_figure_1_draws_the_series(tmp_path):
    """The heights in the SVG are the accuracies, on one scale."""
    svg = str(plots.accuracy(read_run(make_run(tmp_path)), "f-").svg)
    heights = {}
    for path, colour in re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*stroke: (var\(--series-\d\)|currentColor)', svg):
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path)]
        if len(numbers) == 6:  # three points; an axis or an interval has two
            heights[colour] = numbers[1::2]
    one, two, mean = heights["var(--series-0)"], heights["var(--series-1)"], heights["currentColor"]
    zero, unit = two[0], two[0] - one[1]  # y goes down
    for line, accuracies in ((one, [0.5, 1, 1]), (two, [0, 0, 0.5]), (mean, [0.25, 0.5, 0.75])):
        assert [(zero - y) / unit for y in line] == pytest.approx(accuracies, abs=1e-5)


def test_the_panels_draw_the_health_series(run):
    """The points of each line, read from the SVG, are the values on one scale."""
    health = health_series(run)
    by_heading = {panel.heading: panel for panel in panels.health_panels(health)}
    assert len(by_heading) == 9
    for heading, plot in panels.health_plots(health, "p-").items():
        lines = by_heading[heading].lines
        paths = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--series-\d\)', str(plot.svg))
        assert len(paths) == len(lines) == len(plot.legend)
        for path, (name, points), key in zip(paths, lines.items(), plot.legend, strict=True):
            heights = [float(y) for y in re.findall(r"-?\d+\.?\d*", path)[1::2]]
            values = [value for _, value in points]
            assert key.label == name and len(heights) == len(values)
            line = np.polyfit(values, heights, 1)
            assert np.allclose(np.polyval(line, values), heights, atol=1e-3) and (line[0] < 0 or len(set(values)) == 1)


def test_the_figure_of_steps_has_a_dot_for_each_pair(run):
    (last,) = [counts for counts in series.step_count_series(run) if counts.iteration == 3]
    plot = plots.solution_steps([last], "s-")
    assert str(plot.svg).count("<use") >= len(last.pairs) or str(plot.svg).count("fill: var(--series-0)") >= 1
    assert f"{100 * last.equal / last.problems:.1f} % equal" in plot.legend[0].note


def pixels(png: bytes) -> np.ndarray:
    """[H, W, 3], 0 to 255."""
    return np.round(255 * matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]).astype(int)


def share(image: np.ndarray, name: str) -> float:
    """Share of the pixels with exactly the colour that page.css gives the variable."""
    return float((image == list(bytes.fromhex(LIGHT[name]))).all(axis=-1).mean())


def test_the_png_has_a_line_for_each_category_and_a_panel_for_each_run(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("with", "without")]
    one, two = pixels(report.figure(runs[0])), pixels(report.figure(runs))
    assert share(one, "page") > 0.8 and share(one, "ink") > 0.001
    assert share(one, "series-0") > 0.001 and share(one, "series-1") > 0.001
    assert share(one, "series-2") == 0, "there are two categories"
    assert two.shape == (one.shape[0], 2 * one.shape[1], 3)
    left, right = np.split(two, 2, axis=1)
    assert share(left, "series-0") > 0.001 and share(right, "series-0") > 0.001


def test_the_name_of_a_category_is_not_read_as_mathematics(tmp_path):
    """Between dollar signs matplotlib would read mathematics, and raise for what it cannot read."""
    run = make_run(tmp_path / "run")
    for path in [*run.glob("problems_dev.jsonl"), *run.glob("iter_*/eval_dev.json")]:
        path.write_text(path.read_text().replace("2 digits", "$\\\\frac$"))
    assert share(pixels(report.figure(run)), "series-1") > 0.001


def test_a_run_without_an_evaluation_is_named(tmp_path):
    run = make_run(tmp_path / "young", iterations=0)
    for path in run.glob("iter_*/eval_dev.json"):
        path.unlink()
    with pytest.raises(InputError, match="young has no evaluation yet"):
        report.figure([make_run(tmp_path / "old"), run])
    with pytest.raises(InputError, match="at least one run"):
        report.figure([])
