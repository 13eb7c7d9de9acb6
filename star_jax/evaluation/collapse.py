"""Signs that the loop is collapsing, from the numbers of two iterations that follow each other: a look is due."""

from collections.abc import Mapping, Sequence

HALF = 0.5


def of_samples(before: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    """Between two filter.json: rationales that grow alike, or short. Numbers that are missing raise no alarm.

    Counted are the first tries, not the rationalizations: those are drawn for other problems each time.
    """
    found = []
    distinct = [_share(counts, "distinct", "samples") for counts in (before, now)]
    if _halved(*distinct):
        found.append(f"only {distinct[1]:.0%} of the draws are distinct, after {distinct[0]:.0%}")
    tokens = [counts.get("mean_tokens") for counts in (before, now)]
    if _halved(*tokens):
        found.append(f"draws have {tokens[1]:.0f} tokens in the mean, after {tokens[0]:.0f}")
    return found


def of_accuracy(before: Sequence[float | None], now: Sequence[float | None]) -> list[str]:
    """Between two evaluations, each (accuracy, low, high): one that is certainly worse."""
    worse = now[2] is not None and before[1] is not None and now[2] < before[1]
    return [f"accuracy fell from {before[0]:.1%} to {now[0]:.1%}, more than chance would have it"] if worse else []


def _share(counts: Mapping[str, float], part: str, whole: str) -> float | None:
    return counts[part] / counts[whole] if part in counts and counts.get(whole) else None


def _halved(before: float | None, now: float | None) -> bool:
    return before is not None and now is not None and now < HALF * before
