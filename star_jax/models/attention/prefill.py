"""Prefill attention: prompt bodies packed into one row, each after the shared prefix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from star_jax.models.attention import dense
from star_jax.models.attention.masks import KV, SharedPrefix
from star_jax.models.attention.softmax import ScoreSpec

MIN_BLOCK = 64  # queries per block, at least: smaller products do not pay


class PrefillMask(NamedTuple):
    """Mask for prompt bodies packed into one row (B = 1): causal within a body. Without a cache."""

    body_ids_T: jax.Array
    max_length: int  # tokens of the longest body, or more; static

    def attend(
        self,
        q_BHTK: jax.Array,
        kv: KV,
        scores: ScoreSpec,
        positions_BT: jax.Array,
        prefix: SharedPrefix | None = None,
    ) -> jax.Array:
        """Attention output [1, H, T, K]; see masks.AttentionMask.

        The row is split into blocks of at least `max_length` - 1 queries. A block attends to its own keys and those of
        the block before it: no body that reaches into a block begins earlier.
        """
        length = q_BHTK.shape[2]
        blocks = max(1, length // max(self.max_length - 1, MIN_BLOCK))
        while length % blocks:
            blocks -= 1
        size = length // blocks
        previous = size if blocks > 1 else 0  # keys of the block before

        def to_rows(x_BHTK):
            return x_BHTK[0].reshape(-1, blocks, size, x_BHTK.shape[-1]).swapaxes(0, 1)

        def with_previous(x, axis):
            return jnp.concatenate([jnp.roll(x, 1, axis=0), x], axis=axis) if previous else x

        offset_S, body_ids_BT = jnp.arange(-previous, size), self.body_ids_T.reshape(blocks, size)
        mask_BTS = body_ids_BT[:, :, None] == with_previous(body_ids_BT, 1)[:, None]
        back_TS = jnp.arange(size)[:, None] - offset_S[None]
        mask_BTS &= (back_TS >= 0)[None]
        if scores.window:
            mask_BTS &= (back_TS < scores.window)[None]
        # No block is before the first one; the roll has put the last one there.
        mask_BTS &= ((jnp.arange(blocks)[:, None] > 0) | (offset_S[None] >= 0))[:, None]
        kv = KV(with_previous(to_rows(kv.k), 2), with_previous(to_rows(kv.v), 2))
        y_BHTK = dense.attend(to_rows(q_BHTK), kv, mask_BTS, scores, positions_BT.reshape(blocks, size), prefix)
        return y_BHTK.swapaxes(0, 1).reshape(q_BHTK.shape)
