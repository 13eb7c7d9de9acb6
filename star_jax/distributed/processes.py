"""Several processes as one program: the hosts of a TPU pod, the nodes of a cluster, or two processes of a test.

Every process runs the same code on the same inputs. Only the leader, process 0, reads and writes the run's files
(Orbax writes from all); the others get what it read by broadcast, so no process acts on a file that another does not
see yet. `launch` starts the processes.
"""

import contextlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

from star_jax import json_reader
from star_jax.distributed import preemption
from star_jax.errors import InputError, Stopped, os_errors_as_input_errors

_T = TypeVar("_T")


def is_leader() -> bool:
    """Whether this is the process that reads and writes the run's files."""
    return index() == 0


def index() -> int:
    """The number of this process, from 0."""
    import jax

    return jax.process_index()


def count() -> int:
    """The number of processes."""
    import jax

    return jax.process_count()


def broadcast_from_leader(make: Callable[[], _T], /) -> _T:
    """Calls `make` in the leader; returns its value, which must be JSON, or raises its InputError, in all processes.

    An OSError of `make` becomes an InputError: the others must not wait for a leader that is gone.
    """
    if count() == 1:
        with os_errors_as_input_errors():
            return make()
    result: dict[str, Any] = {}
    if is_leader():
        try:
            with os_errors_as_input_errors():
                result["value"] = make()
        except InputError as error:
            result["error"] = str(error)
    result = json_reader.parse(_broadcast(json.dumps(result).encode()))
    if "error" in result:
        raise InputError(result["error"])
    return result["value"]


def gather(tree: Any) -> Any:
    """Concatenates a tree of host arrays [Q, ...], of equal shapes in all processes, to [processes * Q, ...]."""
    if count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def preemption_requested() -> bool:
    """Whether any process received SIGTERM: the same answer in all. All processes must call this together."""
    import numpy as np

    return bool(np.any(gather(np.array([preemption.requested()]))))


def check_stop() -> None:
    """Raises Stopped in all processes if any received SIGTERM. All processes must call this together."""
    if preemption_requested():
        raise Stopped


def check_equal(what: str, value: str) -> None:
    """Raises InputError in all processes unless all of them pass the same text."""
    if count() == 1:
        return
    import hashlib

    import numpy as np

    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    digests = gather(digest[None])
    differing = np.flatnonzero(np.any(digests != digests[:1], axis=1))
    if differing.size:
        raise InputError(f"{what} differs between process 0 and process {differing[0]}; give all of them the same")


def host_memory_available(size: int) -> bool:
    """Whether each process's machine has four times `size` bytes of memory free; `size` may differ between processes.

    Four times, since several processes may share a machine, and other programs need memory too. False where the free
    memory is unknown (outside Linux).
    """
    import numpy as np

    return bool(np.all(gather(np.array([4 * size <= _free_memory()]))))


def _free_memory() -> int:
    """Free bytes of the machine, or what the container may still allocate if that is less; 0 if unknown."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0
    with contextlib.suppress(OSError, ValueError, StopIteration):  # no container limit
        group = "/sys/fs/cgroup/memory"
        with open(f"{group}.max") as limit, open(f"{group}.current") as used, open(f"{group}.stat") as stat:
            cached = next(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
            free = min(free, int(limit.read()) - int(used.read()) + cached)
    return free


def _broadcast(message: bytes) -> bytes:
    """The leader's message, in all processes."""
    import numpy as np
    from jax.experimental import multihost_utils

    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    size = 1 << max(10, (length - 1).bit_length())  # powers of two: each size compiles a program
    padded = np.zeros((size,), np.uint8)
    padded[: len(message)] = np.frombuffer(message, np.uint8)[:size]
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()[:length]
