"""The passes that decoding is made of: a prefix that all rows share, prefill, and steps over a ring of keys.

They unroll the layers, so that each layer's cache is an array of its own that the loop updates in place.
The letters in array names are listed at the head of model.py.
"""

import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.config import ModelConfig
from star_jax.distributed import platforms
from star_jax.models.decoder import GPT, KV, Block, DecodeParams, PrefillMask, RingMask, call

_INSERTED = 8  # bodies that are put into the cache at once


class Prefix(NamedTuple):
    """A shared prefix, encoded once.

    `layers`: N x KV of [H, P, K]; P may be 0. `length`: how many of the P tokens are real, the rest is padding.
    """

    layers: tuple[KV, ...]
    length: jax.Array


class RingCache(NamedTuple):
    """KV and values of B rows in a ring of S slots that all rows write at the same place.

    `layers`: N x G x KV of [B / G, H, S, K]: the rows lie in groups, see platforms.kv_row_groups. `time`: the next
    write goes to slot `time % S`, so a decode step is one contiguous update, whatever the rows' lengths. `filled_B`:
    how many of the latest slots belong to a row.
    """

    layers: tuple[tuple[KV, ...], ...]
    time: jax.Array
    filled_B: jax.Array

    @property
    def slots(self) -> int:
        """S."""
        return self.layers[0][0].k.shape[2]


def encode_prefix(model: GPT, params: DecodeParams, tokens_P: jax.Array, length: jax.Array) -> Prefix:
    """KV and values of a prefix that all rows share; `tokens_P` is right-padded, `length` of it are real."""
    size, cfg = tokens_P.shape[0], model.config
    if size == 0:
        empty = jnp.zeros((cfg.n_heads, 0, cfg.head_dim), cfg.compute_dtype)
        return Prefix((KV(empty, empty),) * cfg.n_layers, jnp.asarray(0))
    mask_BTS = jnp.tril(jnp.ones((1, size, size), bool))
    _, layers = _hidden(model, params, tokens_P[None], jnp.arange(size)[None], mask_BTS)
    return Prefix(tuple(KV(keys.k[0], keys.v[0]) for keys in layers), jnp.asarray(length))


def encode_rows(
    model: GPT, params: DecodeParams, tokens_RT: jax.Array, lengths_R: jax.Array
) -> tuple[tuple[KV, ...], ...]:
    """Layers of a ring from rows by themselves, in one group: N x 1 x KV of [R, H, T, K]; padding's are garbage.

    `tokens_RT` is LEFT-padded, so that all rows end at the same place; `lengths_R` of a row are real.
    """
    index_T, first_R = jnp.arange(tokens_RT.shape[1]), tokens_RT.shape[1] - lengths_R
    positions_RT = jnp.maximum(index_T[None] - first_R[:, None], 0)
    mask_RTS = (index_T[:, None] >= index_T[None])[None] & (index_T[None, None] >= first_R[:, None, None])
    return tuple((keys,) for keys in _hidden(model, params, tokens_RT, positions_RT, mask_RTS)[1])


def prefill(
    model: GPT, params: DecodeParams, tokens_C: jax.Array, bodies_C: PrefillMask, positions_C: jax.Array, prefix: Prefix
) -> tuple[KV, ...]:
    """Runs the bodies of prompts through the model, behind the prefix: N x KV of [H, C, K].

    Args:
      tokens_C: the bodies one behind the other, none of them padded.
      bodies_C: to which body each token belongs.
      positions_C: its place in that body, from 0.
    """
    _, layers = _hidden(model, params, tokens_C[None], prefix.length + positions_C[None], bodies_C, prefix=prefix)
    return tuple(KV(keys.k[0], keys.v[0]) for keys in layers)


