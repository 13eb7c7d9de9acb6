"""star_jax.report.marks.estimates: rates of marks recomputed by hand, and what the page shows of them."""

import json
import re

import numpy as np
import pytest
from scipy import stats

from star_jax.errors import InputError
from star_jax.records import Source
from star_jax.report.marks import audit_file, estimates
from tests.support.marks import extend, items_of, mark
from tests.support.pages import page_of, words_of
from tests.support.report_runs import make_kept_run, put


def test_items_of_another_run_are_noticed_and_not_counted(tmp_path):
    extend(make_kept_run(tmp_path), 12, "all")
    mark(tmp_path, *["s"] * 12)
    kept = tmp_path / "iter_002/kept.jsonl"
    kept.write_text(kept.read_text().replace("steps", "other steps"))
    unknown = [item for item in items_of(tmp_path) if item.iteration == 2]
    with pytest.raises(
        InputError, match=rf"audit\.txt:{unknown[0].line}: {len(unknown)} item\(s\) are not in this run"
    ):
        extend(tmp_path, 20)
    words = words_of(page_of(tmp_path))
    assert f"audit.txt:{unknown[0].line}: {len(unknown)} item(s) are not" in words and "They are left out here" in words
    assert f"{12 - len(unknown)} rationales that iteration 1 kept" in words
    put(kept, [])
    assert f"{len(unknown)} item(s) are not" in words_of(page_of(tmp_path))
    path = tmp_path / "audit.txt"
    path.write_text(re.sub(r"^stratum: \d+", "stratum: 9999", path.read_text(), flags=re.MULTILINE))
    assert "12 item(s) are not" in words_of(page_of(tmp_path))


def test_rates_by_hand(tmp_path):
    """Weights, estimates and intervals recomputed with NumPy and SciPy from the file alone."""
    run = make_kept_run(tmp_path)
    extend(run, 40)
    words = list(audit_file.MARKS)
    rng = np.random.default_rng(0)
    mark(run, *rng.choice(words, 31, p=[0.6, 0.2, 0.1, 0.1]))
    sample = extend(run, 40)
    items = [item for item, _ in sample.items if item.mark]
    rates = estimates.mark_rates([(i, c) for i, c in sample.items if i.mark], sample.sizes)
    cells = sorted({(item.source, item.category) for item in items})
    assert rates.unseen == 0 and [row.label for row in rates.weighted] == ["sampled", "rationalized", "all"]
    for row, counted in zip(rates.weighted, rates.counted, strict=True):
        inside = [cell for cell in cells if row.label in (cell[0], "all")]
        of_cell = [[item for item in items if (item.source, item.category) == cell] for cell in inside]
        sizes = np.array([cell_items[0].stratum for cell_items in of_cell])
        n = np.array([len(cell_items) for cell_items in of_cell])
        weight = np.repeat(sizes / sizes.sum() / n, n)  # of each item
        effective = weight.sum() ** 2 / (weight**2).sum()
        assert row.n == sizes.sum() and counted.n == n.sum()
        for word in words:
            hits = np.array([item.mark == word for cell_items in of_cell for item in cell_items])
            share = row.shares[word]
            p, z2 = weight @ hits, stats.norm.ppf(0.975) ** 2
            ends = np.roots([1 + z2 / effective, -(2 * p + z2 / effective), p**2]).real
            np.testing.assert_allclose([share.share, share.low, share.high], [p, *np.sort(ends)], atol=1e-8)
            raw = counted.shares[word]
            assert (raw.count, raw.share) == (hits.sum(), hits.mean())
            if row.label == "all":
                assert (raw.low, raw.high) == (None, None)
            else:
                interval = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, method="wilson")
                np.testing.assert_allclose([raw.low, raw.high], interval, atol=1e-9)


def test_categories_without_a_mark_are_left_out(tmp_path):
    extend(make_kept_run(tmp_path), 8)  # sampled: 1, 2 and 10 digits; rationalized: 10 digits
    mark(tmp_path, "s", "l")  # one of each source: 40 + 25 of 86 kept
    words = words_of(page_of(tmp_path))
    assert "leave out 21 kept rationales, of iterations, sources and categories without a mark" in words
    assert "marked 2 of them, 6 are not marked yet" in words and "all 65 kept" in words


def test_the_page_shows_counts_rates_and_what_is_not_sound(tmp_path):
    sample = extend(make_kept_run(tmp_path, "<b>steps</b>"), 4)
    marks = ["s"] * 4
    marks[[cell.source for _, cell in sample.items].index(Source.RATIONALIZED)] = "w <i>red</i> herring"
    mark(tmp_path, *marks)
    text = page_of(tmp_path)
    words = words_of(text)
    assert "4 rationales that iteration 2 kept" in words and "Marked as not sound (1)" in words
    assert "sampled 2 marked 2 (100.0 %) 34.2 % to 100.0 %" in words
    assert "rationalized 2 marked 1 (50.0 %) 9.5 % to 90.5 %" in words and "all 4 marked 3 (75.0 %) 1 (25.0 %)" in words
    assert "<i>red</i> herring" in words and "<i>" not in text and "<b>steps" not in text


def test_steps_checked_by_machine(tmp_path):
    words = words_of(page_of(make_kept_run(tmp_path)))
    rows = {}
    for number in (1, 2):
        checks = {}
        for name in ("samples", "rationalizations"):
            for line in (tmp_path / f"iter_00{number}/{name}.jsonl").open():
                checks.setdefault(name, []).append(json.loads(line)["consistent"])
        rows[number] = [[values.count(steps) for steps in (True, False, None)] for values in checks.values()]
        cells = " ".join(
            f"{sum(row)} " + " ".join(f"{count} {100 * count / sum(row):.1f} %" for count in row)
            for row in rows[number]
        )
        assert f"{number} {cells}" in words
    for path in tmp_path.glob("iter_*/*s.jsonl"):
        path.unlink()
    assert "Steps checked by machine" not in words_of(page_of(tmp_path))


def test_pages_without_marks(tmp_path):
    hint = "Write a sample of them to mark: python -m star_jax.audit --workdir=DIR --n=50"
    make_kept_run(tmp_path)
    assert hint in words_of(page_of(tmp_path))
    extend(tmp_path, 4)
    words = words_of(page_of(tmp_path))
    assert hint in words and "marked 0 of them, 4 are not marked yet" in words and "As marked" not in words
    for path in tmp_path.glob("iter_*/kept.jsonl"):
        path.unlink()
    assert "No iteration has kept rationales yet" in words_of(page_of(tmp_path))
