"""Problems that a user puts to a run's model: lines in the format of the task's files, or with the keys of "jsonl"."""

from collections.abc import Callable, Iterable, Iterator

from star_jax.errors import InputError
from star_jax.records import Problem
from star_jax.tasks import jsonl
from star_jax.tasks.base import Task
from star_jax.tasks.data_files import objects_of


def read(
    task: Task, lines: Iterable[bytes], name: str, check: Callable[[Problem], None] = lambda problem: None
) -> Iterator[Problem]:
    """Yields the problem of each line of `name` that is not blank; its answer is "" if the line has none.

    `check` raises InputError for a problem that the model cannot be given.

    Raises InputError with the line's number for a bad line, and for an answer that no completion of the task gives.
    """
    for location, values in objects_of(lines, name):
        try:
            if isinstance(values, ValueError):
                raise values
            number = location.rpartition(":")[2]
            problem = task.own_problem(values, number) or jsonl.problem_of(values, number)
            if problem.answer and not task.grade(problem, problem.answer):
                raise ValueError(f"no completion of this task gives the answer {problem.answer[:60]!r}")
        except ValueError as error:
            raise InputError(f'{location}: {error}; each line must be JSON like {{"question": "..."}}') from error
        try:
            check(problem)
        except InputError as error:
            raise InputError(f"{location}: {error}") from error
        yield problem
