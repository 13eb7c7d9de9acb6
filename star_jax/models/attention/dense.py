"""Attention over a cache: the plain form, and for a decode step on a CUDA GPU one through kernels.

The attention of training is in segments.py.
"""

import jax
import jax.numpy as jnp

from star_jax.models.attention import softmax

_LOW = jnp.finfo(jnp.float32).min
_BLOCK = 64  # queries that a block of `packed` has at least: smaller products do not pay


def masked(q_BHTK, k_BHSK, v_BHSK, mask_BTS, prefix=None, prefix_length=None):
    """softmax(q k / sqrt(K)) v [B, H, T, K] over own keys and the shared prefix, scores in float32.

    Args:
      mask_BTS: True where query t may see key s.
      prefix: model.KV [H, P, K] or None; its first `prefix_length` keys are seen by every query.
    """
    if prefix is not None and prefix.k.shape[1]:
        parts = _own(q_BHTK, k_BHSK, v_BHSK, mask_BTS), _shared(q_BHTK, prefix, prefix_length)
        return softmax.merge(*parts).astype(q_BHTK.dtype)
    weights_BHTS = jax.nn.softmax(_own_scores(q_BHTK, k_BHSK, mask_BTS), axis=-1).astype(q_BHTK.dtype)
    return jnp.einsum("BHTS,BHSK->BHTK", weights_BHTS, v_BHSK)


def _own_scores(q_BHTK, k_BHSK, mask_BTS):
    scores_BHTS = jnp.einsum("BHTK,BHSK->BHTS", q_BHTK, k_BHSK, preferred_element_type=jnp.float32)
    return jnp.where(mask_BTS[:, None], scores_BHTS * q_BHTK.shape[-1] ** -0.5, _LOW)


def _own(q_BHTK, k_BHSK, v_BHSK, mask_BTS):
    """SoftmaxState [B, H, T] over keys of the rows' own."""
    scores_BHTS = _own_scores(q_BHTK, k_BHSK, mask_BTS)
    return softmax.partial_softmax(
        scores_BHTS, 3, lambda weights_BHTS: _weighted("BHTS,BHSK->BHTK", weights_BHTS, v_BHSK)
    )


def _shared(q_BHTK, prefix, prefix_length):
    """SoftmaxState [B, H, T] over the prefix: one product a head for the queries of all rows.

    One query a row: scores [H, P, B], whose sums over P go along whole vectors of rows; LOG.md of the benchmarks.
    """
    rows, heads, count, size = q_BHTK.shape
    real_P = jnp.arange(prefix.k.shape[1]) < prefix_length
    if count == 1:
        scores_HPB = jnp.einsum("HPK,BHK->HPB", prefix.k, q_BHTK[:, :, 0], preferred_element_type=jnp.float32)
        scores_HPB = jnp.where(real_P[None, :, None], scores_HPB * size**-0.5, _LOW)
        found = softmax.partial_softmax(
            scores_HPB, 1, lambda weights_HPB: _weighted("HPB,HPK->BHK", weights_HPB, prefix.v)
        )
        return softmax.SoftmaxState(found.top.T[..., None], found.total.T[..., None], found.y[:, :, None])

    def by_rows(x_HQ):
        return x_HQ.reshape(heads, rows, count, *x_HQ.shape[2:]).swapaxes(0, 1)

    q_HQK = q_BHTK.swapaxes(0, 1).reshape(heads, rows * count, size)
    scores_HQP = jnp.einsum("HQK,HPK->HQP", q_HQK, prefix.k, preferred_element_type=jnp.float32)
    scores_HQP = jnp.where(real_P[None, None], scores_HQP * size**-0.5, _LOW)
    found = softmax.partial_softmax(scores_HQP, 2, lambda weights_HQP: _weighted("HQP,HPK->HQK", weights_HQP, prefix.v))
    return softmax.SoftmaxState(*map(by_rows, found))


def _weighted(axes, weights, values):
    return jnp.einsum(axes, weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
