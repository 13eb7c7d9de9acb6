"""star_jax.algorithms.selection: verdicts, what is kept, what is rationalized, and the counts."""

import collections
import random

import pytest

from star_jax import tasks
from star_jax.algorithms import selection
from star_jax.evaluation import judging
from star_jax.records import Completion, Problem
from star_jax.tasks.arithmetic import make_problem
from star_jax.tasks.few_shot import PromptSet

TASK = tasks.make("arithmetic")
PROMPTS = PromptSet("plain\n\n", "hinted\n\n")
PROBLEMS = [make_problem(f"t-{i}", 10 + i, 20, digits=2) for i in range(40)]


def completion(problem, verdict="right", *, text="steps", hinted=False, sample_index=0, iteration=1, consistent=None):
    return Completion(
        problem_id=problem.id,
        iteration=iteration,
        sample_index=sample_index,
        hinted=hinted,
        text=text,
        answer=problem.answer if verdict == "right" else None,
        verdict=verdict,
        consistent=consistent,
        log_probability=-1.5,
        tokens=3,
        seed=f"seed of {problem.id}",
    )


def keep(completions, problems=PROBLEMS, **options):
    defaults = {"per_problem": 1, "few_shot_train": False, "hint_keep_probability": 0.0, "seed": 0, "weights": "w0"}
    return selection.keep(TASK, problems, completions, PROMPTS, **(defaults | options))


RIGHT = TASK.reference(PROBLEMS[3])  # 13 + 20 = 33


@pytest.mark.parametrize(
    ("text", "truncated", "verdict", "answer", "consistent"),
    [
        (RIGHT, False, "right", "3 3", True),
        (RIGHT + "\n", False, "right", "3 3", True),
        (RIGHT.replace("C: 0", "C: 1"), False, "right", "3 3", False),  # a right answer behind wrong steps
        (RIGHT[:-3] + "3 4", False, "wrong", "3 4", False),
        (RIGHT + " 0", False, "wrong", "3 3 0", False),
        ("3 3", False, "unparsable", None, None),
        ("", False, "unparsable", None, None),
        (RIGHT, True, "truncated", "3 3", True),  # half of an answer may look like the answer
        (RIGHT[:-3] + "3 4", True, "truncated", "3 4", False),
        ("<scratch>\n", True, "truncated", None, None),
    ],
)
def test_verdicts(text, truncated, verdict, answer, consistent):
    about = {"iteration": 2, "sample_index": 1, "hinted": True, "tokens": 9, "seed": "s"}
    judged = judging.judge(TASK, PROBLEMS[3], text=text, truncated=truncated, log_probability=-1.23456789, **about)
    assert (judged.verdict, judged.answer, judged.consistent) == (verdict, answer, consistent)
    assert (judged.problem_id, judged.text, judged.log_probability) == ("t-3", text, -1.2346)
    assert {key: getattr(judged, key) for key in about} == about


@pytest.mark.parametrize("verdict", ["wrong", "unparsable", "truncated"])
@pytest.mark.parametrize("hinted", [False, True])
def test_only_what_is_right_is_kept(verdict, hinted):
    assert keep([completion(p, verdict, hinted=hinted) for p in PROBLEMS]) == []


def test_kept_examples_are_in_the_order_of_the_problems():
    drawn = [completion(p, hinted=i % 3 == 0) for i, p in enumerate(PROBLEMS)]
    random.Random(0).shuffle(drawn)
    assert [e.problem_id for e in keep(drawn)] == [p.id for p in PROBLEMS]
    assert [e.problem_id for e in keep(drawn, PROBLEMS[::-1])] == [p.id for p in PROBLEMS[::-1]]


def test_a_kept_example_says_where_it_came_from():
    (example,) = keep([completion(PROBLEMS[5], hinted=True, sample_index=2, iteration=4, text="why")])
    assert (example.problem_id, example.completion, example.iteration) == ("t-5", "why", 4)
    assert example.source == "rationalized"
    assert (example.sample_index, example.seed, example.verdict, example.log_probability) == (
        2,
        "seed of t-5",
        "right",
        -1.5,
    )
    assert (example.prompt_set, example.weights, example.hint_kept) == (PROMPTS.fingerprint, "w0", False)
    assert keep([completion(PROBLEMS[5])])[0].source == "sampled"


