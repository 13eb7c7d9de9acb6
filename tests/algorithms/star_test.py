"""The whole loop on one- and two-digit sums with a base that is pretrained in a few seconds."""

import dataclasses
import itertools
import json
import logging
import re
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from star_jax.algorithms import setup, star
from star_jax.distributed import processes
from star_jax.errors import InputError
from star_jax.evaluation.prompts import PromptEncoder
from star_jax.report import run_data
from star_jax.runs.run_directory import RunDirectory
from star_jax.sampling import sampler
from star_jax.tasks.few_shot import PromptSet
from star_jax.tokenizers.simple import SymbolTokenizer
from star_jax.training import fine_tune, packing
from star_jax.weights import checkpoint, fingerprint
from tests.support.runs import assert_same_result, completions, kept, run_with, small_config


def test_a_run_leaves_every_file_of_the_contract(finished):
    for name in ("config.json", "base/model.json", "metrics.jsonl", "report.html", "iter_000/eval_dev.json"):
        assert (finished / name).exists(), name
    for n in (1, 2):
        for name in ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl", "filter.json", "params/model.json",
                     "finetune.json", "eval_dev.json", "DONE"):  # fmt: skip
            assert (finished / f"iter_{n:03d}" / name).exists(), (n, name)
    assert not list(finished.rglob("*.tmp")) and not list(finished.rglob("*.part"))


def test_kept_is_what_algorithm_1_says(finished):
    """Right first samples, and right rationalizations of problems whose sample failed; hint-free, one per problem."""
    run_dir, task = RunDirectory(finished), small_config().make_task()
    problems = {p.id: p for p in task.problems("train")}
    for n in (1, 2):
        samples, hinted = completions(run_dir, n), completions(run_dir, n, "rationalizations")
        assert len(samples) == 80 and len({s.problem_id for s in samples}) == 80
        assert {h.problem_id for h in hinted} == {s.problem_id for s in samples if s.verdict != "right"}
        right = {(c.problem_id, c.hinted, c.text) for c in [*samples, *hinted] if c.verdict == "right"}
        examples = kept(run_dir, n)
        assert {(e.problem_id, e.source == "rationalized", e.completion) for e in examples} == right
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


def test_sampled_ids_and_log_probabilities_are_stored_and_trained_on(finished):
    run_dir = RunDirectory(finished)
    tokenizer = checkpoint.load_tokenizer(finished / "base")
    by_key = {}
    for name in ("samples", "rationalizations", "eval_dev"):
        for c in completions(run_dir, 1, name):
            assert len(c.token_ids) == len(c.token_log_probs) == c.tokens
            assert sum(c.token_log_probs) == pytest.approx(c.log_probability, abs=1e-3)
            assert tokenizer.decode(c.token_ids).startswith(c.text)
            by_key[c.problem_id, c.hinted] = c
    examples = kept(run_dir, 1)
    assert run_dir.read_json(run_dir.path(1, "filter.json"))["kept_retokenized"] == 0
    for example in examples:
        one = by_key[example.problem_id, example.source == "rationalized"]
        assert example.token_ids and one.token_ids[: len(example.token_ids)] == example.token_ids
        prompt_ids = tokenizer.encode(example.prompt)
        assert packing.tokenize(example, tokenizer)[0].tolist() == [
            *prompt_ids,
            *example.token_ids,
            tokenizer.end_ids[0],
        ]


FILES = ("samples.safetensors", "samples.jsonl", "rationalizations.jsonl", "kept.safetensors", "kept.jsonl",
         "filter.json", "finetune.json", "eval_dev.jsonl", "eval_dev.json", "DONE")  # fmt: skip


def run_and_die(base, workdir, monkeypatch, files, iterations=(1, 2)) -> None:
    """Runs until it is done. It dies once before each of these files of each iteration is written.

    In iteration 1 an evaluation is written only when the model is complete on disk, and DONE after all of it.
    """
    real, left = RunDirectory._write, {(f"iter_{n:03d}", name) for n in iterations for name in files}
    order = ("params/model.json", "finetune.json", "eval_dev.json")

    def write_or_die(self, path, content):
        if path.name in ("eval_dev.json", "DONE") and path.parent.name == "iter_001":
            assert all((path.parent / name).exists() for name in order[: 2 + (path.name == "DONE")])
            assert not [p.name for p in (path.parent / "params").iterdir() if "tmp" in p.name]
        if (path.parent.name, path.name) in left:
            left.remove((path.parent.name, path.name))
            raise KeyboardInterrupt
        real(self, path, content)

    monkeypatch.setattr(RunDirectory, "_write", write_or_die)
    for _ in range(len(left)):
        with pytest.raises(KeyboardInterrupt):
            run_with(base, workdir)
    run_with(base, workdir)
    assert not left


