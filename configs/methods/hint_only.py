"""Hint-only rounds: every problem is sampled with its answer as a hint, none without.

Command:  launch/run.sh --config=configs/methods/hint_only.py[:CONFIG] [flags of CONFIG]
          CONFIG: a name of configs/ with or without a variant, e.g. gsm8k, or a config file; by default arithmetic
Paper:    arXiv 2512.20169, version 1: better than STaR on ARC, MMLU and OpenBookQA; aim at its table of these.
Expect:   not measured.
"""

from pathlib import Path

from ml_collections import ConfigDict

from star_jax.cli.config_flags import load


def get_config(variant: str = "arithmetic") -> ConfigDict:
    """CONFIG with this method's choices; all else, the number of iterations included, is CONFIG's."""
    config = load(variant, Path(__file__).parents[1])
    config.star.update(dict(rationalize="all", rationalize_from=1, restart_from="base"))
    config.selection.check = "answer"
    return config
