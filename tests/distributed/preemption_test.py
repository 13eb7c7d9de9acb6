"""star_jax.distributed.preemption: one SIGTERM sets a request, a second ends the process, none harms a finished run."""

import signal
import subprocess
import sys

from tests.support.commands import ROOT

LISTENING = """
import os, signal, time
from star_jax.distributed import preemption
terminate = lambda: os.kill(os.getpid(), signal.SIGTERM)
preemption.listen()
"""
# A destructor that runs while the interpreter exits, when handlers written in Python are gone.
LATE = "C = type('C', (), {'__del__': lambda self, terminate=terminate: terminate()}); late = C()\n"


def status(code: str) -> int:
    return subprocess.run([sys.executable, "-c", LISTENING + code], cwd=ROOT, check=False).returncode


def test_one_notice_is_a_request_and_the_same_notice_twice_too():
    assert status("assert not preemption.requested(); terminate(); assert preemption.requested(); terminate()") == 0


def test_a_notice_is_acknowledged_once():
    code = LISTENING + "terminate(); terminate()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stderr == "star_jax: SIGTERM received; the run stops when what it has begun is stored\n"


def test_a_second_notice_ends_the_process():
    assert status("terminate(); time.sleep(1.1); terminate(); time.sleep(9)") == -signal.SIGTERM


def test_a_notice_after_the_end_changes_nothing():
    assert status(LATE) == -signal.SIGTERM  # the reason for `end`
    assert status(LATE + "preemption.end()") == 0
