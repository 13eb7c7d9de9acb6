"""Dense attention: any boolean mask, all scores at once. It is the reference for the other backends."""

from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp

from star_jax.models.attention import softmax
from star_jax.models.attention.masks import KV, SharedPrefix
from star_jax.models.attention.softmax import MASKED, ScoreSpec, SoftmaxState


class DenseMask(NamedTuple):
    """Any mask, as booleans. Keys are the tokens of the row, in the order of their positions."""

    mask_BTS: jax.Array  # True where query t attends to key s, without regard to a window

    def attend(
        self,
        q_BHTK: jax.Array,
        kv: KV,
        scores: ScoreSpec,
        positions_BT: jax.Array,
        prefix: SharedPrefix | None = None,
    ) -> jax.Array:
        """Attention output [B, H, T, K]; see masks.AttentionMask."""
        return attend(q_BHTK, kv, windowed(self.mask_BTS, scores), scores, positions_BT, prefix)


def windowed(mask_BTS: jax.Array, scores: ScoreSpec) -> jax.Array:
    """The mask, restricted to keys within the window. Queries and keys are the same tokens."""
    if not scores.window:
        return mask_BTS
    index_T = jnp.arange(mask_BTS.shape[1])
    return mask_BTS & (index_T[:, None] - index_T[None] < scores.window)[None]


def attend(
    q_BHTK: jax.Array,
    kv: KV,
    mask_BTS: jax.Array,
    scores: ScoreSpec,
    positions_BT: jax.Array,
    prefix: SharedPrefix | None = None,
) -> jax.Array:
    """Attention output [B, H, T, K]; for a boolean mask that includes the window."""
    if has_keys(prefix):
        states = rows_softmax(q_BHTK, kv, mask_BTS, scores), prefix_softmax(q_BHTK, prefix, scores, positions_BT)
        return softmax.merge(*states).astype(q_BHTK.dtype)
    q_BHQK = group_queries(q_BHTK, kv)
    weights_BHQS = jax.nn.softmax(_row_scores(q_BHQK, kv, mask_BTS, scores), axis=-1).astype(q_BHTK.dtype)
    return jnp.einsum("BHQS,BHSK->BHQK", weights_BHQS, kv.v).reshape(q_BHTK.shape)


def has_keys(prefix: SharedPrefix | None) -> TypeGuard[SharedPrefix]:
    """True unless the prefix is absent or has room for no key."""
    return prefix is not None and prefix.kv.k.shape[1] > 0


def group_queries(q_BHTK: jax.Array, kv: KV) -> jax.Array:
    """[B, H of the keys, Q, K]: the queries of all heads that share a KV head, one head after the other."""
    return q_BHTK.reshape(*q_BHTK.shape[:1], kv.k.shape[-3], -1, q_BHTK.shape[-1])


def rows_softmax(q_BHTK: jax.Array, kv: KV, mask_BTS: jax.Array, scores: ScoreSpec) -> SoftmaxState:
    """State [B, H, T] over the rows' own keys."""
    scores_BHQS = _row_scores(group_queries(q_BHTK, kv), kv, mask_BTS, scores)
    state = softmax.partial_softmax(scores_BHQS, 3, lambda weights: _weighted_sum("BHQS,BHSK->BHQK", weights, kv.v))
    return SoftmaxState(*(x.reshape(*q_BHTK.shape[:3], *x.shape[3:]) for x in state))


def prefix_softmax(q_BHTK: jax.Array, prefix: SharedPrefix, scores: ScoreSpec, positions_BT: jax.Array) -> SoftmaxState:
    """State [B, H, T] over the prefix: one product per KV head for the queries of all rows."""
    (k_HPK, v_HPK), length, first = prefix
    rows, heads, queries, size = q_BHTK.shape
    kv_heads = k_HPK.shape[0]
    groups = heads // kv_heads
    position_P = first + jnp.arange(k_HPK.shape[1])
    is_real_P = position_P < length
    if queries == 1:
        # Scores are [H, P, B], so that sums over P run along whole vectors of rows; tests/benchmarks/LOG.md.
        q_QHK = q_BHTK.reshape(rows, kv_heads, groups, size).swapaxes(1, 2).reshape(-1, kv_heads, size)
        visible_PQ = is_real_P[:, None]
        if scores.window:
            visible_PQ &= position_P[:, None] > jnp.repeat(positions_BT[:, 0] - scores.window, groups)[None]
        products_HPQ = jnp.einsum("HPK,QHK->HPQ", k_HPK, q_QHK, preferred_element_type=jnp.float32)
        scores_HPQ = jnp.where(visible_PQ[None], scores(products_HPQ), MASKED)
        state = softmax.partial_softmax(scores_HPQ, 1, lambda weights: _weighted_sum("HPQ,HPK->QHK", weights, v_HPK))

        def per_head(x_QH):
            x_BGHK = x_QH.reshape(rows, groups, kv_heads, *x_QH.shape[2:])
            return x_BGHK.swapaxes(1, 2).reshape(rows, heads, 1, *x_QH.shape[2:])

        return SoftmaxState(per_head(state.max.T), per_head(state.sum_exp.T), per_head(state.out))

    def to_rows(x_HQ):
        x_HBT = x_HQ.reshape(kv_heads, rows, groups * queries, *x_HQ.shape[2:]).swapaxes(0, 1)
        return x_HBT.reshape(rows, heads, queries, *x_HQ.shape[2:])

    q_HQK = q_BHTK.reshape(rows, kv_heads, groups * queries, size).swapaxes(0, 1).reshape(kv_heads, -1, size)
    visible_QP = is_real_P[None]
    if scores.window:
        position_Q = jnp.broadcast_to(positions_BT[:, None], (rows, groups, queries)).reshape(-1)
        visible_QP &= position_P[None] > position_Q[:, None] - scores.window
    products_HQP = jnp.einsum("HQK,HPK->HQP", q_HQK, k_HPK, preferred_element_type=jnp.float32)
    scores_HQP = jnp.where(visible_QP[None], scores(products_HQP), MASKED)
    state = softmax.partial_softmax(scores_HQP, 2, lambda weights: _weighted_sum("HQP,HPK->HQK", weights, v_HPK))
    return SoftmaxState(*map(to_rows, state))


def _row_scores(q_BHQK, kv, mask_BTS, scores):
    """[B, H, Q, S], float32, for grouped queries."""
    groups = q_BHQK.shape[2] // mask_BTS.shape[1]
    mask_BQS = jnp.tile(mask_BTS, (1, groups, 1)) if groups > 1 else mask_BTS
    products_BHQS = jnp.einsum("BHQK,BHSK->BHQS", q_BHQK, kv.k, preferred_element_type=jnp.float32)
    return jnp.where(mask_BQS[:, None], scores(products_BHQS), MASKED)


def _weighted_sum(axes, weights, values):
    return jnp.einsum(axes, weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
