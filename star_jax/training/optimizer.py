"""Adam as the paper uses it: clipped gradients, warm-up, then constant or decaying."""

import math

import optax

from star_jax.config import OptimizerConfig


def chain(config: OptimizerConfig) -> optax.GradientTransformation:
    """Everything but the learning rate, which `train_step` takes as a number: a new one compiles nothing."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.moment_dtype),
        optax.add_decayed_weights(config.weight_decay) if config.weight_decay else optax.identity(),
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int, peak: float | None = None) -> float:
    """The learning rate of step `step` = 0, 1, ..., of `steps` in all.

    Linear from 0 at step 0 to the peak at `warmup_steps` (paper, appendix: 100 steps), then constant, and over
    the last `decay_share` of what follows by `decay`: "linear" or "cosine", to `end_fraction` of the peak at the end.
    """
    peak = config.learning_rate if peak is None else peak
    if step < config.warmup_steps:
        return peak * step / config.warmup_steps
    length = (steps - config.warmup_steps) * config.decay_share
    done = min(1.0, max(0.0, 1.0 - (steps - step) / length)) if length > 0 else 0.0
    if config.decay == "constant":
        share = 1.0
    elif config.decay == "linear":
        share = 1.0 - done
    else:
        share = 0.5 * (1.0 + math.cos(math.pi * done))
    return peak * (config.end_fraction + (1.0 - config.end_fraction) * share)
