"""star_jax.preflight.defaults: the options of a preflight without --config are those of a run that fits."""

from star_jax import config
from star_jax.algorithms.budget import Lengths
from star_jax.preflight import defaults, model_sizes, programs
from star_jax.preflight.topology import Topology

LENGTHS = Lengths(1024, 128, 256)


def chosen(model: str, topology: Topology, **changes) -> tuple[config.Config, str]:
    options = defaults.values()
    options.base.path = "none"
    for name, value in changes.items():
        group, option = name.split("__")
        options[group][option] = value
    flags = defaults.complete(options, model_sizes.spec_of(model), topology, lambda _: LENGTHS)
    return config.from_dict(options), flags


def test_the_weights_are_sharded_over_as_few_devices_as_hold_them():
    """Qwen3-8B takes 15.3 GiB in bfloat16 and its caches 7 GiB. There are KV heads for eight devices."""
    tensors = {gib: chosen("Qwen3-8B", Topology("chip", 16, gib))[0].sampling.tensor for gib in (95, 32, 16, 1)}
    assert tensors == {95: 1, 32: 1, 16: 2, 1: 8}


def test_the_tensor_divides_heads_mlp_and_vocabulary():
    """Three KV heads, one KV head, an odd vocabulary: eight devices get a copy each."""
    wrong = []
    for model in ("SmolLM2-135M", "Gemma-3-1B", "GPT-2"):
        if programs.tensors(model_sizes.spec_of(model), 8) != [1]:
            wrong.append(model)
    assert not wrong
    assert programs.tensors(model_sizes.spec_of("Qwen3-4B"), 8) == [1, 2, 4, 8]


def test_the_batch_divides_over_the_devices():
    for devices, rows in ((1, 8), (8, 8), (3, 9), (16, 16)):
        assert chosen("Qwen3-0.6B", Topology("chip", devices, 80))[0].train.batch_rows == rows


def test_flags_take_precedence_and_are_repeated():
    typed, flags = chosen("Qwen3-0.6B", Topology("chip", 8, 80), sampling__tensor=4, train__batch_rows=32)
    assert (typed.sampling.tensor, typed.train.batch_rows, typed.model.remat) == (4, 32, "full")
    assert "--config.sampling.tensor=4" in flags.split() and "--config.train.batch_rows=32" in flags.split()
