"""Multiple choice: rendering a problem, and reading which letter a completion chooses. A problem with its hint:

    Q: What do people use to absorb extra ink from a fountain pen?
    Answer Choices:
    (a) shirt pocket
    (b) calligrapher's hand
    (c) inkwell
    (d) desk drawer
    (e) blotter (CORRECT)
    A:                              <- the completion begins here: " ... Therefore, the answer is blotter (e)."

There are two readers. `closing_choice` is the paper's format: the text ends in "(e).". `stated_choice` also reads "The
answer is E, because ...". Both look at the words beside the letter, and `agrees` refuses a letter with the text of
another choice. What is unclear is not read: no letter, or several of which none is dismissed.

Terms: a *label* is a letter that is written as a choice ("(e)", "option E"), not as a word; a *conclusion* is a label
after words such as "the answer is", or before "is correct". Time is linear in the length of the text: repetitions in
the regular expressions are bounded or match in one way only, and other checks look at windows of fixed size.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from star_jax.records import Problem
from star_jax.tasks.answers.folding import folded

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# After the right choice of a hinted problem. A completion that repeats it has no answer: it reasons from the mark.
HINT = "(CORRECT)"

_WINDOW = 300  # characters beside a letter in which a choice is named
_OUTER = " \t\n.,;:!?\"'`()[]{}<>*_$-–—“”‘’"
_ARTICLES = re.compile(rf"(?:(?:an?|the) [{re.escape(_OUTER)}]*+)*+")


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


# Markup and writing that do not change what a text says.
_FULL_WIDTH = {code + 0xFEE0: code for code in range(0x21, 0x7F)}
_QUOTES = dict(zip(map(ord, "‘’“”"), "''\"\"", strict=True))
_MARKUP = dict.fromkeys(map(ord, "*$`\\"))
_LATEX = re.compile(r"\\(?:boxed|fbox|text(?:bf|it|tt|rm)?|math(?:bf|it|tt|rm)|left|right)(?![a-z])")
_UNDERSCORES = re.compile(r"(?<!\w)_{1,2}([A-Za-z]|\([A-Za-z]\))_{1,2}(?!\w)")

# One letter that is not part of a word, an abbreviation ("e.g.", "d.c") or a grade ("A+", "C#").
_ONE = r"([A-Za-z])(?![\w#+-]|['.]\w)"
_INSIDE = r" ?(?:(?:option|choice|answer|letter):? )?['\"]?([A-Za-z])['\"]?\.? ?"
_BRACKETED = rf"\({_INSIDE}\)|\[{_INSIDE}\]|\{{{_INSIDE}\}}"
# "... is correct", behind a label and at most four words.
_SOME_WORDS = r"(?: (?!(?:because|since|as|which|that|so|for|and|or|but|it|if)\b)[\w'-]{1,20}){0,4}?"
_IS_RIGHT = (
    r" (?:is|was|must be|has to be|would be)(?: (?:clearly|therefore|thus|the|most|only|obviously|probably|my)){0,3}"
    r" (?:(?:correct|right|best)(?: (?:answer|choice|option|one|fit))?|answer)"
    r"(?=\s*$|[.,;:!?)\"'\n]| (?:because|since|as|here)\b)"
)
# What follows a letter that stands bare. Before a noun it would be an article or a name.
_AFTER = (
    r"(?=\s*$|[.,;:!?)\]}\"'\n/|]| ?\((?! ?[A-Za-z] ?\))| ?[–—=→&/|]| - "
    rf"| (?:because|since|as|due|given|which|and|or|nor|but|not|rather|instead)\b|{_IS_RIGHT})"
)
_CUE = (
    r"(?:option|choice|letter|answer|is|be|was|or|and|nor|but|either|neither|both|not|maybe|perhaps|possibly|probably"
    r"|even|so|therefore|thus|hence|then|clearly|choose|chose|pick|picked|select|selected|with|think|say|guess)"
)
_LABEL = _compiled(
    rf"{_BRACKETED}|(?<![\w'.-])(?:option|choice|letter) ([B-HJ-Z])(?![\w#+-]|['.]\w)"
    rf"|(?:(?<![\w'.-]){_CUE}[ :]{{1,2}}['\"]?|[,:;/&|{{\n\"'] ?| [-–—] ){_ONE}{_AFTER}"
    # First in the text; "A, ..." and "I, ..." are words.
    rf"|^{_ONE}(?=\s*$|[.:)\]}}\"'/&]| ?[–—=→]| - | \((?! ?[a-z] ?\))| (?:and|or|because|since)\b|(?<![ai])[,;]"
    rf"|{_IS_RIGHT})"
)
_CLOSING = re.compile(r"\(([A-Za-z])\)\.$")
_FILLER = _compiled(
    r"(?:[\s:,\-–—\"'=>.([{]|(?:so|therefore|thus|hence|then|maybe|perhaps|probably|clearly|i|think|say"
    r"|(?:(?:my|the) )?(?:(?:final|correct|right|best) )?(?:option|choice|letter|answer))(?![\w'-]))*"
)
_PROMPT = _compiled(r"\AA: (?=[(\[{][a-z][)\]}]|[a-z](?:$|[.)]))")  # repeats the prompt's last line

# Words after which the answer follows; _PICK only counts where there are no others.
_ANSWER = _compiled(
    r"\b(?:answers?|solution|(?:correct|right|best|final|only|likely|logical|sensible|reasonable|suitable|better)"
    r" (?:choice|option|one|response|fit))\b[^.:;=→!?\n()]{0,40}?(?:\b(?:is|was|be|are)\b|[:=→]|[-–—](?=[ >]))"
)
_PICK = _compiled(
    r"\b(?:choose|chose|pick|picked|select|selected|(?:go|going|went) with|i (?:think|say|guess)"
    r"|it(?:'s| is| must be| has to be| should be| would be)|so|therefore|thus|hence)(?=,? )"
)
_RIGHT = _compiled(_SOME_WORDS + _IS_RIGHT)

# A break between sentences, not after "Dr" or within "d.c."; and one between clauses.
_BREAK = re.compile(r"(?<!\.\w)(?<!\b(?:[Mm][rs]|[DdJj]r|[Ss]t|[Vv]s))[.!?;](?=[\"')\]]{0,2}(?:\s|$))|\n")
_CLAUSE = _compiled(rf"{_BREAK.pattern}|(?<!contrast)(?<!comparison)(?<!contrary),(?= )|\b(?:but|so)\b")
_ENDS = re.compile(r"[\s.,;:!?\"')\]}]*")

# Several letters, none of which is chosen: "(a) or (b)", and "salt and (e)".
_SEVERAL = _compiled(r"['\"]? ?(?:[/&+|]|,? ?(?:or|and/or)\b)")
_JOINED = _compiled(r"(?:\b(?:or|and|either|both) ?(?:the |option |choice )?|[/&+|] ?|(?<!\w)[(\[{][a-z][)\]}], ?)$")
_LISTED = _compiled(r"['\"]?(?:,? ?(?:and|or|nor|[/&])?|,) ?(?:option |choice )?['\"]?")
_OFFERED = _compiled(r"\b(?:or|maybe|perhaps|possibly|alternatively|also|might|could)\b[^.;!?\n]*$")
_HEDGE = _compiled(r"\b(?:or|maybe|perhaps|possibly|alternatively|also|but|could|might|may)\b")
_TALKED_ABOUT = _compiled(
    r"['\"]? (?:and|is|are|was|were|would|could|can|may|might|must|does|do|has|have|seems|looks|says)\b"
)

# Dismissed letters: by words directly before them, before them in the clause, or after them.
_NOT = r"(?:\b(?:not|never|neither|nor|cannot|unlike|except|excluding|than|instead of|ruled? out|opposed to)\b|n't\b)"
_NEGATED = _compiled(
    _NOT + r"(?: (?:be|the|option|choice|answer|letter|both|either|just|like|in|with|necessarily|really|choose|pick"
    r"|select|go with)){0,4} $"
)
_DENIED = _compiled(r"(?:\b(?:not|never|cannot)|n't)(?: (?!so\b|and\b|but\b|therefore\b)[\w']+){0,3} ?$")
_CONTRAST = _compiled(
    rf"(?:(?<!if ){_NOT}(?! sure| certain| only| just)|\b(?:because|since|as|while|whereas|although|though|contrast"
    r"|comparison|contrary|eliminate[sd]?|eliminating|excluded?|incorrect|wrong|discard(?:ed)?|reject(?:ed)?)\b)"
)
_CONTRASTING = _compiled(rf"{_CONTRAST.pattern}[^,;]*[,;]")
_FALSE = _compiled(
    _SOME_WORDS + r",? (?:(?:is|are|was|were|does|do|did|has|have|can|could|would|will|should|may|might|seems?|looks?)"
    r"(?:n't| not\b| never\b)|cannot\b|can't\b|won't\b|makes? no sense\b|(?:is|are|was|were|seems?|looks?)"
    r"(?: (?:both|all|also|clearly|simply|just|definitely|obviously|therefore|thus)){0,2} (?:wrong|incorrect|false"
    r"|out|unlikely|excluded|eliminated|ruled out|implausible|impossible|irrelevant|unrelated|inappropriate|too \w))"
)


class Choice(str):
    """A chosen letter "a", "b" ..., equal to that string.

    `before` and `after`: the text beside the letter, in which the completion may name the choice, "" if there is none;
    at most _WINDOW characters each.
    """

    before: str
    after: str

    def __new__(cls, letter: str, before: str = "", after: str = "") -> "Choice":
        self = super().__new__(cls, letter.lower())
        self.before, self.after = before[-_WINDOW:], after[:_WINDOW]
        return self


def render(problem: Problem, hint: bool = False) -> str:
    """The problem in the format at the top of this file; with `hint`, " (CORRECT)" follows the right choice."""
    lines = [f"Q: {problem.question}", "Answer Choices:"]
    for letter, text in zip(LETTERS, problem.choices, strict=False):
        lines.append(f"({letter}) {text}{f' {HINT}' if hint and letter == problem.answer else ''}")
    return "\n".join([*lines, "A:"])


def conclusion(problem: Problem) -> str:
    """The shortest right completion, " Therefore, the answer is blotter (e)."

    If a choice's text would be read as letters ("both (a) and (b)"), the sentence has the letter alone.
    """
    text = problem.choices[LETTERS.index(problem.answer)]
    sentence = f" {_sentence(text, problem.answer)}"
    right = all(agrees(problem, read(sentence)) for read in (closing_choice, stated_choice))
    return sentence if right else f" Therefore, the answer is ({problem.answer})."


def conclusion_of(text: str, letter: str) -> str:
    """The conclusion for a problem as `render` returns it; "" if it has no choice of that letter."""
    choice = re.search(rf"^\({re.escape(letter)}\) (.*)$", text, re.MULTILINE)
    return _sentence(choice[1], letter) if choice else ""


def _sentence(text: str, letter: str) -> str:
    return f"Therefore, the answer is {text} ({letter})."


def choice_texts(texts: Any) -> tuple[str, ...]:
    """The texts of the choices, unchanged. Raises ValueError unless they are 2 to 26 non-blank texts of one line."""
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("the choices must be a list of texts that are not empty")
    if not 2 <= len(texts) <= len(LETTERS):
        raise ValueError(f"there must be 2 to {len(LETTERS)} choices, got {len(texts)}")
    if broken := [text for text in texts if text.splitlines() != [text]]:
        raise ValueError(f"the choice {broken[0]!r} holds a line break")
    return tuple(texts)


def agrees(problem: Problem, answer: str | None) -> bool:
    """Whether an answer chooses the right letter, and no other choice is named beside it.

    `answer` comes from a reader, or is a text for `stated_choice`. Another choice with the same text does not count,
    nor does one that is named to dismiss it ("(b), not river", "(b), because a river is wet").
    """
    choice = answer if isinstance(answer, Choice) or answer is None else stated_choice(answer)
    if choice is None or choice != problem.answer:
        return False
    if problem.answer not in LETTERS[: len(problem.choices)]:
        return True  # a question without its choices, from star_jax.sample
    names = {normalised(text) for text in problem.choices} - {""}
    right = normalised(problem.choices[LETTERS.index(problem.answer)])
    labels = {*LETTERS[: len(problem.choices)]} - {problem.answer, right}
    return normalised(choice.before) not in labels and not _names_another(choice, names, right)


def normalised(text: str) -> str:
    """The folded text without surrounding punctuation, quotes and leading articles."""
    return _ARTICLES.sub("", folded(text.translate(_QUOTES)).strip(_OUTER), count=1)


def _names_another(choice: Choice, names: set[str], right: str) -> bool:
    """Whether one of `names` other than `right` stands beside the letter, or the letter's own text is negated."""
    short = sorted((name for name in names if len(name) <= _WINDOW), key=len, reverse=True)
    named = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, short))})(?!\w)") if short else re.compile(r"(?!)")

    def others(text: str) -> str:
        """`text` without the right choice's own text, which may hold another's: "river bank" beside "river"."""
        return named.sub(lambda match: "" if match[0] == right else match[0], folded(text.translate(_QUOTES)))

    before = others(choice.before)
    clause = before[max((match.end() for match in _CLAUSE.finditer(before)), default=0) :]
    if _NEGATED.search(clause):
        return True
    # A clause before the letter dismisses up to its comma ("as a river is wet, the answer is ..."), one after it all.
    if named.search(_CONTRASTING.sub(" ", before)):
        return True
    end = _BREAK.search(choice.after)
    after, rest = (choice.after[: end.start()], choice.after[end.end() :]) if end else (choice.after, "")
    if not after.strip(_OUTER):  # "(b). River." and "(b)\nriver", but not "(b). The river is wet."
        following = _BREAK.split(rest.strip(), maxsplit=1)[0]
        return normalised(following) in names - {right}
    contrast = _CONTRAST.search(after)
    return named.search(others(after[: contrast.start()] if contrast else after)) is not None


