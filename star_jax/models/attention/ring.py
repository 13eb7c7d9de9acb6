"""Attention of a decode step over a ring of keys and values."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from star_jax.distributed import platforms
from star_jax.models.attention import softmax
from star_jax.models.attention.dense import _LOW, _own, _shared


def written(groups, keys, slot):
    """The ring with the newest keys, model.KV [B, H, 1, K], at `slot`; see over_ring for `groups`."""

    def at_slot(ring, new):
        return jax.lax.dynamic_update_slice_in_dim(ring, new, slot, axis=2)

    return tuple(
        old._replace(k=at_slot(old.k, keys.k[rows]), v=at_slot(old.v, keys.v[rows])) for old, rows in _rows_of(groups)
    )


def _rows_of(groups):
    """Each group with its rows, a slice."""
    size = groups[0].k.shape[0]
    return [(keys, slice(i * size, (i + 1) * size)) for i, keys in enumerate(groups)]


def over_ring(q_BHTK, groups, slot, filled_B, prefix=None, prefix_length=None):
    """A decode step's (T = 1), over keys in a ring: a row sees the one at `slot` and the `filled_B` in front of it.

    `groups`: model.KV [B / G, H, S, K] of the first rows, of the next ones, and so on: see platforms.kv_row_groups.
    """
    if _has_kernel(q_BHTK, prefix):
        (keys,) = groups
        return kernel_over_ring(q_BHTK, keys.k, keys.v, slot, filled_B, prefix, prefix_length)
    slots = groups[0].k.shape[2]
    age_S = (slot - jnp.arange(slots)) % slots  # 0 for the slot that is written now
    mask_BTS = (age_S[None] <= filled_B[:, None])[:, None]
    parts = [_own(q_BHTK[rows], keys.k, keys.v, mask_BTS[rows]) for keys, rows in _rows_of(groups)]
    found = [jax.tree.map(lambda *of_groups: jnp.concatenate(of_groups), *parts)]
    if prefix is not None and prefix.k.shape[1]:
        found.append(_shared(q_BHTK, prefix, prefix_length))
    return softmax.merge(*found).astype(q_BHTK.dtype)


def kernel_over_ring(q_BHTK, k_BHSK, v_BHSK, slot, filled_B, prefix=None, prefix_length=None, interpret=False):
    """The same through the kernels; `interpret`: on any device."""
    from star_jax.models.attention import (
        triton,  # here, for what they need of jax may be gone one day: see platforms.has_triton
    )

    def of_heads(q_BHK, k_BHSK, v_BHSK, slot, filled_B, length, *keys):
        if keys:
            shared = triton.over_prefix(q_BHK, keys[0], keys[1], length, interpret=interpret)
        else:
            low_BH = jnp.full(q_BHK.shape[:2], _LOW)
            shared = softmax.SoftmaxState(low_BH, jnp.zeros_like(low_BH), jnp.zeros(q_BHK.shape))
        return triton.over_ring(q_BHK, k_BHSK, v_BHSK, slot, filled_B, shared, interpret=interpret)

    keys = () if prefix is None or not prefix.k.shape[1] else tuple(prefix)
    args = (
        q_BHTK[:, :, 0],
        k_BHSK,
        v_BHSK,
        jnp.asarray(slot),
        filled_B,
        jnp.asarray(0 if prefix_length is None else prefix_length),
        *keys,
    )
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.shape["tensor"] > 1:  # a kernel knows nothing of meshes: each device gets its heads
        rows, whole, heads = PartitionSpec(None, "tensor"), PartitionSpec(), PartitionSpec("tensor")
        specs = rows, rows, rows, whole, whole, whole, *(heads for _ in keys)
        of_heads = jax.shard_map(
            of_heads, mesh=mesh, in_specs=specs, out_specs=rows, axis_names={"tensor"}, check_vma=False
        )
    return of_heads(*args)[:, :, None]


def _has_kernel(q_BHTK, prefix):
    """Whether this program is for a CUDA GPU, heads have a size that its kernels take, and a kernel can be called.

    It cannot where more than heads is spread over devices and no shard_map is around.
    """
    size, mesh = q_BHTK.shape[-1], jax.sharding.get_abstract_mesh()
    spread = not mesh.empty and any(mesh.shape[axis] > 1 for axis in mesh.auto_axes if axis != "tensor")
    fits = size >= 16 and size & (size - 1) == 0 and (prefix is None or prefix.k.shape[1] % 16 == 0)
    return platforms.cuda_capability() >= (8, 0) and platforms.has_triton() and fits and not spread
