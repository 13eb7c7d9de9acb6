"""star_jax.algorithms.budget: counted sizes are those of the arrays and of the compiled programs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import config
from star_jax.algorithms import budget, setup
from star_jax.algorithms.budget import Lengths
from star_jax.models import families
from star_jax.models.spec import DecoderSpec
from star_jax.preflight import model_sizes, programs
from tests.support.models import TINY, numpy_params

LENGTHS = Lengths(128, 16, 128)
_SMALL = dict(hidden_size=64, intermediate_size=128, head_dim=16, vocab_size=512)
# A published model -> smaller sizes, of the same rules. Gemma's window is shorter than prefix and rows.
SMALLER = {
    "GPT-J-6B": dict(n_layer=2, n_embd=64, n_head=8, rotary_dim=8, vocab_size=512),
    "Qwen3-0.6B": dict(num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4, **_SMALL),
    "Llama-3.1-8B": dict(num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2, **_SMALL),
    "Gemma-3-1B": dict(
        num_hidden_layers=3, num_attention_heads=4, sliding_window=32, sliding_window_pattern=3, **_SMALL
    ),
}


def small(name: str) -> DecoderSpec:
    return families.read_spec(name, {**model_sizes.MODELS[name], **SMALLER[name]})


def settings_of(spec: DecoderSpec, remat: str = "full") -> config.Config:
    """Training over fsdp and, if the KV heads divide, tensor; in sampling, a device has two KV heads if it can."""
    values = config.default("arithmetic")
    values.base.path = "none"
    values.model.remat = remat
    tensor = min(2, spec.n_kv_heads)
    values.mesh.update(dict(data=1, fsdp=8 // tensor, tensor=tensor))
    values.train.update(dict(batch_rows=8, row_tokens=256))
    values.sampling.update(dict(slots=32, queue=32, prefill_tokens=32, tensor=max(1, spec.n_kv_heads // 2)))
    return config.from_dict(values)


def test_the_parameter_count_is_that_of_the_arrays():
    assert budget.parameter_count(families.spec_of(TINY)) == sum(
        leaf.size for leaf in jax.tree.leaves(numpy_params(TINY))
    )


def test_the_counted_train_state_is_that_of_the_arrays():
    """Weights and both moments on one of eight devices. Norms and biases are not sharded."""
    wrong = []
    for name in SMALLER:
        settings, spec = settings_of(small(name)), small(name)
        mesh, _ = setup.meshes(settings, spec)
        leaves = jax.tree.leaves(programs.abstract_train_state(settings, spec, mesh))
        size = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
        counted = budget.train_bytes(settings, spec, dict(mesh.shape))[0]
        if counted != pytest.approx(size, rel=0.06):
            wrong.append((name, counted, size))
    assert not wrong


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "Gemma-3-1B" else pytest.mark.slow) for name in SMALLER]
)
def test_the_counted_sampling_loop_is_the_compiled_one(name):
    """Arguments: weights and prefix cache, shorter in local layers. Temporaries: the ring cache most of all.

    XLA:CPU keeps copies of a cache with one KV head (tests/benchmarks/LOG.md), which are not counted.
    """
    spec = small(name)
    settings = settings_of(spec)
    _, sampling_mesh = setup.meshes(settings, spec)
    lower = functools.partial(programs.lower_sampling_loop, settings, spec, sampling_mesh, LENGTHS)
    memory = programs.measure("sampling loop", lower)
    assert memory.peak > 0 and memory.hlo_text
    arguments, temporaries = budget.sampling_bytes(settings, spec, sampling_mesh.shape["tensor"], LENGTHS)
    assert arguments == pytest.approx(memory.arguments, rel=0.06)
    if spec.n_kv_heads > 1:
        assert 0.8 * temporaries < memory.temporaries < 1.5 * temporaries


@pytest.mark.slow
def test_the_counted_train_step_is_an_upper_bound_of_the_compiled_one():
    """The scores of all pairs are counted, which blockwise attention does not keep."""
    wrong = []
    for name in SMALLER:
        spec = small(name)
        for remat in ("full", "dots"):
            settings = settings_of(spec, remat)
            mesh, _ = setup.meshes(settings, spec)
            memory = programs.measure("train step", functools.partial(programs.lower_train_step, settings, spec, mesh))
            arguments, temporaries = budget.train_bytes(settings, spec, dict(mesh.shape))
            if arguments != pytest.approx(memory.arguments, rel=0.06) or temporaries < memory.temporaries:
                wrong.append((name, remat, arguments, temporaries, memory.arguments, memory.temporaries))
    assert not wrong


def test_the_counted_activations_are_those_that_are_kept_for_the_backward_pass():
    """Of what jax.vjp keeps, remat="dots" adds to "full" what is counted; compiled sizes depend on the machine."""
    wrong = []
    for name in SMALLER:
        spec, kept, counted = small(name), {}, {}
        for remat in ("full", "dots"):
            settings = settings_of(spec, remat)
            model = families.build(settings.model, spec)
            params = programs.abstract_train_state(settings, spec, setup.meshes(settings, spec)[0]).params
            tokens_RT = jax.ShapeDtypeStruct((settings.train.batch_rows, settings.train.row_tokens), jnp.int32)

            def backward(params, tokens_RT, model=model):
                inputs = [tokens_RT] * 3  # tokens, positions, segment ids: only their shapes count
                return jax.vjp(lambda p: model.apply({"params": p}, *inputs, method="packed_hidden"), params)[1]

            leaves = jax.tree.leaves(jax.eval_shape(backward, params, tokens_RT))
            kept[remat] = sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
            counted[remat] = budget.train_bytes(settings, spec, dict(data=1, fsdp=1, tensor=1))[1]
        ratio = (counted["dots"] - counted["full"]) / (kept["dots"] - kept["full"])
        if not 0.97 <= ratio <= 1.25:
            wrong.append((name, ratio))
    assert not wrong


def test_attended_keys_and_pairs_are_the_sums_of_the_masks():
    """Brute force: the entries of each layer's mask. `attended_pairs` counts half of the diagonal."""
    wrong = []
    for name in SMALLER:
        spec, length = small(name), 100
        positions = np.arange(length)
        distance_TS = positions[:, None] - positions
        pairs = keys = 0.0
        for n in range(spec.n_layers):
            visible_TS = (distance_TS >= 0) & (distance_TS < (spec.window if spec.is_local(n) else length))
            pairs += visible_TS.sum() - np.trace(visible_TS) / 2
            keys += visible_TS[-1].sum()
        counted = budget.attended_pairs(spec, length), budget.attended_keys(spec, length)
        if counted != pytest.approx((pairs, keys), rel=0.01):
            wrong.append((name, counted, pairs, keys))
    assert not wrong


def test_matmul_weights_are_those_of_the_products():
    """Of GPT-2 without the learned positions; a tied head counts as the head and not as the embedding."""
    for name in ("Qwen3-8B", "Llama-3.2-1B", "GPT-2"):
        spec = model_sizes.spec_of(name)
        layer = 2 * (spec.n_heads + spec.n_kv_heads) * spec.head_dim + (2 if name == "GPT-2" else 3) * spec.d_mlp
        blocks, head = budget.matmul_weights(spec)
        assert blocks == pytest.approx(spec.n_layers * spec.d_model * layer, rel=2e-3), name  # norms and biases
        assert head == spec.d_model * spec.vocab_size


def test_a_token_s_keys_and_values_are_those_of_the_kv_heads():
    spec = model_sizes.spec_of("Qwen3-4B")
    assert budget.kv_token_bytes(spec, "bfloat16") == 36 * 2 * 8 * 128 * 2
    fewer = dataclasses.replace(spec, n_kv_heads=4)
    assert budget.kv_token_bytes(fewer, "bfloat16") * 2 == budget.kv_token_bytes(spec, "bfloat16")
