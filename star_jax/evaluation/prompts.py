"""Prompts of a run: each problem is rendered and encoded once, however many passes use it.

Two formats (config.prompt.format). "plain": shots, then the problem, as one text. "chat": the model's chat template
makes a conversation of them, shots as turns of user and assistant, the problem as the last turn of the user.
"""

import contextlib
import functools
import hashlib
from collections.abc import Iterator

from star_jax.errors import InputError
from star_jax.records import EncodedPrompt, Problem, Prompt
from star_jax.tasks import Task
from star_jax.tasks.few_shot import PromptSet
from star_jax.tokenizers import JsonTokenizer, Tokenizer
from star_jax.tokenizers.chat_template import ChatTemplate, Part, Turn
from star_jax.tokenizers.round_trip import check_text


def tokenizer_for(prompt_format: str, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the end ids of a prompt format.

    In "chat" the end of the assistant's turn comes first: it stops a completion, and a training text ends with it. It
    is the first special token that the template puts after an assistant's text.

    Raises InputError for "chat" with a tokenizer that has no chat template.
    """
    if prompt_format == "plain":
        return tokenizer
    chat, template = _with_template(tokenizer)
    turn_end = chat.special_id(template.turn_end())
    return chat if turn_end is None else chat.with_end_ids((turn_end, *chat.end_ids))


class PromptEncoder:
    """Renders a task's problems after a set of few-shot shots and encodes them. Keeps what it has made."""

    def __init__(self, task: Task, tokenizer: Tokenizer, prompt_set: PromptSet, prompt_format: str = "plain") -> None:
        """
        Args:
          tokenizer: as `tokenizer_for` returns it.
          prompt_format: "plain" or "chat".
        """
        self.task, self.tokenizer, self.prompt_set = task, tokenizer, prompt_set
        self.chat = prompt_format == "chat"
        self._prompts: dict[tuple[Problem, bool, bool], EncodedPrompt] = {}
        self._head_ids: dict[tuple[Part, ...], tuple[int, ...]] = {}

    def __call__(self, problem: Problem, hinted: bool = False, with_shots: bool = True) -> EncodedPrompt:
        """The problem's prompt; `hinted`: with its answer. Raises InputError for text the tokenizer does not keep."""
        key = problem, hinted, with_shots
        if key not in self._prompts:
            prompt_set = self.prompt_set if with_shots else self.prompt_set.without_shots()
            prompt = prompt_set.prompt(self.task, problem, hinted)
            with _naming(problem, "prompt"):
                self._prompts[key] = self._encode_chat(prompt) if self.chat else self._encode(prompt)
        return self._prompts[key]

    def reference(self, problem: Problem) -> str | None:
        """The task's reference as a completion of a prompt: in "chat", without the space that follows "A:"."""
        text = self.task.reference(problem)
        return text.strip() if text is not None and self.chat else text

    def reference_ids(self, problem: Problem) -> list[int] | None:
        """The reference's ids. Raises InputError for text that the tokenizer does not keep."""
        text = self.reference(problem)
        if text is None:
            return None
        with _naming(problem, "reference"):
            ids = self.tokenizer.encode_continuation(text)
            check_text(self.tokenizer, ids, text, starts_document=False)
        return ids

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits for the shots and, in "chat", the template; stored with every example."""
        if not self.chat:
            return self.prompt_set.fingerprint
        _, template = _with_template(self.tokenizer)
        text = f"chat\0{template.source}\0{self.prompt_set.fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _encode(self, prompt: Prompt) -> EncodedPrompt:
        prefix_ids, body_ids = self.tokenizer.encode_parts(prompt.prefix, prompt.body)
        check_text(self.tokenizer, [*prefix_ids, *body_ids], prompt.text, starts_document=True)
        return EncodedPrompt(prompt, prefix_ids, body_ids)

    def _encode_chat(self, prompt: Prompt) -> EncodedPrompt:
        """The prompt as a conversation. Its prefix ends with the last special token before the problem.

        Special tokens are borders of the text for every tokenizer, so nothing is joined across that cut.
        """
        tokenizer, template = _with_template(self.tokenizer)
        turns: list[Turn] = []
        for shot in prompt.shots:
            question, answer = self.task.split_turns(shot)
            if not answer:
                raise InputError(f"a shot has no answer after its problem ({shot[:60]!r}...); see tasks/README.md")
            turns += [Turn("user", question.strip()), Turn("assistant", answer.strip())]
        turns.append(Turn("user", self.task.split_turns(prompt.body)[0].strip()))
        parts = template.render(turns, generation_prompt=True)
        head, border, body = tokenizer.cut_conversation(parts, before_turn=len(turns) - 1)
        if head not in self._head_ids:
            self._head_ids[head] = tuple(tokenizer.encode_conversation(head))
        body_ids = tuple(tokenizer.encode_conversation(body, after=border))
        return EncodedPrompt(Prompt(_text(head), _text(body)), self._head_ids[head], body_ids)


def _with_template(tokenizer: Tokenizer) -> tuple[JsonTokenizer, ChatTemplate]:
    """The tokenizer and its chat template. Raises InputError if it has none."""
    if not isinstance(tokenizer, JsonTokenizer) or tokenizer.chat_template is None:
        raise InputError(
            "prompt.format=chat: the model's tokenizer has no chat template; give a chat model in base.path, or set "
            "--config.prompt.format=plain"
        )
    return tokenizer, tokenizer.chat_template


@contextlib.contextmanager
def _naming(problem: Problem, what: str) -> Iterator[None]:
    """Puts a problem's id before an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"problem {problem.id!r}, {what}: {error}") from error


def _text(parts: tuple[Part, ...]) -> str:
    return "".join(part.text for part in parts)
