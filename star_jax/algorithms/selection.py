"""Selection of training examples from judged completions (paper, Algorithm 1, lines 4 to 6)."""

import collections
import dataclasses
import hashlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from star_jax.config import SelectionConfig
from star_jax.evaluation.judging import counts
from star_jax.evaluation.prompts import PromptEncoder
from star_jax.records import Completion, Example, Problem, ProblemKey, Source, Verdict
from star_jax.tasks import Task
from star_jax.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class SelectionSpec:
    """What is kept, and how it is stored."""

    seed: int
    weights: str  # fingerprint of the weights that sampled
    options: SelectionConfig = SelectionConfig()
    anchoring: Mapping[str, float] = dataclasses.field(
        default_factory=dict
    )  # seed of a rationalization -> nats, see anchoring_of
    few_shot_train: bool = False  # the stored prompt includes the shots
    hint_keep_probability: float = 0.0  # share of the rationalizations stored with their hint (p_show_hint_save)


def is_usable(completion: Completion, check: str) -> bool:
    """Whether a completion may be trained on, by selection.check.

    Steps that the task cannot check (consistent = None) do not count against it.
    """
    if check == "none":
        return completion.verdict != Verdict.TRUNCATED
    return completion.verdict == Verdict.RIGHT and not (check == "steps" and completion.consistent is False)


def to_rationalize(
    problems: Sequence[Problem],
    samples: Iterable[Completion],
    probability: float,
    seed: int,
    iteration: int,
    check: str = "answer",
) -> list[Problem]:
    """The problems without a usable sample, each with the given probability, fixed by seed, iteration and id."""
    solved = {s.problem_key for s in samples if is_usable(s, check)}
    return [p for p in problems if p.key not in solved and chance(seed, iteration, p.id, "rationalize") < probability]


def keep(
    prompts: PromptEncoder, problems: Sequence[Problem], completions: Iterable[Completion], spec: SelectionSpec
) -> list[Example]:
    """The usable completions as training examples, in the order of the problems.

    At most `per_problem` distinct ones (selection.dedup) for each problem, samples before rationalizations, lowest
    sample index first. Prompts are stored without hint, except for a share of the rationalizations
    (`hint_keep_probability`).
    """
    by_problem: dict[ProblemKey, list[Completion]] = collections.defaultdict(list)
    for completion in completions:
        if is_usable(completion, spec.options.check) and not _is_anchored(completion, spec):
            by_problem[completion.problem_key].append(completion)
    examples = []
    for problem in problems:
        usable = sorted(by_problem[problem.key], key=lambda c: (c.hinted, c.sample_index))
        kept = distinct(usable, prompts.task if spec.options.dedup == "steps" else None, spec.options.per_problem)
        examples += [_example(prompts, problem, completion, spec) for completion in kept]
    return examples


def anchoring_of(
    prompts: PromptEncoder,
    problems: Sequence[Problem],
    rationalizations: Sequence[Completion],
    score: Callable[[list[tuple[tuple[int, ...], tuple[int, ...]]]], list[np.ndarray]],
) -> dict[str, float]:
    """Seed of each rationalization -> log p(it | problem, hint) - log p(it | problem), nats (arXiv 2602.14469).

    The model that sampled it is the judge. `score`: log p of the completion's tokens for each (prompt ids, completion
    ids), as sampling.scoring has it.
    """
    by_key = {problem.key: problem for problem in problems}
    plain = [prompts(by_key[c.problem_key]) for c in rationalizations]
    pairs = [(p.prefix_ids + p.body_ids, c.token_ids) for p, c in zip(plain, rationalizations, strict=True)]
    return {
        c.seed: round(float(np.sum(c.token_log_probs, dtype=np.float64) - np.sum(log_probs_M, dtype=np.float64)), 4)
        for c, log_probs_M in zip(rationalizations, score(pairs), strict=True)
    }


def _is_anchored(completion: Completion, spec: SelectionSpec) -> bool:
    """Whether selection.max_anchoring refuses a rationalization."""
    bound = spec.options.max_anchoring
    return completion.hinted and bound > 0 and spec.anchoring[completion.seed] > bound


def distinct(completions: Sequence[Completion], task: Task | None, count: int) -> list[Completion]:
    """The first `count` completions of a problem (0: all) of which no two are the same, in their order.

    Two are the same if their texts are. With a task, they are also the same if their lists of steps are
    (Task.step_list); of those, the one whose summed edit distance to the completions kept before it is the largest is
    kept, the first of equals (RFT, arXiv 2308.01825, section 3.3).
    """
    by_steps: dict[tuple[str, ...], dict[str, Completion]] = {}
    for completion in completions:
        steps = task.step_list(completion.text) if task else None
        key = ("text", completion.text) if steps is None else ("steps", *steps)
        by_steps.setdefault(key, {}).setdefault(completion.text, completion)
    kept: list[Completion] = []
    for same in list(by_steps.values())[: count or None]:
        texts = {text: sum(edit_distance(text, other.text) for other in kept) for text in same if len(same) > 1}
        kept.append(same[max(texts, key=lambda text: texts[text])] if texts else next(iter(same.values())))
    return kept


def edit_distance(a: str, b: str) -> int:
    """The Levenshtein distance of two texts, in characters."""
    b_M = np.array([*map(ord, b)])
    index_M = np.arange(len(b) + 1)
    distance_M = index_M
    for i, sign in enumerate(a, start=1):
        substituted_M = distance_M[:-1] + (b_M != ord(sign))
        best_M = np.concatenate([[i], np.minimum(distance_M[1:] + 1, substituted_M)])
        # Insertions: distance[j] = min over k <= j of best[k] + (j - k).
        distance_M = np.minimum.accumulate(best_M - index_M) + index_M
    return int(distance_M[-1])


