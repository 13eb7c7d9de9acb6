"""Drawing and judging completions for a list of problems, and the accuracy that comes out.

python -m star_jax.evaluate --workdir=DIR [--iteration=N|base|best] [--split=dev|test] [--samples=K [--temperature=T]]
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from star_jax.config import Config
from star_jax.errors import InputError
from star_jax.evaluation import judging
from star_jax.models import decoder
from star_jax.records import Completion, Problem, Verdict
from star_jax.runs import metrics
from star_jax.runs.run_directory import RunDirectory
from star_jax.sampling.sampler import Sample, Sampler
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks import Task, few_shot
from star_jax.tasks.few_shot import PromptSet
from star_jax.tokenizers.base import Tokenizer


def make_sampler(
    config: Config,
    task: Task,
    model: decoder.GPT,
    params: decoder.Params,
    tokenizer: Tokenizer,
    decoding: Decoding,
    mesh: Mesh,
    longest: int = 0,
) -> Sampler:
    """The sampler of a run's settings, for parameters on its sampling mesh; `longest`: see Sampler."""
    options = config.sampling
    return Sampler(
        model,
        params,
        tokenizer,
        mesh=mesh,
        stop=task.stop,
        max_new_tokens=options.max_new_tokens or task.max_new_tokens,
        decoding=decoding,
        slots=options.slots,
        queue=options.queue,
        prefill_tokens=options.prefill_tokens,
        longest=longest,
    )


def complete(
    run_dir: RunDirectory,
    path: Path,
    sampler: Sampler,
    task: Task,
    problems: Sequence[Problem],
    prompts: PromptSet,
    *,
    what: str,
    seed: int,
    iteration: int,
    draws: int = 1,
    hinted: bool = False,
    log: Callable[[dict[str, Any]], None] | None = None,
    meanwhile: Callable[[], Any] | None = None,
) -> list[Completion]:
    """`draws` judged completions for each problem, stored at `path` (and read from there when they are done).

    `what` names the stage, for the progress bar and in the random keys. `log` gets the totals at the end. `meanwhile`
    is called while the device is at work.
    """
    wanted = [(problem, draw) for problem in problems for draw in range(draws)]
    texts = [prompts.prompt(task, problem, hinted) for problem, _ in wanted]
    seeds = [f"{seed}/{what}/{iteration}/{problem.id}/{draw}/{int(hinted)}" for problem, draw in wanted]

    def judge(place: int, drawn: Sample) -> Completion:
        problem, draw = wanted[place]
        return judging.judge(
            task,
            problem,
            text=drawn.text,
            truncated=drawn.truncated,
            iteration=iteration,
            sample_index=draw,
            hinted=hinted,
            log_probability=drawn.log_probability,
            tokens=len(drawn.token_ids),
            seed=seeds[place],
        )

    def draw_missing(missing: Sequence[int], store: Callable[[Sequence[Completion]], None]) -> None:
        tally = _Tally()
        with metrics.progress(len(missing), f"iteration {iteration}: {what}", "problem") as bar:

            def chunk(places: Sequence[int], drawn: Sequence[Sample]) -> None:
                judged = [judge(missing[i], d) for i, d in zip(places, drawn, strict=True)]
                store(judged)
                tally.add(judged)
                bar.update(len(judged))
                bar.set_postfix_str(f"{tally.right} right, {tally.speed:,.0f} tokens/s")

            sampler([texts[i] for i in missing], [seeds[i] for i in missing], chunk, meanwhile)
        if log:
            log({"problems": len(missing), "right": tally.right, "tokens": tally.tokens,
                 "seconds": round(tally.seconds, 2), "tokens_per_second": round(tally.speed, 1)})  # fmt: skip

    return run_dir.completions(path, [(problem.id, draw) for problem, draw in wanted], draw_missing)


@dataclasses.dataclass
class _Tally:
    """What a stage has drawn so far, and how fast."""

    right: int = 0
    tokens: int = 0
    started: float = dataclasses.field(default_factory=time.monotonic)

    def add(self, judged: Sequence[Completion]) -> None:
        self.right += sum(c.verdict == Verdict.RIGHT for c in judged)
        self.tokens += sum(c.tokens for c in judged)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def prompts_of(config: Config, drawing_iteration: int) -> PromptSet:
    """The few-shot prompts by which iteration 1, 2, ... draws; see star.prompt_after_first_iteration."""
    prompts = few_shot.load(config.task["name"], config.prompt.shots, config.star.direct, config.prompt.directory)
    later = drawing_iteration > 1 and not config.star.prompt_after_first_iteration
    return prompts.without_shots() if later else prompts


def split_problems(config: Config, task: Task, split: str) -> list[Problem]:
    """The problems of a split that are evaluated. Raises InputError where there are none."""
    problems = task.problems(split)[: config.evaluation.problems or None]
    if not problems:
        raise InputError(f"the split {split!r} holds no problems")
    return problems
