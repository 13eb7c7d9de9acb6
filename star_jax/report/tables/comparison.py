"""Paired comparisons of two models that a run selected, with p values that allow for the selection.

The best iteration was chosen among several by its accuracy on `split`. On the same problems its lead over the base is
partly luck: of 2,000 simulated runs of 20 iterations without any effect, 17 % have p < 0.05 in McNemar's test. So a
comparison uses the reported split, which selects nothing, where both models were evaluated on it. Otherwise p is
multiplied by the number of comparisons among which this one was chosen (Bonferroni): 1 % of those runs.
"""

import dataclasses

from star_jax.evaluation import statistics
from star_jax.records import Problem
from star_jax.report.run_data import RunData, read_records, solved_by_problem


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two models on the problems of a split that both were given."""

    paired: statistics.Paired
    split: str
    choices: int  # comparisons among which this one was chosen by its accuracies on this split; 1: none

    @property
    def p(self) -> float:
        """Two-sided p value, corrected for the choice."""
        return min(1.0, self.choices * self.paired.p)


def with_base(run: RunData) -> Comparison | None:
    """The base and the best iteration; None if the base is the best, or one of them was not evaluated."""
    if not run.best:
        return None
    return _compare(run, 0, run, run.best, choices=sum(number > 0 for number in _evaluated(run)))


def of_best(first: RunData, second: RunData) -> Comparison | None:
    """The best iterations of two runs; None if no problems were given to both."""
    if first.best is None or second.best is None or first.split != second.split:
        return None
    if not _on_record(first) or not _on_record(second):
        return None  # of two earlier versions' runs equal ids are no sign of equal questions
    choices = len(_evaluated(first)) * len(_evaluated(second))
    return _compare(first, first.best, second, second.best, choices)


def _compare(first: RunData, first_number: int, second: RunData, second_number: int, choices: int) -> Comparison | None:
    if first.report_split == second.report_split and _selects_nothing(first) and _selects_nothing(second):
        reported = statistics.paired(
            solved_by_problem(first, first_number, first.report_split),
            solved_by_problem(second, second_number, second.report_split),
        )
        if reported:
            return Comparison(reported, first.report_split, choices=1)
    selected = statistics.paired(solved_by_problem(first, first_number), solved_by_problem(second, second_number))
    return Comparison(selected, first.split, choices) if selected else None


def _evaluated(run: RunData) -> list[int]:
    return [iteration.number for iteration in run.iterations if iteration.evaluation]


def _on_record(run: RunData) -> bool:
    """Whether completions name the contents of their problems."""
    return all(fingerprint for _, fingerprint in solved_by_problem(run, run.best))


def _selects_nothing(run: RunData) -> bool:
    """Whether the reported split has other questions than the one that selects: two splits may share a file."""
    reported = read_records(Problem, run.directory / f"problems_{run.report_split}.jsonl")
    return not {problem.question for problem in reported} & {problem.question for problem in run.problems}
