"""Reading numbers as a person does ("$1,080.50 a day" is 1080.5, "5 or 6" is not one number), and checking
calculator annotations:

    Weng earns 12/60 = $<<12/60=0.2>>0.2 a minute.         <- one calculation, which is right

Values are exact (fractions.Fraction). Time is linear in the length of the text, whatever a model wrote.
"""

import dataclasses
import re
import unicodedata
from fractions import Fraction

MOST_DIGITS = 50  # of one number; longer ones are degenerate repetition, and arithmetic on them is slow
MOST_CHARACTERS = 200  # of an expression to evaluate
MOST_NESTING = 50
MOST_EXPONENT = 64
MOST_VALUE = 10**30

# The signs of category Sc: "$", "€", "₩" ...
_CURRENCY = "".join(sign for sign in map(chr, range(0x10000)) if unicodedata.category(sign) == "Sc")
_SIGNS = {"-": -1, "−": -1, "–": -1, "+": 1}
_ONE_NUMERAL = re.compile(r"(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)?(?:\.[0-9]+)?|(?:[0-9]+ )?[0-9]+ ?/ ?[0-9]+")
_ANY_NUMERAL = re.compile(
    rf"(?:(?<![0-9A-Za-z).])[-−–])?[{_CURRENCY}]?"
    r"(?:[0-9]+/[0-9]+|(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
_WORD = re.compile(r"[^\W\d_]+")
# Words that change the number, or make it one of several, at any position; _SCALES: directly after the number.
_CHANGES = re.compile(
    r"(?:(?:hundred|thousand|lakh|crore|[mb]illion|trillion|dozen)s?|half|halves|twice|minus|negative|or|not|mil|mln|bn|pi|π)",
    re.IGNORECASE,
)
_BOUND = re.compile(r"\b(?:than|at (?:least|most)|up to)\W*$", re.IGNORECASE)  # before a number, as "≥" is
_SCALES = frozenset(["k", "third", "thirds", *"einxyz"])
_BEFORE = frozenset("([{\"'“‘«:=~≈#—→")  # may be directly before a number
_OPERATORS = frozenset("*/^×÷·<>≤≥≠±√")
_TOKEN = re.compile(
    r"(?:[^\S\n]|\$)*"
    r"((?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+|\*\*|[-+*/()^%xX×·÷−–])"
)
_SAME = {"x": "*", "X": "*", "×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "**": "^"}
_ZERO_WIDTH = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))
# Emphasis and display math, except between digits ("2**3").
_MARKUP = re.compile(r"(?<![0-9])(?:\*\*|__|`|\$\$)|(?:\*\*|__|`|\$\$)++(?![0-9])")
# The power of a unit directly after a number: "100 m^2", "5 km/s²"; not that of an unknown, "x^2".
_UNIT_POWER = re.compile(
    r"([0-9] ?(?:\\(?:text|mathrm)\{ ?)?(?:[A-Za-z]{1,8}/|/)?(?:[kdcm]?m|in|ft|yd|mi|s|inch(?:es)?|feet|foot"
    r"|yards?|miles?|(?:centi|kilo)?met(?:er|re)s?|units?)\}?)(?:\^(?:[23](?![0-9.,])|\{[23]\})|[²³])"
)
# For `last_number`: annotations, the words that it looks at on each side, and the signs behind which it does not.
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_BESIDE = 3
_STANDS_FOR = {"x": "×", "X": "×"}
_PAUSES = ".,;:!?)"
_DIGIT = re.compile(r"[0-9]")
_LATEX_COMMA = re.compile(r"(?<=[0-9])\{,\}(?=[0-9]{3})")  # 1{,}080
_LATEX_FRACTION = re.compile(r"([0-9] ?)?\\[dt]?frac\{([0-9]{1,50})\}\{([0-9]{1,50})\}")


def parse_number(text: str) -> Fraction | None:
    """The number that a short answer states ("-$5", "72 clips.", "**1,080**", "1/2"); None if that is unsure.

    A unit, a percent sign or words around it are ignored: "72%" is 72, "100 m^2" is 100. "3 1/2" is a mixed number;
    LaTeX's fractions and "1{,}080" are read. None for two numbers ("5-6", "10:30"), for a number changed by a word or
    sign next to it ("5k", "2 million", "not 5", "> 5", "72x"), for misplaced commas ("1,08"), for digits other than
    0-9 and for more than MOST_DIGITS digits.
    """
    text = _UNIT_POWER.sub(r"\1", _MARKUP.sub("", text.translate(_ZERO_WIDTH)))
    text = _LATEX_FRACTION.sub(_plain_fraction, _LATEX_COMMA.sub(",", text))
    if any(not c.isascii() and c.isnumeric() for c in text):
        return None
    last = _last_digit(text)
    if last < 0:
        return None
    first = min(i for i in (text.find(digit) for digit in "0123456789") if i >= 0)
    first -= text[:first].endswith(".")
    # One number: the text from the first to the last digit is one numeral.
    before, value, after = text[:first], _value(text[first : last + 1]), text[last + 1 :]
    if before[-1:] in ("*", "_") and after[:1] == before[-1]:  # *72*
        before, after = before[:-1], after[1:]
    sign = _sign(before)
    changed = any(_CHANGES.fullmatch(word.group()) for word in _WORD.finditer(text)) or _BOUND.search(before[-40:])
    if value is None or sign is None or changed or not _ends_plainly(after, money=before[-1:] in tuple(_CURRENCY)):
        return None
    return value * sign


