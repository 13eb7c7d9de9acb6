"""star_jax.training.loss: the loss and gradients of all logits, whatever carries loss, on every mesh; and no logits."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.config import MeshConfig, ModelConfig, OptimizerConfig
from star_jax.distributed import sharding
from star_jax.models import decoder
from star_jax.preflight import hlo
from star_jax.training import loss
from star_jax.training import step as train_step
from star_jax.weights import placement
from tests.support.models import numpy_params

ROWS, LENGTH, VOCABULARY = 16, 12, 136
GPTJ = ModelConfig(n_layers=1, d_model=16, n_heads=8, d_mlp=32, rotary_dim=2, vocab_size=VOCABULARY, max_positions=64)
GPT2 = ModelConfig(1, 16, 8, 32, 0, VOCABULARY, 64, "gpt2")
FAMILIES = pytest.mark.parametrize("config", [GPTJ, GPT2], ids=["gptj", "gpt2"])
MESHES = [MeshConfig(data=8), MeshConfig(fsdp=8), MeshConfig(data=1, tensor=8), MeshConfig(data=2, fsdp=2, tensor=2)]
Z_LOSS = 1e-2


def make_batch(kind="fractions", length=LENGTH):
    rng, shape = np.random.default_rng(1), (ROWS, length)
    weights_RT = rng.integers(0, 2, shape) * rng.random(shape)
    if kind == "none":
        weights_RT[:] = 0
    elif kind == "all":
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


def plain(model, params, batch):
    """With all logits [R, T, V] in float32, and what JAX makes of that."""
    x_RTD = decoder.call(
        model, params, *(batch[f"{n}_RT"] for n in ("tokens", "positions", "segment_ids")), method="packed_hidden"
    )
    kernel_DV, bias_V = (
        leaf if leaf is None else leaf.astype(x_RTD.dtype) for leaf in decoder.head_weights(model.config, params)
    )
    logits_RTV = jnp.matmul(x_RTD, kernel_DV, preferred_element_type=jnp.float32)[:, :-1]
    if bias_V is not None:
        logits_RTV += bias_V.astype(jnp.float32)[None, None]
    losses_RT = -decoder.log_probability(logits_RTV, batch["tokens_RT"][:, 1:])
    top_RT1 = jax.lax.stop_gradient(jnp.max(logits_RTV, axis=-1, keepdims=True))
    losses_RT += Z_LOSS * jax.nn.logsumexp(logits_RTV - top_RT1, axis=-1) ** 2
    return jnp.sum(losses_RT * batch["weights_RT"][:, 1:])


def chunked(model, chunk, tail=loss.TAIL):
    return lambda params, batch: loss.loss_sums(model, params, batch, loss.Options(Z_LOSS, chunk, tail))[0]


def assert_close(found, wanted, tolerance):
    """Each leaf, relative to its largest value; a gradient that is zero but for rounding, to a hundredth of all's."""
    floor = (
        0.01 * max(float(np.max(np.abs(np.asarray(leaf, np.float32)))) for leaf in jax.tree.leaves(wanted[1])) + 1e-6
    )
    for (path, leaf), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        assert leaf.dtype == other.dtype
        leaf, other = np.asarray(leaf, np.float32), np.asarray(other, np.float32)
        largest = max(float(np.max(np.abs(other))), floor)
        assert np.max(np.abs(leaf - other)) <= tolerance * largest, jax.tree_util.keystr(path)


