"""Forward passes over t5x's ids: of a training batch, of prompts into a cache, and of one decode step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.sampling import kv_cache

# Logit of padding and of ids that the tokenizer does not have. Finite: t5x multiplies log-probabilities by zeros.
NEVER = -1e9

Batch = Mapping[str, jax.Array]


def training_logits(model: decoder.Decoder, params: decoder.Params, batch: Batch, end_of_text: int) -> jax.Array:
    """Logits [B, T, 1 + V] over t5x's ids for a batch of seqio.DecoderFeatureConverter, packed or not."""
    inputs_BT = batch["decoder_input_tokens"]
    segments_BT = batch.get("decoder_segment_ids", jnp.ones_like(inputs_BT))
    positions_BT = batch.get("decoder_positions", jnp.broadcast_to(jnp.arange(inputs_BT.shape[1]), inputs_BT.shape))
    # The id 0 before a text is in segment 0, like padding.
    segments_BT, positions_BT = jnp.where(inputs_BT > 0, segments_BT, 0), jnp.maximum(positions_BT - 1, 0)
    return _to_t5x_logits(decoder.apply(model, params, _to_our_ids(inputs_BT, end_of_text), positions_BT, segments_BT))


def prefilled_cache(
    model: decoder.Decoder, params: decoder.Params, inputs_BT: jax.Array, causal_BT: jax.Array
) -> tuple[dict[str, Any], jax.Array]:
    """The keys and values of all but the last token of each prompt; `decode_step` takes the last one first.

    Args:
      inputs_BT: t5x's ids: one id 0, the prompt, zeros. T is the length up to which t5x decodes.
      causal_BT: 1 on that first id and on the prompt. It gives the prompt's length: ids may have any value.

    Returns: (a cache for `decode_step`, index [B] of each prompt's last token in `inputs_BT`).

    Raises InputError if T exceeds the model's positions.
    """
    length = inputs_BT.shape[1]
    if length - 1 > model.spec.max_positions:
        raise InputError(
            f"texts of {length - 1} tokens do not fit the model's {model.spec.max_positions} positions; "
            "give smaller feature lengths"
        )
    last_B = jnp.sum(causal_BT != 0, axis=1) - 1
    cached_B = jnp.maximum(last_B - 1, 0)
    bodies_BT = jax.vmap(jnp.roll)(_to_our_ids(inputs_BT, 0), length - last_B)  # left-padded, without the last token
    layers = kv_cache.encode_rows(model, decoder.split_layers(params), bodies_BT, cached_B)
    # T slots for T tokens: these keys are a full ring, and slot 0 is written next. t5x repeats and selects rows of
    # every leaf, so each row has its own copy of the ring's time.
    cache = {"layers": layers, "time_B": jnp.zeros_like(cached_B), "filled_B": cached_B}
    return cache, last_B


def decode_step(
    model: decoder.Decoder, params: decoder.Params, tokens_B: jax.Array, cache: Mapping[str, Any], end_of_text: int
) -> tuple[jax.Array, dict[str, Any]]:
    """One token of t5x's for each row: (logits [B, 1 + V] over t5x's ids, the cache with that token)."""
    ring = kv_cache.RingCache(cache["layers"], cache["time_B"][0], cache["filled_B"])
    per_layer = decoder.split_layers(params)
    prefix = kv_cache.encode_prefix(model, per_layer, jnp.zeros((0,), jnp.int32), jnp.asarray(0))
    # An empty prompt starts with end-of-text, as GPT-2 does without a prompt; for rows that have ended any id will do.
    logits_BV, ring = kv_cache.decode_step(model, per_layer, _to_our_ids(tokens_B, end_of_text), ring, prefix)
    cache = {"layers": ring.layers, "time_B": cache["time_B"] + 1, "filled_B": ring.filled_B}
    return _to_t5x_logits(logits_BV), cache


def _to_our_ids(ids: jax.Array, padding_id: int) -> jax.Array:
    """t5x's ids minus one; `padding_id` for t5x's 0."""
    return jnp.where(ids > 0, ids - 1, padding_id)


def _to_t5x_logits(logits: jax.Array) -> jax.Array:
    """Logits over t5x's ids: those of padding come first."""
    return jnp.pad(logits, [(0, 0)] * (logits.ndim - 1) + [(1, 0)], constant_values=NEVER)
