"""What a run of a study came to: the problems that it solved, and the tokens that it took. No JAX here."""

import dataclasses
from pathlib import Path

from star_jax.json_reader import is_present
from star_jax.records import ProblemKey
from star_jax.report.run_data import RunData, read_run, solved_by_problem
from star_jax.report.run_status import is_finished
from star_jax.report.samples import sample_stats


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished run."""

    run: RunData
    iteration: int  # whose accuracy counts
    solved: dict[ProblemKey, bool]  # by problem
    sampled: int  # tokens of all train samples, with and without hints
    trained: int  # tokens that the training steps saw, prompts included, without padding

    @property
    def accuracy(self) -> float:
        """The share of the problems that are solved."""
        return sum(self.solved.values()) / len(self.solved)


def read(directory: Path, outcome: str, split: str) -> Outcome | None:
    """The outcome of a run directory; None if the run is not finished.

    Args:
      outcome: "last" or "best"; see spec.study.
      split: whose accuracies are compared.

    Raises InputError for a broken file.
    """
    if not is_present(directory / "config.json"):
        return None
    run = read_run(directory)
    if not is_finished(run):
        return None
    done = max(iteration.number for iteration in run.iterations if iteration.done)
    chosen = run.best if outcome == "best" else done
    solved = solved_by_problem(run, chosen, split)
    if chosen is None or not solved:
        return None
    stats = [sample_stats(each, name) for each in run.iterations for name in ("samples", "rationalizations")]
    trained = sum((each.fine_tuning or {}).get("tokens", 0.0) for each in run.iterations)
    return Outcome(run, chosen, solved, sum(each.tokens for each in stats if each), round(trained))
