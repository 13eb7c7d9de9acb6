"""The README.md files: length, links, the package tree, and the modules, files, flags and options that they name."""

import ast
import dataclasses
import re
import shutil
from pathlib import Path

from star_jax import config
from star_jax.cli.config_flags import read_config
from star_jax.cli.parser import Parser
from star_jax.study import spec
from star_jax.tasks import few_shot

ROOT = Path(__file__).parents[1]
FOLDERS = ("configs", "launch", "star_jax/tasks", "star_jax/report", "star_jax/runs", "star_jax/weights", "tests")
READMES = [
    ROOT / "README.md",
    *sorted(path for top in ("configs", "launch", "star_jax", "tests") for path in (ROOT / top).rglob("README.md")),
]
MAIN = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_main_readme_is_short():
    lines = MAIN.splitlines()
    assert len(lines) <= 150
    assert not [line for line in lines if len(line) > 120]


def test_each_folder_has_its_readme():
    assert not [name for name in (*FOLDERS, "tests/benchmarks") if not (ROOT / name / "README.md").is_file()]


def test_the_tree_lists_every_package():
    """A line per package or module at the top of star_jax/, in the order of their layers, as tree() prints them."""
    listed = re.findall(r"^      (\w+(?:\.py|/)) +\S", MAIN, re.MULTILINE)
    assert sorted(listed) == sorted(name for name, _ in tree()), "python -m tests.readme_test prints the tree"


def tree() -> list[tuple[str, str]]:
    """Name and first docstring line of everything at the top of star_jax/."""
    rows = []
    for path in sorted((ROOT / "star_jax").iterdir()):
        file = path / "__init__.py" if path.is_dir() else path
        if file.suffix == ".py" and file.is_file() and path.name != "__init__.py":
            about = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            rows.append((f"{path.name}/" if path.is_dir() else path.name, about.split("\n")[0]))
    return rows


def test_links_lead_somewhere():
    """A relative link leads to a file or folder, an anchor to a heading."""
    dead = []
    for readme in READMES:
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(readme.read_text(encoding="utf-8"))):
            if target.startswith(("http:", "https:")):
                continue
            name, _, anchor = target.partition("#")
            path = (readme.parent / name) if name else readme
            if not path.exists() or (anchor and anchor not in anchors(path)):
                dead.append(f"{readme.relative_to(ROOT)}: {target}")
    assert not dead


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_modules_files_flags_and_options_exist():
    wrong = []
    for readme in READMES:
        text = re.sub(r" *\\\n *", " ", readme.read_text(encoding="utf-8"))  # a backslash continues a command
        missing = set()
        for line in text.splitlines():
            missing |= {name for name in re.findall(FILE, line) if not (ROOT / name).exists()}
            missing |= {name for name in re.findall(r"--config\.([a-z]\w*(?:\.\w+)*)", line) if not is_option(name)}
            missing |= unknown_flags(line)
        missing = {name for name in missing if not any(word in name for word in EXAMPLES)}
        wrong += [(str(readme.relative_to(ROOT)), name) for name in sorted(missing)]
    assert not wrong


EXAMPLES = ("NAME", "parity", "task.bits")  # of files and options that a reader makes
FILE = r"(?<![\w./<-])(?:configs|launch|tests|star_jax|\.ci)/[\w./-]*\w\.(?:py|sh|txt|ipynb|gin)\b"


def is_option(name: str) -> bool:
    """True if every part of GROUP.OPTION is a field of a dataclass in config.py or of a task, or it is a study's."""
    if name in spec.OPTIONS:
        return True
    name = name.removeprefix("common.")
    paths = [ROOT / "star_jax/config.py", *ROOT.glob("star_jax/tasks/**/*.py")]
    fields = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    return all(re.search(rf"^    {part}\b *:", fields, re.MULTILINE) for part in name.split("."))


def unknown_flags(line: str) -> set[str]:
    """The module of a command if it does not exist, and the flags of a command that its source does not define."""
    command = re.search(r"python -m (star_jax[\w.]*)|python (tests/[\w/]+\.py)|(launch/run\.sh)", line)
    if not command or "t5x" in line:  # t5x defines its own flags
        return set()
    module, script, launcher = command.groups()
    if launcher:
        files = [ROOT / "launch/flags.sh", ROOT / "star_jax/main.py"]
    else:
        path = ROOT / (script or module.replace(".", "/"))
        files = [file for file in (path.with_suffix(".py"), path / "__main__.py") if file.is_file()]
        if not files:
            return {command.group(0)}
    files += [ROOT / "star_jax/cli/config_flags.py"]
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    flags = re.findall(r"(?<!\S)\[?(--[a-z]\w*)", line[command.end() :])
    return {flag for flag in flags if not re.search(rf"{flag}\b", source)}


def test_the_commands_of_your_own_data_work_in_an_empty_folder(tmp_path, monkeypatch):
    """Up to the prompts, which need no model: the copied files are found and make a run's config and task."""
    section = MAIN[MAIN.index("## Your own data") : MAIN.index("## Your own model")]
    copied, *commands = [line.split("  ")[2].split() for line in section.splitlines() if line.startswith("    ")]
    assert copied[:2] == ["cp", "-r"] and len(commands) == 3
    for path in ROOT.glob(copied[2].removeprefix("~/star_jax/")):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    for program, *arguments in commands:
        assert program == "~/star_jax/launch/run.sh"
        flags = [argument for argument in arguments if argument.startswith("--config")]
        typed = config.from_dict(read_config(Parser("main", ""), flags)[1])
        task = typed.make_task()
        assert {split: len(task.problems(split)) for split in ("train", "dev")} == {"train": 8, "dev": 2}
        assert str(tmp_path) in typed.prompt.directory
        for direct in (False, True):
            as_run = dataclasses.replace(task, direct=direct)
            assert few_shot.load("jsonl", typed.prompt.shots, direct, typed.prompt.directory, as_run).plain
        for problem in task.problems("train"):
            assert task.grade(problem, task.parse(task.reference(problem)))


def test_no_placeholder_is_left():
    texts = {path: path.read_text(encoding="utf-8") for path in READMES}
    assert not [str(path) for path, text in texts.items() if re.search(r"@[A-Z]+@|TODO", text)]
    for path in [*ROOT.glob("configs/*.py"), *ROOT.glob("tests/benchmarks/*.py")]:
        assert "TODO" not in path.read_text(encoding="utf-8"), path


def test_commands_name_the_python_that_has_the_package():
    """`python` alone is another one unless .venv was activated, which no README asks for."""
    bare = re.compile(r"^    .*(?<![\w/])(?:python3?|pip) (?:-m|tests/|install)", re.MULTILINE)
    assert not [(str(path), line) for path in READMES for line in bare.findall(path.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    for name, about in tree():
        print(f"      {name:<14} {about}")
