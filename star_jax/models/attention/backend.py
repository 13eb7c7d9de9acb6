"""Attention: one call for training, prefill and decode steps. The mask's type selects the backend."""

from typing import Any

import jax

from star_jax.models.attention import dense, packed, prefill, ring
from star_jax.models.attention.masks import AttentionMask, PackedMask, PrefillMask, RingMask, SharedPrefix


def attend(q_BHTK: jax.Array, kv: Any, mask: AttentionMask, prefix: SharedPrefix | None = None) -> jax.Array:
    """softmax(q k / sqrt(K)) v [B, H, T, K] over the row's keys that the mask allows and the keys of the prefix.

    Args:
      q_BHTK: queries, in the compute dtype; scores are float32.
      kv: KV [B, H, S, K]. With a RingMask: a tuple of KV [B / G, H, S, K], one for each of the G groups of rows.
      mask: PackedMask, PrefillMask, RingMask, or a boolean [B, T, S] for the dense backend.
      prefix: keys that every query attends to; not with a PackedMask.
    """
    if isinstance(mask, PackedMask):
        return packed.attend(q_BHTK, kv, mask)
    if isinstance(mask, PrefillMask):
        return prefill.attend(q_BHTK, kv, mask, prefix)
    if isinstance(mask, RingMask):
        return ring.attend(q_BHTK, kv, mask, prefix)
    return dense.attend(q_BHTK, kv, mask, prefix)
