"""star_jax.tasks.questions: what star_jax.sample reads from standard input."""

import json

import pytest

from star_jax import tasks
from star_jax.errors import InputError
from star_jax.tasks import questions
from tests.support.tables import every_row

GSM8K = {"question": "2 and 3?", "answer": "2+3 = <<2+3=5>>5\n#### 5"}
LISTED = [{"label": "A", "text": "bed"}, {"label": "B", "text": "sea"}]
CQA = {"id": "x", "answerKey": "B", "question": {"stem": "Where?", "choices": LISTED}}
HUB = {"id": "x", "question": "Where?", "choices": {"label": ["A", "B"], "text": ["bed", "sea"]}, "answerKey": ""}
OWN = {"question": "Where?", "choices": ["bed", "sea"]}


def read(name, content):
    return list(questions.read(tasks.make(name), content.splitlines(keepends=True), "standard input"))


@every_row(
    ("name", "line", "answer", "choices"),
    [
        ("gsm8k", GSM8K, "5", ()),
        ("gsm8k", {"question": "2 and 3?", "answer": 5}, "5", ()),
        ("gsm8k", {"question": "2 and 3?"}, "", ()),
        ("commonsense_qa", CQA, "b", ("bed", "sea")),
        ("commonsense_qa", {key: CQA[key] for key in ("id", "question")}, "", ("bed", "sea")),
        ("commonsense_qa", HUB, "", ("bed", "sea")),
        ("commonsense_qa", {**OWN, "answer": "B"}, "b", ("bed", "sea")),
        ("commonsense_qa", {**OWN, "answer": "sea"}, "b", ("bed", "sea")),
        ("commonsense_qa", OWN, "", ("bed", "sea")),
        ("commonsense_qa", {"question": "Where?"}, "", ()),
        ("jsonl", {**OWN, "answer": "b"}, "b", ("bed", "sea")),
        ("jsonl", {"question": "Who?", "answer": None}, "", ()),
        ("arithmetic", {"question": "3 4 + 5 6", "answer": "9 0"}, "9 0", ()),
    ],
)
def test_official_lines_own_keys_and_lone_questions_are_read(name, line, answer, choices):
    content = b"\xef\xbb\xbf\n" + json.dumps(line).encode() + b"\r\n \n"
    (problem,) = read(name, content)
    assert (problem.answer, problem.choices) == (answer, choices)


@every_row(
    ("name", "line", "reason"),
    [
        ("gsm8k", b'{"question": "caf\xe9"}', "not UTF-8"),
        ("gsm8k", b'{"question": "\\ud83d"}', "surrogate"),
        ("gsm8k", b'{"question": "a", "question": "b"}', "is there twice"),
        ("gsm8k", b'{"question": "How many?", "answer": "a few"}', "no completion of this task gives"),
        ("commonsense_qa", b'{"question": "Where?", "choices": "yes"}', "must be a list of texts"),
        ("commonsense_qa", b'{"question": ["Where?"]}', "must be a text"),
        ("jsonl", b"[" * 100_000, "not JSON"),
        ("jsonl", b"3", "not a JSON object"),
    ],
)
def test_a_bad_line_is_named(name, line, reason):
    with pytest.raises(InputError) as caught:
        read(name, b'{"question": "Good?"}\n\n' + line)
    message = str(caught.value)
    assert message.startswith("standard input:3: ") and reason in message and "\n" not in message
