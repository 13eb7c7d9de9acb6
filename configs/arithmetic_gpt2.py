"""Addition with GPT-2: the paper's control, a base too weak to bootstrap.

Command:  launch/run.sh --config=configs/arithmetic_gpt2.py[:no_rationalization|:direct] \
              --config.base.path=MODEL
          MODEL: a Hugging Face GPT-2 directory of any size, or what star_jax.convert wrote.
Hardware: one GPU or TPU core; the small GPT-2 (124 M parameters) on CPUs, slowly. Not run yet: no weights were at hand.
Expect:   the paper: no bootstrapping, not even on addition.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """The variant of configs/arithmetic_gptj.py with the sizes of the model at base.path."""
    config = runpy.run_path(str(Path(__file__).with_name("arithmetic_gptj.py")))["get_config"](variant)
    sizes = dict.fromkeys(("n_layers", "d_model", "n_heads", "d_mlp", "rotary_dim", "vocab_size", "max_positions"), 0)
    config.model.update(dict(**sizes, architecture="gpt2", compute_dtype="float32", remat="none"))
    config.mesh.update(dict(data=-1, fsdp=1))
    return config
