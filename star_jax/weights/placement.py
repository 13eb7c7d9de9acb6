"""Placement of parameters: shardings for training, resharding for sampling, copies in host memory."""

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from star_jax.distributed.sharding import RULES, auto_mesh, devices_by_process, mesh_of
from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.models.decoder import Decoder


@functools.cache
def abstract_params(model: Decoder) -> decoder.Params:
    """Shapes and dtypes of the stacked parameters, boxed with their logical axes; see unbox."""
    return jax.eval_shape(lambda: decoder.init(model, jax.random.key(0)))


def param_shardings(model: Decoder, mesh: Mesh | AbstractMesh, options: str = "mesh") -> decoder.Params:
    """A NamedSharding for each parameter. Raises InputError if a parameter does not divide over its mesh axes.

    `options`: the group of options that defines the mesh, for the error message.
    """
    shapes = abstract_params(model)
    any_mesh: Any = mesh  # linen's annotation has no AbstractMesh; NamedSharding takes it
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(shapes), any_mesh, RULES)

    def check(path: Any, leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> None:
        for size, axis in zip(leaf.shape, sharding.spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"{options}.{axis}: {mesh.shape[axis]} does not divide the {size} of {leaf_name(path)} {leaf.shape}"
                )

    jax.tree_util.tree_map_with_path(check, unbox(shapes), shardings)
    return shardings


def constrain_params(model: Decoder, params: decoder.Params) -> decoder.Params:
    """Constrains a tree of the parameters' shapes, such as gradients, to their shardings while tracing."""
    specs = nn.get_partition_spec(abstract_params(model))
    return jax.tree.map(nn.with_logical_constraint, params, jax.tree.map(tuple, specs, is_leaf=_is_spec))


def sharded_shapes(model: Decoder, mesh: Mesh, dtype: Any) -> decoder.Params:
    """Shapes of the parameters in `dtype` with their shardings on a mesh. Raises InputError like param_shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, jax.numpy.dtype(dtype), sharding=sharding),
        unbox(abstract_params(model)),
        param_shardings(model, mesh),
    )


def leaf_name(path: Any, separator: str = "/") -> str:
    """A tree path as text: "blocks/attention/query"; of a train state "opt_state/0/mu/blocks/attention/query"."""
    return separator.join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def cast(params: decoder.Params, dtype: Any) -> decoder.Params:
    """Parameters in `dtype` with the same shardings, leaf by leaf.

    Memory beyond the two trees is one leaf, and beyond the wider of them if the caller holds no reference to `params`.
    """
    leaves, structure = jax.tree.flatten(params)
    del params
    for n, leaf in enumerate(leaves):
        if leaf.dtype != dtype:
            leaves[n] = jax.jit(lambda x: x.astype(dtype), out_shardings=leaf.sharding)(leaf)
    return jax.tree.unflatten(structure, leaves)


def unbox(tree: Any) -> Any:
    """The tree without the boxes that carry logical axes.

    No sharding constraint is applied: callers set `out_shardings`, and shapes take none.
    """

    def value(leaf: Any) -> Any:
        return leaf.unbox(apply_constraint=False) if isinstance(leaf, nn.LogicallyPartitioned) else leaf

    return jax.tree.map(value, tree, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


def init_params(model: Decoder, mesh: Mesh, seed: int) -> decoder.Params:
    """Random parameters, created sharded: no device holds all of them at any time."""
    create = jax.jit(lambda key: unbox(decoder.init(model, key)), out_shardings=param_shardings(model, mesh))
    return create(jax.random.key(seed))


def to_sampling(model: Decoder, params: decoder.Params, mesh: Mesh, dtype: Any = None) -> decoder.Params:
    """Reshards stacked parameters to this process's sampling mesh, cast to `dtype` if given.

    Parameters are moved one leaf at a time, so memory beyond the two trees is one leaf. All processes must call this
    together.
    """
    devices = [device for local_devices in devices_by_process(mesh_of(params)).values() for device in local_devices]
    global_mesh = mesh
    if jax.process_count() > 1:
        global_mesh = auto_mesh(np.array(devices).reshape(-1, 1, mesh.shape["tensor"]))

    def move(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding and leaf.dtype == (dtype or leaf.dtype):
            return leaf
        cast = leaf if dtype is None else leaf.astype(dtype)
        if jax.process_count() == 1:
            return jax.device_put(cast, sharding)
        # Sampling meshes are local: reshard over the devices of all processes, then keep the local shards.
        global_array = jax.device_put(cast, NamedSharding(global_mesh, sharding.spec))
        shards = [shard.data for shard in global_array.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards)

    return jax.tree.map(move, params, param_shardings(model, mesh))


def to_decode_params(model: Decoder, params: decoder.Params, mesh: Mesh, dtype: Any = None) -> decoder.DecodeParams:
    """Reshards stacked parameters to a sampling mesh, cast to `dtype` if given, and splits them into layers.

    All processes must call it together; see to_sampling.
    """
    params = to_sampling(model, params, mesh, dtype)
    return decoder.DecodeParams(_unstack(params["blocks"]), decoder.outside_blocks(params))


_unstack = jax.jit(decoder.unstack)


def to_host(params: decoder.Params) -> decoder.Params:
    """Copies this process's shards to host memory: pinned memory, which devices read at full speed."""
    return jax.tree.map(lambda leaf: _copy(leaf, _host_memory(leaf)), params)


def from_host(params: decoder.Params) -> decoder.Params:
    """Copies the result of `to_host` back to the devices it came from. The copy's buffers may be donated."""
    return jax.tree.map(lambda leaf: _copy(leaf, next(iter(leaf.sharding.device_set)).default_memory().kind), params)


def host_bytes(params: decoder.Params) -> int:
    """Bytes of this process's host memory that `to_host` takes."""
    return sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)


def _host_memory(leaf: jax.Array) -> str:
    """Memory kind of the host copy. CPUs have no pinned memory; their default memory is the host's."""
    device = leaf.addressable_shards[0].device
    kinds = {memory.kind for memory in device.addressable_memories()}
    return "pinned_host" if "pinned_host" in kinds else device.default_memory().kind


def _copy(leaf: jax.Array, kind: str) -> jax.Array:
    """Copies shard by shard: this compiles no program and needs no other process."""
    shards = [
        jax.device_put(shard.data, SingleDeviceSharding(shard.device, memory_kind=kind), may_alias=False)
        for shard in leaf.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding.with_memory_kind(kind), shards)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)
