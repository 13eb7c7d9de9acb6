"""What all tasks share: whatever a model writes is read without an error, and in linear time."""

import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax import tasks
from star_jax.records import Problem
from tests.support.tables import every_row

TASKS = {
    "arithmetic": tasks.make("arithmetic"),
    "arithmetic direct": tasks.make("arithmetic", direct=True),
    "commonsense_qa": tasks.make("commonsense_qa"),
    "commonsense_qa lenient": tasks.make("commonsense_qa", answer_rule="lenient"),
    "gsm8k": tasks.make("gsm8k"),
    "gsm8k lenient": tasks.make("gsm8k", answer_rule="lenient"),
    "jsonl": tasks.make("jsonl", train="train.jsonl", dev="dev.jsonl"),
    "jsonl lenient": tasks.make("jsonl", train="train.jsonl", answer_rule="lenient"),
    "jsonl direct": tasks.make("jsonl", train="train.jsonl", dev="dev.jsonl", direct=True),
    "seqio_task": tasks.make("seqio_task", task="any"),
}
PROBLEMS = {
    "arithmetic": Problem("a", "1 2 + 3 4", "4 6", "2 digits"),
    "commonsense_qa": Problem("c", "Where?", "b", choices=("desk", "library", "park", "zoo", "home")),
    "gsm8k": Problem("g", "How many?", "12"),
    "jsonl": Problem("j", "What?", "twelve"),
    "seqio_task": Problem("s", "What?", "twelve"),
}
# What answers, steps and their marks are made of, so that texts come near to what is looked for.
WORDS = ["the answer is", "Therefore,", "(b)", "b)", "library", "not ", "####", "<<", ">>", "=", "1+1", "9**9**9",
         "9^9", "12", "4 6", ", C: 0", "<scratch>", "</scratch>", "Scratch:", "(CORRECT)", "\n", " ", "$", "\\boxed{",
         "1e999", "١٢", "１２", "\u202e", "\x00", "\ud800", "é", "½", "**"]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=8))).map("".join)


def read(name: str, text: str) -> None:
    """Parses, and judges what was parsed as the filter does."""
    task, problem = TASKS[name], PROBLEMS[name.split()[0]]
    answer = task.parse(text)
    assert answer is None or (isinstance(answer, str) and answer)
    if answer is not None:
        assert task.grade(problem, answer) in (True, False)
        assert isinstance(task.canonical(problem, answer), str)
    assert task.consistent(problem, text) in (True, False, None)
    lenient = task.lenient()
    if lenient and problem.choices and answer is not None and task.grade(problem, answer):
        assert lenient.lenient() is None and lenient.parse(text) in (answer, None)


@pytest.mark.parametrize("name", TASKS)
@given(text=TEXTS)
@settings(max_examples=60, deadline=None)
def test_any_text_is_read(name, text):
    read(name, text)


@every_row("name", ["arithmetic", "arithmetic direct", "commonsense_qa"])
def test_a_reference_is_right_and_consistent(name):
    """Where it does not come with the data."""
    task, problem = TASKS[name], PROBLEMS[name.split()[0]]
    reference = task.reference(problem)
    assert task.grade(problem, task.parse(reference)) and task.consistent(problem, reference) in (True, None)


@pytest.mark.slow
@every_row("word", ["the answer is (b) ", "(b)", "#### 12\n", "<<1+1=2>>", "9**9**9", "<scratch>", "\n", "\ud800"])
@every_row("name", TASKS)
def test_a_megabyte_of_anything_ends(name, word):
    """Quadratic time would be 10^10 steps and more, and the alarm would ring."""

    def ring(*_):
        raise TimeoutError(f"{name} is still reading")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(120)
    try:
        read(name, word * (1_000_000 // len(word)))
    finally:
        signal.alarm(0)
