"""Where tests keep compiled programs between runs. Does not import JAX, which reads the place when it is imported."""

import tempfile
from importlib.metadata import version
from pathlib import Path

from star_jax.distributed import compile_cache

LIMIT = 2**30  # bytes; a whole suite's programs take 20 to 50 MB


def directory() -> str:
    """~/.cache/star_jax/tests/<jax's version>-<processor>, or a new temporary directory without a home to write to."""
    try:
        root = Path.home() / ".cache/star_jax/tests"
        path = root / f"{version('jax')}-{compile_cache.processor()}"
        path.mkdir(parents=True, exist_ok=True)
        _trim(root)
    except (OSError, RuntimeError):
        return tempfile.mkdtemp(prefix="star_jax_cache_")
    return str(path)


def _trim(root: Path, limit: int = LIMIT) -> None:
    """Deletes the oldest files if all together are larger than the limit. Another test run may do the same now."""
    stats = {path: path.stat() for path in root.rglob("*") if path.is_file()}
    excess = sum(stat.st_size for stat in stats.values()) - limit
    for path in sorted(stats, key=lambda path: stats[path].st_mtime):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= stats[path].st_size
