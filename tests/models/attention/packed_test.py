"""PrefillMask training attention: equal to the dense softmax within segments, values and gradients."""

import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.config import MeshConfig, ModelConfig
from star_jax.distributed import sharding
from star_jax.models import decoder
from star_jax.models.attention import dense, packed
from star_jax.preflight import hlo
from tests.support.models import numpy_params

BATCH, HEADS, LENGTH, SIZE = 8, 8, 43, 6


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Six blocks a row, the last one short."""
    monkeypatch.setattr(packed, "BLOCK", 8)


def segment_ids(kind):
    rng = np.random.default_rng(3)
    if kind == "one":
        return np.ones((BATCH, LENGTH), np.int32)
    if kind == "a token each":
        return np.broadcast_to(1 + np.arange(LENGTH, dtype=np.int32), (BATCH, LENGTH)).copy()
    borders = np.sort(rng.integers(0, LENGTH, (BATCH, 4)), axis=1)
    ids_BT = 1 + np.sum(np.arange(LENGTH)[None, :, None] >= borders[:, None], axis=-1)
    return np.where(np.arange(LENGTH) >= borders[:, -1:], 0, ids_BT).astype(np.int32)  # the end is padding


def packed_rows():
    """Tokens of 24 ids, positions and segments [BATCH, LENGTH]."""
    ids_BT = segment_ids("packed")
    tokens_BT = np.random.default_rng(5).integers(0, 24, ids_BT.shape).astype(np.int32)
    return tokens_BT, np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids_BT.shape), ids_BT


def plain(q_BHTK, k_BHTK, v_BHTK, ids_BT):
    mask_BTS = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))[None] & (ids_BT[:, :, None] == ids_BT[:, None])
    return dense.masked(q_BHTK, k_BHTK, v_BHTK, mask_BTS)


def inputs(dtype="float32"):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal((BATCH, HEADS, LENGTH, SIZE)), dtype) for _ in range(3))


def with_gradients(function):
    def loss(q_BHTK, k_BHTK, v_BHTK, ids_BT):
        y_BHTK = function(q_BHTK, k_BHTK, v_BHTK, ids_BT).astype(jnp.float32)
        return jnp.sum(jnp.sin(y_BHTK)), y_BHTK

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize("kind", ["one", "a token each", "packed"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_it_is_the_plain_one(kind, dtype, tolerance):
    args = (*inputs(dtype), segment_ids(kind))
    found, wanted = with_gradients(packed.attend)(*args), with_gradients(plain)(*args)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=tolerance, atol=tolerance),
        (found[0][1], found[1]),
        (wanted[0][1], wanted[1]),
    )


def test_the_kernel_for_tpus_is_the_plain_one(monkeypatch):
    """Splash attention run by JAX itself; what TPUs get is compiled in preflight_test."""
    monkeypatch.setattr(sys.modules[__name__], "LENGTH", 256)
    rng = np.random.default_rng(0)
    args = (
        *(jnp.asarray(rng.standard_normal((2, 2, LENGTH, 128)), jnp.float32) for _ in range(3)),
        segment_ids("packed")[:2],
    )
    splash = functools.partial(packed._splash, interpret=True)
    found, wanted = with_gradients(splash)(*args), with_gradients(plain)(*args)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


def test_each_platform_gets_what_it_has(monkeypatch):
    """By the device of the program's mesh, and by what its kernels take."""
    tpu, old = (types.SimpleNamespace(device_kind=kind) for kind in ("TPU v5 lite", "TPU v3"))
    q_BHTK = jax.ShapeDtypeStruct((8, 16, 1024, 256), jnp.bfloat16)
    wide, short = (
        jax.ShapeDtypeStruct(q_BHTK.shape, jnp.float32),
        jax.ShapeDtypeStruct((8, 16, 1000, 256), jnp.bfloat16),
    )
    assert packed._best(q_BHTK, tpu) is packed._splash
    assert {packed._best(*case) for case in ((q_BHTK, old), (q_BHTK, None), (wide, tpu), (short, tpu))} == {
        packed._rows
    }
    for capability, cudnn in (((9, 0), True), ((8, 0), False)):  # heads of 256 features: Hopper's alone
        monkeypatch.setattr(packed.platforms, "cuda_capability", lambda capability=capability: capability)
        assert (packed._best(q_BHTK, None) is packed._cudnn) == cudnn
        assert packed._best(wide, None) not in (packed._cudnn, packed._rows)


