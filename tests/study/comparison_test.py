"""star_jax.study.comparison against SciPy, brute force and simulated studies."""

import itertools

import numpy as np
import pytest
from scipy import stats

from star_jax.evaluation import statistics
from star_jax.study import comparison
from star_jax.study.comparison import LEVEL
from star_jax.study.outcomes import Outcome

# Shares of the problems that an arm solves differ by seed; a logit of 0.3 at an accuracy of 50 % is 7 points.
PROBLEMS, SEEDS, NOISE = 400, 5, 0.3


def outcome(solved: np.ndarray, sampled: int = 1000, trained: int = 1000) -> Outcome:
    verdicts = {(str(n), ""): bool(right) for n, right in enumerate(solved)}
    return Outcome(None, 1, verdicts, sampled, trained)


def arm(solved_SP: np.ndarray, **tokens) -> dict[int, Outcome]:
    return {seed: outcome(solved_P, **tokens) for seed, solved_P in enumerate(solved_SP)}


def null_study(rng: np.random.Generator, arms: int, noise: float) -> dict[str, dict[int, Outcome]]:
    """Arms of one method. Problems have their difficulty; with `noise` every run has an ability of its own."""
    difficulty_P = rng.normal(0, 1.5, PROBLEMS)
    study = {}
    for n in range(arms):
        ability_S1 = rng.normal(0, noise, (SEEDS, 1)) if noise else np.zeros((SEEDS, 1))
        chance_SP = 1 / (1 + np.exp(difficulty_P - ability_S1))
        study[str(n)] = arm(rng.random((SEEDS, PROBLEMS)) < chance_SP)
    return study


def test_holm_is_the_closed_test_of_bonferroni():
    """An adjusted p is the largest, over all sets of hypotheses with this one, of |set| times the set's smallest p."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values = rng.choice([0.001, 0.01, 0.02, 0.03, 0.2, 0.7], rng.integers(1, 7)).tolist()
        sets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(range(len(p_values)), size)]
        expected = [
            max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s) for i in range(len(p_values))
        ]
        np.testing.assert_allclose(statistics.holm(p_values), expected, rtol=1e-12)
    assert statistics.holm([]) == []


def test_the_permutation_test_is_scipy_s_over_all_permutations():
    """SciPy flips each pair of labels, here of all seeds at once, and counts sums as extreme as the one seen."""
    rng = np.random.default_rng(1)
    for _ in range(30):
        first_SP, second_SP = rng.random((2, 3, 4)) < rng.uniform(0.2, 0.8, (2, 1, 1))
        pairs = [
            statistics.paired(dict(enumerate(a)), dict(enumerate(b)))
            for a, b in zip(first_SP.tolist(), second_SP.tolist(), strict=True)
        ]
        expected = stats.permutation_test(
            (first_SP.ravel().astype(int), second_SP.ravel().astype(int)),
            lambda a, b, axis: np.sum(b, axis=axis) - np.sum(a, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=np.inf,
        )
        assert comparison.stratified_permutation(pairs) == pytest.approx(min(1.0, expected.pvalue), abs=1e-9)


def test_the_interval_over_seeds_is_scipy_s():
    rng = np.random.default_rng(2)
    for n in (2, 3, 5, 9):
        gains = rng.normal(0.02, 0.05, n).tolist()
        expected = stats.ttest_1samp(gains, 0)
        interval = expected.confidence_interval(0.95)
        found = comparison.over_seeds(gains)
        np.testing.assert_allclose(
            (found.mean, found.low, found.high, found.p),
            (np.mean(gains), interval.low, interval.high, expected.pvalue),
            rtol=1e-9,
        )
    assert comparison.over_seeds([0.1]) is None


def test_two_arms_that_are_the_same_differ_by_0_with_p_1():
    solved_SP = np.random.default_rng(3).random((SEEDS, PROBLEMS)) < 0.5
    (found,) = comparison.differences({"a": arm(solved_SP), "b": arm(solved_SP)}, "a", SEEDS)
    assert (found.gain, found.p_models, found.p_models_corrected, found.p_method_corrected) == (0, 1, 1, 1)
    assert (found.over_seeds.low, found.over_seeds.high, found.sampled, found.trained) == (0, 0, 1, 1)
    assert found.reading == "no difference shown"


@pytest.mark.parametrize("noise", [0.0, NOISE])
def test_of_200_studies_without_an_effect_few_claim_one(noise):
    """Models that differ by chance alone are told from a method: with noise most models do differ."""
    rng = np.random.default_rng(4)
    p_values, claims, models = [], 0, 0
    for _ in range(200):
        found = comparison.differences(null_study(rng, 4, noise), "0", SEEDS)
        p_values += [each.p_models_corrected for each in found]
        claims += any(each.reading in ("better", "worse") for each in found)
        models += any(each.p_models_corrected < LEVEL for each in found)
    assert claims <= 0.08 * 200
    if noise:
        assert models > 100
    else:
        assert models <= 0.08 * 200
        assert np.mean(np.array(p_values) < LEVEL) <= 0.08


def test_an_effect_is_found_and_read_with_its_cost():
    rng = np.random.default_rng(5)
    worse_SP, better_SP = rng.random((SEEDS, PROBLEMS)) < 0.4, rng.random((SEEDS, PROBLEMS)) < 0.6
    for tokens, up, down in [
        ({}, "better", "worse"),
        (dict(trained=1100), "better, at more tokens", "worse"),
        (dict(sampled=2000, trained=900), "better, at more tokens", "worse, at fewer tokens"),
        (dict(sampled=900), "better", "worse, at fewer tokens"),
    ]:
        for ours_SP, theirs_SP, reading in ((better_SP, worse_SP, up), (worse_SP, better_SP, down)):
            arms = {"reference": arm(theirs_SP), "other": arm(ours_SP, **tokens)}
            (found,) = comparison.differences(arms, "reference", SEEDS)
            assert found.reading == reading, tokens
    gain = better_SP.mean() - worse_SP.mean()
    (found,) = comparison.differences({"a": arm(worse_SP), "b": arm(better_SP)}, "a", SEEDS)
    assert found.gain == pytest.approx(gain)
    one = {"a": {0: outcome(worse_SP[0])}, "b": {0: outcome(better_SP[0])}}
    assert comparison.differences(one, "a", 1)[0].reading == "these models are better; one seed"
    part = {"a": arm(worse_SP), "b": arm(better_SP[:3]), "c": {}}
    (found,) = comparison.differences(part, "a", SEEDS)
    assert found.reading.endswith("(3 of 5 seeds)")
