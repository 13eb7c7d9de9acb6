"""Keys and values of one layer, and the interface of the masks. Each mask's module has the attention for it."""

from typing import Any, NamedTuple, Protocol

import jax

from star_jax.models.attention.softmax import ScoreSpec


class KV(NamedTuple):
    """Keys and values of one layer: [B, H, S, K] for rows, [H, P, K] for a prefix that all rows share.

    H counts KV heads: query head h attends to KV head h // (query heads / KV heads).
    """

    k: jax.Array
    v: jax.Array


class SharedPrefix(NamedTuple):
    """One layer of the prefix cache: the keys at positions `first`, `first` + 1, ... before `length`."""

    kv: KV  # [H, P, K]
    length: jax.Array  # of the prefix, in tokens; keys from there on are padding
    first: jax.Array | int = 0  # position of the first key: local layers keep the end of the prefix only


class AttentionMask(Protocol):
    """Which keys a query attends to: PackedMask (training), PrefillMask, RingMask (decode) or DenseMask (reference)."""

    def attend(
        self,
        q_BHTK: jax.Array,
        kv: Any,
        scores: ScoreSpec,
        positions_BT: jax.Array,
        prefix: SharedPrefix | None = None,
        /,
    ) -> jax.Array:
        """softmax(scores) v [B, H, T, K] over the row's keys that mask and window allow and the keys of the prefix.

        Args:
          q_BHTK: queries, in the compute dtype; scores are float32. There may be several for each KV head.
          kv: KV [B, H, S, K]. With a RingMask: a tuple of KV [B / G, H, S, K], one for each of the G groups of rows.
          positions_BT: of the queries, int32, with the prefix counted; they bound the prefix if there is a window.
          prefix: keys that every query attends to, as far as the window reaches; not with a PackedMask.
        """
        ...
