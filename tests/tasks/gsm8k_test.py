"""The GSM8K task: its text, its answers, its files, and all real problems."""

import collections
import dataclasses
import json
import re
import sys
import types

import pytest

from star_jax import tasks
from star_jax.errors import InputError
from star_jax.evaluation.judging import SamplingPass, judge
from star_jax.records import Problem
from star_jax.sampling.sampler import Sample
from star_jax.tasks.gsm8k import Gsm8k
from star_jax.tokenizers import load_directory
from tests.support.tables import every_row

TASK = tasks.make("gsm8k")
DIRECT = tasks.make("gsm8k", direct=True)
LENIENT = tasks.make("gsm8k", answer_rule="lenient")
SOLUTION = "He has 9*8 = <<9*8=72>>72 clips.\n#### 72"
ROW = {"question": "How many clips?", "answer": SOLUTION}


def problem_with(answer):
    return TASK.make_problem({"question": "How many clips?", "answer": f"So it is.\n#### {answer}"}, "train-1")


def verdict(task, answer, text):
    sample = Sample(text, token_ids=(), token_log_probs=(), truncated=False)
    return judge(task, problem_with(answer), sample, SamplingPass("sample", seed=0, iteration=1), 0).verdict


COMPLETIONS = {
    # (the right answer, verdict): completions
    ("72", "right"): [
        "#### 72", " #### 72", "#### 72.", "#### 72 .", "#### $72", "#### $72.", "####72", "####  72", "#### 72 ",
        "#### 72\r",
        "#### 72\n", "####\t72", "####\u00a072", "#### 72.0", "#### 72.00", "#### 72%", "#### 72 %", "#### 72 clips",
        "#### 72 clips.", "#### 72 clips in all!", "#### 72km", "#### +72", "#### 072", "#### 144/2",
        "#### 72 dollars",
        "#### **72**", "**#### 72**", "#### *72*", "#### `72`", "#### \\boxed{72}", "#### $72$", "#### (72)",
        "#### x = 72",
        "#### The answer is 72.", "#### = 72", "#### 72,", "#### 72;", "#### €72", "#### 72 €", "##### 72",
        "#### #72",
        "#### 72 ####", SOLUTION, " " + SOLUTION, "5 or 6, 7 or 8.\n#### 72", "#### 72\n#### 72",
        "#### 72\n#### 72.00",
        "#### 72\nThat is 6 dozen, or 73 less 1.", "#### 72\n\nQ: next", "So #### 72", "1+1=3\n#### 72", "####: 72",
        "#### Answer: 72", "####72clips", "#### 72-clip box", "#### 72/day", "#### '72'",
    ],
    ("72", "wrong"): [
        "#### 73", "#### 71", "#### -72", "#### $-72", "#### 7.2", "#### 720", "#### 72.5", "#### 0.72", "#### 7",
        "#### 2",
        "#### 1/72", "#### 72,000", "72\n#### 73", "#### 073", "The answer is 72.\n#### 73", "#### 73\n#### 73",
        "#### 0",
        "#### 72.000001", "#### - 72", "#### 99999999999999999999",
    ],
    ("72", "unparsable"): [
        "", " ", "\n", "72", " 72", "The answer is 72", "The answer is 72.", "Answer: 72", "\\boxed{72}", "# 72",
        "## 72",
        "### 72", "# # # # 72", "####", "#### ", "####\n72", "####.", "#### $", "#### seventy-two", "#### none",
        "#### clips",
        "#### 72\n#### 73", "#### 73\n#### 72", "#### 72\n####", "####\n#### 72", "#### 72\n#### clips",
        "#### 72 #### 72",
        "#### 72 #### 73", "#### 72 or 73", "#### 72-73", "#### 72 72", "#### 7 2", "#### 72 (73)", "#### 9*8=72",
        "#### 70+2",
        "#### 72k", "#### 72 thousand", "#### 6 dozen", "#### 72...", "#### 72?", "#### not 72", "#### > 72",
        "#### 7,2",
        "#### 7,20", "#### 72e0", "#### 0x48", "#### 72x", "#### x72", "#### ７２", "#### ٧٢", "#### 72½", "#### 72/0",
        "#### 1:12", "#### " + "72" * 30, "<<9*8=72>>72 clips.", "He has 72 clips.\n####\n", "#### 10 3/2",
    ],
    ("1,080", "right"): [
        "#### 1080", "#### 1,080", "#### $1,080", "#### 1,080.00", "#### 1080.", "#### $1080.0", "#### 1,080 miles",
        "#### 1,080\n#### 1080",
    ],
    ("1,080", "wrong"): ["#### 1", "#### 80", "#### 1.080", "#### 10,080"],
    ("1,080", "unparsable"): ["#### 1 080", "#### 10,80", "#### 1,08", "#### 1,0800", "#### 1, 080"],
    ("-5", "right"): ["#### -5", "#### \u22125", "#### -$5", "#### $-5", "#### - $5", "#### -5.0", "#### (-5)",
        "#### – 5"],
    ("-5", "wrong"): ["#### 5", "#### +5", "#### (5)", "#### -6"],
    ("-5", "unparsable"): ["#### minus 5", "#### --5", "#### 0-5", "-5"],
    ("0.5", "right"): ["#### 0.5", "#### .5", "#### 1/2", "#### $0.50", "#### 0.500", "#### 50/100"],
    ("0.5", "wrong"): ["#### 5", "#### 50%", "#### 0.05", "#### 2/1"],
    ("0.5", "unparsable"): ["#### half", "#### a half of 1", "#### ½", "#### 0,5"],
}  # fmt: skip
TABLE = [(*key, text) for key, texts in COMPLETIONS.items() for text in texts]


