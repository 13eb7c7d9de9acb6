"""Several processes as one program: a TPU pod's hosts, the nodes of a cluster, or two processes of a test.

Every process runs the same code on the same inputs; only process 0 reads and writes the run's files (Orbax writes from
all), and what it read is told to the others: `agree`. So no process acts on a file that another does not see yet.

A process takes part where the environment says so:

    JAX_COORDINATOR_ADDRESS=host:port JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0     by hand
    STAR_DISTRIBUTED=1                                  jax finds the others: TPU pods, SLURM, Open MPI, Kubernetes
    started by srun or mpirun with more than one task   the same
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from star_jax.distributed import preemption
from star_jax.errors import InputError, Stopped, is_peer_failure, report_error

ANOTHER_DIED = 3  # exit status
HEARTBEAT = 60  # seconds without a sign of life after which a process counts as dead
_T = TypeVar("_T")
_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def is_leader() -> bool:
    """Whether this is the process that reads and writes the run's files."""
    return index() == 0


def broadcast_from_leader(make: Callable[[], _T], /) -> _T:
    """What `make` gives in process 0, in all processes. It must be JSON; an InputError is raised in all."""
    if count() == 1:
        return make()
    said: dict[str, Any] = {}
    if is_leader():
        try:
            said["value"] = make()
        except InputError as error:
            said["error"] = str(error)
    said = json.loads(_broadcast(json.dumps(said).encode()))
    if "error" in said:
        raise InputError(said["error"])
    return said["value"]


def index() -> int:
    """The number of this process, from 0."""
    import jax

    return jax.process_index()


def count() -> int:
    """How many processes there are."""
    import jax

    return jax.process_count()


def gather(tree: Any) -> Any:
    """A tree of host arrays [Q, ...], of equal shapes everywhere -> the arrays of all processes, [P x Q, ...]."""
    if count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def preemption_requested() -> bool:
    """Whether one of the processes was told to stop, the same in all. All of them must call this together."""
    import numpy as np

    return bool(np.any(gather(np.array([preemption.requested()]))))


def check_stop() -> None:
    """Raises Stopped in all processes if one of them was told to stop. All of them must call this together."""
    if preemption_requested():
        raise Stopped


def check_equal(what: str, value: str) -> None:
    """Raises InputError in every process unless all of them pass the same text."""
    if count() == 1:
        return
    import hashlib

    import numpy as np

    own = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    digests = gather(own[None])
    differing = np.flatnonzero(np.any(digests != digests[:1], axis=1))
    if differing.size:
        raise InputError(f"{what} differs between process 0 and process {differing[0]}; give all of them the same")


def host_memory_available(size: int) -> bool:
    """Whether every process's machine has four times `size` bytes of memory free, `size` being the process's own.

    Four times: several processes may share a machine, and what is free now is not free for us alone. Where it is not
    known (outside of Linux) there is no room.
    """
    import numpy as np

    return bool(np.all(gather(np.array([4 * size <= _free_memory()]))))


def _free_memory() -> int:
    """Bytes; also what the container may still take."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0
    with contextlib.suppress(OSError, ValueError, StopIteration):  # no such limit
        group = "/sys/fs/cgroup/memory"
        with open(f"{group}.max") as most, open(f"{group}.current") as used, open(f"{group}.stat") as stat:
            cached = next(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
            free = min(free, int(most.read()) - int(used.read()) + cached)
    return free


@contextlib.contextmanager
def distributed_context() -> Iterator[None]:
    """Joins the other processes, if the environment names any, for as long as the block runs.

    When another process dies, or this one fails, the process ends inside: what waits for it must not wait for ever.
    Call it before JAX has been used, in the main thread; it forks.
    """
    if not _several():
        yield
        return
    _watch_over_child()
    try:
        _initialize()
        yield
    except BaseException as error:
        _leave(error)
    import jax

    jax.distributed.shutdown()


def _several() -> bool:
    """Whether the environment speaks of other processes. Raises InputError where it says so by half."""
    given = [name for name in _BY_HAND if os.environ.get(name)]
    if given and len(given) < len(_BY_HAND):
        missing = next(name for name in _BY_HAND if name not in given)
        raise InputError(f"{given[0]} is set and {missing} is not; set {', '.join(_BY_HAND)}, or none of them")
    tasks = (os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return bool(given) or os.environ.get("STAR_DISTRIBUTED", "0") == "1" or any(task != "1" for task in tasks)


def _initialize() -> None:
    import jax

    by_hand: dict[str, Any] = {}
    if os.environ.get(_BY_HAND[0]):
        address, *numbers = (os.environ[name] for name in _BY_HAND)
        if not all(number.isdecimal() for number in numbers) or int(numbers[1]) >= int(numbers[0]):
            raise InputError(f"JAX_PROCESS_ID={numbers[1]} must be a number below JAX_NUM_PROCESSES={numbers[0]}")
        if not address.rpartition(":")[2].isdecimal():
            raise InputError(f"JAX_COORDINATOR_ADDRESS={address}: give host:port of process 0")
        by_hand = dict(coordinator_address=address, num_processes=int(numbers[0]), process_id=int(numbers[1]))
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **by_hand, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=2 * HEARTBEAT
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"the other processes were not found ({' '.join(str(error).split())})") from error


def _watch_over_child() -> None:
    """Goes on in a child process and stays behind to explain its end.

    JAX's runtime answers the death of a process by aborting all others from a thread of its own, with a page of stack:
    no Python code of the dying process can add the one line that a user needs.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _die_with_parent()
        return

    def pass_on(received: int, _: Any) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(child, received)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGABRT:
        print(f"star_jax: {_TOLD}", file=sys.stderr, flush=True)
        status = ANOTHER_DIED
    elif status < 0:
        print(f"star_jax: this process was killed by signal {-status}", file=sys.stderr, flush=True)
        status = 128 - status
    os._exit(status)


_TOLD = (
    "another process died, or was stopped, so this one ends too; look at the end of the others' logs, "
    "then start all of them again: the same command goes on from here"
)


def _die_with_parent() -> None:
    """kill -9 of the one that was started must not leave the one that works behind (Linux only)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def _leave(error: BaseException) -> None:
    """Ends this process at once: leaving in good order would wait for the others, which wait for this one."""
    status: Any = 1
    if isinstance(error, InputError | KeyboardInterrupt | SystemExit | Stopped):
        status = report_error(error)
    elif is_peer_failure(error):
        print(f"star_jax: {_TOLD} ({' '.join(str(error).split())[:200]})", file=sys.stderr)
        status = ANOTHER_DIED
    else:
        import traceback

        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _broadcast(message: bytes) -> bytes:
    """What process 0 passes, in all processes."""
    import numpy as np
    from jax.experimental import multihost_utils

    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    size = 1 << max(10, (length - 1).bit_length())  # few sizes: each is a program of its own
    padded = np.zeros((size,), np.uint8)
    padded[: len(message)] = np.frombuffer(message, np.uint8)[:size]
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()[:length]
