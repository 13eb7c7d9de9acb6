"""star_jax.algorithms.selection: verdicts, what is kept, what is rationalized, and the counts."""

import collections
import dataclasses
import itertools
import random

import numpy as np

from star_jax import tasks
from star_jax.algorithms import selection
from star_jax.config import SelectionConfig
from star_jax.evaluation import judging
from star_jax.evaluation.prompts import PromptEncoder
from star_jax.records import Completion, Problem
from star_jax.sampling import stop_strings
from star_jax.sampling.sampler import Sample
from star_jax.tasks.arithmetic import Arithmetic, make_problem
from star_jax.tasks.few_shot import PromptSet
from star_jax.tokenizers import load_directory
from star_jax.tokenizers.simple import ByteTokenizer, SymbolTokenizer
from star_jax.training import packing

TASK = tasks.make("arithmetic")
PROMPTS = PromptSet("plain\n\n", "hinted\n\n")
BYTES = ByteTokenizer()
PROBLEMS = [make_problem(f"t-{i}", 10 + i, 20, digits=2) for i in range(40)]


def completion(
    problem, verdict="right", *, text="steps", hinted=False, sample_index=0, iteration=1, consistent=None, token_ids=()
):
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
        problem_fingerprint=problem.fingerprint,
        token_ids=token_ids,
    )


def keep(completions, problems=PROBLEMS, tokenizer=BYTES, per_problem=1, check="answer", **fields):
    options = SelectionConfig(per_problem=per_problem, check=check)
    spec = selection.SelectionSpec(**{"seed": 0, "weights": "w0", "options": options, **fields})
    return selection.keep(PromptEncoder(TASK, tokenizer, PROMPTS), problems, completions, spec)


RIGHT = TASK.reference(PROBLEMS[3])  # 13 + 20 = 33


VERDICTS = [
    (RIGHT, False, "right", "3 3", True),
    (RIGHT + "\n", False, "right", "3 3", True),
    (RIGHT.replace("C: 0", "C: 1"), False, "right", "3 3", False),  # a right answer after wrong steps
    (RIGHT[:-3] + "3 4", False, "wrong", "3 4", False),
    (RIGHT + " 0", False, "wrong", "3 3 0", False),
    ("3 3", False, "unparsable", None, None),
    ("", False, "unparsable", None, None),
    (RIGHT, True, "truncated", "3 3", True),  # half of an answer may look like the answer
    (RIGHT[:-3] + "3 4", True, "truncated", "3 4", False),
    ("<scratch>\n", True, "truncated", None, None),
]


def test_each_check_keeps_its_completions_and_rationalizes_the_other_problems():
    rng = np.random.default_rng(0)
    verdicts, steps = ["right", "wrong", "unparsable", "truncated"], [True, False, None]
    samples = [
        completion(p, verdicts[rng.integers(4)], text=str(i), sample_index=i, consistent=steps[rng.integers(3)])
        for p in PROBLEMS
        for i in range(3)
    ]
    verdict, step = np.array([s.verdict for s in samples]), np.array([str(s.consistent) for s in samples])
    usable = {"answer": verdict == "right", "none": verdict != "truncated"}
    usable["steps"] = usable["answer"] & (step != "False")
    owner = np.repeat([p.id for p in PROBLEMS], 3)
    for check, is_usable in usable.items():
        kept = [(e.problem_id, e.sample_index) for e in keep(samples, per_problem=0, check=check)]
        assert kept == list(zip(owner[is_usable], np.tile(range(3), 40)[is_usable], strict=True))
        failed = selection.to_rationalize(PROBLEMS, samples, 1.0, 0, 1, check)
        assert [p.id for p in failed] == [p.id for p in PROBLEMS if p.id not in owner[is_usable]]


