"""The passes that decoding is made of: a prefix that all rows share, prefill, and steps over a ring of keys.

The layers are unrolled here, so that each layer's cache is an array of its own that the decode loop updates in place.
The letters in array names are listed at the head of model.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from star_jax.config import ModelConfig
from star_jax.model import GPT, Block, Keys, Params, call


class Prefix(NamedTuple):
    """A shared prefix, encoded once.

    `layers`: N x Keys of [H, P, K]; P may be 0. `length`: how many of the P tokens are real, the rest is padding.
    """

    layers: tuple[Keys, ...]
    length: jax.Array


class RingCache(NamedTuple):
    """Keys and values of B rows in a ring of S slots that all rows write at the same place.

    `layers`: N x Keys of [B, H, S, K]. `time`: the next write goes to slot `time % S`, so a decode step is one
    contiguous update, whatever the rows' lengths. `filled_B`: how many of the latest slots belong to a row.
    """

    layers: tuple[Keys, ...]
    time: jax.Array
    filled_B: jax.Array


def encode_prefix(model: GPT, params: Params, tokens_P: jax.Array, length: jax.Array) -> Prefix:
    """Keys and values of a prefix that all rows share; `tokens_P` is right-padded, `length` of it are real."""
    size = tokens_P.shape[0]
    if size == 0:
        cfg = model.config
        empty = jnp.zeros((cfg.n_heads, 0, cfg.head_dim), cfg.compute_dtype)
        return Prefix((Keys(empty, empty),) * cfg.n_layers, jnp.asarray(0))
    mask_BTS = jnp.tril(jnp.ones((1, size, size), bool))
    _, layers = _cached_pass(model, params, tokens_P[None], jnp.arange(size)[None], mask_BTS)
    return Prefix(tuple(Keys(keys.k[0], keys.v[0]) for keys in layers), jnp.asarray(length))


def prefill(
    model: GPT, params: Params, tokens_RT: jax.Array, lengths_R: jax.Array, prefix: Prefix
) -> tuple[jax.Array, tuple[Keys, ...]]:
    """Runs prompt bodies through the model, behind the prefix.

    Args:
      tokens_RT: bodies, LEFT-padded, so that all rows end at the same place.
      lengths_R: how many of a row's T tokens are real, at least 1.

    Returns:
      (logits [R, V] behind each row's last token, N x Keys [R, H, T, K]; keys of padding are garbage).
    """
    _, size = tokens_RT.shape
    index_T = jnp.arange(size)
    first_R = size - lengths_R
    positions_RT = prefix.length + jnp.maximum(index_T[None] - first_R[:, None], 0)
    mask_RTS = (index_T[:, None] >= index_T[None])[None] & (index_T[None, None] >= first_R[:, None, None])
    x_RTD, layers = _cached_pass(model, params, tokens_RT, positions_RT, mask_RTS, prefix=prefix)
    return call(model, params, x_RTD[:, -1], method="logits"), layers


def decode_step(
    model: GPT, params: Params, tokens_B: jax.Array, cache: RingCache, prefix: Prefix
) -> tuple[jax.Array, RingCache]:
    """One token a row: writes it to the cache and returns (logits [B, V], the cache one step on)."""
    slots = cache.layers[0].k.shape[2]
    slot = cache.time % slots
    age_S = (slot - jnp.arange(slots)) % slots  # 0 for the slot that is written now
    mask_BTS = (age_S[None] <= cache.filled_B[:, None])[:, None, :]
    positions_BT = (prefix.length + cache.filled_B)[:, None]
    x_BTD, layers = _cached_pass(model, params, tokens_B[:, None], positions_BT, mask_BTS, cache.layers, slot, prefix)
    logits_BV = call(model, params, x_BTD[:, 0], method="logits")
    return logits_BV, RingCache(layers, cache.time + 1, cache.filled_B + 1)


def empty_cache(config: ModelConfig, rows: int, slots: int) -> RingCache:
    """A cache of `rows` rows and `slots` slots that holds nothing."""
    shape = (rows, config.n_heads, slots, config.head_dim)
    layers = tuple(
        Keys(jnp.zeros(shape, config.compute_dtype), jnp.zeros(shape, config.compute_dtype))
        for _ in range(config.n_layers)
    )
    return RingCache(layers, jnp.asarray(0), jnp.zeros((rows,), jnp.int32))


def insert_rows(cache: RingCache, rows_R: jax.Array, new: tuple[Keys, ...], lengths_R: jax.Array) -> RingCache:
    """Puts prefilled keys [R, H, T, K] (left-padded bodies) into rows `rows_R`, so that they end at the cache's `time`.

    A row index out of range is dropped. T must not exceed the number of slots.
    """
    slots = cache.layers[0].k.shape[2]

    def place(old_BHSK, new_RHTK):
        padded_RHSK = jnp.pad(new_RHTK, ((0, 0), (0, 0), (slots - new_RHTK.shape[2], 0), (0, 0)))
        # The body's last key now sits at slot S - 1; turn the ring until that is slot (time - 1) % S.
        return old_BHSK.at[rows_R].set(jnp.roll(padded_RHSK, cache.time % slots, axis=2), mode="drop")

    layers = tuple(Keys(place(o.k, n.k), place(o.v, n.v)) for o, n in zip(cache.layers, new, strict=True))
    return RingCache(layers, cache.time, cache.filled_B.at[rows_R].set(lengths_R, mode="drop"))


def _cached_pass(model, params, tokens_BT, positions_BT, mask_BTS, caches=None, slot=None, prefix=None):
    """The blocks, unrolled. Returns (activations [B, T, D], N x Keys)."""
    x_BTD = call(model, params, tokens_BT, positions_BT, method="embed")
    block, layers = Block(model.config), []
    for n in range(model.config.n_layers):
        of_layer = jax.tree.map(lambda leaf, n=n: leaf[n], params["blocks"])
        shared, shared_length = (prefix.layers[n], prefix.length) if prefix is not None else (None, None)
        x_BTD, keys = block.apply(
            {"params": of_layer}, x_BTD, positions_BT, mask_BTS, caches and caches[n], slot, shared, shared_length
        )
        layers.append(keys)
    return x_BTD, tuple(layers)
