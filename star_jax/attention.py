"""Attention of training: row by row and block by block, over no more keys than the block's segments reach back to.

The scores of all rows at once, [B, H, T, T] in float32, would be the largest array of a step; a row's block is small.
They are made again in the backward pass, so of a layer's attention nothing is kept but its inputs.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

BLOCK = 128  # queries


def by_segments(q_BHTK: jax.Array, k_BHTK: jax.Array, v_BHTK: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(K)) v [B, H, T, K] over the tokens of a query's own segment up to itself, scores in float32.

    Under a mesh every device has its own rows and heads, as the logical axes "batch" and "heads" say.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not isinstance(q_BHTK, jax.core.Tracer):
        return _rows(q_BHTK, k_BHTK, v_BHTK, segment_ids_BT)
    heads, ids = (nn.logical_to_mesh_axes(axes) for axes in (("batch", "heads", None, None), ("batch", None)))
    body = jax.shard_map(_rows, mesh=mesh, in_specs=(heads, heads, heads, ids), out_specs=heads, check_vma=False)
    return body(q_BHTK, k_BHTK, v_BHTK, segment_ids_BT)


def _rows(*row_by_row):
    return jax.lax.map(jax.checkpoint(lambda row: _row(*row)), row_by_row)


def _row(q_HTK, k_HTK, v_HTK, ids_T):
    """[H, T, K] of one row."""
    length = ids_T.shape[0]
    first_T = jnp.argmax(ids_T[:, None] == ids_T[None], axis=1)
    blocks = []
    for start in range(0, length, BLOCK):
        # A block's keys begin at one of a few places, each twice as far back: a program has fixed shapes.
        lows = [start]
        while lows[-1]:
            lows.append(max(0, start - BLOCK * (2 ** len(lows) - 1)))
        end = min(start + BLOCK, length)
        enough = jnp.sum(jnp.array(lows) > jnp.min(first_T[start:end]))
        branches = [functools.partial(_block, low, start, end) for low in lows]
        blocks.append(jax.lax.switch(enough, branches, q_HTK, k_HTK, v_HTK, ids_T))
    return jnp.concatenate(blocks, axis=1)


def _block(low, start, end, q_HTK, k_HTK, v_HTK, ids_T):
    """Queries [start, end) over keys [low, end)."""
    scores = jnp.einsum("HTK,HSK->HTS", q_HTK[:, start:end], k_HTK[:, low:end], preferred_element_type=jnp.float32) * (
        q_HTK.shape[-1] ** -0.5
    )
    seen_TS = jnp.arange(start, end)[:, None] >= jnp.arange(low, end)[None]
    seen_TS &= ids_T[start:end, None] == ids_T[None, low:end]
    weights = jax.nn.softmax(jnp.where(seen_TS[None], scores, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.einsum("HTS,HSK->HTK", weights.astype(q_HTK.dtype), v_HTK[:, low:end])
