"""Devices to compile for or to count for: TPU topologies as libtpu describes them, and GPUs by name."""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

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
# Name -> GiB of memory.
GPUS = {"A100": 80, "H100": 80, "H200": 141, "B200": 180, "L4": 24, "L40S": 48, "RTX4090": 24, "V100": 32, "T4": 16}


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices of a run. A GPU topology has no device objects: nothing is compiled for it."""

    device_kind: str
    device_count: int
    device_gib: float  # memory of one device, GiB
    devices: tuple[Any, ...] = ()
    host_devices: tuple[Any, ...] = ()  # the devices of one process, numbered from 0

    @property
    def devices_per_host(self) -> int:
        """Devices of one process; all of them if that is unknown."""
        return len(self.host_devices) or self.device_count


def parse_topology(text: str) -> Topology:
    """Parses "v5e:2x4" (chips along each axis of the torus) or "gpu:8xH100".

    Sets environment variables that libtpu reads when it is loaded. Raises InputError for an unknown device, and for a
    TPU topology that libtpu cannot compile for.
    """
    if match := re.fullmatch(r"gpu:(\d+)x(\w+)", text):
        count, name = int(match.group(1)), match.group(2)
        if name not in GPUS or count < 1:
            raise InputError(f"--topology={text}: unknown GPUs; give one of {', '.join(GPUS)}, e.g. gpu:8xH100")
        return Topology(name, count, GPUS[name])
    generation, _, shape = text.partition(":")
    if generation not in TPUS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise InputError(f"--topology={text}: give one of {', '.join(TPUS)} and its chips, e.g. v5e:2x4, or gpu:8xH100")
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
    return Topology(devices[0].device_kind, len(devices), chip_gib / devices_per_chip, devices, host_devices)


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
