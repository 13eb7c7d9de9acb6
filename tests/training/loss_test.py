"""star_jax.training.loss: the chunked loss has the values and gradients of all logits on every mesh, without them."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.config import MeshConfig, OptimizerConfig
from star_jax.distributed import sharding
from star_jax.models import decoder
from star_jax.models.decoder import Decoder
from star_jax.models.families import gpt2, gptj
from star_jax.preflight import hlo
from star_jax.training import fine_tune, loss
from star_jax.weights import placement
from tests.support.models import numpy_params

ROWS, LENGTH, VOCABULARY = 16, 12, 136
_SIZES = dict(n_layers=1, d_model=16, n_heads=8, d_mlp=32, vocab_size=VOCABULARY, max_positions=64)
GPTJ, GPT2 = Decoder(gptj.spec(**_SIZES, rotary_dim=2)), Decoder(gpt2.spec(**_SIZES))
CAPPED = Decoder(dataclasses.replace(GPT2.spec, logit_softcap=2.0))  # the logits' soft cap of Gemma 2
ONE, DATA, FSDP, TENSOR = MeshConfig(data=1), MeshConfig(data=8), MeshConfig(fsdp=8), MeshConfig(data=1, tensor=8)
EACH = MeshConfig(data=2, fsdp=2, tensor=2)
Z_LOSS = 1e-2
KINDS = ("some tokens", "no token", "all tokens", "some rows")
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def make_batch(kind="some tokens", length=LENGTH):
    """`kind`: which tokens have a weight. Weights are fractions."""
    rng, shape = np.random.default_rng(1), (ROWS, length)
    weights_RT = rng.integers(0, 2, shape) * rng.random(shape)
    if kind == "no token":
        weights_RT[:] = 0
    elif kind == "all tokens":
        weights_RT = rng.random(shape) + 0.5
    elif kind == "some rows":
        weights_RT[::3] = 0
        weights_RT[1::3] = 1
    return {
        "tokens_RT": rng.integers(0, VOCABULARY, shape).astype(np.int32),
        "positions_RT": np.broadcast_to(np.arange(length, dtype=np.int32) % 6, shape).copy(),
        "segment_ids_RT": np.broadcast_to(1 + np.arange(length, dtype=np.int32) // 6, shape).copy(),
        "weights_RT": weights_RT.astype(np.float32),
    }


@functools.cache
def reference_program(model):
    """Value and gradients from the logits [R, T, V] of all tokens, by JAX's own differentiation."""

    def summed_loss(params, batch):
        inputs = (batch[f"{name}_RT"] for name in ("tokens", "positions", "segment_ids"))
        x_RTD = decoder.call(model, params, *inputs, method="packed_hidden")
        kernel_DV, bias_V = (
            leaf if leaf is None else leaf.astype(x_RTD.dtype) for leaf in decoder.head_weights(model.spec, params)
        )
        logits_RTV = jnp.matmul(x_RTD, kernel_DV, preferred_element_type=jnp.float32)[:, :-1]
        if bias_V is not None:
            logits_RTV += bias_V.astype(jnp.float32)[None, None]
        if model.spec.logit_softcap:
            logits_RTV = model.spec.logit_softcap * jnp.tanh(logits_RTV / model.spec.logit_softcap)
        losses_RT = -decoder.log_probability(logits_RTV, batch["tokens_RT"][:, 1:])
        max_RT1 = jax.lax.stop_gradient(jnp.max(logits_RTV, axis=-1, keepdims=True))
        losses_RT += Z_LOSS * jax.nn.logsumexp(logits_RTV - max_RT1, axis=-1) ** 2
        return jnp.sum(losses_RT * batch["weights_RT"][:, 1:])

    return jax.jit(jax.value_and_grad(summed_loss))


@functools.cache
def reference(model, kind):
    return reference_program(model)(numpy_params(model.spec), make_batch(kind))


def chunked(model, chunk, tail=loss.TAIL):
    options = loss.ChunkOptions(Z_LOSS, chunk, tail)
    return lambda params, batch: loss.chunked_loss_sums(model, params, batch, options)[0]


def differing_leaves(actual, expected, tolerance):
    """Names of the leaves that differ, relative to the leaf's largest value.

    A gradient that is zero but for rounding is compared to a hundredth of the largest gradient.
    """
    gradients = [np.abs(np.asarray(leaf, np.float32)) for leaf in jax.tree.leaves(expected[1])]
    floor = 0.01 * max(float(np.max(leaf)) for leaf in gradients) + 1e-6
    names = []
    for (path, leaf), other in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == other.dtype
        leaf, other = np.asarray(leaf, np.float32), np.asarray(other, np.float32)
        largest = max(float(np.max(np.abs(other))), floor)
        if not np.max(np.abs(leaf - other)) <= tolerance * largest:
            names.append(jax.tree_util.keystr(path))
    return names


