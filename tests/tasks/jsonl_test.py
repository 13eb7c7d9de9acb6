"""star_jax.tasks.jsonl: a user's own file, with and without choices."""

import hashlib
import json

import pytest

from star_jax import tasks
from star_jax.errors import InputError
from star_jax.records import Problem
from tests.support.tables import every_row

SUM = {"question": "How many are 3 and 2?", "answer": 5}
INK = {"question": "What absorbs ink?", "choices": ["an inkwell", "a blotter", "Blotter paper"], "answer": "b"}
TASK = tasks.make("jsonl", train="unread.jsonl")
DIRECT = tasks.make("jsonl", train="unread.jsonl", direct=True)


def make(values):
    return TASK.make_problem(values, "train-1")


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_both_kinds_of_problems_may_stand_in_one_file(tmp_path):
    file = write(tmp_path / "own.jsonl", [SUM, {**INK, "id": "ink"}, {**INK, "id": 7, "category": "desk"}])
    problems = tasks.make("jsonl", train=file).problems("train")
    assert [p.id for p in problems] == ["train-1", "ink", "7"]
    assert [p.answer for p in problems] == ["5", "b", "b"]
    assert [p.category for p in problems] == ["", "", "desk"]
    assert problems[0].choices == () and problems[1].choices == tuple(INK["choices"])


def test_the_prompts():
    assert TASK.render(make(SUM)) == "Q: How many are 3 and 2?\nA:"
    assert TASK.render(make(SUM), hint=True) == "Q: How many are 3 and 2? (5)\nA:"
    listed = "Q: What absorbs ink?\nAnswer Choices:\n(a) an inkwell\n(b) a blotter{}\n(c) Blotter paper\nA:"
    assert TASK.render(make(INK)) == listed.format("")
    assert TASK.render(make(INK), hint=True) == listed.format(" (CORRECT)")
    assert TASK.stop == DIRECT.stop == ("\n\n", "\nQ:")


def test_the_prompts_with_a_hint_line():
    task = tasks.make("jsonl", train="unread.jsonl", hint_line=True)
    assert task.render(make(SUM)) == TASK.render(make(SUM))
    assert task.render(make(SUM), hint=True) == "Q: How many are 3 and 2?\nHint: #### 5\nA:"
    hinted = TASK.render(make(INK)).removesuffix("A:") + "Hint: Therefore, the answer is a blotter (b).\nA:"
    assert task.render(make(INK), hint=True) == hinted
    assert TASK.parse(" Hint: #### 5") == "5" and task.parse(" Hint: #### 5") is None
    aside = make({**SUM, "question": "How many are\nA: 3 and 2?"})
    assert task.render(aside, hint=True) == "Q: How many are\nA: 3 and 2?\nHint: #### 5\nA:"


@every_row(
    ("text", "answer"),
    [
        (" 3 + 2 = 5.\n#### 5", "5"),
        (" 3 + 2 = 5.\n####5 \nand on", "5"),
        ("#### 5 apples\n", "5 apples"),
        ("#### 5\n#### 5.0", "5.0"),
        ("#### 5\n#### 6", None),
        ("#### 5 #### 6", None),
        ("####", None),
        ("#### \n5", None),
        ("#### (b)", "(b)"),
        (" the answer is a blotter (b).", "b"),
        (" (b).", "b"),
        (" (b)", None),
        ("The answer is B.", None),
        (" 3 + 2 = 5.", None),
        ("5", None),
        ("", None),
    ],
)
def test_parse(text, answer):
    assert TASK.parse(text) == answer


@every_row(
    ("text", "answer"),
    [(" 5", "5"), (" 5.\n", "5."), (" (b).", "b"), ("B", "B"), (" a blotter", "a blotter"), ("", None), (" \n", None),
     ("#### 5", "5")],
)  # fmt: skip
def test_parse_of_direct_answers(text, answer):
    assert DIRECT.parse(text) == answer


