"""The tasks: those of this package by name, a user's own as "module:Class" or "file.py:Class". See README.md."""

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from star_jax import option_values, user_code
from star_jax.errors import InputError
from star_jax.option_values import CODE, PATH
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
    """The class of a task. Raises InputError for an unknown name, and for code that is no task."""
    if _is_user_code(name):
        return _user_class(name)
    if not isinstance(name, str) or name not in TASKS:
        own = "module:Class or file.py:Class for one of your own"
        raise InputError(f"unknown task {name!r}; there are {', '.join(sorted(TASKS))}, and {own}")
    module, attribute = TASKS[name].split(":")
    return typing.cast(type[Task], getattr(importlib.import_module(module), attribute))


def options(name: str) -> dict[str, Any]:
    """A task's options with their defaults; None for an option that the user must give."""
    fields = dataclasses.fields(task_class(name))
    return {f.name: None if f.default is dataclasses.MISSING else f.default for f in fields}


def as_stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a stored run's task. A run from before `answer_rule` had its values read leniently."""
    values = dict(values)
    if "answer_rule" in options(values["name"]) and values.get("answer_rule") not in ("strict", "lenient"):
        values["answer_rule"] = "lenient"
    return values


def named_code(values: Mapping[str, Any]) -> dict[str, str]:
    """Option -> Python module or "module:name" that a config's `task` would have run; runs nothing of it.

    Raises InputError for an unknown task.
    """
    if _is_user_code(values["name"]):
        return {"name": values["name"]}  # the task's own options may name more
    fields = dataclasses.fields(task_class(values["name"]))
    return {f.name: str(values[f.name]) for f in fields if f.metadata == CODE and values.get(f.name)}


def code_digests(values: Mapping[str, Any]) -> dict[str, str]:
    """Option and "code" -> digest of the user's file that the option of a config's `task` names."""
    return {f"{option} code": user_code.digest(text, option) for option, text in _loaded_code(values).items()}


def code_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Module or file that an option of a config's `task` names -> its text; without packages and their modules."""
    named = {text.rpartition(":")[0]: user_code.text_of(text, option) for option, text in _loaded_code(values).items()}
    return {source: text for source, text in named.items() if text and user_code.stands_alone(source)}


def _loaded_code(values: Mapping[str, Any]) -> dict[str, str]:
    """`named_code` of modules' objects, those of the options of a user's own task too, which is loaded for that."""
    fields = dataclasses.fields(task_class(values["name"]))
    own = {f.name: str(values[f.name]) for f in fields if f.metadata == CODE and values.get(f.name)}
    return {f"task.{option}": text for option, text in (named_code(values) | own).items() if ":" in text}


def make(name: str, **values: Any) -> Task:
    """The task `name` with the given options. Raises InputError for a wrong name, option, type or value."""
    cls = task_class(name)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    types = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in fields:
            raise InputError(f"task {name!r} has no option {key!r}; it has {', '.join(sorted(fields))}")
        expected = types[key]
        if isinstance(expected, type):
            values[key] = option_values.checked(value, expected, f"task.{key}", fields[key].metadata == PATH)
    if missing := [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]:
        raise InputError(f"task {name!r} needs the option {missing[0]!r}; set --config.task.{missing[0]}=...")
    return cls(**values)


def _is_user_code(name: Any) -> bool:
    return isinstance(name, str) and name not in TASKS and ":" in name


def _user_class(name: str) -> type[Task]:
    cls = user_code.load(name, "task.name")
    where = f"task.name={name}"
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise InputError(f"{where}: is no subclass of star_jax.tasks.base.Task")
    if "__dataclass_params__" not in vars(cls):
        raise InputError(f"{where}: put @dataclasses.dataclass(frozen=True) before the class; its fields are options")
    if inspect.isabstract(cls):
        raise InputError(f"{where}: the class does not define {', '.join(sorted(cls.__abstractmethods__))}")
    return cls
