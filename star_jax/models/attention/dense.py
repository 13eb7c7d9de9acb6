"""Dense attention: any boolean mask, all scores at once. It is the reference for the other backends."""

from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp

from star_jax.models.attention import softmax
from star_jax.models.attention.masks import KV, SharedPrefix
from star_jax.models.attention.softmax import MASKED, SoftmaxState


class DenseMask(NamedTuple):
    """Any mask, as booleans."""

    mask_BTS: jax.Array  # True where query t attends to key s

    def attend(self, q_BHTK: jax.Array, kv: KV, prefix: SharedPrefix | None = None) -> jax.Array:
        """Attention output [B, H, T, K]; see masks.AttentionMask."""
        return attend(q_BHTK, kv, self.mask_BTS, prefix)


def attend(q_BHTK: jax.Array, kv: KV, mask_BTS: jax.Array, prefix: SharedPrefix | None = None) -> jax.Array:
    """Attention output [B, H, T, K]; for a boolean mask. Scores are float32."""
    if has_keys(prefix):
        states = rows_softmax(q_BHTK, kv, mask_BTS), prefix_softmax(q_BHTK, prefix)
        return softmax.merge(*states).astype(q_BHTK.dtype)
    weights_BHTS = jax.nn.softmax(_row_scores(q_BHTK, kv, mask_BTS), axis=-1).astype(q_BHTK.dtype)
    return jnp.einsum("BHTS,BHSK->BHTK", weights_BHTS, kv.v)


def has_keys(prefix: SharedPrefix | None) -> TypeGuard[SharedPrefix]:
    """True unless the prefix is absent or has room for no key."""
    return prefix is not None and prefix.kv.k.shape[1] > 0


def rows_softmax(q_BHTK: jax.Array, kv: KV, mask_BTS: jax.Array) -> SoftmaxState:
    """State [B, H, T] over the rows' own keys."""
    scores_BHTS = _row_scores(q_BHTK, kv, mask_BTS)
    return softmax.partial_softmax(scores_BHTS, 3, lambda weights: _weighted_sum("BHTS,BHSK->BHTK", weights, kv.v))


def prefix_softmax(q_BHTK: jax.Array, prefix: SharedPrefix) -> SoftmaxState:
    """State [B, H, T] over the prefix: one product per head for the queries of all rows."""
    rows, heads, length, size = q_BHTK.shape
    (k_HPK, v_HPK), prefix_length = prefix
    is_real_P = jnp.arange(k_HPK.shape[1]) < prefix_length
    if length == 1:
        # Scores are [H, P, B], so that sums over P run along whole vectors of rows; tests/benchmarks/LOG.md.
        scores_HPB = jnp.einsum("HPK,BHK->HPB", k_HPK, q_BHTK[:, :, 0], preferred_element_type=jnp.float32)
        scores_HPB = jnp.where(is_real_P[None, :, None], scores_HPB * size**-0.5, MASKED)
        state = softmax.partial_softmax(scores_HPB, 1, lambda weights: _weighted_sum("HPB,HPK->BHK", weights, v_HPK))
        return SoftmaxState(state.max.T[..., None], state.sum_exp.T[..., None], state.out[:, :, None])

    def to_rows(x_HQ):
        return x_HQ.reshape(heads, rows, length, *x_HQ.shape[2:]).swapaxes(0, 1)

    q_HQK = q_BHTK.swapaxes(0, 1).reshape(heads, rows * length, size)
    scores_HQP = jnp.einsum("HQK,HPK->HQP", q_HQK, k_HPK, preferred_element_type=jnp.float32)
    scores_HQP = jnp.where(is_real_P[None, None], scores_HQP * size**-0.5, MASKED)
    state = softmax.partial_softmax(scores_HQP, 2, lambda weights: _weighted_sum("HQP,HPK->HQK", weights, v_HPK))
    return SoftmaxState(*map(to_rows, state))


def _row_scores(q_BHTK, kv, mask_BTS):
    scores_BHTS = jnp.einsum("BHTK,BHSK->BHTS", q_BHTK, kv.k, preferred_element_type=jnp.float32)
    return jnp.where(mask_BTS[:, None], scores_BHTS * q_BHTK.shape[-1] ** -0.5, MASKED)


def _weighted_sum(axes, weights, values):
    return jnp.einsum(axes, weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
