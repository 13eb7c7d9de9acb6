"""The mesh, and the one table that says which logical axis lies along which mesh axis."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from star_jax import model as gpt
from star_jax.config import MeshConfig
from star_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis (t5x's names) -> mesh axis. The only place where a mesh axis is named.
RULES = (
    ("batch", ("data", "fsdp")),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
    ("length", None),
    ("kv", None),
    ("layers", None),
)
# Activations keep their model axis whole: their batch axis already lies along fsdp.
_ACTIVATION_RULES = tuple((name, None if name == "embed" else axis) for name, axis in RULES)


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh of a config over the first devices; an axis of -1 takes what the other two leave. Raises InputError."""
    devices = jax.devices()
    left = len(devices) // config.tensor
    data = left // config.fsdp if config.data == -1 else config.data
    fsdp = left // config.data if config.fsdp == -1 else config.fsdp
    if data < 1 or fsdp < 1 or data * fsdp * config.tensor > len(devices):
        raise InputError(
            f"mesh: data {config.data} x fsdp {config.fsdp} x tensor {config.tensor} "
            f"does not fit {len(devices)} devices"
        )
    grid = np.array(devices[: data * fsdp * config.tensor]).reshape(data, fsdp, config.tensor)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[None]:
    """Makes the mesh and the table current, so that the model's logical constraints mean something."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(_ACTIVATION_RULES):
        yield


@functools.cache
def abstract_params(model: gpt.GPT) -> gpt.Params:
    """The parameters' shapes and dtypes, boxed with their logical axes."""
    return jax.eval_shape(lambda: gpt.init(model, jax.random.key(0)))


def param_shardings(model: gpt.GPT, mesh: Mesh) -> gpt.Params:
    """A NamedSharding for each parameter. Raises InputError for one that does not divide over its mesh axes."""
    shapes = abstract_params(model)
    places = nn.logical_to_mesh_sharding(nn.get_partition_spec(shapes), mesh, RULES)

    def check(path: Any, leaf: jax.ShapeDtypeStruct, place: NamedSharding) -> None:
        for size, axis in zip(leaf.shape, place.spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"mesh.{axis}: {mesh.shape[axis]} does not divide the {size} of {leaf_name(path)} {leaf.shape}"
                )

    jax.tree_util.tree_map_with_path(check, unbox(shapes), places)
    return places


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


def init_params(model: gpt.GPT, mesh: Mesh, seed: int) -> gpt.Params:
    """Freshly drawn parameters, made where they will live: no device ever holds all of them."""
    make = jax.jit(lambda key: unbox(gpt.init(model, key)), out_shardings=param_shardings(model, mesh))
    return make(jax.random.key(seed))


def check_rows(mesh: Mesh, rows: int) -> None:
    """Raises InputError unless so many rows of a batch divide over the batch axes."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % ways:
        raise InputError(f"train.batch_rows: {rows} rows do not divide over {ways} devices")


def put_rows(mesh: Mesh, array_R: np.ndarray) -> jax.Array:
    """Puts an array on the mesh, its first axis along the batch axes. Raises InputError if it does not divide."""
    check_rows(mesh, array_R.shape[0])
    return jax.device_put(array_R, NamedSharding(mesh, PartitionSpec(dict(RULES)["batch"])))
