"""Signs that the loop is collapsing, from the figures of two successive iterations."""

from collections.abc import Mapping, Sequence

HALF = 0.5


def of_samples(before: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    """Signs between two filter.json: samples that become alike, or short. Missing figures are no sign.

    Rationalizations do not count: they are sampled for other problems in each iteration.
    """
    signs = []
    distinct = [_share(counts, "distinct", "samples") for counts in (before, now)]
    if _halved(*distinct):
        signs.append(f"only {distinct[1]:.0%} of the samples are distinct, after {distinct[0]:.0%}")
    tokens = [counts.get("mean_tokens") if counts.get("samples", 1) else None for counts in (before, now)]
    if _halved(*tokens):
        signs.append(f"samples have {tokens[1]:.0f} tokens in the mean, after {tokens[0]:.0f}")
    return signs


def of_accuracy(before: Sequence[float | None], now: Sequence[float | None]) -> list[str]:
    """Signs between two evaluations (accuracy, low, high): the later is worse and the intervals do not overlap."""
    worse = now[2] is not None and before[1] is not None and now[2] < before[1]
    return [f"accuracy fell from {before[0]:.1%} to {now[0]:.1%}, more than chance would have it"] if worse else []


def _share(counts: Mapping[str, float], part: str, whole: str) -> float | None:
    return counts[part] / counts[whole] if part in counts and counts.get(whole) else None


def _halved(before: float | None, now: float | None) -> bool:
    return before is not None and now is not None and now < HALF * before
