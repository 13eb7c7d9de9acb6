"""Files with something wrong in them: each fault is named with its line, or its line is left out and counted."""

import json
import logging

import pytest

from star_jax import tasks
from star_jax.errors import InputError
from tests.support.tables import every_row

CQA = {
    "answerKey": "B",
    "id": "good",
    "question": {"stem": "Where?", "choices": [{"label": "A", "text": "bed"}, {"label": "B", "text": "sea"}]},
}
OWN = {"question": "Where?", "choices": ["bed", "sea"], "answer": "b", "id": "good"}
SUM = {"question": "How many?", "answer": 5, "id": "sum"}


def cqa(**changes):
    """A CommonsenseQA line with another id and some keys changed, `stem` and `choices` inside its question."""
    inner = {key: changes.pop(key) for key in ("stem", "choices") if key in changes}
    return json.dumps({**CQA, "id": "bad", "question": {**CQA["question"], **inner}, **changes}).encode()


def own(**changes):
    return json.dumps({**OWN, "id": "bad", **changes}).encode()


def total(**changes):
    return json.dumps({**SUM, "id": "bad", **changes}).encode()


def listed(*texts, labels="ABCDEFGHIJKLMNOPQRSTUVWXYZ?"):
    return [{"label": label, "text": text} for label, text in zip(labels, texts, strict=False)]


def without(values, key):
    return json.dumps({name: value for name, value in values.items() if name != key}).encode()


MANY = [f"text {number}" for number in range(27)]

