"""Ring-cache attention, plain and by the Triton kernels (emulated without a GPU), against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from star_jax.config import MeshConfig
from star_jax.distributed import platforms, sharding
from star_jax.models import decoder, families
from star_jax.models.attention import ring, triton
from star_jax.models.attention.masks import KV, SharedPrefix
from star_jax.models.attention.ring import RingMask
from star_jax.models.attention.softmax import ScoreSpec
from star_jax.sampling import kv_cache
from tests.support.attention import PLAIN, one_query, prefix_keys
from tests.support.models import TINY, normal_arrays, numpy_params

ROWS, HEADS, KV_HEADS, SLOTS, SIZE = 6, 8, 4, 19, 16
INTERPRET = platforms.cuda_capability() == (0, 0)


def ring_arrays(rows: int = ROWS, heads: int = HEADS, kv_heads: int = KV_HEADS, size: int = SIZE):
    """(queries of a decode step, a ring cache with a key in every slot)."""
    shared = (rows, kv_heads, SLOTS, size)
    q_BHTK, k_BHSK, v_BHSK = normal_arrays((rows, heads, 1, size), shared, shared)
    return q_BHTK, KV(k_BHSK, v_BHSK)


def shared_prefix(
    size: int, length: int, first: int = 0, kv_heads: int = KV_HEADS, features: int = SIZE
) -> SharedPrefix:
    return SharedPrefix(KV(*normal_arrays(*[(kv_heads, size, features)] * 2, seed=1)), length, first)


def positions(mask, prefix):
    """[B, 1]: of the rows' newest tokens."""
    return mask.filled_B[:, None] + (0 if prefix is None else prefix.length)


def reference(q_BHTK, kv, mask, prefix, scores=PLAIN):
    """A row's own keys, then the prefix's, as far as the window reaches."""
    q_BHTK, k_BHSK, v_BHSK = (np.asarray(x, np.float64) for x in (q_BHTK, *kv))
    y_BHTK, at_B = np.zeros(q_BHTK.shape), np.asarray(positions(mask, prefix))[:, 0]
    _, heads, _, size = q_BHTK.shape
    for row, filled in enumerate(np.asarray(mask.filled_B)):
        visible_slots = (mask.slot - np.arange(min(filled + 1, SLOTS, scores.window or SLOTS))) % SLOTS
        for head in range(heads):
            kv_head = head * k_BHSK.shape[1] // heads
            shared = prefix_keys(prefix, kv_head, at_B[row], scores, size)
            keys = (
                np.concatenate([x[row, kv_head, visible_slots], y])
                for x, y in zip((k_BHSK, v_BHSK), shared, strict=True)
            )
            y_BHTK[row, head, 0] = one_query(q_BHTK[row, head, 0], *keys, scores)
    return y_BHTK


def by_kernels(q_BHTK, kv, mask, prefix, scores=PLAIN):
    at_BT = positions(mask, prefix)
    return ring.attend_triton(q_BHTK, kv, mask, scores, at_BT, prefix, interpret=INTERPRET)


def test_rows_attend_to_their_slots_and_the_prefix():
    """The prefix: none, full, with padding, one token. The newest slot: first, inside, last. Groups of rows: 1, 3."""
    q_BHTK, kv = ring_arrays()
    filled_B = jnp.array([0, 1, 3, SLOTS - 2, SLOTS - 1, SLOTS + 40])  # the last one: an idle row, which counts on
    wrong = []
    for prefix, slots in (
        (None, (0, 7, SLOTS - 1)),
        (shared_prefix(48, 48), (0,)),
        (shared_prefix(48, 33), (7, SLOTS - 1)),
        (shared_prefix(64, 1), (7,)),
    ):
        for slot in slots:
            mask = RingMask(slot, filled_B)
            expected = reference(q_BHTK, kv, mask, prefix)
            outputs = {"kernels": by_kernels(q_BHTK, kv, mask, prefix)}
            for groups in (1, 3):
                size = ROWS // groups
                grouped = tuple(KV(*(x[i : i + size] for x in kv)) for i in range(0, ROWS, size))
                outputs[f"{groups} groups"] = mask.attend(q_BHTK, grouped, PLAIN, positions(mask, prefix), prefix)
            for name, y_BHTK in outputs.items():
                if not np.allclose(y_BHTK, expected, rtol=2e-6, atol=2e-6):
                    wrong.append((name, slot, prefix and prefix.length))
    assert not wrong


def test_head_sizes_groups_windows_and_soft_caps():
    """Head sizes 80 and 96 are no powers of two. The window ends in the ring, at its end, and in the prefix."""
    mask, wrong = RingMask(7, jnp.array([0, 1, 3, SLOTS - 2, SLOTS - 1, SLOTS + 40])), []
    for size, heads, kv_heads, scores, keys in (
        (64, 4, 4, ScoreSpec(0.125, window=3), None),
        (80, 4, 2, ScoreSpec(0.1, softcap=0.7, window=SLOTS + 4), (48, 41, 0)),
        (128, 4, 1, ScoreSpec(0.1, window=SLOTS + 20), (32, 47, 19)),
        (96, 3, 1, ScoreSpec(0.1), (48, 48, 0)),
        (256, 2, 1, ScoreSpec(0.02, softcap=0.7), (16, 9, 0)),
    ):
        q_BHTK, kv = ring_arrays(heads=heads, kv_heads=kv_heads, size=size)
        prefix = keys and shared_prefix(*keys, kv_heads=kv_heads, features=size)
        expected = reference(q_BHTK, kv, mask, prefix, scores)
        plain = mask.attend(q_BHTK, (kv,), scores, positions(mask, prefix), prefix)
        for name, y_BHTK in (("kernels", by_kernels(q_BHTK, kv, mask, prefix, scores)), ("plain", plain)):
            if not np.allclose(y_BHTK, expected, rtol=5e-6, atol=5e-6):
                wrong.append((name, size, scores))
    assert not wrong