@every_row(
    ("reference", "answer", "right"),
    [
        (5, "5", True),
        (5, "5.", True),
        (5, "5.00", True),
        (5, "$5", True),
        (5, "5 apples", True),
        (5, "6", False),
        (5, "-5", False),
        (5, "five", False),
        (72, "72.0", True),
        ("72", "$72", True),
        ("1,080", "1080", True),
        ("1080", "1,080.", True),
        ("10%", "10", True),
        ("-3", "−3", True),
        (0.5, "1/2", True),
        (0.5, "0.5", True),
        ("5 apples", "5", True),
        ("5 apples", "5 pears", False),
        ("5 apples", "5  Apples.", True),
        ("New York", "new  york.", True),
        ("New York", "York", False),
        ("B", "b", True),
        ("B", "(b)", True),
        ("(b)", "B.", True),
        ("New York", "**New York**", True),
        ("New York", '"New York."', True),
        ("New York", "‘new york’!", True),
        ("New York", "**York**", False),
        ("yes", "Yes!", True),
        ("5", "5!", True),
        ("C", "C!", True),
        ("C++", "C", False),
        ("__init__", "init", False),
        ("**", "*", False),
        (".", "!", False),
        ("(ab)", "ab", False),
        ("café", "cafe\u0301", True),
        ("cafe\u0301", "CAFÉ", True),
        ("cafe", "café", False),
        (0.00001, "0.00001", True),
        (0.00001, "1e-5", True),
        (0.00001, "1e-05", True),
        (0.00001, "0.0001", False),
        (2.5e-5, "0.000025", True),
        (1e16, "10000000000000000", True),
        (1e16, "10,000,000,000,000,000", True),
        ("1e-5", "0.00001", True),
        ("1E+3", "1,000", True),
        ("-2.5e3", "-2500", True),
        ("1e999999999", "1e999999999", True),
        ("9" * 400, "9" * 400, True),
        ("9" * 400, "9" * 399, False),
        ("yes", "Yes.", True),
        ("yes", "no", False),
        ("yes", "", False),
    ],
)
def test_answers_without_choices_are_compared_as_numbers_or_as_texts(reference, answer, right):
    assert TASK.grade(make({**SUM, "answer": reference}), answer) is right


def test_answers_with_choices_want_the_letter():
    problem = make(INK)
    for text in ("#### b", "#### B", "#### (b)", " the answer is a blotter (b)."):
        assert TASK.grade(problem, TASK.parse(text))
    assert DIRECT.grade(problem, DIRECT.parse(" B")) and not DIRECT.grade(problem, DIRECT.parse("It is B"))
    for text in ("#### a", "#### a blotter", "#### the answer is b", "the answer is an inkwell (b).", "#### {}"):
        assert not TASK.grade(problem, TASK.parse(text))
    lenient = tasks.make("jsonl", answer_rule="lenient")
    for text in ("#### the answer is b", " B", "It is B, since a blotter soaks."):
        assert lenient.grade(problem, lenient.parse(text))
    assert not lenient.grade(problem, lenient.parse("It is B, an inkwell."))


@every_row(
    ("choices", "answer", "letter"),
    [
        (["x", "y"], "b", "b"),
        (["x", "y"], "B", "b"),
        (["x", "y"], "y", "b"),
        (["x", "Y"], "y", "b"),
        (["y", "Y"], "Y", "b"),
        (["a", "b"], "a", "a"),
        (["4", "5"], 5, "b"),
        (["New York", "Boston"], "new york", "a"),
        (["x", "x"], "b", "b"),
        (["tea", "café"], "cafe\u0301", "b"),
        (["tea", "cafe\u0301"], "Café", "b"),
        (["0.00001", "5"], 0.00001, "a"),
    ],
)
def test_the_answer_is_a_letter_or_a_choice(choices, answer, letter):
    assert make({"question": "?", "choices": choices, "answer": answer}).answer == letter


