"""Any mutated line of a task file: one line that names file and line, or problems that are judged as they should be."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from star_jax import tasks
from star_jax.errors import InputError

LISTED = [{"label": "A", "text": "bed"}, {"label": "B", "text": "sea"}, {"label": "C", "text": "a lake"}]
CQA = {"id": "x", "answerKey": "B", "question": {"stem": "Where?", "choices": LISTED}}
OWN = {"question": "Where?", "choices": ["bed", "sea"], "answer": "sea", "rationale": "It is wet.", "id": "x"}
LINES = [
    ("gsm8k", "train.jsonl", {"question": "2 and 3?", "answer": "2+3 = <<2+3=5>>5\n#### 5"}),
    ("commonsense_qa", "train_rand_split.jsonl", CQA),
    ("jsonl", "own.jsonl", OWN),
    ("jsonl", "own.jsonl", {"question": "2 and 3?", "answer": 5, "category": "sums"}),
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**60), 10**60) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw):
    """(task, file name, the bytes of a mutated line)."""
    name, file, values = draw(st.sampled_from(LINES))
    kind = draw(st.sampled_from(["truncated", "flipped", "nested", "retyped", "dropped", "doubled"]))
    key = draw(st.sampled_from(sorted(values)))
    if kind == "retyped":
        values = {**values, key: draw(VALUES)}
    elif kind == "nested":
        values = {**values, key: draw(st.sampled_from([[values[key]], {key: values[key]}]))}
    elif kind == "dropped":
        values = {k: v for k, v in values.items() if k != key}
    line = json.dumps(values, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if kind == "truncated":
        line = line[: draw(st.integers(0, len(line)))]
    elif kind == "flipped":
        at = draw(st.integers(0, len(line) - 1))
        line = line[:at] + bytes([line[at] ^ 1 << draw(st.integers(0, 7))]) + line[at + 1 :]
    elif kind == "doubled":
        line = draw(st.sampled_from([line + line, line + b"\n" + line, line[:-1] + b"," + line[1:]]))
    return name, file, line


def check(folder, name, file, line):
    path = folder / file
    path.write_bytes(line)
    os.utime(path, ns=(check.calls, check.calls))  # files are cached by their time
    check.calls += 1
    options = {"train": file} if name == "jsonl" else {}
    task = tasks.make(name, data_dir=str(folder), **options)
    try:
        problems = task.problems("train")
    except InputError as error:
        assert str(error).startswith(str(path)) and len(str(error).splitlines()) == 1, error
        return
    for problem in problems:
        assert task.grade(problem, task.parse(task.reference(problem))), problem
        wrong = [f"({letter})." for letter in "abc" if letter != problem.answer]
        if not problem.choices:
            wrong = [f" #### {number}" for number in ("123456789.5", "-77777")]
        for text in wrong:
            answer = task.parse(text)
            assert answer is None or not task.grade(problem, answer), (problem, text)


check.calls = 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=mutated())
def test_a_mutated_line_is_refused_or_judged_right(tmp_path, case):
    check(tmp_path, *case)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=mutated())
def test_many_mutated_lines_are_refused_or_judged_right(tmp_path, case):
    check(tmp_path, *case)