@pytest.mark.parametrize(
    ("model", "chunk"),
    [(GPTJ, 7), (GPT2, 1000), (CAPPED, 7), slow(GPTJ, 1000), slow(GPT2, 7)],
    ids=["gptj, 7", "gpt2, 1000", "soft cap, 7", "gptj, 1000", "gpt2, 7"],
)
def test_loss_and_gradients_are_those_of_all_logits(model, chunk):
    """A chunk of 7 does not divide the tokens; one of 1,000 is more than there are."""
    params, wrong = numpy_params(model.spec), []
    loss_alone, with_gradients = (jax.jit(f(chunked(model, chunk))) for f in (lambda f: f, jax.value_and_grad))
    for kind in KINDS:
        batch, expected = make_batch(kind), reference(model, kind)
        if names := differing_leaves(with_gradients(params, batch), expected, 2e-5):
            wrong.append((kind, names))
        if not np.isclose(loss_alone(params, batch), expected[0], rtol=1e-6):
            wrong.append((kind, "loss without gradients"))
    assert not wrong


@pytest.mark.parametrize(
    ("model", "mesh_config", "chunk", "tail"),
    [
        (GPTJ, ONE, 8, 3),
        slow(GPTJ, DATA, 5, 5),
        slow(GPTJ, FSDP, 8, 3),
        slow(GPTJ, TENSOR, 5, 5),
        (GPTJ, EACH, 8, 3),
        slow(GPT2, EACH, 5, 5),
        slow(CAPPED, EACH, 5, 5),
    ],
    ids=["one device", "data", "fsdp", "tensor", "each", "gpt2, each", "soft cap, each"],
)
def test_every_mesh_has_the_loss_and_gradients_of_all_logits(model, mesh_config, chunk, tail):
    """Chunks with and without smaller ones for the remainder. Rows without loss are on some devices only.

    Between devices go, in a chunk, maxima, sums and gradients of x, if the vocabulary is sharded; after the last chunk
    the kernel's gradient, once; never logits.
    """
    mesh, wrong = sharding.make_mesh(mesh_config), []
    with sharding.use(mesh):
        program = jax.jit(jax.value_and_grad(chunked(model, chunk, tail))).lower(*put(mesh, model, make_batch()))
        program = program.compile()
        for kind in KINDS:
            actual = program(*put(mesh, model, make_batch(kind)))
            if names := differing_leaves(actual, reference(model, kind), 2e-5):
                wrong.append((kind, names))
    assert not wrong
    if mesh.size > 1 and model is GPTJ:
        collectives = hlo.collectives(program.as_text())  # loop depth -> collectives
        assert set(collectives) == ({0, 1} if mesh_config.tensor > 1 else {0})
        assert max((one.size for one in collectives.get(1, [])), default=0) <= 4 * chunk * model.spec.d_model
        shard = 4 * model.spec.d_model * VOCABULARY // mesh.shape["tensor"] // mesh.shape["fsdp"]
        scattered = [one.times for one in collectives[0] if one.kind == "reduce-scatter" and one.size == shard]
        assert scattered == [1] * (mesh_config.fsdp > 1)


def put(mesh, model, batch):
    """(parameters, batch) on the mesh."""
    params = jax.device_put(numpy_params(model.spec), placement.param_shardings(model, mesh))
    return params, {name: sharding.put_rows(mesh, array) for name, array in batch.items()}


@pytest.mark.slow
@pytest.mark.parametrize("model", [GPTJ, GPT2], ids=["gptj", "gpt2"])
def test_loss_and_gradients_in_bfloat16(model):
    """Logits are summed in float32 on both sides, so only rounding in the backward pass differs."""
    model = model.clone(compute_dtype="bfloat16")
    actual = jax.jit(jax.value_and_grad(chunked(model, 7)))(numpy_params(model.spec), make_batch())
    expected = reference(model, "some tokens")
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)
    assert not differing_leaves(actual, expected, 0.03)


def test_the_unchunked_loss_is_the_same():
    model, params, batch = GPTJ, numpy_params(GPTJ.spec), make_batch()
    sums = jax.jit(lambda params, batch: loss.unchunked_loss_sums(model, params, batch, Z_LOSS))(params, batch)
    expected = reference(GPTJ, "some tokens")[0], np.sum(batch["weights_RT"][:, 1:])
    np.testing.assert_allclose(sums, expected, rtol=1e-6)


