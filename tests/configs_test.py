"""The files in configs/: every variant is a config that fits its task, and GPT-J-6B's programs can be made."""

import dataclasses
import functools
import importlib.util
import json
import re
from pathlib import Path

import pytest

from star_jax import config
from star_jax.algorithms import budget, schedule, setup
from star_jax.cli.config_flags import load
from star_jax.errors import InputError
from star_jax.models import families
from star_jax.preflight import programs
from tests.support.tables import every_row

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("*.py"))
CLASSES = {f.name for f in dataclasses.fields(config.Config) if dataclasses.is_dataclass(f.default)}
GPTJ = [path.stem for path in FILES if path.stem.endswith("_gptj")]


@functools.cache
def module(name: str):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def documented(path: Path) -> list[tuple[str, str]]:
    """(file, variant) of the `--config=configs/x.py[:a|:b]` at the head of a config; "" is in each."""
    command = re.search(rf"--config=configs/{path.name}(?:\[([^\]]*)\])?", module(path.stem).__doc__)
    assert command, f"{path.name}: its docstring does not show --config=configs/{path.name}"
    names = [name.lstrip(":") for name in (command.group(1) or "").split("|")]
    return [(path.stem, name) for name in ("", *filter(None, names))]


def typed(name: str, variant: str = "", **task) -> config.Config:
    values = module(name).get_config(variant)
    values.task.update(task)
    if not values.base.stages:
        values.base.path = "a/model"
    return config.from_dict(values)


@every_row(("name", "variant"), [pair for path in FILES for pair in documented(path)])
def test_every_documented_variant_is_a_config_and_survives_json(name, variant):
    settings = typed(name, variant)
    assert config.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@every_row("path", FILES)
def test_an_unknown_variant_is_refused(path):
    with pytest.raises(ValueError, match="no variant 'nonsense'"):
        module(path.stem).get_config("nonsense")


METHODS = sorted((CONFIGS / "methods").glob("*.py"))


@every_row(("method", "name"), [(path, other.stem) for path in METHODS for other in FILES])
def test_a_method_goes_with_every_config_and_changes_its_own_choices_only(method, name):
    plain, values = module(name).get_config(), load(f"{method}:{name}")
    changed = {
        f"{group}.{key}"
        for group in (key for key, value in values.items() if hasattr(value, "items"))
        for key in values[group]
        if values[group][key] != plain[group][key]
    }
    assert {key.partition(".")[0] for key in changed} <= {"star", "selection", "sampling"}
    untouched = {"problems_per_iteration", "schedule", "steps", "epochs", "max_steps", "few_shot_train", "keep_weights"}
    assert not {f"star.{key}" for key in untouched} & changed
    if not values.base.stages:
        values.base.path = "a/model"
    config.from_dict(values)
    assert f"--config=configs/methods/{method.name}" in method.read_text() and "arXiv" in method.read_text()


def test_a_method_takes_variants_files_and_names_what_it_lacks(tmp_path):
    rft = CONFIGS / "methods" / "rft.py"
    assert load(f"{rft}").task.name == "arithmetic"
    assert load(f"{rft}:commonsense_qa:few_shot").star.iterations == 1
    own = tmp_path / "own.py"
    own.write_text((CONFIGS / "gsm8k.py").read_text())
    assert load(f"{rft}:{own}").task.name == "gsm8k"
    with pytest.raises(InputError, match=r"rft.py: --config=none_such: there is no such file"):
        load(f"{rft}:none_such")


def test_a_config_without_a_base_says_what_is_missing():
    with pytest.raises(InputError, match=r"base\.path"):
        config.from_dict(module("gsm8k").get_config())


def test_the_paper_s_schedules():
    """Steps of the loops, from the paper's figures: 40 x 1.2^n capped at loop 30's 7,912; 300 + 20 a loop."""
    gsm8k = typed("gsm8k_gptj").star
    steps = [schedule.fine_tuning_steps(gsm8k, n, 10, 8) for n in range(1, gsm8k.iterations + 1)]
    assert (steps[0], steps[1], steps[28], steps[29], steps[30], steps[-1]) == (40, 48, 6593, 7912, 7912, 7912)
    assert [True in gsm8k.passes(n) for n in (1, 36, 37, 46)] == [False, False, True, True]
    sums = typed("arithmetic_gptj").star
    assert [schedule.fine_tuning_steps(sums, n, 10, 8) for n in (1, 2, 16)] == [300, 320, 600]
    assert schedule.fine_tuning_steps(typed("arithmetic_gptj", "direct").star, 1, 10, 8) == 5000


def test_more_digits_join_at_loop_20_and_longer_ones_are_only_measured():
    task = typed("arithmetic_gptj", "more_digits", train_per_length=3, held_out_per_length=20).make_task()
    lengths = {n: {p.category for p in task.problems("train") if task.available(p, n)} for n in (1, 19, 20, 30)}
    assert lengths[1] == lengths[19] == {"1 digit", *(f"{d} digits" for d in range(2, 6))}
    assert lengths[20] == lengths[30] == {"1 digit", *(f"{d} digits" for d in range(2, 9))}
    assert {p.category for p in task.problems("dev")} == {"1 digit", *(f"{d} digits" for d in range(2, 11))}


@pytest.mark.slow
@pytest.mark.parametrize("name", GPTJ)
def test_gpt_j_6b_s_sampler_and_train_step_are_traced_and_lowered_from_shapes(name):
    """No array of the model is made: 6,050,882,784 parameters over eight devices."""
    settings = typed(name)
    spec = families.spec_of(settings.model)
    mesh, drawing = setup.meshes(settings, spec)
    assert mesh.shape["fsdp"] == drawing.shape["tensor"] == 8
    assert budget.parameter_count(spec) == 6_050_882_784
    lengths = budget.Lengths(1024, 128, settings.make_task().max_new_tokens)
    assert "dot_general" in programs.lower_train_step(settings, spec, mesh).as_text()
    assert "while" in programs.lower_sampling_loop(settings, spec, drawing, lengths).as_text()
    assert "dot_general" in programs.lower_prefix(settings, spec, drawing, lengths).as_text()


README = (CONFIGS / "README.md").read_text(encoding="utf-8")


def test_the_readme_lists_every_file_variant_group_and_replication_option():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines() if line.startswith("| ")]
    first = {name for row in rows for name in re.findall(r"`([\w.]+)`", row[0])}
    assert {path.name for path in CONFIGS.iterdir() if path.suffix in (".py", ".gin")} <= first
    groups = {f.name for f in dataclasses.fields(config.Config) if f.name == "task" or f.name in CLASSES}
    assert groups | {f.name for f in dataclasses.fields(config.ReplicationConfig)} <= first
    for path in FILES:
        row = next(row for row in rows if row[0] == f"`{path.name}`")
        if row[2] != "as above":
            assert set(re.findall(r"\w+", row[2])) == {name for _, name in documented(path)} - {""}, path


def test_the_readme_s_config_is_a_config():
    scope: dict = {}
    exec(re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1), scope)
    settings = config.from_dict(scope["get_config"]())
    assert settings.task["name"] == "jsonl" and settings.make_task().held_out == 200


def test_replication_is_off_by_default_and_in_the_configs_but_where_the_readme_says():
    off = config.ReplicationConfig()
    used = {(name, v) for path in FILES for name, v in documented(path) if typed(name, v).replication != off}
    assert used == {
        *(("arithmetic", v) for v in ("", "no_rationalization", "direct", "weak")),
        ("arithmetic_gptj", "more_digits"),
    }
