"""star_jax.config: every option is checked at the door, and every file of configs/ passes it."""

import dataclasses
import json
import re

import pytest

from star_jax import config, tasks
from star_jax.config import BaseStage, Config, from_dict
from star_jax.errors import InputError
from tests.support.tables import every_row

STAGE = {"steps": 10, "learning_rate": 1e-3, "gold": [1.0]}


def plain() -> dict:
    """A config that is right, as it is read from a config.json."""
    values = config.default("arithmetic").to_dict()
    values["base"]["stages"] = [dict(STAGE)]
    values["model"].update(d_model=4096, n_heads=16)
    return json.loads(json.dumps(values))


def leaves(cls=Config, place=()) -> list[tuple[tuple, type]]:
    """(path, type) of every option; a stage of the base is one of the groups."""
    found = []
    for name, expected in config.typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(expected):
            found += leaves(expected, (*place, name))
        elif (*place, name) == ("base", "stages"):
            found += leaves(BaseStage, (*place, name, 0))
        elif name != "task":
            found.append(((*place, name), expected))
    return found


def groups() -> list[tuple]:
    return sorted({path[:-1] for path, _ in leaves()}, key=str)


def dotted(path: tuple) -> str:
    return ".".join(("config", *map(str, path))).replace(".0", "[0]")


def replaced(path: tuple, value) -> dict:
    values = plain()
    group = values
    for key in path[:-1]:
        group = group[key]
    group[path[-1]] = value
    return values


WRONG = {int: ["3", 1.5, True, None], float: ["0.5", True, None], str: [3, None, ["bytes"]], bool: ["true", 1, None]}


@every_row(("path", "expected"), leaves())
def test_a_value_of_the_wrong_type_is_refused_by_name(path, expected):
    for value in WRONG.get(expected, [3, "1.0", ["x"], None]):
        with pytest.raises(InputError, match=re.escape(dotted(path))):
            from_dict(replaced(path, value))


NUMBERS = [(path, expected) for path, expected in leaves() if expected in (int, float)]


@every_row(("path", "expected"), NUMBERS)
def test_a_negative_number_is_refused_by_name(path, expected):
    with pytest.raises(InputError, match=path[-1]):
        from_dict(replaced(path, expected(-2)))


@every_row("path", [p for p, expected in leaves() if expected is float])
def test_not_a_number_is_refused_and_an_integer_is_taken_for_a_float(path):
    with pytest.raises(InputError, match=path[-1]):
        from_dict(replaced(path, float("nan")))
    typed = from_dict(replaced(path, 1 if path[-1] not in ("b1", "b2") else 0))
    for key in path:
        typed = typed[key] if isinstance(key, int) else getattr(typed, key)
    assert isinstance(typed, float)


@every_row(("path", "expected"), NUMBERS)
def test_a_number_that_is_not_finite_or_far_too_large_is_refused_by_name(path, expected):
    for value in (10**400, 10**11, float("inf")) if expected is float else (10**400, 10**11):
        with pytest.raises(InputError, match=path[-1]) as refused:
            from_dict(replaced(path, value))
        assert len(str(refused.value)) < 200


@every_row("path", [p for p, expected in leaves() if expected is str])
def test_a_literal_is_not_taken_as_a_text(path):
    for value in ("None", "null", "False", "true"):
        with pytest.raises(InputError, match=re.escape(f"{dotted(path)}: {value!r} would be taken as a text")):
            from_dict(replaced(path, value))


@every_row("path", groups())
def test_an_unknown_option_is_refused_by_name(path):
    with pytest.raises(InputError, match=re.escape(f"{dotted(path)} has no option 'nonsense'")):
        from_dict(replaced((*path, "nonsense"), 1))


@every_row("path", [p for p in groups() if p])
def test_a_group_that_is_no_group_is_refused_by_name(path):
    with pytest.raises(InputError, match=re.escape(f"{dotted(path)} must be a group of options, got 3")):
        from_dict(replaced(path, 3))