def test_keys_that_no_segment_reaches_are_not_read():
    """Rows of two segments, the second at the third block: what stands in front may be NaN."""
    q_BHTK, k_BHTK, v_BHTK = inputs()
    ids_BT = np.broadcast_to(1 + (np.arange(LENGTH) >= 16).astype(np.int32), (BATCH, LENGTH))
    broken = v_BHTK.at[:, :, :16].set(np.nan)
    y_BHTK = jax.jit(packed.attend)(q_BHTK, k_BHTK, broken, ids_BT)
    assert np.isfinite(y_BHTK[:, :, 16:]).all() and np.isnan(y_BHTK[:, :, :16]).all()


@pytest.mark.parametrize(
    "config",
    [
        MeshConfig(data=8),
        MeshConfig(data=1, fsdp=8),
        MeshConfig(data=1, tensor=8),
        MeshConfig(data=2, fsdp=2, tensor=2),
    ],
    ids=["data", "fsdp", "tensor", "each"],
)
def test_on_a_mesh_it_is_the_same_and_says_nothing_to_other_devices(config):
    mesh, ids_BT = sharding.make_mesh(config), segment_ids("packed")
    wanted = with_gradients(plain)(*inputs(), ids_BT)
    heads = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"), "tensor"))
    placed = (*(jax.device_put(array, heads) for array in inputs()), sharding.put_rows(mesh, ids_BT))
    with sharding.use(mesh):
        found = with_gradients(packed.attend)(*placed)
        text = jax.jit(packed.attend).lower(*placed).compile().as_text()
    np.testing.assert_allclose(found[0][1], wanted[0][1], rtol=2e-6, atol=2e-6)
    for x, y in zip(found[1], wanted[1], strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=2e-6)
    assert hlo.collectives(text) == {}


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_training_s_pass_is_the_model_s_whatever_is_recomputed(remat):
    """`normed` with its segments against `__call__` with its mask: the same logits behind the head."""
    model = decoder.GPT(ModelConfig(2, 16, 4, 32, 2, 24, 64, "gptj", remat=remat))
    params, (tokens_BT, positions_BT, ids_BT) = numpy_params(model.config), packed_rows()

    def ours(params):
        kernel_DV, bias_V = decoder.head_weights(model.config, params)
        return (
            decoder.call(model, params, tokens_BT, positions_BT, ids_BT, method="normed") @ kernel_DV
            + bias_V[None, None]
        )

    def of(logits):
        return jax.jit(jax.value_and_grad(lambda params: jnp.mean(jnp.sin(logits(params)))))(params)

    found, wanted = of(ours), of(lambda params: decoder.apply(model, params, tokens_BT, positions_BT, ids_BT))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6), found[1], wanted[1])


def test_a_narrow_vocabulary_s_logits_are_the_model_s():
    """`segmented`, which trains models whose logits need no chunks, against `__call__` with its mask."""
    model = decoder.GPT(ModelConfig(2, 16, 4, 32, 2, 24, 64, "gptj"))
    params, (tokens_BT, positions_BT, ids_BT) = numpy_params(model.config), packed_rows()
    found = jax.jit(lambda params: decoder.call(model, params, tokens_BT, positions_BT, ids_BT, method="segmented"))(
        params
    )
    wanted = jax.jit(lambda params: decoder.apply(model, params, tokens_BT, positions_BT, ids_BT))(params)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_attention_runs_again_only_where_whole_blocks_do():
    """By the exponentials of a gradient's program: "dots" has no more of them than "none", "full" has."""
    exponentials = {}
    for remat in ("none", "dots", "full"):
        model = decoder.GPT(ModelConfig(2, 16, 4, 32, 2, 24, 64, "gptj", remat=remat))

        def loss(params, model=model):
            return jnp.sum(decoder.call(model, params, *packed_rows(), method="normed"))

        text = str(jax.make_jaxpr(jax.grad(loss))(numpy_params(model.config)))
        exponentials[remat] = text.count("= exp ")
    assert exponentials["dots"] == exponentials["none"] < exponentials["full"]
