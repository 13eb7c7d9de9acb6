"""Devices to compile for or to count for: TPU topologies as libtpu describes them, and GPUs by name."""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from star_jax.algorithms.budget import GIB
from star_jax.errors import InputError

# Generation -> GiB of memory of a chip, and an accelerator type that libtpu accepts.
TPUS = {
    "v2": (16, "v2-8"),
    "v3": (32, "v3-8"),
    "v4": (32, "v4-8"),
    "v5e": (16, "v5litepod-8"),
    "v5p": (95, "v5p-8"),
    "v6e": (32, "v6e-8"),
    "tpu7x": (192, "tpu7x-8"),
}
# Name -> the vendor's GB of each version, and GiB of memory as its driver reports it. ECC and the driver take a part.
GPUS: dict[str, dict[int, float]] = {
    "A10": {24: 22.5},
    "A10G": {24: 22.5},
    "A30": {24: 24},
    "A40": {48: 45},
    "A100": {40: 40, 80: 80},
    "B200": {180: 179},
    "B300": {288: 268},
    "GB200": {186: 185},
    "GH200": {96: 95.5},
    "H20": {96: 95.5},
    "H100": {80: 79.6, 94: 93.5},
    "H200": {141: 140.4},
    "L4": {24: 22.5},
    "L40": {48: 45},
    "L40S": {48: 45},
    "P100": {16: 16},
    "RTX3090": {24: 24},
    "RTX4090": {24: 24},
    "RTX5090": {32: 31.8},
    "RTX6000Ada": {48: 45},
    "RTXA6000": {48: 45},
    "RTXPro6000": {96: 95.5},
    "T4": {16: 15},
    "V100": {16: 15.8, 32: 31.7},
}
MAX_GPUS = 65_536
RESERVE = 0.05  # share of the memory that JAX may allocate which is left free: fragmentation, and what a run adds
_CHIPS_PER_HOST = 4  # of TPUs with several hosts
GPU_POOL_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # share of a GPU's memory that JAX allocates at its start
_GPU_POOL, LARGE_POOL = 0.75, 0.92  # JAX's default, and a share that leaves room for CUDA's own memory
_GPU_EXAMPLE = "gpu:8xH100, gpu:1xA100-40GB, or gpu:2x8xH100 for two processes"


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices of a run. A GPU topology has no device objects: nothing is compiled for it."""

    device_kind: str
    device_count: int
    device_gib: float  # memory of one device, GiB
    devices: tuple[Any, ...] = ()
    host_devices: tuple[Any, ...] = ()  # the devices of one process, numbered from 0
    host_size: int = 0  # devices of each process; 0: one process has all
    larger_host_size: int = 0  # the same where there are several hosts
    pool: float = 1.0  # share of a device's memory that JAX allocates

    @property
    def devices_per_host(self) -> int:
        """Devices of one process."""
        return self.host_size or self.device_count

    @property
    def processes(self) -> tuple[int, ...]:
        """The process of each device, in the order of the devices."""
        if self.devices:
            return tuple(device.process_index for device in self.devices)
        return tuple(index // self.devices_per_host for index in range(self.device_count))

    @property
    def usable_bytes(self) -> float:
        """Memory of one device that a program may take, in bytes: without the reserve."""
        return self.device_gib * GIB * self.pool * (1 - RESERVE)

    def with_pool(self, share: float) -> "Topology":
        """The same GPUs if JAX allocates at least this share of their memory. TPUs have no such limit."""
        return dataclasses.replace(self, pool=max(self.pool, share))

    def of(self, count: int) -> "Topology":
        """So many devices of this kind, to count for."""
        size = self.larger_host_size if count > self.devices_per_host else self.host_size
        return dataclasses.replace(self, device_count=count, devices=(), host_devices=(), host_size=size)


def parse_topology(text: str) -> Topology:
    """Parses "v5e:2x4" (chips along each axis of the torus), "gpu:8xH100" or "gpu:2x8xH100" (two processes).

    Sets environment variables that libtpu reads when it is loaded. Raises InputError for an unknown device, and for a
    TPU topology that libtpu cannot compile for.
    """
    if text.casefold().startswith("gpu:"):
        return _gpus(text)
    generation, _, shape = text.partition(":")
    if generation not in TPUS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise InputError(
            f"--topology={text}: give one of {', '.join(TPUS)} and its chips, e.g. v5e:2x4, or GPUs: {_GPU_EXAMPLE}"
        )
    chip_gib, accelerator = TPUS[generation]
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", accelerator)
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # without it libtpu queries a metadata server
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another process may use the TPU; nothing runs here
    devices = _tpu_devices(text, generation)
    devices_per_chip = len(devices) // len({tuple(device.coords) for device in devices})
    host_devices = devices
    of_process_0 = [device for device in devices if device.process_index == 0]
    if len(of_process_0) < len(devices):  # a program of one process is compiled for a topology of one host
        sizes = (max(coords) + 1 for coords in zip(*(device.coords for device in of_process_0), strict=True))
        host_shape = "x".join(str(size) for size, _ in zip(sizes, shape.split("x"), strict=False))
        host_devices = _tpu_devices(f"{generation}:{host_shape}", generation)
    return Topology(
        devices[0].device_kind, len(devices), chip_gib / devices_per_chip, devices, host_devices,
        len(host_devices), _CHIPS_PER_HOST * devices_per_chip,
    )  # fmt: skip


def gpu_names() -> list[str]:
    """All kinds of GPUs, those of which there are several with the vendor's GB: "A100-40GB"."""
    return [_gpu_name(name, gb) for name, versions in GPUS.items() for gb in versions]


