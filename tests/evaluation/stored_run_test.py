"""star_jax.evaluation.stored_run: a run's directory is data, and nothing that its files name is run."""

import ast
import json
import shutil
import sys
import types

import pytest

from star_jax import config, evaluate, sample, tasks, user_code
from star_jax.errors import InputError
from star_jax.evaluation import stored_run
from star_jax.runs import layout
from star_jax.runs.run_directory import RunDirectory
from tests.support.commands import ROOT


def received(tmp_path, **options):
    """A run directory whose config.json names the module `planted`, which is importable and leaves a trace."""
    values = config.default("seqio_task").to_dict()
    values["base"]["path"] = "somewhere"
    values["task"].update(task="numbers", module="planted")
    values |= options
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(values))
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'TRACE')!r}, 'w').close()\n")
    return run


@pytest.mark.parametrize("command", [evaluate, sample])
def test_a_module_that_a_run_names_is_imported_only_with_the_flag(command, tmp_path, monkeypatch):
    def lookup(name):
        raise ValueError(name)

    run = received(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    monkeypatch.setitem(sys.modules, "seqio", types.SimpleNamespace(get_mixture_or_task=lookup))
    monkeypatch.setattr(sys, "argv", ["x", f"--workdir={run}", "--iteration=0"])
    with pytest.raises(
        InputError, match=r"config.json: task.module names the Python module 'planted'; .*--allow_import"
    ):
        command.main()
    assert not (tmp_path / "TRACE").exists() and "planted" not in sys.modules
    monkeypatch.setattr(stored_run.checkpoint, "exists", lambda directory: True)
    stored = stored_run.open_iteration(run, "0", allow_import=True)
    with pytest.raises(InputError, match="no seqio Task or Mixture 'numbers'"):
        stored.task.problems("dev")
    assert (tmp_path / "TRACE").exists()


def test_a_task_or_a_grader_that_a_run_names_is_run_only_with_the_flag(tmp_path):
    run = received(tmp_path)
    for task, option in (
        ({"name": f"{tmp_path}/planted.py:Task"}, "name"),
        ({"name": "jsonl", "train": "x.jsonl", "grader": f"{tmp_path}/planted.py:grade"}, "grader"),
    ):
        values = json.loads((run / "config.json").read_text()) | {"task": task}
        (run / "config.json").write_text(json.dumps(values))
        with pytest.raises(InputError, match=rf"config.json: task.{option} names the Python module .*--allow_import"):
            stored_run.open_iteration(run, "0")
        assert not (tmp_path / "TRACE").exists()
        with pytest.raises(InputError, match=f"task.{option}.*defines no"):
            stored_run.open_iteration(run, "0", allow_import=True)
        assert (tmp_path / "TRACE").exists()
        (tmp_path / "TRACE").unlink()
        sys.modules.pop(str(tmp_path / "planted.py"))


def test_code_that_has_changed_since_the_run_is_refused(tmp_path, monkeypatch):
    """An accuracy by another grader would lie in the run as if it were the run's."""
    run, file = received(tmp_path), tmp_path / "graders.py"
    file.write_text("def grade(problem, answer):\n    return answer == problem.answer\n")
    grader = f"{file}:grade"
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(
        json.dumps({**values, "task": {"name": "jsonl", "train": "x.jsonl", "grader": grader}})
    )
    monkeypatch.setattr(stored_run.checkpoint, "exists", lambda directory: True)
    world = {"task.grader code": user_code.digest(grader, "task.grader")}
    (run / "provenance.json").write_text(json.dumps({"world": world, "changes": []}))
    assert stored_run.open_iteration(run, "0", allow_import=True).number == 0
    file.write_text("def grade(problem, answer):\n    return True\n")
    with pytest.raises(InputError, match=r"provenance\.json: the file that task\.grader names has changed since"):
        stored_run.open_iteration(run, "0", allow_import=True)


def test_the_last_iteration_is_the_latest_whose_model_is_stored(tmp_path, monkeypatch):
    run = received(tmp_path)
    for n in (0, 1, 2, 10):
        (run / f"iter_{n:03d}").mkdir()
    stored = {layout.model_directory(run, n) for n in (0, 1, 2)}
    monkeypatch.setattr(stored_run.checkpoint, "exists", lambda directory: directory in stored)
    assert stored_run.open_iteration(run, "last", allow_import=True).number == 2


def test_compiled_programs_that_a_run_names_are_not_used(tmp_path, monkeypatch):
    """JAX loads machine code from such a directory."""
    run = received(tmp_path, compile_cache=str(tmp_path / "planted_cache"))
    monkeypatch.setattr(stored_run.checkpoint, "exists", lambda directory: True)
    stored = stored_run.open_iteration(run, "0", allow_import=True)
    assert stored.config.compile_cache == config.Config().compile_cache


def test_the_best_iteration_is_that_of_well_formed_evaluations(tmp_path):
    run_dir = RunDirectory(tmp_path)
    for n, accuracy in enumerate((0.25, 0.75, 0.5)):
        run_dir.write_json(run_dir.path(n, "eval_dev.json"), {"accuracy": accuracy, "problem_set": "a"})
    shutil.copytree(run_dir.path(2), tmp_path / "iter_old")  # a user's copy
    assert stored_run.best_iteration(run_dir, "dev") == 1
    path = run_dir.path(1, "eval_dev.json")
    for key, value in [("accuracy", "0.75"), ("accuracy", 2), ("accuracy", []), ("problem_set", 5)]:
        run_dir.write_json(path, {"accuracy": 0.75, "problem_set": "a", key: value})
        with pytest.raises(InputError, match=rf"iter_001/eval_dev\.json: '{key}' should be .*; delete the file"):
            stored_run.best_iteration(run_dir, "dev")


def test_every_place_that_runs_code_by_its_name_is_known():
    """Whoever adds one decides here whether a run's files can choose the name."""
    places = {
        "__init__.py": {"importlib.import_module"},  # fixed names, here and in contrib
        "contrib/t5x/importing.py": {"importlib.import_module"},
        "tasks/__init__.py": {"importlib.import_module"},  # of the table TASKS
        "tasks/seqio_task.py": {"importlib.import_module"},  # task.module: CODE
        # task.name, task.grader: CODE, or tasks.named_code
        "user_code.py": {
            "importlib.import_module",
            "importlib.util.spec_from_file_location",
            "importlib.util.find_spec",
            "exec",
            "compile",  # the same as the run stored it: stored_run._take_stored_code
        },
        "cli/config_flags.py": {"exec", "compile"},  # --config=FILE: README says that it is a program
        "contrib/t5x/__main__.py": {"runpy.run_module"},  # t5x.main
        "weights/sources/location.py": {"importlib.util.find_spec"},  # of the table PACKAGES
    }
    names = ("exec", "eval", "compile", "__import__", "importlib.import_module", "importlib.util.find_spec")
    names += ("importlib.util.spec_from_file_location",)
    names += ("runpy.run_module", "runpy.run_path", "os.system", "subprocess.run", "subprocess.Popen")
    found: dict[str, set[str]] = {}
    for path in (ROOT / "star_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
                found.setdefault(str(path.relative_to(ROOT / "star_jax")), set()).add(ast.unparse(node.func))
    assert found == places


def test_a_run_from_before_the_strict_reader_is_evaluated_leniently():
    for name, stored in (("gsm8k", "marker"), ("gsm8k", "last_number"), ("commonsense_qa", None), ("jsonl", None)):
        values = {"name": name, "held_out": 5} | ({"answer_rule": stored} if stored else {})
        assert tasks.as_stored(values) == {"name": name, "held_out": 5, "answer_rule": "lenient"}
        assert tasks.as_stored({**values, "answer_rule": "strict"})["answer_rule"] == "strict"
    assert tasks.as_stored({"name": "arithmetic"}) == {"name": "arithmetic"}
