"""star.stop_when and evaluation.samples: pass@k in every iteration, and a run that ends when it falls."""

import itertools
import json
import random

import pytest

from star_jax import evaluate
from star_jax.errors import InputError
from star_jax.evaluation import results
from star_jax.report.run_data import read_run
from star_jax.report.run_status import is_finished, run_status
from star_jax.weights import checkpoint
from tests.support.runs import run_with, small_config


def sampled(rate):
    return results.SampledEvaluation(
        results.Rate(10, 0.5, 0.4, 0.6), {k: results.Rate(10, rate if k == 8 else 0.1, 0, 1) for k in (1, 2, 8)}, {}
    )


def test_a_run_stops_after_that_many_falls_in_a_row():
    """Against the definition, for random rates of few values; an iteration without a rate is no fall."""
    rng, stopped = random.Random(0), 0
    for _ in range(500):
        rates = [rng.choice([None, 0.2, 0.4, 0.6, 0.8]) for _ in range(rng.randrange(1, 7))]
        for count in range(5):
            falls = [None not in pair and pair[1] < pair[0] for pair in itertools.pairwise(rates)]
            expected = 0 < count <= len(falls) and all(falls[len(falls) - count :])
            reason = results.reason_to_stop([sampled(rate) for rate in rates], count)
            assert bool(reason) == expected, (rates, count)
            stopped += expected
            if expected:
                assert (
                    reason.startswith(f"pass@8 fell{f' {count} times in a row' * (count > 1)}, ")
                    and f"{rates[-1]:.3f}" in reason
                )
    assert stopped > 50


def test_it_needs_samples_to_go_by():
    with pytest.raises(InputError, match=r"star\.stop_when goes by pass@k: set --config\.evaluation\.samples=K"):
        small_config(star__stop_when=2)
    with pytest.raises(InputError, match=r"evaluation\.temperature=0 is greedy"):
        small_config(evaluation__samples=4, evaluation__temperature=0.0)


@pytest.mark.slow
def test_a_run_whose_pass_at_k_falls_says_so_and_stops(base, tmp_path, caplog, monkeypatch, capsys):
    """A learning rate that destroys the model; the command that started the run finds it finished."""
    options = dict(star__stop_when=1, star__keep_weights=1, star__iterations=4, evaluation__samples=4)
    options |= dict(optimizer__learning_rate=0.3, evaluation__temperature=0.8)
    caplog.set_level("INFO", "star_jax")
    run_dir = run_with(base, tmp_path, **options)
    assert run_dir.has(1) and not run_dir.path(2).exists()
    assert "stopped after iteration 1 of 4: pass@4 fell, " in caplog.text
    run = read_run(tmp_path)
    assert is_finished(run) and run_status(run).startswith("done: stopped after iteration 1 of 4: pass@4 fell")
    assert "stopped after iteration 1 of 4" in (tmp_path / "report.html").read_text()
    caplog.clear()
    run_with(base, tmp_path, **options)
    assert "this run is finished: 1 iteration;" in caplog.text and checkpoint.exists(run_dir.path(1, "params"))
    path = run_dir.path(1, "eval_dev_4_samples_t0.8.json")
    before = path.read_bytes()
    argv = ["evaluate", f"--workdir={tmp_path}", "--iteration=1", "--samples=4", "--temperature=0.8"]
    monkeypatch.setattr("sys.argv", argv)
    evaluate.main()  # the command finds the figures of the loop
    assert "stored in" in capsys.readouterr().out and path.read_bytes() == before
    assert {"pass@1", "pass@4", "majority"} <= json.loads(before).keys()