# (task, the broken line, the reason)
BROKEN = [
    ("commonsense_qa", b'{"answerKey": "B", "id": "x", "question": {"stem"', "not JSON"),
    ("commonsense_qa", b'["B", "x"]', "not a JSON object"),
    ("commonsense_qa", b'"text"', "not a JSON object"),
    ("commonsense_qa", b"null", "not a JSON object"),
    ("commonsense_qa", b"plain words", "not JSON"),
    ("commonsense_qa", b"\0", "not JSON"),
    ("commonsense_qa", b'{"id": "a\0b"}', "not JSON"),
    ("commonsense_qa", b"[" * 100_000, "not JSON"),
    ("commonsense_qa", cqa(stem="caf\xe9").replace(b"\\u00e9", b"\xe9"), "not UTF-8"),
    ("commonsense_qa", b'{"id": "\\ud83d"}', "surrogate"),
    ("commonsense_qa", b"{}", "key 'id' is missing"),
    ("commonsense_qa", without(CQA, "answerKey").replace(b"good", b"bad"), "key 'answerKey' is missing"),
    ("commonsense_qa", without(CQA, "question").replace(b"good", b"bad"), "key 'question' is missing"),
    ("commonsense_qa", json.dumps(CQA).encode(), "the id 'good' is also at"),
    ("commonsense_qa", cqa(id=7), "'id' must be a text"),
    ("commonsense_qa", cqa(id=" "), "'id' must be a text"),
    ("commonsense_qa", cqa(answerKey="C"), "the answer 'C' is not a choice's label"),
    ("commonsense_qa", cqa(answerKey="b"), "the answer 'b' is not a choice's label"),
    ("commonsense_qa", cqa(answerKey=""), "'answerKey' must be a text"),
    ("commonsense_qa", cqa(answerKey=1), "'answerKey' must be a text"),
    ("commonsense_qa", cqa(answerKey=["B"]), "'answerKey' must be a text"),
    ("commonsense_qa", cqa(stem=" \n"), "'question.stem' must be a text"),
    ("commonsense_qa", cqa(stem=None), "'question.stem' must be a text"),
    ("commonsense_qa", cqa(choices=[]), "2 to 26 choices, got 0"),
    ("commonsense_qa", cqa(choices=listed("bed")), "2 to 26 choices, got 1"),
    ("commonsense_qa", cqa(choices=listed(*MANY)), "2 to 26 choices, got 27"),
    ("commonsense_qa", cqa(choices=["bed", "sea"]), "must be a list of objects"),
    ("commonsense_qa", cqa(choices=None), "must be a list of objects"),
    ("commonsense_qa", cqa(choices=listed("bed", "")), "texts that are not empty"),
    ("commonsense_qa", cqa(choices=listed("bed", ["sea"])), "texts that are not empty"),
    ("commonsense_qa", cqa(choices=[{"label": "A"}, {"label": "B"}]), "texts that are not empty"),
    ("commonsense_qa", cqa(choices=listed("bed", "s\nea")), "holds a line break"),
    ("commonsense_qa", cqa(choices=listed("bed", "sea\u2028")), "holds a line break"),
    ("commonsense_qa", cqa(choices=listed("bed", "sea", labels="BA")), "labels must be A, B in this order"),
    ("commonsense_qa", cqa(choices=listed("bed", "sea", labels="AC")), "labels must be A, B in this order"),
    ("commonsense_qa", cqa(choices=listed("bed", "sea", labels=["A", 2])), "labels must be A, B in this order"),
    ("commonsense_qa", cqa(question="Where?"), "must hold the lists 'label' and 'text'"),
    ("commonsense_qa", cqa(question=["Where?"]), "'question' must be a text"),
    ("jsonl", b'{"question": "Where?"', "not JSON"),
    ("jsonl", b"[]", "not a JSON object"),
    ("jsonl", own(question="\t"), "'question' must be a text"),
    ("jsonl", own(question=["Where?"]), "'question' must be a text"),
    ("jsonl", without(OWN, "question").replace(b"good", b"bad"), "key 'question' is missing"),
    ("jsonl", without(OWN, "answer").replace(b"good", b"bad"), "key 'answer' is missing"),
    ("jsonl", own(answr="b"), "unknown key 'answr'; did you mean 'answer'?"),
    ("jsonl", own(zzz="b"), "unknown key 'zzz'; there are question"),
    ("jsonl", own(answer=True), "'answer' must be a text or a number"),
    ("jsonl", own(answer=["b"]), "'answer' must be a text or a number"),
    ("jsonl", own(answer={"b": 1}), "'answer' must be a text or a number"),
    ("jsonl", own(answer=None), "key 'answer' is missing"),
    ("jsonl", own(answer=" "), "'answer' must be a text"),
    ("jsonl", own(answer="c"), "the answer 'c' is neither a choice nor"),
    ("jsonl", own(answer="lake"), "the answer 'lake' is neither a choice nor"),
    ("jsonl", own(choices=["b", "a"]), "the answer 'b' could be (a) or (b)"),
    ("jsonl", own(choices=["sea", "sea"], answer="sea"), "the answer 'sea' could be (a) or (b)"),
    ("jsonl", own(choices=["Sea", "SEA"], answer="sea"), "the answer 'sea' could be (a) or (b)"),
    ("jsonl", own(choices=[]), "2 to 26 choices, got 0"),
    ("jsonl", own(choices=["sea"]), "2 to 26 choices, got 1"),
    ("jsonl", own(choices=MANY), "2 to 26 choices, got 27"),
    ("jsonl", own(choices="sea, bed"), "must be a list of texts"),
    ("jsonl", own(choices=[["bed"], ["sea"]]), "must be a list of texts"),
    ("jsonl", own(choices=[4, 5]), "must be a list of texts"),
    ("jsonl", own(choices=["bed", "s\nea"]), "holds a line break"),
    ("jsonl", own(id=True), "'id' must be a text"),
    ("jsonl", own(id=1.5), "'id' must be a text"),
    ("jsonl", own(id=""), "'id' must be a text"),
    ("jsonl", json.dumps(OWN).encode(), "the id 'good' is also at"),
    ("jsonl", own(rationale=["It is wet."]), "'rationale' must be a text"),
    ("jsonl", own(rationale="One.\nQ: Two?"), "which is a stop of completions"),
    ("jsonl", own(rationale="Wet.\n#### a"), "contradict each other"),
    ("jsonl", total(rationale="3 + 2\n#### 6"), "contradict each other"),
    ("jsonl", total(answer="5\n6"), "must be one line"),
    ("jsonl", total(answer="#### 5"), "must be one line"),
    ("jsonl", b'{"question": "Where?", "answer": "x", "answer": "y"}', "not JSON (the key 'answer' is there twice)"),
    ("commonsense_qa", cqa().replace(b'"label": "A"', b'"label": "A", "label": "A"'), "the key 'label' is there twice"),
    ("jsonl", total(answer=10**400), "a number of more than 50 digits"),
    ("jsonl", total(answer=-(10**60)), "a number of more than 50 digits"),
    ("jsonl", total(answer=1e300), "a number of more than 50 digits"),
    ("jsonl", total(answer=1e-300), "more than 50 digits as a decimal"),
    ("jsonl", b'{"question": "Where?", "answer": ' + b"1" * 5000 + b"}", "not JSON"),
    ("jsonl", total(answer=1).replace(b'"answer": 1', b'"answer": NaN'), "not a finite number"),
    ("jsonl", total(answer=1).replace(b'"answer": 1', b'"answer": 1e999'), "not a finite number"),
]


