"""star_jax.user_code, and the options that name it: a task, a grader. What is wrong with the code is one line."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from star_jax import tasks, user_code
from star_jax.cli.parser import exit_on_bad_input
from star_jax.errors import InputError

HEAD = "import dataclasses\nfrom star_jax.tasks.base import Task\n"
FROZEN = "@dataclasses.dataclass(frozen=True)\nclass A(Task):\n    pass\n"
BAD_CODE = {
    "": "defines no 'A'",
    "import no_such_module\n": r"bad.py:1: ModuleNotFoundError: No module named 'no_such_module'",
    "x = 1\ny = x / 0\n": r"bad.py:2: ZeroDivisionError: division by zero",
    "x = (\n": r"bad.py:1: SyntaxError",
    "import sys\nsys.exit(3)\n": r"bad.py:2: SystemExit: 3",
    "A = 3\n": "is no subclass of star_jax.tasks.base.Task",
    HEAD + "class A(Task):\n    bits: int = 3\n": "put @dataclasses.dataclass",
    HEAD + FROZEN: "the class does not define max_new_tokens, parse, problems, render",
    HEAD + FROZEN.replace("(frozen=True)", ""): r"bad.py:3: TypeError: cannot inherit non-frozen",
}


def test_what_is_wrong_with_a_task_s_code_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code, message in BAD_CODE.items():
        Path("bad.py").write_text(code)
        with pytest.raises(InputError, match=f"^task.name.*{message}") as refused:
            tasks.make("bad.py:A")
        assert "\n" not in str(refused.value)
        user_code.sys.modules.pop(str(Path("bad.py").resolve()), None)
    for name, message in (
        ("none.py:A", "there is no file"), ("no_such:A", "there is no module 'no_such'"), ("a.b:A", "module 'a'"),
        (":A", "module:name or path/to/file.py:name"), ("bad.py:", "module:name"), ("gs://b/x.py:A", "is a URL"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            tasks.make(name)


def test_what_a_user_s_code_raises_later_ends_a_command_with_one_line(tmp_path, monkeypatch, capsys):
    """Unless star_jax failed inside of a call from there: that is a bug, with its traceback."""
    monkeypatch.chdir(tmp_path)
    Path("late.py").write_text(
        "from star_jax import terminal\ndef divide(text):\n    return 1 / len(text)\n"
        "def misuse(text):\n    assert text, 'nothing'\n    terminal.visible(None)\n"
    )
    for name, argument, line in (("divide", "", "late.py:3: ZeroDivisionError: division by zero"),
                                 ("misuse", "", "late.py:5: AssertionError: nothing")):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            exit_on_bad_input(lambda: user_code.load(f"late.py:{name}", "task.name")(argument))  # noqa: B023
        assert ended.value.code == 2
        assert capsys.readouterr().err == f"star_jax: task.name=late.py: {tmp_path}/{line}\n"
    with pytest.raises(AttributeError):
        exit_on_bad_input(lambda: user_code.load("late.py:misuse", "task.name")("text"))
    with pytest.raises(ZeroDivisionError):
        exit_on_bad_input(lambda: 1 / 0)


def jsonl(grader: str, *lines: dict) -> tasks.Task:
    Path("questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tasks.make("jsonl", train="questions.jsonl", grader=grader)


def test_a_grader_of_one_s_own_grades(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("any_order.py").write_text(
        "def grade(problem, answer):\n    return sorted(answer.split()) == sorted(problem.answer.split())\n"
    )
    task = jsonl("any_order.py:grade", {"question": "Which?", "answer": "red blue", "rationale": "#### blue red"})
    (problem,) = task.problems("train")
    for completion, right in ((" #### blue red", True), (" #### red blue", True), (" #### red", False)):
        assert task.grade(problem, task.parse(completion)) is right
    assert not tasks.make("jsonl", train="questions.jsonl").grade(problem, "blue red")
    assert list(tasks.code_digests({"name": "jsonl", "grader": "any_order.py:grade"})) == ["task.grader code"]


def test_what_is_wrong_with_a_grader_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad_graders.py").write_text(
        "def nothing(problem, answer): pass\n\n"
        "def failing(problem, answer):\n    return int(answer) > 0\n\n"
        "def few(problem): return True\n\n"
        "def never(problem, answer): return False\n\n"
        "text = 'x'\n"
    )
    line = {"question": "Which?", "answer": "red"}
    for name, message in (
        ("nothing", "must return True or False, returned NoneType for the answer 'red' of problem 'train-1'"),
        ("failing", r"problem 'train-1', answer 'red': .*bad_graders.py:4: ValueError: invalid literal"),
        ("few", "TypeError: few\\(\\) takes 1 positional argument but 2 were given"),
        ("never", "questions.jsonl:1: task.grader=bad_graders.py:never refuses the reference answer 'red'"),
        ("text", "is no function"), ("absent", "bad_graders.py defines no 'absent'"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message) as refused:
            jsonl(f"bad_graders.py:{name}", line).problems("train")
        assert "\n" not in str(refused.value)


def test_named_code_is_found_without_running_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("planted.py").write_text("open('TRACE', 'w').close()\n")
    for values, named in (
        ({"name": "planted.py:Task"}, {"name": "planted.py:Task"}),
        ({"name": "jsonl", "grader": "planted:grade"}, {"grader": "planted:grade"}),
        ({"name": "jsonl", "grader": ""}, {}), ({"name": "arithmetic"}, {}),
    ):  # fmt: skip
        assert tasks.named_code(values) == named
    assert not Path("TRACE").exists()


def test_a_name_without_a_colon_is_never_code():
    with pytest.raises(InputError, match=re.escape("unknown task 'os'; there are arithmetic")):
        tasks.named_code({"name": "os"})


def test_a_module_s_text_takes_the_place_of_its_file(tmp_path, monkeypatch):
    """As a run stores it. A package's module would miss the others, so it is not stored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("shelf").mkdir()
    code = "import dataclasses\ndef grade(problem, answer):\n    return answer == '1'\n"
    for file in ("one_file.py", "top_module.py", "shelf/__init__.py", "shelf/part.py"):
        Path(file).write_text(code)
    Path("q.jsonl").write_text('{"question": "Which?", "answer": "1"}')
    texts = {}
    for source in ("one_file.py", "top_module", "shelf", "shelf.part"):
        texts |= tasks.code_texts({"name": "jsonl", "train": "q.jsonl", "grader": f"{source}:grade"})
    assert texts == {"one_file.py": code, "top_module": code}
    for source in texts:
        monkeypatch.setitem(user_code._stored, source, code.replace("1", "2"))
        grade = user_code.load(f"{source}:grade", "task.grader")
        assert grade(None, "2") and not grade(None, "1")
        assert user_code.text_of(f"{source}:grade", "task.grader") == code.replace("1", "2")


def test_a_digest_is_of_the_bytes_and_any_source_file_can_be_digested(tmp_path, monkeypatch):
    """Line ends of other systems, a byte order mark, another encoding (which is not stored)."""
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text('{"question": "Which?", "answer": "1"}')
    code = b"def grade(problem, answer):\r\n    return answer == '1'\r\n"
    for name, source in (("crlf", code), ("bom", b"\xef\xbb\xbf" + code),
                         ("latin", b"# coding: latin-1\r\n# \xe9\r\n" + code)):  # fmt: skip
        Path(f"{name}.py").write_bytes(source)
        values = {"name": "jsonl", "train": "q.jsonl", "grader": f"{name}.py:grade"}
        assert tasks.code_digests(values) == {"task.grader code": hashlib.sha256(source).hexdigest()[:12]}
        texts = tasks.code_texts(values)
        assert list(texts) == ([] if name == "latin" else [f"{name}.py"])
        for file, text in texts.items():
            monkeypatch.setitem(user_code._stored, file, text)
            assert user_code.load(f"{file}:grade", "task.grader")(None, "1")
            assert tasks.code_digests(values) == {"task.grader code": hashlib.sha256(source).hexdigest()[:12]}
