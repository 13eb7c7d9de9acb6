"""The whole loop on one- and two-digit sums with a base that is pretrained in a few seconds."""

import dataclasses
import itertools
import json
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from star_jax import config
from star_jax.algorithms import schedule, setup, star
from star_jax.distributed import processes
from star_jax.errors import InputError
from star_jax.records import Completion, read_jsonl
from star_jax.runs.run_directory import RunDirectory
from star_jax.sampling import engine, sampler
from star_jax.tasks.arithmetic import Arithmetic
from star_jax.training import fine_tune, step
from star_jax.weights import checkpoint, fingerprint
from tests.support.runs import assert_same_result, kept, run_with, small_config


def test_a_run_leaves_every_file_of_the_contract(finished):
    for name in ("config.json", "base/model.json", "metrics.jsonl", "report.html", "iter_000/eval_dev.json"):
        assert (finished / name).exists(), name
    for n in (1, 2):
        for name in ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl", "filter.json", "params/model.json",
                     "finetune.json", "eval_dev.json", "DONE"):  # fmt: skip
            assert (finished / f"iter_{n:03d}" / name).exists(), (n, name)
    assert not list(finished.rglob("*.tmp")) and not list(finished.rglob("*.part"))


def test_kept_is_what_algorithm_1_says(finished):
    """Right first tries, and right rationalizations of problems whose first try failed; hint-free, one a problem."""
    run_dir, task = RunDirectory(finished), small_config().make_task()
    problems = {p.id: p for p in task.problems("train")}
    for n in (1, 2):
        samples = list(read_jsonl(Completion, run_dir.path(n, "samples.jsonl")))
        hinted = list(read_jsonl(Completion, run_dir.path(n, "rationalizations.jsonl")))
        assert len(samples) == 80 and len({s.problem_id for s in samples}) == 80
        assert {h.problem_id for h in hinted} == {s.problem_id for s in samples if s.verdict != "right"}
        wanted = {(c.problem_id, c.hinted, c.text) for c in [*samples, *hinted] if c.verdict == "right"}
        examples = kept(run_dir, n)
        assert {(e.problem_id, e.source == "rationalized", e.completion) for e in examples} == wanted
        assert {e.source for e in examples} == {"sampled", "rationalized"}, "the base is too weak for this test"
        for example in examples:
            problem = problems[example.problem_id]
            assert example.prompt == task.render(problem) and not example.hint_kept
            assert task.parse(example.completion) == problem.answer
            assert example.weights and example.seed and example.log_probability is not None


def test_provenance_names_the_weights_of_the_iteration_before(finished):
    run_dir = RunDirectory(finished)
    first = run_dir.read_json(run_dir.path(1, "finetune.json"))["weights"]
    assert {e.weights for e in kept(run_dir, 2)} == {first}
    base_weights = json.loads((finished / "base" / "model.json").read_text())["fingerprint"]
    assert {e.weights for e in kept(run_dir, 1)} == {base_weights}


@pytest.mark.parametrize("stop_at", ["samples.jsonl", "rationalizations.jsonl", "kept.jsonl", "filter.json",
                                     "finetune.json", "eval_dev.jsonl", "eval_dev.json", "DONE"])  # fmt: skip
