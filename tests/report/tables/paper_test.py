"""star_jax.report.tables.paper: the paper's rows and settings next to those of runs."""

import json
import runpy

from star_jax.evaluation import statistics
from star_jax.report import samples
from star_jax.report.run_data import read_run
from star_jax.report.tables import paper
from tests.support.commands import ROOT
from tests.support.report_runs import make_big_run, make_run, put


def test_rows_of_the_paper_and_of_runs(tmp_path):
    runs = [read_run(make_big_run(tmp_path / "one", seed=3))]
    table = paper.table(runs, ["one"])
    assert [row.rate.accuracy for row in table.rows[:2]] == [0.763, 0.895]
    base, best = table.rows[2:]
    assert (base.run, base.label) == ("one", "the base, few-shot rationale (dev)")
    number = runs[0].best
    assert best.label == f"STaR without rationalization, iteration {number} (dev)"
    (health,) = [row for row in samples.health_series(runs[0]) if row.iteration == number]
    assert best.used.startswith(f"{100 * health.used('sampled'):.1f} + {100 * health.used('rationalized'):.1f}")
    assert paper.table([*runs, read_run(make_run(tmp_path / "two"))], ["a", "b"]) is not None
    put(tmp_path / "two/config.json", {"task": {"name": "gsm8k"}})
    other = read_run(tmp_path / "two")
    assert paper.table([*runs, other], ["a", "b"]) is None, "two tasks have no common table"
    for row in paper.table([other], ["x"]).rows[:5]:
        assert (row.rate.low, row.rate.high) == statistics.wilson(round(row.rate.accuracy * 1319), 1319)


def test_rows_name_what_a_run_does(tmp_path):
    """Which problems get hints, and that nothing is filtered; a config of an earlier version said True or False."""
    config = make_big_run(tmp_path, seed=3) / "config.json"
    options = json.loads(config.read_text())
    names = {"failed": "with rationalization", "all": "with hints only", "none": "without rationalization"}
    for value, name in {**names, True: names["failed"], False: names["none"]}.items():
        for check in ("answer", "none"):
            put(config, options | {"star": {"rationalize": value}, "selection": {"check": check}})
            label = paper.table([read_run(tmp_path)], ["a"]).rows[-1].label
            assert label.startswith(f"STaR {name}{', unfiltered' * (check == 'none')}, iteration "), label


def test_a_base_without_shots_is_called_zero_shot(tmp_path):
    config = make_run(tmp_path) / "config.json"
    for shots, name in ((0, "zero-shot"), (10, "few-shot")):
        put(config, json.loads(config.read_text()) | {"prompt": {"shots": shots}})
        assert paper.table([read_run(tmp_path)], ["a"]).rows[2].label == f"the base, {name} rationale (dev)"


def test_the_papers_settings_are_those_of_our_configs(tmp_path):
    """CommonsenseQA's seven shots are ours; for all other settings that the paper gives, configs/*_gptj.py agree."""
    differing = {"commonsense_qa_gptj": {"prompt.shots"}, "gsm8k_gptj": set(), "arithmetic_gptj": set()}
    wrong = []
    for name, known in differing.items():
        for variant in ("", "no_rationalization"):
            config = runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"](variant).to_dict()
            put(tmp_path / "config.json", config)
            if (keys := {key for key, _, _ in paper.settings_diff(read_run(tmp_path))}) != known:
                wrong.append((name, variant, keys))
            put(tmp_path / "config.json", config | {"optimizer": {"learning_rate": 0.25}})
            if ("optimizer.learning_rate", "1e-06", "0.25") not in paper.settings_diff(read_run(tmp_path)):
                wrong.append((name, variant, "learning rate"))
    assert not wrong
