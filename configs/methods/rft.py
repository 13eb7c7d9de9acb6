"""RFT, rejection-sampling fine-tuning: one round of many samples, one solution for each list of equations.

Command:  launch/run.sh --config=configs/methods/rft.py[:CONFIG] [flags of CONFIG]
          CONFIG: a name of configs/ with or without a variant, e.g. gsm8k, or a config file; by default arithmetic
Paper:    Yuan et al., arXiv 2308.01825, section 3.3; aim at their curve of GSM8K accuracy over k samples. They
          sample from a fine-tuned model and add the references to what is kept; give such a model as base.path.
Expect:   not measured.
"""

from pathlib import Path

from ml_collections import ConfigDict

from star_jax.cli.config_flags import load


def get_config(variant: str = "arithmetic") -> ConfigDict:
    """CONFIG with this method's choices; all else, the number of iterations included, is CONFIG's."""
    config = load(variant, Path(__file__).parents[1])
    config.star.update(dict(iterations=1, rationalize="none", restart_from="base", samples_per_problem=100))
    config.selection.update(dict(check="answer", dedup="steps", per_problem=0))
    config.sampling.update(dict(temperature=0.7, top_k=0, top_p=1.0))
    return config
