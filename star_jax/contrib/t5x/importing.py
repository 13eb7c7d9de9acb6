"""Importing t5x although two of its dependencies do not fit the installed versions."""

import importlib
import sys
import types
from typing import Any

from jax.sharding import PartitionSpec

from star_jax.errors import InputError
from star_jax.tasks import seqio_task


def import_t5x() -> types.ModuleType:
    """Imports t5x, with a stub and a missing name put in place first if they are needed.

    t5x imports `airio.core`, an optional input pipeline, for isinstance checks. jestimator, which t5x imports for an
    optimizer, expects PartitionSpec in jax.experimental.pjit, where JAX no longer has it.

    Raises InputError if t5x is not installed.
    """
    try:
        seqio_task.import_seqio()
        pjit: Any = importlib.import_module("jax.experimental.pjit")
        if not hasattr(pjit, "PartitionSpec"):
            pjit.PartitionSpec = PartitionSpec
        _stub_airio()
        return importlib.import_module("t5x")
    except ImportError as error:
        raise InputError(f"t5x cannot be imported ({error}); pip install 'star_jax[t5x]'") from error


def _stub_airio() -> None:
    """Replaces airio by empty classes unless it can be imported."""
    try:
        importlib.import_module("airio.core")
    except Exception:  # an installed airio may fail in its own imports, with any exception
        core: Any = types.ModuleType("airio.core")
        for name in ("AirIODatasetIterator", "DatasetProviderBase", "Task", "Mixture"):
            setattr(core, name, type(name, (), {}))
        sys.modules.update({"airio": types.ModuleType("airio"), "airio.core": core})
