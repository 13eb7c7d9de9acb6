"""star_jax.preflight.report: what does not fit is reported with flags that make it fit."""

import io

from star_jax import config
from star_jax.algorithms import budget
from star_jax.models import families
from star_jax.preflight import report, topology
from star_jax.preflight.topology import parse_topology
from tests.support.preflight import gptj_config


def counted(settings: config.Config, devices: str) -> tuple[bool, str]:
    out = io.StringIO()
    lengths = budget.Lengths(1024, 128, 96)
    fits = report.report(
        settings,
        families.spec_of(settings.model),
        parse_topology(devices),
        lengths,
        lambda line: print(line, file=out),
    )
    return fits, out.getvalue()


def test_a_gpu_is_counted_and_fits_or_not():
    fits, text = counted(gptj_config(), "gpu:8xH100")
    assert fits and "6,050,882,784 parameters on 8 x H100-80GB of 79.6 GiB; counted, not compiled" in text
    fits, text = counted(gptj_config(mesh__fsdp=1), "gpu:8xA100")
    assert not fits and "this would: --config.mesh.data=1 --config.mesh.fsdp=-1" in text
    fits, text = counted(gptj_config(sampling__slots=4096, sampling__tensor=1), "gpu:8xH100")
    assert not fits and "--config.sampling.slots=" in text


def test_a_program_that_takes_the_reserve_does_not_fit(monkeypatch):
    """The reserve, and the share that JAX allocates, are stated; a larger share is advised where it is enough."""
    settings = gptj_config(mesh__fsdp=2, mesh__data=1)
    spec = families.spec_of(settings.model)
    peak = sum(budget.train_bytes(settings, spec, {"data": 1, "fsdp": 2, "tensor": 1})) / budget.GIB
    monkeypatch.setitem(topology.GPUS, "T4", {16: peak / 0.93})
    for pool, fits in (("0.75", False), ("0.97", False), ("0.99", True)):
        monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", pool)
        found, text = counted(settings, "gpu:2xT4")
        assert found == fits and f"JAX allocates {float(pool):.0%} of a GPU's memory, of which 5% is kept" in text
    monkeypatch.setitem(topology.GPUS, "T4", {16: peak / 0.86})
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
    found, text = counted(settings, "gpu:2xT4")
    assert not found and "it would fit with XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 in the run's environment" in text