def test_the_table_is_as_large_as_it_should_be():
    assert len(set(TABLE)) == len(TABLE) >= 150


@every_row(("answer", "expected", "text"), [row for row in TABLE if "####" in row[2]])
def test_the_lenient_reader_judges_a_marked_answer_as_a_person_would(answer, expected, text):
    assert verdict(LENIENT, answer, text) == expected


@every_row(("answer", "expected", "text"), TABLE)
def test_the_strict_reader_reads_plain_numbers_alone(answer, expected, text):
    """By a regular expression: right and wrong as for the lenient reader, and everything else has no answer."""
    stated = re.findall("####(.*)", text.replace("\r", " "))
    plain = stated and all(re.fullmatch(r"\s*-?[0-9][0-9,]*([.][0-9]+)?[.]?\s*", one) for one in stated)
    for task in (TASK, DIRECT):
        assert verdict(task, answer, text) == (expected if plain else "unparsable")


def test_the_strict_reader_reads_what_the_data_has():
    for text in ("#### 72", " #### 72", "####72", "#### 72.", "#### 72 ", SOLUTION, "#### 72\n#### 72.00", "#### 72\r"):
        assert verdict(TASK, "72", text) == "right"
    assert verdict(TASK, "1,080", "#### 1,080") == verdict(TASK, "-5", "#### -5") == "right"
    for text in ("#### $72", "#### 72 clips", "#### **72**", "#### 144/2", "#### +72", "#### 72%", "72"):
        assert verdict(TASK, "72", text) == "unparsable"


@every_row(
    ("text", "answer"),
    [
        ("72", "72"), ("The answer is 72", "72"), ("The answer is 72.", "72"), ("so $1,080.50.", "1080.5"),
        ("He has -5.", "-5"), ("<<9*8=72>>72 clips", "72"), ("1/2", "0.5"), ("72 clips in 3 boxes", "3"),
        ("5 or 6", None), ("####\n72", None), ("#### 72\n#### 73", None), ("", None), ("seventy-two", None),
        ("####", None), ("5/0", None),
    ],
)  # fmt: skip
def test_the_lenient_reader_takes_the_last_number_of_an_unmarked_text(text, answer):
    assert LENIENT.parse(text) == answer


@every_row("answer", ["72", "72.0", "72.00", " 72", "$72", "144/2", "72 clips"])
def test_answers_are_compared_as_numbers(answer):
    assert TASK.grade(problem_with("72"), answer) and TASK.grade(problem_with("72.0"), answer)
    assert not TASK.grade(problem_with("73"), answer)
    assert TASK.grade(problem_with("1,080"), "1,080") and TASK.grade(problem_with("1,080"), "1080.0")


