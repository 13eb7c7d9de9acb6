"""Cache of compiled XLA programs on disk, for all platforms: a second start skips most of the compilation."""

import hashlib
import logging
import os
import tempfile
from pathlib import Path

from star_jax import option_values
from star_jax.errors import InputError

LOG = logging.getLogger("star_jax")
_MIN_COMPILE_SECONDS = 0.5  # programs that compile faster are not stored


def enable(directory: str) -> None:
    """Makes JAX store compiled programs below `directory`. Call it before the first compilation.

    JAX's keys hold the program, the compiler's version and its options; so runs, and versions of JAX, may share the
    directory. CPU programs depend on the processor too: each kind gets a subdirectory.

    Args:
      directory: "~" is expanded; "": no cache. The environment variable JAX_COMPILATION_CACHE_DIR has precedence.

    If the directory cannot be written, logs one warning and leaves the cache off.
    """
    if not directory or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        path = Path(option_values.local_path(directory, "compile_cache")) / processor()
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, InputError) as error:  # InputError: no home directory
        LOG.warning("compile_cache %s: cannot be written (%s); programs are compiled at each start", directory, error)
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)


def processor() -> str:
    """A name for the host processor's instruction set. Does not import JAX."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        import platform

        features = f"{platform.machine()} {platform.processor()}"
    return hashlib.sha256(features.encode()).hexdigest()[:12]
