"""Several processes as one program: when one dies the others report it and end, and a restart continues."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from star_jax import config
from star_jax.algorithms import star
from star_jax.distributed import launch, processes
from star_jax.errors import ExitStatus, InputError
from star_jax.runs.run_directory import RunDirectory
from star_jax.weights import checkpoint
from tests.support.commands import ROOT

SIZES = dict(n_layers=1, d_model=32, n_heads=4, d_mlp=64, rotary_dim=8, vocab_size=20, max_positions=512)
RUN = """
import json, os, sys
from pathlib import Path
sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)  # as main has it
from star_jax import config
from star_jax.cli.parser import exit_on_bad_input
from star_jax.distributed import launch

def main():
    settings = config.from_dict(json.loads(Path(sys.argv[1]).read_text()))
    with launch.distributed_context():
        from star_jax.algorithms import star
        star.run(settings, sys.argv[2])

exit_on_bad_input(main)
"""
TALK = """
import os, signal, sys
from star_jax.cli.parser import exit_on_bad_input
from star_jax.distributed import launch, processes
from star_jax.errors import ExitStatus, InputError

def main():
    with launch.distributed_context():
        import numpy as np
        me = processes.index()
        told = processes.broadcast_from_leader(lambda: {"by": me, "text": "é" * 2000})
        assert told == {"by": 0, "text": "é" * 2000} and processes.count() == 2
        assert processes.gather(np.full((1, 2), me)).tolist() == [[0, 0], [1, 1]]
        try:
            processes.check_equal("the tokenizer", f"text {me}")
        except InputError as error:
            print(error, flush=True)
        if me == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        processes.gather(np.zeros(1))

exit_on_bad_input(main)
"""


def settings(base: str, **mesh) -> config.Config:
    values = config.default("arithmetic")
    values.tokenizer, values.tensorboard = "symbols", False
    values.task.update(dict(max_digits=2, train_per_length=30, held_out_per_length=6))
    values.model.update(SIZES)
    values.base.path = base
    values.train.update(dict(batch_rows=8, row_tokens=64, checkpoint_every=2))
    values.optimizer.update(dict(learning_rate=3e-3, warmup_steps=5))
    values.sampling.update(dict(slots=8, queue=8, tensor=4))
    values.star.update(dict(iterations=2, steps=4, problems_per_iteration=24))
    values.mesh.update(mesh)
    if not base:
        values.base.stages = (dict(steps=400, learning_rate=1e-2, gold=(0.4, 0.1)),)
        values.base.examples = 400
        values.star.update(dict(iterations=0))
        values.sampling.update(dict(tensor=1))
    return config.from_dict(values)


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory) -> Path:
    """A base of four heads: the shared one has two, which do not divide over four devices."""
    workdir = tmp_path_factory.mktemp("wide_base")
    star.run(settings("", data=1, fsdp=1, tensor=1), workdir)
    return workdir / "base"


def start(workdir: Path, program: str, *arguments: str, processes: int = 2) -> list[subprocess.Popen]:
    """The program in so many processes, with eight devices in all; each logs to <workdir>.<index>.log."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for index in range(processes):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={8 // processes}"
        if processes > 1:
            env |= dict(JAX_COORDINATOR_ADDRESS=f"localhost:{port}", JAX_NUM_PROCESSES=str(processes))
            env["JAX_PROCESS_ID"] = str(index)
        log = open(f"{workdir}.{index}.log", "ab")  # noqa: SIM115
        command = [sys.executable, "-c", program, *arguments, str(workdir)]
        started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
        log.close()
    return started


def log_of(workdir: Path, index: int) -> str:
    return Path(f"{workdir}.{index}.log").read_text(errors="replace")


def finish(workdir: Path, started: list[subprocess.Popen]) -> None:
    for process in started:
        if status := process.wait(timeout=300):
            there = sorted(str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file())
            free = shutil.disk_usage(workdir.parent).free
            logs = "\n".join(log_of(workdir, i)[-3000:] for i in range(len(started)))
            pytest.fail(f"status {status}, others {[p.poll() for p in started]}; {free} bytes free; {there}\n{logs}")


def results(workdir: Path) -> dict[str, bytes]:
    names = ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl", "filter.json", "eval_dev.json")
    found = {f"{n}/{name}": (workdir / f"iter_00{n}" / name).read_bytes() for n in (1, 2) for name in names}
    return found | {f"{n}/weights": checkpoint.stored_fingerprint(workdir / f"iter_00{n}/params") for n in (1, 2)}


def without_log_p(text: bytes) -> tuple[bytes, list[float]]:
    """The bytes of a file but for its log-probabilities, and these."""
    pattern = rb'"log_probability": (-?[0-9.e-]+)'
    return re.sub(pattern, b"", text), [float(number) for number in re.findall(pattern, text)]


def records(outputs: dict[str, bytes]) -> dict[str, list]:
    """What was drawn and kept, without what rounding changes: log-probabilities and the weights' names."""
    lines = {name: text.decode().splitlines() for name, text in outputs.items() if name.endswith(".jsonl")}
    drop = ("log_probability", "weights")
    return {
        name: [{k: v for k, v in json.loads(line).items() if k not in drop} for line in text]
        for name, text in lines.items()
    }


