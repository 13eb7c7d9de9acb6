"""The prompts of a config's first train problems as they are sent to the model, to be read before a run starts."""

from collections.abc import Iterator
from pathlib import Path

from star_jax import terminal
from star_jax.algorithms import setup
from star_jax.config import Config
from star_jax.evaluation.generate import prompts_of, train_problems
from star_jax.evaluation.prompts import PromptEncoder, tokenizer_for
from star_jax.records import Problem
from star_jax.weights.sources import location


def write_out(config: Config, count: int) -> Iterator[str]:
    """Yields a title and the whole text of each prompt of iteration 1, and of the reference, of `count` train problems.

    The hinted prompt is left out if the run does not rationalize, the reference if there is none. Loads no weights, and
    a tokenizer only for prompt.format="chat", whose template it has. Raises InputError.
    """
    task = config.make_task()
    prompt_set, reference = prompts_of(config, task, 1), task.reference
    encoder = None
    if config.prompt.format == "chat":
        base = location.resolve(config.base.path, weights=False).path if config.base.path else Path()
        tokenizer = tokenizer_for("chat", setup.base_tokenizer(config, task, base))
        encoder = PromptEncoder(task, tokenizer, prompt_set, "chat")
        reference = encoder.reference

    def text(problem: Problem, hinted: bool) -> str:
        return (encoder(problem, hinted).prompt if encoder else prompt_set.prompt(task, problem, hinted)).text

    for problem in train_problems(config, task)[:count]:
        name = terminal.one_line(problem.id)
        yield f"===== {name}: the prompt ====="
        yield text(problem, False)
        if config.star.rationalizes:
            yield f"===== {name}: the prompt with the answer as a hint ====="
            yield text(problem, True)
        if (completion := reference(problem)) is not None:
            yield f"===== {name}: the reference, a right completion ====="
            yield completion
