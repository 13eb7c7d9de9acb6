"""star_jax.runs.lock: one holder at a time; a dead process holds nothing, on this machine at once, on others later."""

import json
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from star_jax.errors import InputError
from star_jax.runs import lock
from star_jax.runs.lock import Lock
from tests.support.commands import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from star_jax.runs.lock import Lock
held = Lock(Path(sys.argv[1]), beat=0.05)
print("held", flush=True)
time.sleep(600)
"""


def holder(directory):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_named_and_holds_nothing_after_a_kill(tmp_path):
    process = holder(tmp_path)
    try:
        with pytest.raises(
            InputError, match=re.escape(f"{tmp_path}: another run is at work there (process {process.pid} on ")
        ):
            Lock(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    started = time.monotonic()
    Lock(tmp_path).release()
    assert time.monotonic() - started < 5, "on one machine a dead process's lock is free at once"


def test_it_is_released(tmp_path):
    for _ in range(2):
        Lock(tmp_path).release()
    assert (tmp_path / "LOCK").read_bytes() == b""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The directory of a lock that another machine holds, on a file system that does not pass flock on."""
    monkeypatch.setattr(lock, "_machine", lambda: "another machine")
    monkeypatch.setattr(lock.fcntl, "flock", lambda *_: None)
    Lock(tmp_path, beat=0.05).release()
    held = Lock(tmp_path, beat=0.05)
    monkeypatch.setattr(lock, "_machine", lambda: "this machine")
    yield tmp_path, held
    held.release()


def test_a_lock_of_another_machine_with_a_heartbeat_is_refused(elsewhere):
    directory, _ = elsewhere
    with pytest.raises(InputError, match="another run is at work there"):
        Lock(directory, beat=0.05, watch=30.0)


def test_a_lock_without_a_heartbeat_is_taken_and_its_holder_notices(elsewhere):
    directory, held = elsewhere
    held._stop.set()
    held._thread.join()
    taken = Lock(directory, beat=0.05, watch=0.3)
    held.check()
    held._stop.clear()
    held._send_heartbeats()  # it wakes up and reads another token
    with pytest.raises(InputError, match="took over this run"):
        held.check()
    taken.check()
    held._thread = threading.Thread(target=lambda: None)
    held._thread.start()
    taken.release()


def test_of_two_processes_that_take_the_same_lock_one_continues(elsewhere):
    directory, held = elsewhere
    held._stop.set()
    held._thread.join()
    locks, refusals = [], []

    def take():
        try:
            locks.append(Lock(directory, beat=0.05, watch=0.3))
        except InputError as error:
            refusals.append(error)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert locks and len(locks) + len(refusals) == 2
    deadline = time.monotonic() + 20
    while sum(not other._lost for other in locks) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    assert sum(not other._lost for other in locks) == 1
    for other in locks:
        other.release()


def test_a_torn_entry_is_no_holder(tmp_path):
    (tmp_path / "LOCK").write_text(json.dumps({"machine": "x", "pid": 1})[:10])
    Lock(tmp_path).release()


def test_a_directory_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "LOCK").mkdir()
    with pytest.raises(InputError, match="LOCK: cannot be written"):
        Lock(tmp_path)
