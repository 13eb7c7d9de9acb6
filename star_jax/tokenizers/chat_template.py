"""A model's chat template: turns -> the text of a conversation, as parts that are known to be template or content.

Templates are jinja2 programs that come with a model. They run in jinja2's immutable sandbox, with the names that
Hugging Face's `apply_chat_template` gives them.
"""

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from star_jax.errors import InputError

DATE = datetime.date(2024, 7, 26)  # what `strftime_now` gives: prompts must not depend on the day
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"  # private-use characters around a content's number
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str  # "user" or "assistant"
    content: str  # without white space at its ends: many templates strip it


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a conversation's text."""

    text: str
    turn: int | None  # index of the turn whose content it is; None: the template wrote it


class ChatTemplate:
    """The template of one model."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        """
        Args:
          source: the jinja2 program.
          tokens: texts of the special tokens that the template may name, e.g. {"bos_token": "<s>"}.
        """
        self.source, self.tokens = source, dict(tokens)

    def render(self, turns: Sequence[Turn], generation_prompt: bool) -> list[Part]:
        """The conversation's text, in parts.

        Args:
          generation_prompt: add what the template puts before an answer of the assistant.

        Raises InputError if the template fails, refuses the turns, or changes their contents.
        """
        text = self._text(turns, generation_prompt)
        marked = [Turn(turn.role, f"{_OPEN}{i}{_CLOSE}") for i, turn in enumerate(turns)]
        pieces = _MARK.split(self._text(marked, generation_prompt))
        parts = [
            Part(turns[int(piece)].content, int(piece)) if i % 2 else Part(piece, None)
            for i, piece in enumerate(pieces)
        ]
        contents = sorted(part.turn for part in parts if part.turn is not None)
        if contents != list(range(len(turns))) or "".join(part.text for part in parts) != text:
            raise InputError(
                "the model's chat template changes the texts of the turns, so they cannot be told from its own; "
                "set --config.prompt.format=plain"
            )
        return [part for part in parts if part.text or part.turn is not None]

    def turn_end(self) -> str:
        """What the template puts after the content of an assistant's last turn."""
        parts = self.render([Turn("user", "a"), Turn("assistant", "b")], generation_prompt=False)
        return parts[-1].text if parts[-1].turn is None else ""

    def _text(self, turns: Sequence[Turn], generation_prompt: bool) -> str:
        values: dict[str, Any] = {"tools": None, "documents": None, **self.tokens}
        if "enable_thinking" in self.source:
            values["enable_thinking"] = False
        messages = [dataclasses.asdict(turn) for turn in turns]
        try:
            return str(self._program.render(messages=messages, add_generation_prompt=generation_prompt, **values))
        except Exception as error:  # a program of others can raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"the model's chat template fails ({reason}); set --config.prompt.format=plain") from error

    @functools.cached_property
    def _program(self) -> Any:
        return _environment().from_string(self.source)


@functools.cache
def _environment() -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block {% generation %}, with which some templates mark the assistant's text: its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return body

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, **options)  # jinja2's own filter escapes HTML

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = DATE.strftime
    return environment
