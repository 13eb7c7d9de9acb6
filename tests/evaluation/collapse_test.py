"""star_jax.evaluation.collapse: a collapse is seen, ordinary change and missing numbers are not."""

import pytest

from star_jax.evaluation import collapse

BEFORE = {"samples": 100, "distinct": 80, "mean_tokens": 40.0}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (BEFORE, []),
        ({"samples": 200, "distinct": 85, "mean_tokens": 21.0}, []),
        ({"samples": 200, "distinct": 79, "mean_tokens": 40.0}, ["only 40% of the draws are distinct, after 80%"]),
        ({"samples": 100, "distinct": 80, "mean_tokens": 19.0}, ["draws have 19 tokens in the mean, after 40"]),
        ({"samples": 100, "distinct": 1, "mean_tokens": 0.0}, ["only 1% of", "draws have 0 tokens"]),
        ({"samples": 0, "distinct": 0}, []),
        ({}, []),
    ],
)
def test_draws_that_grow_alike_or_short(now, said):
    found = collapse.of_samples(BEFORE, now)
    assert len(found) == len(said) and all(text.startswith(begin) for text, begin in zip(found, said, strict=True))
    assert collapse.of_samples({}, now) == []


@pytest.mark.parametrize(
    ("before", "now", "alarm"),
    [
        ((0.8, 0.75, 0.85), (0.6, 0.55, 0.65), True),
        ((0.8, 0.75, 0.85), (0.74, 0.69, 0.79), False),  # the intervals overlap
        ((0.8, 0.75, 0.85), (0.9, 0.85, 0.95), False),
        ((None, None, None), (0.6, 0.55, 0.65), False),
        ((0.8, 0.75, 0.85), (None, None, None), False),
    ],
)
def test_accuracy_that_is_certainly_worse(before, now, alarm):
    assert collapse.of_accuracy(before, now) == (
        ["accuracy fell from 80.0% to 60.0%, more than chance would have it"] if alarm else []
    )