def closing_choice(text: str) -> Choice | None:
    """The letter of the "(e)." in which a text ends, as the paper's completions do; None for any other ending.

    Also None for "not (e)." and "(d) or (e).", which choose no letter.
    """
    text = text.rstrip()
    start = max(0, len(text) - 4)
    if not _CLOSING.match(text, start) or _part_of_word(text, start):
        return None
    before = _named_before(text, start)
    return None if _NEGATED.search(before) or _JOINED.search(before) else Choice(text[start + 1], before)


def stated_choice(text: str) -> Choice | None:
    """The letter that a completion chooses, in whatever form; None if it chooses none, or several.

    The last words such as "the answer is" with a letter in their sentence decide. Without any, it is the letter with
    which the text begins or ends. Every other letter after it must be dismissed ("not (a)", "(a) is wrong").
    """
    text = _PROMPT.sub("", _plain(text))
    labels = _labels(text)
    for words in (_ANSWER, _PICK):
        conclusions = _conclusions(text, labels, words)
        if last := next(conclusions, None):
            start, label = last
            earlier = next(conclusions, last)
            # "Either the answer is (a) or the answer is (b)."
            if earlier[1].letter != label.letter and _OFFERED.search(text[max(0, start - 60) : start]):
                return None
            before = text[start : label.start]
            # "Blotter (e) is correct", and "it is a blotter, so (e)".
            outside = start == label.start or (words is _PICK and _FILLER.fullmatch(before))
            return _settled(text, labels, label, _named_before(text, label.start) if outside else before)
    outermost = _outermost(text, labels)
    return outermost and _settled(text, labels, outermost, _named_before(text, outermost.start))


