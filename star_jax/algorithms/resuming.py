"""What a run that was started before logs: where it continues, what is made again, or that it is finished."""

import logging
from collections.abc import Sequence
from pathlib import Path

from star_jax.algorithms.run import Run
from star_jax.algorithms.stages import WEIGHTS, Iteration, Stage
from star_jax.runs.layout import model_directory

LOG = logging.getLogger("star_jax")


class ResumeLog:
    """Logs at most one line "continuing: ..." in a start of a run, and one line for each stage whose outputs are lost.

    Create it before the base is made. All processes must make the same calls together.
    """

    def __init__(self, run: Run) -> None:
        has_base, has_iterations = run.weights.exists(0), bool(run.run_dir.find("iter_*"))
        if has_iterations and not has_base:
            LOG.info("%s is missing and is made again", model_directory(run.run_dir.workdir, 0))
        self._run, self._continues = run, has_base or has_iterations
        self._nothing_ran, self._trained_again = True, -1

    def before_stage(self, iteration: Iteration, stage: Stage, later: Sequence[Stage]) -> None:
        """Call it before `stage` runs; `later`: the stages of the iteration after it."""
        self._nothing_ran = False
        n = iteration.n
        if not self._continues or n == self._trained_again:  # its evaluations went with its weights
            return
        if self._was_done(n, later):
            missing = [name for name in stage.outputs if not self._run.run_dir.has(n, name)]
            verb = "is missing and is" if len(missing) == 1 else "are missing and are"
            names = ["params" if name == WEIGHTS else name for name in missing]
            LOG.info("iteration %d: %s %s made again", n, ", ".join(names), verb)
            self._trained_again = n if WEIGHTS in stage.outputs else self._trained_again
            return
        place = f"iteration {n}" if n else "the base"
        LOG.info("continuing: %s", ", ".join(filter(None, (place, stage.title, stage.progress(iteration)))))
        self._continues = False

    def end(self, report: Path, iterations: int) -> None:
        """Logs that nothing was left to do, or where the report of this start lies."""
        if self._nothing_ran:
            what = f"{iterations:,} iteration{'s' * (iterations != 1)}"
            LOG.info("this run is finished: %s; the report is at %s", what, report)
        else:
            LOG.info("report: %s", report)

    def _was_done(self, n: int, later: Sequence[Stage]) -> bool:
        """Whether something exists that only comes after a stage's outputs."""
        run_dir = self._run.run_dir
        followed = any(run_dir.has(n, name) for stage in later for name in stage.outputs)
        return followed or run_dir.has(n) or bool(run_dir.find(f"iter_{n + 1:03d}"))
