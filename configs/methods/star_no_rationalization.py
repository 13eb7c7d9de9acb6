"""STaR without rationalization: no hints.

Command:  launch/run.sh --config=configs/methods/star_no_rationalization.py[:CONFIG] [flags of CONFIG]
          CONFIG: a name of configs/ with or without a variant, e.g. gsm8k, or a config file; by default arithmetic
Paper:    Zelikman et al., arXiv 2203.14465, section 3.1; aim at Table 1: CommonsenseQA, 68.8 %.
Expect:   on addition what configs/arithmetic.py:no_rationalization says; no row of the paper was reproduced.
"""

from pathlib import Path

from ml_collections import ConfigDict

from star_jax.cli.config_flags import load


def get_config(variant: str = "arithmetic") -> ConfigDict:
    """CONFIG as star.py has it, and without hints."""
    config = load(f"{Path(__file__).with_name('star.py')}:{variant}")
    config.star.rationalize = "none"
    return config
