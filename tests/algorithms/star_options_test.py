"""The options of the loop that the paper's rows are made of, on one- and two-digit sums."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from star_jax.algorithms import star
from star_jax.config import MeshConfig
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.evaluation import stored_run
from star_jax.models import decoder
from star_jax.runs.run_directory import RunDirectory
from star_jax.tasks.arithmetic import Arithmetic
from star_jax.training import fine_tune
from star_jax.weights import checkpoint
from tests.support.models import numpy_params
from tests.support.runs import completions, kept, run_with, small_config


@pytest.fixture(scope="module")
def combined(base, tmp_path_factory) -> RunDirectory:
    """One iteration under several options that do not touch each other. Read only."""
    return run_with(
        base,
        tmp_path_factory.mktemp("combined"),
        star__samples_per_problem=6,
        selection__per_problem=0,
        star__iterations=1,
        sampling__temperature=0.6,
        replication__rationalize_probability=0.5,
        replication__hint_keep_probability=1.0,
        evaluation__report_split="test",
    )


def test_several_samples_are_made_and_distinct_ones_kept(combined):
    samples = completions(combined, 1)
    assert len(samples) == 480 and {s.sample_index for s in samples} == set(range(6))
    pairs = [(e.problem_id, e.completion) for e in kept(combined, 1)]
    assert len(pairs) == len(set(pairs)) > len({p for p, _ in pairs})


def test_rationalize_probability_rationalizes_about_that_share(combined):
    counts = combined.read_json(combined.path(1, "filter.json"))
    solved = {s.problem_id for s in completions(combined, 1) if s.verdict == "right"}
    failed = counts["problems"] - len(solved)
    tried = {h.problem_id for h in completions(combined, 1, "rationalizations")}
    assert not tried & solved and 0.2 * failed < len(tried) < 0.8 * failed


def test_hints_are_kept_only_when_asked(combined, finished):
    hinted = [e for e in kept(combined, 1) if e.source == "rationalized"]
    assert hinted and all(e.hint_kept and f"Target: {e.completion.splitlines()[-1]}\n" in e.prompt for e in hinted)
    assert not any(e.hint_kept for e in kept(combined, 1) if e.source == "sampled")
    assert not any(e.hint_kept for e in kept(RunDirectory(finished), 1))


def test_a_reported_split_is_measured_each_time_and_selects_nothing(combined, tmp_path):
    problems = {split: {p.id for p in small_config().make_task().problems(split)} for split in ("dev", "test")}
    for n in (0, 1):
        for split in ("dev", "test"):
            assert {c.problem_id for c in completions(combined, n, f"eval_{split}")} == problems[split]
            assert combined.read_json(combined.path(n, f"eval_{split}.json"))["split"] == split
    assert "Accuracy on the test split" in (combined.workdir / "report.html").read_text()
    shutil.copytree(combined.workdir, tmp_path / "run")
    run_dir = RunDirectory(tmp_path / "run")
    for n, accuracy in ((0, 1.0), (1, 0.0)):  # the reported split prefers the other iteration
        for split, value in (("test", accuracy), ("dev", 1 - accuracy)):
            path = run_dir.path(n, f"eval_{split}.json")
            run_dir.write_json(path, {**run_dir.read_json(path), "accuracy": value})
    assert stored_run.open_iteration(str(tmp_path / "run"), "best").number == 1


NO_ITERATIONS = """
import sys
from tests.support.runs import run_with
names = ("n_layers", "d_model", "n_heads", "d_mlp", "rotary_dim", "vocab_size")
run_with(sys.argv[1], sys.argv[2], star__iterations=0, **{f"model__{name}": 0 for name in names})
print(sorted({name.split(".")[0] for name in sys.modules} & {"seqio", "tensorflow", "t5", "clu"}))
"""


def test_no_iterations_measure_the_base_alone_and_import_no_tensorflow(base, tmp_path):
    """Sizes that the config leaves out are the base's, and are stored."""
    command = [sys.executable, "-c", NO_ITERATIONS, str(base), str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    run_dir = RunDirectory(tmp_path)
    assert run_dir.has(0, "eval_dev.json") and not run_dir.path(1).exists()
    assert "no iteration was requested" in (tmp_path / "report.html").read_text()
    stored = run_dir.read_json(tmp_path / "config.json")["model"]
    assert (stored["n_layers"], stored["d_model"], stored["architecture"]) == (1, 32, "gptj")


@pytest.mark.slow
def test_keep_previous_trains_on_earlier_iterations_too(base, finished, tmp_path):
    run_dir = run_with(base, tmp_path, star__keep_previous=1)
    first, second = kept(run_dir, 1), kept(run_dir, 2)
    assert first == kept(RunDirectory(finished), 1)
    assert [e for e in second if e.iteration == 1] == first and any(e.iteration == 2 for e in second)
    assert run_dir.read_json(run_dir.path(2, "filter.json"))["kept_from_earlier"] == len(first)


@pytest.mark.slow
def test_hint_only_rounds_show_every_problem_its_answer_and_accumulate(base, tmp_path):
    """star.rationalize="all" and keep_previous=-1; iteration 1, before rationalize_from, samples without hints."""
    changes = dict(star__rationalize="all", star__rationalize_from=2, star__keep_previous=-1, star__iterations=3)
    run_dir = run_with(base, tmp_path, **changes)
    assert not run_dir.has(1, "rationalizations.jsonl") and not run_dir.has(2, "samples.jsonl")
    earlier = kept(run_dir, 1)
    assert earlier and {e.source for e in earlier} == {"sampled"}
    for n in (2, 3):
        hinted = completions(run_dir, n, "rationalizations")
        assert len(hinted) == 80 and all(c.hinted for c in hinted)
        own = [e for e in kept(run_dir, n) if e.iteration == n]
        assert [e.problem_id for e in own] == [c.problem_id for c in hinted if c.verdict == "right"]
        assert [e for e in kept(run_dir, n) if e.iteration < n] == earlier
        earlier = [*earlier, *own]
        counts = run_dir.read_json(run_dir.path(n, "filter.json"))
        assert counts["samples"] == 0 and counts["kept_from_earlier"] == len(earlier) - len(own)


@pytest.mark.slow
def test_each_iteration_has_its_own_number_of_samples_and_temperature(base, tmp_path):
    lists = dict(star__samples_by_iteration=(1, 3), sampling__temperature_by_iteration=(0.0, 0.9))
    run_dir = run_with(base, tmp_path / "lists", star__iterations=2, **lists)
    first, second = (completions(run_dir, n) for n in (1, 2))
    assert len(first) == 80 and len(second) == 3 * 80
    texts = {p: {s.text for s in second if s.problem_id == p} for p in {s.problem_id for s in second}}
    assert sum(len(of) > 1 for of in texts.values()) > 40
    greedy = completions(run_with(base, tmp_path / "greedy", star__iterations=1), 1)
    assert first == greedy
    for wrong in (dict(star__samples_by_iteration=(2, 0)), dict(sampling__temperature_by_iteration=(-1.0,))):
        with pytest.raises(InputError, match=r"star\.samples_by_iteration|sampling\.temperature"):
            small_config(**wrong)


@pytest.mark.slow
def test_hints_are_scored_and_bound_what_is_kept(base, tmp_path):
    """The scores against one forward pass for each text, and what is kept against the bound."""
    loop = dict(star__iterations=1, selection__anchoring=True)
    scored = run_with(base, tmp_path / "scored", **loop)
    hinted = [c for c in completions(scored, 1, "rationalizations") if c.verdict == "right"]
    nats = scored.read_json(scored.path(1, "anchoring.json"))["nats"]
    assert set(nats) == {c.seed for c in hinted} and len(nats) > 5
    model, params = checkpoint.load_model(base)
    task, tokenizer = small_config().make_task(), checkpoint.load_tokenizer(base)
    problems = {p.id: p for p in task.problems("train")}
    for c in hinted[:8]:
        expected = []
        for hint in (True, False):
            prompt = tokenizer.encode(task.render(problems[c.problem_id], hint))
            ids_BT = np.array([[*prompt, *c.token_ids]])
            logits_TV = np.asarray(decoder.apply(model, params, ids_BT)[0], np.float64)[:, : tokenizer.vocab_size]
            log_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
            expected.append(sum(log_TV[len(prompt) - 1 + i, token] for i, token in enumerate(c.token_ids)))
        assert abs(nats[c.seed] - (expected[0] - expected[1])) < 2e-3, c.problem_id
    by_id = {e.problem_id: e for e in kept(scored, 1)}
    assert {e.anchoring for e in by_id.values() if e.source == "sampled"} == {None}
    assert all(by_id[c.problem_id].anchoring == nats[c.seed] for c in hinted)
    mean = scored.read_json(scored.path(1, "filter.json"))["anchoring"]
    assert abs(mean - np.mean(list(nats.values()))) < 1e-3
    bound = float(np.median(list(nats.values())))
    bounded = run_with(base, tmp_path / "bounded", star__iterations=1, selection__max_anchoring=bound)
    low = [e for e in kept(scored, 1) if e.anchoring is None or e.anchoring <= bound]
    assert kept(bounded, 1) == low and len(low) < len(kept(scored, 1))
    plain = run_with(base, tmp_path / "plain", star__iterations=1)
    assert [dataclasses.replace(e, anchoring=None) for e in kept(scored, 1)] == kept(plain, 1)


@pytest.mark.slow
def test_unfiltered_rounds_train_on_wrong_answers_too(base, tmp_path):
    run_dir = run_with(base, tmp_path, selection__check="none", star__rationalize="none", star__iterations=1)
    samples = completions(run_dir, 1)
    assert [e.problem_id for e in kept(run_dir, 1)] == [s.problem_id for s in samples if s.verdict != "truncated"]
    assert {e.verdict for e in kept(run_dir, 1)} > {"right"}


@pytest.mark.slow
def test_only_the_latest_and_the_best_weights_stay(base, tmp_path):
    run_dir = run_with(base, tmp_path, star__keep_weights=1, star__iterations=3)
    there = {n for n in (1, 2, 3) if checkpoint.exists(run_dir.path(n, "params"))}
    assert there == {3} | ({stored_run.best_iteration(run_dir, "dev")} - {0})
    assert all(run_dir.has(n) for n in (1, 2, 3))
    run_with(base, tmp_path, star__keep_weights=2, star__iterations=4)  # continues without the others
    assert run_dir.has(4) and checkpoint.exists(run_dir.path(4, "params"))


@pytest.mark.slow
def test_steps_that_fail_the_check_are_not_kept_and_tried_again(base, tmp_path, monkeypatch):
    """A stand-in for the check fails the scratchpad of every problem with an even id, whatever its answer."""
    real = Arithmetic.consistent
    doubt = lambda self, problem, text: real(self, problem, text) and int(problem.id[-1]) % 2 == 1  # noqa: E731
    monkeypatch.setattr(Arithmetic, "consistent", doubt)
    run_dir = run_with(base, tmp_path, selection__check="steps", star__iterations=1)
    samples = completions(run_dir, 1)
    doubtful = {s.problem_id for s in samples if s.verdict == "right" and not s.consistent}
    assert doubtful and not {e.problem_id for e in kept(run_dir, 1)} & doubtful
    hinted = {c.problem_id for c in completions(run_dir, 1, "rationalizations")}
    assert doubtful <= hinted
    assert run_dir.read_json(run_dir.path(1, "filter.json"))["right_wrong_steps"] == len(doubtful)


def test_a_run_of_an_earlier_version_continues(finished, base, tmp_path):
    """Its config.json has the earlier names and values, and lacks options that came later."""
    shutil.copytree(finished, tmp_path / "run")
    run_dir = RunDirectory(tmp_path / "run")
    config = run_dir.read_config()
    selection = config.pop("selection")
    config["star"] |= dict(rationalize=True, min_kept=selection["min_kept"], require_consistent=False)
    config["star"]["keep_per_problem"] = selection["per_problem"]
    del config["star"]["keep_previous"]
    run_dir.write_json(run_dir.workdir / "config.json", config)
    before = run_dir.path(2, "kept.jsonl").stat().st_mtime_ns
    run_with(base, tmp_path / "run")
    assert run_dir.path(2, "kept.jsonl").stat().st_mtime_ns == before
    assert run_dir.read_json(run_dir.workdir / "provenance.json")["changes"] == []
    config["star"]["min_kept"] = 3
    run_dir.write_json(run_dir.workdir / "config.json", config)
    with pytest.raises(InputError, match=r"selection\.min_kept was 3, now 1"):
        run_with(base, tmp_path / "run")


@pytest.mark.slow
def test_longer_sums_join_in_their_iteration(base, tmp_path):
    task = dict(task__max_digits=1, replication__later_digits=2, replication__later_from=2, task__eval_digits=3)
    # Fine-tuning changes nearly nothing: the base solves some sums of one digit, and each iteration has to keep some.
    run_dir = run_with(base, tmp_path, **task, star__problems_per_iteration=40, optimizer__learning_rate=1e-6)
    for n, expected in ((1, {"1"}), (2, {"1", "2"})):
        ids = [c.problem_id for c in completions(run_dir, n)]
        assert {name.split("-")[1] for name in ids} == expected and len(ids) == 40
    by_category = run_dir.read_json(run_dir.path(0, "eval_dev.json"))["by_category"]
    assert list(by_category) == ["1 digit", "2 digits", "3 digits"]


@pytest.mark.slow
def test_a_run_continues_when_its_base_s_directory_is_gone(base, tmp_path):
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    run_with(moved, tmp_path / "run", star__iterations=1)
    shutil.rmtree(moved)
    assert run_with(moved, tmp_path / "run", star__iterations=2).has(2)


@pytest.fixture(scope="module")
def with_moments(base, tmp_path_factory):
    """A base with Adam moments, as star_jax.convert --moments leaves them: (directory, moments)."""
    directory = tmp_path_factory.mktemp("moments") / "base"
    shutil.copytree(base, directory)
    config = checkpoint.load_spec(directory)
    first = jax.tree.map(jax.numpy.asarray, numpy_params(config, seed=1, scale=1e-2))
    second = jax.tree.map(lambda leaf: jax.numpy.asarray(np.abs(leaf)), numpy_params(config, seed=2, scale=1e-2))
    for which, tree in (("first", first), ("second", second)):
        checkpoint.save_moments(directory, which, tree, steps=7)
    return directory, checkpoint.Moments(first, second, 7)


@pytest.mark.slow
def test_adam_starts_with_the_base_s_moments(with_moments):
    """The first update is Adam's eighth, by hand in float64."""
    directory, moments = with_moments
    mesh, settings = sharding.make_mesh(MeshConfig(data=1)), small_config().optimizer
    _, params = checkpoint.load_model(directory, mesh)
    loaded = checkpoint.load_moments(directory, mesh)
    state = fine_tune.initial_state(settings, params, loaded)
    gradient = jax.tree.map(lambda leaf: 1e-3 * jax.numpy.ones_like(leaf), params)
    updates, _ = fine_tune.optimizer.chain(settings).update(gradient, state.opt_state, params)
    total = np.sqrt(sum(1e-6 * leaf.size for leaf in jax.tree.leaves(params)))
    g = 1e-3 * min(1.0, settings.clip_norm / total)
    found = jax.tree.leaves(updates)
    for update, m, v in zip(found, jax.tree.leaves(moments.first), jax.tree.leaves(moments.second), strict=True):
        m8 = (settings.b1 * np.float64(m) + (1 - settings.b1) * g) / (1 - settings.b1**8)
        v8 = (settings.b2 * np.float64(v) + (1 - settings.b2) * g * g) / (1 - settings.b2**8)
        np.testing.assert_allclose(update, m8 / (np.sqrt(v8) + settings.eps), rtol=2e-5)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_z_loss_changes_the_training_alone(base, tmp_path):
    run_dirs = [run_with(base, tmp_path / str(z), replication__z_loss=z, star__iterations=1) for z in (0.0, 0.1)]
    samples = [run_dir.path(1, "samples.jsonl").read_bytes() for run_dir in run_dirs]
    weights = [run_dir.read_json(run_dir.path(1, "finetune.json"))["weights"] for run_dir in run_dirs]
    assert samples[0] == samples[1] and weights[0] != weights[1]


@pytest.mark.slow
def test_gpt_2_goes_through_the_loop(tmp_path):
    """Pretrained, sampled, rationalized, fine-tuned and measured; what comes out is again a GPT-2."""
    star.run(small_config(model__architecture="gpt2", model__rotary_dim=0, star__iterations=1), tmp_path)
    assert {e.source for e in kept(RunDirectory(tmp_path), 1)} == {"sampled", "rationalized"}
    model, params = checkpoint.load_model(RunDirectory(tmp_path).path(1, "params"))
    assert model.spec.family == "gpt2" and "head" not in params and isinstance(model, decoder.Decoder)
