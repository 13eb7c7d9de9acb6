"""Readers of completions run in time linear in the length of the text, whatever a model repeats."""

import time

import pytest

from star_jax import tasks
from star_jax.records import Problem
from star_jax.tasks import jsonl
from star_jax.tasks.answers import choices, numbers
from tests.support.tables import every_row

MOST = 2.5  # times as long as linear growth
CLOCK_S = 3e-4
WAIT_S = 0.01  # a text that takes longer is long enough: ten times as much would take too long

INK = Problem(id="ink", question="?", answer="b", choices=("river", "blotter", "the ink", "river bank"))
APPLES = Problem(id="apples", question="?", answer="5 apples")
_GSM8K, _LENIENT, _JSONL = (
    tasks.make("gsm8k"),
    tasks.make("gsm8k", answer_rule="lenient"),
    tasks.make("jsonl", train="train.jsonl", answer_rule="lenient"),
)
# Readers that call each other on the whole text are one row: "commonsense_qa" is what "jsonl" does without a mark, and
# the grade of a choice is `agrees`.
READERS = {
    "gsm8k": _GSM8K.parse,
    "gsm8k, lenient": _LENIENT.parse,
    "jsonl": _JSONL.parse,
    "closing_choice": choices.closing_choice,
    "jsonl grades a text": lambda text: jsonl.same(APPLES.answer, text),
    "agrees": lambda text: choices.agrees(INK, text),
    "agrees with long choices": lambda text: choices.agrees(
        Problem(id="long", question="?", answer="b", choices=(text + "x", text)), "The answer is (b), an ox."
    ),
    "normalised": choices.normalised,
    "calculations": numbers.calculations,
    "parse_number": numbers.parse_number,
    "evaluate": numbers.evaluate,
}
# (what stands first and is as long as the rest, or "": a short text; what is repeated; what stands last)
REPEATED = [
    ("", "the ", "x"), ("", "a 'the ", "x"), ("", "river ", "(b)"), ("the answer is (b), ", "river bank ", ""),
    ("the answer is (b)", ", not river", ""), ("#### {}\n", "#### x\n", ""),
    ("#### 5 {}\n", "#### 5\n", ""), ("", "#### (b)\n", ""), ("", "<<1+1=2", ">>2"), ("", "<<1+1=2>>2 ", ""),
    ("", "1,080,", "7"), ("", "1 ", "7"), ("", "1 1/2 ", "7"), ("", "1e", "7"), ("5 ", "m^2 ", "7"), ("5", "m", "^2"),
    ("", "\\frac{1}", "{2}"), ("", "\\frac{", "1}{2}"), ("", "1{,}", "080"), ("", "5 or ", "6"),
    ("", "less than ", "5"), ("", "₩", "5"), ("", "so it is ", "(b)"), ("", "the answer is ", "(b)"),
    ("", "(b) = ", "river"),
]  # fmt: skip
# Of the other kinds of repetition, in the slow test.
MORE = [
    ("", unit, last)
    for unit in (
        *"(a .\"-*`$<=#/\\71,^%", "\n", "(b)", "(b)\n", "(b). ", "7\n", "x ", "- ", "7-", "7/", "$-", "\\text{",
        "i.e. ", "because ", "not (a) ", "answer ", "option ", "(a) is wrong. ", "because a river (b), ", "; ", "→",
        "half of ", "1 080 ", "2^", "{,}", "5 to ", "A: ", "\u200b", "\u00a0", "é", "²",
    )
    for last in ("", "7", "(b)")
]  # fmt: skip


def _text(first: str, unit: str, last: str, size: int) -> str:
    first = first.format("up " * (size // 6))
    return first + unit * ((size - len(first)) // len(unit)) + last


def _seconds(reader, text: str) -> float:
    start = time.process_time()
    reader(text)
    return time.process_time() - start


def _check_linear(reader: str, row: tuple[str, str, str], sizes: tuple[int, ...]) -> None:
    """Ten times the text takes less than 25 times as long, whatever the machine; quadratic time: 100 times as long.

    A short text's time below `CLOCK_S` is noise, and counts as `CLOCK_S`. Later sizes are tried where the time is
    short: a quadratic part that a long one hides, such as that of removing articles one by one, makes no text slow.
    """
    read = READERS[reader]
    for size in sizes:
        short, long = _text(*row, size=size // 10), _text(*row, size=size)
        for _ in range(3):  # other programs on the machine slow a call down, and the clock of the process is coarse
            expected = 10 * max(min(_seconds(read, short) for _ in range(2)), CLOCK_S)
            seconds = _seconds(read, long)
            if seconds < MOST * expected:
                break
        else:
            times = 10 * seconds / expected
            pytest.fail(f"{reader} takes {seconds:.3f} s for {size} characters, {times:.0f} times as a tenth")
        if seconds > WAIT_S:
            return


@every_row(
    ("reader", "row"),
    [
        ("gsm8k, lenient", ("", "1 ", "7")),
        ("gsm8k, lenient", ("", "5 or ", "6")),
        ("jsonl", ("#### 5 {}\n", "#### 5\n", "")),
        ("jsonl", ("", "#### (b)\n", "")),
        ("jsonl", ("", "so it is ", "(b)")),
        ("agrees", ("the answer is (b), ", "river bank ", "")),
        ("agrees with long choices", ("", "the ", "x")),
        ("normalised", ("", "a 'the ", "x")),
        ("calculations", ("", "<<1+1=2", ">>2")),
        ("parse_number", ("5 ", "m^2 ", "7")),
    ],
)
def test_ten_times_the_text_takes_ten_times_as_long(reader, row):
    _check_linear(reader, row, sizes=(20_000, 200_000))


@pytest.mark.slow
@every_row("row", REPEATED + MORE)
@every_row("reader", READERS)
def test_whatever_a_model_repeats(reader, row):
    _check_linear(reader, row, sizes=(10_000, 100_000))
