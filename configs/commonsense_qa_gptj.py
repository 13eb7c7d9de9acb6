"""CommonsenseQA with GPT-J-6B: the rows of the paper's Table 1 at its size.

Command:  launch/run.sh \
              --config=configs/commonsense_qa_gptj.py[:no_rationalization|:direct|:few_shot|:few_shot_direct] \
              --config.base.path=MODEL --config.task.data_dir=DATA
          with MODEL and DATA of configs/commonsense_qa.py.
Hardware: the paper's was one TPU v3-8. Weights and Adam's moments are float32, sharded over all devices (97 GB with
          the gradients); activations are bfloat16 and recomputed. Not run yet: no such machine was at hand.
Expect:   see configs/commonsense_qa.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from star_jax.config import at_gptj_6b


def get_config(variant: str = "") -> ConfigDict:
    """The row of configs/commonsense_qa.py with GPT-J-6B's sizes."""
    return at_gptj_6b(runpy.run_path(str(Path(__file__).with_name("commonsense_qa.py")))["get_config"](variant))
