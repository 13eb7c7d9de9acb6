"""star_jax.report.tables.table: what a table's CSV file holds."""

import csv
import io
import json
import re
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from star_jax.evaluation.results import Rate
from star_jax.report.tables.table import COUNT, DURATION, RATE, TEXT, Column, Row, Table, file_name
from star_jax.terminal import visible
from tests.support.pages import page_of
from tests.support.report_runs import make_big_run, make_run, put


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def csv_files(page: str) -> dict[str, list[list[str]]]:
    """File name -> its rows, for all CSV links of a page."""
    links = re.findall(r'download="([^"]*)" href="data:text/csv;charset=utf-8,([^"]*)"', page)
    return {name: rows_of(unquote(content)) for name, content in links}


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_texts_survive_quoting_and_are_never_formulas(texts):
    columns = tuple(Column(f"column {index}", TEXT) for index in range(len(texts)))
    (row,) = rows_of(Table("t", "t", columns, (Row(tuple(texts)),)).csv())[1:] or [[]]
    for text, cell in zip(texts, row, strict=True):
        assert cell in (visible(text), "'" + visible(text))
        assert not re.match(r"\s*[=+\-@]|[\t\r\n]", cell) or re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", cell, re.I)


def test_formulas_get_an_apostrophe_and_numbers_do_not():
    texts = {
        "=1+1": "'=1+1",
        "+cmd|' /C calc'!A0": "'+cmd|' /C calc'!A0",
        "@SUM(A1)": "'@SUM(A1)",
        "-2+3": "'-2+3",
        "  =1": "'  =1",
        "\t=1": "'\t=1",
        "-1e-06": "-1e-06",
        "-3": "-3",
        'a "b", c\nd': 'a "b", c\nd',
    }
    table = Table("t", "t", (Column("=heading", TEXT),), tuple(Row((text,)) for text in texts))
    assert rows_of(table.csv()) == [["'=heading"], *([cell] for cell in texts.values())]


def test_numbers_are_not_rounded():
    columns = (Column("run", TEXT), Column("n"), Column("accuracy", RATE), Column("time", DURATION), Column("x", COUNT))
    row = Row(("a", 12_345, Rate(7, 1 / 3, 0.1, None), 3725.25, float("nan")))
    heading, cells = rows_of(Table("t", "t", columns, (row,)).csv())
    assert heading == ["run", "n", "accuracy", "accuracy: 95 % from", "accuracy: 95 % to", "time in seconds", "x"]
    assert cells == ["a", "12345", str(1 / 3), "0.1", "", "3725.25", ""]


def test_a_message_takes_the_place_of_the_other_cells():
    table = Table("t", "t", (Column("run", TEXT), Column("a", RATE), Column("n")), (Row(("x",), message="=broken"),))
    assert rows_of(table.csv())[1] == ["x", "'=broken", "", "", ""]


def test_every_table_of_a_page_can_be_saved(tmp_path):
    page = page_of(make_big_run(tmp_path / "run 1"))
    files = csv_files(page)
    assert len(files) == len(re.findall('<table class="(?:numbers|settings)', page)) >= 9
    assert all(name.startswith("run_1-") and len({len(row) for row in rows}) == 1 for name, rows in files.items())
    result = json.loads((tmp_path / "run 1/iter_003/eval_dev.json").read_text())
    heading, *rows = files["run_1-evaluation_dev.csv"]
    last = dict(zip(heading, rows[-1], strict=True))
    assert float(last["accuracy, all problems, 95 % interval"]) == result["accuracy"]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"] and sum(int(row[1]) for row in rows) == 1  # the best
    settings = dict(files["run_1-settings.csv"][1:])
    assert settings == {"seed": "0", "task.name": "arithmetic", "star.iterations": "3"}
    both = csv_files(page_of(make_run(tmp_path / "a"), make_run(tmp_path / "b")))
    assert {"comparison-runs.csv", "comparison-paired_tests.csv", "a-evaluation_dev.csv", "b-fine_tuning.csv"} <= set(
        both
    )


def test_a_hostile_setting_is_no_formula_in_the_page(tmp_path):
    config = make_run(tmp_path) / "config.json"
    put(config, json.loads(config.read_text()) | {"note": '=HYPERLINK("http://x","y")', "=1": "</a><script>"})
    page = page_of(tmp_path)
    rows = next(rows for name, rows in csv_files(page).items() if name.endswith("-settings.csv"))
    assert ["note", '\'=HYPERLINK("http://x","y")'] in rows and ["'=1", "</a><script>"] in rows


def test_file_names_are_plain():
    assert file_name('../a b/"<c>', "x.y") == "a_b_c_-x.y" and file_name("", "runs") == "runs"
    assert len(file_name("é" * 500, "a" * 500)) <= 100
