"""star_jax.preflight.advice: what is advised starts, fits, and is the least of its kind."""

import io
import re

from star_jax import config
from star_jax.algorithms import budget
from star_jax.distributed import sharding
from star_jax.models import families
from star_jax.preflight import advice, model_sizes, report
from star_jax.preflight.topology import Topology, parse_topology
from tests.support.preflight import gptj_config
from tests.support.tables import every_row

LENGTHS = budget.Lengths(1024, 128, 96)


def changed(settings: config.Config, flags: str) -> config.Config:
    """The config with flags as a command line gives them."""
    values = config.default("arithmetic")
    values.update(settings.to_dict())
    for flag in flags.split():
        name, _, value = flag.removeprefix("--config.").partition("=")
        group, option = name.split(".")
        values[group][option] = type(values[group][option])(value)
    return config.from_dict(values)


def fits(settings, spec, topology: Topology) -> bool:
    return report.report(settings, spec, topology, LENGTHS, lambda line: print(line, file=io.StringIO()))


@every_row("model", ["Qwen3-0.6B", "Llama-3.1-8B", "Gemma-3-1B", "GPT-J-6B"])
@every_row("gpu", ["1xT4", "3xRTX4090", "1xA100-40GB", "2x2xV100"])
@every_row("changes", [{}, dict(mesh__data=-1, mesh__fsdp=1), dict(sampling__tensor=1, sampling__slots=1024)])
def test_what_is_advised_starts_and_fits(model, gpu, changes):
    """Flags on the same devices, and numbers of devices with flags. With one device less as many do not fit."""
    topology, spec = parse_topology(f"gpu:{gpu}"), model_sizes.spec_of(model)
    settings = gptj_config(**changes, train__batch_rows=12)
    training = advice.training_flags(settings, spec, topology)
    sampling = advice.sampling_flags(settings, spec, topology, LENGTHS)
    if training and sampling:
        assert fits(changed(settings, f"{training} {sampling}"), spec, topology)
    sentence = advice.more_devices(settings, spec, topology, LENGTHS)
    count, flags = re.fullmatch(r"(\d+) x \S+ would do(?:, with (.*))?", sentence).groups()
    larger = topology.of(int(count))
    assert larger.device_count > topology.device_count and fits(changed(settings, flags or ""), spec, larger)


def test_as_few_devices_as_hold_it_are_advised():
    """GPT-J's weights, moments and gradients are 97 GB; rows of 1,024 tokens are little if they are recomputed."""
    settings = gptj_config()
    spec = families.spec_of(settings.model)
    counts = {}
    for gpu in ("A100-40GB", "A100-80GB", "H200", "T4"):
        counts[gpu] = advice.more_devices(settings, spec, parse_topology(f"gpu:1x{gpu}"), LENGTHS).partition(" ")[0]
    assert counts == {"A100-40GB": "4", "A100-80GB": "2", "H200": "2", "T4": "16"}


def test_where_no_number_of_devices_helps_the_options_are_named():
    """One row of a million tokens is on one device."""
    settings = gptj_config(train__row_tokens=2048)
    spec = families.spec_of(settings.model)
    sentence = advice.more_devices(settings, spec, Topology("small", 1, 0.5), LENGTHS)
    assert sentence.startswith("no number of small up to 1024 would do; lower train.batch_rows, train.row_tokens")


def test_each_remedy_takes_less():
    settings = gptj_config(model__remat="none", mesh__fsdp=1, mesh__data=8)
    spec = families.spec_of(settings.model)
    sizes = [sum(budget.train_bytes(settings, spec, sharding.mesh_shape(settings.mesh, 8)))]
    for _, smaller in advice.remedies(settings):
        sizes.append(sum(budget.train_bytes(smaller, spec, sharding.mesh_shape(smaller.mesh, 8))))
    assert sizes[:4] == sorted(sizes[:4], reverse=True) and len(set(sizes[:4])) == 4


def test_a_remedy_names_all_flags_that_it_takes():
    """A remedy includes those before it: the last flag alone would not fit."""
    start = dict(model__remat="none", mesh__fsdp=1, mesh__data=8)
    remedies = list(advice.remedies(gptj_config(**start)))
    assert len(remedies) == 3 + 7  # recomputation, sharding, moments, and eight rows in two to eight microbatches
    for flags, smaller in remedies:
        changes = dict(flag.removeprefix("--config.").replace(".", "__").split("=") for flag in flags.split())
        changes = {name: int(value) if value.lstrip("-").isdecimal() else value for name, value in changes.items()}
        assert gptj_config(**{**start, **changes}) == smaller


def test_the_advice_is_only_what_a_run_accepts():
    """Eight rows over eight devices have no microbatches; sixty-four over four have up to sixteen."""
    eight = gptj_config(train__row_tokens=2048, mesh__data=1, mesh__fsdp=8)
    assert advice.training_flags(eight, families.spec_of(eight.model), Topology("small", 8, 12.0)) == ""
    many = gptj_config(train__row_tokens=2048, train__batch_rows=64, mesh__data=1, mesh__fsdp=4)
    flags, _, parts = advice.training_flags(many, families.spec_of(many.model), Topology("large", 4, 48.0)).rpartition(
        "="
    )
    assert flags.endswith("--config.train.microbatches") and int(parts) in (2, 4, 8, 16)
