"""Reading numbers as a person does, the safe calculator, and calculator annotations."""

import random
from fractions import Fraction

import pytest

from star_jax.tasks.answers.numbers import (
    MOST_CHARACTERS,
    MOST_DIGITS,
    MOST_VALUE,
    Calculation,
    calculations,
    canonical,
    evaluate,
    last_number,
    parse_number,
)
from tests.support.tables import every_row

ONE_NUMBER = [
    # plain numerals
    ("72", "72"), (" 72.", "72"), ("72.0", "72"), ("72.00", "72"), ("72 .", "72"), ("72,", "72"), ("0", "0"),
    ("-0", "0"), ("007", "7"), (".5", "0.5"), ("0.50", "0.5"), ("5.", "5"), ("1,080", "1080"), ("1,080,", "1080"),
    ("1,234,567.25", "1234567.25"), ("12345678", "12345678"), ("\t72\n", "72"), ("\u00a072\u00a0", "72"),
    ("72\u200b", "72"), ("\ufeff72", "72"), ("9" * MOST_DIGITS, "9" * MOST_DIGITS),
    # signs
    ("-5", "-5"), ("\u22125", "-5"), ("\u20135", "-5"), ("- 5", "-5"), ("+5", "5"), ("-$5", "-5"), ("- $5", "-5"),
    ("$-5", "-5"), ("$ - 5", "-5"), ("+$5", "5"), ("(-5)", "-5"), ("x=-5", "-5"), ("x = - 5", "-5"), ("is -5", "-5"),
    ("is -$5.", "-5"), ("Profit: - $5", "-5"), ("-.5", "-0.5"), ("-1/2", "-0.5"),
    # money
    ("$72", "72"), ("$72.", "72"), ("$ 72", "72"), ("$1,080.50", "1080.5"), ("$.50", "0.5"), ("€5", "5"),
    ("5 €", "5"),
    ("5€", "5"), ("£5.20", "5.2"), ("US$5", "5"), ("\\$72", "72"), ("5 m$", "5"), ("5 dollars", "5"), ("USD 5", "5"),
    # units and words
    ("72%", "72"), ("72 %", "72"), ("72\\%", "72"), ("72 clips", "72"), ("72km", "72"), ("72 km/h", "72"),
    ("$72/day", "72"), ("72 cm²", "72"), ("72cm²", "72"), ("72°", "72"), ("5 m", "5"), ("5m", "5"), ("72MB", "72"),
    ("72-page book", "72"), ("5th", "5"), ("5pm", "5"), ("3 quarters", "3"), ("72 points", "72"), ("1 point", "1"),
    ("72 clips!", "72"), ("The answer is 72.", "72"), ("x = 72", "72"), ("x=72", "72"), ("72 = x", "72"),
    ("k = 72", "72"),
    ("Answer: 72", "72"), ("=> 72", "72"), ("-> 72", "72"), ("≈ 72", "72"), ("~72", "72"),
    ("the third day: 72", "72"),
    ("72 (seventy-two)", "72"), ("Wait... 72", "72"), ("the answer\nis 72\nclips", "72"), ("# 72", "72"),
    # markup
    ("**72**", "72"), ("*72*", "72"), ("_72_", "72"), ("__72__", "72"), ("`72`", "72"),
    ("The answer is **72** clips.", "72"),
    ("\\boxed{72}", "72"), ("$\\boxed{72}$", "72"), ("\\boxed{-5}", "-5"), ("\\boxed{$72}", "72"), ("$72$", "72"),
    ("$$72$$", "72"), ("\\(72\\)", "72"), ("\\[72\\]", "72"), ("(72)", "72"), ("[72]", "72"), ("{72}", "72"),
    ("is (72)", "72"),
    ("'72'", "72"), ('"72"', "72"), ("“72”", "72"), ("\\text{72}", "72"),
    # fractions
    ("1/2", "0.5"), ("1 / 2", "0.5"), ("1/3", "1/3"), ("2/6", "1/3"), ("48/2", "24"), ("$1/2", "0.5"), ("0/5", "0"),
    ("\\frac{3}{4}", "0.75"), ("-\\dfrac{3}{4}", "-0.75"), ("3 1/2", "3.5"), ("-3 1/2", "-3.5"),
    ("2\\frac{1}{2}", "2.5"), ("$\\boxed{\\frac{1}{2}}$", "0.5"),
    # powers of units, LaTeX's commas, other currencies
    ("100 m^2", "100"), ("100 cm^{3}", "100"), ("9 m/s^2", "9"), ("100 \\text{ m}^2", "100"), ("$5/ft^2", "5"),
    ("1{,}080", "1080"), ("1{,}234{,}567", "1234567"), ("₩500", "500"), ("₽5", "5"), ("-₱1,080", "-1080"),
]  # fmt: skip