def canonical(number: Fraction) -> str:
    """The canonical form of a number: "72", "-0.5"; "1/3" if no decimal of at most MOST_DIGITS places is exact."""
    scaled, places = number, 0
    while scaled.denominator != 1 and places < MOST_DIGITS:
        scaled, places = scaled * 10, places + 1
    if scaled.denominator != 1 or len(str(abs(scaled.numerator))) > MOST_DIGITS:
        return str(number)
    digits = str(abs(scaled.numerator)).rjust(places + 1, "0")
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
    return ("-" if number < 0 else "") + whole + ("." + decimals if decimals else "")


def last_number(text: str) -> Fraction | None:
    """The last number of a text, or None: the "flexible" rule of lm-evaluation-harness for numbers that are unchanged.

    `parse_number` reads it with the words beside it: "1.5e3", "5 lakh", "less than 5", "12,34,567" and "5 or 6" are
    None, not a part of them. Calculator annotations do not count.
    """
    text = _ANNOTATION.sub("", text.translate(_ZERO_WIDTH))
    last = _last_digit(text)
    if last < 0:
        return None
    start = max(text.rfind("\n", 0, last) + 1, last - MOST_CHARACTERS)
    before = text[start : last + 1].split()
    behind = text[last + 1 : last + MOST_CHARACTERS].partition("\n")[0].split(" ")
    words = [before.pop().rpartition("=")[2] + behind[0]]
    while before and words[0][0].isdigit() and before[-1][-1].isdigit():  # "1 080", "3 1/2"
        words.insert(0, before.pop())
    for word in reversed(before[-_BESIDE:]):
        if word[-1] in _PAUSES:
            break
        words.insert(0, _STANDS_FOR.get(word, "n" if _DIGIT.search(word) else word))  # "5 - 3" is a difference
    for word in behind[1 : 1 + _BESIDE]:
        if words[-1][-1] in _PAUSES:
            break
        words += [word] if word else []
    return parse_number(" ".join(words))


def _last_digit(text: str) -> int:
    """Offset of the last digit 0-9; -1 if there is none."""
    return max(text.rfind(digit) for digit in "0123456789")


def _value(numeral: str) -> Fraction | None:
    if len(numeral) > 2 * MOST_DIGITS or not _ONE_NUMERAL.fullmatch(numeral):
        return None
    if sum(c.isdigit() for c in numeral) > MOST_DIGITS:
        return None
    over, _, under = numeral.replace(",", "").partition("/")
    if not under:
        return Fraction(over)
    whole, _, over = over.strip().rpartition(" ")
    if not int(under) or (whole and int(over) >= int(under)):
        return None
    return int(whole or 0) + Fraction(int(over), int(under))


def _plain_fraction(match: re.Match[str]) -> str:
    """A fraction of LaTeX as "3/4", after a whole number as " 3/4"."""
    whole, over, under = match.groups()
    return f"{whole.rstrip()} {over}/{under}" if whole else f"{over}/{under}"


def _sign(before: str) -> int | None:
    """1 or -1; None if the text before a number changes it: "x-", "sqrt(", "≥"."""
    sign, spaced, money = 0, False, False
    while rest := before.rstrip():
        if rest[-1] in _CURRENCY and not money:
            money, before = True, rest[:-1].removesuffix("\\")
        elif rest[-1] in _SIGNS and not sign:
            sign, spaced, before = _SIGNS[rest[-1]], rest != before, rest[:-1]
        else:
            break
    left = before.rstrip()
    if not left:
        return sign or 1
    glued = left == before
    if left[-1] in "([{" and glued:
        return (sign or 1) if _opens_plainly(left[:-1]) else None
    if glued:
        plain = left[-1] in _BEFORE or (money and not sign and left[-1].isupper())
    elif sign:  # "is -5" has a sign, "x - 5" a difference
        plain = left[-1] in _BEFORE or (not spaced and left[-1] not in _OPERATORS)
    else:
        plain = left[-1] not in _OPERATORS or left.endswith(("=>", "->"))
    return (sign or 1) if plain else None


def _opens_plainly(before: str) -> bool:
    """Whether a bracket after `before` only encloses: "is (72)", "\\boxed{72}", but not "sqrt(72)" or "x_{2}"."""
    if before.endswith(("\\boxed", "\\text", "\\mathbf", "\\")):
        return True
    left = before.rstrip()
    if left != before:
        return left[-1:] not in _OPERATORS and left[-1:] not in _SIGNS
    return not left or left[-1] in _BEFORE or left[-1] in _CURRENCY


