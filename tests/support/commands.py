"""Runs commands of the checkout as processes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the checkout


def python(*arguments: str) -> subprocess.CompletedProcess:
    """Runs this Python in the checkout; captures both streams as text."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
