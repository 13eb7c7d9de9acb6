"""star_jax.tasks.commonsense_qa: every official problem, the splits, and rows from the hub."""

import dataclasses
import json
import sys
import types

import pytest

from star_jax import tasks
from star_jax.errors import InputError
from star_jax.tasks.answers import choices
from tests.support.tables import every_row

OFFICIAL = {"train": ("train_rand_split.jsonl", 9741), "test": ("dev_rand_split.jsonl", 1221)}
LINE = {
    "answerKey": "E",
    "id": "ink",
    "question": {
        "question_concept": "ink",
        "stem": "What absorbs ink?",
        "choices": [
            {"label": label, "text": text}
            for label, text in zip("ABCDE", ["pocket", "hand", "inkwell", "drawer", "blotter"], strict=True)
        ],
    },
}
ROW = {
    "id": "ink",
    "question": "What absorbs ink?",
    "question_concept": "ink",
    "choices": {"label": list("ABCDE"), "text": ["pocket", "hand", "inkwell", "drawer", "blotter"]},
    "answerKey": "E",
}


def official(shared_dir, **options):
    return tasks.make("commonsense_qa", data_dir=str(shared_dir / "data" / "commonsense_qa"), **options)


def raw(shared_dir, split):
    file, count = OFFICIAL[split]
    lines = (shared_dir / "data" / "commonsense_qa" / file).read_text(encoding="utf-8").split("\n")
    values = [json.loads(line) for line in lines if line]
    assert len(values) == count
    return values


@every_row("split", OFFICIAL)
def test_every_official_problem_reads_as_in_its_file(shared_dir, split):
    problems = official(shared_dir).problems(split)
    for problem, values in zip(problems, raw(shared_dir, split), strict=True):
        plain = hinted = "Q: " + values["question"]["stem"] + "\nAnswer Choices:\n"
        for choice in values["question"]["choices"]:
            line = f"({choice['label'].lower()}) {choice['text']}"
            plain += line + "\n"
            hinted += line + (" (CORRECT)\n" if choice["label"] == values["answerKey"] else "\n")
        assert official(shared_dir).render(problem) == plain + "A:"
        assert official(shared_dir).render(problem, hint=True) == hinted + "A:"
        assert (problem.id, problem.answer) == (values["id"], values["answerKey"].lower())


@pytest.mark.slow
@every_row("split", OFFICIAL)
@every_row("direct", [False, True])
@every_row("rule", ["strict", "lenient"])
def test_every_reference_is_right_and_every_other_letter_wrong(shared_dir, split, direct, rule):
    task = official(shared_dir, direct=direct, answer_rule=rule)
    for problem in task.problems(split):
        reference = task.reference(problem)
        assert task.grade(problem, task.parse(reference)), problem
        assert "\n" not in reference
        for letter in "abcde".replace(problem.answer, ""):
            other = task.reference(dataclasses.replace(problem, answer=letter))
            answer = task.parse(other)
            assert answer is None or not task.grade(problem, answer), problem
            # The right letter beside another choice's text.
            other = problem.choices["abcde".index(letter)]
            answer = task.parse(f" Therefore, the answer is {other} ({problem.answer}).")
            same = choices.normalised(other) == choices.normalised(problem.choices["abcde".index(problem.answer)])
            assert same or answer is None or not task.grade(problem, answer), (problem, other)


def test_dev_is_the_test_split_unless_it_is_held_out_of_train(shared_dir):
    task, held = official(shared_dir), official(shared_dir, held_out=500)
    assert task.problems("dev") == task.problems("test") == held.problems("test")
    train, dev = ({p.id for p in held.problems(split)} for split in ("train", "dev"))
    assert len(dev) == 500 and not train & dev
    assert train | dev == {p.id for p in task.problems("train")}
    assert not (train | dev) & {p.id for p in task.problems("test")}


def test_the_published_completion_is_right(tmp_path):
    task = tasks.make("commonsense_qa")
    problem = task.make_problem(LINE, "train-1")
    text = " The answer must absorb ink. Of the above choices, only blotters do. Therefore, the answer is blotter (e)."
    assert task.parse(text) == "e" and task.grade(problem, task.parse(text))
    for answer in ("e", "E", "(e)"):
        assert task.grade(problem, answer)
    for answer in ("a", "A", "(d)", "blotter", ""):
        assert not task.grade(problem, answer)
    assert task.parse("The answer is E, because it soaks.") is None
    assert task.lenient().parse("The answer is E, because it soaks.") == "e" and task.lenient().lenient() is None
    assert task.reference(problem) == " Therefore, the answer is blotter (e)."
    assert tasks.make("commonsense_qa", direct=True).reference(problem) == " (e)."
    assert task.consistent(problem, text) is None


def test_budgets_and_the_stop():
    assert tasks.make("commonsense_qa").max_new_tokens == 128
    assert tasks.make("commonsense_qa", max_tokens=64).max_new_tokens == 64
    assert tasks.make("commonsense_qa", direct=True).max_new_tokens == 12
    assert tasks.make("commonsense_qa").stop == ("\n",)


def test_texts_are_kept_as_they_are():
    stem = "  Two  spaces, é and a trailing one "
    line = {**LINE, "question": {**LINE["question"], "stem": stem}}
    problem = tasks.make("commonsense_qa").make_problem(line, "train-1")
    assert problem.question == stem
    assert tasks.make("commonsense_qa").make_problem({**ROW, "question": stem}, "train-1") == problem


def test_rows_from_the_hub_are_the_same_problems(monkeypatch):
    asked = []

    def load_dataset(name, configuration, split):
        asked.append((name, configuration, split))
        return [ROW, {**ROW, "id": "ink 2", "answerKey": "A"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    # An option nothing else in this process uses: problems are read once for equal options.
    task = tasks.make("commonsense_qa", max_tokens=77)
    assert task.problems("train")[0] == task.make_problem(LINE, "train-1")
    assert [p.answer for p in task.problems("dev")] == ["e", "a"]
    assert task.problems("test") == task.problems("dev")
    assert asked == [("tau/commonsense_qa", "default", split) for split in ("train", "validation", "validation")]


def test_a_broken_row_of_the_hub_is_named(monkeypatch):
    rows = [ROW, {**ROW, "id": "ink 2", "answerKey": ""}]
    stand_in = types.SimpleNamespace(load_dataset=lambda *names, split: rows)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    with pytest.raises(InputError, match="tau/commonsense_qa test:2: 'answerKey' must be a text that is not empty"):
        tasks.make("commonsense_qa", max_tokens=78).problems("test")


def test_without_files_and_without_the_library_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError) as caught:
        tasks.make("commonsense_qa", max_tokens=79).problems("train")
    assert "--config.task.data_dir" in str(caught.value) and "pip install datasets" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match="unknown split 'validation'"):
        tasks.make("commonsense_qa").problems("validation")


@every_row("text", [" The choice marked (CORRECT) is x. Therefore, the answer is x (e).", " x (CORRECT) (e)."])
def test_a_completion_that_repeats_the_hint_s_mark_has_no_answer(text):
    assert tasks.make("commonsense_qa").parse(text) is None and tasks.make("jsonl").parse(text) is None
