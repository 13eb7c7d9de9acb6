"""Multiple choice: rendering a problem, and reading which letter a completion chooses. A problem with its hint:

    Q: What do people use to absorb extra ink from a fountain pen?
    Answer Choices:
    (a) shirt pocket
    (b) calligrapher's hand
    (c) inkwell
    (d) desk drawer
    (e) blotter (CORRECT)
    A:                              <- the completion begins here: " ... Therefore, the answer is blotter (e)."

A letter is a label, not a word, if it is in brackets, takes the position of an answer ("the answer is E.") or follows
a word such as "option". Time is linear in the length of the text: repetitions in the regular expressions are bounded
or match in one way only, and other checks look at windows of fixed size.

Terms: a *mention* is a label in the text; a *conclusion* is a clause such as "the answer is blotter (e)"; the *name*
is the text of a choice next to its letter.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from star_jax.records import Problem

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# After the right choice of a hinted problem. A completion that repeats it has no answer: it reasons from the mark.
HINT = "(CORRECT)"

_FULL_WIDTH = {code + 0xFEE0: code for code in range(0x21, 0x7F)}
_QUOTES = dict(zip(map(ord, "‘’“”"), "''\"\"", strict=True))
_MARKUP = dict.fromkeys(map(ord, "*$`\\"))
_LATEX = re.compile(r"\\(?:boxed|fbox|text(?:bf|it|tt|rm)?|math(?:bf|it|tt|rm)|left|right)(?![a-z])")
_UNDERSCORES = re.compile(r"(?<!\w)_{1,2}([A-Za-z]|\([A-Za-z]\))_{1,2}(?!\w)")

# One letter that is not part of a word, an abbreviation ("e.g.", "d.c") or a grade ("A+", "C#").
_ONE = r"([A-Za-z])(?![\w#+-]|['.]\w)"
_INSIDE = r" ?(?:(?:option|choice|answer|letter):? )?['\"]?([A-Za-z])['\"]?\.? ?"
_IN_BRACKETS = rf"(?:\({_INSIDE}\)|\[{_INSIDE}\]|\{{{_INSIDE}\}})"
# What may follow a bare letter. Before a noun it would be an article or a name.
_AFTER = (
    r"(?=\s*$|[.,;:!?)\]}\"'\n]| ?\((?! ?[A-Za-z] ?\))| ?[–—]| - "
    r"| (?:because|since|as|due|given|which|and|or|nor|but|not|rather|instead)\b)"
)
_CUED = (
    r"(?<![\w'.-])(?:option|choice|letter|answer|or|and|nor|but|either|neither|both|not|maybe|perhaps|possibly"
    rf"|probably|even)[ :]{{1,2}}['\"]?{_ONE}{_AFTER}|(?:[,:;] ?| [-–—] ){_ONE}{_AFTER}"
)
_LABELLED = r"(?<![\w'.-])(?:option|choice|letter) ([B-HJ-Zb-hj-z])(?![\w#+-]|['.]\w)"


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_BRACKETED = _compiled(_IN_BRACKETS)
_BARE = _compiled(_ONE + _AFTER)
_ALONE = _compiled(_ONE + r"(?=\s*$|[.:)\]}\"']| ?[–—]| - | \((?! ?[a-z] ?\))| (?:because|since)\b|(?<![ai])[,;])")
_MENTION = _compiled(rf"{_IN_BRACKETS}|{_LABELLED}|{_CUED}")

# Words before an answer that do not select one. "A: " repeats the prompt's last line.
_FILLER = _compiled(
    r"(?:[\s:,\-–—\"'=>.]|[(\[{](?! ?[a-z]\.? ?(?:[)\]}]|$))|A: (?=[(\[{][a-z][)\]}]|[a-z](?:$|[.)]))"
    r"|(?:so|therefore|thus|hence|then|clearly|obviously|definitely|certainly|probably|likely|most likely|simply|just"
    r"|indeed|actually|maybe|perhaps|possibly|of course|surely|to be|going to be|that|but|rather"
    r"|(?:(?:my|the) )?(?:(?:final|correct|right|best) )?(?:option|choice|letter|answer)(?=[ :]{1,2}[\"'(\[{]?[a-z]\b)"
    r"|the(?= ?[(\[{][a-z][)\]}]))"
    r"(?![\w'-]))*"
)
_BETWEEN = (
    r"(?:,? (?:to|for|of|in|among|this|that|the|your|question|problem|above|here|then|therefore|thus|hence|clearly"
    r"|most|likely|probably|definitely|obviously|must|should|would|will|has|have|can|could|only|choice|option"
    r"|letter|now|I (?:think|believe|guess|would say),?)){0,6}"
)
_MARKER = _compiled(
    r"\b(?:answers?|solution|(?:correct|right|best|final|only|likely|logical|sensible|reasonable|suitable|better)"
    rf" (?:choice|option|one|response|fit)){_BETWEEN},? ?(?:\b(?:is|was|be|are)\b|[:=→]|[-–—](?=[ >]))"
)
_WORDS = r"(?: (?!(?:because|since|as|which|that|so|for|and|or|but|it|if)\b)[\w'-]{1,20})"
_REVERSED = _compiled(
    rf"(?:{_IN_BRACKETS}|(?:^|[.,;:\n] ?|\b(?:so|therefore|thus|hence|that|then|option|choice|answer|letter|only) )"
    rf"{_ONE})({_WORDS}{{0,4}}?) (?:is|was|must be|has to be|would be|seems|looks)"
    r"(?: (?:clearly|therefore|thus|the|a|most|only|obviously|definitely|then|probably|likely|indeed|my|to be)){0,4}"
    r" (?:(?:correct|right|best|true|final|logical|sensible)(?: (?:answer|choice|option|one|fit))?|answer|choice"
    r"|option)(?=\s*$|[.,;:!?)\"'\n]| (?:because|since|as|here)\b)"
)
_PICK = _compiled(
    r"\b(?:choose|chose|pick|picked|select|selected|(?:go|going|went) with|(?:think|believe|guess|say)(?: that)?"
    r"(?: it'?s| it is)?|it(?:'s| is| must be| has to be| should be| would be))(?= )"
)

_BREAK = re.compile(r"(?<!\.\w)(?<!\b(?:[Mm][rs]|[DdJj]r|[Ss]t|[Vv]s))[.!?;](?=[\"')\]]{0,2}\s)|\n")
_ENDS = re.compile(r"[\s.,;:!?\"')\]}]*$")
_CLOSES = _compiled(_AFTER)
_LABEL = _compiled(r"(?:option|choice|letter) $")
_SEVERAL = _compiled(r"['\"]? ?(?:[/&+|]|,? ?(?:or|and/or)\b)")
_TALKED_ABOUT = _compiled(
    r"['\"]? (?:and|is|are|was|were|would|could|can|may|might|must|does|do|has|have|seems|looks|says)\b"
)
_AND = re.compile(r"(?:\b(?:or|and|either|both) ?(?:the |option |choice )?|[/&+|] ?)$", re.IGNORECASE)
_JOINED = _compiled(r",? ?(?:and|or|nor|[/&])? ?(?:option |choice )?")
_FALSE = (
    r",? (?:(?:is|are|was|were|does|do|did|has|have|can|could|would|will|should|may|might|seems?|looks?)"
    r"(?:n't| not\b| never\b)|cannot\b|can't\b|won't\b|makes? no sense\b|(?:is|are|was|were|seems?|looks?)"
    r"(?: (?:both|all|also|clearly|simply|just|definitely|obviously|therefore|thus)){0,2} (?:wrong|incorrect|false"
    r"|out|unlikely|excluded|eliminated|ruled out|implausible|impossible|irrelevant|unrelated|inappropriate|too \w))"
)
_WRONG = _compiled(_FALSE)
_FOUND_WRONG = _compiled(rf"(?:,? ?(?:and|or|nor)? ?[(\[{{][a-z][)\]}}]){{0,8}}{_WORDS}{{0,4}}?{_FALSE}")
_CONTRAST = _compiled(
    r"(?:(?<!if )\bnot\b(?! sure| certain| only| just)|n't\b(?! sure| certain| only)|\b(?:never|neither|nor|cannot|than"
    r"|instead of|unlike|because|since|as|while|whereas|although|though|except)\b)"
)
_HEDGE = _compiled(r"\b(?:or|maybe|perhaps|possibly|alternatively|also|but|could|might|may)\b")
# The words before a letter, from a negation to the letter.
_NEGATION = _compiled(
    r"(?:\b(?:not|never|neither|nor|cannot|unlike|except|excluding|than|instead of|ruled? out|opposed to)|n't)"
    r"(?: (?:be|the|option|choice|answer|letter|both|either|just|like|in|with|necessarily|really|choose|pick|select"
    r"|go with)){0,4} $"
)
_DENIED = _compiled(r"(?:\b(?:not|never)|n't)\b[^.;!?\n]*$")
_OFFERED = _compiled(r"\b(?:or|maybe|perhaps|possibly|alternatively|also|might|could)\b[^.;!?\n]*$")

_OUTER = " \t\n.,;:!?\"'`()[]{}<>*_$-–—“”‘’"
_ARTICLE = re.compile(r"(?:an?|the) (?=\S)")
_LEAD = _compiled(
    r"(?:[\s:,\-–—\"'=>.]|(?:so|therefore|thus|hence|clearly|obviously|definitely|certainly|probably|most likely|likely"
    r"|simply|indeed|of course|(?:the )?(?:correct )?(?:option|choice)(?= ?$)|but(?= ?$))"
    r"(?![\w'-]))*"
)
_TAIL = _compiled(r"(?:[\s,:(–—-]|, (?:which|that|this|it) is|[,(:] ?(?:which is )?(?:option|choice|letter|answer))$")
_CUT = _compiled(r"[.;!?](?=[\"')\]}]{0,2}(?:\s|$))|[,\n]|\b(?:because|since|which|as it|is)\b|[(\[{][a-z][)\]}]")
_NO_NAME = _compiled(r"(?:as|and|or|but|not|rather|instead|due|given|that|for|so)\b")
_CLOSED = re.compile(r"[.;!?](?:\s|$)")
_CLAUSE = re.compile(_BREAK.pattern + r"|,(?= )")
_THEREFORE = _compiled(r"(?:^|[.;!?]\s|\n)(?:so|therefore|thus|hence)\b[^.;!?\n]*$")
_MAX_NAME = 300  # characters of a choice's text next to its letter


class Choice(str):
    """A chosen letter "a", "b" ..., equal to that string.

    `named`: the choice's text that the completion gives next to the letter, normalised; "" if it gives none.
    """

    named: str

    def __new__(cls, letter: str, named: str = "") -> "Choice":
        self = super().__new__(cls, letter)
        self.named = named
        return self


class _Mention(NamedTuple):
    """A letter that is a label: its span in the text (brackets included), and whether it is in brackets."""

    start: int
    end: int
    letter: str
    bracketed: bool
    negated: bool = False  # "not (a)", and (b) in "not (a) or (b)"


class _Conclusion(NamedTuple):
    mention: _Mention
    named: str
    start: int  # offset of the clause's "answer is"


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
    sentence = f" Therefore, the answer is {text} ({problem.answer})."
    return sentence if agrees(problem, sentence) else f" Therefore, the answer is ({problem.answer})."


def choice_texts(texts: Any) -> tuple[str, ...]:
    """The texts of the choices, unchanged. Raises ValueError unless they are 2 to 26 non-blank texts of one line."""
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("the choices must be a list of texts that are not empty")
    if not 2 <= len(texts) <= len(LETTERS):
        raise ValueError(f"there must be 2 to {len(LETTERS)} choices, got {len(texts)}")
    if broken := [text for text in texts if text.splitlines() != [text]]:
        raise ValueError(f"the choice {broken[0]!r} holds a line break")
    return tuple(texts)


def agrees(problem: Problem, answer: str) -> bool:
    """Whether an answer chooses the right letter, and the name next to the letter is no other choice's text.

    `answer` comes from `parse_choice`, or is a text for it. Another choice with the same text does not count.
    """
    choice = answer if isinstance(answer, Choice) else parse_choice(answer)
    if choice is None or choice != problem.answer:
        return False
    if problem.answer not in LETTERS[: len(problem.choices)]:
        return True  # a question without its choices, from star_jax.sample
    texts = [normalised(text) for text in problem.choices]
    right = texts[LETTERS.index(problem.answer)]
    if choice.named in ("", right, choice):
        return True
    another_label = len(choice.named) == 1 and choice.named in LETTERS[: len(texts)]
    return choice.named not in texts and not another_label and choice.named != f"not {right}"


def normalised(text: str) -> str:
    """The text in lower case, with single spaces, without surrounding punctuation, quotes and a leading article."""
    text = " ".join(text.translate(_QUOTES).casefold().split()).strip(_OUTER)
    while article := _ARTICLE.match(text):
        text = text[article.end() :].strip(_OUTER)
    return text


def parse_choice(text: str) -> Choice | None:
    """The letter that a completion chooses; None if it chooses none, or several.

    The last conclusion ("the answer is ...") decides, unless another letter is proposed after it. Without a conclusion,
    the letter at the beginning or the end of the text counts if it is written as a choice and no other is proposed.
    """
    text = _plain(text)
    conclusions = _conclusions(text)
    last = next(conclusions, None)
    if last is None:
        return _unconcluded(text)
    if _OFFERED.search(text[max(0, last.start - 40) : last.start]):
        earlier = next(conclusions, last)
        if earlier.mention.letter != last.mention.letter:
            return None
    return _settled(text, last)


def _plain(text: str) -> str:
    """The text without markup, full-width forms and curly quotes, with single spaces; line breaks stay."""
    text = _LATEX.sub("", text.translate(_FULL_WIDTH)).translate(_QUOTES).translate(_MARKUP)
    text = _UNDERSCORES.sub(r"\1", text)
    return "\n".join(" ".join(line.split()) for line in text.splitlines()).strip()


def _mentions(text: str, start: int, end: int, except_letter: str = "") -> Iterator[_Mention]:
    """The labels in text[start:end], except those of one letter."""
    last: _Mention | None = None
    for match in _MENTION.finditer(text, start, end):
        group = match.lastindex or 1
        letter, bracketed = match[group].lower(), group <= 3
        first, after = match.span() if bracketed else match.span(group)
        if letter == except_letter or (bracketed and _part_of_word(text, first, letter)):
            continue
        joined = last is not None and last.negated and _JOINED.fullmatch(text, last.end, first)
        last = _Mention(first, after, letter, bracketed, bool(joined) or _negated(text, first))
        yield last


def _part_of_word(text: str, start: int, letter: str) -> bool:
    """Whether a bracketed letter belongs to the word before it: "shirt(s)", "f(x)"; but not "blotter(e)"."""
    attached = start > 0 and text[start - 1].isalnum()
    return attached and (letter == "s" or start < 2 or not text[start - 2].isalnum())


def _negated(text: str, start: int) -> bool:
    return _NEGATION.search(text[max(0, start - 48) : start]) is not None


def _conclusions(text: str) -> Iterator[_Conclusion]:
    """The conclusions of the text, last one first."""
    markers = list(_MARKER.finditer(text))
    ends = [marker.start() for marker in markers[1:]] + [len(text)]
    slots = [(marker.start(), marker.end(), end) for marker, end in zip(markers, ends, strict=False)]
    reversed_clauses = {match.start(): match for match in _REVERSED.finditer(text)}
    for start, slot, end in sorted(slots + [(start, -1, -1) for start in reversed_clauses], reverse=True):
        conclusion = _slot(text, start, slot, end) if slot >= 0 else _subject(text, reversed_clauses[start])
        if conclusion:
            yield conclusion


def _slot(text: str, marker: int, start: int, end: int) -> _Conclusion | None:
    """The letter in text[start:end], where the answer is expected: first, or after the choice's text."""
    head = _at_head(text, start, end, _BARE)
    if head:
        return None if _WRONG.match(text, head.end) else _Conclusion(head, _name_after(text, head), marker)
    for mention in _mentions(text, start, end):
        if mention.negated or _WRONG.match(text, mention.end):
            start = mention.end
            continue
        breaks = [match.end() for match in _BREAK.finditer(text, start, mention.start)]
        # "he had a word with the driver. (c)." is one clause; "blotter. (a) could be too." is two.
        if breaks and (text[breaks[-1] : mention.start].strip() or not _ENDS.match(text, mention.end)):
            return None
        if not _CLOSES.match(text, mention.end) and not _LABEL.search(text[max(0, mention.start - 7) : mention.start]):
            return None
        named = _name_before(text, start, mention.start) or _name_after(text, mention)
        return _Conclusion(mention, named, marker)
    return None