def references(
    prompts: PromptEncoder, problems: Sequence[Problem], *, few_shot_train: bool, iteration: int
) -> list[Example]:
    """Every problem with its reference answer: the training set of the direct baseline (paper, Table 1)."""
    examples = []
    for problem in problems:
        text = prompts.reference(problem)
        if text is not None:
            examples.append(
                Example(
                    problem_id=problem.id,
                    completion=text,
                    iteration=iteration,
                    source=Source.REFERENCE,
                    **_prompt_fields(prompts, problem, False, few_shot_train),
                )
            )
    return examples


def completion_ids(tokenizer: Tokenizer, completion: Completion) -> tuple[tuple[int, ...], int]:
    """(ids of the completion's text without the stop, how many of them at the end were not sampled).

    Training on the sampled ids, and not on the text encoded again, trains the tokens that were sampled. Where the stop
    began inside of a token, the part of that token before it is encoded; so are the tokens before it that hold parts of
    one character with it.
    """
    ids, data = completion.token_ids, completion.text.encode()
    for end in range(len(ids), -1, -1):
        sampled = tokenizer.decode_bytes(ids[:end])
        if sampled == data:
            # A token that adds nothing (end-of-text) is not part of the text.
            while end and tokenizer.decode_bytes(ids[: end - 1]) == data:
                end -= 1
            return ids[:end], 0
        if ids and len(sampled) < len(data) and data.startswith(sampled) and _is_utf8(sampled):
            tail = tokenizer.encode_continuation(data[len(sampled) :].decode())
            return (*ids[:end], *tail), len(tail)
    return (), 0


def summary(
    iteration: int,
    problems: Sequence[Problem],
    samples: Sequence[Completion],
    rationalizations: Sequence[Completion],
    examples: Sequence[Example],
) -> dict[str, Any]:
    """The content of filter.json.

    `kept_retokenized` counts the sampled examples with tokens that were encoded from their text, `retokenized_problems`
    names the first 20 of their problems. `anchoring`: the mean over the kept rationalizations, if they were scored.
    """
    category = {p.id: p.category for p in problems}
    sources = (Source.SAMPLED, Source.RATIONALIZED, Source.REFERENCE)
    kept_by_category: dict[str, dict[str, int]] = {c: dict.fromkeys(sources, 0) for c in category.values()}
    current = [e for e in examples if e.iteration == iteration]
    for example in current:
        kept_by_category[category[example.problem_id]][example.source] += 1
    kept_by_source = collections.Counter(e.source for e in current)
    scores = [e.anchoring for e in current if e.anchoring is not None]
    retokenized = [e for e in examples if e.source != Source.REFERENCE and (e.retokenized or not e.token_ids)]
    return {
        "iteration": iteration,
        "problems": len(problems),
        "samples": len(samples),
        **counts(samples),
        "distinct": len({c.text for c in samples}),
        "mean_tokens": round(sum(c.tokens for c in samples) / max(1, len(samples)), 2),
        "rationalization_tried": len(rationalizations),
        "rationalization_right": counts(rationalizations)[Verdict.RIGHT],
        "kept": len(examples),
        "kept_sampled": kept_by_source[Source.SAMPLED],
        "kept_rationalized": kept_by_source[Source.RATIONALIZED],
        "kept_reference": kept_by_source[Source.REFERENCE],
        "kept_from_earlier": len(examples) - len(current),
        "kept_retokenized": len(retokenized),
        "retokenized_problems": [e.problem_id for e in retokenized[:20]],
        "hints_kept": sum(e.hint_kept for e in current),
        "kept_by_category": kept_by_category,
        "problems_by_category": dict(collections.Counter(category.values())),
        **({"anchoring": round(statistics.fmean(scores), 3)} if scores else {}),
    }


def chance(seed: int, iteration: int, problem_id: str, purpose: str) -> float:
    """A number in [0, 1) that depends on its arguments alone, so a restart makes the same choices."""
    digest = hashlib.sha256(f"{seed}/{iteration}/{problem_id}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _example(prompts: PromptEncoder, problem: Problem, completion: Completion, spec: SelectionSpec) -> Example:
    hint_kept = completion.hinted and (
        chance(spec.seed, completion.iteration, problem.id, "keep hint") < spec.hint_keep_probability
    )
    token_ids, retokenized = completion_ids(prompts.tokenizer, completion)
    return Example(
        problem_id=problem.id,
        completion=completion.text,
        iteration=completion.iteration,
        source=Source.RATIONALIZED if completion.hinted else Source.SAMPLED,
        hint_kept=hint_kept,
        sample_index=completion.sample_index,
        seed=completion.seed,
        verdict=completion.verdict,
        log_probability=completion.log_probability,
        anchoring=spec.anchoring.get(completion.seed),
        weights=spec.weights,
        retokenized=retokenized,
        token_ids=token_ids,
        **_prompt_fields(prompts, problem, hint_kept, spec.few_shot_train),
    )


def _prompt_fields(prompts: PromptEncoder, problem: Problem, hinted: bool, with_shots: bool) -> dict[str, Any]:
    """The fields of an example that hold its prompt."""
    encoded = prompts(problem, hinted, with_shots)
    fields: dict[str, Any] = {
        "prompt": encoded.prompt.text,
        "prompt_set": prompts.fingerprint,
        "problem_fingerprint": problem.fingerprint,
    }
    if prompts.chat:
        return {**fields, "prompt_ids": encoded.prefix_ids + encoded.body_ids}
    return {**fields, "prefix_length": len(encoded.prompt.prefix)}


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