def test_verdicts():
    sampling_pass = judging.SamplingPass("rationalization", seed=5, iteration=2, hinted=True)
    about = {"iteration": 2, "sample_index": 1, "hinted": True, "tokens": 3, "seed": "5/rationalization/2/t-3/1/1"}
    about |= {"token_ids": (4, 0, 256), "token_log_probs": (-1.0, -0.2, -0.03456)}
    wrong = []
    for text, truncated, *expected in VERDICTS:
        sample = Sample(text, about["token_ids"], about["token_log_probs"], truncated)
        judged = judging.judge(TASK, PROBLEMS[3], sample, sampling_pass, 1)
        if [judged.verdict, judged.answer, judged.consistent] != expected:
            wrong.append((text, truncated, judged))
        assert (judged.problem_id, judged.text, judged.log_probability) == ("t-3", text, -1.2346)
        assert {key: getattr(judged, key) for key in about} == about
    assert not wrong


def test_a_right_answer_in_bytes_that_are_no_text_is_unparsable_and_not_kept():
    """A model may write U+FFFD itself, and a broken sequence after the stop is not part of the text."""
    sampling_pass = judging.SamplingPass("sample", seed=5, iteration=2)
    gsm8k, problem = tasks.make("gsm8k", data_dir="nowhere"), Problem("t", "How many?", "7")
    wrong = []
    for content, expected in [
        (b" So it is \xe2\x82 7.\n#### 7", "unparsable"),
        (b" So it is 7.\n#### 7\xff", "unparsable"),
        (b"\xa9 So it is 7.\n#### 7", "unparsable"),
        (" So it is \ufffd 7.\n#### 7".encode(), "right"),
        (b" So it is 7.\n#### 7", "right"),
        (b" So it is 7.\n#### 7\n\n\xe2\x82", "right"),
        (b" So it is 8.\n#### 8", "wrong"),
    ]:
        text, valid_utf8 = stop_strings.text_before(content, ["\n\n"])
        sample = Sample(text, tuple(content), (0.0,) * len(content), False, valid_utf8)
        judged = judging.judge(gsm8k, problem, sample, sampling_pass, 0)
        encoder = PromptEncoder(gsm8k, BYTES, PROMPTS)
        examples = selection.keep(encoder, [problem], [judged], selection.SelectionSpec(0, "w0"))
        if judged.verdict != expected or bool(examples) != (expected == "right"):
            wrong.append((content, judged))
        if expected == "unparsable" and judged.answer is not None:
            wrong.append((content, judged.answer))
        truncated = judging.judge(gsm8k, problem, dataclasses.replace(sample, truncated=True), sampling_pass, 0)
        if truncated.verdict != "truncated":
            wrong.append((content, truncated))
    assert not wrong


def test_only_what_is_right_is_kept():
    for verdict, hinted in itertools.product(["wrong", "unparsable", "truncated"], [False, True]):
        assert keep([completion(p, verdict, hinted=hinted) for p in PROBLEMS]) == [], (verdict, hinted)


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


def test_the_hint_is_not_stored():
    completions = [completion(p, hinted=True) for p in PROBLEMS]
    for few_shot_train, prefix in [(False, ""), (True, "plain\n\n")]:
        examples = keep(completions, few_shot_train=few_shot_train)
        assert [e.prompt for e in examples] == [prefix + TASK.render(p) for p in PROBLEMS]
        assert not any(e.hint_kept for e in examples)


def test_at_probability_one_every_rationalization_keeps_its_hint():
    completions = [completion(p, hinted=i % 2 == 1) for i, p in enumerate(PROBLEMS)]
    for few_shot_train, prefix in [(False, ""), (True, "hinted\n\n")]:
        examples = keep(completions, few_shot_train=few_shot_train, hint_keep_probability=1.0)
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


def test_distinct_texts_lowest_sample_index_first_and_rationalizations_last():
    p = PROBLEMS[0]
    drawn = [
        completion(p, text="c", hinted=True),
        completion(p, text="a", sample_index=3),
        completion(p, text="b", sample_index=2),
        completion(p, text="a", sample_index=1),
        completion(p, "wrong", text="d", sample_index=0),
        completion(p, text="b", hinted=True, sample_index=1),
    ]
    for per_problem, texts in [(1, "a"), (2, "ab"), (3, "abc"), (0, "abc"), (9, "abc")]:
        examples = keep(drawn, per_problem=per_problem)
        assert [e.completion for e in examples] == [*texts], per_problem
        assert examples[0].sample_index == 1  # the lowest index of equal texts


