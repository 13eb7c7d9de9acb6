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
from star_jax.models.attention.softmax import MASKED, SoftmaxState

# The best of the values tried on an H200 (tests/benchmarks/LOG.md): 4.0 TB/s, where a copy runs at 4.3.
LANES = 4  # keys of the ring that a program of one warp works on while the next ones are loaded
QUERIES, KEYS = 64, 32  # block sizes of the products with the prefix


def prefix_softmax(
    q_BHK: jax.Array, k_HPK: jax.Array, v_HPK: jax.Array, length: jax.Array, *, interpret: bool = False
) -> SoftmaxState:
    """State [B, H] of all rows' queries over the first `length` keys of the prefix.

    P must be a multiple of 16, K a power of two. `interpret`: emulate the kernel, on any device.
    """
    (rows, heads, size), prefix_size = q_BHK.shape, k_HPK.shape[1]
    queries, keys = QUERIES if rows >= QUERIES else 16, KEYS if prefix_size % KEYS == 0 else 16
    padded_rows = -(-rows // queries) * queries
    queries_spec = pl.BlockSpec((queries, None, size), lambda h, b: (b, h, 0))
    head_spec = pl.BlockSpec((None, prefix_size, size), lambda h, b: (h, 0, 0))
    numbers_spec = pl.BlockSpec((queries, None), lambda h, b: (b, h))
    numbers_BH = jax.ShapeDtypeStruct((padded_rows, heads), jnp.float32)
    arrays = pl.pallas_call(
        functools.partial(_prefix_kernel, keys),
        grid=(heads, padded_rows // queries),
        in_specs=[pl.BlockSpec((1,), lambda h, b: (0,)), queries_spec, head_spec, head_spec],
        out_specs=[numbers_spec, numbers_spec, queries_spec],
        out_shape=[numbers_BH, numbers_BH, jax.ShapeDtypeStruct((padded_rows, heads, size), jnp.float32)],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="attention_over_prefix",
    )(
        jnp.reshape(length, (1,)).astype(jnp.int32),
        jnp.pad(q_BHK, ((0, padded_rows - rows), (0, 0), (0, 0))),
        k_HPK,
        v_HPK,
    )
    return SoftmaxState(*(array[:rows] for array in arrays))


def _prefix_kernel(keys, length_ref, q_ref, k_ref, v_ref, max_ref, sum_exp_ref, out_ref):
    """One head of one block of rows."""
    q_BK, length = q_ref[...], length_ref[0]
    size = q_BK.shape[1]

    def key_block(n, state):
        block = pl.ds(n * keys, keys)
        scores_BP = jnp.dot(q_BK, k_ref[block, :].T, preferred_element_type=jnp.float32) * size**-0.5
        scores_BP = jnp.where((n * keys + jnp.arange(keys) < length)[None], scores_BP, MASKED)
        return softmax.extend(
            state,
            scores_BP,
            lambda weights_BP: jnp.dot(
                weights_BP.astype(q_BK.dtype), v_ref[block, :], preferred_element_type=jnp.float32
            ),
        )

    max_ref[...], sum_exp_ref[...], out_ref[...] = jax.lax.fori_loop(
        0, pl.cdiv(length, keys), key_block, softmax.empty(q_BK.shape)
    )


def attend_ring(
    q_BHK: jax.Array,
    k_BHSK: jax.Array,
    v_BHSK: jax.Array,
    slot: jax.Array,
    filled_B: jax.Array,
    prefix_state: SoftmaxState,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Attention output [B, H, K] over a row's own keys in the ring and the keys of `prefix_state`.

    Args:
      q_BHK: queries; K must be a power of two. Scores are float32.
      slot: slot of the newest key. A row attends to it and to the `filled_B` before it, backwards around the ring.
      interpret: emulate the kernel, on any device.
    """
    rows, heads, slots, size = k_BHSK.shape

    def head_spec(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *shape), lambda b, h: (b, h, *(0 for _ in shape)))

    return pl.pallas_call(
        functools.partial(_ring_kernel, slots, LANES),
        grid=(rows, heads),
        in_specs=[
            pl.BlockSpec((1,), lambda b, h: (0,)),
            pl.BlockSpec((1,), lambda b, h: (b,)),
            head_spec(size),
            head_spec(slots, size),
            head_spec(slots, size),
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
        jnp.minimum(filled_B + 1, slots).astype(jnp.int32),
        q_BHK,
        k_BHSK,
        v_BHSK,
        prefix_state.max[..., None],
        prefix_state.sum_exp[..., None],
        prefix_state.out,
    )


def _ring_kernel(slots, lanes, slot_ref, visible_ref, q_ref, k_ref, v_ref, max_ref, sum_exp_ref, out_ref, y_ref):
    """One head of one row. Each lane keeps a softmax state of its own; they are merged at the end."""
    size, slot, visible = q_ref.shape[0], slot_ref[0], visible_ref[0]
    q_1K = (q_ref[...].astype(jnp.float32) * size**-0.5)[None]

    def load(n):
        age_L = n * lanes + jnp.arange(lanes)
        index_L = jnp.where(age_L <= slot, slot - age_L, slot - age_L + slots)
        is_visible_L = age_L < visible
        index_L = jnp.where(is_visible_L, index_L, slot)  # slots that the row does not attend to are not read
        return is_visible_L, k_ref[index_L, :], v_ref[index_L, :]

    def attend_lanes(n, carry):
        (is_visible_L, k_LK, v_LK), max_L, sum_exp_L, out_LK = carry
        next_keys = load(n + 1)
        score_L = jnp.where(is_visible_L, jnp.sum(q_1K * k_LK.astype(jnp.float32), axis=1), MASKED)
        new_max_L = jnp.maximum(max_L, score_L)
        scale_L = jnp.exp(max_L - new_max_L)
        weight_L = jnp.where(is_visible_L, jnp.exp(score_L - new_max_L), 0.0)
        out_LK = out_LK * scale_L[:, None] + weight_L[:, None] * v_LK.astype(jnp.float32)
        return next_keys, new_max_L, sum_exp_L * scale_L + weight_L, out_LK

    carry = (load(0), *softmax.empty((lanes, size)))
    _, max_L, sum_exp_L, out_LK = jax.lax.fori_loop(0, pl.cdiv(visible, lanes), attend_lanes, carry)
    largest = jnp.maximum(jnp.max(max_L), max_ref[0])
    scale_L, prefix_scale = jnp.exp(max_L - largest), jnp.exp(max_ref[0] - largest)
    sum_exp = jnp.sum(sum_exp_L * scale_L) + prefix_scale * sum_exp_ref[0]
    out_K = jnp.sum(out_LK * scale_L[:, None], axis=0) + prefix_scale * out_ref[...]
    y_ref[...] = (out_K / sum_exp).astype(y_ref.dtype)
