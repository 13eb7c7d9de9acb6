"""star_jax.tasks.arithmetic: problems, parsing, scratchpads, and what the base is shown."""

import collections
import itertools
import re

import pytest

from star_jax import tasks
from star_jax.errors import InputError
from star_jax.tasks.arithmetic import make_problem, operands, scratchpad
from star_jax.tasks.arithmetic.transcripts import transcripts
from star_jax.tokenizers.simple import SymbolTokenizer
from tests.support.tables import every_row

TASK = tasks.make("arithmetic", train_per_length=300)
DIRECT = tasks.make("arithmetic", train_per_length=300, direct=True)
SPLITS = ("train", "dev", "test")


def worked(a: int, b: int) -> str:
    """The reference by columns of digit lists, least significant first, apart from the code under test."""
    size = len(str(a))
    rows = [[int(c) for c in reversed(str(n))] for n in (a, b)]
    out, done, carry = ["<scratch>"], [], 0
    for column in range(size + 1):
        todo = [" ".join(str(d) for d in reversed(row[column:])) for row in rows]
        words = [todo[0], "+", todo[1]] if column < size else []
        out.append(" ".join([*words, ",", *map(str, reversed(done)), "C:", str(carry)]))
        if column < size:
            total = rows[0][column] + rows[1][column] + carry
            done.append(total % 10)
            carry = total // 10
    out += [" ".join(map(str, [carry, *reversed(done)])), "</scratch>", " ".join(str(a + b))]
    return "\n".join(out)


@every_row("split", SPLITS)
def test_operands_have_the_digits_of_their_category(split):
    for problem in TASK.problems(split):
        digits = int(problem.category.split()[0])
        a, b = operands(problem)
        assert len(str(a)) == len(str(b)) == digits
        assert problem.answer == " ".join(str(a + b))


def test_splits_share_no_pair_and_no_id():
    pairs = {split: {operands(p) for p in TASK.problems(split)} for split in SPLITS}
    ids = {split: {p.id for p in TASK.problems(split)} for split in SPLITS}
    for first, second in itertools.combinations(SPLITS, 2):
        assert not pairs[first] & pairs[second] and not ids[first] & ids[second]
    for split in ("dev", "test"):
        assert len(pairs[split]) == len(TASK.problems(split))  # and none of its pairs comes twice


def test_splits_have_their_sizes():
    assert collections.Counter(p.category for p in TASK.problems("train")).most_common(1)[0][1] == 300
    sizes = collections.Counter(p.category for p in TASK.problems("dev"))
    assert sizes == {"1 digit": 10, **{f"{d} digits": 200 for d in range(2, 6)}}


@every_row("split", SPLITS)
def test_problems_are_the_same_in_every_run_and_others_with_another_seed(split):
    again = tasks.make("arithmetic", train_per_length=300)
    other = tasks.make("arithmetic", train_per_length=300, seed=1)
    assert again.problems(split) == TASK.problems(split)
    assert [p.question for p in other.problems(split)] != [p.question for p in TASK.problems(split)]


def test_every_slice_of_a_split_mixes_the_lengths():
    assert len({p.category for p in TASK.problems("train")[:5]}) == 5


def test_a_hint_is_the_answer_behind_target():
    problem = make_problem("p", 34, 56, digits=2)
    assert TASK.render(problem) == "Input:\n3 4 + 5 6\nTarget:\n"
    assert TASK.render(problem, hint=True) == "Input:\n3 4 + 5 6\nTarget: 9 0\n"


@every_row("pair", [(0, 0), (9, 9), (5, 5), (34, 56), (99, 99), (10, 90), (305, 695), (99999, 99999)])
def test_the_scratchpad_of_edge_cases_is_that_of_another_adder(pair):
    assert scratchpad(*pair) == worked(*pair)


def test_the_scratchpad_of_every_problem_is_that_of_another_adder():
    for split in SPLITS:
        for problem in TASK.problems(split):
            assert TASK.reference(problem) == worked(*operands(problem))