def test_what_a_sample_solved_is_not_rationalized():
    verdicts = ["right", "wrong", "unparsable", "truncated"]
    samples = [completion(p, verdicts[i % 4]) for i, p in enumerate(PROBLEMS)]
    samples.append(completion(PROBLEMS[1], sample_index=1))  # a second sample got it right
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


def test_references_are_every_problem_with_its_answer():
    direct = tasks.make("arithmetic", direct=True)
    prompts = PromptEncoder(direct, BYTES, PROMPTS)
    for few_shot_train, prefix in [(False, ""), (True, "plain\n\n")]:
        examples = selection.references(prompts, PROBLEMS, few_shot_train=few_shot_train, iteration=2)
        assert [(e.prompt, e.completion) for e in examples] == [(prefix + direct.render(p), p.answer) for p in PROBLEMS]
        assert {(e.source, e.iteration, e.hint_kept, e.token_ids) for e in examples} == {("reference", 2, False, ())}


def test_chance_is_uniform_and_depends_on_each_argument():
    values = [selection.chance(0, 1, f"p-{i}", "x") for i in range(1000)]
    assert all(0 <= v < 1 for v in values) and abs(sum(values) / 1000 - 0.5) < 0.03
    assert len({selection.chance(*a) for a in [(0, 1, "p", "x"), (1, 1, "p", "x"), (0, 2, "p", "x"), (0, 1, "q", "x"),
                                            (0, 1, "p", "y"), (0, 11, "p", "x")]}) == 6  # fmt: skip


def random_stage(seed):
    """(problems, samples, rationalizations) with every verdict; the ids of some texts are known."""
    rng = random.Random(seed)
    problems = [make_problem(f"t-{i}", 10 ** (d - 1), 10 ** (d - 1), d) for i in range(60) for d in [rng.randint(1, 3)]]
    verdicts = ["right", "wrong", "unparsable", "truncated"]

    def drawn(p, hinted, sample_index):
        texts = rng.choice(["a", "b"])
        return completion(p, rng.choice(verdicts), text=texts, hinted=hinted, sample_index=sample_index, iteration=2,
                          consistent=rng.choice([True, False]),
                          token_ids=(*texts.encode(), 256) * (texts == "a"))  # fmt: skip

    samples = [drawn(p, False, draw) for p in problems for draw in range(2)]
    failed = selection.to_rationalize(problems, samples, 1.0, 0, 2)
    return problems, samples, [drawn(p, True, 0) for p in failed]


def test_the_summary_counts_what_is_there():
    for seed in range(5):
        check_summary(seed)


def check_summary(seed):
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
    assert summary["kept_retokenized"] == len([1 for _, text, _ in right if text == "b"]) + 7
    classes = {p.id: p.category for p in problems}
    for name, kept in summary["kept_by_category"].items():
        assert kept["sampled"] == len([1 for i, _, hinted in right if not hinted and classes[i] == name])
        assert kept["rationalized"] == len([1 for i, _, hinted in right if hinted and classes[i] == name])
    assert summary["problems_by_category"] == collections.Counter(classes.values())


def check_completion_ids(tokenizer, texts, stops, pick) -> collections.Counter:
    """Against all prefixes of the sampled ids, by brute force; returns how often the text was cut inside a token.

    As many sampled ids as possible, then the ids of the rest of the text.
    """
    counts = collections.Counter()
    for text in texts:
        token_ids = tuple(pick(text))
        kept, _ = stop_strings.text_before(tokenizer.decode_bytes(token_ids), stops)
        one = completion(PROBLEMS[0], text=kept, token_ids=token_ids)
        possible = {}  # end -> the ids up to there, and those of the rest
        for end in range(len(token_ids) + 1):
            data = tokenizer.decode_bytes(token_ids[:end])
            if kept.encode().startswith(data) and "\ufffd" not in data.decode(errors="replace"):
                rest = tokenizer.encode_continuation(kept[len(data.decode()) :])
                possible.setdefault(data, ((*token_ids[:end], *rest), len(rest)))
        expected = possible[max(possible, key=len)]
        assert selection.completion_ids(tokenizer, one) == expected, (text, token_ids)
        counts["cut" if expected[1] else "whole"] += 1
    return counts


