"""The options of the loop that the paper's rows are made of, each run on one- and two-digit sums."""

import shutil

import jax
import numpy as np
import pytest

from star_jax.algorithms import star
from star_jax.config import MeshConfig, StarConfig
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.evaluation import stored_run
from star_jax.models import decoder
from star_jax.records import Completion, read_jsonl
from star_jax.runs.run_directory import RunDirectory
from star_jax.tasks.arithmetic import Arithmetic
from star_jax.training import fine_tune, step
from star_jax.weights import checkpoint
from tests.support.models import numpy_params
from tests.support.runs import kept, run_with, small_config


def test_rationalization_begins_where_it_is_told(base, tmp_path):
    run_dir = run_with(base, tmp_path, star__rationalize_from=2)
    assert not run_dir.done(1, "rationalizations.jsonl") and run_dir.done(2, "rationalizations.jsonl")
    assert {e.source for e in kept(run_dir, 1)} == {"sampled"}
    names = ("samples.jsonl", "rationalizations.jsonl")
    samples, hinted = (list(read_jsonl(Completion, run_dir.path(2, name))) for name in names)
    assert {h.problem_id for h in hinted} == {s.problem_id for s in samples if s.verdict != "right"}


@pytest.mark.parametrize("schedule", ["exponential", "linear", "epochs"])
def test_no_schedule_exceeds_the_cap(schedule):
    free = StarConfig(schedule=schedule, epochs=100.0)
    capped = StarConfig(schedule=schedule, epochs=100.0, max_steps=60)
    for n in range(1, 12):
        steps = schedule.fine_tuning_steps(free, n, rows=9, batch_rows=8)
        assert schedule.fine_tuning_steps(capped, n, rows=9, batch_rows=8) == min(60, steps)


def test_only_the_latest_and_the_best_weights_stay(base, tmp_path):
    run_dir = run_with(base, tmp_path, star__keep_weights=1, star__iterations=3)
    there = {n for n in (1, 2, 3) if checkpoint.exists(run_dir.path(n, "params"))}
    assert there == {3} | ({stored_run.best_iteration(run_dir, "dev")} - {0})
    assert all(run_dir.done(n) for n in (1, 2, 3))
    run_with(base, tmp_path, star__keep_weights=1, star__iterations=4)  # goes on without the others
    assert run_dir.done(4) and checkpoint.exists(run_dir.path(4, "params"))


def test_a_reported_split_is_measured_each_time_and_selects_nothing(base, tmp_path):
    run_dir = run_with(base, tmp_path, evaluation__report_split="test", star__iterations=1)
    problems = {split: {p.id for p in small_config().make_task().problems(split)} for split in ("dev", "test")}
    for n in (0, 1):
        for split in ("dev", "test"):
            completions = list(read_jsonl(Completion, run_dir.path(n, f"eval_{split}.jsonl")))
            assert {c.problem_id for c in completions} == problems[split]
            assert run_dir.read_json(run_dir.path(n, f"eval_{split}.json"))["split"] == split
    for n, accuracy in ((0, 1.0), (1, 0.0)):  # the reported split says the opposite of the selecting one
        for split, value in (("test", accuracy), ("dev", 1 - accuracy)):
            path = run_dir.path(n, f"eval_{split}.json")
            run_dir.write_json(path, {**run_dir.read_json(path), "accuracy": value})
    assert stored_run.open_iteration(str(tmp_path), "best").number == 1
    assert "Evaluation on the test split" in (tmp_path / "report.html").read_text()


def test_no_iterations_measure_the_base_alone(base, tmp_path):
    run_dir = run_with(base, tmp_path, star__iterations=0)
    assert run_dir.done(0, "eval_dev.json") and not run_dir.path(1).exists()
    assert "no iteration was asked for" in (tmp_path / "report.html").read_text()


def test_steps_that_fail_the_check_are_not_kept_and_tried_again(base, tmp_path, monkeypatch):
    """Sums whose scratchpad is wrong though their answer is right: declared so for every problem of an even id."""
    real = Arithmetic.consistent
    doubt = lambda self, problem, text: real(self, problem, text) and int(problem.id[-1]) % 2 == 1  # noqa: E731
    monkeypatch.setattr(Arithmetic, "consistent", doubt)
    run_dir = run_with(base, tmp_path, star__require_consistent=True, star__iterations=1)
    samples = list(read_jsonl(Completion, run_dir.path(1, "samples.jsonl")))
    doubtful = {s.problem_id for s in samples if s.verdict == "right" and not s.consistent}
    assert doubtful and not {e.problem_id for e in kept(run_dir, 1)} & doubtful
    hinted = {c.problem_id for c in read_jsonl(Completion, run_dir.path(1, "rationalizations.jsonl"))}
    assert doubtful <= hinted
    assert run_dir.read_json(run_dir.path(1, "filter.json"))["right_wrong_steps"] == len(doubtful)


