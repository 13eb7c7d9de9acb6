"""Packed training attention: values and gradients of each backend against dense attention, on any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.config import MeshConfig, ModelConfig
from star_jax.distributed import platforms, sharding
from star_jax.models import decoder, families
from star_jax.models.attention import dense, packed
from star_jax.models.attention.masks import KV
from star_jax.models.attention.packed import PackedMask
from star_jax.models.attention.softmax import ScoreSpec
from star_jax.preflight import hlo
from tests.support.attention import BOTH, CAP, PLAIN, WINDOW
from tests.support.models import normal_arrays, numpy_params

BATCH, HEADS, LENGTH, SIZE = 8, 8, 43, 6
MODEL = ModelConfig(2, 16, 4, 32, 2, 24, 64, "gptj")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """On CPUs: blocks of four tokens, eleven per row, the last one short."""
    monkeypatch.setattr(packed, "BLOCK", 8)


def make_segment_ids(kind, length=LENGTH):
    rng = np.random.default_rng(3)
    if kind == "one segment":
        return np.ones((BATCH, length), np.int32)
    if kind == "one token each":
        return np.broadcast_to(1 + np.arange(length, dtype=np.int32), (BATCH, length)).copy()
    borders = np.sort(rng.integers(0, length, (BATCH, 4)), axis=1)
    ids_BT = 1 + np.sum(np.arange(length)[None, :, None] >= borders[:, None], axis=-1)
    return np.where(np.arange(length) >= borders[:, -1:], 0, ids_BT).astype(np.int32)  # the end is padding


def qkv(dtype="float32", kv_heads=HEADS):
    shared = (BATCH, kv_heads, LENGTH, SIZE)
    return normal_arrays((BATCH, HEADS, LENGTH, SIZE), shared, shared, dtype=dtype)


def attend(q_BHTK, k_BHTK, v_BHTK, ids_BT, scores=PLAIN):
    return PackedMask(ids_BT).attend(q_BHTK, KV(k_BHTK, v_BHTK), scores, jnp.zeros(ids_BT.shape, jnp.int32))


def attend_dense(q_BHTK, k_BHTK, v_BHTK, ids_BT, scores=PLAIN):
    """Every key that a head attends to is repeated, so that nothing is shared."""
    groups = q_BHTK.shape[1] // k_BHTK.shape[1]
    kv = KV(*(jnp.repeat(x_BHTK, groups, axis=1) for x_BHTK in (k_BHTK, v_BHTK)))
    index_T = jnp.arange(ids_BT.shape[1])
    mask_BTS = PackedMask(jnp.asarray(ids_BT)).boolean()
    if scores.window:
        mask_BTS &= (index_T[:, None] < index_T[None] + scores.window)[None]
    return dense.attend(q_BHTK, kv, mask_BTS, scores, jnp.zeros(ids_BT.shape, jnp.int32))


def with_gradients(function, **options):
    """(output, gradients of q, k and v), compiled."""

    def loss(q_BHTK, k_BHTK, v_BHTK, ids_BT):
        y_BHTK = function(q_BHTK, k_BHTK, v_BHTK, ids_BT, **options).astype(jnp.float32)
        return jnp.sum(jnp.sin(y_BHTK)), y_BHTK

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))

    def run(*args):
        (_, y_BHTK), gradients = compiled(*args)
        return y_BHTK, *gradients

    return run


def test_the_boolean_mask_is_causal_within_segments():
    ids_BT = np.array([[1, 1, 2, 2, 0]])
    visible = {(t, s) for t, s in np.argwhere(PackedMask(jnp.asarray(ids_BT)).boolean()[0]).tolist()}
    assert visible == {(0, 0), (1, 0), (1, 1), (2, 2), (3, 2), (3, 3), (4, 4)}


def test_blockwise_attention_is_dense_attention():
    wrong = []
    for dtype, tolerance in (("float32", 2e-6), ("bfloat16", 2e-2)):
        actual, expected = with_gradients(attend), with_gradients(attend_dense)
        for kind in ("one segment", "one token each", "packed"):
            args = (*qkv(dtype), make_segment_ids(kind))
            for name, x, y in zip("yqkv", actual(*args), expected(*args), strict=True):
                if not np.allclose(np.float32(x), np.float32(y), rtol=tolerance, atol=tolerance):
                    wrong.append((dtype, kind, name))
    assert not wrong


@pytest.mark.parametrize(
    "kv_heads, scores",
    [(HEADS, WINDOW), (2, BOTH), (1, CAP), (4, ScoreSpec(0.5, window=LENGTH + 9))],
    ids=["window", "four heads a key, window, soft cap", "one KV head, soft cap", "window longer than the text"],
)
def test_grouped_queries_windows_and_soft_caps_are_those_of_dense_attention(kv_heads, scores):
    """Gradients of a shared key are summed over the query heads of its group."""
    wrong = []
    for name, function in (("blockwise", attend), ("recomputed dense", _recomputed_dense)):
        actual, expected = (with_gradients(f, scores=scores) for f in (function, attend_dense))
        for kind in ("one segment", "packed"):
            args = (*qkv(kv_heads=kv_heads), make_segment_ids(kind))
            for which, x, y in zip("yqkv", actual(*args), expected(*args), strict=True):
                if x.shape != y.shape or not np.allclose(x, y, rtol=1e-5, atol=1e-5):
                    wrong.append((name, kind, which))
    assert not wrong


def _recomputed_dense(q_BHTK, k_BHTK, v_BHTK, ids_BT, scores):
    return packed.recomputed_dense(q_BHTK, KV(k_BHTK, v_BHTK), PackedMask(jnp.asarray(ids_BT)), scores)


def test_blocks_outside_of_the_window_are_not_read():
    """One segment of 43 tokens and a window of 5: values of the first 16 may be NaN from token 20 on."""
    q_BHTK, k_BHTK, v_BHTK = qkv(kv_heads=2)
    broken_BHTK = v_BHTK.at[:, :, :16].set(np.nan)
    y_BHTK = jax.jit(attend, static_argnums=4)(q_BHTK, k_BHTK, broken_BHTK, make_segment_ids("one segment"), WINDOW)
    assert np.isfinite(y_BHTK[:, :, 20:]).all() and np.isnan(y_BHTK[:, :, :16]).all()


@pytest.mark.parametrize(
    "kv_heads, size, scores",
    [(4, 128, PLAIN), (2, 128, BOTH), pytest.param(1, 64, WINDOW, marks=pytest.mark.slow)],
    ids=["plain", "grouped, window, soft cap", "head size 64, window"],
)
def test_splash_attention_is_dense_attention(kv_heads, size, scores):
    """JAX's kernel for TPUs, emulated. What TPUs get is compiled in preflight_test."""

    def splash(q_BHTK, k_BHTK, v_BHTK, ids_BT, scores):
        return packed.splash(q_BHTK, KV(k_BHTK, v_BHTK), PackedMask(ids_BT), scores, interpret=True)

    scores = dataclasses.replace(scores, window=scores.window and 50, scale=0.1)
    shared = (2, kv_heads, 256, size)
    args = (*normal_arrays((2, 4, 256, size), shared, shared), make_segment_ids("packed", length=256)[:2])
    actual, expected = (with_gradients(function, scores=scores) for function in (splash, attend_dense))
    for x, y in zip(actual(*args), expected(*args), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


def test_each_platform_has_its_backend(monkeypatch):
    """By the platform of the program, and by the shapes and dtypes that its kernels take."""
    half = jax.ShapeDtypeStruct((8, 16, 1024, 256), jnp.bfloat16)
    full = jax.ShapeDtypeStruct(half.shape, jnp.float32)
    short = jax.ShapeDtypeStruct((8, 16, 1000, 256), jnp.bfloat16)
    wrong = []
    for kind, capability, queries, backend, *scores in (
        ("TPU v5 lite", (0, 0), half, packed.splash),
        ("TPU v5 lite", (0, 0), full, packed.blockwise),
        ("TPU v5 lite", (0, 0), short, packed.blockwise),
        ("TPU v5 lite", (0, 0), jax.ShapeDtypeStruct((8, 32, 1024, 64), jnp.bfloat16), packed.splash),
        ("TPU v5 lite", (0, 0), jax.ShapeDtypeStruct((8, 32, 1024, 80), jnp.bfloat16), packed.blockwise),
        ("TPU v3", (0, 0), half, packed.blockwise),
        ("cpu", (0, 0), half, packed.blockwise),
        ("NVIDIA H200", (9, 0), half, packed.cudnn),
        ("NVIDIA A100", (8, 0), half, packed.recomputed_dense),  # heads of 256 features: Hopper's alone
        ("NVIDIA H200", (9, 0), full, packed.recomputed_dense),
        ("NVIDIA H200", (9, 0), half, packed.cudnn, WINDOW),
        ("NVIDIA H200", (9, 0), half, packed.recomputed_dense, CAP),  # which cuDNN does not compute
        ("TPU v5 lite", (0, 0), half, packed.splash, BOTH),
    ):
        monkeypatch.setattr(platforms, "device_kind", lambda kind=kind: kind)
        monkeypatch.setattr(platforms, "cuda_capability", lambda capability=capability: capability)
        if (actual := packed.choose_backend(queries, *(scores or [PLAIN]))) is not backend:
            wrong.append((kind, queries, actual))
    assert not wrong


def test_keys_before_a_block_s_segments_are_not_read():
    """Rows of two segments, the second from the third block on: values of the first may be NaN."""
    q_BHTK, k_BHTK, v_BHTK = qkv()
    ids_BT = np.broadcast_to(1 + (np.arange(LENGTH) >= 16).astype(np.int32), (BATCH, LENGTH))
    broken_BHTK = v_BHTK.at[:, :, :16].set(np.nan)
    y_BHTK = jax.jit(attend)(q_BHTK, k_BHTK, broken_BHTK, ids_BT)
    assert np.isfinite(y_BHTK[:, :, 16:]).all() and np.isnan(y_BHTK[:, :, :16]).all()


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(MeshConfig(data=8), marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=1, fsdp=8), marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=1, tensor=8), marks=pytest.mark.slow),
        MeshConfig(data=2, fsdp=2, tensor=2),
    ],
    ids=["data", "fsdp", "tensor", "each"],
)
def test_on_a_mesh_it_is_the_same_without_communication(config):
    mesh, ids_BT = sharding.make_mesh(config), make_segment_ids("packed")
    expected = with_gradients(attend_dense)(*qkv(), ids_BT)
    heads = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"), "tensor"))
    args = (*(jax.device_put(array, heads) for array in qkv()), sharding.put_rows(mesh, ids_BT))
    with sharding.use(mesh):
        actual = with_gradients(attend)(*args)
        text = jax.jit(attend).lower(*args).compile().as_text()
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=2e-6)
    assert hlo.collectives(text) == {}


