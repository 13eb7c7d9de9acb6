"""The one definition of a run's best iteration, for evaluation, weight retention, console and report. No JAX here."""

from collections.abc import Mapping
from types import MappingProxyType


def best_iteration(accuracy: Mapping[int, float], problems: Mapping[int, str] = MappingProxyType({})) -> int:
    """The iteration with the highest accuracy on the split that selects; of equal ones the earliest.

    Args:
      accuracy: by iteration, 0 for the base model; at least one entry.
      problems: by iteration, `accuracy.problem_set` of the evaluated problems. If the data changed in the course of a
        run, only iterations that were evaluated on the problems of the last one are compared.
    """
    last = problems.get(max(accuracy))
    accuracy = {iteration: value for iteration, value in accuracy.items() if problems.get(iteration) == last}
    return min(accuracy, key=lambda iteration: (-accuracy[iteration], iteration))
