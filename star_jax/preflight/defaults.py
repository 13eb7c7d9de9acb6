"""The config of a preflight without --config: the defaults for your own data (jsonl), sized for a model and devices."""

import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from star_jax import config
from star_jax.algorithms import budget
from star_jax.algorithms.budget import Lengths
from star_jax.config import Config
from star_jax.models.spec import DecoderSpec
from star_jax.preflight import advice
from star_jax.preflight.programs import tensors
from star_jax.preflight.topology import Topology

# What differs from the defaults of config.py: bfloat16 activations, recomputed, and weights sharded over all devices.
# An option of 0 is chosen by `complete`, unless a flag sets it.
OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"compute_dtype": "bfloat16", "remat": "full"},
    "mesh": {"data": 1, "fsdp": -1},
    "sampling": {"weights_dtype": "bfloat16", "tensor": 0},
    "train": {"batch_rows": 0},
}


def values() -> ConfigDict:
    """The options before `complete`."""
    options = config.default("jsonl")
    options.update(OPTIONS)
    return options.lock()


def complete(
    options: ConfigDict, spec: DecoderSpec, topology: Topology, lengths_of: Callable[[Config], Lengths]
) -> str:
    """Chooses the options that are 0, in place. Returns all that differ from a run's defaults, as flags of a run.

    Rows: the least multiple of the devices that is at least the default. Tensor: the least number of devices that
    divides the model's KV heads, MLP and vocabulary and with which the sampling loop fits by our count; else the
    largest.
    """
    if not options.train.batch_rows:
        shards = max(1, topology.device_count // options.mesh.tensor)
        options.train.batch_rows = math.ceil(Config().train.batch_rows / shards) * shards
    if not options.sampling.tensor:
        for options.sampling.tensor in tensors(spec, topology.devices_per_host):
            typed = config.from_dict(options)
            if advice.fits(budget.sampling_bytes(typed, spec, options.sampling.tensor, lengths_of(typed)), topology):
                break
    return " ".join(
        f"--config.{group}.{name}={options[group][name]}" for group, names in OPTIONS.items() for name in names
    )
