"""Attention of prefill: prompt bodies packed into one row, each behind the shared prefix."""

import jax.numpy as jnp

from star_jax.models.attention.dense import _BLOCK, masked


def packed(q_BHTK, k_BHTK, v_BHTK, texts_T, longest, prefix=None, prefix_length=None):
    """Attention in one row (B = 1) of texts one behind the other: a query sees those of its own text up to itself.

    Queries go in blocks of at least `longest` - 1 (no text has more than `longest` tokens; it is static), over the
    keys of their own block and the one before: no text that reaches into a block begins earlier.
    """
    length = q_BHTK.shape[2]
    blocks = max(1, length // max(longest - 1, _BLOCK))
    while length % blocks:
        blocks -= 1
    size = length // blocks
    back = size if blocks > 1 else 0  # keys in front of a block's own

    def as_rows(x_BHTK):
        return x_BHTK[0].reshape(-1, blocks, size, x_BHTK.shape[-1]).swapaxes(0, 1)

    def with_previous(x, axis):
        return jnp.concatenate([jnp.roll(x, 1, axis=0), x], axis=axis) if back else x

    place_S, texts_BT = jnp.arange(-back, size), texts_T.reshape(blocks, size)
    mask_BTS = texts_BT[:, :, None] == with_previous(texts_BT, 1)[:, None]
    mask_BTS &= (place_S[None] <= jnp.arange(size)[:, None])[None]
    # In front of the first block nothing is, though the roll has put the last one there.
    mask_BTS &= ((jnp.arange(blocks)[:, None] > 0) | (place_S[None] >= 0))[:, None]
    keys = with_previous(as_rows(k_BHTK), 2), with_previous(as_rows(v_BHTK), 2)
    y_BHTK = masked(as_rows(q_BHTK), *keys, mask_BTS, prefix, prefix_length)
    return y_BHTK.swapaxes(0, 1).reshape(q_BHTK.shape)
