"""`main --write_out=N` prints what will be sent to the model; `main --limit=N` tries a run on a few problems."""

import dataclasses
import sys

import jax
import pytest

from star_jax import config, main
from star_jax.algorithms import setup
from star_jax.algorithms.write_out import write_out
from star_jax.cli.config_flags import run_name
from star_jax.config import ModelConfig
from star_jax.errors import InputError
from star_jax.evaluation import stored_run
from star_jax.evaluation.generate import prompts_of, split_problems
from star_jax.models import families
from star_jax.weights import checkpoint
from tests.support.commands import ROOT
from tests.support.models import numpy_params
from tests.support.runs import small_config
from tests.support.tokenizers import LLAMA3, trained


def test_whole_prompts_are_printed_without_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = f"{ROOT}/configs/arithmetic.py"
    options = ("--config.base.path=no/such/model", "--config.prompt.shots=2", "--limit=2", "--write_out=3")
    monkeypatch.setattr(sys, "argv", ["main", f"--config={file}", *options])
    main.main()
    printed = capsys.readouterr().out
    values = config.default("arithmetic")
    values.base.path, values.prompt.shots = "no/such/model", 2
    typed = config.from_dict(values)
    task, expected = typed.make_task(), ""
    for problem in task.problems("train")[:2]:
        for title, text in (
            ("the prompt", prompts_of(typed, task, 1).plain + task.render(problem)),
            ("the prompt with the answer as a hint", prompts_of(typed, task, 1).hinted + task.render(problem, True)),
            ("the reference, a right completion", task.reference(problem)),
        ):
            expected += f"===== {problem.id}: {title} =====\n{text}\n"
    assert printed == expected and not list(tmp_path.iterdir())
    for changes in ({"rationalize": "none"}, {"direct": True}):
        values.star.update({"rationalize": "failed", "direct": False, **changes})
        titles = [text.partition(": ")[2] for text in write_out(config.from_dict(values), 1) if text.startswith("===")]
        assert titles == ["the prompt =====", "the reference, a right completion ====="]


def test_the_prompts_of_a_chat_model_are_its_template_s(tmp_path, monkeypatch):
    tokenizer = trained("llama3", LLAMA3)
    sizes = ModelConfig(1, 32, 2, 64, 8, tokenizer.vocab_size + 3, max_positions=512, scan_unroll=1)
    params = jax.tree.map(jax.numpy.asarray, numpy_params(sizes))
    checkpoint.save_model(tmp_path / "base", families.build(sizes), params, tokenizer)
    monkeypatch.setattr(checkpoint, "load_model", None)
    (tmp_path / "q.jsonl").write_text('{"question": "What barks?", "answer": "a dog"}\n')
    values = config.default("jsonl")
    values.task.train, values.base.path = str(tmp_path / "q.jsonl"), str(tmp_path / "base")
    values.prompt.format = "chat"
    _, plain, _, hinted, _, reference = write_out(config.from_dict(values), 1)
    end = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert plain.endswith(f"Q: What barks?{end}") and hinted.endswith(f"Q: What barks? (a dog){end}")
    assert reference == "#### a dog"


def test_a_limit_cuts_every_split_and_cannot_change_in_a_run(tmp_path):
    limited = small_config(limit=5, evaluation__report_split="test")
    run = setup.open_run(limited, tmp_path)
    run.close()
    problems = {"train": run.train_problems, **run.eval_problems}
    assert {split: len(values) for split, values in problems.items()} == {"train": 5, "dev": 5, "test": 5}
    whole = small_config().make_task()
    assert all(values == whole.problems(split)[:5] for split, values in problems.items())
    for limit, message in ((6, "limit was 5, now 6"), (0, "limit was 5, now 0")):
        with pytest.raises(InputError, match=message):
            setup.open_run(dataclasses.replace(limited, limit=limit), tmp_path)


def test_an_evaluation_honours_the_limit_of_its_run(tmp_path, monkeypatch):
    setup.open_run(small_config(limit=5), tmp_path).close()
    monkeypatch.setattr(stored_run.checkpoint, "exists", lambda directory: True)
    stored = stored_run.open_iteration(tmp_path, "0")
    assert [len(split_problems(stored.config, stored.task, split)) for split in ("dev", "test")] == [5, 5]
    fewer = dataclasses.replace(stored.config, evaluation=config.EvaluationConfig(problems=3))
    assert len(split_problems(fewer, stored.task, "dev")) == 3


def test_a_quick_try_has_a_directory_of_its_own():
    for spec, limit, name in (("a/b.py", 0, "b"), ("b.py:direct", 0, "b_direct"), ("b.py:weak", 20, "b_weak_limit20")):
        assert run_name(spec, limit) == name
