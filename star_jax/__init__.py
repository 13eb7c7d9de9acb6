"""star_jax: the Self-Taught Reasoner (Zelikman et al., 2022) in JAX."""

import importlib
import os
from typing import Any

__version__ = "0.1.0"


def load_model(path: str | os.PathLike[str], dtype: str = "float32") -> Any:
    """A `star_jax.sampling.language_model.LanguageModel`: logits, tokenizer and sampled texts of any model.

    Args:
      path: anything that `base.path` takes: a directory, a GGUF file, "pip:smollm2" or a name on the hub.
      dtype: of weights and activations, "float32" or "bfloat16".

    Raises star_jax.errors.InputError.
    """
    # By name and on demand: all modules import this one, and `import star_jax` must not import JAX.
    return importlib.import_module("star_jax.sampling.language_model").load(path, dtype)
