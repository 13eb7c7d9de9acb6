"""star_jax.runs.trackers: TensorBoard and Weights & Biases carry the numbers of metrics.jsonl, under the same names."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from star_jax.errors import InputError
from star_jax.runs.metrics import MetricsLog
from star_jax.runs.trackers import TensorBoard, WeightsAndBiases

CONFIG = {"seed": 3, "star": {"iterations": 2}}
BLOCK, HEAD = 32768, 7  # of W&B's files: a log of LevelDB's kind, behind a head of seven bytes


def fill(log: MetricsLog) -> None:
    log.log("fine_tune", 3, 10, {"loss": 0.5, "note": "text is no scalar"})
    log.log("fine_tune", 3, 20, {"loss": 0.25})
    log.log("evaluate", 3, 0, {"accuracy": 0.75})
    log.close()
    log.close()  # twice does no harm
    log.log("evaluate", 4, 0, {"accuracy": 0.5})  # and it goes on after it was closed
    log.close()


WRITTEN = {
    "fine_tune/iteration_003/loss": [(10, 0.5), (20, 0.25)],
    "evaluate/accuracy": [(3, 0.75), (4, 0.5)],
}


def test_tensorboard_reads_the_events_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fill(MetricsLog(tmp_path, [TensorBoard(tmp_path)]))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == WRITTEN


@pytest.fixture
def offline(monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="needs wandb (pip install -e '.[wandb]')")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def wandb_records(workdir: Path) -> list:
    """What W&B's own files hold, in the order they were begun."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service closes a finished run's file after `finish` has returned
    found = []
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        content, place, whole = path.read_bytes(), HEAD, b""
        while place + HEAD <= len(content):
            if BLOCK - place % BLOCK < HEAD:  # the rest of a block that no head fits in
                place += BLOCK - place % BLOCK
                continue
            length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
            whole += content[place + HEAD : place + HEAD + length]
            place += HEAD + length
            if kind in (1, 4):  # whole, or the last part
                found.append(Record.FromString(whole))
                whole = b""
    return found


def history(workdir: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) of each curve, the step being the one its definition points to."""
    records = wandb_records(workdir)
    steps = {r.metric.glob_name: r.metric.step_metric for r in records if r.HasField("metric") and r.metric.glob_name}
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if record.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, value in row.items():
                step = steps.get(name.rpartition("/")[0] + "/*")
                if step in row and not name.startswith("_") and name != step:
                    curves.setdefault(name, []).append((row[step], value))
    return curves


def test_weights_and_biases_gets_the_same_names_and_values(offline):
    fill(MetricsLog(offline, [WeightsAndBiases(offline, "a_project", CONFIG)]))
    assert history(offline) == WRITTEN


def test_a_run_that_goes_on_stays_the_same_run(offline):
    for iteration in (1, 2):
        log = MetricsLog(offline, [WeightsAndBiases(offline, "a_project", CONFIG)])
        log.log("evaluate", iteration, 0, {"accuracy": iteration / 4})
        log.close()
    runs = [record.run for record in wandb_records(offline) if record.HasField("run")]
    assert len({run.run_id for run in runs}) == 1 and {run.project for run in runs} == {"a_project"}
    assert runs[0].display_name == offline.name
    settings = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert {key: settings[key] for key in CONFIG} == CONFIG
    assert history(offline)["evaluate/accuracy"] == [(1, 0.25), (2, 0.5)]


def test_no_login_is_one_line_with_the_way_out(offline):
    """In a process of its own: wandb reads its environment once."""
    code = "import sys, pathlib; from star_jax.cli.parser import exit_on_bad_input as e; "
    code += "from star_jax.runs.trackers import *; "
    code += "e(lambda: WeightsAndBiases(pathlib.Path(sys.argv[1]), 'p', {}))"
    env = {key: value for key, value in os.environ.items() if key != "WANDB_API_KEY"}
    env |= {"WANDB_MODE": "online", "NETRC": str(offline / "none"), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code, str(offline)], env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "wandb='p': " in done.stderr and "WANDB_MODE=offline" in done.stderr


def test_a_missing_package_is_one_line_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=re.escape("wandb='p' needs the package wandb: pip install wandb")):
        WeightsAndBiases(tmp_path, "p", CONFIG)