class _Label(NamedTuple):
    """A letter that is written as a choice: its span in the text, brackets included."""

    start: int
    end: int
    letter: str
    rejected: bool  # "not (a)", "(a) is wrong", and both of "neither (a) nor (b)"


def _plain(text: str) -> str:
    """The text without markup, full-width forms and curly quotes, with single spaces; line breaks stay."""
    text = _LATEX.sub("", text.translate(_FULL_WIDTH)).translate(_QUOTES).translate(_MARKUP)
    text = _UNDERSCORES.sub(r"\1", text)
    return "\n".join(" ".join(line.split()) for line in text.splitlines()).strip()


def _labels(text: str) -> list[_Label]:
    """The labels of a text. A list of labels is rejected as one: by words before its first or after its last."""
    labels: list[_Label] = []
    for match in _LABEL.finditer(text):
        group = match.lastindex or 1
        start, end = match.span() if group <= 3 else match.span(group)
        if group <= 3 and _part_of_word(text, start):
            continue
        listed = labels and labels[-1].rejected and _LISTED.fullmatch(text, labels[-1].end, start)
        rejected = listed or _NEGATED.search(text[max(0, start - 48) : start])
        labels.append(_Label(start, end, match[group].lower(), bool(rejected)))
    following: _Label | None = None
    for index, label in reversed([*enumerate(labels)]):
        listed = following and following.rejected and _LISTED.fullmatch(text, label.end, following.start)
        if not label.rejected and (listed or _FALSE.match(text, label.end)):
            labels[index] = label._replace(rejected=True)
        following = labels[index]
    return labels


