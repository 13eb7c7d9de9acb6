"""KV caches and the passes that fill them: the shared prefix, prefill of prompt bodies, and decode steps.

The passes unroll the layers: each layer's cache is an array of its own, which the sampling loop updates in place.
The letters in array names are listed in models/decoder.py.
"""

import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.distributed import platforms
from star_jax.models.attention.dense import DenseMask
from star_jax.models.attention.masks import KV, AttentionMask, SharedPrefix
from star_jax.models.attention.prefill import PrefillMask
from star_jax.models.attention.ring import RingMask
from star_jax.models.decoder import Block, DecodeParams, Decoder, call
from star_jax.models.spec import DecoderSpec

_PREFIX_UNIT = 16  # the length of a prefix cache is a multiple of it, for the kernels of attention/triton.py
_INSERTED_ROWS = 8  # bodies that `insert` copies into the cache at a time


class PrefixCache(NamedTuple):
    """Keys and values of a prefix that all rows share. They have no batch axis."""

    layers: tuple[KV, ...]  # N x KV [H, P, K]; P may be 0, and is smaller in local layers if the window is
    length: jax.Array  # tokens of the prefix; the rest of P is padding
    first_local: jax.Array  # position of the first key in local layers

    def layer(self, n: int, is_local: bool) -> SharedPrefix:
        """Layer n, as attention takes it."""
        return SharedPrefix(self.layers[n], self.length, self.first_local if is_local else 0)


class RingCache(NamedTuple):
    """Ring KV cache of B rows and S slots. Rows share one write position, so a decode step is one contiguous update."""

    layers: tuple[tuple[KV, ...], ...]  # N x G x KV [B / G, H, S, K], one per group of rows; platforms.kv_row_groups
    time: jax.Array  # decode steps so far; the next token is written to slot `time % S`
    filled_B: jax.Array  # how many of the latest slots belong to a row; an idle row counts on

    @property
    def slots(self) -> int:
        """S."""
        return self.layers[0][0].k.shape[2]


