"""Sampling, judging and storing completions for a list of problems."""

import collections
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

    Raises InputError if stored completions are not those of these problems, by id and content.
    """
    stage, per_problem = run_dir.unfinished_stage(path), sampling_pass.samples_per_problem
    if run_dir.exists(path):
        stage.delete()  # a kill may have come between writing the output and deleting the part file
        completions = run_dir.read_records(Completion, path)
        check_contents(path, completions, problems, sampling_pass, complete=True)
        return completions, None
    stage.load()
    check_contents(stage.part, list(stage.completions.values()), problems, sampling_pass)
    order = [(problem, index) for problem in problems for index in range(per_problem)]
    missing = [(problem, index) for problem, index in order if (problem.id, index) not in stage.completions]
    throughput = Throughput() if missing else None
    if throughput:
        requests = [
            Request(prompts(problem, sampling_pass.hinted), sampling_pass.key(problem, index))
            for problem, index in missing
        ]
        title = f"iteration {sampling_pass.iteration}: {sampling_pass.name}"
        with metrics.Progress(len(missing), title, "problem") as bar:
            for chunk in stream(requests):
                completions = [
                    judge(prompts.task, missing[i][0], sample, sampling_pass, missing[i][1]) for i, sample in chunk
                ]
                stage.append(completions)
                throughput.add(completions)
                speed = f"{throughput.tokens / throughput.seconds:,.0f} tokens/s"
                bar.advance(len(completions), f"{throughput.right} right, {speed}")
    return stage.finish([(problem.id, index) for problem, index in order]), throughput


def check_contents(
    path: Path,
    stored: Sequence[Completion],
    problems: Sequence[Problem],
    sampling_pass: SamplingPass,
    complete: bool = False,
) -> None:
    """Checks that the completions of a file were drawn for these problems in this pass, none of them twice.

    A file of another pass comes with a folder that was renamed or copied from another run, or with a changed seed.

    Args:
      complete: the file must hold every sample of every problem, and not only some of them.

    Raises InputError that names the first completion that is wrong or missing.
    """
    by_id, samples_per_problem = {problem.id: problem for problem in problems}, sampling_pass.samples_per_problem

    def fault(c: Completion) -> str:
        if c.problem_id not in by_id:
            return "is not among the problems any more"
        problem = by_id[c.problem_id]
        if not c.problem_fingerprint:
            return "has no fingerprint, since an earlier version of star_jax stored it"
        if c.problem_fingerprint != problem.fingerprint:
            return "has another question, choices or answer now"
        if not 0 <= c.sample_index < samples_per_problem:
            return f"has more than the {samples_per_problem} samples that are asked for now"
        if c.seed != (key := sampling_pass.key(problem, c.sample_index)):
            return f"was sampled with the random key {c.seed[:80]!r}, not {key[:80]!r}: in another run or iteration"
        return ""

    foreign = {c.problem_id: reason for c in stored if (reason := fault(c))}
    if not foreign:
        _check_counts(path, stored, problems, samples_per_problem, complete)
        return
    problem_id, what = next(iter(foreign.items()))
    raise InputError(
        f"{path}: completions of {len(foreign)} problems are not those of the data now: {problem_id!r} {what}; "
        f"{_remedy(path)}"
    )


def _check_counts(
    path: Path, stored: Sequence[Completion], problems: Sequence[Problem], samples_per_problem: int, complete: bool
) -> None:
    counts = collections.Counter((c.problem_id, c.sample_index) for c in stored)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise InputError(f"{path}: sample {twice[0][1]} of problem {twice[0][0]!r} is there twice; {_remedy(path)}")
    expected = ((problem.id, index) for problem in problems for index in range(samples_per_problem))
    if complete and (missing := [key for key in expected if key not in counts]):
        problem_id, index = missing[0]
        raise InputError(
            f"{path}: holds {len(stored)} completions, but {len(problems)} problems with {samples_per_problem} samples "
            f"each are asked for; the first missing is sample {index} of {problem_id!r}; {_remedy(path)}"
        )


def _remedy(path: Path) -> str:
    return f"restore the data and the options it was sampled with, or delete {path.name} to sample again"


def sampler_spec(config: Config, task: Task, decoding: Decoding, longest_body: int = 0) -> SamplerSpec:
    """The sampler's settings in a run; `longest_body`: see SamplerSpec."""
    options = config.sampling
    return SamplerSpec(
        stop=() if config.prompt.format == "chat" else tuple(task.stop),
        max_new_tokens=options.max_new_tokens or task.max_new_tokens,
        decoding=decoding,
        slots=options.slots,
        queue=options.queue,
        prefill_tokens=options.prefill_tokens,
        longest_body=longest_body,
    )


def prompts_of(config: Config, task: Task, iteration: int) -> PromptSet:
    """The few-shot prompts with which iteration 1, 2, ... samples; see star.prompt_after_first_iteration."""
    options = config.prompt
    prompts = few_shot.load(config.task["name"], options.shots, config.star.direct, options.directory, task)
    drop_shots = iteration > 1 and not config.star.prompt_after_first_iteration
    return prompts.without_shots() if drop_shots else prompts


def train_problems(config: Config, task: Task) -> list[Problem]:
    """The problems of the train split, at most config.limit. Raises InputError if there are none."""
    problems = task.problems("train")[: config.limit or None]
    if not problems:
        raise InputError("the train split holds no problems")
    return problems


def split_problems(config: Config, task: Task, split: str) -> list[Problem]:
    """The problems of a split that are evaluated. Raises InputError if there are none."""
    problems = task.problems(split)[: config.limit or None][: config.evaluation.problems or None]
    if not problems:
        raise InputError(f"the split {split!r} holds no problems")
    return problems
