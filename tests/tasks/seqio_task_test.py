"""star_jax.tasks.seqio_task: texts registered with seqio become problems; whatever is amiss is named."""

import itertools
import re
import sys

import pytest

from star_jax import tasks
from star_jax.errors import InputError
from star_jax.records import Problem
from star_jax.tasks import few_shot
from tests.support.tables import every_row

TEXTS = {
    "train": [
        ("How much is 3 + 4?", "3 and 4 more is 7.\n#### 7"),
        ("  Name é!\n", "It is #### old,\r\n\r\n so\n####   New  York \nand on"),
        ("No steps here", " just  an\n\nanswer "),
    ],
    "validation": [("dev", "#### a")],
}
_NAMES = (f"star_jax_test_{i}" for i in itertools.count())


def source(texts):
    """A seqio source of the given split -> [(inputs, targets)]."""
    import seqio
    import tensorflow as tf

    def dataset(split, shuffle_files=False, seed=None):
        inputs, targets = zip(*texts[split], strict=True)
        return tf.data.Dataset.from_tensor_slices({"inputs": list(inputs), "targets": list(targets)})

    return seqio.FunctionDataSource(dataset, splits=list(texts))


def register(texts=None, kind="text", name=None) -> str:
    """Registers a seqio Task and returns its name; `kind` says what becomes of the texts."""
    import seqio
    import tensorflow as tf

    name = name or next(_NAMES)
    text = seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.string, rank=0)
    ids = seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
    features, steps = {
        "text": ({"inputs": text, "targets": text}, []),
        "tokenized": ({"inputs": ids, "targets": ids}, [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]),
        "ids only": (
            {"inputs": ids, "targets": ids},
            [lambda ds, output_features: seqio.preprocessors.tokenize(ds, output_features, copy_pretokenized=False)],
        ),
        "targets only": (
            {"targets": text},
            [lambda ds: ds.map(lambda x: {"targets": x["targets"]})],
        ),
        "broken": ({"inputs": text, "targets": text, "more": text}, []),
    }[kind]
    seqio.TaskRegistry.add(name, source=source(texts or TEXTS), preprocessors=steps, output_features=features)
    return name


def make(name, **options):
    return tasks.make("seqio_task", task=name, **options)


@every_row("kind", ["text", "tokenized"])
def test_problems_are_the_texts_with_or_without_a_tokenizer(kind):
    task = make(register(kind=kind))
    assert task.problems("train") == [
        Problem("train-0", "How much is 3 + 4?", "7", rationale="3 and 4 more is 7.\n#### 7"),
        Problem("train-1", "Name é!", "New York", rationale="It is #### old,\n so\n####   New  York\nand on"),
        Problem("train-2", "No steps here", "just an answer"),
    ]
    assert [p.id for p in task.problems("dev")] == ["dev-0"]


def test_prompts_and_references():
    name = register()
    task, direct = make(name), make(name, direct=True)
    first, _, last = task.problems("train")
    assert task.render(first) == "Q: How much is 3 + 4?\nA:"
    assert task.render(first, hint=True) == "Q: How much is 3 + 4? (7)\nA:"
    assert task.reference(first) == " 3 and 4 more is 7.\n#### 7"
    assert task.reference(last) is None
    assert direct.reference(first) == " 7" and direct.reference(last) == " just an answer"
    other = make(name, hint_template="{answer} answers {inputs}:", max_tokens=9)
    assert other.render(Problem("x", "{answer} {}", "{inputs}"), hint=True) == "{inputs} answers {answer} {}:"
    assert other.max_new_tokens == 9


@every_row("direct", [False, True])
def test_every_reference_is_right_and_not_cut_by_a_stop(direct):
    task = make(register(), direct=direct)
    for problem in task.problems("train"):
        text = task.reference(problem)
        if text is not None:
            assert task.grade(problem, task.parse(text)) and not any(stop in text for stop in task.stop)


@every_row(
    ("text", "answer", "direct_answer"),
    [
        (" 3 and 4 is\n#### 7", "7", "3 and 4 is #### 7"),
        ("#### 7\nmore", "7", "#### 7 more"),
        ("#### 6, no:\n####  7  b \n", "7 b", "#### 6, no: #### 7 b"),
        ("so #### 7 #### 8", "8", "so #### 7 #### 8"),
        (" 7", None, "7"),
        ("### 7", None, "### 7"),
        ("####", None, "####"),
        ("#### 7\n####\n8", None, "#### 7 #### 8"),
        (" \n", None, None),
        ("", None, None),
    ],
)
def test_parse(text, answer, direct_answer):
    assert make("any").parse(text) == answer
    assert make("any", direct=True).parse(text) == direct_answer


def test_another_marker():
    task = make("any", answer_marker="The answer is")
    assert task.parse("It flies. The answer is a bird") == "a bird" and task.parse("#### 7") is None


