"""Marks the audit.txt of a run as a person would."""

import re
from pathlib import Path

from star_jax.audit import mark_sample
from star_jax.report.marks import audit_file
from star_jax.report.run_data import read_run


def extend(workdir: Path, n: int, iterations: str | None = None) -> mark_sample.MarkSample:
    return mark_sample.extend(read_run(workdir), workdir / "audit.txt", n, iterations)


def mark(workdir: Path, *marks: str) -> None:
    """Writes these marks after the first items that have none."""
    path = workdir / "audit.txt"
    text = path.read_bytes().decode()
    for words in marks:
        text = re.sub(r"^mark:(?=\r?$)", lambda _, words=words: f"mark: {words}", text, count=1, flags=re.MULTILINE)
    path.write_bytes(text.encode())


def items_of(workdir: Path) -> list[audit_file.Item]:
    return audit_file.parse((workdir / "audit.txt").read_bytes().decode(), "audit.txt")
