"""star_jax.preflight.programs with the real TPU compiler, where libtpu is installed (the extra `preflight`)."""

import math

import jax
import pytest

from star_jax.distributed import sharding
from star_jax.models import families
from star_jax.preflight import programs
from star_jax.preflight.topology import parse_topology
from tests.support.preflight import gptj_config


def test_a_train_step_has_splash_attention_where_the_chip_takes_it():
    pytest.importorskip("libtpu", reason="the TPU compiler needs libtpu (the extra `preflight`)")
    sizes = dict(n_layers=2, d_model=256, n_heads=2, d_mlp=512, rotary_dim=32)
    changes = {f"model__{name}": size for name, size in sizes.items()}
    settings = gptj_config(**changes, train__row_tokens=256, mesh__data=1)
    for topology, splash in (("v5e:2x4", True), ("v3:2x2", False)):
        mesh = sharding.make_mesh(settings.mesh, parse_topology(topology).devices)
        program = programs.lower_train_step(settings, families.spec_of(settings.model), mesh)
        assert ("splash" in program.as_text()) == splash
        assert program.compile().memory_analysis().temp_size_in_bytes > 0


def test_the_compilers_out_of_memory_errors_state_what_is_needed():
    rows = {
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 19.50G of "
        "15.75G hbm. Exceeded hbm capacity by 3.75G.": 19.5 * 2**30,
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (19.32G) exceeds "
        "available HBM (15.75G).": 19.32 * 2**30,
        "RESOURCE_EXHAUSTED: no size at all": math.inf,
    }
    assert {error: programs.stated_bytes(error) for error in rows} == rows


def test_a_program_that_does_not_fit_is_measured_and_no_traceback():
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: required for HLO temporaries (19.32G) exceeds 15.75G")

    memory = programs.measure("train step", Lowered)
    assert memory.peak == 19.32 * 2**30 and math.isnan(memory.arguments) and math.isnan(memory.temporaries)


def test_a_measured_program_is_not_stored_in_the_cache_of_compiled_programs():
    def stored_from() -> float:
        return jax.config.jax_persistent_cache_min_compile_time_secs

    class Lowered:
        def compile(self):
            seen.append(stored_from())
            return jax.jit(lambda x: x + 1).lower(1.0).compile()

    before, seen = stored_from(), []
    programs.measure("program", Lowered)
    assert seen == [math.inf] and stored_from() == before < math.inf
