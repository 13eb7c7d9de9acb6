"""The end of an iteration: its marker, warnings, weights to delete, the time profile, and the report."""

import logging
import time
from pathlib import Path

from star_jax import report
from star_jax.algorithms.run import Run
from star_jax.distributed import processes
from star_jax.evaluation import collapse, stored_run
from star_jax.evaluation.best import best_iteration
from star_jax.runs import console

LOG = logging.getLogger("star_jax")


def is_finished(run: Run, n: int) -> bool:
    """Whether all files of iteration n exist, and its weights if the next iteration needs them."""
    needed = n < run.config.star.iterations and not run.run_dir.has(n + 1)
    return run.run_dir.is_complete(n) and (not needed or run.weights.exists(n))


def finish(run: Run, n: int) -> None:
    """Marks iteration n as done, removes what only a restart would need, and updates the report."""
    run_dir = run.run_dir
    run.weights.wait()
    run_dir.remove(run_dir.path(n, "train_state"))
    run_dir.discard(n, "*.part")  # a kill may have come between a stage's output and the end of its part file
    if run_dir.has(n):
        return
    run_dir.write_text(run_dir.path(n, "DONE"), f"{time.time():.0f}\n")
    _warn(run, n)
    _delete_weights(run, n)
    path = write_report(run)
    _log_phases(run, n)
    if n:
        _print_summary(run, n, path)


def write_report(run: Run) -> Path:
    """Writes the run's report and returns its path."""
    with run.phases("report"):
        return Path(processes.broadcast_from_leader(lambda: str(report.write(run.run_dir.workdir))))


def _warn(run: Run, n: int) -> None:
    """Warns of signs of collapse since the previous iteration."""
    run_dir, name, signs = run.run_dir, f"eval_{run.config.evaluation.split}.json", []
    if n > 1:  # iteration 0 samples nothing
        signs += collapse.of_samples(*(run_dir.read_json(run_dir.path(i, "filter.json")) for i in (n - 1, n)))
    if n > 0:
        results = [run_dir.read_json(run_dir.path(i, name)) for i in (n - 1, n)]
        signs += collapse.of_accuracy(*((result["accuracy"], *result["ci95"]) for result in results))
    for sign in signs:
        LOG.warning("iteration %d: %s", n, sign)


def _delete_weights(run: Run, n: int) -> None:
    """Deletes the weights of earlier iterations that star.keep_weights does not ask for; the best iteration's stay."""
    keep = run.config.star.keep_weights
    if keep:
        best = stored_run.best_iteration(run.run_dir, run.config.evaluation.split)
        for earlier in range(1, n - keep + 1):
            if earlier != best:
                run.run_dir.remove(run.weights.directory(earlier))


def _log_phases(run: Run, n: int) -> None:
    """Logs the wall time of an iteration by phase, as far as this process has run it."""
    seconds = run.phases.take()
    total = sum(seconds.values())
    run.log.log("phases", n, 0, {name: round(value, 3) for name, value in {**seconds, "total": total}.items()})
    phases = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if value >= 0.05)
    LOG.info("iteration %d: %.1f s: %s", n, total, phases)


def _print_summary(run: Run, n: int, report_path: Path) -> None:
    """Prints the figures of the iterations so far."""
    run_dir, name = run.run_dir, f"eval_{run.config.evaluation.split}.json"
    evaluations = [run_dir.read_json(run_dir.path(i, name)) for i in range(n + 1)]
    counts = [run_dir.read_json(run_dir.path(i, "filter.json")) if i else None for i in range(n + 1)]
    if processes.is_leader():
        best = best_iteration({i: evaluation["accuracy"] for i, evaluation in enumerate(evaluations)})
        console.show(evaluations, counts, best, str(report_path))
