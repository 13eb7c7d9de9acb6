"""Uncertainty of accuracies: intervals of proportions and of stratified samples, paired tests and their correction.

Imports no JAX, and SciPy only inside `mcnemar`: `import scipy.stats` takes 0.8 s.
"""

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson(right: float, n: float) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion (Wilson, 1927).

    SciPy's `binomtest(...).proportion_ci(method="wilson")` gives the same numbers for integers only, and `stratified`
    needs fractions.

    Args:
      right: successes, at most `n`; fractional with an effective sample size.
      n: sample size, more than 0; may be an effective sample size.
    """
    share, spread = right / n, Z95**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def bounded_mean(values: Sequence[float], most: float) -> tuple[float, float, float]:
    """(mean, low, high) of one figure in [0, 1] per problem, e.g. pass@k, and its 95 % interval.

    The interval is Wilson's at the effective sample size n_eff = n m (1 - m) / s^2, the number of independent yes-no
    observations with the values' variance s^2. Mean and variance in it are those with two zeros and two ones added
    (Agresti and Coull, 1998), so that equal values do not have an interval of no width. n_eff = n for values that are
    all 0 or 1, whose interval is Wilson's.

    Args:
      values: at least one.
      most: cap on n_eff, the number of samples that the values were estimated from.
    """
    n = len(values)
    added = [*values, 0.0, 0.0, 1.0, 1.0]
    middle = math.fsum(added) / len(added)
    variance = math.fsum((value - middle) ** 2 for value in added) / len(added)
    effective = min(most, n * middle * (1 - middle) / variance)
    share = math.fsum(values) / n
    return (share, *wilson(share * effective, effective))


@dataclasses.dataclass(frozen=True)
class Stratum:
    """A part of a population, and a simple random sample from it."""

    size: int  # items in the part
    n: int  # items in the sample, at least 1
    hits: int  # items in the sample that have the property


def stratified(strata: Sequence[Stratum]) -> tuple[float, float, float]:
    """(share, low, high): share of hits in the population, each stratum weighted by its size, and its 95 % interval.

    The interval is Wilson's at the effective sample size of Kish (1965), n_eff = 1 / sum(W^2 / n), where W is a
    stratum's share of the population and n its sample size. It is defined with one item in each stratum, where no
    variance can be estimated, and equals Wilson's if all weights are equal. It is conservative: it ignores the gain
    from stratification and the finite population.

    Args:
      strata: at least one.
    """
    total = sum(s.size for s in strata)
    share = sum(s.size / total * s.hits / s.n for s in strata)
    effective = 1 / sum((s.size / total) ** 2 / s.n for s in strata)
    return (share, *wilson(share * effective, effective))


Problem = TypeVar("Problem", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two models on the same problems."""

    problems: int
    both: int  # problems that both solve
    first: int  # problems that only the first solves
    second: int  # problems that only the second solves
    p: float  # two-sided p value of McNemar's exact test

    @property
    def gain(self) -> float:
        """Accuracy of the second minus accuracy of the first."""
        return (self.second - self.first) / self.problems


def paired(first: Mapping[Problem, bool], second: Mapping[Problem, bool]) -> Paired | None:
    """Compares two models on the problems that both were given (problem -> solved). None if there are none."""
    common = first.keys() & second.keys()
    if not common:
        return None
    both = sum(first[name] and second[name] for name in common)
    only_first = sum(first[name] and not second[name] for name in common)
    only_second = sum(second[name] and not first[name] for name in common)
    return Paired(len(common), both, only_first, only_second, mcnemar(only_first, only_second))


def mcnemar(first: int, second: int) -> float:
    """Two-sided p value of McNemar's exact test (McNemar, 1947), from SciPy's binomial test.

    The null hypothesis: a problem that only one of two models solves is solved by either with probability 1/2.

    Args:
      first: problems that only the first model solves.
      second: problems that only the second model solves.
    """
    if first == second:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(min(first, second), first + second).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several tests, corrected so that one of them being wrong is as rare as stated (Holm, 1979).

    The k-th smallest of m is multiplied by m - k + 1, and none becomes smaller than one before it.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for k, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - k) * p_values[index]))
        corrected[index] = largest
    return corrected
