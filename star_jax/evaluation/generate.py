"""Sampling, judging and storing completions for a list of problems."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from star_jax.config import Config
from star_jax.errors import InputError
from star_jax.evaluation.judging import SamplingPass, judge
from star_jax.evaluation.prompts import PromptEncoder
from star_jax.records import Completion, Problem, Verdict
from star_jax.runs import metrics
from star_jax.runs.run_directory import RunDirectory
from star_jax.sampling.sampler import Request, Sample, SamplerSpec
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks import Task, few_shot
from star_jax.tasks.few_shot import PromptSet

# Sampler.stream of some weights. It is called only if something is to be sampled, so it may load them.
SampleStream = Callable[[Sequence[Request]], Iterator[list[tuple[int, Sample]]]]


@dataclasses.dataclass
class Throughput:
    """What a pass has sampled so far, and how fast."""

    problems: int = 0
    right: int = 0
    tokens: int = 0
    started: float = dataclasses.field(default_factory=time.monotonic)

    def add(self, completions: Sequence[Completion]) -> None:
        self.problems += len(completions)
        self.right += sum(c.verdict == Verdict.RIGHT for c in completions)
        self.tokens += sum(c.tokens for c in completions)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def figures(self) -> dict[str, float]:
        """The figures for metrics.jsonl."""
        seconds = self.seconds
        rates = {"seconds": round(seconds, 2), "tokens_per_second": round(self.tokens / seconds, 1)}
        return {"problems": self.problems, "right": self.right, "tokens": self.tokens, **rates}


def generate(
    run_dir: RunDirectory,
    path: Path,
    stream: SampleStream,
    prompts: PromptEncoder,
    problems: Sequence[Problem],
    sampling_pass: SamplingPass,
) -> tuple[list[Completion], Throughput | None]:
    """The judged completions of a pass over the problems, stored at `path`, and the throughput of this call.

    Completions that are stored already, in `path` or in the part file of an interrupted call, are read and not sampled
    again; the throughput is None if all of them were.
    """
    stage = run_dir.unfinished_stage(path)
    if run_dir.exists(path):
        stage.delete()  # a kill may have come between writing the output and deleting the part file
        return run_dir.read_records(Completion, path), None
    stage.load()
    order = [(problem, index) for problem in problems for index in range(sampling_pass.samples_per_problem)]
    missing = [(problem, index) for problem, index in order if (problem.id, index) not in stage.completions]
    throughput = Throughput() if missing else None
    if throughput:
        requests = [
            Request(prompts(problem, sampling_pass.hinted), sampling_pass.key(problem, index))
            for problem, index in missing
        ]
        title = f"iteration {sampling_pass.iteration}: {sampling_pass.name}"
        with metrics.progress(len(missing), title, "problem") as bar:
            for chunk in stream(requests):
                completions = [
                    judge(prompts.task, missing[i][0], sample, sampling_pass, missing[i][1]) for i, sample in chunk
                ]
                stage.append(completions)
                throughput.add(completions)
                bar.update(len(completions))
                bar.set_postfix_str(f"{throughput.right} right, {throughput.tokens / throughput.seconds:,.0f} tokens/s")
    return stage.finish([(problem.id, index) for problem, index in order]), throughput


def sampler_spec(config: Config, task: Task, decoding: Decoding, longest_body: int = 0) -> SamplerSpec:
    """The sampler's settings in a run; `longest_body`: see SamplerSpec."""
    options = config.sampling
    return SamplerSpec(
        stop=tuple(task.stop),
        max_new_tokens=options.max_new_tokens or task.max_new_tokens,
        decoding=decoding,
        slots=options.slots,
        queue=options.queue,
        prefill_tokens=options.prefill_tokens,
        longest_body=longest_body,
    )


def prompts_of(config: Config, iteration: int) -> PromptSet:
    """The few-shot prompts with which iteration 1, 2, ... samples; see star.prompt_after_first_iteration."""
    prompts = few_shot.load(config.task["name"], config.prompt.shots, config.star.direct, config.prompt.directory)
    drop_shots = iteration > 1 and not config.star.prompt_after_first_iteration
    return prompts.without_shots() if drop_shots else prompts


def split_problems(config: Config, task: Task, split: str) -> list[Problem]:
    """The problems of a split that are evaluated. Raises InputError if there are none."""
    problems = task.problems(split)[: config.evaluation.problems or None]
    if not problems:
        raise InputError(f"the split {split!r} holds no problems")
    return problems
