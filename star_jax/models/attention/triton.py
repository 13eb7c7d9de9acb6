"""Attention of a decode step on CUDA GPUs: two kernels (Pallas, through Triton). Nothing imports them elsewhere.

For a row's own keys XLA would read all slots of the ring, turn the values' layout, and spend more on both than on the
step's matrix products; for the prefix it writes scores to memory and reads them four times. The kernels read each key
and value once, and of the ring only what belongs to the row. All other products are the libraries'.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from star_jax.models.attention.softmax import SoftmaxState

# Of what was tried on an H200 (LOG.md of the benchmarks): 4.0 TB/s, where a copy runs at 4.3.
LANES = 4  # keys of the ring that a program of one warp works on while the next are on their way
QUERIES, KEYS = 64, 32  # of the prefix's products in a program


def over_prefix(
    q_BHK: jax.Array, k_HPK: jax.Array, v_HPK: jax.Array, length: jax.Array, *, interpret: bool = False
) -> SoftmaxState:
    """All rows' queries over the first `length` of keys that they share. P is a multiple of 16, K a power of two."""
    (rows, heads, size), places = q_BHK.shape, k_HPK.shape[1]
    queries, keys = QUERIES if rows >= QUERIES else 16, KEYS if places % KEYS == 0 else 16
    padded = -(-rows // queries) * queries
    of_rows = pl.BlockSpec((queries, None, size), lambda h, b: (b, h, 0))
    of_head = pl.BlockSpec((None, places, size), lambda h, b: (h, 0, 0))
    number = pl.BlockSpec((queries, None), lambda h, b: (b, h))
    numbers_BH = jax.ShapeDtypeStruct((padded, heads), jnp.float32)
    found = pl.pallas_call(
        functools.partial(_queries, keys),
        grid=(heads, padded // queries),
        in_specs=[pl.BlockSpec((1,), lambda h, b: (0,)), of_rows, of_head, of_head],
        out_specs=[number, number, of_rows],
        out_shape=[numbers_BH, numbers_BH, jax.ShapeDtypeStruct((padded, heads, size), jnp.float32)],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="attention_over_prefix",
    )(
        jnp.reshape(length, (1,)).astype(jnp.int32),
        jnp.pad(q_BHK, ((0, padded - rows), (0, 0), (0, 0))),
        k_HPK,
        v_HPK,
    )
    return SoftmaxState(*(array[:rows] for array in found))


def _queries(keys, length_ref, q_ref, k_ref, v_ref, top_ref, total_ref, y_ref):
    """One head of some rows."""
    q_BK, length = q_ref[...], length_ref[0]
    (rows, size), low = q_BK.shape, jnp.finfo(jnp.float32).min

    def turn(n, carry):
        top_B, total_B, y_BK = carry
        at = pl.ds(n * keys, keys)
        scores_BP = jnp.dot(q_BK, k_ref[at, :].T, preferred_element_type=jnp.float32) * size**-0.5
        scores_BP = jnp.where((n * keys + jnp.arange(keys) < length)[None], scores_BP, low)
        higher_B = jnp.maximum(top_B, jnp.max(scores_BP, axis=1))
        kept_B, weights_BP = jnp.exp(top_B - higher_B), jnp.exp(scores_BP - higher_B[:, None])
        more_BK = jnp.dot(weights_BP.astype(q_BK.dtype), v_ref[at, :], preferred_element_type=jnp.float32)
        return higher_B, total_B * kept_B + jnp.sum(weights_BP, axis=1), y_BK * kept_B[:, None] + more_BK

    nothing = jnp.full((rows,), low), jnp.zeros((rows,)), jnp.zeros((rows, size))
    top_ref[...], total_ref[...], y_ref[...] = jax.lax.fori_loop(0, pl.cdiv(length, keys), turn, nothing)


def over_ring(
    q_BHK: jax.Array,
    k_BHSK: jax.Array,
    v_BHSK: jax.Array,
    slot: jax.Array,
    filled_B: jax.Array,
    shared: SoftmaxState,
    *,
    lanes: int = LANES,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k / sqrt(K)) v [B, H, K] over the keys of `shared` and a row's own in the ring, scores in float32.

    Args:
      slot: where the newest key lies; a row sees it and the `filled_B` in front of it, backwards around the ring.
      lanes: keys a turn, a power of two; so must K be.
      interpret: run by JAX itself, on any device.
    """
    rows, heads, slots, size = k_BHSK.shape

    def of_head(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *shape), lambda b, h: (b, h, *(0 for _ in shape)))

    return pl.pallas_call(
        functools.partial(_row, slots, lanes),
        grid=(rows, heads),
        in_specs=[
            pl.BlockSpec((1,), lambda b, h: (0,)),
            pl.BlockSpec((1,), lambda b, h: (b,)),
            of_head(size),
            of_head(slots, size),
            of_head(slots, size),
            of_head(1),
            of_head(1),
            of_head(size),
        ],
        out_specs=of_head(size),
        out_shape=jax.ShapeDtypeStruct(q_BHK.shape, q_BHK.dtype),
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
        name="attention_over_ring",
    )(
        jnp.reshape(slot, (1,)).astype(jnp.int32),
        jnp.minimum(filled_B + 1, slots).astype(jnp.int32),
        q_BHK,
        k_BHSK,
        v_BHSK,
        shared.top[..., None],
        shared.total[..., None],
        shared.y,
    )


def _row(slots, lanes, slot_ref, seen_ref, q_ref, k_ref, v_ref, top_ref, total_ref, y_ref, out_ref):
    """One head of one row. Each lane has a softmax of its own; they meet at the end."""
    size, slot, seen = q_ref.shape[0], slot_ref[0], seen_ref[0]
    q_1K = (q_ref[...].astype(jnp.float32) * size**-0.5)[None]
    low = jnp.finfo(jnp.float32).min

    def read(n):
        age_L = n * lanes + jnp.arange(lanes)
        place_L = jnp.where(age_L <= slot, slot - age_L, slot - age_L + slots)
        live_L = age_L < seen
        place_L = jnp.where(live_L, place_L, slot)  # of a key that is at hand: what is not the row's is not read
        return live_L, k_ref[place_L, :], v_ref[place_L, :]

    def turn(n, carry):
        (live_L, k_LK, v_LK), top_L, total_L, y_LK = carry
        following = read(n + 1)
        score_L = jnp.where(live_L, jnp.sum(q_1K * k_LK.astype(jnp.float32), axis=1), low)
        higher_L = jnp.maximum(top_L, score_L)
        kept_L, weight_L = jnp.exp(top_L - higher_L), jnp.where(live_L, jnp.exp(score_L - higher_L), 0.0)
        y_LK = y_LK * kept_L[:, None] + weight_L[:, None] * v_LK.astype(jnp.float32)
        return following, higher_L, total_L * kept_L + weight_L, y_LK

    nothing = jnp.full((lanes,), low), jnp.zeros((lanes,)), jnp.zeros((lanes, size))
    _, top_L, total_L, y_LK = jax.lax.fori_loop(0, pl.cdiv(seen, lanes), turn, (read(0), *nothing))
    top = jnp.maximum(jnp.max(top_L), top_ref[0])
    weight_L, shared = jnp.exp(top_L - top), jnp.exp(top_ref[0] - top)
    total = jnp.sum(total_L * weight_L) + shared * total_ref[0]
    y_K = jnp.sum(y_LK * weight_L[:, None], axis=0) + shared * y_ref[...]
    out_ref[...] = (y_K / total).astype(out_ref.dtype)
