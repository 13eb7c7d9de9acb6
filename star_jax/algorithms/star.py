"""STaR, Algorithm 1 of the paper: sample, rationalize, select, fine-tune the original model, evaluate; repeat.

The loop has no state but the files of the run's directory. So the command that started a run also continues it.
"""

import logging
from pathlib import Path

from star_jax.algorithms import bookkeeping, setup
from star_jax.algorithms.run import Run
from star_jax.algorithms.stages import (
    FINE_TUNE,
    RATIONALIZE,
    SAMPLE,
    Iteration,
    Stage,
    evaluate_stage,
    select_stage,
)
from star_jax.config import Config
from star_jax.errors import Stopped

LOG = logging.getLogger("star_jax")


def iteration_stages(config: Config, n: int) -> tuple[Stage, ...]:
    """The stages of iteration n, in order; 0 evaluates the base."""
    evaluate = evaluate_stage(config.evaluation.splits)
    if n == 0:
        return (evaluate,)
    if config.star.direct:
        return select_stage(), FINE_TUNE, evaluate
    if config.star.rationalize and n >= config.star.rationalize_from:
        select = select_stage("samples.jsonl", "rationalizations.jsonl")
        return SAMPLE, RATIONALIZE, select, FINE_TUNE, evaluate
    return SAMPLE, select_stage("samples.jsonl"), FINE_TUNE, evaluate


def run(config: Config, workdir: Path | str, allow_changes: bool = False) -> Path:
    """Runs the whole loop in `workdir`, or continues it there; returns the path of its report.

    `allow_changes`: continue a run with different settings, data, prompts or versions, and record the differences.

    Raises InputError for settings that do not fit each other, the files, or an earlier run in this directory.
    """
    run = setup.open_run(config, Path(workdir), allow_changes)
    try:
        run.weights.ensure_base(lambda: setup.make_base(run))
        for n in range(run.config.star.iterations + 1):
            iterate(run, n, iteration_stages(run.config, n))
        path = bookkeeping.write_report(run)
    except Stopped:
        run.weights.wait()  # a save in progress completes
        raise
    finally:
        run.close()
    LOG.info("report: %s", path)
    return path


def iterate(run: Run, n: int, stages: tuple[Stage, ...]) -> None:
    """One outer iteration, M_{n-1} -> M_n: every stage whose outputs do not exist yet."""
    if bookkeeping.is_finished(run, n):
        return
    iteration = Iteration(run, n)
    for stage in stages:
        if not iteration.has(stage.outputs):
            with run.phases(stage.name):
                stage.run(iteration)
    bookkeeping.finish(run, n)