NOT_ONE_NUMBER = [
    # none
    "", " ", "\n", "-", "$", ".", ",", "%", "seventy-two", "no idea", "five", "()", "…", "\\boxed{}",
    # two or more
    "5 or 6", "5-6", "5–6", "5 to 6", "10:30", "3 3/2", "1 080", "72 72", "5, 6", "5 + 3 = 8", "2x = 144", "5'6\"",
    "1/2/2020", "2020-01-02", "3.14.15", "1.080.000", "1/2 of 5", "5 or six", "72 (73)", "5\n6",
    "2 * 3", "2^3", "2**3", "2****3", "2***3", "2`3", "2__3", "2$$3", "2``3", "<<1+1=2>>2",
    # commas out of place
    "1,08", "10,80", "72,5", "1,0800", "1,,080", "0,080", "1080,500", ",720,", "1,080,5",
    # another number than its digits: scales, powers, negations, bounds, unknowns
    "less than 5", "at most $5", "up to (5)", "5 lakh", "2 crores",
    "5 thousand", "5k", "5K", "5 k", "2 million", "5M", "$5m", "$2bn", "5 B", "3 dozen", "2 hundred", "2e3",
    "2E3", "2e",
    "72 and a half", "half of 72", "twice 72", "2 thirds", "minus 5", "negative 5", "not 72", "The answer is not 72.",
    "72x", "72 x", "5n", "2 pi", "2π", "√72", "sqrt(72)", "f(72)", "x_{2}", "x^{2}", "x^2", "72!=x^2", "x - 5", "x-5",
    "-(5)", "--5", "+-5", "x + 5", "x * 5", "x / 5", "/5", "5/", "*5", "5*", "5+", "5 +", "5-", "-5-", "5 - x",
    "5^", "> 5",
    "<5", "≥ 5", "≤5", "± 5", "5 < x", "72?", "72...", "72…", "0.333...", "1/0", "0/0", "1/-2", "5 or more",
    "5 or so",
    "x² = 72", "x^2 = 72", "5 x^2", "2 m^25", "x\\frac{1}{2}", "\\sqrt{\\frac{1}{4}}", "\\frac{1}{2}^2", "1{,}08",
    "0 5/0",
    # letters or other digits in a word with it
    "x2y", "x2", "H2O", "A-5", "COVID-19", "v1.2", "Rs.5", "0x48", "7２", "７２", "٧٢", "5½", "½", "72五", "10²", "①",
    # too long
    "9" * (MOST_DIGITS + 1), "0." + "3" * MOST_DIGITS, "1" + ",000" * 17, "1" * 5000, f"1/{'9' * MOST_DIGITS}",
]  # fmt: skip


@every_row(("text", "number"), ONE_NUMBER)
def test_a_number_is_read_as_a_person_reads_it(text, number):
    assert canonical(parse_number(text)) == number


@every_row("text", NOT_ONE_NUMBER)
def test_what_is_not_surely_one_number_is_none(text):
    assert parse_number(text) is None


def test_the_table_is_as_large_as_it_should_be():
    assert len(set(ONE_NUMBER)) == len(ONE_NUMBER) and len(set(NOT_ONE_NUMBER)) == len(NOT_ONE_NUMBER)
    assert len(ONE_NUMBER) >= 100 and len(NOT_ONE_NUMBER) >= 100


