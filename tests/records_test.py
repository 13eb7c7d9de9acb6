"""star_jax.records: what is written is what is read, and a broken line is named."""

import dataclasses
import json
import re

import numpy as np
import pytest

from star_jax.errors import InputError
from star_jax.records import (
    Completion,
    Example,
    Problem,
    Prompt,
    from_json,
    read_jsonl,
    side_fields,
    to_json,
    write_lines,
)  # fmt: skip
from star_jax.tokenizers.simple import ByteTokenizer

PROBLEM = Problem("t-1", "How many?", "72", "word problem", choices=("a bed", "a Ä"), rationale="x\ny")
COMPLETION = Completion("t-1", 2, 0, True, "so\n#### 72", "72", "right", None, -1.25, 9, "0/sample/2/t-1/0/1")
EXAMPLE = Example("t-1", "Q: ?\nA:", " 72", 1, "sampled", unweighted=((0, 1), (2, 3)), log_probability=-0.5)
SIDE = dict(token_ids=(0, 50399, 2**31 - 1), token_log_probs=(-0.0, float(np.float32(-0.1)), float("-inf")))
AWKWARD = ["", "\n\n", '"\\', "!!!", "\x00\x1b\x7f", "\u2028\u2029\x85", "é字𝔸\ufffd", "<|endoftext|>", "\r\n"]


def test_a_record_survives_json():
    for record in (PROBLEM, COMPLETION, EXAMPLE, Problem("i", "q", "a"), dataclasses.replace(EXAMPLE, loss_weight=0.1)):
        assert from_json(type(record), to_json(record)) == record
        assert from_json(type(record), to_json(record, with_side=True)) == record


def test_ids_and_log_probabilities_are_left_out_of_a_line_unless_asked_for():
    """They are in the side file (runs/run_directory_test.py); in a part file they are base64, bit for bit."""
    sampled = dataclasses.replace(COMPLETION, **SIDE)
    kept = dataclasses.replace(EXAMPLE, token_ids=SIDE["token_ids"])
    assert side_fields(Completion) == {"token_ids": "i4", "token_log_probs": "f4"} and not side_fields(Problem)
    for record, plain in ((sampled, COMPLETION), (kept, EXAMPLE)):
        assert to_json(record) == to_json(plain) and "token_ids" not in to_json(record)
        assert from_json(type(record), to_json(record, with_side=True)) == record
    back = from_json(Completion, to_json(sampled, with_side=True))
    assert np.float32(back.token_log_probs).tobytes() == np.float32(SIDE["token_log_probs"]).tobytes()
    with pytest.raises(ValueError, match="'token_ids' should be base64 text"):
        from_json(Example, to_json(EXAMPLE)[:-1] + ', "token_ids": [1]}')


def test_any_text_takes_one_line(tmp_path):
    path = tmp_path / "problems.jsonl"
    for text in AWKWARD:
        records = [Problem(text, text, text, rationale=text), PROBLEM]
        path.write_text(write_lines(records), encoding="utf-8")
        assert to_json(records[0]).count("\n") == 0, text
        assert list(read_jsonl(Problem, path)) == records, text


def test_lists_come_back_as_tuples_so_that_records_hash():
    assert from_json(Example, to_json(EXAMPLE)).unweighted == ((0, 1), (2, 3))
    assert len({from_json(Problem, to_json(PROBLEM)), PROBLEM}) == 1


def test_keys_keep_the_order_of_the_fields():
    assert list(json.loads(to_json(COMPLETION)))[:4] == ["problem_id", "iteration", "sample_index", "hinted"]


def test_defaults_may_be_absent_from_a_line():
    assert from_json(Problem, '{"id": "i", "question": "q", "answer": "a"}') == Problem("i", "q", "a")


BROKEN = [
    ("", "Expecting value"),
    ("\n", "Expecting value"),
    ('{"id": "i", "question"', "Expecting"),
    ("[1, 2]", "it is not a JSON object"),
    ("3", "it is not a JSON object"),
    ('{"id": "i", "question": "q"}', "key 'answer' is missing"),
    ('{"id": "i", "question": "q", "answer": "a", "anwser": "b"}', "unknown key 'anwser'"),
]


def test_a_broken_line_is_named_with_its_reason(tmp_path):
    path = tmp_path / "p.jsonl"
    for line, reason in BROKEN:
        with pytest.raises(ValueError, match=re.escape(reason)):
            from_json(Problem, line)
        path.write_text(f"{to_json(PROBLEM)}\n{line.rstrip()}\n{to_json(PROBLEM)}\n", encoding="utf-8")
        records = read_jsonl(Problem, path)
        assert next(records) == PROBLEM
        with pytest.raises(InputError, match=re.escape(f"{path}:2: not a Problem record ({reason}")):
            next(records)


def test_a_line_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes((to_json(PROBLEM) + "\n").encode() + b'{"id": "\xff"}\n')
    with pytest.raises(InputError, match=re.escape(f"{path}:2: not UTF-8 text")):
        list(read_jsonl(Problem, path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.jsonl: cannot be read"):
        list(read_jsonl(Problem, tmp_path / "absent.jsonl"))


def test_no_records_are_an_empty_file():
    assert write_lines([]) == ""


def test_a_prompts_text_is_prefix_and_body():
    assert Prompt("shot\n\n", "Q:").text == "shot\n\nQ:"


def test_records_cannot_be_changed():
    with pytest.raises(AttributeError):
        PROBLEM.answer = "73"


def test_white_space_between_shots_and_problem_belongs_to_the_problem():
    for prefix, body, parts in (
        ("Q: a\nA: b\n\n", "Q: c", ("Q: a\nA: b", "\n\nQ: c")),
        ("", "Q: c", ("", "Q: c")),
        ("x", " y", ("x", " y")),
        ("\n\n", "y", ("", "\n\ny")),
    ):
        assert ByteTokenizer().split_parts(prefix, body) == parts and "".join(parts) == Prompt(prefix, body).text


def test_a_value_of_another_type_is_named_in_every_field():
    wrong = []
    for record in (PROBLEM, COMPLETION, EXAMPLE):
        values = json.loads(to_json(record))
        for key, bad in ((key, bad) for key in values for bad in ({}, [[1, []]], 10**400)):
            try:
                from_json(type(record), json.dumps(values | {key: bad}))
            except ValueError as error:
                if f"'{key}' should be" not in str(error):
                    wrong.append((key, bad, error))
            else:
                wrong.append((key, bad, "accepted"))
    assert not wrong
