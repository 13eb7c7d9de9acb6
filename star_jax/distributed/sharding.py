"""Device meshes, and the one table from logical axes to mesh axes.

Training and sampling use the same devices as two meshes. Training: data x fsdp x tensor over the devices of all
processes. Sampling: data x tensor over the devices of one process; each process samples its own problems, and so does
each index along `data`. weights/placement.py moves the weights from one mesh to the other.
"""

import collections
import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from star_jax.config import MeshConfig
from star_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis (t5x's names) -> mesh axis. The only place where a mesh axis is named.
RULES = (
    ("batch", ("data", "fsdp")),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),  # parameters only, for storage; activations name this axis None and are not sharded along it
    ("length", None),
    ("kv", None),
    ("layers", None),
)
# For sampling: each index along `data` has rows of its own, so no constraint may move rows between them.
_LOCAL_ROW_RULES = (("batch", None), *(rule for rule in RULES if rule[0] != "batch"))


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The training mesh of a config over the first of the devices (default: all).

    Raises InputError if the devices are too few, if a process would have none of them, or for JAX in 64 bits.
    """
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise InputError("JAX_ENABLE_X64 is on, and random numbers and results would be others; unset the variable")
    devices = jax.devices() if devices is None else devices
    shape, _ = mesh_layout(config, [device.process_index for device in devices])
    used = devices[: math.prod(shape.values())]
    # On TPUs neighbours along a mesh axis should be neighbours in the torus.
    grid = mesh_utils.create_device_mesh(tuple(shape.values()), used, allow_split_physical_axes=True)
    return auto_mesh(grid)


def mesh_layout(config: MeshConfig, processes: Sequence[int]) -> tuple[dict[str, int], dict[int, int]]:
    """(mesh axis -> devices along it, process -> how many of its devices are in the mesh) of a config's training mesh.

    `processes`: the process of each device, in the order of the devices. The mesh takes the first of them.

    Raises InputError if the devices are too few, or if a process would have none of them.
    """
    shape = mesh_shape(config, len(processes))
    counts = collections.Counter(processes[: math.prod(shape.values())])
    if len(counts) < len(set(processes)):
        raise InputError(
            f"mesh: data {shape['data']} x fsdp {shape['fsdp']} x tensor {config.tensor} leaves processes without a "
            f"device: there are {len(processes)} devices; set one of mesh.data and mesh.fsdp to -1"
        )
    return shape, dict(counts)


def mesh_shape(config: MeshConfig, devices: int) -> dict[str, int]:
    """Mesh axis -> number of devices along it. An axis of -1 takes what the other two leave.

    Raises InputError if the devices are too few.
    """
    rest = devices // config.tensor
    data = rest // config.fsdp if config.data == -1 else config.data
    fsdp = rest // config.data if config.fsdp == -1 else config.fsdp
    if data < 1 or fsdp < 1 or data * fsdp * config.tensor > devices:
        raise InputError(
            f"mesh: data {config.data} x fsdp {config.fsdp} x tensor {config.tensor} does not fit {devices} devices"
        )
    return {"data": data, "fsdp": fsdp, "tensor": config.tensor}


def sampling_mesh(mesh: Mesh, tensor: int, process: int | None = None) -> Mesh:
    """The mesh of one process for sampling: its devices of a training mesh, `tensor` of them for each model copy.

    `tensor` -1: all of them. Default process: this one. Raises InputError if `tensor` does not divide the devices.
    """
    devices = devices_by_process(mesh)[jax.process_index() if process is None else process]
    return auto_mesh(np.array(devices).reshape(-1, 1, sampling_tensor(tensor, len(devices))))


def sampling_tensor(tensor: int, devices: int) -> int:
    """Devices of each copy of the model in sampling: the option `sampling.tensor` for a process's number of devices.

    Raises InputError if it does not divide them.
    """
    tensor = devices if tensor == -1 else tensor
    if devices % tensor:
        raise InputError(
            f"sampling.tensor: {tensor} does not divide the {devices} devices of a process; for sampling, weights are "
            "sharded within a process"
        )
    return tensor


def mesh_of(params: Any) -> Mesh:
    """The mesh that parameters are sharded over; a mesh of one device for unsharded ones."""
    leaf = jax.tree.leaves(params)[0]
    if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
        return cast(Mesh, leaf.sharding.mesh)
    return make_mesh(MeshConfig(data=1), jax.local_devices()[:1])


def abstract_mesh(shape: Mapping[str, int]) -> AbstractMesh:
    """A mesh of so many devices along each axis, without the devices: for checks of shapes."""
    return AbstractMesh(tuple(shape[axis] for axis in MESH_AXES), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def auto_mesh(grid: np.ndarray) -> Mesh:
    """A mesh of Auto axes over devices [data, fsdp, tensor]. (linen fails with Explicit axes, JAX's default.)"""
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def devices_by_process(mesh: Mesh) -> dict[int, list[Any]]:
    """Process index -> its devices in the mesh, by id: neighbours have close ids."""
    devices: dict[int, list[Any]] = {}
    for device in sorted(mesh.devices.flat, key=lambda device: (device.process_index, device.id)):
        devices.setdefault(device.process_index, []).append(device)
    return devices


@contextlib.contextmanager
def use(mesh: Mesh, local_rows: bool = False) -> Iterator[None]:
    """Makes the mesh and the table current: only then do the model's logical constraints have an effect.

    `local_rows`: for sampling, where each index along `data` has rows of its own.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(_LOCAL_ROW_RULES if local_rows else RULES):
        yield


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Number of shards of a batch's rows."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_rows(mesh: Mesh | AbstractMesh, rows: int, microbatches: int = 1) -> None:
    """Raises InputError unless the rows of a batch divide over the batch axes, in each of its microbatches."""
    if rows % microbatches or rows // microbatches % batch_shards(mesh):
        raise InputError(
            f"train.batch_rows: {rows} rows do not divide over {batch_shards(mesh)} devices"
            + (f" in {microbatches} microbatches (train.microbatches)" if microbatches > 1 else "")
            + f"; give a multiple of {microbatches * batch_shards(mesh)} rows, or another mesh (mesh.data, .fsdp)"
        )


def put_rows(mesh: Mesh, array_R: np.ndarray) -> jax.Array:
    """Puts an array on the mesh, its first axis sharded over the batch axes. Raises InputError if it does not divide.

    Every process has the whole array and puts only the rows of its own devices.
    """
    check_rows(mesh, array_R.shape[0])
    return put(array_R, row_sharding(mesh))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Shards an array's first axis over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(dict(RULES)["batch"]))


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process has whole on the devices of all processes: each puts its own shards."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
