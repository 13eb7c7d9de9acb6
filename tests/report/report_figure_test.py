"""star_jax.report.figure: the page's first figure as a picture of its own, with the page's colours."""

import io
import re

import matplotlib.image
import numpy as np
import pytest

from star_jax import report
from star_jax.errors import InputError
from tests.report.report_test import ROOT, make_run

LIGHT = dict(re.findall(r"--([\w-]+): #(\w{6})", (ROOT / "star_jax/report/static/page.css").read_text().split("}")[0]))


def pixels(png: bytes) -> np.ndarray:
    """[H, W, 3], 0 to 255."""
    return np.round(255 * matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]).astype(int)


def share(image: np.ndarray, name: str) -> float:
    """How much of the picture has exactly the colour that page.css gives the variable."""
    return float((image == list(bytes.fromhex(LIGHT[name]))).all(axis=-1).mean())


def test_it_has_a_line_a_class_in_the_pages_light_colours(tmp_path):
    image = pixels(report.figure(make_run(tmp_path / "run")))
    assert share(image, "page") > 0.8 and share(image, "ink") > 0.001
    assert share(image, "series-0") > 0.001 and share(image, "series-1") > 0.001
    assert share(image, "series-2") == 0, "there are two classes"


def test_several_runs_stand_side_by_side(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("with", "without")]
    one, two = pixels(report.figure(runs[0])), pixels(report.figure(runs))
    assert two.shape == (one.shape[0], 2 * one.shape[1], 3)
    left, right = np.split(two, 2, axis=1)
    assert share(left, "series-0") > 0.001 and share(right, "series-0") > 0.001


def test_a_classs_name_is_drawn_as_it_stands(tmp_path):
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
