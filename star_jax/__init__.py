"""star_jax: the Self-Taught Reasoner (Zelikman et al., 2022) in JAX.

Submodules load on first use (`star_jax.tasks.make(...)` after a bare `import star_jax`), so that reading
a run's files or writing its report never pays for importing JAX or TensorFlow.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_SUBMODULES = (
    "cached", "checkpoint", "config", "convert", "data", "decoding", "evaluate", "filter", "hosts", "ledger",
    "metrics", "model", "optimizer", "prepare", "pretrain", "prompting", "records", "report", "sampler",
    "sharding", "star", "stops", "t5x_interop", "tasks", "tokenizer", "train",
)  # fmt: skip


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"star_jax.{name}")
    raise AttributeError(f"module 'star_jax' has no attribute '{name}'")
