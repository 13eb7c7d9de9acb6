"""star_jax.evaluation.statistics against SciPy, and against what the formulas say."""

import numpy as np
import pytest
from scipy import stats

from star_jax.evaluation import statistics


@pytest.mark.parametrize("n", [1, 2, 7, 100, 1221])
def test_wilson_solves_its_quadratic(n):
    """The interval's ends are the p with (k/n - p)^2 = z^2 p (1 - p) / n."""
    for k in {0, 1, n // 3, n // 2, n - 1, n}:
        square, share = statistics.Z95**2 / n, k / n
        ends = sorted(np.roots([1 + square, -(2 * share + square), share**2]).real)
        np.testing.assert_allclose(statistics.wilson(k, n), ends, atol=1e-9)
        low, high = statistics.wilson(k, n)
        assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1


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


@pytest.mark.parametrize(
    ("sizes", "n", "rates"),
    [
        ([10] * 10, 5, [0.9] * 10),
        ([500, 200, 100, 50, 50, 40, 30, 10, 10, 10], 5, [0.9] * 10),
        ([500, 200, 100, 50, 50, 40, 30, 10, 10, 10], 5, [0.5, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ([900, 100], 25, [0.97, 0.5]),
        ([50, 30, 10] * 10, 1, [0.8, 0.95, 0.6] * 10),
    ],
)
def test_a_stratified_interval_holds_the_truth_as_often_as_it_says(sizes, n, rates):
    """Sampled with replacement, which is harder than what is done; 93 % leaves room for the simulation's noise."""
    rng = np.random.default_rng(0)
    truth, held = np.average(rates, weights=sizes), 0
    for hits in rng.binomial(n, rates, (2000, len(rates))):
        strata = [statistics.Stratum(size, n, int(k)) for size, k in zip(sizes, hits, strict=True)]
        _, low, high = statistics.stratified(strata)
        held += low <= truth <= high
    assert held / 2000 >= 0.93


def test_the_paired_test_is_scipy_s_on_100_random_tables():
    """McNemar's exact test is the binomial test of the problems that one of the two solves."""
    rng = np.random.default_rng(1)
    for size in np.exp(rng.uniform(0, 8, 100)).astype(int):
        first, second = (int(x) for x in rng.multinomial(size, [0.45, 0.55]))
        expected = stats.binomtest(first, first + second).pvalue
        assert statistics.mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
        assert statistics.mcnemar(second, first) == statistics.mcnemar(first, second)


@pytest.mark.parametrize(
    ("first", "second", "p"), [(0, 0, 1.0), (3, 3, 1.0), (0, 1, 1.0), (0, 5, 0.0625), (1, 5, 0.21875), (0, 6, 0.03125)]
)
def test_the_paired_test_by_hand(first, second, p):
    assert statistics.mcnemar(first, second) == p


def test_a_thousand_against_none_is_no_error():
    assert statistics.mcnemar(0, 5000) == 0.0 and statistics.mcnemar(5000, 5000) == 1.0


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