@every_row("answer", ["", "none", "72 or 73", "7 2", "####", "72" * 40])
def test_what_is_no_number_is_not_right(answer):
    assert not TASK.grade(problem_with("72"), answer)


@every_row(
    ("text", "consistent"),
    [
        (SOLUTION, True),
        (SOLUTION.replace("9*8=72", "9*8=73"), False),
        (SOLUTION.replace(">>72", ">>73"), False),
        (SOLUTION + " <<1+1=2>>", True),
        ("<<1+1=2>>2\n<<2+2=5>>5\n#### 72", False),
        ("<<1+1=2\n#### 72", False),
        ("9*8 = 72\n#### 72", None),
        ("9*8 = 73\n#### 72", None),
        ("#### 72", None),
        ("", None),
    ],
)
def test_steps_are_checked_where_they_are_annotated(text, consistent):
    assert TASK.consistent(problem_with("72"), text) is consistent
    assert DIRECT.consistent(problem_with("72"), text) is None


def test_a_problem_as_text():
    problem = TASK.make_problem(ROW, "train-1")
    assert problem == Problem("train-1", "How many clips?", "72", "1 step", (), SOLUTION)
    assert TASK.render(problem) == DIRECT.render(problem) == "Q: How many clips?\nA:"
    assert TASK.render(problem, hint=True) == "Q: How many clips? (72)\nA:"
    assert TASK.reference(problem) == " " + SOLUTION
    assert DIRECT.reference(problem) == " #### 72"
    assert TASK.reference(dataclasses.replace(problem, rationale=None)) is None
    assert (TASK.max_new_tokens, DIRECT.max_new_tokens) == (320, 16)
    assert TASK.stop == ("\n\n", "\nQ:")


def test_the_question_is_put_as_it_is():
    question = "  Two  spaces,\ttwo\nlines? ’é😀 "
    assert TASK.render(TASK.make_problem({**ROW, "question": question}, "x")) == f"Q: {question}\nA:"


@every_row(
    ("solution", "category"),
    [
        ("#### 1", "0 steps"), ("One.\n#### 1", "1 step"), ("One. #### 1", "1 step"),
        ("One.\n\n \nTwo.\n#### 1", "2 steps"),
        ("s\n" * 7 + "#### 1", "7 steps"), ("s\n" * 8 + "#### 1", "8+ steps"), ("s\n" * 30 + "#### 1", "8+ steps"),
    ],
)  # fmt: skip
def test_the_category_counts_the_lines_of_the_solution(solution, category):
    assert TASK.make_problem({**ROW, "answer": solution}, "x").category == category


def test_a_reference_holds_no_stop():
    solution = "\n One.\r\n\r\nTwo.\n \t\n\n#### 72\n\n"
    problem = TASK.make_problem({**ROW, "answer": solution}, "x")
    assert TASK.reference(problem) == " One.\r\nTwo.\n#### 72" and problem.rationale == solution
    assert TASK.parse(TASK.reference(problem)) == "72"


GOOD_LINE = json.dumps(ROW).encode()


def line_with(**values):
    return json.dumps({**ROW, **values}).encode()


