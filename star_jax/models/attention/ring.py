"""Ring-cache attention: one decode step (T = 1) of all rows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from star_jax.distributed import platforms
from star_jax.models.attention import dense, softmax
from star_jax.models.attention.masks import KV, SharedPrefix
from star_jax.models.attention.softmax import ScoreSpec


class RingMask(NamedTuple):
    """Mask for a decode step (T = 1) over a ring cache: a row attends to `slot` and the `filled_B` slots before it."""

    slot: jax.Array  # of the token of this step, the same for all rows
    filled_B: jax.Array  # may exceed S: then the row attends to every slot

    def boolean(self, slots: int, window: int = 0) -> jax.Array:
        """[B, 1, S]: True where a row attends to a slot of the ring."""
        age_S = (self.slot - jnp.arange(slots)) % slots  # 0 for the slot of this step
        visible_BS = age_S[None] <= self.filled_B[:, None]
        if window and window < slots:
            visible_BS &= (age_S < window)[None]
        return visible_BS[:, None]

    def attend(
        self,
        q_BHTK: jax.Array,
        groups: tuple[KV, ...],
        scores: ScoreSpec,
        positions_BT: jax.Array,
        prefix: SharedPrefix | None = None,
    ) -> jax.Array:
        """Attention output [B, H, 1, K]; see masks.AttentionMask.

        `groups`: KV [B / G, H, S, K] of the first rows, of the next ones, and so on; see platforms.kv_row_groups.
        """
        if _use_triton(q_BHTK, prefix):
            (kv,) = groups
            return attend_triton(q_BHTK, kv, self, scores, positions_BT, prefix)
        mask_BTS = self.boolean(groups[0].k.shape[2], scores.window)
        group_states = [dense.rows_softmax(q_BHTK[rows], kv, mask_BTS[rows], scores) for kv, rows in _with_rows(groups)]
        states = [jax.tree.map(lambda *of_groups: jnp.concatenate(of_groups), *group_states)]
        if dense.has_keys(prefix):
            states.append(dense.prefix_softmax(q_BHTK, prefix, scores, positions_BT))
        return softmax.merge(*states).astype(q_BHTK.dtype)


def write(groups: tuple[KV, ...], kv: KV, slot: jax.Array) -> tuple[KV, ...]:
    """The ring cache with the new keys and values, [B, H, 1, K], at `slot`; see RingMask.attend for `groups`."""

    def at_slot(ring, new):
        return jax.lax.dynamic_update_slice_in_dim(ring, new, slot, axis=2)

    return tuple(KV(at_slot(group.k, kv.k[rows]), at_slot(group.v, kv.v[rows])) for group, rows in _with_rows(groups))


def attend_triton(
    q_BHTK: jax.Array,
    kv: KV,
    mask: RingMask,
    scores: ScoreSpec,
    positions_BT: jax.Array,
    prefix: SharedPrefix | None = None,
    interpret: bool = False,
) -> jax.Array:
    """The same by the kernels of triton.py, for a single group. `interpret`: emulate them, on any device."""
    from star_jax.models.attention import triton  # not at the top: JAX may drop what it needs, see has_triton

    def kernels(q_BHK, kv, slot, filled_B, position_B, prefix):
        if prefix is None:
            state = softmax.empty(q_BHK.shape)
        else:
            state = triton.prefix_softmax(q_BHK, prefix, scores, position_B, interpret=interpret)
        return triton.attend_ring(q_BHK, kv, slot, filled_B, scores, state, interpret=interpret)

    prefix = jax.tree.map(jnp.asarray, prefix) if dense.has_keys(prefix) else None
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.shape["tensor"] > 1:  # XLA does not partition a kernel: each device runs its own heads
        rows, replicated, heads = PartitionSpec(None, "tensor"), PartitionSpec(), PartitionSpec("tensor")
        specs: Any = heads, replicated, replicated
        kernels = jax.shard_map(
            kernels,
            mesh=mesh,
            in_specs=(
                rows,
                rows,
                replicated,
                replicated,
                replicated,
                prefix and SharedPrefix(*specs),
            ),
            out_specs=rows,
            axis_names={"tensor"},
            check_vma=False,
        )
    y_BHK = kernels(q_BHTK[:, :, 0], kv, jnp.asarray(mask.slot), mask.filled_B, positions_BT[:, 0], prefix)
    return y_BHK[:, :, None]


def _with_rows(groups):
    """(KV, slice of its rows) of each group."""
    size = groups[0].k.shape[0]
    return [(kv, slice(i * size, (i + 1) * size)) for i, kv in enumerate(groups)]


def _use_triton(q_BHTK, prefix):
    """True if the program is for a CUDA GPU and the kernels take its shapes and sharding.

    They need K of at least 16, P a multiple of 16, and heads as the only sharded axis outside of a shard_map.
    """
    size, mesh = q_BHTK.shape[-1], jax.sharding.get_abstract_mesh()
    other_axes_sharded = not mesh.empty and any(mesh.shape[axis] > 1 for axis in mesh.auto_axes if axis != "tensor")
    fits = size >= 16 and (prefix is None or prefix.kv.k.shape[1] % 16 == 0)
    on_gpu = platforms.cuda_capability() >= (8, 0) and platforms.has_triton()
    return on_gpu and fits and not other_axes_sharded
