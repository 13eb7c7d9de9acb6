"""The accuracy that the card, the figures and the tables lead with: the share of all problems of a split solved."""

import dataclasses
from typing import Any

from star_jax.evaluation.results import Rate
from star_jax.report.run_data import RunData, setting


@dataclasses.dataclass(frozen=True)
class Headline:
    """Accuracies of the base and of the best iteration on one split, over all of its problems."""

    split: str
    base: Rate | None  # None: not evaluated on this split
    best: Rate
    iteration: int  # the best; 0: the base
    selecting: Rate  # the best iteration's accuracy on the split on which it was selected

    @property
    def is_optimistic(self) -> bool:
        """True if the accuracy is the one by which the iteration was selected among several."""
        return self.best is self.selecting and self.iteration > 0


def headline(run: RunData) -> Headline | None:
    """The run's headline; None before the first evaluation.

    It is on the reported split, which selects nothing, as soon as the best iteration was evaluated on that.
    """
    best, base = run.iteration(run.best), run.iteration(0)
    if best is None or best.evaluation is None:
        return None
    selecting = best.evaluation.overall
    if best.report_evaluation and best.report_evaluation.overall.accuracy is not None:
        of_base = base.report_evaluation if base else None
        rate = best.report_evaluation.overall
        return Headline(run.report_split, of_base.overall if of_base else None, rate, best.number, selecting)
    of_base = base.evaluation if base else None
    return Headline(run.split, of_base.overall if of_base else None, selecting, best.number, selecting)


def has_test_split(config: dict[str, Any]) -> bool:
    """True if the run's task has a test split that is not the one that selects, as far as its settings show."""
    task = setting(config, "task.name")
    if setting(config, "evaluation.split") == "test":
        return False
    if task == "jsonl":
        return bool(setting(config, "task.test"))
    if task == "commonsense_qa":  # without held_out its dev split is the same file
        return bool(setting(config, "task.held_out"))
    return task in ("arithmetic", "gsm8k")
