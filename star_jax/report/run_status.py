"""The status of a run as its files show it, and what a reader should know before trusting the page."""

import itertools

from star_jax.evaluation import collapse, results
from star_jax.json_reader import is_number, is_present, open_regular
from star_jax.report.formatting import count
from star_jax.report.run_data import Iteration, RunData, rationalizes, setting, train_problems
from star_jax.report.samples import sample_stats


def run_status(run: RunData) -> str:
    """The status in words. The files of a stopped run do not differ from those of one in progress."""
    planned = setting(run.config, "star.iterations")
    of_planned = f" of {planned}" if isinstance(planned, int) else ""
    by_number = {iteration.number: iteration for iteration in run.iterations}
    if max(by_number, default=0) == 0:
        evaluated = 0 in by_number and by_number[0].evaluation is not None
        if evaluated and planned == 0:
            return "done: the base model is evaluated, and no iteration was requested"
        if evaluated:
            return f"the base model is evaluated; iteration 1{of_planned} comes next"
        return f"no evaluation yet; {_base_status(run, by_number.get(0))}" if run.config else "no evaluation yet"
    done = [number for number, iteration in by_number.items() if iteration.done and number > 0]
    if isinstance(planned, int) and len(done) >= planned:
        return f"done: {planned} of {planned} iterations"
    if reason := reason_to_stop(run):
        return f"done: stopped after iteration {max(done)}{of_planned}: {reason}"
    current = max(done, default=0) + 1
    if current not in by_number:
        return f"iteration {max(done, default=0)}{of_planned} done"
    return f"iteration {current}{of_planned}, in progress or stopped; {_stage_status(run, by_number[current])}"


def is_finished(run: RunData) -> bool:
    """True if every iteration that the config requests is done; False without a config."""
    planned = setting(run.config, "star.iterations")
    done = {iteration.number for iteration in run.iterations if iteration.done}
    return bool(reason_to_stop(run)) or (isinstance(planned, int) and all(n in done for n in range(planned + 1)))


def reason_to_stop(run: RunData) -> str:
    """Why star.stop_when has ended the run; "" if it has not."""
    count = setting(run.config, "star.stop_when")
    settings = [setting(run.config, f"evaluation.{key}") for key in ("samples", "temperature")]
    if not isinstance(count, int) or not all(is_number(value) for value in settings):
        return ""
    stem = results.EvaluationPass(run.split, *settings).stem
    found = [{name.stem: evaluation for name, evaluation in it.sampled.items()} for it in run.iterations if it.done]
    return results.reason_to_stop([of[stem] for of in found if stem in of], count)


def notices(run: RunData) -> list[str]:
    """Sentences a reader should know before trusting the page: damage, mismatched files, signs of collapse."""
    sentences = []
    if not run.config:
        sentences.append("config.json is missing or empty, so the page cannot show the settings.")
    if run.unread_metrics:
        sentences.append(
            f"{run.unread_metrics} line(s) of metrics.jsonl are unreadable (usually torn by a kill) and left out."
        )
    for iteration in run.iterations:
        if others := _other_numbers(iteration):
            sentences.append(
                f"Iteration {iteration.number}: {' and '.join(others)}: its folder was renamed, or copied from another."
            )
        samples = sample_stats(iteration, "samples")
        counts = iteration.filter_result.counts if iteration.filter_result else {}
        if samples and "samples" in counts and counts["samples"] != samples.samples:
            sentences.append(
                f"Iteration {iteration.number}: filter.json counts {count(counts['samples'])} samples, "
                f"samples.jsonl holds {count(samples.samples)}; they belong to different runs."
            )
    if shared := _shared_with_train(run):
        sentences.append(
            f"{count(shared)} of the {count(len(run.problems))} problems of the {run.split} split are also train "
            "problems: the accuracy on them is no estimate for new problems."
        )
    return [*sentences, *_collapse_notices(run)]