@pytest.mark.parametrize(("few_shot_train", "prefix"), [(False, ""), (True, "plain\n\n")])
def test_the_hint_is_not_stored(few_shot_train, prefix):
    drawn = [completion(p, hinted=True) for p in PROBLEMS]
    examples = keep(drawn, few_shot_train=few_shot_train)
    assert [e.prompt for e in examples] == [prefix + TASK.render(p) for p in PROBLEMS]
    assert not any(e.hint_kept for e in examples)


@pytest.mark.parametrize(("few_shot_train", "prefix"), [(False, ""), (True, "hinted\n\n")])
def test_at_probability_one_every_rationalization_keeps_its_hint(few_shot_train, prefix):
    drawn = [completion(p, hinted=i % 2 == 1) for i, p in enumerate(PROBLEMS)]
    examples = keep(drawn, few_shot_train=few_shot_train, hint_keep_probability=1.0)
    assert [e.hint_kept for e in examples] == [i % 2 == 1 for i in range(40)]
    assert [e.prompt for e in examples[1::2]] == [prefix + TASK.render(p, hint=True) for p in PROBLEMS[1::2]]
    assert examples[0].prompt.endswith(TASK.render(PROBLEMS[0]))


def test_hints_are_kept_in_about_the_given_share_and_always_the_same_ones():
    problems = [Problem(f"p-{i}", "1 + 1", "2") for i in range(2000)]
    drawn = [completion(p, hinted=True) for p in problems]
    kept = [e.hint_kept for e in keep(drawn, problems, hint_keep_probability=0.3)]
    assert 0.26 < sum(kept) / 2000 < 0.34
    assert kept == [e.hint_kept for e in keep(drawn[::-1], problems, hint_keep_probability=0.3)]
    assert kept != [e.hint_kept for e in keep(drawn, problems, hint_keep_probability=0.3, seed=1)]


@pytest.mark.parametrize(
    ("per_problem", "texts"),
    [(1, ["a"]), (2, ["a", "b"]), (3, ["a", "b", "c"]), (0, ["a", "b", "c"]), (9, ["a", "b", "c"])],
)
def test_distinct_texts_lowest_draw_first_and_rationalizations_last(per_problem, texts):
    p = PROBLEMS[0]
    drawn = [
        completion(p, text="c", hinted=True),
        completion(p, text="a", sample_index=3),
        completion(p, text="b", sample_index=2),
        completion(p, text="a", sample_index=1),
        completion(p, "wrong", text="d", sample_index=0),
        completion(p, text="b", hinted=True, sample_index=1),
    ]
    kept = keep(drawn, per_problem=per_problem)
    assert [e.completion for e in kept] == texts
    assert kept[0].sample_index == 1  # of equal texts the earliest draw


def test_what_a_draw_solved_is_not_rationalized():
    verdicts = ["right", "wrong", "unparsable", "truncated"]
    samples = [completion(p, verdicts[i % 4]) for i, p in enumerate(PROBLEMS)]
    samples.append(completion(PROBLEMS[1], sample_index=1))  # a second draw got it right
    chosen = selection.to_rationalize(PROBLEMS, samples, 1.0, seed=0, iteration=1)
    assert chosen == [p for i, p in enumerate(PROBLEMS) if i % 4 and i != 1]
    assert selection.to_rationalize(PROBLEMS, samples, 0.0, seed=0, iteration=1) == []
    assert selection.to_rationalize(PROBLEMS, [], 1.0, seed=0, iteration=1) == PROBLEMS


def test_a_share_of_the_failed_is_rationalized_another_one_each_iteration():
    problems = [Problem(f"p-{i}", "1 + 1", "2") for i in range(2000)]
    chosen = [selection.to_rationalize(problems, [], 0.25, seed=0, iteration=i) for i in (1, 2, 1)]
    assert chosen[0] == chosen[2] != chosen[1]
    assert 0.21 < len(chosen[0]) / 2000 < 0.29
    more = selection.to_rationalize(problems, [], 0.5, seed=0, iteration=1)
    assert set(chosen[0]) < set(more)