def _at_head(text: str, start: int, end: int, bare: re.Pattern[str]) -> _Mention | None:
    """The label with which text[start:end] begins, after words such as "therefore, option"."""
    filler = _FILLER.match(text, start, end)
    offset = filler.end() if filler else start
    if match := _BRACKETED.match(text, offset, end):
        return _Mention(offset, match.end(), match[match.lastindex or 1].lower(), True)
    match = bare.match(text, offset, end)
    return _Mention(offset, match.end(), match[1].lower(), False) if match else None


def _subject(text: str, match: re.Match[str]) -> _Conclusion | None:
    """The conclusion of a clause such as "so blotter (e) is correct"."""
    group = next(number for number in (1, 2, 3, 4) if match[number])
    start, end = match.span() if group < 4 else match.span(4)
    end = match.start(5)
    if group < 4 and (_part_of_word(text, start, match[group].lower()) or _negated(text, start)):
        return None
    mention = _Mention(start, end, match[group].lower(), group < 4)
    return _Conclusion(mention, normalised(match[5]) or _name_before(text, _clause(text, start), start), start)


def _settled(text: str, conclusion: _Conclusion) -> Choice | None:
    """The letter of a conclusion; None if it is one of several, or another letter is proposed after it."""
    mention = conclusion.mention
    joined = conclusion.start < mention.start and _AND.search(text[max(0, mention.start - 24) : mention.start])
    if joined or _SEVERAL.match(text, mention.end):
        return None
    others = _mentions(text, mention.end, len(text), except_letter=mention.letter)
    if not all(_dismissed(text, other, mention.end) for other in others):
        return None
    return Choice(mention.letter, conclusion.named)


