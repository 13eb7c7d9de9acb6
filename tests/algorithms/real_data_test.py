"""The command line on the real files: a small GPT-J with random weights goes through two iterations of each task.

Such a model never reasons. Its head's bias leaves a few tokens, so that at a temperature of 1 some completions reach
the right answer by chance, and everything after that can be checked against the raw files.
"""

import collections
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import pytest

from star_jax import config, tokenizers
from star_jax.evaluation import statistics
from star_jax.models import families
from star_jax.records import Completion, Example, read_jsonl
from star_jax.tokenizers import base
from star_jax.weights.sources import hf
from tests.support.models import numpy_params

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
SIZES = config.ModelConfig(
    n_layers=2, d_model=16, n_heads=2, d_mlp=32, rotary_dim=4, vocab_size=50400, max_positions=2048, architecture="gptj"
)
# task -> {token: how often it is sampled}; a right completion of the task needs the first
TOKENS = {
    "commonsense_qa": {" A": 2, " B": 2, " C": 2, " D": 2, " E": 2, "\n": 10},
    "gsm8k": {"####": 16, "\n\n": 2, **{f" {n}": 1 for n in (4, 5, 6, 10)}},
}
RULES = {"commonsense_qa": "lenient", "gsm8k": "strict"}  # the letters have no brackets
SAMPLES_PER_PROBLEM = {"commonsense_qa": 4, "gsm8k": 6}
PROBLEMS = 50


