"""Accuracy, intervals and votes against brute force; resuming and choosing by files."""

import contextlib
import dataclasses
import itertools
import json
import re

import numpy as np
import pytest

from star_jax import tasks
from star_jax.config import Config, default, from_dict
from star_jax.errors import InputError
from star_jax.evaluation import accuracy, generate, statistics, stored_run
from star_jax.evaluation.best import best_iteration
from star_jax.evaluation.judging import SamplingPass, judge
from star_jax.evaluation.prompts import PromptEncoder
from star_jax.records import Completion, Problem, from_json, natural_order, to_json
from star_jax.runs.run_directory import RunDirectory
from star_jax.sampling.sampler import Sample
from star_jax.tasks.arithmetic import Arithmetic
from star_jax.tasks.few_shot import PromptSet
from star_jax.tokenizers.simple import SymbolTokenizer

TASK = Arithmetic(train_per_length=2, max_digits=2)


def completion(problem: Problem, sample_index: int, answer: str | None, verdict: str) -> Completion:
    return Completion(
        problem.id, 1, sample_index, False, text="", answer=answer, verdict=verdict, consistent=None,
        log_probability=-1.0, tokens=3, seed="s", problem_fingerprint=problem.fingerprint,
    )  # fmt: skip


def random_completions(rng: np.random.Generator, samples: int) -> tuple[list[Problem], list[Completion]]:
    """Seventeen sums of three categories; answers are sampled from four, some truncated or without one."""
    problems = [Problem(f"p{i}", "", "1 0", category=str(rng.integers(3))) for i in range(17)]
    completions = []
    for problem in problems:
        for sample_index in range(samples):
            answer = rng.choice(["1 0", "0", "2", "9 9"])
            verdict = "right" if answer == "1 0" else "wrong"
            completions.append(completion(problem, sample_index, str(answer), verdict))
            if rng.random() < 0.3:
                other = [dict(verdict="truncated"), dict(verdict="unparsable", answer=None)][rng.integers(2)]
                completions[-1] = dataclasses.replace(completions[-1], **other)
    return problems, completions


def test_score_counts_by_category():
    for seed in range(20):
        problems, completions = random_completions(np.random.default_rng(seed), samples=1)
        result = accuracy.score(problems, completions)
        right = [c.verdict == "right" for c in completions]
        assert result["accuracy"] == sum(right) / 17 and result["n"] == 17
        assert [result[v] for v in ("right", "wrong", "unparsable", "truncated")] == [
            sum(c.verdict == v for c in completions) for v in ("right", "wrong", "unparsable", "truncated")
        ]
        shares = []
        for name in {p.category for p in problems}:
            own = [r for r, p in zip(right, problems, strict=True) if p.category == name]
            shares.append(sum(own) / len(own))
            assert (result["by_category"][name]["accuracy"], result["by_category"][name]["n"]) == (shares[-1], len(own))
            assert result["by_category"][name]["ci95"] == [round(x, 4) for x in statistics.wilson(sum(own), len(own))]
        assert result["mean_of_categories"] == pytest.approx(np.mean(shares))


def test_the_lenient_reader_has_a_figure_of_its_own_and_selects_nothing():
    task = tasks.make("commonsense_qa")
    problems = [Problem(f"p{i}", f"{i}?", "b", choices=("river", "blotter", "ink")) for i in range(5)]
    texts = ["So (b).", "It is B, a blotter.", "It is B, a river.", "So (a).", "So (b)."]
    samples = [Sample(text, (), (), truncated=i == 4) for i, text in enumerate(texts)]
    sampling_pass = SamplingPass("evaluate", seed=0, iteration=0)
    pairs = list(zip(problems, samples, strict=True))
    judged = [judge(task, problem, sample, sampling_pass, 0) for problem, sample in pairs]
    assert [c.verdict for c in judged] == ["right", "unparsable", "unparsable", "wrong", "truncated"]
    assert [c.right_leniently for c in judged] == [True, True, False, False, False]
    result = accuracy.score(problems, judged)
    assert (result["accuracy"], result["right"]) == (0.2, 1)
    assert result["lenient"] == {"n": 5, "accuracy": 0.4, "ci95": [round(x, 4) for x in statistics.wilson(2, 5)]}
    judged = [judge(task.lenient(), problem, sample, sampling_pass, 0) for problem, sample in pairs]
    assert [c.verdict for c in judged] == ["right", "right", "wrong", "wrong", "truncated"]
    assert "lenient" not in accuracy.score(problems, judged)