def test_two_processes_talk_and_the_death_of_one_ends_the_other(tmp_path):
    started = start(tmp_path / "talk", TALK)
    assert started[0].wait(timeout=120) == ExitStatus.PEER_LOST, log_of(tmp_path / "talk", 0)
    assert started[1].wait(timeout=120) == 128 + signal.SIGKILL
    first, second = (log_of(tmp_path / "talk", index).splitlines() for index in (0, 1))
    differs = "the tokenizer differs between process 0 and process 1; give all of them the same"
    assert differs in first and differs in second
    assert first[-1].startswith("star_jax: another process died")
    assert second[-1] == "star_jax: this process was killed by signal 9"


@pytest.mark.slow
def test_two_processes_give_the_results_of_one_and_continue_after_a_kill(wide_base, tmp_path):
    """One process and two sample the same bytes from the same weights, but for the last of a log-probability's four
    places: their programs have other shapes. Training sums in another order, within rounding.

    Then the same with one of the two killed in the first iteration: the other ends, with a line that says why, and the
    same commands end where the undisturbed run did, bit for bit.
    """
    file = tmp_path / "config.json"
    file.write_text(json.dumps(settings(str(wide_base), data=2, fsdp=1, tensor=4).to_dict()))
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    finish(one, start(one, RUN, str(file), processes=1))
    finish(two, start(two, RUN, str(file)))
    whole, undisturbed = results(one), results(two)
    for name in ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl", "filter.json"):
        (rest, log_p), (wanted, wanted_log_p) = (without_log_p(found[f"1/{name}"]) for found in (undisturbed, whole))
        assert rest == wanted, name
        np.testing.assert_allclose(log_p, wanted_log_p, rtol=0, atol=1.01e-4)
    assert records(undisturbed) == records(whole)
    assert {json.loads(line)["source"] for line in (one / "iter_001/kept.jsonl").read_text().splitlines()}
    assert not list(two.rglob("*.tmp")) and not list(two.rglob("*.part"))

    started = start(killed, RUN, str(file))
    deadline = time.monotonic() + 240
    while not (killed / "iter_001/samples.jsonl").exists():
        assert time.monotonic() < deadline and started[0].poll() is None, log_of(killed, 0)[-3000:]
        time.sleep(0.05)
    started[1].send_signal(signal.SIGKILL)
    assert started[0].wait(timeout=120) == ExitStatus.PEER_LOST
    assert log_of(killed, 0).splitlines()[-1].startswith("star_jax: another process died")
    assert started[1].wait(timeout=10) == -signal.SIGKILL
    finish(killed, start(killed, RUN, str(file)))
    assert results(killed) == undisturbed


def test_one_process_broadcasts_and_gathers_without_change():
    tree = {"a": np.arange(3)}
    assert processes.broadcast_from_leader(lambda: {"x": [1, "two"]}) == {"x": [1, "two"]}
    assert processes.gather(tree) is tree and processes.is_leader() and processes.count() == 1
    processes.check_equal("anything", "text")


def test_an_access_that_the_system_refuses_is_one_line_that_names_the_file(tmp_path):
    """In all processes, so that none waits for the others; the same without other processes."""
    for broadcast in (processes.broadcast_from_leader, RunDirectory(tmp_path).broadcast):
        with pytest.raises(InputError, match=rf"{tmp_path}/none: cannot be read or written \(No such file"):
            broadcast((tmp_path / "none").stat)


def test_an_incomplete_environment_is_one_line(monkeypatch):
    address = "JAX_COORDINATOR_ADDRESS"
    wrong = []
    for given, line in (
        ({address: "localhost:1"}, f"{address} is set and JAX_NUM_PROCESSES is not"),
        (dict(JAX_PROCESS_ID="0", JAX_NUM_PROCESSES="2"), f"JAX_NUM_PROCESSES is set and {address} is not"),
        ({address: "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
         "JAX_PROCESS_ID=2 must be a number below JAX_NUM_PROCESSES=2"),
        ({address: "localhost:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "must be a number"),
        ({address: "localhost", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "give host:port"),
        ({"STAR_DISTRIBUTED": "yes"}, "STAR_DISTRIBUTED=yes: must be 1"),  # it would be a run of its own
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            for name in (address, "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "STAR_DISTRIBUTED"):
                patch.delenv(name, raising=False)
            for name, value in given.items():
                patch.setenv(name, value)
            try:
                assert launch._several_processes()
                launch._initialize()
                wrong.append((given, "accepted"))
            except InputError as error:
                if line not in str(error):
                    wrong.append((given, str(error)))
    assert not wrong


def test_a_wrong_environment_ends_a_process_with_one_line(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COORDINATOR_ADDRESS": "localhost"}
    env |= {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    command = [sys.executable, "-c", TALK, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (
        2, "star_jax: JAX_COORDINATOR_ADDRESS=localhost: give host:port of process 0\n"
    )  # fmt: skip


def test_what_differs_between_processes_is_named(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda own: np.concatenate([own, own + 1]))
    with pytest.raises(InputError, match="the tokenizer differs between process 0 and process 1"):
        processes.check_equal("the tokenizer", "text")


def test_memory_is_available_if_four_times_the_size_is_free_in_every_process(monkeypatch):
    free = processes._free_memory()
    assert 2**28 < free < 2**50
    monkeypatch.setattr(processes, "_free_memory", lambda: 4000)
    assert processes.host_memory_available(1000) and not processes.host_memory_available(1001)
    monkeypatch.setattr(processes, "gather", lambda own: np.concatenate([own, ~own]))
    assert not processes.host_memory_available(1)
