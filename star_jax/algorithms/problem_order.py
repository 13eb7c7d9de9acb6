"""Which train problems an iteration samples, and in which order.

star.problems="adaptive" is AdaSTaR (Koh et al., arXiv 2505.16322, Algorithm 1); star.skip_solved lets problems rest
that are solved every time (arXiv 2504.11343).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from star_jax.records import Completion, Problem, ProblemKey, Verdict


@dataclasses.dataclass(frozen=True)
class Round:
    """What an iteration's samples say of its problems."""

    win_rates: Mapping[ProblemKey, float]  # share of right samples of each problem, in the order of the iteration
    strength: float  # share of right samples, and of the rest the share of right rationalizations


def round_of(samples: Sequence[Completion], rationalizations: Sequence[Completion]) -> Round:
    """The round of an iteration's completions."""
    right: dict[ProblemKey, list[bool]] = {}
    for sample in samples:
        right.setdefault(sample.problem_key, []).append(sample.verdict == Verdict.RIGHT)
    accuracy = _share(c.verdict == Verdict.RIGHT for c in samples)
    strength = accuracy + (1 - accuracy) * _share(c.verdict == Verdict.RIGHT for c in rationalizations)
    return Round({key: _share(values) for key, values in right.items()}, strength)


def resting(rounds: Sequence[Round], count: int) -> frozenset[ProblemKey]:
    """star.skip_solved: the problems all of whose samples were right in each of the last `count` rounds.

    A problem that rests in one iteration was not solved in it, so it comes back in the next.
    """
    if not count or len(rounds) < count:
        return frozenset()
    solved = [{key for key, rate in past.win_rates.items() if rate == 1} for past in rounds[-count:]]
    return frozenset(set.intersection(*solved))


def adaptive(problems: Sequence[Problem], wanted: int, rounds: Sequence[Round], seed: int) -> list[Problem]:
    """star.problems="adaptive": the `wanted` problems (0: all) sampled longest ago, the hardest of those first.

    Each problem has the round in which it was last counted and its win rate there, both 0 at first; the seed decides
    ties. Of the m problems of a round, only the first floor(m strength^2) count: a weak model meets the others, which
    are easier, again.
    """
    known = [(0, 0.0)] * len(problems)
    index = {problem.key: i for i, problem in enumerate(problems)}
    for n, past in enumerate(rounds, start=1):
        counted = int(len(past.win_rates) * past.strength**2 * (1 + 1e-12))
        for key, rate in list(past.win_rates.items())[:counted]:
            if key in index:
                known[index[key]] = (n, rate)
    rank = np.random.default_rng([seed, 2505]).permutation(len(problems)).tolist()
    order = sorted(range(len(problems)), key=lambda i: (known[i], rank[i]))
    return [problems[i] for i in order[: wanted or None]]


def uniform(
    problems: Sequence[Problem],
    wanted: int,
    iteration: int,
    seed: int,
    available: Callable[[Problem, int], bool] = lambda problem, n: True,
) -> list[Problem]:
    """star.problems="uniform": the next `wanted` of an endless, seeded sequence of shuffled passes (0: all).

    A pass holds every available problem once, and no problem comes twice in an iteration. A problem that becomes
    available joins the remainder of the current pass, at a random position: a pass does not start again, which would
    repeat problems, and no iteration holds new problems alone.

    Args:
      available: whether a problem may come in iteration n. The order depends on iterations 1 to `iteration`.
    """
    pool: list[int] = []
    order: list[int] = []  # the remainder of the pass
    chosen: list[int] = []
    passes = 0
    for n in range(1, iteration + 1):
        before, pool = frozenset(pool), [i for i, problem in enumerate(problems) if available(problem, n)]
        order, joined = _without(order, before.difference(pool)), [i for i in pool if i not in before]
        if order and joined:
            order = _shuffled(order + joined, [seed, passes, n])
        if wanted == 0 or wanted >= len(pool):
            chosen, order = pool, []
            continue
        chosen, rest = order[:wanted], order[wanted:]
        if len(chosen) < wanted:
            fresh = _shuffled(pool, [seed, passes])
            passes += 1
            taken = frozenset(chosen)
            rest = [i for i in fresh if i in taken]  # their turn in the new pass comes later
            fresh = _without(fresh, taken)
            missing = wanted - len(chosen)
            chosen, rest = chosen + fresh[:missing], fresh[missing:] + rest
        order = rest
    return [problems[i] for i in chosen]


def _shuffled(items: list[int], seed: list[int]) -> list[int]:
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items)).tolist()]


def _without(items: list[int], removed: frozenset[int]) -> list[int]:
    return [i for i in items if i not in removed]


def _share(values: Iterable[bool]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
