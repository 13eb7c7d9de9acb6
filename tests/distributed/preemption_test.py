"""star_jax.distributed.preemption: one SIGTERM asks, a second ends, and none harms a run that is over."""

import signal
import subprocess
import sys

from tests.support.commands import ROOT

ASKED = "import os, signal, time; from star_jax.distributed import preemption; kill = lambda: os.kill(os.getpid(), signal.SIGTERM); "
ASKED += "preemption.listen(); "


def ends(code: str) -> int:
    return subprocess.run([sys.executable, "-c", ASKED + code], cwd=ROOT, check=False).returncode


def test_one_notice_asks_and_the_same_notice_twice_too():
    assert ends("assert not preemption.requested(); kill(); assert preemption.requested()") == 0
    assert ends("kill(); kill(); assert preemption.requested()") == 0


def test_a_second_notice_ends_the_process():
    assert ends("kill(); time.sleep(1.1); kill(); time.sleep(9)") == -signal.SIGTERM


def test_a_notice_after_the_end_changes_nothing():
    """Also where the interpreter is being taken down, when handlers written in Python are gone."""
    late = "import atexit; C = type('C', (), {'__del__': lambda self, kill=kill: kill()}); keep = C(); "
    assert ends(late) == -signal.SIGTERM  # the reason for `end`
    assert ends(late + "preemption.end()") == 0
