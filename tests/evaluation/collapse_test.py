"""star_jax.evaluation.collapse: a collapse is reported; ordinary change and missing numbers are not."""

from star_jax.evaluation import collapse

BEFORE = {"samples": 100, "distinct": 80, "mean_tokens": 40.0}


SAMPLES = [
    (BEFORE, []),
    ({"samples": 200, "distinct": 85, "mean_tokens": 21.0}, []),
    ({"samples": 0, "distinct": 0, "mean_tokens": 0.0}, []),  # a round of rationalizations only
    ({"samples": 200, "distinct": 79, "mean_tokens": 40.0}, ["only 40% of the samples are distinct, after 80%"]),
    ({"samples": 100, "distinct": 80, "mean_tokens": 19.0}, ["samples have 19 tokens in the mean, after 40"]),
    ({"samples": 100, "distinct": 1, "mean_tokens": 0.0}, ["only 1% of", "samples have 0 tokens"]),
    ({"samples": 0, "distinct": 0}, []),
    ({}, []),
]


def test_samples_that_become_alike_or_short():
    wrong = []
    for now, starts in SAMPLES:
        signs = collapse.of_samples(BEFORE, now)
        if len(signs) != len(starts) or not all(map(str.startswith, signs, starts)) or collapse.of_samples({}, now):
            wrong.append((now, signs))
    assert not wrong


ACCURACIES = [
    ((0.8, 0.75, 0.85), (0.6, 0.55, 0.65), True),
    ((0.8, 0.75, 0.85), (0.74, 0.69, 0.79), False),  # the intervals overlap
    ((0.8, 0.75, 0.85), (0.9, 0.85, 0.95), False),
    ((None, None, None), (0.6, 0.55, 0.65), False),
    ((0.8, 0.75, 0.85), (None, None, None), False),
]


def test_accuracy_that_is_certainly_worse():
    wrong = []
    for before, now, alarm in ACCURACIES:
        signs = collapse.of_accuracy(before, now)
        if bool(signs) != alarm or not all("accuracy fell from 80.0% to 60.0%" in sign for sign in signs):
            wrong.append((before, now, signs))
    assert not wrong