@every_row(
    ("number", "text"),
    [
        (Fraction(72), "72"), (Fraction(-5), "-5"), (Fraction(0), "0"), (Fraction(1, 2), "0.5"),
        (Fraction(-1, 8), "-0.125"),
        (Fraction(1, 3), "1/3"), (Fraction(-22, 7), "-22/7"), (Fraction(1, 100), "0.01"),
        (Fraction(2161, 2), "1080.5"),
        (Fraction(10**40), "1" + "0" * 40), (Fraction(1, 2**60), "1/1152921504606846976"),
    ],
)  # fmt: skip
def test_canonical(number, text):
    assert canonical(number) == text


def test_what_canonical_writes_is_read_as_the_same_number():
    rng = random.Random(0)
    for _ in range(3000):
        number = Fraction(rng.randint(-(10 ** rng.randint(0, 12)), 10 ** rng.randint(0, 12)), rng.randint(1, 400))
        text = canonical(number)
        assert parse_number(text) == last_number(text) == number
        assert canonical(parse_number(text)) == text
        assert parse_number(f"The answer is ${text}.") == number


@every_row(
    ("text", "number"),
    [
        ("72", "72"), ("The answer is 72.", "72"), ("first 5, then $1,080.50.", "1080.5"), ("it is -3", "-3"),
        ("-$3", "-3"), ("$-3", "-3"), ("−3", "-3"), ("of 1/2", "0.5"), (".5", "0.5"), ("72 clips, see [1]", "1"),
        ("48+24 = <<48+24=72>>72 clips", "72"), ("(5)", "5"), ("5\n\n6\n", "6"), ("72%", "72"), ("$5-3=2", "2"),
        ("so 3 1/2 cups", "3.5"), ("The answer is **$72**.", "72"), ("\\boxed{72}", "72"), ("₩500", "500"),
        ("is 18 dollars, not less than before", "18"), ("4 times 5 is 20 eggs", "20"), ("5 apples. Not more.", "5"),
        ("$18 every day at the market.", "18"), ("It costs 5.\nOr not", "5"),
    ],
)  # fmt: skip
def test_the_last_number(text, number):
    assert canonical(last_number(text)) == number


@every_row(
    "text",
    ["", "none", "...", "$", "-", "1/0", "7" * (MOST_DIGITS + 1), "٧٢", "12,34,567", "1,00,000", "1 080", "1.5e3",
     "2e3", "Rs.500", "less than 5", "more than $5", "at least 5 apples", "5 lakh", "5 crore rupees", "5 or 6", "5-3",
     "5 - 3", "5 x 3", "10:30", "1,2,3", "10,80", "x2", "72...", "it is 5 and a half", "twice 72", "5 or more"],
)  # fmt: skip
def test_a_part_of_a_number_is_never_the_last_number(text):
    assert last_number(text) is None


