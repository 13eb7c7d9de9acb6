"""Ring-cache attention on CUDA GPUs: two Pallas kernels, compiled through Triton. Imported by ring.py only.

For a row's own keys, XLA reads every slot of the ring and transposes the values, which takes longer than the step's
matrix products; for the prefix it writes the scores to memory and reads them four times. The kernels read each key and
value once, and of the ring only the slots that the row attends to. All other products are cuBLAS's.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from star_jax.models.attention import softmax
from star_jax.models.attention.masks import KV, SharedPrefix
from star_jax.models.attention.softmax import MASKED, ScoreSpec, SoftmaxState

# The best of the values tried on an H200 (tests/benchmarks/LOG.md): 4.0 TB/s, where a copy runs at 4.3.
LANES = 4  # keys of the ring that a program of one warp works on while the next ones are loaded
QUERIES, KEYS = 64, 32  # block sizes of the products with the prefix


def prefix_softmax(
    q_BHK: jax.Array, prefix: SharedPrefix, scores: ScoreSpec, position_B: jax.Array, *, interpret: bool = False
) -> SoftmaxState:
    """State [B, H] of all rows' queries, at the given positions, over the keys of the prefix.

    P must be a multiple of 16. `interpret`: emulate the kernel, on any device.
    """
    (k_HPK, v_HPK), length, first = prefix
    rows, heads, size = q_BHK.shape
    kv_heads, prefix_size, _ = k_HPK.shape
    groups = heads // kv_heads
    q_QHK = q_BHK.reshape(rows, kv_heads, groups, size).swapaxes(1, 2).reshape(-1, kv_heads, size)
    # The first key that a query attends to, as an index into P.
    start_B = position_B - scores.window + 1 - first if scores.window else jnp.zeros_like(position_B)
    start_Q = jnp.repeat(jnp.maximum(start_B, 0), groups).astype(jnp.int32)
    count = q_QHK.shape[0]
    queries, keys = QUERIES if count >= QUERIES else 16, KEYS if prefix_size % KEYS == 0 else 16
    padding = -count % queries
    queries_spec = pl.BlockSpec((queries, None, size), lambda h, b: (b, h, 0))
    head_spec = pl.BlockSpec((None, prefix_size, size), lambda h, b: (h, 0, 0))
    numbers_spec = pl.BlockSpec((queries, None), lambda h, b: (b, h))
    numbers_QH = jax.ShapeDtypeStruct((count + padding, kv_heads), jnp.float32)
    arrays = pl.pallas_call(
        functools.partial(_prefix_kernel, keys, scores),
        grid=(kv_heads, (count + padding) // queries),
        in_specs=[
            pl.BlockSpec((1,), lambda h, b: (0,)),
            pl.BlockSpec((queries,), lambda h, b: (b,)),
            queries_spec,
            head_spec,
            head_spec,
        ],
        out_specs=[numbers_spec, numbers_spec, queries_spec],
        out_shape=[numbers_QH, numbers_QH, jax.ShapeDtypeStruct((count + padding, kv_heads, size), jnp.float32)],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="attention_over_prefix",
    )(
        jnp.reshape(length - first, (1,)).astype(jnp.int32),
        jnp.pad(start_Q, (0, padding)),
        jnp.pad(q_QHK, ((0, padding), (0, 0), (0, 0))),
        k_HPK,
        v_HPK,
    )

    def to_rows(x_QH):
        x_BGH = x_QH[:count].reshape(rows, groups, kv_heads, *x_QH.shape[2:])
        return x_BGH.swapaxes(1, 2).reshape(rows, heads, *x_QH.shape[2:])

    return SoftmaxState(*map(to_rows, arrays))


def _prefix_kernel(keys, scores, length_ref, start_ref, q_ref, k_ref, v_ref, max_ref, sum_exp_ref, out_ref):
    """One KV head, for one block of queries."""
    all_queries = jnp.arange(q_ref.shape[0])
    q_QK, start_Q, length = _load_rows(q_ref, all_queries), start_ref[...], length_ref[0]

    def key_block(n, state):
        index_P = n * keys + jnp.arange(keys)
        products_QP = jnp.dot(q_QK, _load_rows(k_ref, index_P).T, preferred_element_type=jnp.float32)
        visible_QP = (index_P < length)[None]
        if scores.window:
            visible_QP &= index_P[None] >= start_Q[:, None]
        scores_QP = jnp.where(visible_QP, scores(products_QP), MASKED)
        return softmax.extend(
            state,
            scores_QP,
            lambda weights_QP: jnp.dot(
                weights_QP.astype(q_QK.dtype), _load_rows(v_ref, index_P), preferred_element_type=jnp.float32
            ),
        )

    first_block = jnp.min(start_Q) // keys if scores.window else 0
    max_ref[...], sum_exp_ref[...], out_QK = jax.lax.fori_loop(
        first_block, pl.cdiv(length, keys), key_block, softmax.empty(q_QK.shape)
    )
    _store_rows(out_ref, all_queries, out_QK)


def attend_ring(
    q_BHK: jax.Array,
    kv: KV,
    slot: jax.Array,
    filled_B: jax.Array,
    scores: ScoreSpec,
    prefix_state: SoftmaxState,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Attention output [B, H, K] over a row's own keys in the ring and the keys of `prefix_state`.

    Args:
      q_BHK: queries. Scores are float32.
      slot: slot of the newest key. A row attends to it and to the `filled_B` before it, backwards around the ring, as
        far as the window reaches.
      interpret: emulate the kernel, on any device.
    """
    _, kv_heads, slots, size = kv.k.shape
    groups = q_BHK.shape[1] // kv_heads
    visible = min(slots, scores.window) if scores.window else slots

    def head_spec(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *shape), lambda b, h: (b, h, *(0 for _ in shape)))

    kv_spec = pl.BlockSpec((None, None, slots, size), lambda b, h: (b, h // groups, 0, 0))
    return pl.pallas_call(
        functools.partial(_ring_kernel, slots, LANES, scores),
        grid=q_BHK.shape[:2],
        in_specs=[
            pl.BlockSpec((1,), lambda b, h: (0,)),
            pl.BlockSpec((1,), lambda b, h: (b,)),
            head_spec(size),
            kv_spec,
            kv_spec,
            head_spec(1),
            head_spec(1),
            head_spec(size),
        ],
        out_specs=head_spec(size),
        out_shape=jax.ShapeDtypeStruct(q_BHK.shape, q_BHK.dtype),
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
        name="attention_over_ring",
    )(
        jnp.reshape(slot, (1,)).astype(jnp.int32),
        jnp.minimum(filled_B + 1, visible).astype(jnp.int32),
        q_BHK,
        *kv,
        prefix_state.max[..., None],
        prefix_state.sum_exp[..., None],
        prefix_state.out,
    )


def _ring_kernel(
    slots, lanes, scores, slot_ref, visible_ref, q_ref, k_ref, v_ref, max_ref, sum_exp_ref, out_ref, y_ref
):
    """One head of one row. Each lane keeps a softmax state of its own; they are merged at the end."""
    slot, visible = slot_ref[0], visible_ref[0]
    q_1K = _load_features(q_ref).astype(jnp.float32)[None]

    def load(n):
        age_L = n * lanes + jnp.arange(lanes)
        index_L = jnp.where(age_L <= slot, slot - age_L, slot - age_L + slots)
        is_visible_L = age_L < visible
        index_L = jnp.where(is_visible_L, index_L, slot)  # slots that the row does not attend to are not read
        return is_visible_L, _load_rows(k_ref, index_L), _load_rows(v_ref, index_L)

    def attend_lanes(n, carry):
        (is_visible_L, k_LK, v_LK), max_L, sum_exp_L, out_LK = carry
        next_keys = load(n + 1)
        score_L = scores(jnp.sum(q_1K * k_LK.astype(jnp.float32), axis=1))
        score_L = jnp.where(is_visible_L, score_L, MASKED)
        new_max_L = jnp.maximum(max_L, score_L)
        scale_L = jnp.exp(max_L - new_max_L)
        weight_L = jnp.where(is_visible_L, jnp.exp(score_L - new_max_L), 0.0)
        out_LK = out_LK * scale_L[:, None] + weight_L[:, None] * v_LK.astype(jnp.float32)
        return next_keys, new_max_L, sum_exp_L * scale_L + weight_L, out_LK

    carry = (load(0), *softmax.empty((lanes, q_1K.shape[1])))
    _, max_L, sum_exp_L, out_LK = jax.lax.fori_loop(0, pl.cdiv(visible, lanes), attend_lanes, carry)
    largest = jnp.maximum(jnp.max(max_L), max_ref[0])
    scale_L, prefix_scale = jnp.exp(max_L - largest), jnp.exp(max_ref[0] - largest)
    sum_exp = jnp.sum(sum_exp_L * scale_L) + prefix_scale * sum_exp_ref[0]
    out_K = jnp.sum(out_LK * scale_L[:, None], axis=0) + prefix_scale * _load_features(out_ref)
    _store_features(y_ref, (out_K / sum_exp).astype(y_ref.dtype))


# Triton's arrays have powers of two as sizes. Heads of another size are loaded with a mask, as zeros from there on.


def _padded(size):
    return 1 << (size - 1).bit_length()


def _load_rows(ref, index_R):
    """[R, K] from a ref [.., K], K padded to a power of two."""
    size = ref.shape[-1]
    if size == _padded(size):
        return ref[index_R, :]
    index_K = jnp.arange(_padded(size))
    mask_RK = jnp.broadcast_to((index_K < size)[None], (index_R.shape[0], index_K.shape[0]))
    return triton.load(ref.at[index_R[:, None], jnp.minimum(index_K, size - 1)[None]], mask=mask_RK, other=0)


def _store_rows(ref, index_R, value_RK):
    size = ref.shape[-1]
    if size == _padded(size):
        ref[...] = value_RK
        return
    index_K = jnp.arange(_padded(size))
    mask_RK = jnp.broadcast_to((index_K < size)[None], value_RK.shape)
    triton.store(ref.at[index_R[:, None], index_K[None]], value_RK, mask=mask_RK)


def _load_features(ref):
    """[K] from a ref [K], padded to a power of two."""
    size = ref.shape[0]
    if size == _padded(size):
        return ref[...]
    index_K = jnp.arange(_padded(size))
    return triton.load(ref.at[jnp.minimum(index_K, size - 1)], mask=index_K < size, other=0)


def _store_features(ref, value_K):
    size = ref.shape[0]
    if size == _padded(size):
        ref[...] = value_K
        return
    index_K = jnp.arange(_padded(size))
    triton.store(ref.at[index_K], value_K, mask=index_K < size)
