"""Small shell scripts that stand in for programs."""

from pathlib import Path


def write_script(path: Path, text: str) -> None:
    """Writes an executable bash script, and the folders it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)
