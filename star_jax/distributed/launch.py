"""Start of one process of several: joins the others as the environment says, and ends when one of them is lost.

A process takes part if the environment says so:

    JAX_COORDINATOR_ADDRESS=host:port JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0     by hand
    STAR_DISTRIBUTED=1                                  jax finds the others: TPU pods, SLURM, Open MPI, Kubernetes
    started by srun or mpirun with more than one task   the same
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from star_jax import terminal
from star_jax.errors import ExitStatus, InputError, Stopped, is_peer_failure, report_error

HEARTBEAT = 60  # seconds without a heartbeat after which a process counts as dead
_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_PEER_LOST_LINE = (
    "star_jax: another process died, or was stopped, so this one ends too; see the end of the others' logs, then start "
    "all of them again: the same command continues the run"
)


@contextlib.contextmanager
def distributed_context() -> Iterator[None]:
    """Joins the other processes, if the environment names any, for the duration of the block.

    If another process dies, or the block raises in this one, the process exits inside the context: an orderly exit
    would wait for the others. Call it in the main thread before JAX is used; it forks.

    Raises InputError if the environment is incomplete or the other processes cannot be reached.
    """
    if not _several_processes():
        yield
        return
    _fork_and_supervise()
    try:
        _initialize()
        yield
    except BaseException as error:
        _exit_at_once(error)
    import jax

    jax.distributed.shutdown()


def _several_processes() -> bool:
    """Whether environment variables request several processes. Raises InputError if only some of them are set."""
    present = [name for name in _BY_HAND if os.environ.get(name)]
    if present and len(present) < len(_BY_HAND):
        missing = next(name for name in _BY_HAND if name not in present)
        raise InputError(f"{present[0]} is set and {missing} is not; set {', '.join(_BY_HAND)}, or none of them")
    if (distributed := os.environ.get("STAR_DISTRIBUTED", "")) not in ("", "0", "1"):
        raise InputError(f"STAR_DISTRIBUTED={distributed}: must be 1 (this is one of several processes), 0 or empty")
    tasks = (os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return bool(present) or distributed == "1" or any(count != "1" for count in tasks)


def _initialize() -> None:
    import jax

    by_hand: dict[str, Any] = {}
    if os.environ.get(_BY_HAND[0]):
        address, count, process = (os.environ[name] for name in _BY_HAND)
        if not (count.isdecimal() and process.isdecimal()) or int(process) >= int(count):
            raise InputError(f"JAX_PROCESS_ID={process} must be a number below JAX_NUM_PROCESSES={count}")
        if not address.rpartition(":")[2].isdecimal():
            raise InputError(f"JAX_COORDINATOR_ADDRESS={address}: give host:port of process 0")
        by_hand = dict(coordinator_address=address, num_processes=int(count), process_id=int(process))
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **by_hand, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=2 * HEARTBEAT
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"the other processes cannot be reached ({' '.join(str(error).split())})") from error


def _fork_and_supervise() -> None:
    """Forks. The child returns and runs the job; the parent waits for it and reports why it died.

    When a process dies, JAX's runtime aborts all others from a native thread, with a page of stack: no Python code of
    the aborted process can print the one line that a user needs.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _die_with_parent()
        return

    def forward(number: int, _: Any) -> None:
        with contextlib.suppress(ProcessLookupError):  # the child has just ended
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGABRT:
        terminal.say(_PEER_LOST_LINE, sys.stderr)
        status = ExitStatus.PEER_LOST
    elif status < 0:
        terminal.say(f"star_jax: this process was killed by signal {-status}", sys.stderr)
        status = 128 - status
    os._exit(status)


def _die_with_parent() -> None:
    """Asks the kernel (Linux only) to kill this process when its parent dies: kill -9 of the parent ends both."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def _exit_at_once(error: BaseException) -> None:
    """Prints what happened and ends this process without waiting for the others, which wait for this one."""
    status: Any = ExitStatus.BUG
    if isinstance(error, InputError | KeyboardInterrupt | SystemExit | Stopped | terminal.OutputError):
        status = report_error(error)
    elif is_peer_failure(error):
        terminal.say(f"{_PEER_LOST_LINE} ({terminal.one_line(str(error))[:200]})", sys.stderr)
        status = ExitStatus.PEER_LOST
    else:
        import traceback

        terminal.say("".join(traceback.format_exception(error)), sys.stderr)
    terminal.drop_unwritten(sys.stdout)
    terminal.drop_unwritten(sys.stderr)
    os._exit(status)
