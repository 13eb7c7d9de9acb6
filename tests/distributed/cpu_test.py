"""star_jax.distributed.cpu: what is cut up, and where it stays whole."""

import jax
import pytest

from star_jax.config import MeshConfig
from star_jax.distributed import cpu, sharding

ROW = 8 * 151 * 64 * 4  # bytes of the keys of a row of the benchmark's model, in one layer

needs_a_cpu = pytest.mark.skipif(jax.local_devices()[0].platform != "cpu", reason="this process' device is no CPU")


@needs_a_cpu
def test_rows_are_grouped_where_groups_are_large_enough():
    assert [cpu.row_groups(rows, ROW) for rows in (128, 64, 60, 32, 8)] == [8, 8, 1, 1, 1]
    assert cpu.row_groups(128, 2 * 96 * 32 * 4) == 1  # the demo's


@needs_a_cpu
@pytest.mark.parametrize(("size", "parts"), [(20, 1), (4095, 1), (4096, 256), (50257, 29), (50400, 252), (50411, 1)])
def test_a_vocabulary_is_cut_into_equal_parts(size, parts):
    assert cpu.vocabulary_parts(size) == parts
    assert size % parts == 0


@needs_a_cpu
@pytest.mark.parametrize(("config", "parts"), [(MeshConfig(data=8), 252), (MeshConfig(data=2, tensor=4), 1)])
def test_a_vocabulary_over_several_devices_stays_as_it_is(config, parts):
    found = []

    def trace(x):
        found.append(cpu.vocabulary_parts(50400))
        return x

    mesh = sharding.make_mesh(config)
    with sharding.use(mesh):
        jax.jit(trace)(1.0)
    assert found == [parts]


def test_a_program_for_other_devices_is_left_alone(monkeypatch):
    """As preflight compiles for a TPU on a machine that has none: the mesh says what the program is for."""

    class Mesh:
        empty, shape = False, {"tensor": 1}
        abstract_device = type("Device", (), {"device_kind": "TPU v4"})

    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", Mesh)
    assert not cpu.is_target()
    assert cpu.row_groups(128, ROW) == cpu.vocabulary_parts(50400) == 1
