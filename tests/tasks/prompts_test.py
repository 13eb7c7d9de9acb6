"""The packaged few-shot prompts: their format, that they are true, and that no data set holds them."""

import collections
import itertools
import json
import re
from fractions import Fraction

import pytest

from star_jax.tasks import few_shot
from star_jax.tasks.few_shot import PACKAGED
from star_jax.tokenizers import load_directory
from tests.support.tables import every_row

COUNTS = {"arithmetic": 10, "commonsense_qa": 10, "gsm8k": 8}
KINDS = ("", "_hint", "_direct")
DATA = {  # the files, whichever part of them a split is
    "commonsense_qa": ("train_rand_split.jsonl", "dev_rand_split.jsonl", "test_rand_split_no_answers.jsonl"),
    "gsm8k": ("train.jsonl", "test.jsonl"),
}
DIGITS = r"[0-9](?: [0-9])*"
CHOICE = r"[a-z]+(?: [a-z]+){0,2}"
FORMATS = {
    "arithmetic": re.compile(
        rf"(?P<question>Input:\n{DIGITS} \+ {DIGITS}\nTarget:)\n"
        rf"(?P<completion><scratch>\n(?:[^\n]+\n)+</scratch>\n(?P<answer>{DIGITS}))"
    ),
    "commonsense_qa": re.compile(
        r"Q: (?P<question>[A-Z][^\n]+\?)\nAnswer Choices:\n"
        rf"(?P<choices>\(a\) {CHOICE}\n\(b\) {CHOICE}\n\(c\) {CHOICE}\n\(d\) {CHOICE}\n\(e\) {CHOICE})\n"
        r"A: (?P<completion>(?P<rationale>[A-Z][^\n]+\.)"
        rf" Therefore, the answer is (?P<right>{CHOICE}) \((?P<answer>[a-e])\)\.)"
    ),
    "gsm8k": re.compile(
        r"Q: (?P<question>[A-Z][^\n]+\?)\n"
        r"A: (?P<completion>(?P<solution>[A-Z][^\n]+\.(?:\n[A-Z][^\n]+\.){1,5})\n#### (?P<answer>[1-9][0-9]{0,3}))"
    ),
}
# "3*4 = $<<3*4=12>>12": the sum, its annotation, the result once more.
STEP = re.compile(r"(?<= )([0-9+\-*/().]+) = \$?<<\1=([0-9]+(?:\.[0-9]+)?)>>\2(?=[ .])")
NUMBER = r"[0-9]+(?:\.[0-9]+)?"


def shots(name, kind=""):
    return few_shot.read_shots(PACKAGED / f"{name}{kind}.txt")


def parsed(name):
    """The named parts of each shot with a rationale."""
    matches = [FORMATS[name].fullmatch(shot) for shot in shots(name)]
    assert None not in matches
    return [match.groupdict() for match in matches]


def choices(part):
    return [line[4:] for line in part["choices"].split("\n")]


def hinted(name, shot, part):
    """The shot as its problem with the hint is written."""
    question, answer = part["question"], part["answer"]
    if name == "arithmetic":
        return shot.replace("Target:", f"Target: {answer}")
    if name == "gsm8k":
        return shot.replace(f"Q: {question}\n", f"Q: {question} ({answer})\n")
    right = f"({answer}) {part['right']}\n"
    return shot.replace(right, right.replace("\n", " (CORRECT)\n"))


def direct(name, shot, part):
    """The shot with its answer only."""
    answer = {"arithmetic": "{}", "commonsense_qa": "({}).", "gsm8k": "#### {}"}[name].format(part["answer"])
    return shot.replace(part["completion"], answer)


def normal(text):
    """Letters and digits only, casefolded."""
    return "".join(c for c in text.casefold() if c.isalnum())


def four_grams(text):
    words = re.findall(r"[a-z0-9]+", text.casefold().replace("’", "'").replace("'", ""))
    return set(zip(*(words[i:] for i in range(4)), strict=False))


@pytest.fixture(scope="module")
def data(shared_dir):
    """Task -> every problem of its files, as parsed JSON."""
    found = {}
    for name, files in DATA.items():
        paths = [shared_dir / "data" / name / file for file in files]
        if missing := [path for path in paths if not path.is_file()]:
            pytest.skip(f"no {missing[0]}")
        found[name] = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return found


def questions(data, name):
    return [row["question"]["stem"] if name == "commonsense_qa" else row["question"] for row in data[name]]


def test_these_are_all_packaged_files():
    assert sorted(p.name for p in PACKAGED.glob("*.txt")) == sorted(f"{n}{kind}.txt" for n in COUNTS for kind in KINDS)


@every_row("kind", KINDS)
@every_row("name", COUNTS)
def test_one_blank_line_between_shots_and_one_newline_at_the_end(name, kind):
    text = (PACKAGED / f"{name}{kind}.txt").read_bytes().decode("ascii")
    assert text == "\n\n".join(shots(name, kind)) + "\n"
    assert len(shots(name, kind)) == COUNTS[name]
    assert not re.search(r"[ \t\r]\n|  |\n\n\n", text)