@every_row(
    ("line", "reason"),
    [
        (line_with(answer="So 72."), "the answer has no '####'"),
        (line_with(answer="So.\n### 72"), "the answer has no '####'"),
        (line_with(answer="So.\n####"), "does not state exactly one number"),
        (line_with(answer="So.\n#### seventy-two"), "does not state exactly one number"),
        (line_with(answer="So.\n####\n72"), "does not state exactly one number"),
        (line_with(answer="So.\n#### 72 or 73"), "does not state exactly one number"),
        (line_with(answer="So.\n#### 72\n#### 73"), "does not state exactly one number"),
        (line_with(answer="So.\n#### 1,08"), "does not state exactly one number"),
        (line_with(answer="So.\n#### " + "9" * 5000), "does not state exactly one number"),
        (line_with(answer="So.\nQ: why?\n#### 72"), "begins with 'Q:'"),
        (b'{"question": "How many?"}', "key 'answer' is missing"),
        (b'{"answer": "#### 72"}', "key 'question' is missing"),
        (b"{}", "key 'question' is missing"),
        (line_with(question=""), "'question' must be a text that is not empty"),
        (line_with(question=" \n"), "'question' must be a text that is not empty"),
        (line_with(question=["How", "many"]), "'question' must be a text that is not empty"),
        (line_with(answer=""), "'answer' must be a text that is not empty"),
        (line_with(answer=72), "'answer' must be a text that is not empty"),
        (line_with(answer=None), "'answer' must be a text that is not empty"),
        (line_with(answer={"text": "#### 72"}), "'answer' must be a text that is not empty"),
        (b"[]", "not a JSON object"),
        (b'"#### 72"', "not a JSON object"),
        (b"72", "not a JSON object"),
        (b"null", "not a JSON object"),
        (GOOD_LINE[:-20], "not JSON"),
        (GOOD_LINE + GOOD_LINE, "not JSON"),
        (b"Q: How many clips?", "not JSON"),
        (b"\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ('{"question": "Café?", "answer": "#### 72"}'.encode("latin-1"), "not UTF-8"),
        (GOOD_LINE.decode().encode("utf-16-le"), "not"),
        (b'{"question": "\\ud83d", "answer": "#### 72"}', "surrogate"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(tmp_path, line, reason):
    path = tmp_path / "train.jsonl"
    path.write_bytes(GOOD_LINE + b"\n\n" + line + b"\n" + GOOD_LINE + b"\n")
    with pytest.raises(InputError, match=re.escape(reason)) as error:
        tasks.make("gsm8k", data_dir=str(tmp_path)).problems("train")
    assert str(error.value).startswith(f"{path}:3: ") and "\n" not in str(error.value) and len(str(error.value)) < 400
    skipping = tasks.make("gsm8k", data_dir=str(tmp_path), skip_bad=True)
    assert [p.id for p in skipping.problems("train")] == ["train-1", "train-4"]


def test_a_folder_without_its_files_is_named(tmp_path):
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'train.jsonl'}: cannot be read")):
        tasks.make("gsm8k", data_dir=str(tmp_path)).problems("train")
    (tmp_path / "test.jsonl").write_bytes(b"\n")
    with pytest.raises(InputError, match="holds no problems"):
        tasks.make("gsm8k", data_dir=str(tmp_path)).problems("test")


@every_row(
    ("options", "reason"),
    [
        ({"answer_rule": "first"}, "task.answer_rule must be strict or lenient, got 'first'"),
        ({"answer_rule": ""}, "task.answer_rule must be strict or lenient"),
        ({"answer_rule": True}, "task.answer_rule must be str"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"held_out": -1}, "held_out must not be negative"),
        ({"rule": "strict"}, "no option 'rule'"),
    ],
)
def test_wrong_options_are_refused(options, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        tasks.make("gsm8k", **options)


# The real data. Each test goes over all 8,792 problems.


@pytest.fixture(scope="module")
def folder(shared_dir):
    return str(shared_dir / "data" / "gsm8k")


@pytest.fixture(scope="module")
def rows(folder):
    """(what the line says, its problem) of every line."""
    found = []
    for split in ("train", "test"):
        with open(f"{folder}/{split}.jsonl", encoding="utf-8") as file:
            objects = [json.loads(line) for line in file]
        found += zip(objects, tasks.make("gsm8k", data_dir=folder).problems(split), strict=True)
    return found


def number_of(row):
    """The reference answer by other means than the task's: the text after the marker without its commas."""
    return row["answer"].rsplit("#### ", 1)[1].replace(",", "")


def test_every_real_problem_is_read_in_order(rows):
    assert [p.id for _, p in rows] == [f"train-{i}" for i in range(1, 7474)] + [f"test-{i}" for i in range(1, 1320)]
    assert all((p.question, p.rationale) == (row["question"], row["answer"]) for row, p in rows)
    assert all(p.answer == number_of(row) for row, p in rows)


def test_every_real_problem_is_rendered_and_its_hint_is_the_number_alone(rows):
    for row, problem in rows:
        assert TASK.render(problem) == "Q: " + row["question"] + "\nA:"
        hinted = TASK.render(problem, hint=True)
        assert hinted == "Q: " + row["question"] + " (" + number_of(row) + ")\nA:"
        assert "<<" not in hinted and "####" not in hinted


@pytest.mark.slow
@every_row("task", [TASK, DIRECT, LENIENT])
def test_every_real_reference_is_right_and_its_neighbours_are_wrong(rows, task):
    for row, problem in rows:
        text = task.reference(problem)
        assert task.parse(text) == problem.answer and task.grade(problem, task.parse(text))
        assert text.startswith(" ") and not any(stop in text for stop in task.stop)
        assert task.direct or text.split() == row["answer"].split()
        head, number = text.rsplit("#### ", 1)[0], int(problem.answer)
        for other in (number + 1, number - 1, 10 * number + 1, -number or 7):
            answer = task.parse(f"{head}#### {other:,}")
            assert answer == str(other) and not task.grade(problem, answer)


@pytest.mark.slow
def test_the_real_steps_check_out_but_for_two(rows):
    """Those two divide by "//", which is no sign of the calculator's. Every other annotation is exact."""
    found = {problem.id: TASK.consistent(problem, TASK.reference(problem)) for _, problem in rows}
    assert [name for name, consistent in found.items() if consistent is False] == ["train-395", "train-4170"]
    without = {problem.id for row, problem in rows if "<<" not in row["answer"]}
    assert {name for name, consistent in found.items() if consistent is None} == without and len(without) == 113


def test_a_wrong_digit_in_any_real_step_is_found(rows):
    for _, problem in rows[::10]:
        text = TASK.reference(problem)
        for match in re.finditer(r"([0-9])>>", text):
            wrong = str((int(match[1]) + 1) % 10)
            assert TASK.consistent(problem, text[: match.start()] + wrong + text[match.start() + 1 :]) is False


def test_the_classes_are_the_numbers_of_steps(rows):
    counts = collections.Counter(p.category for _, p in rows if p.id.startswith("train"))
    assert sorted(counts.items()) == [
        ("2 steps", 1961), ("3 steps", 2149), ("4 steps", 1659), ("5 steps", 955), ("6 steps", 419), ("7 steps", 227),
        ("8+ steps", 103),
    ]  # fmt: skip


@pytest.mark.slow
def test_the_budgets_hold_the_real_references(rows, shared_dir):
    tokenizer = load_directory(shared_dir / "data" / "gpt2")
    tokens = [len(tokenizer.encode(TASK.reference(p))) + 1 for _, p in rows]  # with the end of text
    assert sum(count > TASK.max_new_tokens for count in tokens) == 1 and max(tokens) == 343
    stop = len(tokenizer.encode(DIRECT.stop[0]))
    assert all(len(tokenizer.encode(DIRECT.reference(p))) + stop <= 16 for _, p in rows)


@pytest.mark.slow
@every_row("held_out", [1, 500, 7472])
def test_the_held_out_split_is_disjoint_and_nothing_is_lost(folder, rows, held_out):
    task = tasks.make("gsm8k", data_dir=folder, held_out=held_out)
    train, dev, test = (task.problems(split) for split in ("train", "dev", "test"))
    assert len(dev) == held_out
    assert sorted(p.id for p in train + dev) == sorted(p.id for _, p in rows if p.id.startswith("train"))
    assert test == [p for _, p in rows if p.id.startswith("test")]
    assert not {p.question for p in train + dev} & {p.question for p in test}


def test_there_is_no_dev_split_without_held_out(folder):
    for data_dir in (folder, ""):
        with pytest.raises(InputError, match=re.escape("no dev file; --config.task.held_out")):
            tasks.make("gsm8k", data_dir=data_dir).problems("dev")
    with pytest.raises(InputError, match="unknown split 'validation'"):
        tasks.make("gsm8k", data_dir=folder).problems("validation")
    with pytest.raises(InputError, match="leave none for training"):
        tasks.make("gsm8k", data_dir=folder, held_out=7473).problems("dev")


def test_the_hub_gives_the_same_problems(folder, rows, monkeypatch):
    asked = []

    def load_dataset(name, configuration, split):
        asked.append((name, configuration, split))
        return [row for row, problem in rows if problem.id.startswith(split)]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    hub = Gsm8k(max_tokens=321)  # an own task, since what is read is kept by task
    assert hub.problems("train") + hub.problems("test") == [problem for _, problem in rows]
    assert asked == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")]
