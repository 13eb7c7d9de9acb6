"""The Triton decode kernels, interpreted by JAX without a GPU, against the plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from star_jax.config import MeshConfig
from star_jax.distributed import platforms, sharding
from star_jax.models import decoder
from star_jax.models.attention import dense, ring, triton
from star_jax.sampling import kv_cache
from tests.support.models import TINY, numpy_params

ROWS, HEADS, SLOTS, SIZE = 6, 4, 19, 16
INTERPRET = platforms.cuda_capability() == (0, 0)


def arrays(*shapes, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def plain(q_BHTK, k_BHSK, v_BHSK, slot, filled_B, prefix, length):
    """float64 NumPy, a row and a head at a time: the newest key and the `filled` before it, back around the ring."""
    q_BHTK, k_BHSK, v_BHSK = (np.asarray(x, np.float64) for x in (q_BHTK, k_BHSK, v_BHSK))
    y_BHTK = np.zeros(q_BHTK.shape)
    for row, filled in enumerate(np.asarray(filled_B)):
        places = (slot - np.arange(min(filled + 1, SLOTS))) % SLOTS
        for head in range(q_BHTK.shape[1]):
            k_SK, v_SK = k_BHSK[row, head, places], v_BHSK[row, head, places]
            if prefix is not None:
                shared = (np.asarray(x, np.float64)[head, :length] for x in prefix)
                k_SK, v_SK = (np.concatenate(both) for both in zip((k_SK, v_SK), shared, strict=True))
            score_S = k_SK @ q_BHTK[row, head, 0] / np.sqrt(SIZE)
            weight_S = np.exp(score_S - score_S.max())
            y_BHTK[row, head, 0] = weight_S @ v_SK / weight_S.sum()
    return y_BHTK


@pytest.mark.parametrize(("places", "length"), [(0, 0), (48, 48), (48, 33), (64, 1)])
@pytest.mark.parametrize("slot", [0, 7, SLOTS - 1])
def test_rows_see_their_own_part_of_the_ring_and_the_prefix(places, length, slot):
    q_BHTK, k_BHSK, v_BHSK = arrays((ROWS, HEADS, 1, SIZE), *[(ROWS, HEADS, SLOTS, SIZE)] * 2)
    prefix = decoder.KV(*arrays(*[(HEADS, places, SIZE)] * 2, seed=1)) if places else None
    filled_B = jnp.array([0, 1, 3, SLOTS - 2, SLOTS - 1, SLOTS + 40])  # the last: an idle row that counts on
    args = q_BHTK, k_BHSK, v_BHSK, slot, filled_B, prefix, length
    found = ring.kernel_over_ring(*args, interpret=INTERPRET)
    np.testing.assert_allclose(found, plain(*args), rtol=2e-6, atol=2e-6)
    for groups in (1, 3):  # arrays of so many rows each
        keys = [
            decoder.KV(*(x[i : i + ROWS // groups] for x in (k_BHSK, v_BHSK))) for i in range(0, ROWS, ROWS // groups)
        ]
        found = ring.over_ring(q_BHTK, keys, slot, filled_B, prefix, length)
        np.testing.assert_allclose(found, plain(*args), rtol=2e-6, atol=2e-6)


def test_what_is_not_the_rows_own_may_be_anything():
    """Slots that a row does not see, and the prefix's padding, are NaN or huge."""
    q_BHTK, k_BHSK, v_BHSK = arrays((ROWS, HEADS, 1, SIZE), *[(ROWS, HEADS, SLOTS, SIZE)] * 2)
    prefix, slot, filled = decoder.KV(*arrays(*[(HEADS, 32, SIZE)] * 2, seed=1)), 4, 6
    args = slot, jnp.full((ROWS,), filled), prefix, 20
    found = ring.kernel_over_ring(q_BHTK, k_BHSK, v_BHSK, *args, interpret=INTERPRET)
    hidden = np.setdiff1d(np.arange(SLOTS), (slot - np.arange(filled + 1)) % SLOTS)
    broken = [x.at[:, :, hidden].set(np.nan) for x in (k_BHSK, v_BHSK)]
    padding = decoder.KV(*(x.at[:, 20:].set(1e6) for x in prefix))
    again = ring.kernel_over_ring(q_BHTK, *broken, slot, args[1], padding, 20, interpret=INTERPRET)
    np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize("rows", [1, 16, 64, 70])
def test_any_number_of_rows(rows):
    """The prefix is gone over by blocks of rows, filled up with what is thrown away."""
    q_BHK, k_HPK, v_HPK = arrays((rows, 2, SIZE), (2, 48, SIZE), (2, 48, SIZE))
    found = triton.over_prefix(q_BHK, k_HPK, v_HPK, jnp.asarray(40), interpret=INTERPRET)
    scores_BHP = np.einsum("BHK,HPK->BHP", *(np.asarray(x, np.float64) for x in (q_BHK, k_HPK[:, :40]))) / np.sqrt(SIZE)
    top_BH = scores_BHP.max(axis=-1)
    weights_BHP = np.exp(scores_BHP - top_BH[..., None])
    np.testing.assert_allclose(found.top, top_BH, rtol=1e-5)
    np.testing.assert_allclose(found.total, weights_BHP.sum(axis=-1), rtol=1e-5)
    wanted = np.einsum("BHP,HPK->BHK", weights_BHP, np.asarray(v_HPK[:, :40], np.float64))
    np.testing.assert_allclose(found.y, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [MeshConfig(data=8), MeshConfig(data=2, tensor=4)])
def test_heads_may_lie_on_several_devices(config):
    """As in the sampler: rows by a shard_map over `data`, heads by the compiler."""
    mesh = sharding.make_mesh(config)
    q_BHTK, k_BHSK, v_BHSK = arrays((8, HEADS, 1, SIZE), *[(8, HEADS, SLOTS, SIZE)] * 2)
    prefix, filled_B = decoder.KV(*arrays(*[(HEADS, 32, SIZE)] * 2, seed=1)), jnp.arange(8)

    def attend(q_BHTK, k_BHSK, v_BHSK, filled_B, prefix):
        return ring.kernel_over_ring(q_BHTK, k_BHSK, v_BHSK, 5, filled_B, prefix, 30, interpret=INTERPRET)

    rows, shared = PartitionSpec("data"), PartitionSpec()
    specs = rows, rows, rows, rows, shared
    apart = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=rows, axis_names={"data"}, check_vma=False)
    with sharding.use(mesh, rows_apart=True):
        found = jax.jit(apart)(q_BHTK, k_BHSK, v_BHSK, filled_B, prefix)
    wanted = plain(q_BHTK, k_BHSK, v_BHSK, 5, filled_B, prefix, 30)
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)


def test_a_decode_step_is_the_same_through_them(monkeypatch):
    """The whole step, its cache too, over several turns around the ring."""
    config = TINY
    model, params = decoder.GPT(config), decoder.split_layers(numpy_params(config))
    tokens_P = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, 32))
    prefix = kv_cache.encode_prefix(model, params, tokens_P, 29)

    def steps():
        cache, logits = kv_cache.empty_cache(config, 4, 6), []
        for n in range(9):
            tokens_B = jnp.arange(4) + n
            logits_BV, cache = kv_cache.decode_step(model, params, tokens_B, cache, prefix)
            logits.append(logits_BV)
        return jnp.stack(logits), cache

    wanted = steps()

    def through_kernels(q_BHTK, groups, *args):
        return ring.kernel_over_ring(q_BHTK, *groups[0], *args, interpret=INTERPRET)

    monkeypatch.setattr(ring, "over_ring", through_kernels)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), steps(), wanted)
