"""Each arm of a study against its reference arm: how large the difference is, whether it is chance, and at what cost.

Two questions are kept apart. Do these models differ? Both arms of a seed were given the same problems, so within each
seed the labels of the arms are permuted problem by problem. Does the method differ? Another seed gives another model,
so the differences of the seeds are the sample. "better" needs both answers, at no more tokens.
"""

import dataclasses
import math
import statistics as python_statistics
from collections.abc import Mapping, Sequence

from star_jax.evaluation import statistics
from star_jax.evaluation.statistics import Paired
from star_jax.study.outcomes import Outcome

LEVEL = 0.05  # of a corrected p value below which arms are said to differ
SAME_COST = 1.05  # ratio of tokens up to which an arm costs no more than another


@dataclasses.dataclass(frozen=True)
class OverSeeds:
    """The mean of one difference per seed, as an estimate of what the method makes of another seed."""

    mean: float
    low: float  # 95 % interval by Student's t
    high: float
    p: float  # two-sided, of a mean of 0


@dataclasses.dataclass(frozen=True)
class Difference:
    """An arm minus the reference arm, over the seeds that both have finished."""

    arm: str
    by_seed: Mapping[int, Paired]  # the reference arm is the first
    seeds: int  # of the study
    gain: float  # mean over seeds of the differences of accuracy
    over_seeds: OverSeeds | None  # None with one seed
    p_models: float  # of the stratified permutation test
    p_models_corrected: float  # by Holm's correction over all arms
    p_method_corrected: float | None  # over_seeds.p, likewise
    sampled: float  # tokens / tokens of the reference arm; infinity if that one has none
    trained: float

    @property
    def reading(self) -> str:
        """The difference in words, and of how many seeds it is if some are missing."""
        missing = len(self.by_seed) < self.seeds
        return self._reading() + f" ({len(self.by_seed)} of {self.seeds} seeds)" * missing

    def _reading(self) -> str:
        if self.p_models_corrected >= LEVEL:
            return "no difference shown"
        up = self.gain > 0
        if self.p_method_corrected is None or self.p_method_corrected >= LEVEL:
            reason = "one seed" if self.over_seeds is None else "seeds vary too much"
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
    models = statistics.holm([each.p_models for each in found])
    with_seeds = [(n, each.over_seeds.p) for n, each in enumerate(found) if each.over_seeds]
    methods = dict(zip((n for n, _ in with_seeds), statistics.holm([p for _, p in with_seeds]), strict=True))
    return [
        dataclasses.replace(each, p_models_corrected=p, p_method_corrected=methods.get(n))
        for n, (each, p) in enumerate(zip(found, models, strict=True))
    ]


def stratified_permutation(pairs: Sequence[Paired]) -> float:
    """Two-sided p value of the stratified permutation test on the sum of the differences of several seeds.

    The null hypothesis: within a seed the labels of two arms are exchangeable on each problem. Problems that both solve
    or neither does add nothing, and each of the d others adds +1 or -1 with probability 1/2. So the sum is that of d
    fair coins, and the test over all 2^d permutations is McNemar's exact test on the pooled counts.
    """
    return statistics.mcnemar(sum(pair.first for pair in pairs), sum(pair.second for pair in pairs))


def over_seeds(gains: Sequence[float]) -> OverSeeds | None:
    """Student's t of one difference per seed, a paired test since arms of a seed share the base; None for one seed."""
    if len(gains) < 2:
        return None
    from scipy.stats import t

    mean, error = python_statistics.fmean(gains), python_statistics.stdev(gains) / math.sqrt(len(gains))
    half = float(t.ppf(0.975, len(gains) - 1)) * error
    p = 2 * float(t.sf(abs(mean) / error, len(gains) - 1)) if error else float(mean == 0)
    return OverSeeds(mean, mean - half, mean + half, p)


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
    p = stratified_permutation(list(pairs.values()))
    ours, theirs = ([of[seed] for seed in pairs] for of in (outcomes, reference))
    return Difference(
        arm=name,
        by_seed=pairs,
        seeds=seeds,
        gain=python_statistics.fmean(gains),
        over_seeds=over_seeds(gains),
        p_models=p,
        p_models_corrected=p,
        p_method_corrected=None,
        sampled=_ratio(sum(o.sampled for o in ours), sum(o.sampled for o in theirs)),
        trained=_ratio(sum(o.trained for o in ours), sum(o.trained for o in theirs)),
    )


def _ratio(ours: float, theirs: float) -> float:
    if ours == theirs:
        return 1.0
    return ours / theirs if theirs else math.inf