def test_longer_sums_join_when_it_is_their_turn(base, tmp_path):
    task = dict(task__max_digits=1, replication__later_digits=2, replication__later_from=2, task__eval_digits=3)
    run_dir = run_with(base, tmp_path, **task, star__problems_per_iteration=20)
    for n, expected in ((1, {"1"}), (2, {"1", "2"})):
        ids = [c.problem_id for c in read_jsonl(Completion, run_dir.path(n, "samples.jsonl"))]
        assert {name.split("-")[1] for name in ids} == expected and len(ids) == 20
    by_category = run_dir.read_json(run_dir.path(0, "eval_dev.json"))["by_category"]
    assert list(by_category) == ["1 digit", "2 digits", "3 digits"]


def test_a_run_goes_on_when_its_base_s_directory_is_gone(base, tmp_path):
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    run_with(moved, tmp_path / "run", star__iterations=1)
    shutil.rmtree(moved)
    assert run_with(moved, tmp_path / "run", star__iterations=2).done(2)


def test_sizes_left_out_are_the_base_s_and_are_stored(base, tmp_path):
    left_out = {f"model__{name}": 0 for name in ("n_layers", "d_model", "n_heads", "d_mlp", "rotary_dim", "vocab_size")}
    run_dir = run_with(base, tmp_path, **left_out, star__iterations=0)
    stored = run_dir.read_json(tmp_path / "config.json")["model"]
    assert (stored["n_layers"], stored["d_model"], stored["architecture"]) == (1, 32, "gptj")


@pytest.fixture(scope="module")
def with_moments(base, tmp_path_factory):
    """A base with Adam moments, as star_jax.convert --moments leaves them: (directory, moments)."""
    directory = tmp_path_factory.mktemp("moments") / "base"
    shutil.copytree(base, directory)
    config = checkpoint.load_config(directory)
    first = jax.tree.map(jax.numpy.asarray, numpy_params(config, seed=1, scale=1e-2))
    second = jax.tree.map(lambda leaf: jax.numpy.asarray(np.abs(leaf)), numpy_params(config, seed=2, scale=1e-2))
    for which, tree in (("first", first), ("second", second)):
        checkpoint.save_moments(directory, which, tree, steps=7)
    return directory, checkpoint.Moments(first, second, 7)


def test_adam_begins_with_the_base_s_moments(with_moments):
    """The first update is Adam's eighth, by hand in float64."""
    directory, moments = with_moments
    mesh, settings = sharding.make_mesh(MeshConfig(data=1)), small_config().optimizer
    _, params = checkpoint.load_model(directory, mesh)
    loaded = checkpoint.load_moments(directory, mesh)
    state = step.initial_state(settings, params, loaded)
    gradient = jax.tree.map(lambda leaf: 1e-3 * jax.numpy.ones_like(leaf), params)
    updates, _ = fine_tune.optimizer.chain(settings).update(gradient, state.opt_state, params)
    total = np.sqrt(sum(1e-6 * leaf.size for leaf in jax.tree.leaves(params)))
    g = 1e-3 * min(1.0, settings.clip_norm / total)
    found = jax.tree.leaves(updates)
    for update, m, v in zip(found, jax.tree.leaves(moments.first), jax.tree.leaves(moments.second), strict=True):
        m8 = (settings.b1 * np.float64(m) + (1 - settings.b1) * g) / (1 - settings.b1**8)
        v8 = (settings.b2 * np.float64(v) + (1 - settings.b2) * g * g) / (1 - settings.b2**8)
        np.testing.assert_allclose(update, m8 / (np.sqrt(v8) + settings.eps), rtol=2e-5)


def test_moments_change_a_run_and_their_absence_is_one_line(with_moments, base, tmp_path):
    directory, _ = with_moments
    weights = []
    for name, asked in (("with", True), ("without", False)):
        run_dir = run_with(directory, tmp_path / name, replication__base_moments=asked, star__iterations=1)
        weights.append(run_dir.read_json(run_dir.path(1, "finetune.json"))["weights"])
    assert weights[0] != weights[1]
    with pytest.raises(InputError, match=r"replication\.base_moments"):
        run_with(base, tmp_path / "none", replication__base_moments=True)
    assert not (tmp_path / "none").exists()


def test_a_z_loss_changes_the_training_alone(base, tmp_path):
    ledgers = [run_with(base, tmp_path / str(z), replication__z_loss=z, star__iterations=1) for z in (0.0, 0.1)]
    samples = [run_dir.path(1, "samples.jsonl").read_bytes() for run_dir in ledgers]
    weights = [run_dir.read_json(run_dir.path(1, "finetune.json"))["weights"] for run_dir in ledgers]
    assert samples[0] == samples[1] and weights[0] != weights[1]


def test_gpt_2_goes_through_the_loop(tmp_path):
    """Pretrained, sampled, rationalized, fine-tuned and measured; what comes out is again a GPT-2."""
    star.run(small_config(model__architecture="gpt2", model__rotary_dim=0, star__iterations=1), tmp_path)
    assert {e.source for e in kept(RunDirectory(tmp_path), 1)} == {"sampled", "rationalized"}
    model, params = checkpoint.load_model(RunDirectory(tmp_path).path(1, "params"))
    assert model.config.is_gpt2 and "head" not in params and isinstance(model, decoder.GPT)