def test_stopped_before_some_files_and_started_again_gives_the_same(base, finished, tmp_path, monkeypatch):
    run_and_die(base, tmp_path, monkeypatch, ("samples.jsonl", "kept.jsonl", "finetune.json", "eval_dev.json"), (1,))
    assert_same_result(finished, tmp_path)


@pytest.mark.slow
def test_stopped_before_any_file_and_started_again_gives_the_same(base, finished, tmp_path, monkeypatch):
    run_and_die(base, tmp_path, monkeypatch, FILES)
    assert_same_result(finished, tmp_path)


@pytest.mark.slow
def test_stopped_inside_sampling_samples_only_what_is_missing(base, finished, tmp_path, monkeypatch):
    real, calls = sampler.Sampler._read, []

    def die_at_second_chunk(self, indices, outputs):
        calls.append(len(indices))
        if len(calls) == 3:  # the base's evaluation, the first chunk of samples, and now the second
            raise KeyboardInterrupt
        return real(self, indices, outputs)

    monkeypatch.setattr(sampler.Sampler, "_read", die_at_second_chunk)
    with pytest.raises(KeyboardInterrupt):
        run_with(base, tmp_path)
    assert (tmp_path / "iter_001" / "samples.jsonl.part").exists()
    calls[:] = [0] * 3
    run_with(base, tmp_path)
    assert sum(calls[3:5]) == 80 - 32, "the first chunk was sampled again"
    assert_same_result(finished, tmp_path)


def test_another_config_in_the_same_directory_is_refused(base, finished):
    with pytest.raises(InputError, match=r"star\.steps was 6, now 7"):
        run_with(base, finished, star__steps=7)


