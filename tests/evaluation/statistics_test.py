"""star_jax.evaluation.statistics against SciPy, and against what the formulas say."""

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from star_jax.evaluation import accuracy, statistics


def test_wilson_solves_its_quadratic():
    """The interval's ends are the p with (k/n - p)^2 = z^2 p (1 - p) / n."""
    for k, n in [(k, size) for size in (1, 2, 7, 100, 1221) for k in {0, 1, size // 3, size // 2, size - 1, size}]:
        square, share = statistics.Z95**2 / n, k / n
        ends = sorted(np.roots([1 + square, -(2 * share + square), share**2]).real)
        np.testing.assert_allclose(statistics.wilson(k, n), ends, atol=1e-9, err_msg=f"{k} of {n}")
        low, high = statistics.wilson(k, n)
        assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1, (k, n)


def test_intervals_of_earlier_versions_have_not_changed():
    """Reports print them; the last row is an effective sample size."""
    rows = [
        (0, 1, 0.0, 0.7934506856227626),
        (1, 1, 0.20654931437723745, 1.0),
        (0, 10, 0.0, 0.2775327998628892),
        (3, 7, 0.15821985525146975, 0.7495416354723428),
        (253, 810, 0.2813785348266855, 0.34508433861734567),
        (810, 810, 0.9952798437839963, 1.0),
        (612, 1221, 0.47322343501138125, 0.5292258615717769),
        (141, 1319, 0.09135095833259708, 0.12473046012817611),
        (11.5, 23.25, 0.3071163337740241, 0.6836556655614627),
    ]
    wrong = [row for row in rows if np.max(np.abs(np.subtract(statistics.wilson(*row[:2]), row[2:]))) > 1e-12]
    assert not wrong


def test_intervals_are_scipy_s_on_100_random_tables():
    rng = np.random.default_rng(0)
    for n in rng.integers(1, 10_000, 100):
        k = int(rng.integers(0, n + 1))
        expected = stats.binomtest(k, int(n)).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose(statistics.wilson(k, int(n)), expected, atol=1e-12)


def test_a_stratified_share_of_equal_weights_is_wilson_s():
    strata = [statistics.Stratum(40, 8, hits) for hits in (8, 3, 0)]
    np.testing.assert_allclose(statistics.stratified(strata), (11 / 24, *statistics.wilson(11, 24)), atol=1e-12)
    one = statistics.Stratum(9, 4, 1)
    np.testing.assert_allclose(statistics.stratified([one]), (0.25, *statistics.wilson(1, 4)), atol=1e-12)


def test_a_stratified_share_is_the_mean_of_weighted_items():
    """Kish's effective sample size from the items' own weights: (sum of w)^2 / sum of w^2."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        size = rng.integers(1, 1000, rng.integers(1, 12))
        n = rng.integers(1, np.minimum(size, 9) + 1)
        hits = rng.integers(0, n + 1)
        weights = np.repeat(size / n, n)
        right = np.concatenate([np.arange(m) < k for m, k in zip(n, hits, strict=True)])
        effective = weights.sum() ** 2 / (weights**2).sum()
        share = np.average(right, weights=weights)
        strata = [statistics.Stratum(*map(int, values)) for values in zip(size, n, hits, strict=True)]
        expected = (share, *statistics.wilson(share * effective, effective))
        np.testing.assert_allclose(statistics.stratified(strata), expected, atol=1e-12)
        assert 1 <= effective <= n.sum() + 1e-9


def test_a_stratified_interval_covers_the_truth_as_often_as_stated():
    """Sampled with replacement, which is harder than what is done; 93 % leaves room for the simulation's noise."""
    sizes = [500, 200, 100, 50, 50, 40, 30, 10, 10, 10]
    rows = [
        ([10] * 10, 5, [0.9] * 10),
        (sizes, 5, [0.9] * 10),
        (sizes, 5, [0.5, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ([900, 100], 25, [0.97, 0.5]),
        ([50, 30, 10] * 10, 1, [0.8, 0.95, 0.6] * 10),
    ]
    coverage = {row: _coverage(*values) for row, values in enumerate(rows)}
    assert not {row: share for row, share in coverage.items() if share < 0.93}


def _coverage(sizes, n, rates) -> float:
    rng = np.random.default_rng(0)
    truth, covered = np.average(rates, weights=sizes), 0
    for hits in rng.binomial(n, rates, (2000, len(rates))):
        strata = [statistics.Stratum(size, n, int(k)) for size, k in zip(sizes, hits, strict=True)]
        _, low, high = statistics.stratified(strata)
        covered += low <= truth <= high
    return covered / 2000


def test_a_mean_of_zeros_and_ones_has_wilson_s_interval():
    for n in (1, 2, 7, 100):
        for right in {0, 1, n // 2, n}:
            values = [1.0] * right + [0.0] * (n - right)
            expected = (right / n, *statistics.wilson(right, n))
            np.testing.assert_allclose(statistics.bounded_mean(values, 1e9), expected, atol=1e-12)


def test_a_bounded_mean_has_no_interval_without_width():
    for value in (0.0, 0.25, 1.0):
        for n in (1, 10, 1000):
            share, low, high = statistics.bounded_mean([value] * n, 16 * n)
            assert share == value and low <= value + 1e-12 and value - 1e-12 <= high and high - low > 1 / (4 * n)


def test_intervals_of_pass_at_k_cover_the_truth_as_often_as_stated():
    """Problems of random difficulty, K samples each; also where nearly none or nearly all are solved."""
    rng = np.random.default_rng(0)
    rows = [(n, samples, k, shape) for n in (20, 200) for samples, k in ((8, 1), (8, 4), (64, 4))
            for shape in ((0.7, 0.7), (0.05, 5.0), (5.0, 0.1), (50.0, 50.0))]  # fmt: skip
    low = {row: share for row in rows if (share := _pass_at_k_coverage(rng, *row)) < 0.93}
    assert not low


def _pass_at_k_coverage(rng, n, samples, k, shape) -> float:
    """The truth is the mean over all problems that might have been drawn, E[1 - (1 - p)^k]."""
    a, b = shape
    truth = 1 - math.prod((b + j) / (a + b + j) for j in range(k))
    table = np.array([accuracy.pass_at(k, samples, right) for right in range(samples + 1)])
    covered = 0
    for _ in range(1000):
        right = rng.binomial(samples, rng.beta(*shape, n))
        _, low, high = statistics.bounded_mean(table[right].tolist(), n * samples)
        covered += low <= truth <= high
    return covered / 1000


def test_the_paired_test_is_the_sum_of_two_binomial_tails():
    """In exact integers, on 30 random tables: McNemar's test is the binomial test of what one of the two solves."""
    rng = np.random.default_rng(1)
    for size in np.exp(rng.uniform(0, 8, 30)).astype(int):
        first, second = (int(x) for x in rng.multinomial(size, [0.45, 0.55]))
        n = first + second
        tail = sum(math.comb(n, k) for k in range(min(first, second) + 1))
        expected = min(1.0, float(Fraction(2 * tail, 2**n)))
        assert statistics.mcnemar(first, second) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert statistics.mcnemar(second, first) == statistics.mcnemar(first, second)


def test_p_values_of_earlier_versions_have_not_changed():
    """Reports print them. The first six are by hand; equal counts, none, and a tail below the smallest float."""
    rows = [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (0, 1, 1.0),
        (0, 5, 0.0625),
        (1, 5, 0.21875),
        (0, 6, 0.03125),
        (12, 31, 0.005401572654591291),
        (40, 55, 0.1505180638902296),
        (120, 180, 0.0006342200069283569),
        (210, 301, 6.576260248477412e-05),
        (500, 610, 0.0010602615504486039),
        (5, 250, 3.044184759094947e-67),
        (0, 5000, 0.0),
        (5000, 5000, 1.0),
    ]
    wrong = [row for row in rows if abs(statistics.mcnemar(*row[:2]) - row[2]) > 1e-12]
    assert not wrong


def test_scipy_is_imported_by_the_paired_test_only():
    """`import scipy.stats` takes most of a second, which `star_jax.main` and the report need not pay."""
    code = (
        "import sys; from star_jax.evaluation import statistics as s; s.wilson(1, 2); assert 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_models_are_compared_on_the_problems_both_were_asked():
    rng = np.random.default_rng(2)
    first = {f"p{i}": bool(rng.random() < 0.5) for i in range(200)}
    second = {f"p{i}": bool(rng.random() < 0.6) for i in range(100, 300)}
    found = statistics.paired(first, second)
    table = np.array([[first[name], second[name]] for name in (f"p{i}" for i in range(100, 200))])
    assert (found.problems, found.both) == (100, int((table[:, 0] & table[:, 1]).sum()))
    assert (found.first, found.second) == (
        int((table[:, 0] > table[:, 1]).sum()),
        int((table[:, 1] > table[:, 0]).sum()),
    )
    assert found.gain == pytest.approx(table[:, 1].mean() - table[:, 0].mean())
    assert found.p == statistics.mcnemar(found.first, found.second)
    assert statistics.paired(first, {"x": True}) is None
