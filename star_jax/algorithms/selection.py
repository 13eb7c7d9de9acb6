"""Judging what was drawn and choosing what is trained on (paper, Algorithm 1, lines 4 to 6)."""

import collections
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from star_jax.evaluation.judging import counts
from star_jax.records import Completion, Example, Problem, Source, Verdict
from star_jax.tasks.base import Task
from star_jax.tasks.few_shot import PromptSet


def usable(completion: Completion, require_consistent: bool) -> bool:
    """Whether it may be trained on: a right answer and, where that is asked for, no step that fails the task's check.

    Steps that the task cannot check (consistent = None) do not count against it.
    """
    return completion.verdict == Verdict.RIGHT and not (require_consistent and completion.consistent is False)


def to_rationalize(
    problems: Sequence[Problem],
    samples: Iterable[Completion],
    probability: float,
    seed: int,
    iteration: int,
    require_consistent: bool = False,
) -> list[Problem]:
    """The problems of which no draw is usable, each with the given probability, fixed by seed, iteration and id."""
    solved = {s.problem_id for s in samples if usable(s, require_consistent)}
    return [p for p in problems if p.id not in solved and chance(seed, iteration, p.id, "rationalize") < probability]


def keep(
    task: Task,
    problems: Sequence[Problem],
    completions: Iterable[Completion],
    prompts: PromptSet,
    *,
    per_problem: int,
    few_shot_train: bool,
    hint_keep_probability: float,
    seed: int,
    weights: str,
    require_consistent: bool = False,
) -> list[Example]:
    """The usable completions as training examples, in the order of the problems.

    At most `per_problem` distinct texts a problem (0: all), lowest draw first. The stored prompt is the
    hint-free problem, behind the shots with `few_shot_train`; only a rationalization that wins the draw against
    `hint_keep_probability` keeps the hint it was made with (the released code's p_show_hint_save).
    """
    by_problem: dict[str, list[Completion]] = collections.defaultdict(list)
    for completion in completions:
        if usable(completion, require_consistent):
            by_problem[completion.problem_id].append(completion)
    examples = []
    for problem in problems:
        texts: dict[str, Completion] = {}
        for completion in sorted(by_problem[problem.id], key=lambda c: (c.hinted, c.sample_index)):
            texts.setdefault(completion.text, completion)
        chosen = list(texts.values())
        for completion in chosen[:per_problem] if per_problem else chosen:
            hint = completion.hinted and (
                chance(seed, completion.iteration, problem.id, "keep hint") < hint_keep_probability
            )
            prompt = prompts.prompt(task, problem, hint)
            examples.append(
                Example(
                    problem_id=problem.id,
                    prompt=prompt.text if few_shot_train else prompt.body,
                    completion=completion.text,
                    iteration=completion.iteration,
                    source=Source.RATIONALIZED if completion.hinted else Source.SAMPLED,
                    hint_kept=hint,
                    sample_index=completion.sample_index,
                    seed=completion.seed,
                    verdict=completion.verdict,
                    log_probability=completion.log_probability,
                    prompt_set=prompts.fingerprint,
                    weights=weights,
                )
            )
    return examples


def references(
    task: Task, problems: Sequence[Problem], prompts: PromptSet, *, few_shot_train: bool, iteration: int
) -> list[Example]:
    """Every problem with its reference answer: the training set of the direct baseline (paper, Table 1)."""
    examples = []
    for problem in problems:
        prompt = prompts.prompt(task, problem)
        text = task.reference(problem)
        if text is not None:
            examples.append(
                Example(
                    problem_id=problem.id,
                    prompt=prompt.text if few_shot_train else prompt.body,
                    completion=text,
                    iteration=iteration,
                    source=Source.REFERENCE,
                    prompt_set=prompts.fingerprint,
                )
            )
    return examples


def summary(
    iteration: int,
    problems: Sequence[Problem],
    samples: Sequence[Completion],
    rationalizations: Sequence[Completion],
    examples: Sequence[Example],
) -> dict[str, Any]:
    """The content of filter.json."""
    category = {p.id: p.category for p in problems}
    kept: dict[str, dict[str, int]] = {
        c: dict.fromkeys((Source.SAMPLED, Source.RATIONALIZED, Source.REFERENCE), 0) for c in category.values()
    }
    own = [e for e in examples if e.iteration == iteration]
    for example in own:
        kept[category[example.problem_id]][example.source] += 1
    sources = collections.Counter(e.source for e in own)
    return {
        "iteration": iteration,
        "problems": len(problems),
        "samples": len(samples),
        **counts(samples),
        "distinct": len({c.text for c in samples}),
        "mean_tokens": round(sum(c.tokens for c in samples) / max(1, len(samples)), 2),
        "rationalization_tried": len(rationalizations),
        "rationalization_right": counts(rationalizations)["right"],
        "kept": len(examples),
        "kept_sampled": sources[Source.SAMPLED],
        "kept_rationalized": sources[Source.RATIONALIZED],
        "kept_reference": sources[Source.REFERENCE],
        "kept_from_earlier": len(examples) - len(own),
        "hints_kept": sum(e.hint_kept for e in own),
        "kept_by_category": kept,
        "problems_by_category": dict(collections.Counter(category.values())),
    }


def chance(seed: int, iteration: int, problem_id: str, purpose: str) -> float:
    """A number in [0, 1) that depends on its arguments alone, so that a restart makes the same choices."""
    digest = hashlib.sha256(f"{seed}/{iteration}/{problem_id}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
