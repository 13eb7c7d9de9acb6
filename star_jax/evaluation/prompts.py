"""Prompts of a run: each problem is rendered and encoded once, however many passes use it."""

from star_jax.records import EncodedPrompt, Problem, Prompt
from star_jax.tasks import Task
from star_jax.tasks.few_shot import PromptSet
from star_jax.tokenizers.base import Tokenizer


class PromptEncoder:
    """Renders a task's problems after a set of few-shot shots and encodes them. Keeps what it has made."""

    def __init__(self, task: Task, tokenizer: Tokenizer, prompt_set: PromptSet) -> None:
        self.task, self.tokenizer, self.prompt_set = task, tokenizer, prompt_set
        self._prefixes: dict[str, tuple[int, ...]] = {}
        self._prompts: dict[tuple[Problem, bool], EncodedPrompt] = {}

    def __call__(self, problem: Problem, hinted: bool = False) -> EncodedPrompt:
        """The problem's prompt; `hinted`: with its answer. Raises InputError for text the tokenizer cannot encode."""
        key = problem, hinted
        if key not in self._prompts:
            prompt = self.prompt_set.prompt(self.task, problem, hinted)
            self._prompts[key] = self._encode(prompt)
        return self._prompts[key]

    def _encode(self, prompt: Prompt) -> EncodedPrompt:
        prefix, body = self.tokenizer.split_parts(prompt.prefix, prompt.body)
        if prefix not in self._prefixes:
            self._prefixes[prefix] = tuple(self.tokenizer.encode(prefix))
        return EncodedPrompt(prompt, self._prefixes[prefix], tuple(self.tokenizer.encode(body)))
