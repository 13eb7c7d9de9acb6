"""Runs `t5x.main` after importing t5x, so any gin file of t5x's works.

python -m star_jax.contrib.t5x --run_mode=train --gin_file=configs/t5x_finetune.gin ...
"""

import runpy

from star_jax.cli.parser import exit_on_bad_input
from star_jax.contrib.t5x.importing import import_t5x
from star_jax.errors import InputError


def main() -> None:
    """Hands the command line to t5x. Raises InputError for a macro of the gin file that is not set."""
    import_t5x()
    try:
        runpy.run_module("t5x.main", run_name="__main__", alter_sys=True)
    except InputError as error:
        raise InputError(str(error).splitlines()[0]) from error  # gin appends the lines that it was reading
    except ValueError as error:
        name, missing, _ = str(error).partition("/macro.value set to `%gin.REQUIRED`")
        if not missing:
            raise
        raise InputError(f"{name} is not set; give --gin.{name}=...") from error


if __name__ == "__main__":
    exit_on_bad_input(main)
