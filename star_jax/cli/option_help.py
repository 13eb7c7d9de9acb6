"""Every option with its default and its comment, read from the source of config.py and of the tasks.

The comments are the one description of an option, and Python drops them. This file imports the standard library only
and runs as a program, so that `launch/run.sh --help` lists the options where nothing is installed.
"""

import ast
import dataclasses
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
WIDTH, COLUMN = 100, 32  # characters of a line; where the comments begin


@dataclasses.dataclass(frozen=True)
class Option:
    """One option, as `--config.GROUP.NAME=DEFAULT` has it."""

    name: str
    default: str
    comment: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Options with one prefix: the fields of one dataclass."""

    prefix: str  # "star."; "" for options of no group
    title: str
    options: tuple[Option, ...]


def groups() -> tuple[Group, ...]:
    """The groups of config.py in its order, then each task's options."""
    classes = _classes(PACKAGE / "config.py")
    return (*_config_groups(classes, "Config", ""), *_task_groups())


def overview(prefix: str = "") -> str:
    """The names of all options by group: about a screen. `prefix`: where the command's config has them, "common."."""
    by_prefix: dict[str, dict[str, None]] = {}
    for group in groups():
        by_prefix.setdefault(group.prefix, {}).update(dict.fromkeys(option.name for option in group.options))
    lines = []
    for group_prefix, names in by_prefix.items():
        label = group_prefix.rstrip(".") or "(no group)"
        lines += textwrap.wrap(
            f"{label:16}{' '.join(names)}", WIDTH, initial_indent="  ", subsequent_indent=" " * 18,
            break_on_hyphens=False,
        )  # fmt: skip
    option = f"--config.{prefix}"
    head = f"options of the config: {option}GROUP.OPTION=VALUE, e.g. {option}star.iterations=3 or {option}limit=20"
    return "\n".join([head, *lines, "", "  --helpfull describes every option, --helpfull=GROUP those of a group"])


def full(prefix: str = "") -> str:
    """Every option with its default and its comment; with `prefix`, those of one group ("": there is none)."""
    parts = []
    for group in groups():
        if prefix and group.prefix.partition(".")[0] != prefix:
            continue
        lines = [*textwrap.wrap(group.title, WIDTH)]
        for option in group.options:
            lines += _lines(f"{group.prefix}{option.name}={option.default}", option.comment)
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _lines(option: str, comment: str) -> list[str]:
    """The option and its comment in two columns; a long option has a line of its own."""
    text = textwrap.wrap(comment, WIDTH - COLUMN, break_on_hyphens=False, break_long_words=False)
    indented = [f"{'':{COLUMN}}{line}" for line in text]
    if len(option) + 4 <= COLUMN and text:
        return [f"  {option:{COLUMN - 2}}{text[0]}", *indented[1:]]
    return [f"  {option}", *indented]


def _config_groups(classes: dict[str, tuple[ast.ClassDef, dict[int, str]]], name: str, prefix: str) -> Iterator[Group]:
    node, comments = classes[name]
    nested = [(field, kind) for field in _fields(node) if (kind := _group_of(field, classes))]
    own = [field for field in _fields(node) if _group_of(field, classes) is None and _name(field) != "task"]
    yield Group(prefix, _title(prefix, node), tuple(_option(field, comments) for field in own))
    for field, kind in nested:
        item = "[0]" if ast.unparse(field.annotation).startswith("tuple") else ""
        yield from _config_groups(classes, kind, f"{prefix}{_name(field)}{item}.")


def _task_groups() -> Iterator[Group]:
    classes: dict[str, tuple[ast.ClassDef, dict[int, str]]] = {}
    for path in sorted((PACKAGE / "tasks").rglob("*.py")):
        classes.update(_classes(path))
    moved = _constant(PACKAGE / "option_names.py", "MOVED")  # they are set by other options
    registry = (PACKAGE / "tasks/__init__.py").read_text(encoding="utf-8")
    for task, name in re.findall(r'"(\w+)": "star_jax\.tasks\.\w+:(\w+)"', registry):
        fields: dict[str, Option] = {}
        for ancestor in reversed(_ancestors(classes, name)):
            node, comments = classes[ancestor]
            for field in _fields(node):
                option, inherited = _option(field, comments), fields.get(_name(field))
                if inherited and not option.comment:
                    option = dataclasses.replace(option, comment=inherited.comment)
                if f"task.{option.name}" not in moved:
                    fields[option.name] = option
        title = f"task.* of {task}: {_about(classes[name][0])}"
        yield Group("task.", title, tuple(fields.values()))


def _ancestors(classes: dict[str, tuple[ast.ClassDef, dict[int, str]]], name: str) -> list[str]:
    """A class and its bases, as far as they are classes of the same folder."""
    bases = [base.id for base in classes[name][0].bases if isinstance(base, ast.Name) and base.id in classes]
    return [name, *(ancestor for base in bases for ancestor in _ancestors(classes, base))]


def _classes(path: Path) -> dict[str, tuple[ast.ClassDef, dict[int, str]]]:
    """Each dataclass of a file, and the file's comments by line; those with a line of their own begin with "\\n"."""
    source = path.read_text(encoding="utf-8")
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            own_line = not token.line[: token.start[1]].strip()
            comments[token.start[0]] = "\n" * own_line + token.string.lstrip("# ")
    return {node.name: (node, comments) for node in ast.parse(source).body
            if isinstance(node, ast.ClassDef) and node.decorator_list}  # fmt: skip


def _constant(path: Path, name: str) -> dict[str, str]:
    """The value of a module's constant, a literal."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            value: dict[str, str] = ast.literal_eval(statement.value)
            return value
    raise ValueError(f"{path}: has no {name}")


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [statement for statement in node.body if isinstance(statement, ast.AnnAssign)
            and "ClassVar" not in ast.unparse(statement.annotation)]  # fmt: skip


def _name(field: ast.AnnAssign) -> str:
    return ast.unparse(field.target)


def _group_of(field: ast.AnnAssign, classes: dict[str, tuple[ast.ClassDef, dict[int, str]]]) -> str | None:
    """The dataclass of a field that is itself a group of options, or a list of groups."""
    match = re.fullmatch(r"(?:tuple\[)?(\w+)(?:, \.\.\.\])?", ast.unparse(field.annotation))
    return match[1] if match and match[1] in classes else None


def _option(field: ast.AnnAssign, comments: dict[int, str]) -> Option:
    first, last = field.lineno, field.end_lineno or field.lineno
    above = first
    while comments.get(above - 1, "").startswith("\n"):
        above -= 1
    text = " ".join(comments[line].strip() for line in range(above, last + 1) if line in comments)
    return Option(_name(field), _default(field.value), text)


def _default(value: ast.expr | None) -> str:
    """The default as a command line has it."""
    if isinstance(value, ast.Call):  # dataclasses.field(default=...)
        value = next((keyword.value for keyword in value.keywords if keyword.arg == "default"), None)
    if value is None:
        return ""
    try:
        return str(ast.literal_eval(value))
    except ValueError:
        return ast.unparse(value)


def _title(prefix: str, node: ast.ClassDef) -> str:
    return f"{prefix}*: {_about(node)}" if prefix else _about(node)


def _about(node: ast.ClassDef) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())


if __name__ == "__main__":
    usage = ast.get_docstring(ast.parse((PACKAGE / "main.py").read_text(encoding="utf-8"))) or ""
    wanted = next((flag.partition("=")[2] for flag in sys.argv[1:] if flag.startswith("--helpfull")), None)
    print(f"{usage}\n\n{overview() if wanted is None else full(wanted)}")
