"""python -m star_jax.report --index: the runs of a folder, broken ones too."""

import os
import re
import sys
from urllib.parse import unquote_to_bytes

import pytest

from star_jax import report
from star_jax.errors import InputError
from star_jax.report.__main__ import main
from tests.support.pages import words_of
from tests.support.report_runs import make_run, put, remove


@pytest.fixture
def folder(tmp_path):
    """Two finished runs, a started one, a broken one, and folders that are no runs."""
    folder = tmp_path / "all runs"
    for name in ("b/seed 10", "b/seed 9", "broken"):
        make_run(folder / name)
    remove(make_run(folder / "started"), "iter_*", "metrics.jsonl")
    put(folder / "started/checksums.json", {})
    report.write(folder / "b/seed 9")
    (folder / "broken/iter_002/eval_dev.json").write_text('{"accuracy": <script>alert(1)</script>')
    put(folder / "some_model/config.json", {"architectures": ["GPTJForCausalLM"]})
    (folder / "b/seed 9/iter_001/params/iter_000").mkdir(parents=True)  # within a run
    put(folder / "output/iter_002/eval_test.json", {"accuracy": 1.0})  # of star_jax.evaluate --output
    (folder / "link").symlink_to(folder / "b")
    os.utime(folder / "started/config.json", (1e9, 1e9))
    os.utime(folder / "started/checksums.json", (1e9, 1e9))
    os.utime(folder / "started/problems_dev.jsonl", (1e9, 1e9))
    return folder


def rows_of(page: str) -> dict[str, str]:
    """Run -> the words of its row."""
    rows = re.findall(r"<tr[^>]*>(\s*<th scope=\"row\">.*?)</tr>", page, flags=re.DOTALL)
    return {words_of(row.partition("</th>")[0]): words_of(row.partition("</th>")[2]) for row in rows}


def test_a_row_for_each_run_and_a_line_for_a_broken_one(folder):
    path = report.write_index(folder)
    assert path == folder / "index.html"
    page = path.read_text(encoding="utf-8")
    rows = rows_of(page)
    assert list(rows) == ["b/seed 9", "b/seed 10", "broken", "started"]
    assert rows["b/seed 9"].startswith(
        "75.0 % 6.2 % to 93.8 % done: 2 of 2 iterations dev 4 2 25.0 % arithmetic 2 layers"
    )
    assert rows["broken"].startswith("iter_002/eval_dev.json:1: invalid JSON (") and str(folder) not in page
    assert (
        rows["started"].startswith("– no evaluation yet; pretraining the base comes next –")
        and "2001-09-09 01:46" in rows["started"]
    )
    assert "4 runs, 1 of which cannot be read" in words_of(page) and "<script>alert" not in page
    links = re.findall(r'<a href="([^"#]*)"', page)
    assert links == ["b/seed%209/report.html"]


def test_hostile_names_and_settings_are_only_text(tmp_path):
    for name in (b"<b>&'\"", b"not UTF-8 \xff", b"=1+1", b"a#b?c"):
        report.write(make_run(tmp_path / os.fsdecode(name)))
    put(tmp_path / "=1+1/config.json", {"task": {"name": 5}, "model": {"n_layers": "<i>", "d_model": [1]}})
    page = report.write_index(tmp_path).read_text(encoding="utf-8")
    rows = rows_of(page)
    assert list(rows) == ["<b>&'\"", "=1+1", "a#b?c", "not UTF-8 ⟨U+DCFF⟩"] and "<b>" not in page.split("<tbody>")[1]
    assert "5 <i> layers, width [1]" in rows["=1+1"] and "%0D%0A%27%3D1%2B1," in page
    links = re.findall(r'<a href="([^"#]*)"', page)
    assert {os.fsdecode(unquote_to_bytes(link)) for link in links} == {
        f"{p.name}/report.html" for p in tmp_path.glob("*/")
    }


def test_links_are_relative_to_the_page(folder, tmp_path):
    page = report.write_index(folder, tmp_path / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<a href="([^"#]*)"', page) == ["all%20runs/b/seed%209/report.html"]
    assert list(rows_of(report.write_index(folder / "b/seed 9").read_text(encoding="utf-8"))) == ["seed 9"]


def test_an_index_replaces_an_index_only(folder):
    for _ in range(2):
        report.write_index(folder)
    (folder / "index.html").write_text("<!DOCTYPE html><p>mine")
    with pytest.raises(
        InputError, match=r"index\.html: holds something else than an index; delete it or give --output"
    ):
        report.write_index(folder)
    assert (folder / "index.html").read_text() == "<!DOCTYPE html><p>mine"


def test_mistakes_of_the_command(folder, monkeypatch, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    mistakes = {
        f"--index={tmp_path / 'absent'}": "no such directory",
        f"--index={tmp_path / 'empty'}": "has no run directory",
        f"--index={tmp_path} --workdir={tmp_path}": "either --workdir=DIR, once or more, or --index=DIR",
        f"--index={tmp_path} --watch": "--watch follows runs",
    }
    for arguments, reason in mistakes.items():
        monkeypatch.setattr(sys, "argv", ["report", *arguments.split()])
        with pytest.raises(InputError, match=reason):
            main()
    monkeypatch.setattr(sys, "argv", ["report", f"--index={folder}", f"--output={tmp_path / 'all.html'}"])
    main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "all.html") and (tmp_path / "all.html").exists()


@pytest.mark.parametrize("width", [1400, 390])
def test_the_index_fits_and_its_links_open(folder, chromium, width):
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.goto(report.write_index(folder).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.get_by_role("link", name="b/seed 9").click()
    assert page.title() == "STaR run seed 9"
    page.close()