def test_majority_takes_the_earliest_of_the_commonest():
    for seed in range(20):
        problems, completions = random_completions(np.random.default_rng(seed), samples=5)
        voted, solved = 0, 0
        for problem in problems:
            own = [c for c in completions if c.problem_id == problem.id]
            votes = [c.answer for c in own if c.answer and c.verdict != "truncated"]
            most = max((votes.count(v) for v in votes), default=0)
            voted += next((v == "1 0" for v in votes if votes.count(v) == most), False)
            solved += any(c.verdict == "right" for c in own)
        result = accuracy.vote(TASK, problems, completions)
        assert result["majority"]["accuracy"] == voted / 17
        assert result["pass@5"]["accuracy"] == solved / 17
        single = sum(c.verdict == "right" for c in completions) / len(completions)
        assert result["pass@1"]["accuracy"] == pytest.approx(single)
        assert sum(line["n"] for line in result["majority_by_category"].values()) == 17


def test_pass_at_k_is_the_share_of_the_subsets_that_hold_a_right_sample():
    for samples, right in [(1, 0), (1, 1), (4, 1), (6, 2), (7, 7), (8, 0)]:
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations([i < right for i in range(samples)], k))
            share = sum(map(any, subsets)) / len(subsets)
            assert accuracy.pass_at(k, samples, right) == pytest.approx(share), (samples, right, k)


class StubSampler:
    """Samples the last digit of the request's index, in chunks of three; after `chunks` of them it is killed."""

    def __init__(self, chunks: int = 1000) -> None:
        self.chunks, self.seeds, self.texts = chunks, [], []

    def stream(self, requests):
        self.seeds += [request.seed for request in requests]
        self.texts += [request.prompt.prompt.text for request in requests]
        for start in range(0, len(requests), 3):
            if not self.chunks:
                raise KeyboardInterrupt
            self.chunks -= 1
            indices = range(start, min(start + 3, len(requests)))
            yield [
                (i, Sample(f"<scratch>\n</scratch>\n{len(requests[i].seed) % 10}", (1, 2), (-0.25, -0.25), i == 1))
                for i in indices
            ]


PROMPTS = PromptEncoder(TASK, SymbolTokenizer((*Arithmetic.symbols, "shots")), PromptSet("shots\n\n"))
SAMPLING_PASS = SamplingPass("sample", seed=7, iteration=2, samples_per_problem=2)


def complete(workdir, sampler) -> tuple[list[Completion], generate.Throughput | None]:
    run_dir = RunDirectory(workdir)
    path = run_dir.path(2, "samples.jsonl")
    return generate.generate(run_dir, path, sampler.stream, PROMPTS, TASK.problems("train"), SAMPLING_PASS)


def test_only_missing_completions_are_sampled(tmp_path):
    """Killed after two chunks, with half a line after them: the second call samples the other two, a third none."""
    uninterrupted, _ = complete(tmp_path / "uninterrupted", StubSampler())
    killed, workdir = StubSampler(chunks=2), tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        complete(workdir, killed)
    part = workdir / "iter_002" / "samples.jsonl.part"
    with open(part, "a") as file:
        file.write('{"problem_id": "train-2-0')
    second = StubSampler()
    resumed, throughput = complete(workdir, second)
    assert len(killed.seeds) == 8 and second.seeds == killed.seeds[6:]
    assert [c.seed for c in resumed] == killed.seeds and len(set(killed.seeds)) == 8
    assert {c.seed for c in uninterrupted} == set(killed.seeds)
    figures = throughput.figures()
    assert (figures["problems"], figures["tokens"]) == (2, 4) and figures["right"] == throughput.right
    assert not part.exists()
    third = StubSampler()
    assert complete(workdir, third) == (resumed, None)
    assert third.seeds == [] and RunDirectory(workdir).read_records(Completion, part.with_suffix("")) == resumed