def _dismissed(text: str, mention: _Mention, since: int) -> bool:
    """Whether a mention rejects its letter: "not (a)", "(a) is wrong", "because (a) ..."."""
    if mention.negated or _FOUND_WRONG.match(text, mention.end):
        return True
    before = text[max(since, mention.start - 100) : mention.start]
    clause = before[max((match.end() for match in _BREAK.finditer(before)), default=0) :]
    contrasts = list(_CONTRAST.finditer(clause))
    return bool(contrasts) and not _HEDGE.search(clause, contrasts[-1].end())


def _unconcluded(text: str) -> Choice | None:
    """The choice of a text without a conclusion."""
    for pick in reversed(list(_PICK.finditer(text))):
        mention = _at_head(text, pick.end(), len(text), _BARE)
        if mention and not _DENIED.search(text[max(0, pick.start() - 30) : pick.start()]):
            return _settled(text, _Conclusion(mention, _name_after(text, mention), pick.start()))
    head = _at_head(text, 0, len(text), _ALONE)
    if head and not _TALKED_ABOUT.match(text, head.end) and not _FOUND_WRONG.match(text, head.end):
        conclusion = _Conclusion(head, _name_after(text, head), 0)
    else:
        end = len(text.rstrip(" \n.,;:!?\"'"))
        closing = [match for match in _BRACKETED.finditer(text, max(0, end - 24), end) if match.end() == end]
        if not closing:
            return None
        start, letter = closing[0].start(), closing[0][closing[0].lastindex or 1].lower()
        # "The answer is blotter. I also considered (a)." does not conclude with (a); "So, blotter (e)." would.
        strayed = _MARKER.search(text, 0, start) and not _THEREFORE.search(text[max(0, start - _MAX_NAME) : start])
        if strayed or _part_of_word(text, start, letter) or _negated(text, start):
            return None
        mention = _Mention(start, end, letter, True)
        conclusion = _Conclusion(mention, _name_before(text, _clause(text, start), start), start)
    others = _mentions(text, 0, conclusion.mention.start, except_letter=conclusion.mention.letter)
    return _settled(text, conclusion) if all(_dismissed(text, other, 0) for other in others) else None


def _clause(text: str, end: int) -> int:
    """Offset at which the clause that ends at `end` begins, at most _MAX_NAME characters before it."""
    start = max(0, end - _MAX_NAME)
    return max((match.end() for match in _CLAUSE.finditer(text, start, end - 1)), default=start)


def _name_before(text: str, start: int, end: int) -> str:
    lead = _LEAD.match(text, start, end)
    name = text[lead.end() if lead else start : end]
    if len(name) > _MAX_NAME:
        return ""
    while tail := _TAIL.search(name):
        name = name[: tail.start()]
    return normalised(name)


def _name_after(text: str, mention: _Mention) -> str:
    name = text[mention.end : mention.end + _MAX_NAME]
    if mention.bracketed and _CLOSED.match(name):
        return ""
    name = name.lstrip(" .:)]}-–—\"'(")
    cut = _CUT.search(name)
    return "" if _NO_NAME.match(name) else normalised(name[: cut.start()] if cut else name)