def packed_rows():
    """Tokens of 24 ids, positions and segment ids [BATCH, LENGTH]."""
    ids_BT = make_segment_ids("packed")
    tokens_BT = np.random.default_rng(5).integers(0, 24, ids_BT.shape).astype(np.int32)
    return tokens_BT, np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids_BT.shape), ids_BT


@pytest.mark.parametrize(
    "remat", [pytest.param("none", marks=pytest.mark.slow), pytest.param("dots", marks=pytest.mark.slow), "full"]
)
def test_packed_hidden_is_the_reference_pass_under_any_remat(remat):
    """Logits from `packed_hidden` against `__call__`, values and gradients."""
    model, rows = families.build(dataclasses.replace(MODEL, remat=remat)), packed_rows()

    def packed_logits(params):
        kernel_DV, bias_V = decoder.head_weights(model.spec, params)
        return decoder.call(model, params, *rows, method="packed_hidden") @ kernel_DV + bias_V[None, None]

    def compare(logits):
        return jax.jit(jax.value_and_grad(lambda params: jnp.mean(jnp.sin(logits(params)))))(numpy_params(model.spec))

    actual, expected = compare(packed_logits), compare(lambda params: decoder.apply(model, params, *rows))
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6), actual[1], expected[1])


def test_packed_logits_are_those_of_the_reference_pass():
    """`packed_logits` trains models whose loss is not chunked."""
    model, params, rows = families.build(MODEL), numpy_params(MODEL), packed_rows()
    actual = jax.jit(lambda params: decoder.call(model, params, *rows, method="packed_logits"))(params)
    expected = jax.jit(lambda params: decoder.apply(model, params, *rows))(params)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_only_full_remat_computes_attention_again():
    """By the exponentials in the gradient's program: "dots" has no more of them than "none", "full" has."""
    exponentials = {}
    for remat in ("none", "dots", "full"):
        model = families.build(dataclasses.replace(MODEL, remat=remat))

        def loss(params, model=model):
            return jnp.sum(decoder.call(model, params, *packed_rows(), method="packed_hidden"))

        text = str(jax.make_jaxpr(jax.grad(loss))(numpy_params(model.spec)))
        exponentials[remat] = text.count("= exp ")
    assert exponentials["dots"] == exponentials["none"] < exponentials["full"]