def test_completion_ids_are_the_sampled_ids_of_the_text(shared_dir):
    rng = np.random.default_rng(0)
    stops = ("\n\n", "Q:", "é")
    texts = ["".join(rng.choice(["a", "é", "\n", "Q:", " b", "字"], 8)) for _ in range(200)]
    cut = check_completion_ids(BYTES, [*texts, ""], stops, lambda text: [*BYTES.encode(text), BYTES.end_ids[0]])
    assert cut["cut"] == 0
    symbols = SymbolTokenizer(Arithmetic.symbols)
    words = [" ".join(rng.choice(Arithmetic.symbols, 12)) for _ in range(100)]
    assert check_completion_ids(symbols, words, ("\n", "3 ,"), symbols.encode)["whole"] > 90

    gpt2 = load_directory(shared_dir / "data" / "gpt2")
    id_of = {piece: i for i, piece in enumerate(gpt2.pieces)}

    def any_tokens(text):
        """Tokens of random length that exist: rarely those of `encode`."""
        content, ids = text.encode(), []
        while content:
            ids.append(id_of[content[: rng.choice([n for n in range(1, 8) if content[:n] in id_of])]])
            content = content[len(gpt2.pieces[ids[-1]]) :]
        return ids

    texts = ["A hen lives here.\nQ: and", "the answer is 7.\n\n\nQ:", "é字 so 10 Q: é"] * 60
    counts = check_completion_ids(gpt2, texts, ("e.\nQ", "\n\n", "er i"), any_tokens)
    assert counts["cut"] > 20 and counts["whole"] > 20


def test_a_sampled_replacement_character_is_not_mistaken_for_half_of_one():
    ids = BYTES.encode("a\ufffd")
    for end in ((), (256,)):
        one = completion(PROBLEMS[0], text="a\ufffd", token_ids=(*ids, *end))
        assert selection.completion_ids(BYTES, one) == (tuple(ids), 0)


def test_training_uses_the_tokens_that_were_sampled(shared_dir):
    """A text in non-canonical tokens is trained on as sampled; of a token that a stop cut, the rest is encoded."""
    gpt2 = load_directory(shared_dir / "data" / "gpt2")
    id_of = {piece: i for i, piece in enumerate(gpt2.pieces)}
    as_sampled = [id_of[piece] for piece in (b" th", b"ere", b"fore", b" 3", b"3")]
    text = " therefore 33"
    assert gpt2.decode(as_sampled) == text and gpt2.encode(text) != as_sampled
    stopped = (*gpt2.encode(" so it is"), id_of[b" nine"])
    completions = [
        completion(PROBLEMS[0], text=text, token_ids=(*as_sampled, gpt2.end_ids[0])),
        completion(PROBLEMS[1], text=" so it is ni", token_ids=stopped),
    ]
    examples = keep(completions, PROBLEMS[:2], gpt2)
    cut = [*gpt2.encode(" so it is"), *gpt2.encode(" ni")]
    assert [e.token_ids for e in examples] == [tuple(as_sampled), tuple(cut)]
    assert [e.retokenized for e in examples] == [0, len(gpt2.encode(" ni"))]
    summary = selection.summary(1, PROBLEMS[:2], completions, [], examples)
    assert (summary["kept_retokenized"], summary["retokenized_problems"]) == (1, ["t-1"])
    rows = packing.pack(examples, gpt2, 256, seed=0)
    for example, ids in zip(examples, (as_sampled, cut), strict=True):
        tokens, weights = packing.tokenize(example, gpt2)
        expected = [*gpt2.encode(example.prompt), *ids, gpt2.end_ids[0]]
        assert tokens.tolist() == expected and weights.sum() == len(ids) + 1
        packed = rows.tokens_RT[0].tobytes()
        assert np.array(expected, np.int32).tobytes() in packed
