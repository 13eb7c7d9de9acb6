"""Each arm of a study against its reference arm: how large the difference is, whether it is chance, and at what cost.

Two questions are kept apart. Do these models differ? Every problem was given to both arms of a seed, so the test is
paired: within each seed the two arms' labels are permuted problem by problem. Does the method differ? Another seed
gives another model, so the interval of the mean difference is over seeds. "better" needs both, at no more tokens.
"""

import dataclasses
import statistics as python_statistics
from collections.abc import Mapping, Sequence

from star_jax.evaluation import statistics
from star_jax.evaluation.statistics import Paired
from star_jax.study.outcomes import Outcome

LEVEL = 0.05  # of a corrected p value below which models are said to differ
SAME_COST = 1.05  # ratio of tokens up to which an arm costs no more than another


@dataclasses.dataclass(frozen=True)
class Difference:
    """An arm minus the reference arm, over the seeds that both have finished."""

    arm: str
    by_seed: Mapping[int, Paired]  # the reference arm is the first
    seeds: int  # of the study
    gain: float  # mean over seeds of the differences of accuracy
    low: float | None  # of its 95 % interval over seeds; None with one seed
    high: float | None
    p: float  # of the stratified permutation test
    corrected: float  # p by Holm's correction over all arms
    sampled: float  # tokens / tokens of the reference arm; infinity if that one has none
    trained: float

    @property
    def reading(self) -> str:
        """The difference in words, and of how many seeds it is if some are missing."""
        missing = len(self.by_seed) < self.seeds
        return self._reading() + f" ({len(self.by_seed)} of {self.seeds} seeds)" * missing

    def _reading(self) -> str:
        if self.corrected >= LEVEL:
            return "no difference shown"
        up = self.gain > 0
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            reason = "one seed" if self.low is None else "seeds vary as much"
            return f"these models are {'better' if up else 'worse'}; {reason}"
        ratios = (self.sampled, self.trained)
        if up:
            return "better" if max(ratios) <= SAME_COST else "better, at more tokens"
        return "worse" if min(ratios) >= 1 / SAME_COST else "worse, at fewer tokens"


def differences(arms: Mapping[str, Mapping[int, Outcome]], reference: str, seeds: int) -> list[Difference]:
    """Every arm but the reference that has a seed in common with it, in order.

    Args:
      arms: name -> seed -> outcome of the finished runs.
      seeds: number of seeds of the study.
    """
    found = [
        difference
        for name, outcomes in arms.items()
        if name != reference and (difference := _difference(name, outcomes, arms.get(reference, {}), seeds))
    ]
    corrected = statistics.holm([each.p for each in found])
    return [dataclasses.replace(each, corrected=p) for each, p in zip(found, corrected, strict=True)]


def stratified_permutation(pairs: Sequence[Paired]) -> float:
    """Two-sided p value of the stratified permutation test on the sum of the differences of several seeds.

    The null hypothesis: within a seed the labels of two arms are exchangeable on each problem. Problems that both solve
    or neither does add nothing, and each of the d others adds +1 or -1 with probability 1/2. So the sum is that of d
    fair coins, and the test over all 2^d permutations is McNemar's exact test on the pooled counts.
    """
    return statistics.mcnemar(sum(pair.first for pair in pairs), sum(pair.second for pair in pairs))


def interval_over_seeds(gains: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of one difference per seed, by Student's t; None for fewer than two seeds."""
    if len(gains) < 2:
        return None
    from scipy.stats import t

    error = python_statistics.stdev(gains) / len(gains) ** 0.5
    half = float(t.ppf(0.975, len(gains) - 1)) * error
    mean = python_statistics.fmean(gains)
    return mean - half, mean + half


def _difference(
    name: str, outcomes: Mapping[int, Outcome], reference: Mapping[int, Outcome], seeds: int
) -> Difference | None:
    pairs = {
        seed: pair
        for seed, outcome in outcomes.items()
        if seed in reference and (pair := statistics.paired(reference[seed].solved, outcome.solved))
    }
    if not pairs:
        return None
    gains = [pair.gain for pair in pairs.values()]
    low, high = interval_over_seeds(gains) or (None, None)
    p = stratified_permutation(list(pairs.values()))
    ours, theirs = ([of[seed] for seed in pairs] for of in (outcomes, reference))
    sampled, trained = (
        _ratio(sum(getattr(o, name) for o in ours), sum(getattr(o, name) for o in theirs))
        for name in ("sampled", "trained")
    )
    return Difference(name, pairs, seeds, python_statistics.fmean(gains), low, high, p, p, sampled, trained)


def _ratio(ours: float, theirs: float) -> float:
    if ours == theirs:
        return 1.0
    return ours / theirs if theirs else float("inf")