def _ends_plainly(after: str, money: bool) -> bool:
    """Whether the text after a number leaves it unchanged: " clips", "%", "-page book", but not "x", "+", "..."."""
    rest = after.lstrip()
    if word := _WORD.match(rest):
        millions = word.group() in (("M", "B", "m", "b") if money else ("M", "B"))  # "5m" is metres, "$5m" is not
        return not millions and word.group().casefold() not in _SCALES
    if rest[:1] in ("-", "−", "–", "/"):
        word = _WORD.match(rest[1:].lstrip())
        return word is not None and len(word.group()) > 1
    return not rest.startswith(("..", "…", "?", "+")) and rest[:1] not in _OPERATORS


class _NoValue(Exception):
    """An expression has no value."""


def evaluate(expression: str) -> Fraction | None:
    """The value of an expression of + - * / ( ), signs, powers and percentages; None for anything else.

    x, × and · multiply, ÷ divides, "20%" is 20/100, ^ and ** raise to an integer power of at most MOST_EXPONENT; "$"
    and thousands commas are ignored. Also None for a division by zero, for more than MOST_CHARACTERS characters or
    MOST_NESTING nested brackets, and if a step exceeds MOST_VALUE or has a denominator above MOST_VALUE**2.
    """
    if len(expression) > MOST_CHARACTERS:
        return None
    tokens, end = [], 0
    while match := _TOKEN.match(expression, end):
        tokens.append(match[1])
        end = match.end()
    if expression[end:].strip(" $\t"):
        return None
    calculator = _Calculator([_SAME.get(token, token) for token in tokens])
    try:
        value = calculator.sum(0)
        return None if calculator.tokens else value
    except _NoValue:
        return None


class _Calculator:
    """Recursive descent parser. `tokens` are those still to read, in reverse order; at most MOST_NESTING levels."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens[::-1]

    def take(self, *options: str) -> str:
        """Consumes and returns the next token if it is one of `options`, else ""."""
        return self.tokens.pop() if self.tokens and self.tokens[-1] in options else ""

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while sign := self.take("+", "-"):
            term = self.product(depth)
            value = _bounded(value + term if sign == "+" else value - term)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.signed(depth)
        while sign := self.take("*", "/"):
            factor = self.signed(depth)
            if sign == "/" and not factor:
                raise _NoValue
            value = _bounded(value * factor if sign == "*" else value / factor)
        return value

    def signed(self, depth: int) -> Fraction:
        sign = 1
        while token := self.take("-", "+"):
            sign = -sign if token == "-" else sign
        value = self.atom(depth)
        if self.take("^"):  # binds tighter than a sign before it, and to the right: 2^3^2 is 2^9
            if depth >= MOST_NESTING:
                raise _NoValue
            exponent = self.signed(depth + 1)
            if exponent.denominator != 1 or abs(exponent) > MOST_EXPONENT or (exponent < 0 and not value):
                raise _NoValue
            value = _bounded(value ** int(exponent))
        return sign * value

    def atom(self, depth: int) -> Fraction:
        if self.take("("):
            if depth >= MOST_NESTING:
                raise _NoValue
            value = self.sum(depth + 1)
            if not self.take(")"):
                raise _NoValue
        elif self.tokens and self.tokens[-1][-1] in "0123456789.":
            value = _bounded(Fraction(self.tokens.pop().replace(",", "")))
        else:
            raise _NoValue
        return value / 100 if self.take("%") else value


def _bounded(value: Fraction) -> Fraction:
    if abs(value) > MOST_VALUE or value.denominator > MOST_VALUE**2:
        raise _NoValue
    return value


@dataclasses.dataclass(frozen=True)
class Calculation:
    """One calculator annotation of a text, `<<expression=result>>`."""

    expression: str
    result: str
    right: bool  # the result is the expression's value, and equals a number directly after the annotation


def calculations(text: str) -> list[Calculation]:
    """All annotations of a text. One without "=", without ">>", or that cannot be read is wrong.

    A result with two or more decimals may be rounded (100/3=33.33). In GSM8K's own solutions all are exact.
    """
    annotations, start = [], text.find("<<")
    while start >= 0:
        end = text.find(">>", start)
        inside = text[start + 2 : end] if end >= 0 else text[start + 2 :]
        expression, _, result = inside.rpartition("=")
        stated = _stated(result)
        value = evaluate(expression)
        right = end >= 0 and stated is not None and value is not None and _is_rounded(value, stated, result)
        if right and (match := _ANY_NUMERAL.match(text, end + 2)):
            right = _stated(match.group()) == stated
        annotations.append(Calculation(expression, result, right))
        start = text.find("<<", end) if end >= 0 else -1
    return annotations


def _is_rounded(value: Fraction, stated: Fraction, result: str) -> bool:
    decimals = len(result.rstrip(" .%").partition(".")[2])
    return value == stated or (decimals >= 2 and abs(value - stated) <= Fraction(1, 2 * 10**decimals))


def _stated(numeral: str) -> Fraction | None:
    """The value of a text that is one numeral, with a sign and a currency at most: "-$1,080.50"; else None."""
    numeral = numeral.strip()
    value = _value(numeral.lstrip("-−–" + _CURRENCY)) if _ANY_NUMERAL.fullmatch(numeral) else None
    return -value if value is not None and numeral[0] in _SIGNS else value
