"""The tasks, by name. To add one, see README.md: a class in a module of this package and a line in TASKS."""

import dataclasses
import importlib
import typing
from typing import Any

from star_jax.errors import InputError
from star_jax.tasks.base import Task

# name -> "module:class". Imported on first use: `seqio_task` needs TensorFlow, the others must not import it.
TASKS = {
    "commonsense_qa": "star_jax.tasks.commonsense_qa:CommonsenseQa",
    "gsm8k": "star_jax.tasks.gsm8k:Gsm8k",
    "jsonl": "star_jax.tasks.jsonl:Jsonl",
    "arithmetic": "star_jax.tasks.arithmetic:Arithmetic",
    "seqio_task": "star_jax.tasks.seqio_task:SeqioTask",
}


def task_class(name: str) -> type[Task]:
    """The class of a task. Raises InputError for an unknown name."""
    if not isinstance(name, str) or name not in TASKS:
        raise InputError(f"unknown task {name!r}; there are {', '.join(sorted(TASKS))}")
    module, attribute = TASKS[name].split(":")
    return typing.cast(type[Task], getattr(importlib.import_module(module), attribute))


def options(name: str) -> dict[str, Any]:
    """A task's options with their defaults; None for an option that the user must give."""
    fields = dataclasses.fields(task_class(name))
    return {f.name: None if f.default is dataclasses.MISSING else f.default for f in fields}


def make(name: str, **values: Any) -> Task:
    """The task `name` with the given options. Raises InputError for a wrong name, option, type or value."""
    cls = task_class(name)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in fields:
            raise InputError(f"task {name!r} has no option {key!r}; it has {', '.join(sorted(fields))}")
        expected = fields[key].type
        if isinstance(expected, type) and (
            not isinstance(value, expected) or isinstance(value, bool) != (expected is bool)
        ):
            raise InputError(f"task.{key} must be {expected.__name__}, got {value!r}")
    if missing := [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]:
        raise InputError(f"task {name!r} needs the option {missing[0]!r}; set --config.task.{missing[0]}=...")
    return cls(**values)
