"""star_jax.preflight.programs with the real TPU compiler, where libtpu is installed (the extra `preflight`)."""

import pytest

from star_jax.distributed import sharding
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
        program = programs.lower_train_step(settings, mesh)
        assert ("splash" in program.as_text()) == splash
        assert program.compile().memory_analysis().temp_size_in_bytes > 0
