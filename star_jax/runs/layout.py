"""The names of a run directory's files, and its config.json. Imports little, so that the report starts fast."""

import re
from pathlib import Path
from typing import Any

from star_jax import option_names
from star_jax.errors import InputError
from star_jax.json_reader import is_present
from star_jax.runs import checksums

CONFIG_REMEDY = (
    "settings are changed in the run's command, not here: delete the file and give --allow_changes to have it written "
    "again"
)
PROMPTS = "prompts.json"  # the few-shot prompts of a run that has any
CODE = "code.json"  # a user's modules, of tasks and graders: name -> text. No .py file, which Python could import
_ITERATION = re.compile("iter_([0-9]{3}|[1-9][0-9]{3,14})")


def read_config(workdir: Path) -> dict[str, Any]:
    """A run's config.json as `option_names.of_today` has it.

    Raises InputError if it is missing, broken or not what was written.
    """
    path = workdir / "config.json"
    if not is_present(path):
        raise InputError(f"{workdir}: not a run directory: it has no config.json")
    return option_names.of_today(checksums.read_verified_object(path, CONFIG_REMEDY))


def iteration_number(folder: Path) -> int | None:
    """The number of a folder iter_000, ..., iter_999, iter_1000, ...; None for another name.

    No two names have one number: a copy, iter_0001, is no iteration.
    """
    match = _ITERATION.fullmatch(folder.name)
    return int(match[1]) if match else None


def model_directory(workdir: Path, iteration: int) -> Path:
    """The directory of an iteration's model; 0: the base's."""
    return workdir / f"iter_{iteration:03d}" / "params" if iteration else workdir / "base"
