"""Fingerprints: a name for weights that does not depend on the mesh."""

import functools
import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from star_jax.distributed import sharding


def fingerprint(params: Any) -> str:
    """Twelve hex digits that name these weights in provenance: the same on any mesh, made where the weights are.

    Any tree of arrays has one.

    Each leaf's bits, as integers, are scrambled with their place and summed (arithmetic modulo 2^32 is exact in any
    order), and names, shapes and sums are hashed.
    """
    digest = hashlib.sha256()
    everywhere = sharding.replicated(sharding.mesh_of(params))
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        sums = np.asarray(_checksum(leaf, everywhere))
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {sums}".encode())
    return digest.hexdigest()[:12]


@functools.partial(jax.jit, static_argnums=1)
def _checksum(leaf: jax.Array, everywhere: NamedSharding) -> jax.Array:
    # Whole on every device, so that every process can read it.
    return jax.lax.with_sharding_constraint(_two_sums(leaf), everywhere)


def _two_sums(leaf: jax.Array) -> jax.Array:
    if leaf.ndim < 3:
        return _sums(leaf, jnp.uint32(0))
    # Stacked over layers: one after the other, for the integers take twice a half-precision layer's room.
    per_layer = math.prod(leaf.shape[1:])

    def add(n: jax.Array, total: jax.Array) -> jax.Array:
        layer = jax.lax.dynamic_index_in_dim(leaf, n, keepdims=False)
        return total + _sums(layer, n.astype(jnp.uint32) * jnp.uint32(per_layer))

    return jax.lax.fori_loop(0, leaf.shape[0], add, jnp.zeros(2, jnp.uint32))


def _sums(leaf: jax.Array, first: jax.Array) -> jax.Array:
    """Two sums of the scrambled values of a leaf whose first value stands at place `first`."""
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
    place = first + functools.reduce(
        lambda total, axis: total * leaf.shape[axis] + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis),
        range(leaf.ndim),
        jnp.zeros(leaf.shape, jnp.uint32),
    )
    mixed = _murmur_mix(bits ^ _murmur_mix(place))
    return jnp.stack([jnp.sum(mixed), jnp.sum(_murmur_mix(mixed + 1))])


def _murmur_mix(x: jax.Array) -> jax.Array:
    """MurmurHash3's finalizer. A plain product would not do: weights that come from bfloat16 have 16 zero bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