def _part_of_word(text: str, start: int) -> bool:
    """Whether a bracketed letter belongs to the word before it: "shirt(s)", "f(x)"; but not "blotter(e)"."""
    attached = start > 0 and text[start - 1].isalnum()
    return attached and (text[start + 1] in "sS" or start < 2 or not text[start - 2].isalnum())


def _conclusions(text: str, labels: list[_Label], words: re.Pattern[str]) -> Iterator[tuple[int, _Label]]:
    """Yields (offset behind the words, label) of each "the answer is (e)" and "(e) is correct", the last one first."""
    markers = [(match.start(), match.end()) for match in words.finditer(text)]
    markers += [(label.start, label.start) for label in labels if not label.rejected and _RIGHT.match(text, label.end)]
    left, following = [label for label in labels if not label.rejected], None
    for start, end in sorted(markers, reverse=True):
        while left and left[-1].start >= end:
            following = left.pop()
        if following and not _DENIED.search(text[max(0, start - 40) : start]) and _is_near(text, end, following):
            yield end, following


def _is_near(text: str, start: int, label: _Label) -> bool:
    """Whether a label is in the sentence at `start`, or closes the text directly behind it."""
    if label.start - start > _WINDOW:
        return False
    between = text[start : label.start]
    breaks = [match.end() for match in _BREAK.finditer(between) if between[: match.start()].strip(_OUTER)]
    # "he had a word with the driver. (c)." is one sentence; "blotter. (a) could be too." is two.
    return not breaks or (not between[breaks[-1] :].strip() and _ENDS.fullmatch(text, label.end) is not None)


