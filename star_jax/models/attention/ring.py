"""Ring-cache attention: one decode step (T = 1) of all rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from star_jax.distributed import platforms
from star_jax.models.attention import dense, softmax
from star_jax.models.attention.masks import KV, SharedPrefix


class RingMask(NamedTuple):
    """Mask for a decode step (T = 1) over a ring cache: a row attends to `slot` and the `filled_B` slots before it."""

    slot: jax.Array  # of the token of this step, the same for all rows
    filled_B: jax.Array  # may exceed S: then the row attends to every slot

    def boolean(self, slots: int) -> jax.Array:
        """[B, 1, S]: True where a row attends to a slot of the ring."""
        age_S = (self.slot - jnp.arange(slots)) % slots  # 0 for the slot of this step
        return (age_S[None] <= self.filled_B[:, None])[:, None]

    def attend(self, q_BHTK: jax.Array, groups: tuple[KV, ...], prefix: SharedPrefix | None = None) -> jax.Array:
        """Attention output [B, H, 1, K]; see masks.AttentionMask.

        `groups`: KV [B / G, H, S, K] of the first rows, of the next ones, and so on; see platforms.kv_row_groups.
        """
        if _use_triton(q_BHTK, prefix):
            (kv,) = groups
            return attend_triton(q_BHTK, kv, self, prefix)
        mask_BTS = self.boolean(groups[0].k.shape[2])
        group_states = [dense.rows_softmax(q_BHTK[rows], kv, mask_BTS[rows]) for kv, rows in _with_rows(groups)]
        states = [jax.tree.map(lambda *of_groups: jnp.concatenate(of_groups), *group_states)]
        if dense.has_keys(prefix):
            states.append(dense.prefix_softmax(q_BHTK, prefix))
        return softmax.merge(*states).astype(q_BHTK.dtype)


def write(groups: tuple[KV, ...], kv: KV, slot: jax.Array) -> tuple[KV, ...]:
    """The ring cache with the new keys and values, [B, H, 1, K], at `slot`; see RingMask.attend for `groups`."""

    def at_slot(ring, new):
        return jax.lax.dynamic_update_slice_in_dim(ring, new, slot, axis=2)

    return tuple(KV(at_slot(group.k, kv.k[rows]), at_slot(group.v, kv.v[rows])) for group, rows in _with_rows(groups))


def attend_triton(
    q_BHTK: jax.Array, kv: KV, mask: RingMask, prefix: SharedPrefix | None = None, interpret: bool = False
) -> jax.Array:
    """The same by the kernels of triton.py, for a single group. `interpret`: emulate them, on any device."""
    from star_jax.models.attention import triton  # not at the top: JAX may drop what it needs, see has_triton

    def kernels(q_BHK, kv, slot, filled_B, prefix_kv, prefix_length):
        if prefix_kv is None:
            state = softmax.empty(q_BHK.shape)
        else:
            state = triton.prefix_softmax(q_BHK, prefix_kv.k, prefix_kv.v, prefix_length, interpret=interpret)
        return triton.attend_ring(q_BHK, kv.k, kv.v, slot, filled_B, state, interpret=interpret)

    prefix_kv, prefix_length = (prefix.kv, jnp.asarray(prefix.length)) if dense.has_keys(prefix) else (None, None)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.shape["tensor"] > 1:  # XLA does not partition a kernel: each device runs its own heads
        rows, replicated, heads = PartitionSpec(None, "tensor"), PartitionSpec(), PartitionSpec("tensor")
        kernels = jax.shard_map(
            kernels,
            mesh=mesh,
            in_specs=(rows, rows, replicated, replicated, heads, replicated),
            out_specs=rows,
            axis_names={"tensor"},
            check_vma=False,
        )
    y_BHK = kernels(q_BHTK[:, :, 0], kv, jnp.asarray(mask.slot), mask.filled_B, prefix_kv, prefix_length)
    return y_BHK[:, :, None]


def _with_rows(groups):
    """(KV, slice of its rows) of each group."""
    size = groups[0].k.shape[0]
    return [(kv, slice(i * size, (i + 1) * size)) for i, kv in enumerate(groups)]


def _use_triton(q_BHTK, prefix):
    """True if the program is for a CUDA GPU and the kernels take its shapes and sharding.

    They need K, a power of two, of at least 16, P a multiple of 16, and heads as the only sharded axis outside of a
    shard_map.
    """
    size, mesh = q_BHTK.shape[-1], jax.sharding.get_abstract_mesh()
    other_axes_sharded = not mesh.empty and any(mesh.shape[axis] > 1 for axis in mesh.auto_axes if axis != "tensor")
    fits = size >= 16 and size & (size - 1) == 0 and (prefix is None or prefix.kv.k.shape[1] % 16 == 0)
    on_gpu = platforms.cuda_capability() >= (8, 0) and platforms.has_triton()
    return on_gpu and fits and not other_axes_sharded
