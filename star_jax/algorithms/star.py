"""STaR, Algorithm 1 of the paper: sample, rationalize, select, fine-tune the original model, evaluate; repeat.

The loop has no state but the files of the run's directory. So the command that started a run also continues it.
"""

from pathlib import Path

from star_jax.algorithms import bookkeeping, estimates, setup
from star_jax.algorithms.resuming import ResumeLog
from star_jax.algorithms.run import Run
from star_jax.algorithms.stages import (
    Iteration,
    Stage,
    anchoring_stage,
    evaluate_stage,
    fine_tune_stage,
    sampling_stage,
    select_stage,
)
from star_jax.config import Config
from star_jax.errors import Stopped


def iteration_stages(config: Config, n: int) -> tuple[Stage, ...]:
    """The stages of iteration n, in order; 0 evaluates the base."""
    fine_tune, evaluate = fine_tune_stage(config.star.restart_from), evaluate_stage(config.evaluation)
    if n == 0:
        return (evaluate,)
    stages: list[Stage] = []
    files: tuple[str, ...] = ()
    is_stored = bool(config.star.samples_from)
    for hinted in config.star.passes(n):
        stages.append(sampling_stage(hinted, files, is_stored))
        files += stages[-1].outputs
    if config.selection.scores_hints and config.star.passes(n)[-1:] == (True,):
        stages.append(anchoring_stage(is_stored))
        files += stages[-1].outputs
    return *stages, select_stage(*files), fine_tune, evaluate


def run(config: Config, workdir: Path | str, allow_changes: bool = False) -> Path:
    """Runs the whole loop in `workdir`, or continues it there; returns the path of its report.

    `allow_changes`: continue a run with different settings, data, prompts or versions, and record the differences.

    Raises InputError for settings that do not fit each other, the files, or an earlier run in this directory.
    """
    run = setup.open_run(config, Path(workdir), allow_changes)
    try:
        resume_log = ResumeLog(run)
        estimates.report(run)
        run.weights.ensure_base(lambda: setup.make_base(run))
        bookkeeping.check_origins(run)
        last = run.config.star.iterations
        needed = bookkeeping.iterations_in_need_of_weights(run, lambda n: iteration_stages(run.config, n))
        for n in range(last + 1):
            iterate(run, n, iteration_stages(run.config, n), n in needed, resume_log)
            if bookkeeping.stops_early(run, n):
                break
        bookkeeping.delete_weights(run, n)  # of earlier iterations, if they were made again
        path = bookkeeping.write_report(run)
        run.run_dir.seal(run.log.path)
        resume_log.end(path, n)
    except Stopped:
        run.weights.wait()  # a save in progress completes
        raise
    finally:
        run.close()
    return path


def iterate(run: Run, n: int, stages: tuple[Stage, ...], needs_weights: bool, resume_log: ResumeLog) -> None:
    """One outer iteration, M_{n-1} -> M_n: every stage whose outputs do not exist yet, or are needed again."""
    if bookkeeping.is_finished(run, n, needs_weights):
        return
    iteration, from_its_start = Iteration(run, n, needs_weights), not run.run_dir.find(f"iter_{n:03d}/*")
    for i, stage in enumerate(stages):
        if not iteration.is_done(stage):
            resume_log.before_stage(iteration, stage, stages[i + 1 :])
            with run.phases(stage.name):
                stage.run(iteration)
    bookkeeping.finish(run, n, from_its_start)