def _other_numbers(iteration: Iteration) -> list[str]:
    """The files of an iteration's folder that are of another iteration, each with its number."""
    files = {
        "the evaluation": iteration.evaluation.counts if iteration.evaluation else {},
        "filter.json": iteration.filter_result.counts if iteration.filter_result else {},
        "finetune.json": iteration.fine_tuning or {},
    }
    numbers = {name: counts["iteration"] for name, counts in files.items() if "iteration" in counts}
    return [f"{name} is of iteration {count(n)}" for name, n in numbers.items() if n != iteration.number]


def _shared_with_train(run: RunData) -> int:
    """Number of problems of the split that selects that are train problems, too; 0 if it is the train split."""
    train = {fingerprint for _, fingerprint in train_problems(run)}
    return 0 if run.split == "train" else sum(problem.fingerprint in train for problem in run.problems)


def _base_status(run: RunData, base: Iteration | None) -> str:
    """The stage of a run whose base has no evaluation."""
    if is_present(run.directory / "base" / "model.json"):
        return _progress(base, f"eval_{run.split}", "evaluating the base") if base else "evaluating the base comes next"
    if setting(run.config, "base.path"):
        return "copying the base comes next"
    return _steps_status(run, "pretrain", 0, "pretraining the base")


def _stage_status(run: RunData, iteration: Iteration) -> str:
    """The stage of an unfinished iteration."""
    if iteration.filter_result is None:
        return _sampling_status(run, iteration)
    if iteration.filter_result.counts.get("kept") == 0:
        return "it kept nothing, so there is nothing to fine-tune on"
    if iteration.fine_tuning is None:
        return _steps_status(run, "fine_tune", iteration.number, "fine-tuning")
    if iteration.evaluation is None:
        return _progress(iteration, f"eval_{run.split}", "evaluating")
    return "all of its stages are on disk"


def _sampling_status(run: RunData, iteration: Iteration) -> str:
    """The stage of an iteration without filter.json."""
    if setting(run.config, "star.direct"):
        return "filtering comes next"
    samples, rationalizations = (sample_stats(iteration, name) for name in ("samples", "rationalizations"))
    if samples is None and setting(run.config, "star.rationalize") != "all":
        return _progress(iteration, "samples", "sampling")
    if rationalizes(run.config) and rationalizations is None:
        return _progress(iteration, "rationalizations", "rationalizing")
    solved, minimum = {key for stats in (samples, rationalizations) if stats for key in stats.solved}, 1
    if isinstance(setting(run.config, "selection.min_kept"), int):
        minimum = max(minimum, setting(run.config, "selection.min_kept"))
    if not solved:
        return "no completion reached a right answer, so there is nothing to keep"
    if len(solved) < minimum:
        return f"{count(len(solved))} problems have a right answer, fewer than selection.min_kept = {count(minimum)}"
    return "filtering comes next"


def _progress(iteration: Iteration, name: str, stage: str) -> str:
    """Counts the lines of a stage's unfinished file, one for each sample."""
    try:
        with open_regular(iteration.directory / f"{name}.jsonl.part") as file:
            sampled = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except OSError:  # not started, or just finished
        sampled = 0
    return f"{stage}, {count(sampled)} sampled so far" if sampled else f"{stage} comes next"


def _steps_status(run: RunData, stage: str, iteration: int, title: str) -> str:
    """How far the latest training of an iteration came, by the metrics of this stage."""
    lines = (line for line in run.metrics if line.get("stage") == stage)
    steps = [line.get("step") for line in lines if line.get("iteration") == iteration]
    reached = max((step for step in steps if is_number(step)), default=0)
    return f"{title}, step {count(reached)} reached" if reached else f"{title} comes next"


def _collapse_notices(run: RunData) -> list[str]:
    """The signs of `evaluation.collapse` between each iteration and the one before it."""
    sentences = []
    for before, now in itertools.pairwise(run.iterations):
        signs = []
        if before.filter_result and now.filter_result:
            signs += collapse.of_samples(before.filter_result.counts, now.filter_result.counts)
        if before.evaluation and now.evaluation:
            rates = [(e.overall.accuracy, e.overall.low, e.overall.high) for e in (before.evaluation, now.evaluation)]
            signs += collapse.of_accuracy(*rates)
        sentences += [f"Iteration {now.number}: {sign}." for sign in signs]
    return sentences