@every_row(
    ("values", "reference", "direct"),
    [
        (SUM, " #### 5", " 5"),
        ({**SUM, "rationale": "3 + 2 = 5."}, " 3 + 2 = 5.\n#### 5", " 5"),
        ({**SUM, "rationale": "3 + 2 = 5.\n\n \nSo 5.\n"}, " 3 + 2 = 5.\nSo 5.\n#### 5", " 5"),
        ({**SUM, "rationale": "3 + 2 = 5.\r\n\r\n#### 5"}, " 3 + 2 = 5.\n#### 5", " 5"),
        ({**SUM, "rationale": "3 + 2 = 5.\n#### 5.0"}, " 3 + 2 = 5.\n#### 5.0", " 5"),
        ({**SUM, "answer": " -0.5 "}, " #### -0.5", " -0.5"),
        ({**SUM, "answer": "New York."}, " #### New York.", " New York."),
        ({**SUM, "answer": "(b)"}, " #### (b)", " (b)"),
        ({**SUM, "answer": "B"}, " #### B", " B"),
        ({**SUM, "answer": "option C"}, " #### option C", " option C"),
        ({**SUM, "answer": 1e-7}, " #### 0.0000001", " 0.0000001"),
        ({**SUM, "answer": 1e16}, f" #### {10**16}", f" {10**16}"),
        ({**SUM, "answer": "1e-5"}, " #### 0.00001", " 0.00001"),
        ({**SUM, "answer": 10**30}, f" #### {10**30}", f" {10**30}"),
        (INK, " Therefore, the answer is a blotter (b).", " (b)."),
        ({**INK, "rationale": "It soaks."}, " It soaks. Therefore, the answer is a blotter (b).", " (b)."),
        (
            {**INK, "rationale": "It soaks.\n\nAll."},
            " It soaks.\nAll. Therefore, the answer is a blotter (b).",
            " (b).",
        ),
        ({**INK, "rationale": "So the answer is (b)."}, " So the answer is (b).", " (b)."),
        ({**INK, "rationale": "Soaks.\n#### b"}, " Soaks.\n#### b", " (b)."),
        ({**INK, "choices": ["neither", "both (a) and (c)", "x"]}, " Therefore, the answer is (b).", " (b)."),
        ({**INK, "choices": ["O", "C", "AB"]}, " Therefore, the answer is C (b).", " (b)."),
        ({**INK, "choices": ["+", "-", "*"]}, " Therefore, the answer is - (b).", " (b)."),
    ],
)
def test_references_are_right_whole_and_as_documented(values, reference, direct):
    for task, expected in ((TASK, reference), (DIRECT, direct)):
        problem = task.make_problem(values, "train-1")
        text = task.reference(problem)
        assert text == expected
        assert task.grade(problem, task.parse(text))
        assert not any(stop in text for stop in task.stop)


def test_the_rationale_is_kept_with_the_problem():
    assert make({**SUM, "rationale": "3 + 2\n\n= 5."}).rationale == "3 + 2\n\n= 5."
    assert make({**SUM, "rationale": None}).rationale is None


def test_paths_are_taken_from_the_data_folder_where_it_is_set(tmp_path):
    file = write(tmp_path / "own.jsonl", [SUM, {**SUM, "answer": 6}])
    inside = tasks.make("jsonl", data_dir=str(tmp_path), train="own.jsonl", dev="own.jsonl", test=file)
    for split in ("train", "dev", "test"):
        assert [p.answer for p in inside.problems(split)] == ["5", "6"]
    assert [p.id for p in inside.problems("dev")] == ["dev-1", "dev-2"]


def test_a_dev_split_is_held_out_of_train(tmp_path):
    file = write(tmp_path / "own.jsonl", [{"question": f"{n}?", "answer": n} for n in range(20)])
    task = tasks.make("jsonl", train=file, held_out=5)
    train, dev = ({p.id for p in task.problems(split)} for split in ("train", "dev"))
    assert (len(train), len(dev), len(train | dev)) == (15, 5, 20)


