"""Keys and values of one layer, and the interface of the masks. Each mask's module has the attention for it."""

from typing import Any, NamedTuple, Protocol

import jax


class KV(NamedTuple):
    """Keys and values of one layer: [B, H, S, K] for rows, [H, P, K] for a prefix that all rows share."""

    k: jax.Array
    v: jax.Array


class SharedPrefix(NamedTuple):
    """One layer of the prefix cache. Every query attends to its first `length` keys."""

    kv: KV  # [H, P, K]
    length: jax.Array  # at most P; the rest is padding


class AttentionMask(Protocol):
    """Which keys a query attends to: PackedMask (training), PrefillMask, RingMask (decode) or DenseMask (reference)."""

    def attend(self, q_BHTK: jax.Array, kv: Any, prefix: SharedPrefix | None = None, /) -> jax.Array:
        """softmax(q k / sqrt(K)) v [B, H, T, K] over the row's keys that the mask allows and the keys of the prefix.

        Args:
          q_BHTK: queries, in the compute dtype; scores are float32.
          kv: KV [B, H, S, K]. With a RingMask: a tuple of KV [B / G, H, S, K], one for each of the G groups of rows.
          prefix: keys that every query attends to; not with a PackedMask.
        """
        ...
