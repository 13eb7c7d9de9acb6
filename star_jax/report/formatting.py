"""Numbers and texts as the page shows them. Every text of a run is hostile until it has passed `visible`."""

import json
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from star_jax.records import Problem

MAX_TEXT = 4_000  # characters of one text; a model that never stops can write far more


def percent(fraction: float | None) -> str:
    """0.4125 -> "41.2 %"; None -> a dash."""
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def count(value: float | None) -> str:
    """12000 -> "12,000"; 14621.7 -> "14,622"; 0.000123 -> "0.000123"; None, NaN and infinity -> a dash."""
    if value is None or not abs(value) < 1e300:  # NaN and infinity come from damaged files
        return "–"
    whole = value == int(value) or abs(value) >= 1000
    return f"{round(value):,}" if whole and abs(value) < 1e15 else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """3725 -> "1 h 2 min"; 85.2 -> "1 min 25 s"; 7.25 -> "7.2 s"; None -> a dash."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{round(seconds / 60) // 60:,} h {round(seconds / 60) % 60} min"


def p_value(p: float) -> str:
    """0.0312 -> "p = 0.031"; 1e-9 -> "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def visible(text: str) -> str:
    """The text with invisible characters replaced: control characters, direction marks, lone surrogates.

    Such characters can hide a text, reorder it, or make the page unreadable as UTF-8. Tabs and newlines stay.
    """
    return text.translate(_REPLACEMENTS)


def clipped(text: str) -> str:
    """At most MAX_TEXT characters of a text, then a note with its length."""
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} … [shortened for this page; {len(text):,} characters in all]"


def page_text(text: str) -> str:
    """A text of a run as it may stand in the page: clipped and visible."""
    return visible(clipped(text))


def problem_text(problem: Problem) -> str:
    """The question, followed by its choices, one on each line."""
    choices = problem.choices if isinstance(problem.choices, tuple) else ()
    return "\n".join([problem.question, *(f"({chr(97 + i)}) {choice}" for i, choice in enumerate(choices))])


def script_json(value: Any) -> Markup:
    """JSON for a script element: `<`, `>` and `&` are escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.translate({ord(char): f"\\u{ord(char):04x}" for char in "<>&"}))


def _code_names(codes: Iterable[int]) -> dict[int, str]:
    return {code: f"⟨U+{code:04X}⟩" for code in codes}


_REPLACEMENTS = {
    # Unicode has a picture of each of the first 32 control characters: U+2400 for NUL, and so on.
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"},
    **_code_names(range(0x7F, 0xA0)),
    **_code_names((0x061C, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)),
    **_code_names((*range(0xD800, 0xE000), 0xFFFE, 0xFFFF)),
    **_code_names(range(0xE0000, 0xE0080)),  # "tags", an invisible copy of ASCII
}
