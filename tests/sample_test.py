"""python -m star_jax.sample with a model: the problems of standard input, their grading, and bad input."""

import builtins
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from star_jax import sample
from star_jax.errors import InputError
from tests.support.commands import ROOT
from tests.support.stored_runs import make_run
from tests.support.tables import every_row

CHOICES = ["tea", "ink", "oil"]
LISTED = [{"label": label, "text": text} for label, text in zip("ABC", CHOICES, strict=True)]
# What the model of each task's run says to any problem.
SAYS = {"gsm8k": " 5\n\n", "commonsense_qa": " (b).\n", "jsonl": " (b)\n\n"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Task -> run directory."""
    folder = tmp_path_factory.mktemp("runs")
    return {task: make_run(folder / task, task, [text], answer_rule="lenient") for task, text in SAYS.items()}


@pytest.fixture
def command(runs, monkeypatch, capsys):
    """command(task, bytes of standard input, *flags): the lines of JSON that it prints; a failing one prints none."""

    def call(task: str, content: bytes, *flags: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", ["sample", f"--workdir={runs[task]}", "--iteration=base", *flags])
        stdin = io.TextIOWrapper(io.BytesIO(content), "utf-8")
        stdin.isatty = lambda: call.on_terminal
        monkeypatch.setattr(sys, "stdin", stdin)
        try:
            sample.main()
        except InputError:
            assert capsys.readouterr().out == ""
            raise
        printed = capsys.readouterr()
        call.notes = printed.err
        return [json.loads(line) for line in printed.out.splitlines()]

    call.on_terminal = False
    return call


def gsm8k(question: str, number: int) -> dict:
    return {"question": question, "answer": f"It is <<1+1=2>>2.\n#### {number}"}


def cqa(stem: str, key: str | None) -> dict:
    return {"id": "x", "question": {"stem": stem, "choices": LISTED}, **({"answerKey": key} if key else {})}


def own(question: str, **values) -> dict:
    return {"question": question, "choices": CHOICES, **values}


@every_row(
    ("task", "lines", "answer", "right"),
    [
        ("gsm8k", [gsm8k("a", 5), gsm8k("b", 6), {"question": "c"}], "5", [True, False, None]),
        ("gsm8k", [{"question": "a", "answer": 5}, {"question": "b", "answer": "$5.00"}], "5", [True, True]),
        ("commonsense_qa", [cqa("a", "B"), cqa("b", "A"), cqa("c", None)], "b", [True, False, None]),
        ("commonsense_qa", [own("a", answer="B"), own("b", answer="ink"), own("c", answer="oil")], "b",
         [True, True, False]),
        ("jsonl", [own("a", answer="b"), own("b", answer="INK"), own("c", answer="c"), own("d")], "b",
         [True, True, False, None]),
    ],
)  # fmt: skip
def test_official_lines_and_own_ones_are_asked_and_graded(command, task, lines, answer, right):
    """Also after a byte-order mark, with blank lines and Windows' line ends; in the order of the input."""
    content = "\ufeff\r\n" + "\r\n \r\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    results = command(task, content.encode())
    assert [r["question"] for r in results] == ["a", "b", "c", "d"][: len(lines)]
    assert [r["right"] for r in results] == right
    assert {(r["text"], r["answer"], r["truncated"]) for r in results} == {(SAYS[task].rstrip("\n"), answer, False)}


@every_row(
    ("task", "line", "reason"),
    [
        ("gsm8k", '{"question": "café"}'.encode("latin-1"), "not UTF-8 text"),
        ("gsm8k", b'{"question": "\\ud83d"}', "half of a surrogate pair"),
        ("gsm8k", b'{"question": "a"', "not JSON"),
        ("gsm8k", b"How many?", "not JSON"),
        ("gsm8k", b'["a"]', "not a JSON object"),
        ("gsm8k", b'{"answer": 5}', "key 'question' is missing"),
        ("gsm8k", b'{"question": "a", "answer": "x #### y"}', "exactly one number"),
        ("commonsense_qa", json.dumps(cqa("a", "D")).encode(), "'D' is not a choice's label"),
        ("jsonl", json.dumps(own("a", answer="sea")).encode(), "'sea' is neither a choice nor"),
        ("jsonl", b'{"question": "a", "choices": "yes"}', "must be a list of texts"),
        ("jsonl", b"[" * 100_000, "not JSON"),
        ("gsm8k", b'{"question": "a"', "not JSON (column 17: "),
        ("gsm8k", json.dumps({"question": "a" * 500}).encode(), "prompt of 506 tokens and 8 new ones exceed"),
        ("gsm8k", b'{"question": "a", "answr": 5}', "unknown key 'answr'; did you mean 'answer'?"),
        ("gsm8k", json.dumps(gsm8k("a", 5) | {"hint": 5}).encode(), "unknown key 'hint'"),
        ("commonsense_qa", json.dumps(cqa("a", "A") | {"anser": "B"}).encode(), "unknown key 'anser'"),
        ("jsonl", json.dumps(own("a", hint="b")).encode(), "unknown key 'hint'"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_sampled(command, task, line, reason):
    with pytest.raises(InputError) as caught:
        command(task, b'{"question": "Good?"}\n\n' + line + b'\n{"question": "Good?"}\n')
    message = str(caught.value)
    assert message.startswith("standard input:3: ") and reason in message and "\n" not in message
    assert "Error(" not in message and "char " not in message


def test_each_problem_has_its_samples_next_to_each_other(command):
    content = "\n".join(json.dumps(gsm8k(name, number)) for name, number in (("a", 5), ("b", 6)))
    results = command("gsm8k", content.encode(), "--samples=2", "--temperature=0.5")
    assert [(r["question"], r["right"]) for r in results] == [("a", True)] * 2 + [("b", False)] * 2


def test_several_samples_are_drawn_at_a_temperature_that_is_named(command):
    """Greedy ones would be the same line again and again."""
    problem = b'{"question": "a"}'
    command("gsm8k", problem)
    assert command.notes.startswith("the base (iteration 0), greedy: loading its model")
    for flags, temperature in ((["--samples=3"], "0.7"), (["--samples=3", "--temperature=0.2"], "0.2")):
        assert len(command("gsm8k", problem, *flags)) == 3
        assert command.notes.startswith(f"the base (iteration 0), temperature {temperature}: loading its model")
    with pytest.raises(InputError, match="--temperature=0 is greedy: all samples of a problem are the same"):
        command("gsm8k", problem, "--samples=3", "--temperature=0")


def test_on_a_terminal_a_bad_question_is_named_and_the_next_one_is_answered(command, monkeypatch):
    lines = iter(["", "a" * 500, "a"])

    def answer(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    command.on_terminal = True
    monkeypatch.setattr(builtins, "input", answer)
    assert [result["question"] for result in command("gsm8k", b"")] == ["a"]
    assert "star_jax: its prompt of 506 tokens" in command.notes


@every_row("content", [b"", b"\n \n", b"\xef\xbb\xbf\n"])
def test_input_without_problems_is_refused(command, content):
    with pytest.raises(InputError, match="standard input: holds no problems"):
        command("gsm8k", content)


@pytest.mark.slow  # 6 s
def test_any_locale_reads_utf8_and_prints_json(runs):
    """The encoding of the streams is ASCII here; terminal_test has others."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "star_jax.sample", f"--workdir={runs['gsm8k']}", "--iteration=base"]
    problem = json.dumps({"question": "café 日本", "answer": 5}, ensure_ascii=False).encode()
    result = subprocess.run(command, input=problem, env=env, capture_output=True, timeout=120)
    assert result.returncode == 0 and result.stderr.startswith(b"the base (iteration 0), greedy: loading its model")
    line = json.loads(result.stdout)
    assert (line["question"], line["answer"], line["right"]) == ("café 日本", "5", True)