def test_a_narrow_vocabulary_is_not_chunked():
    """Logits of 20 symbols are smaller than one layer's activations."""
    assert loss.use_chunked_loss(GPTJ.spec) and not loss.use_chunked_loss(dataclasses.replace(GPTJ.spec, vocab_size=20))


def test_tokens_without_weight_are_not_used():
    """Their inputs may be NaN: this reaches neither the loss nor a gradient."""
    rng, weights_RT = np.random.default_rng(0), jnp.asarray(make_batch()["weights_RT"])
    x_RTD = np.where(weights_RT[..., None] > 0, rng.standard_normal((ROWS, LENGTH, 16)), np.nan).astype(np.float32)
    kernel_DV = rng.standard_normal((16, VOCABULARY)).astype(np.float32)
    targets_RT = jnp.asarray(rng.integers(0, VOCABULARY, weights_RT.shape), jnp.int32)

    def summed_loss(x_RTD, kernel_DV):
        return loss.chunked_cross_entropy(loss.ChunkOptions(Z_LOSS, 8), x_RTD, kernel_DV, None, targets_RT, weights_RT)

    value, (dx_RTD, dkernel_DV) = jax.jit(jax.value_and_grad(summed_loss, argnums=(0, 1)))(x_RTD, kernel_DV)
    assert np.isfinite(value) and np.isfinite(dkernel_DV).all()
    assert np.array_equal(np.any(np.asarray(dx_RTD) != 0, axis=-1), weights_RT > 0)


def array_shapes(text):
    return {tuple(int(n) for n in dims.split(",")) for dims in re.findall(r"[a-z]+[0-9]+\[([0-9,]+)\]", text)}


@pytest.mark.parametrize(
    ("model", "microbatches"),
    [(GPTJ, 2), slow(GPT2, 1), slow(GPTJ, 1), slow(GPT2, 2)],
    ids=["gptj, two microbatches", "gpt2", "gptj", "gpt2, two microbatches"],
)
def test_a_train_step_holds_one_chunk_of_logits(model, microbatches):
    model, mesh, adam = model, sharding.make_mesh(ONE), OptimizerConfig()
    params, rows = put(mesh, model, make_batch(length=64))
    with sharding.use(mesh):
        state = fine_tune.initial_state(adam, params)
        step = fine_tune.train_step.lower(model, adam, state, rows, np.float32(0.1), Z_LOSS, microbatches)
        text = step.compile().as_text()
    sizes = [np.prod(dims) for dims in array_shapes(text) if VOCABULARY in dims]
    assert sizes and max(sizes) <= loss.CHUNK * VOCABULARY < ROWS * 64 * VOCABULARY // microbatches
    unchunked = jax.jit(lambda p, b: loss.unchunked_loss_sums(model, p, b)).lower(params, rows).compile().as_text()
    assert any(np.prod(dims) >= ROWS * 63 * VOCABULARY for dims in array_shapes(unchunked))  # all logits would be found


@pytest.mark.parametrize(
    ("mesh_config", "microbatches"),
    [(ONE, 1), slow(ONE, 4), slow(EACH, 2)],
    ids=["one device", "one device, four microbatches", "each, two microbatches"],
)
def test_train_steps_are_those_of_all_logits(mesh_config, microbatches, monkeypatch):
    model, mesh, adam = GPTJ, sharding.make_mesh(mesh_config), OptimizerConfig(learning_rate=0.01)

    def train():
        params, rows = put(mesh, GPTJ, make_batch())
        state, losses = fine_tune.initial_state(adam, params), []
        with sharding.use(mesh):
            for _ in range(3):
                state, metrics = fine_tune.train_step(model, adam, state, rows, np.float32(0.01), Z_LOSS, microbatches)
                losses.append(float(metrics["loss"]))
        fine_tune.train_step.clear_cache()
        return losses

    losses = train()
    monkeypatch.setattr(loss, "use_chunked_loss", lambda model: False)
    assert losses == pytest.approx(train(), rel=1e-5)
    assert losses[-1] < losses[0]


def test_a_loss_without_gradients_has_one_product_with_the_head():
    params, batch = numpy_params(GPTJ.spec), make_batch()

    def head_products(function):
        text = jax.jit(function).lower(params, batch).as_text()
        return sum("dot_general" in line and f"x{VOCABULARY}x" in line for line in text.splitlines())

    assert head_products(chunked(GPTJ, 7)) == 1
    assert head_products(jax.grad(chunked(GPTJ, 7))) == 4  # and the gradients of x, kernel and bias
