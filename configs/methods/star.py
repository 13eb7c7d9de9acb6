"""STaR: sample, give hints where that fails, fine-tune the original model (Algorithm 1).

Command:  launch/run.sh --config=configs/methods/star.py[:CONFIG] [flags of CONFIG]
          CONFIG: a name of configs/ with or without a variant, e.g. gsm8k, or a config file; by default arithmetic
Paper:    Zelikman et al., arXiv 2203.14465, section 3; aim at Table 1: CommonsenseQA, 72.5 %.
Expect:   on addition what configs/arithmetic.py says; no row of the paper was reproduced.
"""

from pathlib import Path

from ml_collections import ConfigDict

from star_jax.cli.config_flags import load


def get_config(variant: str = "arithmetic") -> ConfigDict:
    """CONFIG with this method's choices; all else, the number of iterations included, is CONFIG's."""
    config = load(variant, Path(__file__).parents[1])
    config.star.update(dict(rationalize="failed", restart_from="base", keep_previous=0, samples_per_problem=1))
    config.star.update(dict(problems="uniform", skip_solved=0))
    config.selection.update(dict(check="answer", dedup="text", per_problem=1))
    config.sampling.temperature = 0.0
    return config
