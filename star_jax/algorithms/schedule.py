"""Schedules of a run: the fine-tuning steps of each iteration, and the time that is left."""

import math
from collections.abc import Mapping

from star_jax.config import StarConfig


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