def call(module: str, *args: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", f"star_jax.{module}", *args]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def lead_on(params, words: base.Tokenizer, before: Iterable[str], after: Iterable[str], bit: int) -> None:
    """Makes one of `after` likely after each of `before`: their direction in the embedding, which the head reads.

    Without it a right answer, one of a few numbers after "####", would take thousands of samples.
    """
    direction_D = np.where((np.arange(SIZES.d_model) >> bit) & 1, 1.0, -1.0).astype(np.float32)
    params["final_norm"] = {"scale": np.ones(SIZES.d_model, np.float32), "bias": np.zeros(SIZES.d_model, np.float32)}
    for text in before:
        params["embedding"]["embedding"][words.encode(text)[0]] = 5 * direction_D
    for text in after:
        params["head"]["kernel"][:, words.encode(text)[0]] += 0.5 * direction_D


@pytest.fixture(scope="module", params=sorted(TOKENS))
def run(request, shared_dir, tmp_path_factory) -> tuple[str, Path, Path]:
    """(task, folder of its real files, the finished run)."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    words = tokenizers.load_directory(shared_dir / "data" / "gpt2")
    params = numpy_params(SIZES, scale=0.05)
    bias_V = np.full(SIZES.vocab_size, -8.0, np.float32)
    bias_V[50257:] = 50.0  # padding of the vocabulary, which must never be sampled
    for text, share in TOKENS[task].items():
        (token,) = words.encode(text)
        bias_V[token] = 6.0 + np.log(share)
    params["head"]["bias"] = bias_V
    if task == "gsm8k":
        lead_on(params, words, ("####",), [text for text in TOKENS[task] if text[0] == " "], 0)
        lead_on(params, words, [text for text in TOKENS[task] if text[0] == " "], ("\n\n",), 1)
    hf.save(folder / "base", families.spec_of(SIZES), jax.tree.map(np.asarray, params), words, np.dtype(np.float32))
    data = shared_dir / "data" / task
    call(
        "main", f"--config=configs/{task}.py", f"--workdir={folder / 'run'}", f"--config.base.path={folder / 'base'}",
        f"--config.task.data_dir={data}", "--config.star.iterations=2", "--config.star.rationalize_from=1",
        f"--config.star.problems_per_iteration={PROBLEMS}", f"--config.evaluation.problems={PROBLEMS}",
        f"--config.star.samples_per_problem={SAMPLES_PER_PROBLEM[task]}", "--config.sampling.temperature=1.0",
        "--config.sampling.slots=56", "--config.sampling.queue=128", "--config.sampling.max_new_tokens=12",
        "--config.star.steps=3", "--config.train.batch_rows=1", "--config.prompt.shots=2", "--config.mesh.data=1",
        "--config.evaluation.report_split=", f"--config.task.answer_rule={RULES[task]}",
    )  # fmt: skip
    return task, data, folder / "run"


def official(task: str, data: Path) -> dict[str, tuple[str, str]]:
    """id -> (the problem as the original writes it, its answer), from the raw file."""
    found = {}
    name = {"commonsense_qa": "train_rand_split.jsonl", "gsm8k": "train.jsonl"}[task]
    for number, line in enumerate((data / name).read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        if task == "gsm8k":
            answer = row["answer"].split("####")[1].strip().replace(",", "")
            found[f"train-{number}"] = (f"Q: {row['question']}\nA:", answer)
        else:
            listed = "".join(f"({c['label'].lower()}) {c['text']}\n" for c in row["question"]["choices"])
            text = f"Q: {row['question']['stem']}\nAnswer Choices:\n{listed}A:"
            found[row["id"]] = (text, row["answerKey"].lower())
    return found


def is_right(task: str, text: str, answer: str) -> bool | None:
    """Whether a completion of these few tokens is right; None where that takes a real answer reader."""
    if task == "commonsense_qa":
        return text.split() == [answer.upper()]
    if not re.fullmatch(r"( \d+)*(#### \d+)?", text):
        return None
    return text.rpartition(" ")[0].endswith("####") and text.rpartition(" ")[2] == answer


def files(run: Path, n: int, name: str, kind: type) -> list:
    return list(read_jsonl(kind, run / f"iter_{n:03d}" / name))


def test_every_problem_is_sampled_and_judged(run):
    task, data, directory = run
    problems = official(task, data)
    for n in (1, 2):
        samples = files(directory, n, "samples.jsonl", Completion)
        hinted = files(directory, n, "rationalizations.jsonl", Completion)
        ids = {s.problem_id for s in samples}
        assert len(ids) == PROBLEMS and ids <= problems.keys()
        assert collections.Counter(s.problem_id for s in samples) == dict.fromkeys(ids, SAMPLES_PER_PROBLEM[task])
        solved = {s.problem_id for s in samples if s.verdict == "right"}
        assert {h.problem_id for h in hinted} == ids - solved
        for drawn in [*samples, *hinted]:
            right = is_right(task, drawn.text, problems[drawn.problem_id][1])
            assert right is None or drawn.verdict == "truncated" or (drawn.verdict == "right") == right, drawn
        assert 0 < len(solved) < PROBLEMS, "the tokens' shares make this test empty"


def test_kept_is_hint_free_and_counted(run):
    task, data, directory = run
    problems = official(task, data)
    for n in (1, 2):
        kept = files(directory, n, "kept.jsonl", Example)
        counts = json.loads((directory / f"iter_{n:03d}" / "filter.json").read_text())
        samples = files(directory, n, "samples.jsonl", Completion)
        hinted = files(directory, n, "rationalizations.jsonl", Completion)
        expected = {c.problem_id for c in [*samples, *hinted] if c.verdict == "right"}
        assert sorted(e.problem_id for e in kept) == sorted(expected) and counts["kept"] == len(kept)
        for verdict in ("right", "wrong", "unparsable", "truncated"):
            assert counts[verdict] == sum(s.verdict == verdict for s in samples)
        for example in kept:
            text, answer = problems[example.problem_id]
            assert example.prompt.endswith(text) and is_right(task, example.completion, answer) is not False
            shots = example.prompt.removesuffix(text)
            assert bool(shots) == (task == "commonsense_qa")  # few_shot_train
            assert shots == "" or shots.count("Answer Choices:") == 2


def test_the_report_and_the_evaluations_agree_with_the_completions(run):
    task, _, directory = run
    for n in (0, 1, 2):
        result = json.loads((directory / f"iter_{n:03d}" / "eval_dev.json").read_text())
        completions = files(directory, n, "eval_dev.jsonl", Completion)
        assert result["n"] == len(completions) == PROBLEMS
        right = sum(c.verdict == "right" for c in completions)
        assert result["accuracy"] == right / PROBLEMS
        assert result["ci95"] == [round(x, 4) for x in statistics.wilson(right, PROBLEMS)]
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert task in page and len(page) > 20_000
    lengths = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert {"lengths_train", "lengths_dev"} <= {line["stage"] for line in lengths}


def test_its_model_can_be_sampled_voted_on_and_exported(run, tmp_path):
    _, _, directory = run
    out = call("evaluate", f"--workdir={directory}", "--iteration=2", "--samples=3", "--split=test", "--temperature=1")
    assert "majority" in out and "pass@3" in out
    call(
        "convert", f"--source={directory / 'iter_002' / 'params'}", "--source_format=orbax",
        f"--target={tmp_path / 'hf'}", "--target_format=hf",
    )  # fmt: skip
    assert {p.name for p in (tmp_path / "hf").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert hf.HfSource(tmp_path / "hf").spec == families.spec_of(SIZES)
