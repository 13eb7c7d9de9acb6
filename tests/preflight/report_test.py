"""star_jax.preflight.report: what does not fit is reported with flags that make it fit."""

import io

from star_jax import config
from star_jax.distributed import sharding
from star_jax.models import families
from star_jax.preflight import budget, report
from star_jax.preflight.topology import Topology, parse_topology
from tests.support.preflight import gptj_config


def counted(settings: config.Config, topology: str) -> tuple[bool, str]:
    out = io.StringIO()
    lengths = budget.Lengths(1024, 128, 96)
    fits = report.report(
        settings,
        families.spec_of(settings.model),
        parse_topology(topology),
        lengths,
        lambda line: print(line, file=out),
    )
    return fits, out.getvalue()


def test_a_gpu_is_counted_and_fits_or_not():
    fits, text = counted(gptj_config(), "gpu:8xH100")
    assert fits and "6,050,882,784 parameters on 8 x H100 of 80 GiB; counted, not compiled" in text
    fits, text = counted(gptj_config(mesh__fsdp=1), "gpu:8xA100")
    assert not fits and "this would: --config.mesh.data=1 --config.mesh.fsdp=-1" in text
    fits, text = counted(gptj_config(sampling__slots=4096, sampling__tensor=1), "gpu:8xH100")
    assert not fits and "--config.sampling.slots=" in text


def test_each_remedy_takes_less():
    settings = gptj_config(model__remat="none", mesh__fsdp=1, mesh__data=8)
    spec = families.spec_of(settings.model)
    sizes = [sum(budget.train_bytes(settings, spec, sharding.mesh_shape(settings.mesh, 8)))]
    for _, smaller in report.remedies(settings):
        sizes.append(sum(budget.train_bytes(smaller, spec, sharding.mesh_shape(smaller.mesh, 8))))
    assert sizes[:4] == sorted(sizes[:4], reverse=True) and len(set(sizes[:4])) == 4


def test_a_remedy_names_all_flags_that_it_takes():
    """A remedy includes those before it: the last flag alone would not fit."""
    start = dict(model__remat="none", mesh__fsdp=1, mesh__data=8)
    remedies = list(report.remedies(gptj_config(**start)))
    assert len(remedies) == 3 + 7  # recomputation, sharding, moments, and eight rows in two to eight microbatches
    for flags, smaller in remedies:
        changes = dict(flag.removeprefix("--config.").replace(".", "__").split("=") for flag in flags.split())
        changes = {name: int(value) if value.lstrip("-").isdecimal() else value for name, value in changes.items()}
        assert gptj_config(**{**start, **changes}) == smaller


def test_the_advice_is_only_what_a_run_accepts():
    """Eight rows over eight devices have no microbatches; sixty-four over four have up to sixteen."""
    eight = gptj_config(train__row_tokens=2048, mesh__data=1, mesh__fsdp=8)
    assert report.training_advice(eight, families.spec_of(eight.model), Topology("small", 8, 12.0)) == "more devices"
    many = gptj_config(train__row_tokens=2048, train__batch_rows=64, mesh__data=1, mesh__fsdp=4)
    flags, _, parts = report.training_advice(many, families.spec_of(many.model), Topology("large", 4, 48.0)).rpartition(
        "="
    )
    assert flags.endswith("--config.train.microbatches") and int(parts) in (2, 4, 8, 16)