def test_keys_outside_of_the_mask_are_not_used():
    """NaN in slots that no row attends to, and huge numbers in the prefix's padding, change nothing."""
    (q_BHTK, kv), prefix = ring_arrays(), shared_prefix(32, 20)
    slot, filled = 4, 6
    mask = RingMask(slot, jnp.full((ROWS,), filled))
    expected = by_kernels(q_BHTK, kv, mask, prefix)
    hidden = np.setdiff1d(np.arange(SLOTS), (slot - np.arange(filled + 1)) % SLOTS)
    broken_kv = KV(*(x.at[:, :, hidden].set(np.nan) for x in kv))
    broken_prefix = prefix._replace(kv=KV(*(x.at[:, prefix.length :].set(1e6) for x in prefix.kv)))
    y_BHTK = by_kernels(q_BHTK, broken_kv, mask, broken_prefix)
    np.testing.assert_array_equal(y_BHTK, expected)


@pytest.mark.parametrize(
    "rows", [pytest.param(1, marks=pytest.mark.slow), pytest.param(64, marks=pytest.mark.slow), 70]
)
def test_the_prefix_kernel_takes_any_number_of_rows(rows):
    """Rows are visited in blocks of 16 or 64; the last block is padded."""
    q_BHK, k_HPK, v_HPK = normal_arrays((rows, 2, SIZE), (2, 48, SIZE), (2, 48, SIZE))
    prefix, at_B = SharedPrefix(KV(k_HPK, v_HPK), jnp.asarray(40), jnp.asarray(0)), jnp.full((rows,), 50)
    state = triton.prefix_softmax(q_BHK, prefix, PLAIN, at_B, interpret=INTERPRET)
    scores_BHP = np.einsum("BHK,HPK->BHP", *(np.asarray(x, np.float64) for x in (q_BHK, k_HPK[:, :40]))) * PLAIN.scale
    max_BH = scores_BHP.max(axis=-1)
    weights_BHP = np.exp(scores_BHP - max_BH[..., None])
    out_BHK = np.einsum("BHP,HPK->BHK", weights_BHP, np.asarray(v_HPK[:, :40], np.float64))
    np.testing.assert_allclose(state.max, max_BH, rtol=1e-5)
    np.testing.assert_allclose(state.sum_exp, weights_BHP.sum(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(state.out, out_BHK, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config", [pytest.param(MeshConfig(data=8), marks=pytest.mark.slow), MeshConfig(data=2, tensor=4)]
)
def test_heads_may_be_sharded(config):
    """As in the engine: rows by a shard_map over `data`, heads by the compiler."""
    mesh = sharding.make_mesh(config)
    (q_BHTK, kv), prefix, filled_B = ring_arrays(rows=8), shared_prefix(32, 30), jnp.arange(8)

    def attend(q_BHTK, kv, filled_B, prefix_kv):
        mask = RingMask(5, filled_B)
        return by_kernels(q_BHTK, kv, mask, prefix._replace(kv=prefix_kv))

    rows, replicated = PartitionSpec("data"), PartitionSpec()
    specs = rows, rows, rows, replicated
    sharded = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=rows, axis_names={"data"}, check_vma=False)
    with sharding.use(mesh, local_rows=True):
        y_BHTK = jax.jit(sharded)(q_BHTK, kv, filled_B, prefix.kv)
    expected = reference(q_BHTK, kv, RingMask(5, filled_B), prefix)
    np.testing.assert_allclose(y_BHTK, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.slow
def test_decode_steps_are_the_same_by_the_kernels(monkeypatch):
    """Logits and the cache, over more steps than the ring has slots."""
    model, params = families.build(TINY), decoder.split_layers(numpy_params(TINY))
    tokens_P = jnp.asarray(np.random.default_rng(0).integers(0, TINY.vocab_size, 32))
    prefix = jax.jit(kv_cache.encode_prefix, static_argnums=0)(model, params, tokens_P, 29)

    def decode():
        step = jax.jit(lambda *args: kv_cache.decode_step(model, *args))
        cache, logits = kv_cache.empty_cache(model, 4, 6), []
        for n in range(9):
            logits_BV, cache = step(params, jnp.arange(4) + n, cache, prefix)
            logits.append(logits_BV)
        return jnp.stack(logits), cache

    expected = decode()

    def attend_triton(mask, q_BHTK, groups, scores, positions_BT, prefix):
        return ring.attend_triton(q_BHTK, *groups, mask, scores, positions_BT, prefix, interpret=INTERPRET)

    monkeypatch.setattr(RingMask, "attend", attend_triton)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), decode(), expected)