def decode_step(
    model: GPT, params: DecodeParams, tokens_B: jax.Array, cache: RingCache, prefix: Prefix
) -> tuple[jax.Array, RingCache]:
    """One token a row: writes it to the cache and returns (logits [B, V], the cache one step on)."""
    slot = cache.time % cache.slots
    positions_BT = (prefix.length + cache.filled_B)[:, None]
    seen = RingMask(cache.filled_B)
    x_BTD, layers = _hidden(model, params, tokens_B[:, None], positions_BT, seen, cache.layers, slot, prefix)
    logits_BV = call(model, params.rest, x_BTD[:, 0], method="logits")
    return logits_BV, RingCache(layers, cache.time + 1, cache.filled_B + 1)


def _hidden(
    model: GPT,
    params: DecodeParams,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    mask_BTS: jax.Array | RingMask | PrefillMask,
    cached: tuple[tuple[KV, ...], ...] | None = None,
    slot: jax.Array | None = None,
    prefix: Prefix | None = None,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """(activations [B, T, D] behind the blocks, each layer's keys); see model.Attention for both."""
    x_BTD = call(model, params.rest, tokens_BT, positions_BT, method="embed")
    block, layers = Block(model.config), []
    for n, weights in enumerate(params.layers):
        own, shared = cached and cached[n], prefix and prefix.layers[n]
        x_BTD, keys = cast(
            Any,
            block.apply(
                {"params": weights}, x_BTD, positions_BT, mask_BTS, own, slot, shared, prefix and prefix.length
            ),
        )
        layers.append(keys)
    return x_BTD, tuple(layers)


def empty_cache(config: ModelConfig, rows: int, slots: int) -> RingCache:
    """A cache of `rows` rows and `slots` slots that holds nothing."""
    cells = config.n_heads, slots, config.head_dim
    groups = platforms.kv_row_groups(rows, math.prod(cells) * np.dtype(config.compute_dtype).itemsize)

    def empty() -> jax.Array:
        return jnp.zeros((rows // groups, *cells), config.compute_dtype)

    layers = tuple(tuple(KV(empty(), empty()) for _ in range(groups)) for _ in range(config.n_layers))
    return RingCache(layers, jnp.asarray(0), jnp.zeros((rows,), jnp.int32))


def insert(
    cache: RingCache, rows_R: jax.Array, new: tuple[KV, ...], ends_R: jax.Array, lengths_R: jax.Array
) -> RingCache:
    """Puts prefilled bodies into rows `rows_R` of the cache, each to end at the cache's `time`.

    Args:
      rows_R: an index out of range is dropped; those in range come first.
      new: N x [H, C, K]; a body's keys are the `lengths_R` in front of place `ends_R`.
    """
    slots, rows = cache.slots, cache.filled_B.shape[0]
    age_S = (cache.time - 1 - jnp.arange(slots)) % slots  # 0 for the slot that was written last
    count = min(_INSERTED, rows_R.shape[0])

    def put(n: jax.Array, layers: tuple[tuple[KV, ...], ...]) -> tuple[tuple[KV, ...], ...]:
        rows_I, ends_I = (jax.lax.dynamic_slice_in_dim(x_R, n * count, count) for x_R in (rows_R, ends_R))
        source_IS = ends_I[:, None] - 1 - age_S[None]  # what lies in front of a body is garbage that no row sees

        def of_layer(groups: tuple[KV, ...], new: KV) -> tuple[KV, ...]:
            new = jax.tree.map(lambda x_HCK: jnp.take(x_HCK, source_IS, axis=1, mode="clip").swapaxes(0, 1), new)
            size = rows // len(groups)
            return tuple(_with_rows(old, rows_I - i * size, new) for i, old in enumerate(groups))

        return tuple(map(of_layer, layers, new))

    layers = jax.lax.fori_loop(0, -(-jnp.sum(rows_R < rows) // count), put, cache.layers)
    return RingCache(layers, cache.time, cache.filled_B.at[rows_R].set(lengths_R, mode="drop"))


def _with_rows(old: KV, rows_I: jax.Array, new: KV) -> KV:
    """The group [B / G, H, S, K] with the rows [I, H, S, K] at `rows_I`; those that belong to others are dropped."""
    at_I = jnp.where(rows_I < 0, old.k.shape[0], rows_I)  # a negative index would count from the end
    return jax.tree.map(lambda x, y: x.at[at_I].set(y, mode="drop"), old, new)
