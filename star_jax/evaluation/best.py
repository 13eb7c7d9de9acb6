"""The one definition of a run's best iteration, for evaluation, weight retention, console and report. No JAX here."""

from collections.abc import Mapping


def best_iteration(accuracy: Mapping[int, float]) -> int:
    """The iteration with the highest accuracy on the split that selects; of equal ones the earliest.

    Args:
      accuracy: by iteration, 0 for the base model; at least one entry.
    """
    return min(accuracy, key=lambda iteration: (-accuracy[iteration], iteration))
