"""The passes that decoding is made of: a prefix that all rows share, prefill, and steps over a ring of keys.

They unroll the layers, so that each layer's cache is an array of its own that the loop updates in place. Weights may
be stacked, as in training, or apart (`placed`): from a stack a compiler may copy each layer's at every step.
The letters in array names are listed at the head of model.py.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from star_jax import sharding
from star_jax.config import ModelConfig
from star_jax.model import GPT, Block, Keys, Params, Ring, call


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


def placed(model: GPT, params: Params, mesh: Mesh, dtype: Any = None) -> Params:
    """The weights on a sampling mesh (see sharding.to_sampling), each layer's in arrays of its own.

    Weights that are apart are taken to be there already.
    """
    if isinstance(params["blocks"], tuple):
        return params
    params = sharding.to_sampling(model, params, mesh, dtype)
    return {**params, "blocks": _unstack(params["blocks"])}


@jax.jit
def _unstack(blocks: Params) -> tuple[Params, ...]:
    count = jax.tree.leaves(blocks)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, n=n: leaf[n], blocks) for n in range(count))


def encode_prefix(model: GPT, params: Params, tokens_P: jax.Array, length: jax.Array) -> Prefix:
    """Keys and values of a prefix that all rows share; `tokens_P` is right-padded, `length` of it are real."""
    size, cfg = tokens_P.shape[0], model.config
    if size == 0:
        empty = jnp.zeros((cfg.n_heads, 0, cfg.head_dim), cfg.compute_dtype)
        return Prefix((Keys(empty, empty),) * cfg.n_layers, jnp.asarray(0))
    mask_BTS = jnp.tril(jnp.ones((1, size, size), bool))
    _, layers = _hidden(model, params, tokens_P[None], jnp.arange(size)[None], mask_BTS)
    return Prefix(tuple(Keys(keys.k[0], keys.v[0]) for keys in layers), jnp.asarray(length))


def prefill(
    model: GPT, params: Params, tokens_RT: jax.Array, lengths_R: jax.Array, prefix: Prefix, width: int = 0
) -> tuple[jax.Array, tuple[Keys, ...]]:
    """Runs prompt bodies through the model, behind the prefix.

    Args:
      tokens_RT: bodies, LEFT-padded, so that all rows end at the same place.
      lengths_R: how many of a row's T tokens are real, at least 1.
      width: tokens a row that go through the model at once, a divisor of T (0: all). Where all rows are padding
        nothing is computed, so the work follows the longest of these rows and not T.

    Returns:
      (logits [R, V] behind each row's last token, N x Keys of [R, H, T, K]; keys of padding are garbage).
    """
    cfg, (rows, size) = model.config, tokens_RT.shape
    width = width or size
    index_T, first_R = jnp.arange(size), size - lengths_R

    def chunk(n: jax.Array | int, carry: tuple[jax.Array, tuple[Keys, ...]]) -> tuple[jax.Array, tuple[Keys, ...]]:
        tokens_RC = jax.lax.dynamic_slice_in_dim(tokens_RT, n * width, width, axis=1)
        index_C = n * width + jnp.arange(width)
        positions_RC = prefix.length + jnp.maximum(index_C[None] - first_R[:, None], 0)
        mask_RCT = (index_C[:, None] >= index_T[None])[None] & (index_T[None, None] >= first_R[:, None, None])
        x_RCD, layers = _hidden(model, params, tokens_RC, positions_RC, mask_RCT, carry[1], n * width, prefix)
        return x_RCD[:, -1], layers

    nothing = jnp.zeros((rows, cfg.n_heads, size, cfg.head_dim), cfg.compute_dtype)
    carry = (jnp.zeros((rows, cfg.d_model), cfg.compute_dtype), (Keys(nothing, nothing),) * cfg.n_layers)
    if width == size:
        x_RD, layers = chunk(0, carry)
    else:
        x_RD, layers = jax.lax.fori_loop(jnp.min(first_R) // width, size // width, chunk, carry)
    return call(model, params, x_RD, method="logits"), layers


def decode_step(
    model: GPT, params: Params, tokens_B: jax.Array, cache: RingCache, prefix: Prefix
) -> tuple[jax.Array, RingCache]:
    """One token a row: writes it to the cache and returns (logits [B, V], the cache one step on)."""
    slot = cache.time % cache.layers[0].k.shape[2]
    positions_BT = (prefix.length + cache.filled_B)[:, None]
    seen = Ring(cache.filled_B)
    x_BTD, layers = _hidden(model, params, tokens_B[:, None], positions_BT, seen, cache.layers, slot, prefix)
    logits_BV = call(model, params, x_BTD[:, 0], method="logits")
    return logits_BV, RingCache(layers, cache.time + 1, cache.filled_B + 1)


def _layers(params: Params) -> tuple[Params, ...]:
    return params["blocks"] if isinstance(params["blocks"], tuple) else _unstack(params["blocks"])


def _hidden(
    model: GPT,
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    mask_BTS: jax.Array | Ring,
    cached: tuple[Keys, ...] | None = None,
    slot: jax.Array | int | None = None,
    prefix: Prefix | None = None,
) -> tuple[jax.Array, tuple[Keys, ...]]:
    """(activations [B, T, D] behind the blocks, each layer's Keys); see model.Attention for the arguments."""
    x_BTD = call(model, params, tokens_BT, positions_BT, method="embed")
    block, layers = Block(model.config), []
    for n, weights in enumerate(_layers(params)):
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
    shape = (rows, config.n_heads, slots, config.head_dim)
    layers = tuple(
        Keys(jnp.zeros(shape, config.compute_dtype), jnp.zeros(shape, config.compute_dtype))
        for _ in range(config.n_layers)
    )
    return RingCache(layers, jnp.asarray(0), jnp.zeros((rows,), jnp.int32))


def insert_rows(cache: RingCache, rows_R: jax.Array, new: tuple[Keys, ...], lengths_R: jax.Array) -> RingCache:
    """Puts prefilled keys, N x [R, H, T, K] (left-padded bodies), into rows `rows_R`, to end at the cache's `time`.

    A row index out of range is dropped. T must not exceed the number of slots.
    """
    slots = cache.layers[0].k.shape[2]

    def place(old_BHSK, new_RHTK):
        padded_RHSK = jnp.pad(new_RHTK, ((0, 0), (0, 0), (slots - new_RHTK.shape[2], 0), (0, 0)))
        # The body's last key now sits at slot S - 1; turn the ring until that is slot (time - 1) % S.
        return old_BHSK.at[rows_R].set(jnp.roll(padded_RHSK, cache.time % slots, axis=2), mode="drop")

    layers = jax.tree.map(place, cache.layers, new)
    return RingCache(layers, cache.time, cache.filled_B.at[rows_R].set(lengths_R, mode="drop"))