def test_stopped_before_any_file_and_started_again_gives_the_same(stop_at, base, finished, tmp_path, monkeypatch):
    """The run dies just before each file of iteration 1 is written, and in iteration 2 once more."""
    real, dead = RunDirectory.write_text, set()

    def write_or_die(self, path, text):
        if path.name == stop_at and path.parent.name in ("iter_001", "iter_002") and path.parent.name not in dead:
            dead.add(path.parent.name)
            raise KeyboardInterrupt
        real(self, path, text)

    monkeypatch.setattr(RunDirectory, "write_text", write_or_die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_with(base, tmp_path)
    run_with(base, tmp_path)
    assert dead == {"iter_001", "iter_002"}
    assert_same_result(finished, tmp_path)


def test_stopped_inside_sampling_draws_only_what_is_missing(base, finished, tmp_path, monkeypatch):
    real, calls = sampler.Sampler._read, []

    def die_at_second_chunk(self, out, count):
        calls.append(count)
        if len(calls) == 3:  # the base's evaluation, the first chunk of samples, and now the second
            raise KeyboardInterrupt
        return real(self, out, count)

    monkeypatch.setattr(sampler.Sampler, "_read", die_at_second_chunk)
    with pytest.raises(KeyboardInterrupt):
        run_with(base, tmp_path)
    assert (tmp_path / "iter_001" / "samples.jsonl.part").exists()
    run_with(base, tmp_path)
    assert_same_result(finished, tmp_path)


def test_nothing_recompiles_between_iterations(base, tmp_path, monkeypatch):
    sizes, real = [], star._finish

    def count(run, n):
        sizes.append((engine.sample_queues._cache_size(), step.train_step._cache_size()))
        real(run, n)

    monkeypatch.setattr(star, "_finish", count)
    run_with(base, tmp_path, star__iterations=3)
    assert sizes[1] == sizes[2] == sizes[3]


def test_another_config_in_the_same_directory_is_refused(base, finished):
    with pytest.raises(InputError, match=r"star\.steps was 6, now 7"):
        run_with(base, finished, star__steps=7)


def test_more_iterations_go_on_where_the_run_ended(base, finished, tmp_path):
    workdir = tmp_path / "longer"
    shutil.copytree(finished, workdir)
    run_dir = run_with(base, workdir, star__iterations=3)
    assert run_dir.done(3)
    assert_same_result(finished, workdir)


def test_restart_from_base_and_from_previous_differ_and_do_what_they_say(base, tmp_path, monkeypatch):
    starts, real = [], fine_tune.fine_tune

    def spy(model, params, rows, **kwargs):
        starts.append(fingerprint.fingerprint(params))
        return real(model, params, rows, **kwargs)

    monkeypatch.setattr(fine_tune, "fine_tune", spy)
    for restart in ("base", "previous"):
        run_with(base, tmp_path / restart, star__restart_from=restart)
    of_base = json.loads((base / "model.json").read_text())["fingerprint"]
    first = RunDirectory(tmp_path / "previous").read_json(tmp_path / "previous/iter_001/finetune.json")["weights"]
    assert starts == [of_base, of_base, of_base, first]


def test_without_rationalization_only_first_tries_are_kept(base, tmp_path):
    run_dir = run_with(base, tmp_path, star__rationalize=False)
    assert not run_dir.done(1, "rationalizations.jsonl")
    assert {e.source for e in kept(run_dir, 1)} == {"sampled"}


def test_rationalize_probability_rationalizes_about_that_share(base, tmp_path):
    run_dir = run_with(base, tmp_path, replication__rationalize_probability=0.5, star__iterations=1)
    counts = run_dir.read_json(run_dir.path(1, "filter.json"))
    failed = counts["problems"] - counts["right"]
    assert 0.25 * failed < counts["rationalization_tried"] < 0.75 * failed


def test_hints_are_kept_only_when_asked(base, tmp_path):
    run_dir = run_with(base, tmp_path, replication__hint_keep_probability=1.0, star__iterations=1)
    hinted = [e for e in kept(run_dir, 1) if e.source == "rationalized"]
    assert hinted and all(e.hint_kept and f"Target: {e.completion.splitlines()[-1]}\n" in e.prompt for e in hinted)
    assert not any(e.hint_kept for e in kept(run_dir, 1) if e.source == "sampled")


def test_direct_trains_on_every_reference_answer_and_samples_nothing(base, tmp_path):
    run_dir = run_with(base, tmp_path, star__direct=True, star__iterations=1)
    assert not run_dir.done(1, "samples.jsonl")
    examples = kept(run_dir, 1)
    assert len(examples) == 80 and {e.source for e in examples} == {"reference"}
    answers = {p.id: p.answer for p in small_config().make_task().problems("train")}
    assert all(e.completion == answers[e.problem_id] for e in examples)


def test_keep_previous_trains_on_earlier_iterations_too(base, finished, tmp_path):
    run_dir = run_with(base, tmp_path, star__keep_previous=1)
    first, second = kept(run_dir, 1), kept(run_dir, 2)
    assert first == kept(RunDirectory(finished), 1)
    assert [e for e in second if e.iteration == 1] == first and any(e.iteration == 2 for e in second)
    assert run_dir.read_json(run_dir.path(2, "filter.json"))["kept_from_earlier"] == len(first)


def test_several_draws_are_made_and_distinct_ones_kept(base, tmp_path):
    run_dir = run_with(
        base,
        tmp_path,
        star__samples_per_problem=6,
        star__keep_per_problem=0,
        sampling__temperature=0.6,
        star__iterations=1,
    )
    samples = list(read_jsonl(Completion, run_dir.path(1, "samples.jsonl")))
    assert len(samples) == 480 and {s.sample_index for s in samples} == set(range(6))
    pairs = [(e.problem_id, e.completion) for e in kept(run_dir, 1)]
    assert len(pairs) == len(set(pairs)) > len({p for p, _ in pairs})


def test_shots_stand_before_every_prompt_until_they_are_dropped(base, tmp_path, monkeypatch):
    """The tiny base cannot follow shots, so a stand-in answers: rightly with a hint, else for every second problem."""
    task, seen = small_config().make_task(), []
    everyone = [p for split in ("train", "dev") for p in task.problems(split)]
    answers = {task.render(p, hint=True): task.reference(p) for p in everyone}
    answers |= {task.render(p): task.reference(p) for p in everyone if p.id.endswith(("0", "2", "4", "6", "8"))}

    def answer(self, prompts, seeds=None, progress=None, meanwhile=None):
        seen.append({p.prefix for p in prompts})
        draws = [sampler.Sample(answers.get(p.body, ""), (0,), -1.0, False) for p in prompts]
        progress(range(len(prompts)), draws)
        return draws

    monkeypatch.setattr(sampler.Sampler, "__call__", answer)
    run_dir = run_with(
        base, tmp_path, prompt__shots=2, star__few_shot_train=True, star__prompt_after_first_iteration=False,
        train__row_tokens=256,
    )  # fmt: skip
    # The base's evaluation, samples and rationalizations of iteration 1 with shots; everything later without.
    shots = [{text.count("</scratch>") for text in prefixes} for prefixes in seen]
    assert shots == [{2}, {2}, {2}, {0}, {0}, {0}, {0}]
    assert all("Target: " in text for text in seen[2]) and not any("Target: " in text for text in seen[1])
    for n, expected in ((1, 2), (2, 0)):
        examples = kept(run_dir, n)
        assert {e.source for e in examples} == {"sampled", "rationalized"}
        assert {e.prompt.count("</scratch>") for e in examples} == {expected}
        assert not any("Target: " in e.prompt for e in examples)


def test_a_base_that_solves_nothing_ends_in_one_clear_line(tmp_path):
    stages = (dict(steps=1, learning_rate=0.0, gold=(1.0,)),)
    with pytest.raises(InputError, match="kept nothing"):
        star.run(small_config(base__stages=stages), tmp_path)


def test_a_base_of_other_sizes_is_refused(base, tmp_path):
    with pytest.raises(InputError, match="d_mlp 128"):
        run_with(base, tmp_path, model__d_mlp=128)


@pytest.mark.parametrize(
    ("schedule", "expected"), [("exponential", [40, 48, 57, 69]), ("linear", [40, 60, 80, 100]), ("epochs", [25] * 4)]
)
def test_fine_tuning_steps(schedule, expected):
    options = config.StarConfig(schedule=schedule, epochs=2.0)
    assert [schedule.fine_tuning_steps(options, n, rows=99, batch_rows=8) for n in (1, 2, 3, 4)] == expected


def test_the_paper_s_schedule_reaches_its_published_length():
    """40 x 1.2^29 = 7912 steps in loop 30 (paper, appendix)."""
    assert schedule.fine_tuning_steps(config.StarConfig(), 30, 1, 1) == 7912


@pytest.mark.parametrize(("size", "wanted"), [(10, 4), (10, 10), (10, 0), (7, 5), (100, 33)])
def test_problems_come_once_before_any_comes_twice(size, wanted):
    problems = Arithmetic(max_digits=2, train_per_length=size).problems("train")[:size]
    drawn: list[str] = []
    for n in range(1, 9):
        new = schedule.iteration_problems(problems, wanted, n, seed=3)
        assert len(new) == len({p.id for p in new}) == (wanted or size)
        drawn += [p.id for p in new]
    if wanted:
        counts = [drawn.count(p.id) for p in problems]
        assert max(counts) - min(counts) <= 1 + (wanted == size)
    assert schedule.iteration_problems(problems, wanted, 3, seed=3) == new or wanted  # a pure function of its arguments


def test_reports_hold_every_field_of_the_contract(finished):
    result = json.loads((finished / "iter_001" / "eval_dev.json").read_text())
    for key in ("iteration", "split", "n", "accuracy", "ci95", "by_category", "unparsable", "truncated"):
        assert key in result
    done = json.loads((finished / "iter_001" / "finetune.json").read_text())
    assert done["steps"] == 6 and {f.name for f in dataclasses.fields(fine_tune.Report)} <= done.keys()


def test_no_program_is_compiled_after_the_first_iteration(base, tmp_path):
    """The optimizer's fresh state was once made by a program that each iteration compiled anew."""
    times: list[float] = []

    def heard(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            times.append(time.time())

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        run_with(base, tmp_path, star__iterations=3)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    ends = [line["time"] for line in lines if line["stage"] == "phases"]
    assert len(ends) == 4 and sum(t <= ends[1] for t in times) > 3
    assert [t - ends[1] for t in times if t > ends[1]] == []


def test_the_phases_of_an_iteration_are_logged_and_are_all_of_its_time(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    phases = [line for line in lines if line["stage"] == "phases"]
    assert [line["iteration"] for line in phases] == [0, 1, 2]
    for before, line in itertools.pairwise(phases):
        seconds = {k: v for k, v in line.items() if k not in ("time", "stage", "iteration", "step", "total")}
        assert {"sample", "rationalize", "filter", "pack", "load", "fine_tune", "save", "evaluate", "report"} <= set(
            seconds
        )
        assert sum(seconds.values()) == pytest.approx(line["total"], abs=0.02)
        assert line["total"] == pytest.approx(line["time"] - before["time"], abs=0.1)


@pytest.mark.parametrize(("room", "loads"), [(True, 1), (False, 3)])
def test_the_base_is_read_once_where_memory_allows_and_the_result_is_the_same(
    room, loads, base, finished, tmp_path, monkeypatch
):
    read, real = [], checkpoint.load_model
    monkeypatch.setattr(checkpoint, "load_model", lambda *args: read.append(args[0]) or real(*args))
    monkeypatch.setattr(processes, "host_memory_available", lambda size: room and size > 0)
    run_with(base, tmp_path)
    monkeypatch.undo()
    assert len(read) == loads
    assert_same_result(finished, tmp_path)


def test_previous_weights_wait_in_memory_too(base, tmp_path, monkeypatch):
    read, real = [], checkpoint.load_model
    monkeypatch.setattr(checkpoint, "load_model", lambda *args: read.append(args[0]) or real(*args))
    run_with(base, tmp_path / "memory", star__restart_from="previous")
    assert len(read) == 1
    monkeypatch.setattr(processes, "host_memory_available", lambda size: False)
    run_with(base, tmp_path / "disk", star__restart_from="previous")
    assert len(read) == 4
    assert_same_result(tmp_path / "memory", tmp_path / "disk")


def test_stopped_while_weights_are_saved_and_started_again_gives_the_same(base, finished, tmp_path, monkeypatch):
    """The evaluation has ended then, of weights that are not on disk: what it drew must not outlive them."""
    real, dead = checkpoint.AsyncModelSave.finish, set()

    def finish_or_die(self):
        if len(dead) < 2 and self._directory not in dead:
            dead.add(self._directory)
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(checkpoint.AsyncModelSave, "finish", finish_or_die)
    for n in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run_with(base, tmp_path)
        drawn = tmp_path / f"iter_00{n}/eval_dev.jsonl"
        assert drawn.exists() and not (tmp_path / f"iter_00{n}/finetune.json").exists()
        assert not (tmp_path / f"iter_00{n}/params/model.json").exists()
        RunDirectory(tmp_path).write_text(drawn, "of weights that are gone\n")
    run_with(base, tmp_path)
    assert_same_result(finished, tmp_path)


def test_files_come_in_the_order_that_a_restart_relies_on(base, tmp_path, monkeypatch):
    """finetune.json says that the model is whole, the evaluation that finetune.json is there."""
    real, seen = RunDirectory.write_text, []

    def look(self, path, text):
        if path.name in ("finetune.json", "eval_dev.json", "DONE") and path.parent.name == "iter_001":
            there = [p for p in ("params/model.json", "finetune.json", "eval_dev.json") if (path.parent / p).exists()]
            unfinished = [p.name for p in (path.parent / "params").iterdir() if "tmp" in p.name]
            seen.append((path.name, len(there), unfinished))
        real(self, path, text)

    monkeypatch.setattr(RunDirectory, "write_text", look)
    run_with(base, tmp_path, star__iterations=1)
    assert seen == [("finetune.json", 1, []), ("eval_dev.json", 2, []), ("DONE", 3, [])]


def losses(workdir: Path) -> dict[tuple[int, int], float]:
    """(iteration, step) -> loss."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(v["iteration"], v["step"]): v["loss"] for v in lines if v["stage"] == "fine_tune"}


def test_on_other_devices_it_goes_on_with_the_same_problems_and_data(base, tmp_path, monkeypatch):
    """Begun on eight devices, gone on with on two: the same rows in the same order, losses within rounding."""
    changes = dict(star__iterations=1, star__problems_per_iteration=40, train__checkpoint_every=2, train__log_every=1)
    config = small_config(base__path=str(base), mesh__data=-1, **changes)
    star.run(config, tmp_path / "whole")

    def die(state_step):
        if state_step >= 5:
            raise KeyboardInterrupt

    real = step.train_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            fine_tune, "train_step", lambda m, o, state, *rest: (die(int(state.step)), real(m, o, state, *rest))[1]
        )
        star.run(config, tmp_path / "moved")
    before = losses(tmp_path / "moved")
    meshes = setup.meshes
    monkeypatch.setattr(setup, "meshes", lambda config: meshes(config, jax.devices()[:2]))
    star.run(config, tmp_path / "moved")
    whole, moved = losses(tmp_path / "whole"), losses(tmp_path / "moved")
    assert max(step for _, step in before) < 6 and whole.keys() == moved.keys()
    assert len(whole) == 6 and whole != moved, "the same devices?"
    np.testing.assert_allclose([*whole.values()], [moved[key] for key in whole], rtol=1e-5)
    for name in ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl"):
        assert (tmp_path / f"moved/iter_001/{name}").read_bytes() == (tmp_path / f"whole/iter_001/{name}").read_bytes()