@every_row(
    ("answer", "right"),
    [
        ("New York", True),
        ("new york", True),
        (" New   York ", True),
        ("NEW YORK.", True),
        ("New York .", True),
        ("New York..", False),
        ("NewYork", False),
        ("York", False),
        ("", False),
    ],
)
def test_answers_are_equal_but_for_case_spaces_and_a_full_stop(answer, right):
    assert make("any").grade(Problem("p", "q", "New York"), answer) is right


def test_a_mixture_gives_each_tasks_problems_in_turn_each_once():
    import seqio

    names = [register({"train": [(f"{n}{i}", "#### x") for i in range(size)]}) for n, size in (("a", 3), ("b", 1))]
    only_dev = register({"validation": [("d", "#### x")]})
    mixture = next(_NAMES)
    seqio.MixtureRegistry.add(mixture, [(names[0], 1.0), (names[1], 9.0), (only_dev, 1.0)])
    problems = make(mixture).problems("train")
    assert [p.question for p in problems] == ["a0", "b0", "a1", "a2"]
    assert [p.id for p in problems] == [f"train-{i}" for i in range(4)]
    assert [p.category for p in problems] == [names[0], names[1], names[0], names[0]]
    assert [(p.question, p.category) for p in make(mixture).problems("dev")] == [("d", "")]


def test_a_module_that_registers_the_task_is_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    name = register({"train": [("q", "#### a")]})
    (tmp_path / "my_seqio_tasks.py").write_text(
        f"import seqio\nold = seqio.TaskRegistry.get({name!r})\n"
        f"seqio.TaskRegistry.add('{name}_b', source=old.source, preprocessors=[], output_features=old.output_features)"
    )
    (tmp_path / "my_broken_tasks.py").write_text("import no_such_module\n")
    try:
        assert [p.answer for p in make(f"{name}_b", module="my_seqio_tasks").problems("train")] == ["a"]
        with pytest.raises(InputError, match=r"'my_broken_tasks' cannot be imported .*no_such_module"):
            make(name, module="my_broken_tasks").problems("train")
    finally:
        sys.modules.pop("my_seqio_tasks", None)


@every_row(
    ("kind", "split", "options", "reason"),
    [
        ("text", "test", {}, "has no split 'test', only train, validation; set --config.task.test_split=..."),
        ("text", "dev", {"dev_split": "valid"}, "has no split 'valid', only train, validation; set"),
        ("text", "validation", {}, "unknown split 'validation'; this task has train, dev, test"),
        ("text", "train", {"module": "no_such_module_at_all"}, "module 'no_such_module_at_all' cannot be imported"),
        ("ids only", "train", {}, "'inputs' is not text but int32"),
        ("targets only", "train", {}, "has no feature 'inputs', only targets"),
        ("broken", "train", {}, "missing expected output feature after preprocessing: more"),
    ],
)
def test_what_is_amiss_is_named(kind, split, options, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        make(register(kind=kind), **options).problems(split)


@every_row(
    ("texts", "reason"),
    [
        ([("q", "so ####")], "train-0 has targets without an answer"),
        ([("q", " ")], "train-0 has targets without an answer"),
        ([(b"\xff", "#### 1")], "holds text that is not UTF-8"),
    ],
)
def test_texts_that_are_no_problem_are_named(texts, reason):
    with pytest.raises(InputError, match=reason):
        make(register({"train": texts})).problems("train")


def test_an_unknown_task_is_named():
    with pytest.raises(InputError, match="no seqio Task or Mixture 'no such task' is registered"):
        make("no such task").problems("train")


@every_row(
    ("options", "reason"),
    [
        ({}, "set --config.task.task=..."),
        ({"task": "t", "max_tokens": 0}, "max_tokens of at least 1"),
        ({"task": "t", "answer_marker": " "}, "an answer_marker that is not blank"),
        ({"task": "t", "hint_template": "Q: {inputs}"}, "task.hint_template must hold {inputs} and {answer}"),
        ({"task": "t", "hint_template": "{inputs} {answer} {0}"}, "task.hint_template must hold"),
        ({"task": "t", "hint_template": "{inputs.x} {answer}"}, "task.hint_template must hold"),
        ({"task": "t", "hint_template": "{inputs} {answer"}, "task.hint_template must hold"),
        ({"task": 3}, "task.task must be str"),
        ({"task": "t", "splits": "x"}, "no option 'splits'"),
    ],
)
def test_wrong_options_are_refused_before_seqio_is_imported(options, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        tasks.make("seqio_task", **options)


def test_shots_of_ones_own_are_joined_like_any_other(tmp_path):
    (tmp_path / "seqio_task_direct.txt").write_text("Q: a\nA: b\n", encoding="utf-8")
    prompts = few_shot.load("seqio_task", 1, direct=True, directory=str(tmp_path))
    assert prompts.prompt(make("any", direct=True), Problem("p", "q", "a")).text == "Q: a\nA: b\n\nQ: q\nA:"