def test_stored_completions_are_used_for_their_problems_only(tmp_path):
    """The data change after sampling, finished or not: one line says what, and nothing is sampled or lost."""
    problems = TASK.problems("train")
    other = dataclasses.replace(problems[1], answer="9 9")
    changes = {
        "has another question, choices or answer": [problems[0], other, *problems[2:]],
        "is not among the problems any more": problems[1:],
        "holds 8 completions, but 5 problems": [*problems, dataclasses.replace(problems[0], id="new")],
    }
    for name, chunks in (("finished", 1000), ("unfinished", 2)):
        workdir = tmp_path / name
        with contextlib.suppress(KeyboardInterrupt):
            complete(workdir, StubSampler(chunks))
        run_dir = RunDirectory(workdir)
        before = {path: path.read_bytes() for path in workdir.rglob("*.jsonl*")}
        stored = "samples.jsonl" if name == "finished" else "samples.jsonl.part"
        for reason, changed in changes.items():
            if name == "unfinished" and reason.startswith("holds"):
                continue  # the new problem is sampled, too
            sampler = StubSampler()
            with pytest.raises(InputError, match=rf"{re.escape(stored)}: .*{reason}.*delete {re.escape(stored)} "):
                generate.generate(
                    run_dir, run_dir.path(2, "samples.jsonl"), sampler.stream, PROMPTS, changed, SAMPLING_PASS
                )
            assert not sampler.seeds and before == {path: path.read_bytes() for path in workdir.rglob("*.jsonl*")}
        fewer = dataclasses.replace(SAMPLING_PASS, samples_per_problem=1)
        with pytest.raises(InputError, match="more than the 1 samples"):
            generate.generate(run_dir, run_dir.path(2, "samples.jsonl"), None, PROMPTS, problems, fewer)


def test_a_sample_twice_in_place_of_another_is_refused(tmp_path):
    completions, _ = complete(tmp_path, StubSampler())
    run_dir, path = RunDirectory(tmp_path), tmp_path / "iter_002/samples.jsonl"
    run_dir.write_records(path, [*completions[:-1], completions[0]])
    with pytest.raises(InputError, match=r"sample 0 of problem .* is there twice; .*delete samples\.jsonl"):
        complete(tmp_path, StubSampler())
    problems = TASK.problems("train")
    for other in ([*completions[:-1], completions[0]], completions[:-1]):
        for figures in (lambda c: accuracy.score(problems, c), lambda c: accuracy.vote(TASK, problems, c)):
            with pytest.raises(ValueError, match="not those of the problems"):
                figures(other)


def test_completions_of_another_pass_are_refused(tmp_path):
    """A folder was renamed, or copied from another run, or the seed has changed: complete and unfinished files."""
    own, _ = complete(tmp_path, StubSampler())
    run_dir, path, problems = RunDirectory(tmp_path), tmp_path / "iter_002/samples.jsonl", TASK.problems("train")
    for change in (dict(seed=8), dict(iteration=3), dict(name="evaluate"), dict(hinted=True)):
        other = dataclasses.replace(SAMPLING_PASS, **change)
        keys = {(problem.id, index): other.key(problem, index) for problem in problems for index in range(2)}
        foreign = [dataclasses.replace(c, seed=keys[c.problem_id, c.sample_index]) for c in own]
        for stored in (foreign, [*own[:-1], foreign[-1]]):
            run_dir.write_records(path, stored)
            with pytest.raises(
                InputError, match=r"random key .*: in another run or iteration; .*delete samples\.jsonl"
            ):
                complete(tmp_path, StubSampler())
            path.unlink()
            run_dir.unfinished_stage(path).append(stored[-1:])
            with pytest.raises(InputError, match=r"random key .*: in another run .*delete samples\.jsonl\.part"):
                complete(tmp_path, StubSampler())
            run_dir.unfinished_stage(path).delete()
    run_dir.write_records(path, own)
    assert complete(tmp_path, StubSampler())[0] == own