def task_of(name, path, **options):
    """The task whose train file is `path`."""
    if name == "jsonl":
        return tasks.make(name, train=str(path), **options)
    return tasks.make(name, data_dir=str(path.parent), **options)


def file_of(name, folder):
    return folder / ("own.jsonl" if name == "jsonl" else "train_rand_split.jsonl")


def good_lines(name):
    return [json.dumps(line).encode() for line in ([OWN, SUM] if name == "jsonl" else [CQA])]


@every_row(("name", "line", "reason"), BROKEN)
def test_a_broken_line_is_named_with_its_place(tmp_path, name, line, reason):
    path = file_of(name, tmp_path)
    good = good_lines(name)
    path.write_bytes(b"\n".join([*good, b"", line, b""]))
    with pytest.raises(InputError) as caught:
        task_of(name, path).problems("train")
    assert str(caught.value).startswith(f"{path}:{len(good) + 2}: ")
    assert reason in str(caught.value) and "skip_bad=True" in str(caught.value)


@every_row(("name", "line", "reason"), BROKEN)
def test_broken_lines_can_be_left_out(tmp_path, name, line, reason, caplog):
    path = file_of(name, tmp_path)
    good = good_lines(name)
    path.write_bytes(b"\n".join([*good, line, line]))
    with caplog.at_level(logging.WARNING, logger="star_jax"):
        problems = task_of(name, path, skip_bad=True).problems("train")
    assert len(problems) == len(good)
    (warning,) = caplog.messages
    assert (
        warning.startswith(f"skipped 2 bad lines, read {len(good)} problems; the first bad line: ")
        and reason in warning
    )


@every_row("name", ["commonsense_qa", "jsonl"])
@every_row("skip_bad", [False, True])
@every_row("content", [b"", b"\n\n", b"  \n\t\n"])
def test_a_file_without_problems_is_refused(tmp_path, name, skip_bad, content):
    path = file_of(name, tmp_path)
    path.write_bytes(content)
    with pytest.raises(InputError, match="holds no problems"):
        task_of(name, path, skip_bad=skip_bad).problems("train")


@every_row("name", ["commonsense_qa", "jsonl"])
@every_row("encoding", ["utf-16", "utf-32", "utf-16-le"])
def test_a_file_in_another_encoding_is_refused(tmp_path, name, encoding):
    path = file_of(name, tmp_path)
    path.write_bytes(b"\n".join(good_lines(name)).decode().encode(encoding))
    with pytest.raises(InputError) as caught:
        task_of(name, path).problems("train")
    assert str(caught.value).startswith(f"{path}:1: not ")
    with pytest.raises(InputError, match="holds no problems"):
        task_of(name, path, skip_bad=True).problems("train")


@every_row("name", ["commonsense_qa", "jsonl"])
def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path, name):
    path = file_of(name, tmp_path)
    good = good_lines(name)
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(good))
    assert len(task_of(name, path).problems("train")) == len(good)


@every_row("name", ["commonsense_qa", "jsonl"])
def test_an_escaped_nul_is_text_like_any_other(tmp_path, name):
    path = file_of(name, tmp_path)
    path.write_bytes(good_lines(name)[0].replace(b"Where?", b"Wh\\u0000ere?"))
    (problem,) = task_of(name, path).problems("train")
    assert problem.question == "Wh\0ere?"


@every_row("name", ["commonsense_qa", "jsonl"])
@every_row("kind", ["a folder", "no file", "no folder", "a file as folder"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, kind):
    path = file_of(name, tmp_path / "deep" if kind.startswith(("no folder", "a file")) else tmp_path)
    if kind == "a folder":
        path.mkdir()
    if kind == "a file as folder":
        path.parent.write_text("")
    with pytest.raises(InputError) as caught:
        task_of(name, path).problems("train")
    assert str(caught.value).startswith(f"{path}: cannot be read (")
