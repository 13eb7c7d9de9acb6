"""Fingerprints: a content hash of weights that does not depend on the mesh. Provenance names models by it."""

import functools
import hashlib
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from star_jax.distributed import sharding


def fingerprint(params: Any) -> str:
    """Content hash of a tree of arrays: 12 hex digits, equal on every mesh, computed on the devices.

    Each element's bits and position are mixed into a 32-bit integer and summed modulo 2^32, which is exact in any
    order, hence for any sharding. SHA-256 over the leaves' names, shapes, dtypes and sums gives the digits. Stored
    provenance holds these digits, so they must never change.
    """
    digest = hashlib.sha256()
    replicated = sharding.replicated(sharding.mesh_of(params))
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        sums = np.asarray(_replicated_sums(leaf, replicated))
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {sums}".encode())
    return digest.hexdigest()[:12]


def of_host_arrays(leaves: Iterable[tuple[str, tuple[int, ...], np.dtype, Iterable[np.ndarray]]]) -> str:
    """The fingerprint of leaves that are read piece by piece, computed by NumPy in the host's memory.

    Args:
      leaves: (jax.tree_util.keystr of the path, shape, dtype, pieces) in the order of the tree. A leaf's pieces follow
        each other along its first axis.
    """
    digest = hashlib.sha256()
    for name, shape, dtype, pieces in leaves:
        sums, index = np.zeros(2, np.uint64), 0
        for piece in pieces:
            bits = np.ascontiguousarray(piece).reshape(-1).view(f"uint{8 * dtype.itemsize}")
            for start in range(0, bits.size, _BLOCK):
                block = bits[start : start + _BLOCK].astype(np.uint32)
                positions = (np.arange(block.size, dtype=np.uint64) + np.uint64(index + start)).astype(np.uint32)
                mixed = murmur_mix(block ^ murmur_mix(positions))
                sums += [mixed.sum(dtype=np.uint64), murmur_mix(mixed + np.uint32(1)).sum(dtype=np.uint64)]
            index += bits.size
        digest.update(f"{name} {shape} {dtype} {sums.astype(np.uint32)}".encode())
    return digest.hexdigest()[:12]


_BLOCK = 2**16  # elements that are mixed at a time: they stay in the cache of a core


@functools.partial(jax.jit, static_argnums=1)
def _replicated_sums(leaf: jax.Array, replicated: NamedSharding) -> jax.Array:
    """`_two_sums`, replicated so that every process can read it."""
    return jax.lax.with_sharding_constraint(_two_sums(leaf), replicated)


def _two_sums(leaf: jax.Array) -> jax.Array:
    """Two uint32 checksums of a leaf, [2].

    A leaf of three or more axes is stacked over layers and summed one layer at a time: the integers of a
    half-precision layer need twice its memory.
    """
    if leaf.ndim < 3:
        return _sums(leaf, jnp.uint32(0))
    layer_size = math.prod(leaf.shape[1:])

    def add(n: jax.Array, total: jax.Array) -> jax.Array:
        layer = jax.lax.dynamic_index_in_dim(leaf, n, keepdims=False)
        return total + _sums(layer, n.astype(jnp.uint32) * jnp.uint32(layer_size))

    return jax.lax.fori_loop(0, leaf.shape[0], add, jnp.zeros(2, jnp.uint32))


def _sums(leaf: jax.Array, first_index: jax.Array) -> jax.Array:
    """Two sums of the mixed elements of an array whose first element has the flat index `first_index`."""
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
    index = first_index + functools.reduce(
        lambda total, axis: total * leaf.shape[axis] + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis),
        range(leaf.ndim),
        jnp.zeros(leaf.shape, jnp.uint32),
    )
    mixed = murmur_mix(bits ^ murmur_mix(index))
    return jnp.stack([jnp.sum(mixed), jnp.sum(murmur_mix(mixed + 1))])


def murmur_mix(x: Any) -> Any:
    """MurmurHash3's finalizer, uint32 -> uint32, of an array of JAX or NumPy.

    A product of bits and index would miss some swaps: weights that come from bfloat16 have 16 zero bits.
    """
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
