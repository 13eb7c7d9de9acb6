"""Two processes run as one program: when one dies the other reports it and exits, and a restart continues."""

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
from star_jax.errors import InputError
from star_jax.weights import checkpoint

ROOT = Path(__file__).parents[2]
SIZES = dict(n_layers=1, d_model=32, n_heads=4, d_mlp=64, rotary_dim=8, vocab_size=20, max_positions=512)
CHILD = """
import os
import sys
from pathlib import Path
sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)  # as main has it
from star_jax import config
from star_jax.distributed import launch
from star_jax.cli.parser import exit_on_bad_input

def main():
    settings = config.from_dict(__import__("json").loads(Path(sys.argv[1]).read_text()))
    with launch.distributed_context():
        from star_jax.algorithms import star
        star.run(settings, sys.argv[2])

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
        values.base.stages = (dict(steps=150, learning_rate=1e-2, gold=(0.7, 0.1)),)
        values.base.examples = 400
        values.star.update(dict(iterations=0))
        values.sampling.update(dict(tensor=1))
    return config.from_dict(values)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("hosts_base")
    star.run(settings("", data=1, fsdp=1, tensor=1), workdir)
    return workdir / "base"


def start(workdir: Path, file: Path, processes: int) -> list[subprocess.Popen]:
    """The run in so many processes, with eight devices in all."""
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
        command = [sys.executable, "-c", CHILD, str(file), str(workdir)]
        started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
        log.close()
    return started


def said(workdir: Path, index: int) -> str:
    return Path(f"{workdir}.{index}.log").read_text(errors="replace")


def finish(workdir: Path, started: list[subprocess.Popen]) -> None:
    for process in started:
        if status := process.wait(timeout=300):
            there = sorted(str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file())
            free = shutil.disk_usage(workdir.parent).free
            logs = "\n".join(said(workdir, i)[-3000:] for i in range(len(started)))
            pytest.fail(f"status {status}, others {[p.poll() for p in started]}; {free} bytes free; {there}\n{logs}")


def results(workdir: Path) -> dict[str, bytes]:
    names = ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl", "filter.json", "eval_dev.json")
    found = {f"{n}/{name}": (workdir / f"iter_00{n}" / name).read_bytes() for n in (1, 2) for name in names}
    return found | {f"{n}/weights": checkpoint.stored_fingerprint(workdir / f"iter_00{n}/params") for n in (1, 2)}


def without_log_p(text: bytes) -> tuple[bytes, list[float]]:
    """The bytes of a file but for its log-probabilities, and these."""
    pattern = rb'"log_probability": (-?[0-9.e-]+)'
    return re.sub(pattern, b"", text), [float(number) for number in re.findall(pattern, text)]


def told(found: dict[str, bytes]) -> dict[str, list]:
    """What was drawn and kept, without what rounding changes: log-probabilities and the weights' names."""
    lines = {name: text.decode().splitlines() for name, text in found.items() if name.endswith(".jsonl")}
    drop = ("log_probability", "weights")
    return {
        name: [{k: v for k, v in json.loads(line).items() if k not in drop} for line in text]
        for name, text in lines.items()
    }


def test_two_processes_are_one_and_go_on_when_one_was_killed(base, tmp_path):
    """One process and two draw the same bytes from the same weights, but for the last of a log-probability's four
    places: their programs have other shapes. What training sums in another order is rounding.

    Then the same with one of the two killed in the first iteration: the other ends, with a line that says why, and
    the same commands end where the undisturbed run did, bit for bit.
    """
    file = tmp_path / "config.json"
    file.write_text(json.dumps(settings(str(base), data=2, fsdp=1, tensor=4).to_dict()))
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    finish(one, start(one, file, 1))
    finish(two, start(two, file, 2))
    whole, undisturbed = results(one), results(two)
    for name in ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl", "filter.json"):
        (rest, log_p), (wanted, wanted_log_p) = (without_log_p(found[f"1/{name}"]) for found in (undisturbed, whole))
        assert rest == wanted, name
        np.testing.assert_allclose(log_p, wanted_log_p, rtol=0, atol=1.01e-4)
    assert told(undisturbed) == told(whole)
    assert {json.loads(line)["source"] for line in (one / "iter_001/kept.jsonl").read_text().splitlines()}
    assert not list(two.rglob("*.tmp")) and not list(two.rglob("*.part"))

    started = start(killed, file, 2)
    deadline = time.monotonic() + 240
    while not (killed / "iter_001/samples.jsonl").exists():
        assert time.monotonic() < deadline and started[0].poll() is None, said(killed, 0)[-3000:]
        time.sleep(0.05)
    started[1].send_signal(signal.SIGKILL)
    assert started[0].wait(timeout=120) == launch.PEER_LOST
    assert said(killed, 0).splitlines()[-1].startswith("star_jax: another process died")
    assert started[1].wait(timeout=10) == -signal.SIGKILL
    finish(killed, start(killed, file, 2))
    assert results(killed) == undisturbed


def test_one_process_agrees_with_itself_and_gathers_what_it_has():
    tree = {"a": np.arange(3)}
    assert processes.broadcast_from_leader(lambda: {"x": [1, "two"]}) == {"x": [1, "two"]}
    assert processes.gather(tree) is tree and processes.is_leader() and processes.count() == 1
    processes.check_equal("anything", "text")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (dict(JAX_COORDINATOR_ADDRESS="localhost:1"), "JAX_COORDINATOR_ADDRESS is set and JAX_NUM_PROCESSES is not"),
        (dict(JAX_PROCESS_ID="0", JAX_NUM_PROCESSES="2"), "JAX_NUM_PROCESSES is set and JAX_COORDINATOR_ADDRESS"),
        (
            dict(JAX_COORDINATOR_ADDRESS="localhost:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="2"),
            "JAX_PROCESS_ID=2 must be a number below JAX_NUM_PROCESSES=2",
        ),
        (
            dict(JAX_COORDINATOR_ADDRESS="localhost", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="0"),
            "JAX_COORDINATOR_ADDRESS=localhost: give host:port",
        ),
    ],
)
def test_half_an_environment_is_one_line(given, line, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(settings("none").to_dict()))
    env = {**os.environ, "PYTHONPATH": str(ROOT), **given}
    command = [sys.executable, "-c", CHILD, str(file), str(tmp_path / "run")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"star_jax: {line}"), done.stderr


def test_what_differs_between_processes_is_named(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda own: np.concatenate([own, own + 1]))
    with pytest.raises(InputError, match="the tokenizer differs between process 0 and process 1"):
        processes.check_equal("the tokenizer", "text")


def test_room_is_four_times_the_size_in_every_process(monkeypatch):
    free = processes._free_memory()
    assert 2**28 < free < 2**50
    monkeypatch.setattr(processes, "_free_memory", lambda: 4000)
    assert processes.host_memory_available(1000) and not processes.host_memory_available(1001)
    monkeypatch.setattr(processes, "gather", lambda own: np.concatenate([own, ~own]))
    assert not processes.host_memory_available(1)