def test_more_iterations_continue_a_finished_run_and_compile_nothing_again(base, finished, tmp_path, caplog):
    """Iterations 3 and 4 of a run. The optimizer's initial state was once compiled again in each iteration."""
    workdir = tmp_path / "longer"
    shutil.copytree(finished, workdir)
    times: list[float] = []

    def record(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            times.append(time.time())

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(record)
    try:
        with caplog.at_level(logging.INFO, "star_jax"):
            run_dir = run_with(base, workdir, star__iterations=4)
    finally:
        jax.monitoring.unregister_event_duration_listener(record)
    (estimate,) = [line for line in caplog.messages if "at the pace of" in line]
    assert re.fullmatch("1 more iteration: about .* s at the pace of iteration 3", estimate)
    assert run_dir.has(4)
    assert_same_result(finished, workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    end_of_third = [line["time"] for line in lines if line["stage"] == "phases" and line["iteration"] == 3]
    assert sum(t <= end_of_third[-1] for t in times) > 3
    assert [t - end_of_third[-1] for t in times if t > end_of_third[-1]] == []


@pytest.mark.slow
def test_restart_from_previous_starts_from_its_weights_in_memory_or_from_disk(base, finished, tmp_path, monkeypatch):
    starts, loads, tune, load = [], [], fine_tune.fine_tune, checkpoint.load_model

    def spy(model, params, *args, **named):
        starts.append(fingerprint.fingerprint(params))
        return tune(model, params, *args, **named)

    monkeypatch.setattr(fine_tune, "fine_tune", spy)
    monkeypatch.setattr(checkpoint, "load_model", lambda *args: loads.append(args[0]) or load(*args))
    run_with(base, tmp_path / "memory", star__restart_from="previous")
    assert len(loads) == 1
    monkeypatch.setattr(processes, "host_memory_available", lambda size: False)
    run_with(base, tmp_path / "disk", star__restart_from="previous")
    assert len(loads) == 4
    assert_same_result(tmp_path / "memory", tmp_path / "disk")
    base_weights = json.loads((base / "model.json").read_text())["fingerprint"]
    first = json.loads((tmp_path / "memory/iter_001/finetune.json").read_text())["weights"]
    assert starts == [base_weights, first, base_weights, first]
    assert first == json.loads((finished / "iter_001/finetune.json").read_text())["weights"]


@pytest.mark.slow
def test_restart_from_base_reads_it_once_where_memory_allows(base, finished, tmp_path, monkeypatch):
    starts, loads, tune, load = [], [], fine_tune.fine_tune, checkpoint.load_model

    def spy(model, params, *args, **named):
        starts.append(fingerprint.fingerprint(params))
        return tune(model, params, *args, **named)

    monkeypatch.setattr(fine_tune, "fine_tune", spy)
    monkeypatch.setattr(checkpoint, "load_model", lambda *args: loads.append(args[0]) or load(*args))
    for room, expected in ((True, 1), (False, 3)):
        loads.clear()
        monkeypatch.setattr(processes, "host_memory_available", lambda size, room=room: room and size > 0)
        run_with(base, tmp_path / str(room))
        assert len(loads) == expected
        assert_same_result(finished, tmp_path / str(room))
    assert set(starts) == {json.loads((base / "model.json").read_text())["fingerprint"]}


# Changes -> the stages of iterations 1 and 2.
ALGORITHMS = {
    "direct": (dict(star__direct=True), ["filter fine_tune evaluate"] * 2),
    "no rationalization": (dict(star__rationalize="none"), ["sample filter fine_tune evaluate"] * 2),
    "rationalization from iteration 2": (
        dict(star__rationalize_from=2),
        ["sample filter fine_tune evaluate", "sample rationalize filter fine_tune evaluate"],
    ),
}


def test_the_inputs_of_a_stage_are_outputs_of_earlier_ones():
    for changes, expected in [*ALGORITHMS.values(), ({}, ["sample rationalize filter fine_tune evaluate"] * 2)]:
        config = small_config(base__path="none", **changes)
        for n, names in enumerate(expected, start=1):
            available: set[str] = set()
            listed = star.iteration_stages(config, n)
            assert " ".join(stage.name for stage in listed) == names
            for stage in listed:
                assert set(stage.inputs) <= available, (changes, n, stage)
                available |= set(stage.outputs)
        assert [stage.name for stage in star.iteration_stages(config, 0)] == ["evaluate"]


@pytest.mark.parametrize("name", ["direct", *(pytest.param(n, marks=pytest.mark.slow) for n in [*ALGORITHMS][1:])])
def test_an_algorithm_is_its_list_of_stages(name, base, tmp_path, monkeypatch):
    """Each stage runs once and leaves its outputs; started again, or after a lost file, only what is missing runs."""
    changes, expected = ALGORITHMS[name]
    ran: list[tuple[int, str]] = []
    real = star.iteration_stages

    def recording(config, n):
        def recorded(stage):
            return dataclasses.replace(
                stage, run=lambda iteration: (ran.append((iteration.n, stage.name)), stage.run(iteration))
            )

        return tuple(map(recorded, real(config, n)))

    monkeypatch.setattr(star, "iteration_stages", recording)
    run_dir = run_with(base, tmp_path, **changes)
    assert ran == [(0, "evaluate"), *((n, stage) for n, names in enumerate(expected, 1) for stage in names.split())]
    for n in (1, 2):
        for stage in real(small_config(base__path=str(base), **changes), n):
            assert all(run_dir.has(n, output) for output in stage.outputs), (n, stage)
    assert run_dir.has(2, "rationalizations.jsonl") == ("rationalize" in expected[1])
    ran.clear()
    run_with(base, tmp_path, **changes)
    assert ran == []
    run_dir.path(2, "eval_dev.json").unlink()
    run_with(base, tmp_path, **changes)
    assert ran == [(2, "evaluate")]
    if name == "direct":
        examples = kept(run_dir, 1)
        assert not run_dir.has(1, "samples.jsonl")
        assert len(examples) == 80 and {e.source for e in examples} == {"reference"}
        answers = {p.id: p.answer for p in small_config().make_task().problems("train")}
        assert all(e.completion == answers[e.problem_id] for e in examples)
    else:
        assert {e.source for e in kept(run_dir, 1)} == {"sampled"}
    if name == "rationalization from iteration 2":
        samples, hinted = completions(run_dir, 2), completions(run_dir, 2, "rationalizations")
        assert {h.problem_id for h in hinted} == {s.problem_id for s in samples if s.verdict != "right"}


def test_shots_precede_every_prompt_until_they_are_dropped(base, tmp_path, monkeypatch):
    """The tiny base cannot follow shots, so a stand-in answers: right with a hint, else right for every second problem.

    PromptEncoder alone renders prompts for sampling, and the tokenizer encodes each prompt once.
    """
    task, prefixes = small_config().make_task(), []
    everyone = [p for split in ("train", "dev") for p in task.problems(split)]
    answers = {task.render(p, hint=True): task.reference(p) for p in everyone}
    answers |= {task.render(p): task.reference(p) for p in everyone if p.id.endswith(("0", "2", "4", "6", "8"))}
    encode, encoded_texts, for_sampling, made = SymbolTokenizer.encode, [], [], []

    def body_of(prompt):
        return SymbolTokenizer(task.symbols).split_parts(prompt.prefix, prompt.body)[1]

    def answer(self, params, requests):
        prompts = [request.prompt.prompt for request in requests]
        prefixes.append({p.prefix for p in prompts})
        assert all(any(request.prompt is one for one in made) for request in requests[:10])
        for request in requests:
            assert request.prompt.body_ids == tuple(encode(self.tokenizer, body_of(request.prompt.prompt)))
        yield [(i, sampler.Sample(answers.get(p.body, ""), (0,), (-1.0,), False)) for i, p in enumerate(prompts)]

    make, render, renders = PromptEncoder._encode, PromptSet.prompt, []

    def rendering(self, task, problem, hint=False):
        renders.append((self.plain, problem.id, hint))
        return render(self, task, problem, hint)

    monkeypatch.setattr(PromptSet, "prompt", rendering)

    def encoding(self, prompt):
        before = len(encoded_texts)
        made.append(make(self, prompt))
        for_sampling.extend(encoded_texts[before:])  # training encodes the stored prompts once more
        return made[-1]

    monkeypatch.setattr(PromptEncoder, "_encode", encoding)
    monkeypatch.setattr(SymbolTokenizer, "encode", lambda self, text: encoded_texts.append(text) or encode(self, text))
    monkeypatch.setattr(sampler.Sampler, "stream", answer)
    run_dir = run_with(
        base, tmp_path, prompt__shots=2, star__few_shot_train=True, star__prompt_after_first_iteration=False,
        train__row_tokens=256,
    )  # fmt: skip
    # The base's evaluation, samples and rationalizations of iteration 1 with shots; everything later without.
    shots = [{text.count("</scratch>") for text in texts} for texts in prefixes]
    assert shots == [{2}, {2}, {2}, {0}, {0}, {0}, {0}]
    assert all("Target: " in text for text in prefixes[2]) and not any("Target: " in text for text in prefixes[1])
    for n, expected in ((1, 2), (2, 0)):
        examples = kept(run_dir, n)
        assert {e.source for e in examples} == {"sampled", "rationalized"}
        assert {e.prompt.count("</scratch>") for e in examples} == {expected}
        assert not any("Target: " in e.prompt for e in examples)
    assert len(renders) == len(set(renders)) == len(made), "a prompt was rendered or encoded twice"
    with_shots = [body_of(prompt.prompt) for prompt in made if prompt.prompt.prefix]
    assert sorted(with_shots) == sorted(text for text in for_sampling if text.startswith("\n\nInput"))


@pytest.mark.slow
def test_a_base_that_solves_nothing_ends_in_one_clear_line(tmp_path):
    base_stages = (dict(steps=1, learning_rate=0.0, gold=(1.0,)),)
    with pytest.raises(InputError, match="kept nothing"):
        star.run(small_config(base__stages=base_stages), tmp_path)


def test_a_base_of_other_sizes_is_refused(base, tmp_path):
    with pytest.raises(InputError, match="d_mlp 128"):
        run_with(base, tmp_path, model__d_mlp=128)


def test_reports_hold_every_field_of_the_contract(finished):
    result = json.loads((finished / "iter_001" / "eval_dev.json").read_text())
    for key in ("iteration", "split", "n", "accuracy", "ci95", "by_category", "unparsable", "truncated"):
        assert key in result
    done = json.loads((finished / "iter_001" / "finetune.json").read_text())
    assert done["steps"] == 6 and {f.name for f in dataclasses.fields(fine_tune.Report)} <= done.keys()


def test_the_phases_of_an_iteration_are_logged_and_are_all_of_its_time(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    phases = [line for line in lines if line["stage"] == "phases"]
    assert [line["iteration"] for line in phases] == [0, 1, 2]
    for before, line in itertools.pairwise(phases):
        seconds = {k: v for k, v in line.items() if k not in ("time", "stage", "iteration", "step", "total")}
        names = {"sample", "rationalize", "filter", "pack", "load", "fine_tune", "save", "evaluate", "report"}
        assert names <= set(seconds)
        assert sum(seconds.values()) == pytest.approx(line["total"], abs=0.02)
        assert line["total"] == pytest.approx(line["time"] - before["time"], abs=0.1)


def test_killed_while_weights_are_saved_it_trains_and_evaluates_again(base, finished, tmp_path, monkeypatch):
    """The evaluation has sampled by then, from weights that are not on disk: its completions must not outlive them."""
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
        samples_of_lost_weights = tmp_path / f"iter_00{n}/eval_dev.jsonl"
        assert samples_of_lost_weights.exists() and not (tmp_path / f"iter_00{n}/eval_dev.json").exists()
        assert not (tmp_path / f"iter_00{n}/params/model.json").exists()
        RunDirectory(tmp_path).write_text(samples_of_lost_weights, "of weights that are lost\n")
    run_with(base, tmp_path)
    assert_same_result(finished, tmp_path)


def losses(workdir: Path) -> dict[tuple[int, int], float]:
    """(iteration, step) -> loss."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(v["iteration"], v["step"]): v["loss"] for v in lines if v["stage"] == "fine_tune"}


@pytest.mark.slow
def test_on_other_devices_it_continues_with_the_same_problems_and_data(base, tmp_path, monkeypatch):
    """Started on eight devices, continued on two: the same rows in the same order, losses within rounding."""
    changes = dict(star__iterations=1, star__problems_per_iteration=40, train__checkpoint_every=2, train__log_every=1)
    config = small_config(base__path=str(base), mesh__data=-1, **changes)
    star.run(config, tmp_path / "whole")

    def die(state_step):
        if state_step >= 5:
            raise KeyboardInterrupt

    real = fine_tune.train_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            fine_tune, "train_step", lambda m, o, state, *rest: (die(int(state.step)), real(m, o, state, *rest))[1]
        )
        star.run(config, tmp_path / "moved")
    before = losses(tmp_path / "moved")
    meshes = setup.meshes
    monkeypatch.setattr(setup, "meshes", lambda config, spec: meshes(config, spec, jax.devices()[:2]))
    star.run(config, tmp_path / "moved")
    whole, moved = losses(tmp_path / "whole"), losses(tmp_path / "moved")
    assert max(step for _, step in before) < 6 and whole.keys() == moved.keys()
    assert len(whole) == 6 and whole != moved, "the same devices?"
    np.testing.assert_allclose([*whole.values()], [moved[key] for key in whole], rtol=1e-5)
    for name in ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl", "kept.safetensors"):
        assert (tmp_path / f"moved/iter_001/{name}").read_bytes() == (tmp_path / f"whole/iter_001/{name}").read_bytes()


def test_samples_of_other_data_are_never_kept(finished, tmp_path):
    """Stopped after sampling and continued with --allow_changes and other problems: refused, then as advised."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(workdir / "iter_002")
    for pattern in ("rationalizations.*", "kept.*", "*.json", "eval_dev.*", "DONE"):
        for path in (workdir / "iter_001").glob(pattern):
            path.unlink()
    shutil.rmtree(workdir / "iter_001" / "params")
    samples = (workdir / "iter_001/samples.jsonl").read_bytes()
    other = small_config(task__seed=1, star__iterations=1)
    with pytest.raises(InputError, match=r"iter_001/samples\.jsonl: .*another question.*delete samples\.jsonl"):
        star.run(other, workdir, allow_changes=True)
    assert (workdir / "iter_001/samples.jsonl").read_bytes() == samples
    (workdir / "iter_001/samples.jsonl").unlink()
    star.run(other, workdir, allow_changes=True)
    problems = {problem.key: problem for problem in other.make_task().problems("train")}
    examples = kept(RunDirectory(workdir), 1)
    assert examples and all(problems[example.problem_key].question in example.prompt for example in examples)
    run = run_data.read_run(workdir)
    assert run_data.train_problems(run).keys() == problems.keys() | {
        problem.key for problem in small_config().make_task().problems("train")
    }
    assert run.iterations[0].evaluation.problem_set != run.iterations[1].evaluation.problem_set
    assert run.best == 1  # the base was evaluated on other problems
