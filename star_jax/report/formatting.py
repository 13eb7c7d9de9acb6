"""Numbers and texts as the page shows them. Every text of a run is hostile until it has passed `terminal.visible`."""

import json
import re
from typing import Any

from markupsafe import Markup, escape

from star_jax.records import Problem
from star_jax.terminal import visible

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


def clipped(text: str) -> str:
    """At most MAX_TEXT characters of a text, then a note with its length."""
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} … [shortened for this page; {len(text):,} characters in all]"


def page_text(text: str) -> str:
    """A text of a run as it may stand in the page: clipped and visible."""
    return visible(clipped(text))


def breakable(text: str) -> Markup:
    """A text, escaped, that may wrap after dots, slashes and underscores before letters; not before a percent sign."""
    escaped = str(escape(visible(text))).replace(" %", "\u00a0%")
    return Markup(re.sub(r"([._/])(?=[^\W\d_])", r"\1<wbr>", escaped))


def problem_text(problem: Problem) -> str:
    """The question, followed by its choices, one on each line."""
    choices = problem.choices if isinstance(problem.choices, tuple) else ()
    return "\n".join([problem.question, *(f"({chr(97 + i)}) {choice}" for i, choice in enumerate(choices))])


def script_json(value: Any) -> Markup:
    """JSON for a script element: `<`, `>` and `&` are escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.translate({ord(char): f"\\u{ord(char):04x}" for char in "<>&"}))


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key -> value: texts unchanged, everything else as JSON."""
    if isinstance(value, dict) and value:
        return {
            name: text
            for key, item in value.items()
            for name, text in flatten(item, f"{prefix}.{key}" if prefix else key).items()
        }
    if not prefix:
        return {}
    return {prefix: value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)}
