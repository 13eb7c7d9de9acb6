"""Adam with gradient clipping and decoupled weight decay, and the learning-rate schedule."""

import math

import optax

from star_jax.config import OptimizerConfig


def chain(config: OptimizerConfig) -> optax.GradientTransformation:
    """All but the learning rate, which `train_step` takes as an argument: another rate compiles nothing.

    Gradients are clipped by their global norm, scaled by Adam, and weight decay is added to the result.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.moment_dtype),
        optax.add_decayed_weights(config.weight_decay) if config.weight_decay else optax.identity(),
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int, peak: float | None = None) -> float:
    """The learning rate of step `step` (from 0) of `steps`.

    Linear warm-up from 0 to the peak at `warmup_steps` (100 in the paper's appendix), then constant. Over the last
    `decay_share` of the steps after warm-up it falls to `end_fraction` of the peak, "linear" or "cosine" (`decay`).

    `peak`: in place of the config's learning rate.
    """
    peak = config.learning_rate if peak is None else peak
    if step < config.warmup_steps:
        return peak * step / config.warmup_steps
    decay_steps = (steps - config.warmup_steps) * config.decay_share
    progress = min(1.0, max(0.0, 1.0 - (steps - step) / decay_steps)) if decay_steps > 0 else 0.0
    if config.decay == "constant":
        share = 1.0
    elif config.decay == "linear":
        share = 1.0 - progress
    else:
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (config.end_fraction + (1.0 - config.end_fraction) * share)
