"""star_jax/tasks/README.md: its example task, its shots and its JSON lines work as written, and its tables are true."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from star_jax import config, tasks
from star_jax.cli.config_flags import read_config
from star_jax.cli.parser import Parser
from star_jax.errors import InputError
from star_jax.tasks import few_shot

README = (Path(tasks.__file__).parent / "README.md").read_text(encoding="utf-8")


def block(language: str, holding: str = "") -> str:
    """The first block of code of a language that holds a text."""
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if holding in text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with the example's files under the names that the README gives them."""
    monkeypatch.chdir(tmp_path)
    Path("my_tasks.py").write_text(block("python", "class Parity"), encoding="utf-8")
    Path("my_config.py").write_text(block("python", 'Parity"'), encoding="utf-8")
    Path("parity.txt").write_text(block("text"), encoding="utf-8")
    hinted = re.sub(r"(Q: .*)\n(.*So (\w+)\.)", r"\1 (\3)\n\2", block("text"))
    Path("parity_hint.txt").write_text(hinted, encoding="utf-8")
    return tmp_path


@pytest.fixture
def parity(folder):
    """The config of the example, with the option that its command sets."""
    return config.from_dict(read_config(Parser("main", ""), ["--config=my_config.py", "--config.task.bits=6"])[1])


def test_the_example_is_a_task(parity):
    task = parity.make_task()
    train, dev = task.problems("train"), task.problems("dev")
    assert len(train) + len(dev) == 64 and not {p.id for p in train} & {p.id for p in dev}
    assert task.problems("dev") == dev and task == type(task)(bits=6)
    for problem in dev:
        assert task.render(problem, hint=True) == task.render(problem).replace("\n", f" ({problem.answer})\n")
        assert task.parse(f" 1 odd. So {problem.answer}.") == problem.answer
        assert task.grade(problem, problem.answer) and not task.grade(problem, "neither")
        assert task.grade(problem, task.parse(task.reference(problem)))
    assert task.parse(" 1 odd, 0 odd.") is None
    with pytest.raises(InputError, match="unknown split 'test'"):
        task.problems("test")
    assert len(block("python", "class Parity").splitlines()) <= 47


def test_a_task_of_one_s_own_is_named_by_module_or_by_file(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    for name in ("my_tasks:Parity", "my_tasks.py:Parity", f"{folder}/my_tasks.py:Parity"):
        task = config.from_dict({**config.default(name).to_dict(), "base": {"path": "somewhere"}}).make_task()
        assert (type(task).__name__, task.bits) == ("Parity", 8)
        for values, message in (
            (dict(bit=3), "has no option 'bit'; it has bits"),
            (dict(bits="3"), "must be int"),
        ):
            with pytest.raises(InputError, match=message):
                tasks.make(name, **values)
    sys.modules.pop("my_tasks")


def test_a_run_is_continued_only_with_the_same_code(folder):
    name = "my_tasks.py:Parity"
    before = tasks.code_digests({"name": name})
    assert list(before) == ["task.name code"] and before == tasks.code_digests({"name": name})
    Path("my_tasks.py").write_text(Path("my_tasks.py").read_text() + "\n# changed\n")
    assert tasks.code_digests({"name": name}) != before
    assert tasks.code_digests({"name": "arithmetic"}) == {}


@pytest.mark.slow
def test_the_example_runs_from_its_folder(folder):
    """As the README writes it, with less of everything; the run's code is evaluated only with the flag."""

    def command(module: str, *args: str) -> subprocess.CompletedProcess:
        few = ("--config.base.stages[0].steps=40", "--config.star.steps=2", "--config.star.iterations=1")
        few += ("--config.evaluation.problems=4", "--config.star.direct=True") if module == "main" else ()
        args = ("-m", f"star_jax.{module}", *args, *(few if module == "main" else ()))
        return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, env=environment())

    result = command("main", "--config=my_config.py", "--config.task.bits=6", "--config.prompt.shots=0")
    assert result.returncode == 0, result.stderr
    assert json.loads(Path("runs/my_config/config.json").read_text())["task"]["bits"] == 6
    refused = command("evaluate", "--workdir=runs/my_config", "--iteration=1")
    assert refused.returncode == 2 and "task.name names the Python module 'my_tasks.py'" in refused.stderr
    evaluated = command("evaluate", "--workdir=runs/my_config", "--iteration=1", "--allow_import")
    assert evaluated.returncode == 0 and "n = 4" in evaluated.stdout, evaluated.stderr
    run, accuracy = Path("runs/my_config").resolve(), evaluated.stdout.splitlines()[0]
    Path("my_tasks.py").write_text("raise RuntimeError('changed')")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for place, state in ((folder, "has changed since the run was made"), (elsewhere, "is not in this folder")):
        os.chdir(place)
        evaluated = command("evaluate", f"--workdir={run}", "--iteration=1", "--allow_import")
        assert f"my_tasks.py {state}: its text in {run}/code.json is used" in evaluated.stderr
        assert evaluated.returncode == 0 and evaluated.stdout.startswith(accuracy), evaluated.stderr


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(tasks.__file__).parents[2])}


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