def test_completions_of_an_earlier_version_match_no_problem(tmp_path):
    complete(tmp_path, StubSampler())
    run_dir, path = RunDirectory(tmp_path), tmp_path / "iter_002/samples.jsonl"
    old = [dataclasses.replace(c, problem_fingerprint="") for c in run_dir.read_records(Completion, path)]
    run_dir.write_records(path, old)
    with pytest.raises(InputError, match="has no fingerprint, since an earlier version"):
        complete(tmp_path, StubSampler())


def test_iterations_evaluated_on_other_problems_are_not_compared():
    before, after = accuracy.problem_set([Problem("p", "?", "1")]), accuracy.problem_set([Problem("p", "?", "2")])
    assert before != after
    sets = {0: before, 1: before, 2: after, 3: after}
    assert best_iteration({0: 0.1, 1: 0.9, 2: 0.2, 3: 0.2}, sets) == 2
    assert best_iteration({0: 0.1, 1: 0.9}, {0: before, 1: before}) == 1
    problems = TASK.problems("train")
    assert accuracy.problem_set(problems) == accuracy.problem_set(problems[::-1])


def test_a_completion_has_its_prompt_its_seed_and_its_verdict(tmp_path):
    sampler = StubSampler()
    completions, _ = complete(tmp_path, sampler)
    problems = [p for p in TASK.problems("train") for _ in range(2)]
    assert sampler.texts == ["shots\n\n" + TASK.render(p) for p in problems]
    assert sampler.seeds == [f"7/sample/2/{p.id}/{i % 2}/0" for i, p in enumerate(problems)]
    assert [(c.problem_id, c.sample_index, c.iteration) for c in completions] == [
        (p.id, i % 2, 2) for i, p in enumerate(problems)
    ]
    assert [c.verdict == "truncated" for c in completions] == [i == 1 for i in range(8)]
    for c, p in zip(completions, problems, strict=True):
        assert c.verdict in ("truncated", "right" if c.answer == p.answer else "wrong")
        assert (c.tokens, c.log_probability, c.hinted) == (2, -0.5, False)
        assert (c.token_ids, c.token_log_probs) == ((1, 2), (-0.25, -0.25))


def test_a_prompt_is_rendered_and_encoded_once(monkeypatch):
    """Twice the same problem, with and without hint: two bodies and one prefix for each prompt text."""
    texts, encode = [], SymbolTokenizer.encode
    monkeypatch.setattr(SymbolTokenizer, "encode", lambda self, text: texts.append(text) or encode(self, text))
    task = Arithmetic(train_per_length=2, max_digits=2)
    tokenizer = SymbolTokenizer(PROMPTS.tokenizer.symbols)  # one that has not encoded anything yet
    prompts = PromptEncoder(task, tokenizer, PromptSet("shots\n\n", "shots shots\n\n"))
    problems = task.problems("train")
    for _ in range(3):
        for problem in problems:
            for hinted in (False, True):
                encoded = prompts(problem, hinted)
                prefix, body = prompts.tokenizer.split_parts(encoded.prompt.prefix, encoded.prompt.body)
                assert encoded.prompt == prompts.prompt_set.prompt(task, problem, hinted)
                assert encoded.prefix_ids == tuple(encode(PROMPTS.tokenizer, prefix))
                assert encoded.body_ids == tuple(encode(PROMPTS.tokenizer, body))
    assert len(texts) == len(set(texts)) == 2 + 2 * len(problems)


def a_run(workdir, accuracies) -> RunDirectory:
    """A run's directory with the files that choosing an iteration reads."""
    run_dir = RunDirectory(workdir)
    values = from_dict(_config()).to_dict()
    run_dir.open(values)
    for n, value in enumerate(accuracies):
        run_dir.write_json(run_dir.path(n, "eval_dev.json"), {"iteration": n, "split": "dev", "accuracy": value})
        (run_dir.path(n, "params") if n else run_dir.workdir / "base").mkdir()
        ((run_dir.path(n, "params") if n else run_dir.workdir / "base") / "model.json").write_text("{}")
    return run_dir


def _config():
    config = default("arithmetic")
    config.base.path = "somewhere"
    return config