def _gpu_name(name: str, gb: int) -> str:
    return name if len(GPUS[name]) == 1 else f"{name}-{gb}GB"


def _gpus(text: str) -> Topology:
    """The GPUs of "gpu:[PROCESSESx]COUNTxKIND". A kind without its memory is the version that has the least of it."""
    names = {name.casefold(): name for name in GPUS}
    match = re.fullmatch(r"gpu:(?:(\d{1,5})x)?(\d{1,5})x([a-z]\w*)(?:-(\d+)gb)?", text.casefold())
    known = f"there are {', '.join(gpu_names())}, e.g. {_GPU_EXAMPLE}"
    if not match or match[3] not in names:
        raise InputError(f"--topology={text}: unknown GPUs; {known}")
    hosts, per_host, name = int(match[1] or 1), int(match[2]), names[match[3]]
    versions = GPUS[name]
    gb = int(match[4]) if match[4] else min(versions)
    if gb not in versions:
        raise InputError(f"--topology={text}: no {name} has {gb} GB; {known}")
    if not 1 <= hosts * per_host <= MAX_GPUS:
        raise InputError(f"--topology={text}: the number of GPUs must be at least 1 and at most {MAX_GPUS}")
    size = per_host if hosts > 1 else 0
    return Topology(
        _gpu_name(name, gb), hosts * per_host, versions[gb], host_size=size, larger_host_size=size, pool=_gpu_pool()
    )


def _gpu_pool() -> float:
    """Share of a GPU's memory that JAX allocates, as the environment variable says. Raises InputError."""
    for name in ("XLA_CLIENT_MEM_FRACTION", GPU_POOL_VARIABLE):
        if value := os.environ.get(name):
            try:
                share = float(value)
            except ValueError:
                share = math.nan
            if not 0 < share <= 1:
                raise InputError(f"{name}={value}: must be a share of a GPU's memory, greater than 0 and at most 1")
            return share
    return _GPU_POOL


def _tpu_devices(text: str, generation: str) -> tuple[Any, ...]:
    """The devices of a TPU topology in the order of their ids. Raises InputError."""
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if generation in ("v4", "v5p"):  # megacore: the two cores of a chip are one device, libtpu's default on TPU VMs
        options["chip_config_name"] = "megacore"
    if text in ("v5e:2x4", "v6e:2x4"):  # the only shapes with eight chips on one host
        options["chips_per_host_bounds"] = (2, 4, 1)
    try:
        devices: Sequence[Any] = topologies.get_topology_desc(platform="tpu", topology_name=text, **options).devices
    except Exception as error:  # libtpu raises several types; ImportError and RuntimeError if it is missing
        raise InputError(
            f"--topology={text}: no compiler for it ({' '.join(str(error).split())[:200]}); "
            "install the extra `preflight`: pip install -e '.[preflight]'"
        ) from error
    return tuple(sorted(devices, key=lambda device: device.id))