VALUES = [
    ("1", 1), ("48/2", 24), ("48 + 24", 72), ("12/60", Fraction(1, 5)), ("0.2*50", 10), ("100-50-30-15", 5),
    ("2*(3+4)", 14),
    ("(1+2)*(3-5)", -6), ("2+3*4", 14), ("2*3+4", 10), ("12/3/2", 2), ("12/(3/2)", 8), ("10-4-3", 3), ("-5", -5),
    ("-(5)", -5), ("5--3", 8), ("5+-3", 2), ("3*-2", -6), ("--5", 5), ("+10", 10), ("3*+6", 18), ("5-+3", 2),
    (".15*20", 3), ("5.*2", 10), ("0.1+0.2", Fraction(3, 10)), ("1/3", Fraction(1, 3)), ("1/3*3", 1),
    ("1/3+1/3+1/3", 1),
    ("3x4", 12), ("3 X 4", 12), ("3×4", 12), ("3·4", 12), ("12÷4", 3), ("5−3", 2), ("5–3", 2),
    ("20%", Fraction(1, 5)),
    ("20%*50", 10), ("50*20 %", 10), ("(10+10)%*50", 10), ("2^3", 8), ("2**3", 8), ("2^3^2", 512), ("-2^2", -4),
    ("(-2)^2", 4), ("2^-1", Fraction(1, 2)), ("2*3^2", 18), ("0^0", 1), ("1.5^2", Fraction(9, 4)), ("$5*3", 15),
    ("$1,080 + $20.50", Fraction(2201, 2)), ("1,000,000/1,000", 1000), ("5$", 5), ("0x10", 0), ("  7\t", 7),
    ("((((7))))", 7),
    ("(" * 50 + "1" + ")" * 50, 1), ("-" * 199 + "1", -1), ("9^30", 9**30), ("10^30", MOST_VALUE),
]  # fmt: skip
NO_VALUES = [
    "", " ", "$", "x", "+", "()", ")(", "(", ")", "(1", "1)", "1+", "*2", "1 2", "2(3)", "(2)(3)", "1++", "1*/2",
    "1**", "^2",
    "5%3", "%", "1/0", "1/(2-2)", "0^-1", "4^0.5", "4^(1/2)", "1,08", "1,0800", "1,,000", ",5", "1.2.3", ".", "1..2",
    "5//2", "5=5", "1+1=2", "a", "y+1", "__import__('os')", "exit()", "1e5", "1j", "1_000", "[1]", "{1}", "1;2",
    "1<2",
    "5!", "sqrt(4)", "1\n+1", "٣+1", "２", "½", "9**9**9", "9^9^9^9", "2^65", "2^-65", "10^31", "10^30*2", "9^64",
    "10^10^10",
    "(" * 51 + "1" + ")" * 51, "(" * 200, ")" * 200, "2^" * 99 + "1", "1+" * 100 + "1", "9" * 200, "9" * 32,
    "." + "0" * 150 + "1", "1/" * 99 + "0", "(10^-30)*(10^-30)*(10^-30)",
    "1" * (MOST_CHARACTERS + 1), "((10^30)^64)^64",
]  # fmt: skip


@every_row(("expression", "value"), VALUES)
def test_evaluate(expression, value):
    assert evaluate(expression) == value


@every_row("expression", NO_VALUES)
def test_what_is_no_plain_sum_has_no_value(expression):
    assert evaluate(expression) is None


def test_evaluate_agrees_with_python_on_random_sums():
    rng = random.Random(0)
    for _ in range(1000):
        # The same sum twice: as text, and as Python with exact fractions.
        text, python = str(first := rng.randint(0, 20)), f"F({first})"
        for _ in range(rng.randint(1, 6)):
            sign, number = rng.choice(["+", "-", "*", "/", "*-", "--"]), rng.randint(0, 20)
            text, python = f"{text}{sign}{number}", f"{python}{sign}F({number})"
            if rng.random() < 0.4:
                text, python = f"({text})", f"({python})"
            elif rng.random() < 0.2:
                text, python = f"{number}-({text})", f"F({number})-({python})"
        try:
            expected = eval(python, {"F": Fraction})
        except ZeroDivisionError:
            expected = None
        assert evaluate(text) == expected, text


def test_any_short_text_is_answered_and_nothing_is_raised():
    rng = random.Random(0)
    alphabet = "0123456789.,+-*/()^%x$ =<>#\n−×/km"
    for _ in range(20_000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 14)))
        for function in (parse_number, last_number, evaluate):
            assert isinstance(function(text), Fraction | None)
        assert all(isinstance(found, Calculation) for found in calculations(text))


