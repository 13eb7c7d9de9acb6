"""Unfiltered self-distillation, the control of every filter: train on what the model wrote, right or wrong.

Command:  launch/run.sh --config=configs/methods/unfiltered.py[:CONFIG] [flags of CONFIG]
          CONFIG: a name of configs/ with or without a variant, e.g. gsm8k, or a config file; by default arithmetic
Paper:    Zhang et al., arXiv 2604.01193, whose aim is code: Figure 1, LiveCodeBench v6 before and after one round.
Expect:   not measured.
"""

from pathlib import Path

from ml_collections import ConfigDict

from star_jax.cli.config_flags import load


def get_config(variant: str = "arithmetic") -> ConfigDict:
    """CONFIG with this method's choices; all else, the number of iterations included, is CONFIG's."""
    config = load(variant, Path(__file__).parents[1])
    config.star.update(dict(iterations=1, rationalize="none", restart_from="base"))
    config.selection.check = "none"
    return config