@every_row(
    ("path", "value", "reason"),
    [
        (("star", "iteration"), 1, "config.star has no option 'iteration'; did you mean 'iterations'?"),
        (("star", "restart_from"), "bas", "star.restart_from must be one of base, previous, got 'bas'"),
        (("star", "schedule"), "", "star.schedule must be one of exponential, linear, epochs"),
        (
            ("replication", "rationalize_probability"),
            1.5,
            "replication.rationalize_probability must be between 0 and 1, got 1.5",
        ),
        (("replication", "hint_keep_probability"), 2, "replication.hint_keep_probability must be between 0 and 1"),
        (("star", "step_growth"), 0.0, "star.step_growth"),
        (("star", "step_growth"), 60.0, "star.step_growth=60.0 gives iteration 5 more than 100000000 steps"),
        (("sampling", "temperature"), 1e-38, "sampling.temperature must be 0 (greedy) or between 0.001 and 1000"),
        (("optimizer", "b1"), 1.0, "optimizer.b1 must be at least 0 and at most 0.999999, got 1.0"),
        (("optimizer", "eps"), 0.0, "optimizer.eps must be between 1e-30 and 1, got 0.0"),
        (("base", "stages", 0, "gold"), [float("nan")], "config.base.stages[0].gold[0] must be a finite number"),
        (("task", "max_digits"), 5000, "max_digits, later_digits and eval_digits must be at most 100"),
        (("task", "train_per_length"), 10**9, "train_per_length"),
        (("compile_cache",), "gs://bucket/xla", "config.compile_cache=gs://bucket/xla: is a URL"),
        (("sampling", "top_p"), 0.0, "sampling.top_p must be greater than 0 and at most 1, got 0.0"),
        (("sampling", "prefill_tokens"), 0, "sampling.prefill_tokens must be at least 1, got 0"),
        (("optimizer", "decay"), "step", "optimizer.decay must be one of constant, linear, cosine"),
        (("model", "compute_dtype"), "float16", "model.compute_dtype must be one of float32, bfloat16"),
        (("mesh", "data"), 0, "mesh.data and mesh.fsdp must be at least 1"),
        (("train", "row_tokens"), 1, "train.row_tokens must be at least 2, got 1"),
        (("base", "examples"), 0, "base.examples must be at least 1"),
        (("base", "stages"), [], "give base.path"),
        (("base", "stages"), 3, "config.base.stages must be a list, got 3"),
        (("base", "stages", 0, "gold"), [0.6, 0.6], "base.stages: the shares in `gold`"),
        (("base", "stages", 0, "gold"), [-0.1], "base.stages: the shares in `gold`"),
        (("base", "stages", 0, "steps"), 0, "base.stages.steps must be at least 1, got 0"),
        (("base", "stages", 0, "gold"), ["x"], "config.base.stages[0].gold[0] must be float, got 'x'"),
        (("task",), "arithmetic", "config.task must hold the task's name and options"),
        (("task",), {"max_digits": 3}, "config.task must hold the task's name and options"),
        (("task", "name"), "arithmetics", "unknown task 'arithmetics'; there are arithmetic"),
        (("task", "name"), ["arithmetic"], "unknown task ['arithmetic']"),
        (("task", "max_digit"), 3, "task 'arithmetic' has no option 'max_digit'"),
        (("task", "max_digits"), "3", "task.max_digits must be int, got '3'"),
        (("task", "max_digits"), True, "task.max_digits must be int, got True"),
        (("task", "max_digits"), 0, "min_digits <= max_digits"),
        (("task", "train_per_length"), 0, "train_per_length"),
        (("task", "direct"), True, "its name is now config.star.direct"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_it_may_be(path, value, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        from_dict(replaced(path, value))


def test_the_right_config_is_right_and_survives_json():
    typed = from_dict(plain())
    assert typed.base.stages == (BaseStage(10, 1e-3, (1.0,)),)
    assert from_dict(json.loads(json.dumps(typed.to_dict()))) == typed


def test_default_holds_every_option_of_config_and_task():
    values = config.default("arithmetic")
    for path, _ in leaves():
        if "stages" not in path:
            group = values
            for key in path:
                group = group[key]
    elsewhere = {"direct", "later_digits", "later_from"}
    assert values.task.name == "arithmetic"
    assert set(values.task) - {"name"} == set(tasks.options("arithmetic")) - elsewhere
    assert Config().to_dict()["star"] == values.star.to_dict()


@every_row("task", sorted(tasks.TASKS))
def test_every_task_has_a_default_config(task):
    assert config.default(task).task.name == task


def test_a_default_needs_a_base():
    with pytest.raises(InputError, match=re.escape("give base.path")):
        from_dict(config.default("arithmetic"))


def test_an_option_that_moved_is_refused_with_its_new_name():
    wrong = []
    for old, new in config.MOVED.items():
        path = tuple(old.split("."))
        expected = f"config.{path[0]} has no option {path[1]!r}; its name is now config.{new}"
        try:
            from_dict(replaced(path, 1))
            wrong.append((old, "accepted"))
        except InputError as error:
            if str(error) != expected:
                wrong.append((old, str(error)))
    assert not wrong


def test_later_digits_reach_the_arithmetic_task_and_no_other():
    values = replaced(("replication", "later_digits"), 7)
    values["replication"]["later_from"] = 3
    task = from_dict(values).make_task()
    assert (task.later_digits, task.later_from) == (7, 3)
    values["task"] = {"name": "gsm8k"}
    with pytest.raises(InputError, match=re.escape("replication.later_digits must be 0: task 'gsm8k'")):
        from_dict(values)


def test_star_direct_makes_the_task_direct():
    assert from_dict(replaced(("star", "direct"), True)).make_task().direct
    assert not from_dict(plain()).make_task().direct


def test_a_typed_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        from_dict(plain()).seed = 1
