"""The mesh, and the one table that says which logical axis lies along which mesh axis.

Training and sampling use the same devices as two meshes. Training: data x fsdp x tensor over the devices of all
processes. Sampling: data x tensor over those of one process; each process draws its own problems there, and so does
each place along `data`. `to_sampling` takes the weights from one to the other.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from star_jax.config import MeshConfig
from star_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis (t5x's names) -> mesh axis. The only place where a mesh axis is named.
RULES = (
    ("batch", ("data", "fsdp")),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),  # of parameters, for storage; activations name None there and keep it whole
    ("length", None),
    ("kv", None),
    ("layers", None),
)
# Each place along `data` draws problems of its own: what is done for rows there concerns no other device.
_ROWS_APART = (("batch", None), *(rule for rule in RULES if rule[0] != "batch"))


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a config over the first devices; an axis of -1 takes what the other two leave. Raises InputError."""
    devices = jax.devices() if devices is None else devices
    data, fsdp, _ = mesh_shape(config, len(devices)).values()
    used = devices[: data * fsdp * config.tensor]
    if len({device.process_index for device in used}) < len({device.process_index for device in devices}):
        raise InputError(
            f"mesh: data {data} x fsdp {fsdp} x tensor {config.tensor} leaves processes without a device: "
            f"there are {len(devices)} devices; let one of mesh.data and mesh.fsdp be -1"
        )
    # The physical layout counts on TPUs: neighbours along an axis are neighbours in the torus.
    grid = mesh_utils.create_device_mesh((data, fsdp, config.tensor), used, allow_split_physical_axes=True)
    return _mesh(grid)


def mesh_shape(config: MeshConfig, devices: int) -> dict[str, int]:
    """Mesh axis -> devices along it, for so many devices. Raises InputError where they are too few."""
    left = devices // config.tensor
    data = left // config.fsdp if config.data == -1 else config.data
    fsdp = left // config.data if config.fsdp == -1 else config.fsdp
    if data < 1 or fsdp < 1 or data * fsdp * config.tensor > devices:
        raise InputError(
            f"mesh: data {config.data} x fsdp {config.fsdp} x tensor {config.tensor} does not fit {devices} devices"
        )
    return {"data": data, "fsdp": fsdp, "tensor": config.tensor}


def sampling_mesh(mesh: Mesh, tensor: int, process: int | None = None) -> Mesh:
    """This process's devices of a training mesh, `tensor` ways split, the rest along `data`. Raises InputError."""
    process = jax.process_index() if process is None else process
    own = _by_process(mesh)[process]
    tensor = len(own) if tensor == -1 else tensor
    if len(own) % tensor:
        raise InputError(
            f"sampling.tensor: {tensor} does not divide the {len(own)} devices of a process; weights are split for "
            "sampling inside a process"
        )
    return _mesh(np.array(own).reshape(-1, 1, tensor))


def mesh_of(params: Any) -> Mesh:
    """The mesh on which parameters lie; one device where they lie on none."""
    leaf = jax.tree.leaves(params)[0]
    if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
        return cast(Mesh, leaf.sharding.mesh)
    return make_mesh(MeshConfig(data=1), jax.local_devices()[:1])


@contextlib.contextmanager
def use(mesh: Mesh, rows_apart: bool = False) -> Iterator[None]:
    """Makes the mesh and the table current, so that the model's logical constraints mean something.

    `rows_apart`: for sampling, where each place along `data` has rows of its own.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(_ROWS_APART if rows_apart else RULES):
        yield


def batch_ways(mesh: Mesh) -> int:
    """Over how many places the rows of a batch are spread."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_rows(mesh: Mesh, rows: int, microbatches: int = 1) -> None:
    """Raises InputError unless so many rows of a batch divide over the batch axes, in each of its microbatches."""
    if rows % microbatches or rows // microbatches % batch_ways(mesh):
        raise InputError(
            f"train.batch_rows: {rows} rows do not divide over {batch_ways(mesh)} devices"
            + (f" in {microbatches} microbatches (train.microbatches)" if microbatches > 1 else "")
        )


def put_rows(mesh: Mesh, array_R: np.ndarray) -> jax.Array:
    """Puts an array on the mesh, its first axis along the batch axes. Raises InputError if it does not divide.

    Every process has the whole array and puts only the rows of its own devices.
    """
    check_rows(mesh, array_R.shape[0])
    return put(array_R, along_rows(mesh))


def along_rows(mesh: Mesh) -> NamedSharding:
    """The first axis of an array along the batch axes."""
    return NamedSharding(mesh, PartitionSpec(dict(RULES)["batch"]))


def put(array: np.ndarray, place: NamedSharding) -> jax.Array:
    """An array that every process has whole, on the devices of all of them: each puts its own shards."""
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _mesh(grid: np.ndarray) -> Mesh:
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _by_process(mesh: Mesh) -> dict[int, list[Any]]:
    """The devices of each process, in an order in which neighbours lie close."""
    found: dict[int, list[Any]] = {}
    for device in sorted(mesh.devices.flat, key=lambda device: (device.process_index, device.id)):
        found.setdefault(device.process_index, []).append(device)
    return found
