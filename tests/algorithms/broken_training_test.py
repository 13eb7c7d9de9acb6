"""Weights that become NaN end a run in one line: nothing that it has made is lost, and no model of them appears."""

import numpy as np
import pytest

from star_jax.algorithms import star
from star_jax.cli.parser import exit_on_bad_input
from star_jax.training import optimizer
from tests.support.runs import assert_same_result, small_config


@pytest.mark.parametrize("iteration", [1, 2])
def test_nan_in_the_last_step_is_one_line_and_the_run_continues_from_what_it_has(
    iteration, base, finished, tmp_path, monkeypatch, capfd
):
    """The last step's loss and gradient are finite, so that only a look at the weights finds it."""
    config, workdir = small_config(base__path=str(base)), tmp_path / "run"
    rate, fine_tunings = optimizer.learning_rate, []

    def nan_at_last(spec, step, steps, *args):
        fine_tunings.extend([steps] if step == 0 else [])
        return np.nan if (step, len(fine_tunings)) == (steps - 1, iteration) else rate(spec, step, steps, *args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(optimizer, "learning_rate", nan_at_last)
        capfd.readouterr()
        exit_on_bad_input(lambda: star.run(config, workdir))
    out, err = capfd.readouterr()
    steps = fine_tunings[-1]
    reported = [line for line in err.splitlines() if line.startswith("star_jax: ")]  # after the table of results so far
    assert (stop.value.code, out, reported) == (2, "", err.splitlines()[-1:]) and "Traceback" not in err, (out, err)
    assert (
        f"iteration {iteration}: fine-tuning: after step {steps - 1}, " in err
        and "values that are not finite" in reported[0]
    )
    made, last = workdir / f"iter_{iteration:03d}", finished / f"iter_{iteration:03d}"
    for name in ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl"):
        assert (made / name).read_bytes() == (last / name).read_bytes()
    assert not [path for name in ("model.json", "finetune.json", "DONE") for path in made.rglob(name)]
    star.run(config, workdir)
    assert_same_result(workdir, finished)
