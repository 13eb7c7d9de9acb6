"""Lengths of a run's prompts: measured as the run measures them, or estimated where tokenizer or data are missing."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from star_jax.algorithms import estimates, setup
from star_jax.algorithms.budget import Lengths
from star_jax.config import Config
from star_jax.errors import InputError, MissingInput
from star_jax.evaluation.generate import prompts_of
from star_jax.evaluation.prompts import PromptEncoder
from star_jax.records import Problem
from star_jax.sampling import sampler
from star_jax.tasks import Task
from star_jax.tokenizers.base import Tokenizer

ASSUMED_PREFIX, ASSUMED_BODY = 1024, 128  # tokens: GSM8K's eight shots by GPT-2's tokenizer, and a short question
_PIECE = re.compile(r"[^\W\d_]+|\d|[^\w\s]|\n")  # a word, a digit, a mark, a line
_TOKENS_PER_PIECE = 1.1  # GPT-2's tokenizer, on the shots and questions of all tasks: 0.8 to 1.07

_Part = tuple[int, str]  # a number of tokens, and where it comes from


def of_run(
    config: Config, base: Path | None, prefix_tokens: int | None = None, body_tokens: int | None = None
) -> tuple[Lengths, str]:
    """The lengths of a run's prompts as the sampler pads them, and where each of them comes from, in one line.

    Args:
      config: with the model's sizes, see setup.resolve_model.
      base: the directory of the base, whose tokenizer the run takes if the config names none; None: the tokenizer is
        not known.
      prefix_tokens, body_tokens: numbers to count with instead of the config's.

    Raises InputError for what the run would refuse, and for lengths that exceed the model's positions.
    """
    task = config.make_task()
    tokenizer = None if base is None else setup.run_tokenizer(config, task, base)
    try:
        train, evaluated = setup.read_problems(config, task)
    except MissingInput as error:
        parts = _prefix(config, task, tokenizer), (ASSUMED_BODY, f"assumed, since the data are missing: {error}")
    else:
        splits = {**evaluated, "train": train}
        parts = _measured(config, task, tokenizer, splits) if tokenizer else _estimated(config, task, splits)
    return _given(config, task, parts, prefix_tokens, body_tokens)


def assumed(config: Config, prefix_tokens: int | None = None, body_tokens: int | None = None) -> tuple[Lengths, str]:
    """The same for a config without data of its own: shots and problems of a usual length."""
    parts = (ASSUMED_PREFIX, "assumed"), (ASSUMED_BODY, "assumed")
    return _given(config, config.make_task(), parts, prefix_tokens, body_tokens)


def estimated_tokens(text: str) -> int:
    """Tokens of a text by a tokenizer that is not known, rather too many than too few."""
    return math.ceil(_TOKENS_PER_PIECE * len(_PIECE.findall(text)))


def _measured(
    config: Config, task: Task, tokenizer: Tokenizer, splits: Mapping[str, Sequence[Problem]]
) -> tuple[_Part, _Part]:
    """(shots, longest problem) by the run's own code, which raises what the run would."""
    prompts = PromptEncoder(task, tokenizer, prompts_of(config, task, 1), config.prompt.format)
    figures = [setup.prompt_lengths(config, prompts, split, problems) for split, problems in splits.items()]
    shots = estimates.prefix_tokens(config, prompts, splits["train"][0])
    body = max(values["body_tokens_max_hinted"] for values in figures)
    count = sum(values["problems"] for values in figures)
    return (shots, f"prompt.shots={config.prompt.shots}"), (body, f"the longest of {count:,}")


def _estimated(config: Config, task: Task, splits: Mapping[str, Sequence[Problem]]) -> tuple[_Part, _Part]:
    """(shots, longest problem) from the texts alone."""
    problems = [
        (problem, hint) for values in splits.values() for problem in values for hint in estimates.prompt_kinds(config)
    ]
    body = max(estimated_tokens(task.render(problem, hint)) for problem, hint in problems)
    origin = f"the longest of {sum(map(len, splits.values())):,}, estimated: the tokenizer is not known"
    return _prefix(config, task, None), (body, origin)


def _prefix(config: Config, task: Task, tokenizer: Tokenizer | None) -> _Part:
    """The shots' tokens without a problem."""
    prompts, origin = prompts_of(config, task, 1), f"prompt.shots={config.prompt.shots}"
    texts = (prompts.plain, prompts.hinted)
    if tokenizer:
        return max(len(tokenizer.encode(text)) for text in texts), origin
    return max(map(estimated_tokens, texts)), f"{origin}, estimated" if config.prompt.shots else origin


def _given(
    config: Config, task: Task, parts: tuple[_Part, _Part], prefix_tokens: int | None, body_tokens: int | None
) -> tuple[Lengths, str]:
    """The lengths with those that flags give. Raises InputError if they exceed the model's positions."""
    (prefix, prefix_origin), (body, body_origin) = parts
    if prefix_tokens is not None:
        prefix, prefix_origin = prefix_tokens, "--prefix_tokens"
    if body_tokens is not None:
        body, body_origin = body_tokens, "--body_tokens"
    new = config.sampling.max_new_tokens or task.max_new_tokens
    new_origin = "sampling.max_new_tokens" if config.sampling.max_new_tokens else "the task's"
    text = f"{prefix:,} of shots ({prefix_origin}), {body:,} of a problem ({body_origin}), {new:,} new ({new_origin})"
    if prefix + body + new > config.model.max_positions:
        raise InputError(
            f"tokens of a prompt: {text}: they are {prefix + body + new} together; the model has "
            f"{config.model.max_positions} positions; lower prompt.shots or sampling.max_new_tokens, or give "
            "--prefix_tokens and --body_tokens"
        )
    return Lengths(sampler.round_up(prefix, 16), sampler.round_up(body, 8), new), text
