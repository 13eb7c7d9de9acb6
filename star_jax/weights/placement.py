"""Where parameters are placed: shardings for training, resharding for sampling, copies in host memory."""

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from star_jax.distributed.sharding import RULES, auto_mesh, devices_by_process, mesh_of
from star_jax.errors import InputError
from star_jax.models import decoder


@functools.cache
def abstract_params(model: decoder.GPT) -> decoder.Params:
    """The parameters' shapes and dtypes, boxed with their logical axes."""
    return jax.eval_shape(lambda: decoder.init(model, jax.random.key(0)))


def param_shardings(model: decoder.GPT, mesh: Mesh, options: str = "mesh") -> decoder.Params:
    """A NamedSharding for each parameter. Raises InputError for one that does not divide over its mesh axes.

    `options`: the group of options that made the mesh, for that message.
    """
    shapes = abstract_params(model)
    places = nn.logical_to_mesh_sharding(nn.get_partition_spec(shapes), mesh, RULES)

    def check(path: Any, leaf: jax.ShapeDtypeStruct, place: NamedSharding) -> None:
        for size, axis in zip(leaf.shape, place.spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"{options}.{axis}: {mesh.shape[axis]} does not divide the {size} of {leaf_name(path)} {leaf.shape}"
                )

    jax.tree_util.tree_map_with_path(check, unbox(shapes), places)
    return places


def constrain_params(model: decoder.GPT, params: decoder.Params) -> decoder.Params:
    """Inside a program: a tree of the parameters' shapes (gradients, say) lies as the table says."""
    specs = nn.get_partition_spec(abstract_params(model))
    return jax.tree.map(nn.with_logical_constraint, params, jax.tree.map(tuple, specs, is_leaf=_is_spec))


def placed_shapes(model: decoder.GPT, mesh: Mesh, dtype: Any) -> decoder.Params:
    """The parameters' shapes in `dtype` with their places on a mesh, no array made. Raises InputError."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, jax.numpy.dtype(dtype), sharding=place),
        unbox(abstract_params(model)),
        param_shardings(model, mesh),
    )


def leaf_name(path: Any) -> str:
    """A tree path as text: "blocks/attention/query"."""
    return "/".join(str(key.key) for key in path)


def unbox(tree: Any) -> Any:
    """The tree without the boxes that carry logical axes.

    No constraint is applied on the way: `out_shardings` says where parameters go, and shapes take none.
    """

    def value(leaf: Any) -> Any:
        return leaf.unbox(apply_constraint=False) if isinstance(leaf, nn.LogicallyPartitioned) else leaf

    return jax.tree.map(value, tree, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


def init_params(model: decoder.GPT, mesh: Mesh, seed: int) -> decoder.Params:
    """Freshly drawn parameters, made where they will live: no device ever holds all of them."""
    make = jax.jit(lambda key: unbox(decoder.init(model, key)), out_shardings=param_shardings(model, mesh))
    return make(jax.random.key(seed))


def to_sampling(model: decoder.GPT, params: decoder.Params, mesh: Mesh, dtype: Any = None) -> decoder.Params:
    """The weights (in `dtype`, if it is given) on this process's sampling mesh, from wherever they lie.

    Leaf by leaf: what is held besides the two trees is one leaf. All processes must call this together.
    """
    devices = [device for own in devices_by_process(mesh_of(params)).values() for device in own]
    everywhere = auto_mesh(np.array(devices).reshape(-1, 1, mesh.shape["tensor"])) if jax.process_count() > 1 else mesh

    def move(leaf: Any, place: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == place and leaf.dtype == (dtype or leaf.dtype):
            return leaf
        smaller = leaf if dtype is None else leaf.astype(dtype)
        if jax.process_count() == 1:
            return jax.device_put(smaller, place)
        spread = jax.device_put(smaller, NamedSharding(everywhere, place.spec))
        return jax.make_array_from_single_device_arrays(leaf.shape, place, [s.data for s in spread.addressable_shards])

    return jax.tree.map(move, params, param_shardings(model, mesh))


def to_decode_params(model: decoder.GPT, params: decoder.Params, mesh: Mesh, dtype: Any = None) -> decoder.DecodeParams:
    """Puts stacked parameters on a sampling mesh, cast to `dtype` if given, and splits them into layers.

    All processes must call it together; see to_sampling.
    """
    params = to_sampling(model, params, mesh, dtype)
    return decoder.DecodeParams(_unstack(params["blocks"]), decoder.outside_blocks(params))


_unstack = jax.jit(decoder.unstack)


def to_host(params: decoder.Params) -> decoder.Params:
    """A copy of the shards of this process in its host's memory: pinned, which devices read at full speed."""
    return jax.tree.map(lambda leaf: _copy(leaf, _host_memory(leaf)), params)


def from_host(params: decoder.Params) -> decoder.Params:
    """A copy of what `to_host` gave where that came from; its buffers may be given up."""
    return jax.tree.map(lambda leaf: _copy(leaf, next(iter(leaf.sharding.device_set)).default_memory().kind), params)


def host_bytes(params: decoder.Params) -> int:
    """What `to_host` takes of this process's memory."""
    return sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)


def _host_memory(leaf: jax.Array) -> str:
    """Every platform that is not a host itself offers pinned memory; where it is one, its own memory will do."""
    device = leaf.addressable_shards[0].device
    kinds = {memory.kind for memory in device.addressable_memories()}
    return "pinned_host" if "pinned_host" in kinds else device.default_memory().kind


def _copy(leaf: jax.Array, kind: str) -> jax.Array:
    """Shard by shard: no program is compiled, and no other process is asked."""
    shards = [
        jax.device_put(shard.data, SingleDeviceSharding(shard.device, memory_kind=kind), may_alias=False)
        for shard in leaf.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding.with_memory_kind(kind), shards)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)
