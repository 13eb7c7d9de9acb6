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
BLOCK, HEAD = 32768, 7  # bytes of W&B's files: a log in LevelDB's format, after a header


def fill(log: MetricsLog) -> None:
    log.log("fine_tune", 3, 10, {"loss": 0.5, "note": "text is no scalar"})
    log.log("fine_tune", 3, 20, {"loss": 0.25})
    log.log("evaluate", 3, 0, {"accuracy": 0.75})
    log.close()
    log.close()  # a second time has no effect
    log.log("evaluate", 4, 0, {"accuracy": 0.5})  # a value after `close` opens it again
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
    """The records of W&B's own files, in the order of their creation."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service closes a finished run's file after `finish` has returned
    records = []
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        content, offset, message = path.read_bytes(), HEAD, b""
        while offset + HEAD <= len(content):
            if BLOCK - offset % BLOCK < HEAD:  # the rest of a block, too short for a header
                offset += BLOCK - offset % BLOCK
                continue
            length, kind = int.from_bytes(content[offset + 4 : offset + 6], "little"), content[offset + 6]
            message += content[offset + HEAD : offset + HEAD + length]
            offset += HEAD + length
            if kind in (1, 4):  # a complete message, or its last part
                records.append(Record.FromString(message))
                message = b""
    return records


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


def test_a_continued_run_is_the_same_run(offline):
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


def test_a_missing_login_is_one_line_with_the_remedy(offline):
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
