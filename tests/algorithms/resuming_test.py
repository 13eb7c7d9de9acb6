"""What a run says when it is started again: where it continues, what it makes again, or that it is finished."""

import logging
import shutil

import pytest

from star_jax.algorithms import star
from star_jax.sampling.sampler import Sampler
from star_jax.weights.train_state import TrainStateCheckpointer
from tests.support.runs import assert_same_result, run_with, small_config

SAID = ("continuing: ", "this run is finished", "missing", "report: ", "at the pace of")


@pytest.fixture
def start(base, tmp_path, caplog):
    """start(): starts or continues a run; the lines on how it continues."""

    def call(**changes) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "star_jax"):
            run_with(base, tmp_path, train__checkpoint_every=2, **changes)
        return said(caplog)

    return call


def said(caplog) -> list[str]:
    return [line for record in caplog.records if any(text in (line := record.getMessage()) for text in SAID)]


def dies(monkeypatch, owner, method: str, call: int) -> None:
    """The process dies after this call of a method."""
    real, calls = getattr(owner, method), []

    def dying(*args):
        result = real(*args)
        calls.append(result)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, method, dying)


def test_each_start_says_where_it_continues(start, finished, tmp_path, monkeypatch, caplog):
    report = f"report: {tmp_path / 'report.html'}"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        dies(patch, Sampler, "_read", 2)  # chunks of 32 samples; the base's evaluation is that of the run that made it
        start()
    assert said(caplog) == []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        dies(patch, TrainStateCheckpointer, "save", 2)
        start()
    assert said(caplog) == ["continuing: iteration 1, sampling, 32 of 80 problems are stored"]
    # No estimate of the time left: the pace of iteration 1 is not known, of which this process ran a part.
    assert start() == ["continuing: iteration 1, fine-tuning, step 4 of 6", report]
    assert_same_result(finished, tmp_path)
    assert start() == [f"this run is finished: 2 iterations; the report is at {tmp_path / 'report.html'}"]
    assert start(star__iterations=3) == ["continuing: iteration 3, sampling", report]


def test_a_start_says_which_lost_outputs_it_makes_again(base, finished, tmp_path, caplog):
    workdir = shutil.copytree(finished, tmp_path / "run")
    lost = {
        "iter_001/samples.jsonl": "iteration 1: samples.jsonl is missing and is made again",
        "iter_001/kept.jsonl": "iteration 1: kept.jsonl is missing and is made again",
        "iter_002/params": "iteration 2: params is missing and is made again",
        "iter_002/DONE": "",
        "problems_dev.jsonl": f"{workdir / 'problems_dev.jsonl'} is missing; it is written again if the run needs it",
    }
    for name in lost:
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with caplog.at_level(logging.INFO, "star_jax"):
        run_with(base, workdir)
    assert sorted(said(caplog)[:-1]) == sorted(filter(None, lost.values()))
    assert said(caplog)[-1] == f"report: {workdir / 'report.html'}"
    assert_same_result(finished, workdir)


def test_a_run_whose_base_is_lost_says_that_it_is_made_again(tmp_path, caplog):
    config = small_config(star__iterations=0, base__stages=(dict(steps=2, learning_rate=1e-2, gold=(0.7, 0.1)),))
    star.run(config, tmp_path)
    shutil.rmtree(tmp_path / "base")
    with caplog.at_level(logging.INFO, "star_jax"):
        star.run(config, tmp_path)
    assert f"{tmp_path / 'base'} is missing and is made again" in said(caplog)
    assert "base: pretraining, 2 steps" in caplog.messages
