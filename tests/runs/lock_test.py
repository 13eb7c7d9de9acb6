"""star_jax.runs.lock: one holder at a time; a dead process holds nothing, on this machine at once, on others later."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from star_jax.errors import InputError
from star_jax.runs import lock
from star_jax.runs.lock import Lock

ROOT = Path(__file__).parents[2]
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


def test_another_process_is_named_and_holds_nothing_once_it_is_killed(tmp_path):
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
    assert time.monotonic() - started < 5, "on one machine nobody waits for the dead"


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


def test_another_machine_that_counts_is_refused(elsewhere):
    directory, _ = elsewhere
    with pytest.raises(InputError, match="another run is at work there"):
        Lock(directory, beat=0.05, watch=30.0)


def test_another_machine_that_counts_no_more_is_dead_and_learns_it_if_it_is_not(elsewhere):
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


def test_two_machines_that_find_a_dead_one_do_not_both_go_on(elsewhere):
    directory, held = elsewhere
    held._stop.set()
    held._thread.join()
    found, refused = [], []

    def take():
        try:
            found.append(Lock(directory, beat=0.05, watch=0.3))
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found and len(found) + len(refused) == 2
    deadline = time.monotonic() + 20
    while sum(not other._lost for other in found) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    assert sum(not other._lost for other in found) == 1
    for other in found:
        other.release()


def test_half_a_name_is_no_holder(tmp_path):
    (tmp_path / "LOCK").write_text(json.dumps({"machine": "x", "pid": 1})[:10])
    Lock(tmp_path).release()


def test_a_directory_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "LOCK").mkdir()
    with pytest.raises(InputError, match="LOCK: cannot be written"):
        Lock(tmp_path)