@every_row(
    ("options", "split", "reason"),
    [
        ({}, "train", "set --config.task.train=FILE"),
        ({"held_out": 5}, "dev", "set --config.task.train=FILE"),
        ({"train": "x"}, "dev", r"set --config.task.dev=FILE, or --config.task.held_out=500"),
        ({"train": "x"}, "test", "set --config.task.test=FILE"),
        ({"train": "x"}, "validation", "unknown split"),
    ],
)
def test_a_missing_file_option_is_named(options, split, reason):
    with pytest.raises(InputError, match=reason):
        tasks.make("jsonl", **options).problems(split)


def test_two_sources_of_the_dev_split_are_refused():
    with pytest.raises(InputError, match=r"task.dev or from task.held_out"):
        tasks.make("jsonl", train="x", dev="y", held_out=5)


def test_budgets():
    assert TASK.max_new_tokens == 256 and tasks.make("jsonl", max_tokens=64).max_new_tokens == 64


@every_row(
    ("answer", "text", "right"),
    [
        ("Vitamin (C)", "#### c", False),
        ("Vitamin (C)", "The answer is (c).", False),
        ("Vitamin (C)", "#### vitamin (c).", True),
        ("(c)", "The answer is (c).", True),
    ],
)
def test_a_lone_letter_is_right_only_where_the_answer_is_one(answer, text, right):
    task = tasks.make("jsonl")
    assert task.grade(Problem("p", "?", answer), task.parse(text)) == right


def test_problems_that_ask_the_same_are_held_out_together(tmp_path):
    kinds = ["{}?", "{}? ", " {}?", "Caf\u00e9 {}", "cafe\u0301  {}"]
    lines = [{"question": kind.format(n), "answer": n} for n in range(20) for kind in kinds]
    lines += [
        {"question": "Which?", "choices": pair, "answer": pair[0]} for pair in (["x", "y"], ["Y", "x"], ["x", "z"])
    ]
    lines += [{"question": f"Once {n}?", "answer": n} for n in range(30)]
    file = write(tmp_path / "own.jsonl", lines)
    for count in (1, 2, 7, 50, 90):
        task = tasks.make("jsonl", train=file, held_out=count)
        train, dev = task.problems("train"), task.problems("dev")
        assert len(dev) == count and len(train) + len(dev) == len(lines)
        asked = [{" ".join(p.question.casefold().replace("e\u0301", "é").split()) for p in split if not p.choices}
                 for split in (train, dev)]  # fmt: skip
        assert not asked[0] & asked[1]
        assert len({p.id in {d.id for d in dev} for p in train + dev if p.choices in (("x", "y"), ("Y", "x"))}) == 1


def test_a_dev_split_that_repeats_train_is_refused(tmp_path):
    file = write(tmp_path / "own.jsonl", [{**SUM, "question": f"{n % 2}?"} for n in range(20)])
    with pytest.raises(
        InputError, match=r"of 20 train problems, 10 and not 15 can be held out.*held_out=10, or remove"
    ):
        tasks.make("jsonl", train=file, held_out=15).problems("dev")
    with pytest.raises(InputError, match=r"0 and not 5 can be held out .*; remove the repeated lines"):
        tasks.make("jsonl", train=file, held_out=5).problems("dev")
    assert len(tasks.make("jsonl", train=file, held_out=10).problems("train")) == 10


@every_row("name", ["gsm8k", "commonsense_qa"])
def test_official_files_repeat_nothing_and_keep_their_split(name, shared_dir):
    """The split that every run so far has: the problems with the smallest hashes of their ids."""
    folder = str(shared_dir / "data" / name)
    whole = tasks.make(name, data_dir=folder).problems("train")
    ranked = sorted(whole, key=lambda p: hashlib.sha256(p.id.encode()).digest())
    assert len({(p.question, p.choices) for p in whole}) == len(whole)
    for count in (1, 500, 7472):
        dev = tasks.make(name, data_dir=folder, held_out=count).problems("dev")
        assert {p.id for p in dev} == {p.id for p in ranked[:count]}
