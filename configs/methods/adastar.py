"""AdaSTaR: problems that were sampled longest ago come first, and harder ones as the model gets stronger.

Command:  launch/run.sh --config=configs/methods/adastar.py[:CONFIG] [flags of CONFIG]
          CONFIG: a name of configs/ with or without a variant, e.g. gsm8k, or a config file; by default arithmetic
Paper:    Koh et al., arXiv 2505.16322, Algorithm 1; aim at its table of accuracies, 6 of 6 best. They sample until a
          round has enough right answers; here a round has star.problems_per_iteration problems.
Expect:   not measured.
"""

from pathlib import Path

from ml_collections import ConfigDict

from star_jax.cli.config_flags import load


def get_config(variant: str = "arithmetic") -> ConfigDict:
    """CONFIG with this method's choices; all else, the number of iterations included, is CONFIG's."""
    config = load(variant, Path(__file__).parents[1])
    config.star.update(dict(problems="adaptive", restart_from="previous", samples_per_problem=2))
    config.selection.check = "answer"
    config.sampling.update(dict(temperature=1.0, top_k=0, top_p=1.0))
    return config