def empty_cache(model: Decoder, rows: int, slots: int) -> RingCache:
    """A ring cache without tokens."""
    row_shape = model.spec.n_kv_heads, slots, model.spec.head_dim
    groups = platforms.kv_row_groups(rows, math.prod(row_shape) * np.dtype(model.compute_dtype).itemsize)

    def empty() -> jax.Array:
        return jnp.zeros((rows // groups, *row_shape), model.compute_dtype)

    layers = tuple(tuple(KV(empty(), empty()) for _ in range(groups)) for _ in range(model.spec.n_layers))
    return RingCache(layers, jnp.asarray(0), jnp.zeros((rows,), jnp.int32))


def encode_prefix(model: Decoder, params: DecodeParams, tokens_P: jax.Array, length: jax.Array) -> PrefixCache:
    """Encodes a prefix. `tokens_P`: int32 ids, right-padded; the first `length` are the prefix."""
    size, spec = tokens_P.shape[0], model.spec
    if size == 0:
        empty = jnp.zeros((spec.n_kv_heads, 0, spec.head_dim), model.compute_dtype)
        return PrefixCache((KV(empty, empty),) * spec.n_layers, jnp.asarray(0), jnp.asarray(0))
    mask_BTS = jnp.tril(jnp.ones((1, size, size), bool))
    _, layers = _run_blocks(model, params, tokens_P[None], jnp.arange(size)[None], DenseMask(mask_BTS))
    first_local = jnp.maximum(length - _local_size(spec, size), 0)

    def visible(n: int, x_HPK: jax.Array) -> jax.Array:
        if prefix_size(spec, n, size) == size:
            return x_HPK
        return jax.lax.dynamic_slice_in_dim(x_HPK, first_local, prefix_size(spec, n, size), axis=1)

    visible_layers = tuple(KV(visible(n, kv.k[0]), visible(n, kv.v[0])) for n, kv in enumerate(layers))
    return PrefixCache(visible_layers, jnp.asarray(length), first_local)


def prefix_size(spec: DecoderSpec, layer: int, size: int) -> int:
    """P of a layer's prefix cache, for a prefix of `size` tokens with its padding."""
    return _local_size(spec, size) if spec.is_local(layer) else size


def _local_size(spec: DecoderSpec, size: int) -> int:
    """P of the local layers: a token after the prefix attends to `window` - 1 of the prefix's tokens at most."""
    return min(size, -(-max(spec.window - 1, 1) // _PREFIX_UNIT) * _PREFIX_UNIT)


def prefill(
    model: Decoder,
    params: DecodeParams,
    tokens_C: jax.Array,
    mask: PrefillMask,
    positions_C: jax.Array,
    prefix: PrefixCache,
) -> tuple[KV, ...]:
    """Encodes prompt bodies, each as if it followed the prefix.

    Args:
      tokens_C: the bodies' ids, int32, one body after the other without padding.
      mask: the body that each token belongs to.
      positions_C: position of each token in its body, from 0.

    Returns:
      N x KV [H, C, K].
    """
    _, layers = _run_blocks(model, params, tokens_C[None], prefix.length + positions_C[None], mask, prefix=prefix)
    return tuple(KV(kv.k[0], kv.v[0]) for kv in layers)


def insert(
    cache: RingCache, rows_R: jax.Array, new: tuple[KV, ...], ends_R: jax.Array, lengths_R: jax.Array
) -> RingCache:
    """Copies prefilled bodies into rows of the cache. Each body ends at the slot before the cache's write position.

    Args:
      rows_R: a row of the cache for each body. Indices out of range are dropped and must come last.
      new: N x KV [H, C, K], as prefill returns them.
      ends_R: index in C after the body's last token.
      lengths_R: tokens of the body.
    """
    slots, rows = cache.slots, cache.filled_B.shape[0]
    age_S = (cache.time - 1 - jnp.arange(slots)) % slots  # 0 for the slot that was written last
    count = min(_INSERTED_ROWS, rows_R.shape[0])

    def insert_chunk(n: jax.Array, layers: tuple[tuple[KV, ...], ...]) -> tuple[tuple[KV, ...], ...]:
        rows_I, ends_I = (jax.lax.dynamic_slice_in_dim(x_R, n * count, count) for x_R in (rows_R, ends_R))
        source_IS = ends_I[:, None] - 1 - age_S[None]  # before the body's first token: garbage outside of `filled_B`

        def insert_layer(groups: tuple[KV, ...], new: KV) -> tuple[KV, ...]:
            new = jax.tree.map(lambda x_HCK: jnp.take(x_HCK, source_IS, axis=1, mode="clip").swapaxes(0, 1), new)
            size = rows // len(groups)
            return tuple(_set_rows(group, rows_I - i * size, new) for i, group in enumerate(groups))

        return tuple(map(insert_layer, layers, new))

    layers = jax.lax.fori_loop(0, -(-jnp.sum(rows_R < rows) // count), insert_chunk, cache.layers)
    return RingCache(layers, cache.time, cache.filled_B.at[rows_R].set(lengths_R, mode="drop"))


def _set_rows(group: KV, rows_I: jax.Array, new: KV) -> KV:
    """The group [B / G, H, S, K] with `new` [I, H, S, K] at its rows `rows_I`; rows of other groups are dropped."""
    index_I = jnp.where(rows_I < 0, group.k.shape[0], rows_I)  # a negative index would count from the end
    return jax.tree.map(lambda x, y: x.at[index_I].set(y, mode="drop"), group, new)


def decode_step(
    model: Decoder, params: DecodeParams, tokens_B: jax.Array, cache: RingCache, prefix: PrefixCache
) -> tuple[jax.Array, RingCache]:
    """Appends one token to each row. Returns (logits [B, V] of the next token, the cache with `tokens_B`)."""
    slot = cache.time % cache.slots
    positions_BT = (prefix.length + cache.filled_B)[:, None]
    mask = RingMask(slot, cache.filled_B)
    x_BTD, layers = _run_blocks(model, params, tokens_B[:, None], positions_BT, mask, cache.layers, prefix)
    logits_BV = call(model, params.rest, x_BTD[:, 0], method="logits")
    return logits_BV, RingCache(layers, cache.time + 1, cache.filled_B + 1)


def encode_rows(
    model: Decoder, params: DecodeParams, tokens_RT: jax.Array, lengths_R: jax.Array
) -> tuple[tuple[KV, ...], ...]:
    """Encodes LEFT-padded rows, without a prefix, for callers that have no refills (t5x).

    `tokens_RT`: int32 ids; the last `lengths_R` of each row are its text.

    Returns:
      RingCache.layers with one group: N x 1 x KV [R, H, T, K]. Keys of padding are garbage.
    """
    index_T, first_R = jnp.arange(tokens_RT.shape[1]), tokens_RT.shape[1] - lengths_R
    positions_RT = jnp.maximum(index_T[None] - first_R[:, None], 0)
    mask_RTS = (index_T[:, None] >= index_T[None])[None] & (index_T[None, None] >= first_R[:, None, None])
    return tuple((kv,) for kv in _run_blocks(model, params, tokens_RT, positions_RT, DenseMask(mask_RTS))[1])


def _run_blocks(
    model: Decoder,
    params: DecodeParams,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    mask: AttentionMask,
    cache: tuple[tuple[KV, ...], ...] | None = None,
    prefix: PrefixCache | None = None,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """(activations [B, T, D] after the last block, the KV or updated cache of each layer); see decoder.Attention."""
    x_BTD = call(model, params.rest, tokens_BT, positions_BT, method="embed")
    block, layers = Block(model.spec, model.compute_dtype), []

    def run(is_local, weights, x_BTD, layer_cache, layer_prefix):
        return block.apply({"params": weights}, x_BTD, positions_BT, mask, is_local, layer_cache, layer_prefix)

    # Layers of one kind are traced and lowered once; XLA inlines them. tests/benchmarks/README.md, "Startup".
    run = jax.jit(run, static_argnums=0)
    for n, weights in enumerate(params.layers):
        is_local = model.spec.is_local(n)
        outputs = run(is_local, weights, x_BTD, cache and cache[n], prefix and prefix.layer(n, is_local))
        x_BTD, kv = cast(Any, outputs)
        layers.append(kv)
    return x_BTD, tuple(layers)
