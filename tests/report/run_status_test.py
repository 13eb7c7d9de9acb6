"""star_jax.report.run_status: a run's status at every point, from the files that exist."""

import dataclasses
import json
import os
import shutil
import time

import pytest

from star_jax.records import Problem, read_jsonl
from star_jax.report.run_data import read_run
from star_jax.report.run_status import is_finished, notices, run_status
from tests.support.pages import page_of, words_of
from tests.support.report_runs import add_evaluation, add_training, make_run, put, remove

# (files to delete, words of the status)
MISSING = [
    (["iter_002"], "iteration 1 of 2 done"),
    (["iter_002/*"], "iteration 2 of 2, in progress or stopped; sampling comes next"),
    (["iter_002/DONE", "iter_002/[!s]*"], "rationalizing comes next"),
    (["iter_002/DONE", "iter_002/[!sr]*"], "filtering comes next"),
    (["iter_002/DONE", "iter_002/eval_*", "iter_002/finetune.json"], "fine-tuning, step 20 reached"),
    (["iter_002/DONE", "iter_002/eval_*", "iter_002/finetune.json", "metrics.jsonl"], "fine-tuning comes next"),
    (["iter_002/DONE", "iter_002/eval_*"], "evaluating comes next"),
    (["iter_002/DONE"], "all of its stages are on disk"),
    (["iter_*"], "no evaluation yet"),
    (["iter_00[12]"], "the base model is evaluated; iteration 1 of 2 comes next"),
    (["problems_dev.jsonl", "metrics.jsonl", "iter_000", "iter_001/eval_dev.json"], "done: 2 of 2 iterations"),
]


def test_a_count_of_iterations_is_not_counted_up_to(tmp_path):
    """The watch asks after each look at the files whether a run is finished; config.json may name any number."""
    run = read_run(make_run(tmp_path / "run"))
    started = time.process_time()
    for planned, finished in ((2, True), (3, False), (10**11, False), (2**53, False), (-1, True)):
        star = {**run.config["star"], "iterations": planned}
        changed = dataclasses.replace(run, config={**run.config, "star": star})
        assert is_finished(changed) == finished and run_status(changed)
    assert time.process_time() - started < 1


def test_the_status_of_a_run_with_missing_files(tmp_path):
    wrong = []
    whole = make_run(tmp_path / "whole")
    for missing, status in MISSING:
        run = shutil.copytree(whole, tmp_path / "part")
        remove(run, *missing)
        if status not in (actual := run_status(read_run(run))):
            wrong.append((missing, status, actual))
        shutil.rmtree(run)
    assert not wrong


