"""How sure a number is: intervals of proportions and of stratified samples, and a paired test of two. No JAX here."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


def wilson(right: float, n: float) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, 1927); `n` may be an effective sample size, and `right` a part of it."""
    share, spread = right / n, Z95**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclasses.dataclass(frozen=True)
class Stratum:
    """A part of a population, and a simple random sample from it."""

    size: int  # of the part
    n: int  # sampled, at least 1
    hits: int  # of the sampled, those that have what is asked for


def stratified(strata: Sequence[Stratum]) -> tuple[float, float, float]:
    """(share, low, high): the share of hits in the whole population, each stratum weighted by its size; 95 %.

    The interval is Wilson's at the effective sample size of Kish (1965), n_eff = 1 / sum of W^2 / n, where W is a
    stratum's part of the population and n its sample. It holds with one item a stratum, where no variance can be
    estimated, and is Wilson's own where all weights are equal. It takes no credit for the strata, nor for how much of
    the population was seen, so as a rule it is too wide rather than too narrow.

    Args:
      strata: at least one.
    """
    total = sum(s.size for s in strata)
    share = sum(s.size / total * s.hits / s.n for s in strata)
    effective = 1 / sum((s.size / total) ** 2 / s.n for s in strata)
    return (share, *wilson(share * effective, effective))


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two models on the same problems."""

    problems: int
    both: int  # problems that both solve
    first: int  # that only the first solves
    second: int  # that only the second solves
    p: float  # McNemar's exact test, two-sided: how often equally good models would differ as much, or more

    @property
    def gain(self) -> float:
        """The second's accuracy less the first's."""
        return (self.second - self.first) / self.problems


def paired(first: Mapping[str, bool], second: Mapping[str, bool]) -> Paired | None:
    """Compares two models by the problems (id -> solved) that both were asked; None where there is none."""
    common = first.keys() & second.keys()
    if not common:
        return None
    both = sum(first[name] and second[name] for name in common)
    only_first = sum(first[name] and not second[name] for name in common)
    only_second = sum(second[name] and not first[name] for name in common)
    return Paired(len(common), both, only_first, only_second, mcnemar(only_first, only_second))


def mcnemar(first: int, second: int) -> float:
    """The p value of McNemar's exact test: only the first is right on `first` problems, only the second on `second`.

    Were both equally good, each such problem would fall to either with probability 1/2 (McNemar, 1947; exact: the
    binomial distribution's tails on both sides).
    """
    n = first + second
    term, tail = 1, 0  # C(n, k), and the sum of them, as integers: exact for any n
    for k in range(min(first, second) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / (1 << n)) if n else 1.0
