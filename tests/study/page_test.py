"""star_jax.study.page: what the page and the terminal show of a study."""

import csv
import io

import pytest

from star_jax.evaluation import statistics
from star_jax.study import findings, page, tables
from star_jax.study.findings import Findings
from star_jax.study.spec import Place
from tests.support.report_runs import add_evaluation, make_run
from tests.support.studies import small_study
from tests.support.web_browser import BROKEN_WORDS, CUT_TABLES, OPEN_ALL, WIDTHS

ARMS = {"reference": {}, "with_a_rather_long_name-and-more-of-it": {"star": {"rationalize": "none"}}, "failing": {}}
# Arm -> verdicts of the four dev problems after the last iteration, seed by seed: r is right, w is wrong.
VERDICTS = {
    "base": ("wwwr", "wwww"),
    "reference": ("rwww", "rrww"),
    "with_a_rather_long_name-and-more-of-it": ("rrrr", "wrrr"),
}
HOSTILE = "iteration 1 kept nothing <script>alert(1)</script> \u202e"


@pytest.fixture
def found(tmp_path) -> Findings:
    workdir = tmp_path / "study"
    for arm, by_seed in VERDICTS.items():
        for seed, letters in enumerate(by_seed):
            run = make_run(Place(arm, seed).directory(workdir))
            add_evaluation(run / "iter_002", 2, letters)
    failures = {Place("failing", seed): HOSTILE for seed in (0, 1)}
    return findings.read(small_study("base", arms=ARMS, seeds=(0, 1), reference="reference"), workdir, failures)


def rows(table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.csv())))


def test_the_tables_are_those_of_the_verdicts(found):
    arms, differences, by_seed = (rows(make(found)) for make in (tables.arms, tables.differences, tables.runs))
    assert [row["arm"] for row in arms] == ["base", "reference (reference)", *list(ARMS)[1:]]
    means = [row["dev accuracy, mean and range"] for row in arms]
    assert means[:3] == ["0.125", "0.375", "0.875"] and means[3] == ""
    assert [row["runs"] for row in arms] == ["2 of 2"] * 3 + ["0 of 2, 2 failed"]
    (other,) = differences  # of the arm that failed there is none
    assert float(other["difference, 95 % over seeds"]) == 0.5
    assert float(other["these models: uncorrected"]) == statistics.mcnemar(1, 5)
    counts = [(row["both right"], row["only reference"], row["only this run"]) for row in by_seed]
    assert counts == [("", "", "")] * 4 + [("1", "0", "3"), ("1", "1", "2")]


def test_texts_are_text_and_the_same_runs_give_the_same_bytes(found):
    html = page.write(found).read_text()
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html and "\u202e" not in html
    assert html.count("failed:") == 2
    again = findings.read(found.study, found.workdir, found.failures)
    assert page.write(again).read_text() == html


@pytest.mark.parametrize("width", WIDTHS)
def test_no_table_is_cut_and_no_word_broken(open_page, found, width):
    shown = open_page(page.write(found), width)
    shown.evaluate(OPEN_ALL)
    shown.wait_for_timeout(100)  # a hint appears with the next frame
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    assert shown.evaluate(CUT_TABLES) == [] and shown.evaluate(BROKEN_WORDS) == []


def test_a_table_of_the_terminal_has_aligned_columns(found):
    header, *lines = tables.arms(found).text().splitlines()
    assert lines[1].startswith("1  reference (reference)") and "37.5 % (25.0 % to 50.0 %)" in lines[1]
    assert lines[1].index("37.5 %") == header.index("dev accuracy")
    header, line = tables.differences(found).text().splitlines()
    assert line.index("+50.0 points") == header.index("difference") and line.endswith("no difference shown")


def test_a_study_without_a_finished_run_has_a_page(tmp_path):
    empty = page.write(findings.read(small_study("base"), tmp_path, {}))
    assert "0 of 3 runs are finished" in empty.read_text()
    assert [path.name for path in tmp_path.iterdir()] == [page.NAME]