def test_the_status_names_what_is_done_to_the_base(tmp_path):
    """Also the page that --watch writes: a run spends minutes there before its first evaluation."""
    run = make_run(tmp_path / "run")
    remove(run, "iter_*", "metrics.jsonl")

    def status() -> str:
        return run_status(read_run(run)).removeprefix("no evaluation yet; ")

    assert status() == "pretraining the base comes next"
    lines = [{"stage": "pretrain", "iteration": 0, "step": step} for step in (50, 1200)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert status() == "pretraining the base, step 1,200 reached"
    assert "pretraining the base, step 1,200 reached" in words_of(page_of(run))
    put(run / "base/model.json", {})
    assert status() == "evaluating the base comes next"
    (run / "iter_000").mkdir()
    (run / "iter_000/eval_dev.jsonl.part").write_text("a line\nanother line\n")
    assert status() == "evaluating the base, 2 sampled so far"
    shutil.rmtree(run / "base")
    config = json.loads((run / "config.json").read_text())
    put(run / "config.json", config | {"base": {"path": "somewhere"}})
    assert status() == "copying the base comes next"


def test_a_pipe_in_place_of_an_unfinished_file_is_not_waited_for(tmp_path):
    run = make_run(tmp_path / "run")
    remove(run, "iter_002/*")
    os.mkfifo(run / "iter_002/samples.jsonl.part")
    assert "sampling comes next" in run_status(read_run(run))


@pytest.mark.slow
def test_the_page_of_a_run_with_missing_files(tmp_path):
    wrong = []
    whole = make_run(tmp_path / "whole")
    for missing, status in MISSING:
        run = shutil.copytree(whole, tmp_path / "part")
        remove(run, *missing)
        if f"Status {status}" not in (words := words_of(page_of(run))) and status not in words:
            wrong.append((missing, status))
        shutil.rmtree(run)
    assert not wrong


def test_a_page_without_filter_config_or_evaluations(tmp_path):
    """Samples are counted before they are filtered; what cannot be shown is said."""
    cases = [
        (["iter_002/filter.json"], "2 – 8 4 4 – – –"),
        (["config.json"], "config.json is missing or empty"),
        (["[!c]*"], "The accuracy by category appears after the first evaluation."),
    ]
    wrong = []
    whole = make_run(tmp_path / "whole")
    for missing, words in cases:
        run = shutil.copytree(whole, tmp_path / "part")
        remove(run, *missing)
        if words not in words_of(page_of(run)):
            wrong.append((missing, words))
        shutil.rmtree(run)
    assert not wrong


def test_an_iteration_that_kept_nothing(tmp_path):
    """The run stops there with its samples on disk, with or without filter.json."""
    remove(make_run(tmp_path, iterations=1), "iter_001")
    add_training(tmp_path / "iter_001", 1, sampled=0, rationalized=0)
    remove(tmp_path, "iter_001/finetune.json")
    words = words_of(page_of(tmp_path))
    assert "kept nothing, so there is nothing to fine-tune" in words and "No iteration has kept examples yet." in words
    remove(tmp_path, "iter_001/filter.json", "iter_001/kept.jsonl")
    assert "no completion reached a right answer, so there is nothing to keep" in run_status(read_run(tmp_path))


def test_a_base_that_is_not_beaten_and_counts_of_another_run(tmp_path):
    put(make_run(tmp_path, iterations=1) / "iter_001" / "filter.json", {"samples": 9})
    add_evaluation(tmp_path / "iter_000", 0, "rrrr")
    assert "Accuracy, all dev problems base 100.0 % (the best so far)" in words_of(page_of(tmp_path))
    (notice,) = (text for text in notices(read_run(tmp_path)) if "filter.json" in text)
    assert "Iteration 1: filter.json counts 9 samples, samples.jsonl holds 8" in notice


def test_problems_that_are_trained_and_evaluated_on_are_counted(tmp_path):
    run = make_run(tmp_path)
    dev = list(read_jsonl(Problem, run / "problems_dev.jsonl"))
    put(run / "problems_train.jsonl", dev)
    for shared in range(len(dev) + 1):
        own = [dataclasses.replace(problem, question=f"{problem.question}?") for problem in dev[shared:]]
        put(run / "problems_dev.jsonl", dev[:shared] + own)
        sentence = f"{shared} of the {len(dev)} problems of the dev split are also train problems"
        found = [notice for notice in notices(read_run(run)) if "also train problems" in notice]
        assert [notice.startswith(sentence) for notice in found] == [True] * bool(shared), found


def test_a_folder_that_was_renamed_is_noticed(tmp_path):
    run = make_run(tmp_path)
    for name in ("eval_dev.json", "filter.json", "finetune.json"):
        path = run / "iter_002" / name
        put(path, {**json.loads(path.read_text(encoding="utf-8")), "iteration": 2})
    assert not [notice for notice in notices(read_run(run)) if "renamed" in notice]
    (run / "iter_002").rename(run / "iter_004")
    (notice,) = (notice for notice in notices(read_run(run)) if "renamed" in notice)
    assert notice.startswith(
        "Iteration 4: the evaluation is of iteration 2 and filter.json is of iteration 2 and finetune"
    )
