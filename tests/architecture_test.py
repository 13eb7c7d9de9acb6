"""The shape of the code: imports go down only, files and functions stay small, every config says what it is."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "star_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

# From the ground up. A module imports from lower floors, and from its own where that makes no circle.
FLOORS = (
    (
        "stopping",
        "errors",
        "checksums",
        "storage",
        "sinks",
        "records",
        "tokenizer",
        "stops",
        "prompting",
        "tasks",
        "filter",
        "alarms",
        "significance",
        "lock",
        "ledger",
        "report",
        "summary",
        "audit",
    ),
    (
        "config",
        "hosts",
        "sharding",
        "cpu",
        "cuda",
        "softmax",
        "kernels",
        "attention",
        "segments",
        "model",
        "cached",
        "loss",
    )
    + ("decoding", "optimizer", "metrics", "hlo", "budget"),
    ("loop", "sampler", "data", "convert"),
    ("checkpoint", "evaluate"),
    ("train",),
    ("pretrain",),
    ("prepare",),
    ("star",),
    ("main", "sample", "t5x_interop", "convert.__main__"),
    ("preflight",),
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
TENSORFLOW = {"seqio", "tensorflow", "tensorflow_datasets", "tensorflow_text", "t5", "t5x", "clu"}
MAY_USE_TENSORFLOW = {"data", "tasks.seqio_task", "t5x_interop"}


def module_of(path: Path) -> str:
    """Dotted name below star_jax; "" is the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports_of(nodes) -> set[str]:
    """Full names of what the import statements among `nodes` ask for: "from a import b" is a.b."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def everywhere(path: Path) -> set[str]:
    return imports_of(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def at_import_time(path: Path) -> set[str]:
    """As `everywhere`, but for what stands inside functions."""
    found, waiting = [], [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        found.append(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return imports_of(found)


def own(names: set[str]) -> set[str]:
    """The modules of star_jax among full names; a name that is no module belongs to the one it stands in."""
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "star_jax":
            candidates = [".".join(parts[1:end]) for end in range(len(parts), 0, -1)]
            found.add(next(candidate for candidate in candidates if candidate in MODULES))
    return found - {""}


def packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def floor(module: str) -> int:
    return FLOOR_OF.get(module, FLOOR_OF[module.split(".")[0]])


INSIDE = [name for name in MODULES if name]


def test_every_module_has_a_floor():
    assert {name.split(".")[0] for name in INSIDE} <= set(FLOOR_OF), "give the new module a floor in FLOORS"


@pytest.mark.parametrize("module", INSIDE)
def test_imports_go_down_only(module):
    upward = {other for other in own(everywhere(MODULES[module])) if floor(other) > floor(module)}
    assert not upward


def test_no_imports_run_in_a_circle():
    graph = {module: own(everywhere(MODULES[module])) - {module} for module in INSIDE}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_the_package_itself_imports_no_module():
    assert own(everywhere(MODULES[""])) == set() and packages(everywhere(MODULES[""])) <= {"importlib", "types"}


@pytest.mark.parametrize("module", [name for name in INSIDE if floor(name) == 0])
def test_the_ground_floor_knows_no_jax(module):
    assert not packages(everywhere(MODULES[module])) & JAX


@pytest.mark.parametrize("module", INSIDE)
def test_tensorflow_is_imported_late_and_in_few_places(module):
    assert not packages(at_import_time(MODULES[module])) & TENSORFLOW
    assert module in MAY_USE_TENSORFLOW or not packages(everywhere(MODULES[module])) & TENSORFLOW


@pytest.mark.parametrize("module", INSIDE)
def test_nothing_that_is_read_is_run(module):
    """Data and models are not trusted: no unpickling, and no text becomes code."""
    assert not packages(everywhere(MODULES[module])) & {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__"}
    keywords = {(k.arg, k.value.value) for c in calls for k in c.keywords if isinstance(k.value, ast.Constant)}
    assert not keywords & {("allow_pickle", True), ("weights_only", False), ("shell", True)}


def test_neither_config_nor_tasks_nor_report_load_jax_or_tensorflow():
    light = ", ".join(
        f"star_jax.{name}" for name in ("config", "report", "audit", "tasks", "tasks.seqio_task", "metrics")
    )
    code = f"import sys, {light}; print(*sorted({JAX | TENSORFLOW!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_model_side_loads_without_seqio_or_tensorflow():
    """A GPU machine may have neither: sampling, training and checkpoints must still import."""
    hide = "for name in ('seqio', 'tensorflow', 'clu'): sys.modules[name] = None"
    code = f"import sys\n{hide}\nimport star_jax.model, star_jax.sampler, star_jax.train, star_jax.checkpoint"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


TEXTS = sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".js", ".css", ".j2", ".html"))


@pytest.mark.parametrize("path", TEXTS + CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_under_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


@pytest.mark.parametrize("path", FILES + CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_under_60_lines(path):
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [f.name for f in functions if f.end_lineno - f.lineno + 1 >= 60] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["arithmetic.txt", "arithmetic_hint.txt", "arithmetic_direct.txt"])
def test_prompts_are_there(name):
    assert (PACKAGE / "prompts" / name).is_file()


def test_configs_are_there():
    assert "arithmetic" in [path.stem for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_begins_with_its_command_hardware_and_expectation(path):
    lines = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()
    for word in ("Command:", "Hardware:", "Expect:"):
        assert any(line.startswith(word) and line.removeprefix(word).strip() for line in lines), word