@FAMILIES
@pytest.mark.parametrize("kind", ["fractions", "none", "all", "some rows"])
def test_loss_and_gradients_are_those_of_all_logits(config, kind):
    """A chunk of 7 divides nothing; one of 1,000 is more than there is."""
    model, params, batch = decoder.GPT(config), numpy_params(config), make_batch(kind)
    wanted = jax.jit(jax.value_and_grad(lambda params, batch: plain(model, params, batch)))(params, batch)
    for chunk in (7, 64, 1000):
        found = jax.jit(jax.value_and_grad(chunked(model, chunk)))(params, batch)
        assert_close(found, wanted, 2e-5)
        np.testing.assert_allclose(jax.jit(chunked(model, chunk))(params, batch), wanted[0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["fractions", "none", "all", "some rows"])
@pytest.mark.parametrize(
    "mesh_config", [MeshConfig(data=1), *MESHES[1::2]], ids=["one", "fsdp8", "data2-fsdp2-tensor2"]
)
def test_what_is_left_behind_whole_chunks_goes_by_in_small_ones(kind, mesh_config):
    """Tails of 3 behind chunks of 8: none, one and some of both, on each device its own."""
    model, params, batch, mesh = (
        decoder.GPT(GPTJ),
        numpy_params(GPTJ),
        make_batch(kind),
        sharding.make_mesh(mesh_config),
    )
    wanted = jax.jit(jax.value_and_grad(lambda params, batch: plain(model, params, batch)))(params, batch)
    with sharding.use(mesh):
        found = jax.jit(jax.value_and_grad(chunked(model, 8, 3)))(*place(mesh, model, params, batch))
    assert_close(found, wanted, 2e-5)


@FAMILIES
def test_so_they_are_in_bfloat16(config):
    """Logits are summed in float32 on both sides, so only what is rounded on the way back differs."""
    model, params, batch = (
        decoder.GPT(dataclasses.replace(config, compute_dtype="bfloat16")),
        numpy_params(config),
        make_batch(),
    )
    wanted = jax.jit(jax.value_and_grad(lambda params, batch: plain(model, params, batch)))(params, batch)
    found = jax.jit(jax.value_and_grad(chunked(model, 7)))(params, batch)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    assert_close(found, wanted, 0.03)


def test_it_is_the_trainer_s_own_loss():
    model, params, batch = decoder.GPT(GPTJ), numpy_params(GPTJ), make_batch()
    wanted = jax.jit(lambda params, batch: train_step.loss_sums(model, params, batch, Z_LOSS))(params, batch)
    found = jax.jit(lambda params, batch: loss.loss_sums(model, params, batch, loss.Options(Z_LOSS, 7)))(params, batch)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_place_without_weight_is_not_looked_at():
    """What stands there may be anything, NaN even: it comes neither into the loss nor into a gradient."""
    rng, weights_RT = np.random.default_rng(0), jnp.asarray(make_batch()["weights_RT"])
    x_RTD = np.where(weights_RT[..., None] > 0, rng.standard_normal((ROWS, LENGTH, 16)), np.nan).astype(np.float32)
    kernel_DV = rng.standard_normal((16, VOCABULARY)).astype(np.float32)
    targets_RT = jnp.asarray(rng.integers(0, VOCABULARY, weights_RT.shape), jnp.int32)

    def of(x_RTD, kernel_DV):
        return loss.chunked_cross_entropy(loss.Options(Z_LOSS, 8), x_RTD, kernel_DV, None, targets_RT, weights_RT)

    value, (dx_RTD, dkernel_DV) = jax.jit(jax.value_and_grad(of, argnums=(0, 1)))(x_RTD, kernel_DV)
    assert np.isfinite(value) and np.isfinite(dkernel_DV).all()
    assert np.array_equal(np.any(np.asarray(dx_RTD) != 0, axis=-1), weights_RT > 0)


def place(mesh, model, params, batch):
    placed = jax.tree.map(sharding.put, params, placement.param_shardings(model, mesh))
    return placed, {name: sharding.put_rows(mesh, array) for name, array in batch.items()}


@pytest.mark.parametrize(
    ("config", "mesh_config"),
    [*((GPTJ, mesh) for mesh in MESHES), (GPT2, MESHES[-1])],
    ids=lambda c: f"data{c.data}-fsdp{c.fsdp}-tensor{c.tensor}" if isinstance(c, MeshConfig) else c.architecture,
)
def test_every_mesh_has_one_device_s_gradients(config, mesh_config):
    """Rows with nothing to predict lie on some devices only: all go over as many chunks."""
    model, params, batch, mesh = (
        decoder.GPT(config),
        numpy_params(config),
        make_batch("some rows"),
        sharding.make_mesh(mesh_config),
    )
    wanted = jax.jit(jax.value_and_grad(chunked(model, 7)))(params, batch)
    with sharding.use(mesh):
        found = jax.jit(jax.value_and_grad(chunked(model, 5)))(*place(mesh, model, params, batch))
    assert_close(found, wanted, 2e-5)


@pytest.mark.parametrize("mesh_config", MESHES, ids=lambda c: f"data{c.data}-fsdp{c.fsdp}-tensor{c.tensor}")
def test_nothing_wide_goes_between_devices_and_the_head_s_gradient_once(mesh_config):
    """A chunk says its maxima, sums and hidden gradients; behind the last the kernel's gradient is summed once."""
    model, params, batch, mesh = decoder.GPT(GPTJ), numpy_params(GPTJ), make_batch(), sharding.make_mesh(mesh_config)
    chunk = 8
    placed = place(mesh, model, params, batch)
    with sharding.use(mesh):
        text = jax.jit(jax.value_and_grad(chunked(model, chunk))).lower(*placed).compile().as_text()
    found = hlo.collectives(text)
    # Depth 0 is a call, 1 a chunk, in which only those speak that split the vocabulary.
    assert set(found) == ({0, 1} if mesh_config.tensor > 1 else {0})
    assert max((one.size for one in found.get(1, [])), default=0) <= 4 * chunk * GPTJ.d_model
    split = 4 * GPTJ.d_model * VOCABULARY // mesh.shape["tensor"] // mesh.shape["fsdp"]
    scattered = [one.times for one in found[0] if one.kind == "reduce-scatter" and one.size == split]
    assert scattered == [1] * (mesh_config.fsdp > 1)


def shapes_of(text):
    return {tuple(int(n) for n in dims.split(",")) for dims in re.findall(r"[a-z]+[0-9]+\[([0-9,]+)\]", text)}


@FAMILIES
@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_train_step_holds_no_logits_but_a_chunk_s(config, microbatches):
    model, batch, mesh = decoder.GPT(config), make_batch(length=64), sharding.make_mesh(MeshConfig(data=1))
    params, rows = place(mesh, model, numpy_params(config), batch)
    adam = OptimizerConfig()
    with sharding.use(mesh):
        state = train_step.initial_state(adam, params)
        step = train_step.train_step.lower(model, adam, state, rows, np.float32(0.1), Z_LOSS, microbatches)
        text = step.compile().as_text()
    wide = [dims for dims in shapes_of(text) if VOCABULARY in dims]
    assert (
        wide and max(np.prod(dims) for dims in wide) <= loss.CHUNK * VOCABULARY < ROWS * 64 * VOCABULARY // microbatches
    )
    everything = jax.jit(lambda p, b: train_step.loss_sums(model, p, b)).lower(params, rows).compile().as_text()
    assert any(np.prod(dims) >= ROWS * 63 * VOCABULARY for dims in shapes_of(everything))  # the test would see them


@pytest.mark.parametrize(
    ("mesh_config", "microbatches"),
    [(MeshConfig(data=1), 1), (MeshConfig(data=1), 4), (MESHES[-1], 2)],
    ids=["one", "one in 4 parts", "data2-fsdp2-tensor2 in 2 parts"],
)
def test_train_steps_are_those_of_all_logits(mesh_config, microbatches, monkeypatch):
    model, batch, mesh = decoder.GPT(GPTJ), make_batch(), sharding.make_mesh(mesh_config)
    adam = OptimizerConfig(learning_rate=0.01)

    def losses():
        params, rows = place(mesh, model, numpy_params(GPTJ), batch)
        state, found = train_step.initial_state(adam, params), []
        with sharding.use(mesh):
            for _ in range(3):
                state, metrics = train_step.train_step(model, adam, state, rows, np.float32(0.01), Z_LOSS, microbatches)
                found.append(float(metrics["loss"]))
        return found

    found = losses()
    train_step.train_step.clear_cache()
    monkeypatch.setattr(loss, "use_chunked_loss", lambda config: False)
    assert found == pytest.approx(losses(), rel=1e-5)
    train_step.train_step.clear_cache()
    assert found[-1] < found[0]


def test_a_loss_alone_costs_no_gradient():
    model, params, batch = decoder.GPT(GPTJ), numpy_params(GPTJ), make_batch()

    def products(function):
        text = jax.jit(function).lower(params, batch).as_text()
        return sum("dot_general" in line and f"x{VOCABULARY}x" in line for line in text.splitlines())

    assert products(chunked(model, 7)) == 1
    assert products(jax.grad(chunked(model, 7))) == 4  # and those of the gradients of x, kernel and bias


def test_a_narrow_vocabulary_keeps_its_logits():
    """Those of 20 symbols are smaller than one layer's activations."""
    assert loss.use_chunked_loss(GPTJ) and not loss.use_chunked_loss(dataclasses.replace(GPTJ, vocab_size=20))