GOOD = worked(34, 56)
PARSED = [
    (GOOD, "9 0"),
    (GOOD + "\n", "9 0"),
    ("<scratch>\n</scratch>\n9 0", "9 0"),  # steps are not needed for an answer; consistent() looks at them
    ("<scratch>\nanything at all\n</scratch>\n7", "7"),
    ("<scratch>\n\n</scratch>\n7", "7"),
    ("<scratch>\n</scratch>\n0", "0"),
    ("<scratch>\n</scratch>\n0 9 0", "0 9 0"),
    (GOOD.replace("C: 1", "C: 0"), "9 0"),
    (GOOD[:-3] + "1 9 9 9 9 8", "1 9 9 9 9 8"),
    ("", None),
    ("\n", None),
    ("9 0", None),  # a bare answer without a scratchpad
    ("9 0\n", None),
    ("Target: 9 0", None),
    ("</scratch>\n9 0", None),
    ("<scratch>\n9 0", None),
    ("<scratch>\n</scratch>", None),
    ("<scratch>\n</scratch>\n", None),
    ("<scratch></scratch>\n9 0", None),
    ("<scratch>\n</scratch> 9 0", None),
    (GOOD + "\n\n", None),
    (GOOD + " ", None),
    (GOOD + ".", None),
    (GOOD + " +", None),
    (GOOD + "\n9 0", None),
    (GOOD + "\nInput:", None),
    (GOOD + "\nInput:\n1 + 1", None),
    (" " + GOOD, None),
    ("9 0\n" + GOOD, None),
    (GOOD[:-3] + "90", None),
    (GOOD[:-3] + "9  0", None),
    (GOOD[:-3] + "-9 0", None),
    (GOOD[:-3] + "9 x", None),
    (GOOD[:-3] + "٩ ٠", None),  # digits, but not ours
    (GOOD.upper(), None),
]


@every_row(("text", "answer"), PARSED)
def test_parse(text, answer):
    assert TASK.parse(text) == answer


@every_row(
    ("text", "answer"),
    [("9 0", "9 0"), ("9 0\n", "9 0"), ("0", "0"), ("", None), ("90", None), ("9 0 ", None), (" 9 0", None),
     ("9 0\n9 0", None), ("9 0 .", None), (GOOD, None), ("Input:", None)],
)  # fmt: skip
def test_parse_of_direct_answers(text, answer):
    assert DIRECT.parse(text) == answer


@every_row("task", [TASK, DIRECT])
def test_every_reference_is_parsed_and_right(task):
    for problem in task.problems("dev"):
        answer = task.parse(task.reference(problem))
        assert answer == problem.answer and task.grade(problem, answer)


@every_row(
    ("text", "consistent"),
    [
        (GOOD, True),
        (GOOD + "\n", True),
        (GOOD.replace("C: 1", "C: 0"), False),
        (GOOD.replace(", 9 0 C: 0\n", ""), False),
        (GOOD[:-3] + "9 1", False),
        ("<scratch>\n</scratch>\n9 0", False),
        (worked(43, 47), False),  # another sum of the same answer
        ("9 0", False),
    ],
)
def test_steps_are_consistent_only_when_all_of_them_are_right(text, consistent):
    problem = make_problem("p", 34, 56, digits=2)
    assert TASK.consistent(problem, text) is consistent
    assert DIRECT.consistent(problem, text) is None


@every_row("direct", [False, True])
@every_row("most", [1, 2, 3, 4, 5, 8])
def test_the_budget_holds_every_reference_and_its_stop(most, direct):
    task = tasks.make("arithmetic", max_digits=most, train_per_length=20, direct=direct)
    tokenizer = SymbolTokenizer(task.symbols)
    widest = make_problem("widest", 10**most - 1, 10**most - 1, most)
    for problem in [widest, *task.problems("train"), *task.problems("dev")]:
        ids = tokenizer.encode(task.reference(problem))
        assert tokenizer.decode(ids) == task.reference(problem)
        assert len([*ids, tokenizer.end_ids[0]]) <= task.max_new_tokens
        assert len(ids) + len(tokenizer.encode(task.stop[0])) <= task.max_new_tokens


