"""Schedules of a run: fine-tuning steps and the problems of each iteration, and the time that is left."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from star_jax.config import StarConfig
from star_jax.records import Problem


def fine_tuning_steps(config: StarConfig, iteration: int, rows: int, batch_rows: int) -> int:
    """Steps of iteration 1, 2, ...: 40 x 1.2^(n-1) in the paper; start + k (n-1) for its arithmetic; or by epochs.

    At least one: an iteration of none would have the weights that it started from, and look like one that learns
    nothing.
    """
    if config.schedule == "exponential":
        try:
            # In floating point 100 x 1.15 is a little less than 115.
            steps = max(1, int(config.steps * config.step_growth ** (iteration - 1) * (1 + 1e-12)))
        except OverflowError:  # StarConfig.check allows such a growth with max_steps only
            steps = config.max_steps
    elif config.schedule == "linear":
        steps = config.steps + config.step_increment * (iteration - 1)
    else:
        steps = max(1, math.ceil(config.epochs * rows / batch_rows))
    return min(steps, config.max_steps or steps)


def remaining_seconds(config: StarConfig, n: int, seconds: Mapping[str, float]) -> float:
    """Seconds of the iterations after n if they take as long as n did, `seconds` by phase, and a step as long as there.

    Iterations by epochs, whose steps are not known before, count with the steps of iteration n.
    """

    def steps(iteration: int) -> int:
        return 1 if config.schedule == "epochs" else fine_tuning_steps(config, iteration, 1, 1)

    later = range(n + 1, config.iterations + 1)
    tuning = seconds.get("fine_tune", 0.0)
    others = sum(seconds.values()) - tuning
    return others * len(later) + tuning * sum(steps(iteration) for iteration in later) / steps(n)


def iteration_problems(
    problems: Sequence[Problem],
    wanted: int,
    iteration: int,
    seed: int,
    available: Callable[[Problem, int], bool] = lambda problem, n: True,
) -> list[Problem]:
    """The problems of an iteration: the next `wanted` of an endless, seeded sequence of shuffled passes (0: all).

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