@every_row("name", COUNTS)
def test_every_shot_has_the_format_of_its_task(name):
    assert len({normal(part["question"]) for part in parsed(name)}) == COUNTS[name]


@every_row("name", COUNTS)
def test_hinted_and_direct_shots_are_the_same_problems_in_the_same_order(name):
    plain = list(zip(shots(name), parsed(name), strict=True))
    assert shots(name, "_hint") == [hinted(name, shot, part) for shot, part in plain]
    assert shots(name, "_direct") == [direct(name, shot, part) for shot, part in plain]
    files = [shots(name, kind) for kind in KINDS]
    assert all(len(set(same)) == 3 for same in zip(*files, strict=True))  # the hint and the answer alone do show


def test_commonsense_qa_concludes_the_choice_its_letter_names():
    for part in parsed("commonsense_qa"):
        listed = choices(part)
        assert listed["abcde".index(part["answer"])] == part["right"]
        assert len({normal(choice) for choice in listed}) == 5


def test_commonsense_qa_letters_are_balanced_and_mixed():
    letters = [part["answer"] for part in parsed("commonsense_qa")]
    assert collections.Counter(letters) == dict.fromkeys("abcde", 2)
    assert set(letters[:7]) == set("abcde")  # the original's runs show seven
    steps = [(ord(b) - ord(a)) % 5 for a, b in itertools.pairwise(letters)]
    assert 0 not in steps and len(set(steps)) > 2  # neither repeated nor in turn


def test_commonsense_qa_rationales_reason_about_the_choices_and_not_about_a_mark():
    for part in parsed("commonsense_qa"):
        rationale = part["rationale"]
        assert 1 <= len(re.split(r"(?<=[.?!]) ", rationale)) <= 3
        assert re.search(rf"\b{part['right']}\b", rationale)
        assert not re.search(r"\b(correct|hint|hinted|marked|answer|choices?|option)\b|[()]", rationale, re.IGNORECASE)


def test_commonsense_qa_rationales_open_in_different_words():
    openings = [tuple(part["rationale"].split()[:2]) for part in parsed("commonsense_qa")]
    assert len(set(openings)) == len(openings)


def test_gsm8k_has_one_annotated_step_a_line():
    for part in parsed("gsm8k"):
        for line in part["solution"].split("\n"):
            assert len(STEP.findall(line)) == line.count("<<") == line.count(">>") == 1, line


def value(expression):
    """The exact value of plain arithmetic; its characters can spell nothing else."""
    assert re.fullmatch(r"[0-9+\-*/().]+", expression) and "**" not in expression and "//" not in expression
    return eval(re.sub(NUMBER, r"Fraction('\g<0>')", expression), {"Fraction": Fraction})


def test_gsm8k_annotations_are_right_and_lead_to_the_answer():
    for part in parsed("gsm8k"):
        steps = STEP.findall(part["solution"])
        for expression, result in steps:
            assert value(expression) == Fraction(result), expression
        assert steps[-1][1] == part["answer"]


def test_gsm8k_steps_build_on_the_question_and_each_other():
    for part in parsed("gsm8k"):
        steps = STEP.findall(part["solution"])
        used = [re.findall(NUMBER, expression) for expression, _ in steps]
        for i, (_, result) in enumerate(steps[:-1]):
            assert any(result in later for later in used[i + 1 :]), f"{result} is used in no later step"
        for number in re.findall(NUMBER, part["question"]):
            assert any(number in numbers for numbers in used), f"{number} is given for nothing"


def test_gsm8k_shows_every_operation_a_decimal_and_solutions_of_two_to_six_steps():
    steps = [STEP.findall(part["solution"]) for part in parsed("gsm8k")]
    text = "".join(expression for solution in steps for expression, _ in solution)
    assert set("+-*/.") <= set(text)
    assert {len(solution) for solution in steps} >= {2, 6}


@every_row("name", DATA)
def test_no_question_is_in_the_data(data, name):
    everything = "\n".join(normal(question) for question in questions(data, name))
    for part in parsed(name):
        assert normal(part["question"]) not in everything


@every_row("name", DATA)
def test_no_question_is_nearly_one_of_the_data(data, name):
    grams = [four_grams(question) for question in questions(data, name)]
    for part in parsed(name):
        ours = four_grams(part["question"])
        assert max(len(ours & theirs) for theirs in grams) < 0.6 * len(ours), part["question"]


def test_no_commonsense_qa_shot_has_the_choices_of_the_data(data):
    theirs = {frozenset(normal(c["text"]) for c in row["question"]["choices"]) for row in data["commonsense_qa"]}
    assert not theirs & {frozenset(map(normal, choices(part))) for part in parsed("commonsense_qa")}


@every_row(("name", "count", "budget"), [("commonsense_qa", 7, 850), ("gsm8k", 8, 1300)])
def test_the_shots_fit_their_token_budget(shared_dir, name, count, budget):
    folder = shared_dir / "data" / "gpt2"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    tokenizer = load_directory(folder)
    assert len(tokenizer.encode(few_shot.load(name, count, direct=False).plain)) <= budget
