"""star_jax/tasks/README.md: its example task, its shots and its JSON lines work as written, and its tables are true."""

import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pytest

from star_jax import config, tasks
from star_jax.errors import InputError
from star_jax.tasks import few_shot

README = (Path(tasks.__file__).parent / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", README, re.DOTALL).group(1)


@pytest.fixture
def parity(tmp_path, monkeypatch):
    """The config of the example, registered as the README says; its shots are in prompt.directory."""
    (tmp_path / "readme_parity.py").write_text(block("python"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(tasks.TASKS, "parity", "readme_parity:Parity")
    (tmp_path / "parity.txt").write_text(block("text"), encoding="utf-8")
    hinted = re.sub(r"(Q: .*)\n(.*So (\w+)\.)", r"\1 (\3)\n\2", block("text"))
    (tmp_path / "parity_hint.txt").write_text(hinted, encoding="utf-8")
    values = config.default("parity")
    values.base.path = "a/model"
    values.task.bits = 6
    values.prompt.update(dict(shots=2, directory=str(tmp_path)))
    yield config.from_dict(values)
    sys.modules.pop("readme_parity", None)


def test_the_example_is_a_task(parity):
    task = parity.make_task()
    train, dev = task.problems("train"), task.problems("dev")
    assert len(train) + len(dev) == 64 and not {p.id for p in train} & {p.id for p in dev}
    assert task.problems("dev") == dev and importlib.import_module("readme_parity").Parity(bits=6) == task
    for problem in dev:
        assert task.render(problem, hint=True) == task.render(problem).replace("\n", f" ({problem.answer})\n")
        assert task.parse(f" 1 odd. So {problem.answer}.") == problem.answer
        assert task.grade(problem, problem.answer) and not task.grade(problem, "neither")
    assert task.parse(" 1 odd, 0 odd.") is None and task.reference(dev[0]) is None
    with pytest.raises(InputError, match="unknown split 'test'"):
        task.problems("test")
    assert len(block("python").splitlines()) <= 32


def test_the_example_s_shots_are_rendered_problems_and_right_completions(parity):
    task, prompts = parity.make_task(), few_shot.load("parity", 2, direct=False, directory=parity.prompt.directory)
    by_question = {p.question: p for p in type(task)(bits=4).problems("train") + type(task)(bits=4).problems("dev")}
    for text, hint in ((prompts.plain, False), (prompts.hinted, True)):
        shots = text.strip("\n").split("\n\n")
        assert len(shots) == 2
        for shot in shots:
            problem = by_question[re.match(r"Q: ([01 ]*[01])", shot).group(1)]
            body = task.render(problem, hint)
            assert shot.startswith(body) and task.grade(problem, task.parse(shot.removeprefix(body)))


def test_the_example_s_json_lines_are_read(tmp_path):
    (tmp_path / "train.jsonl").write_text(block("json"), encoding="utf-8")
    task = tasks.make("jsonl", data_dir=str(tmp_path), train="train.jsonl")
    assert [(p.answer, p.choices) for p in task.problems("train")] == [("5", ()), ("b", ("an inkwell", "a blotter"))]


def test_the_tables_name_every_task_and_option():
    rows = {line.split("|")[1].strip(" `") for line in README.splitlines() if line.startswith("| `")}
    named = set(re.findall(r"`(\w+)`", README[README.index("## Options") : README.index("The dev split selects")]))
    hidden = {key.partition(".")[2] for key in config.MOVED if key.startswith("task.")}
    options = {f.name for name in tasks.TASKS for f in dataclasses.fields(tasks.task_class(name))} - hidden
    assert set(tasks.TASKS) <= rows
    assert named == options | set(tasks.TASKS)
