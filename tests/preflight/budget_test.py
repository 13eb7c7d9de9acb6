"""star_jax.preflight.budget: counted sizes are those of the arrays and of the compiled programs."""

import dataclasses

import jax
import numpy as np
import pytest

from star_jax import config
from star_jax.algorithms import setup
from star_jax.config import GPTJ_6B
from star_jax.models import decoder
from star_jax.preflight import budget, programs
from tests.support.models import TINY, numpy_params


def test_the_parameter_count_is_that_of_the_arrays():
    assert budget.parameter_count(decoder.GPT(TINY)) == sum(leaf.size for leaf in jax.tree.leaves(numpy_params(TINY)))
    gptj = config.ModelConfig(**{**dataclasses.asdict(TINY), **GPTJ_6B})
    assert budget.parameter_count(decoder.GPT(gptj)) == 6_050_882_784


def test_counted_arguments_are_those_of_the_compiled_programs():
    """Weights and both moments of a train step, weights and prefix of the sampling loop, on one of eight devices."""
    values = config.default("arithmetic")
    values.model.update(dataclasses.asdict(dataclasses.replace(TINY, n_heads=8, rotary_dim=4, vocab_size=24)))
    values.base.path = "none"
    values.mesh.update(dict(data=1, fsdp=4, tensor=2))
    values.sampling.update(dict(slots=8, queue=8, tensor=8))
    settings = config.from_dict(values)
    mesh, sampling_mesh = setup.meshes(settings)
    state = programs.abstract_train_state(settings, mesh)
    leaves = jax.tree.leaves(state)
    size = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    counted = budget.train_bytes(settings, dict(mesh.shape))[0]
    assert counted == pytest.approx(size, rel=0.1)  # norms are not sharded
    lengths = budget.Lengths(64, 16, 8)
    memory = programs.measure("sampling loop", lambda: programs.lower_sampling_loop(settings, sampling_mesh, lengths))
    assert memory.peak > 0 and memory.hlo_text
    assert budget.sampling_bytes(settings, 8, lengths)[0] == pytest.approx(memory.arguments, rel=0.3)