@every_row(
    ("options", "reason"),
    [
        ({"min_digits": 3, "max_digits": 2}, "min_digits <= max_digits"),
        ({"min_digits": 0}, "min_digits <= max_digits"),
        ({"train_per_length": 0}, "train_per_length"),
        ({"held_out_per_length": 0}, "held_out_per_length"),
        ({"max_digits": "5"}, "task.max_digits must be int"),
        ({"digits": 5}, "no option 'digits'"),
    ],
)
def test_wrong_options_are_refused(options, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        tasks.make("arithmetic", **options)


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match="unknown split 'validation'; this task has train, dev, test"):
        TASK.problems("validation")


GOLD = (0.2, 0.3)
SHOWN = transcripts(TASK, GOLD, 3000, seed=0)


def pair_of(example) -> tuple[int, int]:
    a, b = example.prompt.split("\n")[1].replace(" ", "").split("+")
    return int(a), int(b)


def is_gold(example) -> bool:
    return example.completion == worked(*pair_of(example))


def test_transcripts_hold_no_dev_or_test_pair():
    held_out = {operands(p) for split in ("dev", "test") for p in TASK.problems(split)}
    assert not held_out & {pair_of(example) for example in SHOWN}


def test_transcripts_are_the_same_for_the_same_seed():
    assert transcripts(TASK, GOLD, 50, seed=0) == SHOWN[:50]
    assert transcripts(TASK, GOLD, 50, seed=1) != SHOWN[:50]


def test_gold_has_its_shares_and_no_other_length_is_worked():
    lengths = collections.Counter(len(str(pair_of(e)[0])) for e in SHOWN if is_gold(e))
    assert 0.17 < lengths[1] / 3000 < 0.23 and 0.27 < lengths[2] / 3000 < 0.33 and set(lengths) == {1, 2}
    for example in SHOWN:
        shown = int(TASK.parse(example.completion).replace(" ", ""))
        assert (shown == sum(pair_of(example))) == is_gold(example)


def test_form_only_transcripts_copy_operands_and_carries():
    for example in SHOWN:
        form = [re.sub(r",.*C:", ", C:", line) for line in example.completion.split("\n")[:-3]]
        assert form == [re.sub(r",.*C:", ", C:", line) for line in worked(*pair_of(example)).split("\n")[:-3]]


def test_a_hint_in_a_transcript_is_the_answer_it_ends_with():
    hinted = [e for e in SHOWN if e.hint_kept]
    arbitrary = [e for e in hinted if not is_gold(e)]
    for example in hinted:
        shown = example.prompt.split("\n")[2].removeprefix("Target: ")
        assert shown == example.completion.rsplit("\n", 1)[1] == TASK.parse(example.completion)
        assert example.unweighted == ()
    assert 0.42 < len(arbitrary) / len([e for e in SHOWN if not is_gold(e)]) < 0.58


def test_without_a_hint_the_form_of_longer_sums_has_the_larger_digit_plus_the_carry():
    """The carry into a place: whether the places below it overflow."""
    plain = [e for e in SHOWN if not e.hint_kept and not is_gold(e)]
    assert {len(str(pair_of(e)[0])) for e in plain} == {3, 4, 5}
    for example in plain:
        assert example.prompt.endswith("\nTarget:\n") and example.unweighted == ()
        a, b = pair_of(example)
        n_digits, shown = len(str(a)), example.completion.split("\n")[-3].replace(" ", "")
        assert shown[0] == str((a + b) // 10**n_digits)
        for place in range(n_digits):
            larger = max(a // 10**place % 10, b // 10**place % 10)
            carry = (a % 10**place + b % 10**place) // 10**place
            assert int(shown[-1 - place]) == (larger + carry) % 10


def test_transcripts_of_a_length_the_task_lacks_are_refused():
    with pytest.raises(InputError, match=re.escape("base.stages: gold has shares for 2 lengths, the task has 1 to 1")):
        transcripts(tasks.make("arithmetic", max_digits=1), (0.5, 0.5), 1, seed=0)
    with pytest.raises(InputError, match="the task has 2 to 3"):
        transcripts(tasks.make("arithmetic", min_digits=2, max_digits=3), (0.5, 0.5), 1, seed=0)
