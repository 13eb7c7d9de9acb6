"""Schedules of a run: fine-tuning steps and the problems of each iteration."""

import math
from collections.abc import Sequence

import numpy as np

from star_jax.config import StarConfig
from star_jax.records import Problem


def fine_tuning_steps(config: StarConfig, iteration: int, rows: int, batch_rows: int) -> int:
    """Steps of iteration 1, 2, ...: 40 x 1.2^(n-1) in the paper; start + k (n-1) for its arithmetic; or by epochs."""
    if config.schedule == "exponential":
        steps = int(config.steps * config.step_growth ** (iteration - 1))
    elif config.schedule == "linear":
        steps = config.steps + config.step_increment * (iteration - 1)
    else:
        steps = max(1, math.ceil(config.epochs * rows / batch_rows))
    return min(steps, config.max_steps or steps)


def iteration_problems(problems: Sequence[Problem], wanted: int, iteration: int, seed: int) -> list[Problem]:
    """The problems of an iteration: the next `wanted` of an endless, seeded sequence of shuffled passes (0: all).

    No problem comes twice in an iteration, and none comes a second time before all came once.
    """
    if wanted == 0 or wanted >= len(problems):
        return list(problems)
    order: list[int] = []
    passes = 0
    for _ in range(iteration):
        chosen, rest = order[:wanted], order[wanted:]
        if len(chosen) < wanted:
            fresh = np.random.default_rng([seed, passes]).permutation(len(problems)).tolist()
            passes += 1
            taken = set(chosen)
            rest = [i for i in fresh if i in taken]  # their turn in the new pass comes later
            fresh = [i for i in fresh if i not in taken]
            missing = wanted - len(chosen)
            chosen, rest = chosen + fresh[:missing], fresh[missing:] + rest
        order = rest
    return [problems[i] for i in chosen]
