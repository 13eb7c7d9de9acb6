"""star.samples_from: training on what another run sampled."""

import pytest

from star_jax.errors import InputError
from star_jax.runs.run_directory import RunDirectory
from tests.support.runs import assert_same_result, completions, kept, run_with


def test_with_the_same_selection_everything_is_that_run_s(base, finished, tmp_path):
    again = run_with(base, tmp_path / "again", star__samples_from=str(finished))
    assert_same_result(finished, again.workdir)
    losses = [
        RunDirectory(p).read_json(p / f"iter_00{n}/finetune.json")
        for n in (1, 2)
        for p in (finished, tmp_path / "again")
    ]
    for ours, theirs in zip(losses[::2], losses[1::2], strict=True):
        assert {k: v for k, v in ours.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}


@pytest.mark.slow
def test_with_another_selection_the_samples_stay_and_the_kept_examples_differ(base, finished, tmp_path):
    first = RunDirectory(finished)
    unfiltered = dict(star__samples_from=str(finished), selection__check="none", star__rationalize="none")
    other = run_with(base, tmp_path / "other", **unfiltered)
    for n in (1, 2):
        assert completions(other, n) == completions(first, n)
        usable = [c.problem_id for c in completions(first, n) if c.verdict != "truncated"]
        assert [e.problem_id for e in kept(other, n)] == usable != [e.problem_id for e in kept(first, n)]
        sampled_from = first.read_json(first.path(n, "filter.json"))["sampled_from"]
        assert other.read_json(other.path(n, "filter.json"))["sampled_from"] == sampled_from
        assert {e.weights for e in kept(other, n)} == {sampled_from}
    assert (
        other.read_json(other.path(2, "finetune.json"))["weights"]
        != first.read_json(first.path(2, "finetune.json"))["weights"]
    )
    run_with(base, tmp_path / "other", **unfiltered)  # is finished, and its origins are no fault


def test_what_does_not_fit_is_refused_in_one_line(base, finished, tmp_path):
    stored = dict(star__samples_from=str(finished))
    for n, (changes, message) in enumerate([
        (dict(star__iterations=3), "iteration 3 is not finished there; set --config.star.iterations=2"),
        (dict(seed=1), "is not among the problems any more|was sampled with the random key"),
        (dict(star__samples_per_problem=2), "samples"),
        (dict(selection__anchoring=True), "anchoring.json: is not there"),
        (dict(star__direct=True), "needs no samples"),
        (dict(star__samples_from=str(tmp_path / "nowhere")), "not a run directory"),
    ]):  # fmt: skip
        with pytest.raises(InputError, match=message) as error:
            run_with(base, tmp_path / str(n), **(stored | changes))
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_selection_of_rationalizations_without_a_score_is_refused(base, tmp_path):
    """The first run scores the right ones only; the other would train on wrong ones, too."""
    scored = run_with(base, tmp_path / "scored", star__iterations=1, selection__anchoring=True).workdir
    again = dict(star__samples_from=str(scored), star__iterations=1, selection__anchoring=True)
    run_with(base, tmp_path / "same", **again)
    with pytest.raises(
        InputError, match=r"anchoring\.json: has no score of '0/rationalization/1/.*, and only the weights"
    ):
        run_with(base, tmp_path / "all", **again, selection__check="none")