def test_best_iteration_is_the_earliest_of_equals(tmp_path):
    for accuracies, best in [([0.1, 0.5, 0.5, 0.2], 1), ([0.9, 0.1], 0), ([0.0, 0.1, 0.11], 2)]:
        workdir = tmp_path / str(best)
        run_dir = a_run(workdir, accuracies)
        assert stored_run.best_iteration(run_dir, "dev") == best
        opened = stored_run.open_iteration(str(workdir), "best")
        assert opened.number == best and isinstance(opened.config, Config)
        assert opened.directory == (run_dir.path(best, "params") if best else workdir / "base")
        assert stored_run.open_iteration(str(workdir), "base").directory == workdir / "base"
        assert stored_run.open_iteration(str(workdir), "1").directory == run_dir.path(1, "params")


def test_opening_an_iteration_reports_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        stored_run.open_iteration(str(tmp_path / "nowhere"), "best")
    a_run(tmp_path / "new", [])
    with pytest.raises(InputError, match="no iteration has been evaluated"):
        stored_run.open_iteration(str(tmp_path / "new"), "best")
    a_run(tmp_path / "run", [0.1, 0.2])
    for iteration in ("first", "-1", "1.5", "", "²"):
        with pytest.raises(InputError, match="--iteration"):
            stored_run.open_iteration(str(tmp_path / "run"), iteration)
    with pytest.raises(InputError, match="no complete model"):
        stored_run.open_iteration(str(tmp_path / "run"), "7")
    broken = json.loads((tmp_path / "run" / "config.json").read_text()) | {"sead": 1}
    (tmp_path / "run" / "config.json").write_text(json.dumps(broken))
    with pytest.raises(InputError, match=r"config\.json: damaged or edited.*delete its entry in .*checksums\.json"):
        stored_run.open_iteration(str(tmp_path / "run"), "best")
    (tmp_path / "run" / "checksums.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: .*did you mean 'seed'"):
        stored_run.open_iteration(str(tmp_path / "run"), "1")


def test_prompts_and_problems_of_a_run():
    """Shots in every iteration, or in the first alone; the first so many problems of a split."""
    values = _config()
    values.evaluation.problems = 3
    config = from_dict(values)
    assert generate.prompts_of(config, TASK, 1) == generate.prompts_of(config, TASK, 2) == PromptSet()
    assert generate.split_problems(config, TASK, "dev") == TASK.problems("dev")[:3]
    with pytest.raises(InputError, match="split"):
        generate.split_problems(config, TASK, "validation")


def answered(answer, right: bool, problem: Problem) -> Completion:
    return completion(problem, 0, answer, "right" if right else "wrong")


def test_a_vote_is_the_same_from_memory_and_from_disk():
    """A letter next to another choice's name is wrong; read back, the letter alone is left."""
    problem = Problem("p", "?", "b", choices=("inkwell", "blotter"))
    task = tasks.make("commonsense_qa")
    for texts, expected in (
        (["the answer is inkwell (b)."] * 4, 0.0),
        (["the answer is inkwell (b).", *["the answer is blotter (b)."] * 3], 1.0),
        (["(a).", "(b).", "(b)."], 1.0),
    ):
        answers = [task.parse(text) for text in texts]
        completions = [answered(a, task.grade(problem, a), problem) for a in answers]
        read_back = [from_json(Completion, to_json(c)) for c in completions]
        for votes in (completions, read_back):
            assert accuracy.vote(task, [problem], votes)["majority"]["accuracy"] == expected


def test_a_vote_counts_answers_and_not_their_spellings():
    task, problem = tasks.make("jsonl"), Problem("p", "?", "72")
    answers = ["5", "5", "72", "$72", "72.0"]
    completions = [answered(a, task.grade(problem, a), problem) for a in answers]
    assert accuracy.vote(task, [problem], completions)["majority"]["accuracy"] == 1.0


def test_categories_are_in_the_order_of_their_numbers():
    names = ["10 digits", "2 digits", "1 digit", "8+ steps", "new", ""]
    assert sorted(names, key=natural_order) == ["", "new", "1 digit", "2 digits", "8+ steps", "10 digits"]