ANNOTATIONS = [
    ("48/2 = <<48/2=24>>24 clips", [("48/2", "24", True)]),
    ("$<<12/60=0.2>>0.2 a minute", [("12/60", "0.2", True)]),
    ("<<12/60=.2>>0.20", [("12/60", ".2", True)]),
    ("<<12/60=.20>> and more", [("12/60", ".20", True)]),
    ("<<540*2=1080>>1,080.", [("540*2", "1080", True)]),
    ("<<540*2=1,080>>$1080", [("540*2", "1,080", True)]),
    ("<<540*2=$1080>>1080", [("540*2", "$1080", True)]),
    ("<<5-8=-3>>-3", [("5-8", "-3", True)]),
    ("<<5-8=-3>>-$3", [("5-8", "-3", True)]),
    ("<<3/4=3/4>>3/4 of it", [("3/4", "3/4", True)]),
    ("<<1+1=2>>", [("1+1", "2", True)]),
    ("<<1+1=2>> 3 more", [("1+1", "2", True)]),  # a number that does not follow directly says something else
    ("<<1+1=2>>2<<2*2=4>>4", [("1+1", "2", True), ("2*2", "4", True)]),
    ("<< 1 + 1 = 2 >>2", [(" 1 + 1 ", " 2 ", True)]),
    ("<<20%*50=10>>10%", [("20%*50", "10", True)]),
    ("<<1+1=3>>3", [("1+1", "3", False)]),
    ("<<1+1=2>>3", [("1+1", "2", False)]),
    ("<<1+1=2>>2.5", [("1+1", "2", False)]),
    ("<<1+1=2>>20", [("1+1", "2", False)]),
    ("<<5-8=-3>>3", [("5-8", "-3", False)]),
    ("<<5-8=3>>3", [("5-8", "3", False)]),
    ("<<100/3=33.33>>33.33", [("100/3", "33.33", True)]),  # rounded as a person would
    ("<<200/3=66.67>>66.67", [("200/3", "66.67", True)]),
    ("<<200/3=66.66>>66.66", [("200/3", "66.66", False)]),
    ("<<100/3=33.3>>33.3", [("100/3", "33.3", False)]),
    ("<<100/3=33>>33", [("100/3", "33", False)]),
    ("<<7/2=4>>4", [("7/2", "4", False)]),
    ("<<7/2=3>>3", [("7/2", "3", False)]),
    ("<<7//2=3>>3", [("7//2", "3", False)]),
    ("<<1+1>>2", [("", "1+1", False)]),
    ("<<>>2", [("", "", False)]),
    ("<<=>>", [("", "", False)]),
    ("<<=2>>2", [("", "2", False)]),
    ("<<1+1=>>2", [("1+1", "", False)]),
    ("<<1+1=two>>2", [("1+1", "two", False)]),
    ("<<1+1=2=2>>2", [("1+1=2", "2", False)]),
    ("<<x+1=2>>2", [("x+1", "2", False)]),
    ("<<1/0=0>>0", [("1/0", "0", False)]),
    ("<<9**9**9=1>>1", [("9**9**9", "1", False)]),
    ("<<1+1=2", [("1+1", "2", False)]),  # never closed
    ("<<1+1=2\n<<1+1=2>>2", [("1+1=2\n<<1+1", "2", False)]),
    ("<<<1+1=2>>2", [("<1+1", "2", False)]),
    ("1+1=2>>2", []),
    ("", []),
    ("1 < 2 and 3 > 2", []),
]  # fmt: skip


@every_row(("text", "found"), ANNOTATIONS)
def test_calculations(text, found):
    assert calculations(text) == [Calculation(*values) for values in found]


BLOCKS = [
    "7", "7,", "1,080,", "7.", "7/", "7 ", " ", "\u00a0", "$", "-", "- ", "$-", "$ ", "x", "x ", "(", ")", "{",
    "*", "**", "_", "`",
    "\\", "#", "<", "<<", ">>", "<<>>", "<<=", "=", "<<1+1=2>>", "<<1+1=2", "<<1", "1>>", "\n", "-7", "7-", "%",
    "9^", ".", "…",
    "not", "half ", "m²", "²", "é", "\u200b", "1/2 ", "seven",
]  # fmt: skip


@pytest.mark.slow
@every_row("tail", ["", "7", " x"])
@every_row("block", BLOCKS)
def test_a_megabyte_of_anything_is_read_in_linear_time(block, tail):
    """At these sizes quadratic time would be 10^10 to 10^12 steps. Nothing is timed: it ends or it does not."""
    size = 200_000 if tail else 1_000_000
    text = block * (size // len(block)) + tail
    parse_number(text)
    last_number(text)
    calculations(text)
    assert evaluate(text) is None
    parse_number("7" + text)
