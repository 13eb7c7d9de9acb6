"""A user who does what a message advises."""

import re
import shutil
from pathlib import Path


def delete(path: Path) -> None:
    """The file, or the whole directory."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def follow_advice(workdir: Path, line: str) -> bool:
    """Deletes what the line says; returns whether it says to allow changes."""
    allow = "--allow_changes" in line
    named = re.search(r"delete (/\S+)", line) or re.match(r"(/\S+?)(:\d+)?: ", line)
    assert allow or (named and "delete" in line.lower()), line
    path = Path(named[1]) if named else workdir
    paths = [path.parent / name for name in re.findall(r"(?:Delete|it and) (\w+\.jsonl)", line)]
    if re.search(r"elete (it|the file|/)", line):
        paths.append(path)
        paths += [Path(other) for other in re.findall(r"delete /\S+ and (/\S+?),", line)]
    assert allow or paths, line
    assert all(path.exists() and workdir in path.parents for path in paths), line
    for path in paths:
        delete(path)
    return allow
