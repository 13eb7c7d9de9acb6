"""Keys and values of one layer, and the masks that say which of them a query attends to."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KV(NamedTuple):
    """Keys and values of one layer: [B, H, S, K] for rows, [H, P, K] for a prefix that all rows share."""

    k: jax.Array
    v: jax.Array


class SharedPrefix(NamedTuple):
    """One layer of the prefix cache. Every query attends to its first `length` keys."""

    kv: KV  # [H, P, K]
    length: jax.Array  # at most P; the rest is padding


class PackedMask(NamedTuple):
    """Mask for packed training rows: causal within a segment. Without a cache or prefix."""

    segment_ids_BT: jax.Array

    def boolean(self) -> jax.Array:
        """[B, T, S]: True where query t attends to key s."""
        length = self.segment_ids_BT.shape[1]
        causal_TS = jnp.tril(jnp.ones((length, length), bool))
        return causal_TS[None] & (self.segment_ids_BT[:, :, None] == self.segment_ids_BT[:, None])


class PrefillMask(NamedTuple):
    """Mask for prompt bodies packed into one row (B = 1): causal within a body. Without a cache."""

    body_ids_T: jax.Array
    max_length: int  # tokens of the longest body, or more; static


class RingMask(NamedTuple):
    """Mask for a decode step (T = 1) over a ring cache: a row attends to `slot` and the `filled_B` slots before it."""

    slot: jax.Array  # of the token of this step, the same for all rows
    filled_B: jax.Array  # may exceed S: then the row attends to every slot

    def boolean(self, slots: int) -> jax.Array:
        """[B, 1, S]: True where a row attends to a slot of the ring."""
        age_S = (self.slot - jnp.arange(slots)) % slots  # 0 for the slot of this step
        return (age_S[None] <= self.filled_B[:, None])[:, None]


# A boolean array [B, T, S] is True where query t attends to key s.
AttentionMask = PackedMask | PrefillMask | RingMask | jax.Array
