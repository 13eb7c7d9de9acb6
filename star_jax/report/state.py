"""Where a run stands, and what a reader should know before trusting its page."""

import itertools

from star_jax.evaluation import collapse
from star_jax.report import draws
from star_jax.report.load import Iteration, Run, is_number, setting
from star_jax.report.words import count


def standing(run: Run) -> str:
    """Where the run stands, in words, as far as its files tell: a run that was stopped looks like one that goes on."""
    planned = setting(run.config, "star.iterations")
    of_planned = f" of {planned}" if isinstance(planned, int) else ""
    by_number = {iteration.number: iteration for iteration in run.iterations}
    if max(by_number, default=0) == 0:
        evaluated = 0 in by_number and by_number[0].evaluation is not None
        if evaluated and planned == 0:
            return "done: the base model is evaluated, and no iteration was asked for"
        return f"the base model is evaluated; iteration 1{of_planned} comes next" if evaluated else "no evaluation yet"
    finished = [number for number, iteration in by_number.items() if iteration.done and number > 0]
    if isinstance(planned, int) and len(finished) >= planned:
        return f"done: {planned} of {planned} iterations"
    current = max(finished, default=0) + 1
    if current not in by_number:
        return f"iteration {max(finished, default=0)}{of_planned} done"
    return f"iteration {current}{of_planned}, in progress or stopped; {_stage(run, by_number[current])}"


def finished(run: Run) -> bool:
    """Whether every iteration that was asked for is done; without a config nobody can tell, and it counts as not."""
    planned = setting(run.config, "star.iterations")
    done = {iteration.number for iteration in run.iterations if iteration.done}
    return isinstance(planned, int) and done >= set(range(planned + 1))


def _stage(run: Run, iteration: Iteration) -> str:
    """The stage an unfinished iteration is at, from the files it has."""
    samples, rationalizations = (draws.drawn(iteration, name) for name in ("samples", "rationalizations"))
    if iteration.filtered is None and not setting(run.config, "star.direct"):
        rationalizes = setting(run.config, "star.rationalize")
        if samples is None:
            return _under_way(iteration, "samples", "sampling")
        if rationalizes and rationalizations is None:
            return _under_way(iteration, "rationalizations", "rationalizing")
        solved, least = samples.solved | (rationalizations.solved if rationalizations else set()), 1
        if isinstance(setting(run.config, "star.min_kept"), int):
            least = max(least, setting(run.config, "star.min_kept"))
        if not solved:
            return "no completion reached a right answer, so there is nothing to keep"
        if len(solved) < least:
            return (
                f"right answers to {count(len(solved))} problems are fewer than star.min_kept asks for, {count(least)}"
            )
    if iteration.filtered is None:
        return "filtering comes next"
    if iteration.filtered.counts.get("kept") == 0:
        return "it kept nothing, so there is nothing to fine-tune on"
    if iteration.fine_tuned is None:
        return _step(run, iteration)
    if iteration.evaluation is None:
        return _under_way(iteration, f"eval_{run.split}", "evaluating")
    return "all of its stages are on disk"


def _under_way(iteration: Iteration, name: str, stage: str) -> str:
    """What a stage that draws has on disk of its unfinished file, a line a completion."""
    try:
        with open(iteration.directory / f"{name}.jsonl.part", "rb") as file:
            drawn = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except OSError:  # not begun, or just finished
        drawn = 0
    return f"{stage}, {count(drawn)} drawn so far" if drawn else f"{stage} comes next"


def _step(run: Run, iteration: Iteration) -> str:
    lines = (line for line in run.metrics if line.get("stage") == "fine_tune")
    steps = [line.get("step") for line in lines if line.get("iteration") == iteration.number]
    reached = max((step for step in steps if is_number(step)), default=0)
    return f"fine-tuning, step {count(reached)} reached" if reached else "fine-tuning comes next"


def notices(run: Run) -> list[str]:
    """What a reader should know before trusting the page."""
    notices = []
    if not run.config:
        notices.append("config.json is missing or empty, so the page cannot say what was run.")
    if run.unread_metrics:
        notices.append(
            f"{run.unread_metrics} line(s) of metrics.jsonl could not be read (torn by a kill, as a rule); "
            "they are left out."
        )
    for iteration in run.iterations:
        samples = draws.drawn(iteration, "samples")
        counts = iteration.filtered.counts if iteration.filtered else {}
        if samples and "samples" in counts and counts["samples"] != samples.draws:
            notices.append(
                f"Iteration {iteration.number}: filter.json counts {count(counts['samples'])} draws, "
                f"samples.jsonl holds {count(samples.draws)}; they are not of the same run."
            )
    return [*notices, *_alarms(run)]


def _alarms(run: Run) -> list[str]:
    """What star_jax.evaluation.collapse says of each iteration and the one before it."""
    found = []
    for before, now in itertools.pairwise(run.iterations):
        signs = []
        if before.filtered and now.filtered:
            signs += collapse.of_samples(before.filtered.counts, now.filtered.counts)
        if before.evaluation and now.evaluation:
            rates = [(e.overall.accuracy, e.overall.low, e.overall.high) for e in (before.evaluation, now.evaluation)]
            signs += collapse.of_accuracy(*rates)
        found += [f"Iteration {now.number}: {sign}." for sign in signs]
    return found