def _outermost(text: str, labels: list[_Label]) -> _Label | None:
    """The label with which a text begins, or else ends, if no other letter before it may be meant."""
    if not labels:
        return None
    first, last = labels[0], labels[-1]
    if _FILLER.fullmatch(text, 0, first.start) and not first.rejected and not _TALKED_ABOUT.match(text, first.end):
        return first
    in_brackets = last.end > last.start + 1
    # "The answer is blotter. I also considered (a)." does not conclude with (a).
    if not in_brackets or last.rejected or not _ENDS.fullmatch(text, last.end) or _ANSWER.search(text):
        return None
    return None if any(_undismissed(text, labels[:-1], last.letter, 0)) else last


def _settled(text: str, labels: list[_Label], label: _Label, before: str) -> Choice | None:
    """The choice of a label; None if it is one of several, or another letter is proposed after it."""
    if _SEVERAL.match(text, label.end) or _JOINED.search(before):
        return None
    later = labels[labels.index(label) + 1 :]
    if any(_undismissed(text, later, label.letter, label.end)):
        return None
    return Choice(label.letter, before, text[label.end : label.end + _WINDOW])


def _undismissed(text: str, labels: list[_Label], letter: str, since: int) -> Iterator[_Label]:
    """The labels of other letters that their clause does not reject as in "because (a)" and "eliminated: (a), (b)"."""
    last: _Label | None = None  # that was dismissed
    for label in labels:
        clause = text[max(since, label.start - 100) : label.start]
        clause = clause[max((match.end() for match in _CLAUSE.finditer(clause)), default=0) :]
        contrasts = [match.end() for match in _CONTRAST.finditer(clause)]
        dismissed = label.rejected or (contrasts and not _HEDGE.search(clause, contrasts[-1]))
        if dismissed or (last and _LISTED.fullmatch(text, last.end, label.start)):
            last = label
        elif label.letter != letter:
            yield label


def _named_before(text: str, end: int) -> str:
    """The words before a label that closes a sentence: behind "the answer is", else its clause, else the sentence."""
    start = max(0, end - _WINDOW)
    sentence = text[start:end].rstrip(" .;!?\"'")  # "he had a word with the driver. (c)." is one sentence
    breaks = [match.end() for match in _BREAK.finditer(sentence)]
    sentence = text[start + (breaks[-1] if breaks else 0) : end]
    if answers := [match.end() for match in _ANSWER.finditer(sentence)]:
        return sentence[answers[-1] :]
    clauses = [match.end() for match in _CLAUSE.finditer(sentence)]
    clause = sentence[clauses[-1] if clauses else 0 :]
    return sentence if _FILLER.fullmatch(clause) else clause
