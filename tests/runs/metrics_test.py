"""star_jax.runs.metrics: the lines of metrics.jsonl, the wall time of phases, progress bars."""

import json
import re
import subprocess
import sys
import time

import pytest

from star_jax.errors import InputError
from star_jax.runs import metrics
from star_jax.runs.metrics import MetricsLog, Phases, Progress


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_line_holds_stage_iteration_step_and_values(tmp_path):
    log = MetricsLog(tmp_path)
    log.log("fine_tune", 2, 10, {"loss": 0.5, "tokens": 7})
    log.log("filter", 2, 0, {"kept": 3})
    log.close()
    first, second = lines(tmp_path)
    assert list(first) == ["time", "stage", "iteration", "step", "loss", "tokens"]
    assert [first[key] for key in list(first)[1:]] == ["fine_tune", 2, 10, 0.5, 7]
    assert second["stage"] == "filter" and second["kept"] == 3 and second["time"] >= first["time"]


def test_a_second_log_of_the_run_appends(tmp_path):
    for step in (1, 2):
        MetricsLog(tmp_path).log("fine_tune", 1, step, {"loss": 1 / step})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_nothing_else_is_written_without_trackers(tmp_path):
    log = MetricsLog(tmp_path)
    log.log("evaluate", 0, 0, {"accuracy": 0.1})
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_file_that_cannot_be_written_is_bad_input(tmp_path):
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'absent' / 'metrics.jsonl'}: cannot be written")):
        MetricsLog(tmp_path / "absent").log("filter", 1, 0, {})


def test_progress_is_a_line_a_minute_where_there_is_no_terminal(capsys, caplog, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    caplog.set_level("INFO", "star_jax")
    with Progress(4000, "iteration 1: sampling", "problem") as bar:
        for _ in range(4):
            clock[0] += 40
            bar.advance(1000, "300 right")
    assert capsys.readouterr() == ("", "")
    assert caplog.messages == [
        "iteration 1: sampling: 2,000 of 4,000 problems, 300 right, about 1 min left",
        "iteration 1: sampling: 4,000 of 4,000 problems, 300 right, less than a minute left",
    ]


def test_tensorboard_events_do_not_import_tensorflow(tmp_path):
    """TensorFlow would cost ten seconds and 850 MB in a run that only writes numbers."""
    code = (
        "import sys, pathlib, star_jax.runs.metrics as m, star_jax.runs.trackers as s; "
        "path = pathlib.Path(sys.argv[1]); log = m.MetricsLog(path, [s.TensorBoard(path)]); "
        "log.log('a', 1, 1, {'b': 1}); log.close(); sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0


def test_time_is_charged_to_the_innermost_phase(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    phases = Phases()

    def work(seconds):
        clock[0] += seconds

    work(1)
    with phases("evaluate"):
        work(2)
        with phases("save"):
            work(4)
        work(8)
        with pytest.raises(KeyboardInterrupt), phases("save"):
            work(16)
            raise KeyboardInterrupt
        work(32)
    work(64)
    assert phases.take() == {"other": 65, "evaluate": 42, "save": 20}
    with phases("evaluate"):
        work(1)
        assert phases.take() == {"other": 0, "evaluate": 1}  # an active phase stays active
        work(1)
    assert phases.take() == {"evaluate": 1, "other": 0}
