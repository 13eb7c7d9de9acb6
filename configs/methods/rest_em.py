"""ReST-EM: several rounds of many samples without hints, at most ten kept for a problem.

Command:  launch/run.sh --config=configs/methods/rest_em.py[:CONFIG] [flags of CONFIG]
          CONFIG: a name of configs/ with or without a variant, e.g. gsm8k, or a config file; by default arithmetic
Paper:    Singh et al., arXiv 2312.06585, sections 3 and 5; aim at Figure 2, accuracy on MATH by round.
Expect:   not measured.
"""

from pathlib import Path

from ml_collections import ConfigDict

from star_jax.cli.config_flags import load


def get_config(variant: str = "arithmetic") -> ConfigDict:
    """CONFIG with this method's choices; all else, the number of iterations included, is CONFIG's."""
    config = load(variant, Path(__file__).parents[1])
    config.star.update(dict(iterations=3, rationalize="none", restart_from="base", samples_per_problem=32))
    config.selection.update(dict(check="answer", dedup="text", per_problem=10))
    config.sampling.update(dict(temperature=0.7, top_k=40, top_p=1.0))
    return config