@pytest.mark.parametrize("few_shot_train", [False, True])
def test_references_are_every_problem_with_its_answer(few_shot_train):
    direct = tasks.make("arithmetic", direct=True)
    examples = selection.references(direct, PROBLEMS, PROMPTS, few_shot_train=few_shot_train, iteration=2)
    prefix = "plain\n\n" if few_shot_train else ""
    assert [(e.prompt, e.completion) for e in examples] == [(prefix + direct.render(p), p.answer) for p in PROBLEMS]
    assert {(e.source, e.iteration, e.hint_kept) for e in examples} == {("reference", 2, False)}


def test_chance_is_uniform_and_depends_on_each_argument():
    values = [selection.chance(0, 1, f"p-{i}", "x") for i in range(1000)]
    assert all(0 <= v < 1 for v in values) and abs(sum(values) / 1000 - 0.5) < 0.03
    assert len({selection.chance(*a) for a in [(0, 1, "p", "x"), (1, 1, "p", "x"), (0, 2, "p", "x"), (0, 1, "q", "x"),
                                            (0, 1, "p", "y"), (0, 11, "p", "x")]}) == 6  # fmt: skip


def random_stage(seed):
    """(problems, samples, rationalizations) with draws of every verdict."""
    rng = random.Random(seed)
    problems = [make_problem(f"t-{i}", 10 ** (d - 1), 10 ** (d - 1), d) for i in range(60) for d in [rng.randint(1, 3)]]
    verdicts = ["right", "wrong", "unparsable", "truncated"]

    def drawn(p, hinted, sample_index):
        texts = rng.choice(["a", "b"])
        return completion(p, rng.choice(verdicts), text=texts, hinted=hinted, sample_index=sample_index, iteration=2,
                          consistent=rng.choice([True, False]))  # fmt: skip

    samples = [drawn(p, False, draw) for p in problems for draw in range(2)]
    failed = selection.to_rationalize(problems, samples, 1.0, 0, 2)
    return problems, samples, [drawn(p, True, 0) for p in failed]


@pytest.mark.parametrize("seed", range(5))
def test_the_summary_counts_what_is_there(seed):
    problems, samples, rationalizations = random_stage(seed)
    own = keep([*samples, *rationalizations], problems, per_problem=0, hint_keep_probability=0.5)
    earlier = keep([completion(p, iteration=1) for p in problems[:7]], problems)
    summary = selection.summary(2, problems, samples, rationalizations, [*own, *earlier])
    seen = collections.Counter(s.verdict for s in samples)
    for verdict in ("right", "wrong", "unparsable", "truncated"):
        assert summary[verdict] == seen[verdict]
    assert summary["right_wrong_steps"] == len([s for s in samples if s.verdict == "right" and s.consistent is False])
    assert (summary["iteration"], summary["problems"], summary["samples"]) == (2, 60, 120)
    assert summary["rationalization_tried"] == len(rationalizations)
    assert summary["rationalization_right"] == len([r for r in rationalizations if r.verdict == "right"])
    right = {(c.problem_id, c.text, c.hinted) for c in [*samples, *rationalizations] if c.verdict == "right"}
    assert summary["kept_sampled"] == len([1 for _, _, hinted in right if not hinted])
    assert summary["kept_rationalized"] == len([1 for _, _, hinted in right if hinted])
    assert summary["kept"] == len(right) + 7 and summary["kept_from_earlier"] == 7
    assert summary["hints_kept"] == sum(e.hint_kept for e in own)
    classes = {p.id: p.category for p in problems}
    for name, kept in summary["kept_by_category"].items():
        assert kept["sampled"] == len([1 for i, _, hinted in right if not hinted and classes[i] == name])
        assert kept["rationalized"] == len([1 for i, _, hinted in right if hinted and classes[i] == name])
    assert summary["problems_by_category"] == collections.Counter(classes.values())
