"""Which iterations are finished, and the end of one: its marker, warnings, weights to delete, profile and report."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from star_jax import report
from star_jax.algorithms import schedule
from star_jax.algorithms.run import Run
from star_jax.algorithms.stages import Iteration, Stage, weights_fingerprint
from star_jax.distributed import processes
from star_jax.errors import InputError
from star_jax.evaluation import collapse, results, stored_run
from star_jax.report import formatting
from star_jax.runs import console

LOG = logging.getLogger("star_jax")


def iterations_in_need_of_weights(run: Run, stages: Callable[[int], Sequence[Stage]]) -> frozenset[int]:
    """The iterations whose weights must exist: the unfinished ones, and those that a stage yet to run reads.

    The weights of all others may be gone, deleted by star.keep_weights. `stages`: those of an iteration. Counted back
    from the last iteration, since weights that are to be made again may need those of the iteration before.
    """
    needed: set[int] = set()
    for n in reversed(range(run.config.star.iterations + 1)):
        if not run.run_dir.has(n):
            needed.add(n)
        if is_finished(run, n, n in needed):
            continue
        for stage in reversed(stages(n)):
            if stage.reads_weights is not None and not Iteration(run, n, n in needed).is_done(stage):
                needed.add(n + stage.reads_weights)
    return frozenset(needed)


def is_finished(run: Run, n: int, needs_weights: bool) -> bool:
    """Whether iteration n is done, none of its files has disappeared since, and its weights exist if needed."""
    return run.run_dir.is_complete(n) and (not needs_weights or run.weights.exists(n))


def check_origins(run: Run) -> None:
    """Raises InputError for a finished iteration whose samples were not drawn from the weights of the one before it.

    Its folder was copied from another run, or the weights were made again and are others. With star.samples_from all
    samples are another run's.
    """
    if run.samples_from:
        return
    for n in range(1, run.config.star.iterations + 1):
        path = run.run_dir.path(n, "filter.json")
        if not run.run_dir.is_complete(n) or (n > 1 and not run.run_dir.has(n - 1, "finetune.json")):
            continue
        expected, drawn_from = weights_fingerprint(run, n - 1), _filter_result(run, n).sampled_from
        if drawn_from not in ("", expected):
            raise InputError(
                f"{path}: its samples were drawn from the weights {drawn_from}, and those of iteration {n - 1} are "
                f"{expected}; the folder may be another run's: delete {path.parent} to have it made again"
            )


def finish(run: Run, n: int, from_its_start: bool) -> None:
    """Marks iteration n as done, removes what only a restart would need, updates the report and seals the log.

    `from_its_start`: this process ran all of it, so its time is a measure of an iteration.
    """
    run_dir = run.run_dir
    run.weights.wait()
    run_dir.remove(run_dir.path(n, "train_state"))
    run_dir.discard(n, "*.part")  # a kill may have come between a stage's output and the end of its part file
    if run_dir.has(n):
        return
    run_dir.write_text(run_dir.path(n, "DONE"), f"{time.time():.0f}\n")
    _warn(run, n)
    delete_weights(run, n)
    path = write_report(run)
    seconds = _log_phases(run, n)
    if n and from_its_start and n < run.config.star.iterations:
        left, remaining = schedule.remaining_seconds(run.config.star, n, seconds), run.config.star.iterations - n
        what = f"{remaining} more iteration{'s' * (remaining != 1)}"
        LOG.info("%s: about %s at the pace of iteration %d", what, formatting.duration(left), n)
    run.run_dir.seal(run.log.path)
    if n:
        _print_summary(run, n, path)


def write_report(run: Run) -> Path:
    """Writes the run's report and returns its path."""
    with run.phases("report"):
        return Path(processes.broadcast_from_leader(lambda: str(report.write(run.run_dir.workdir))))


def _warn(run: Run, n: int) -> None:
    """Warns of signs of collapse since the previous iteration."""
    signs: list[str] = []
    if n > 1:  # iteration 0 samples nothing
        signs += collapse.of_samples(*(_filter_result(run, i).counts for i in (n - 1, n)))
    if n > 0:
        rates = [_evaluation(run, i).overall for i in (n - 1, n)]
        signs += collapse.of_accuracy(*((rate.accuracy, rate.low, rate.high) for rate in rates))
    for sign in signs:
        LOG.warning("iteration %d: %s", n, sign)


def stops_early(run: Run, n: int) -> bool:
    """Whether star.stop_when ends the run after iteration n; logs why."""
    options, count = run.config.evaluation, run.config.star.stop_when
    if not count or n < count:
        return False
    name = results.EvaluationPass(options.split, options.samples, options.temperature).files[1]
    paths = [run.run_dir.path(i, name) for i in range(n - count, n + 1)]
    evaluations = [results.sampled_evaluation(run.run_dir.read_json(path), path) for path in paths]
    reason = results.reason_to_stop(evaluations, count)
    if reason and n < run.config.star.iterations:
        LOG.info("stopped after iteration %d of %d: %s", n, run.config.star.iterations, reason)
    return bool(reason)


def delete_weights(run: Run, n: int) -> None:
    """Deletes the weights that star.keep_weights does not ask for after iteration n; the best iteration's stay."""
    keep = run.config.star.keep_weights
    if keep:
        best = stored_run.best_iteration(run.run_dir, run.config.evaluation.split)
        for earlier in range(1, n - keep + 1):
            if earlier != best:
                run.run_dir.remove(run.weights.directory(earlier))


def _log_phases(run: Run, n: int) -> dict[str, float]:
    """Logs and returns the wall time of an iteration by phase, as far as this process has run it."""
    seconds = run.phases.take()
    total = sum(seconds.values())
    run.log.log("phases", n, 0, {name: round(value, 3) for name, value in {**seconds, "total": total}.items()})
    phases = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if value >= 0.05)
    LOG.info("iteration %d: %.1f s: %s", n, total, phases)
    return seconds


def _print_summary(run: Run, n: int, report_path: Path) -> None:
    """Prints the figures of the iterations so far."""
    evaluations = {i: _evaluation(run, i) for i in range(n + 1)}
    rows = []
    for i, result in evaluations.items():
        counts = _filter_result(run, i).counts if i else {}
        rate, kept = result.overall, [counts.get(key) for key in ("kept", "kept_rationalized", "problems")]
        rows.append(console.Row(rate.accuracy, rate.low, rate.high, result.mean_of_categories, *kept))
    if processes.is_leader():
        console.show(rows, results.best_iteration(evaluations), str(report_path))


def _evaluation(run: Run, n: int) -> results.Evaluation:
    """Iteration n's evaluation on the split that selects."""
    path = run.run_dir.path(n, f"eval_{run.config.evaluation.split}.json")
    return results.evaluation(run.run_dir.read_json(path), path)


def _filter_result(run: Run, n: int) -> results.FilterResult:
    path = run.run_dir.path(n, "filter.json")
    return results.filter_result(run.run_dir.read_json(path), path)
