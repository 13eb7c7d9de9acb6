"""Makes the runs of a study, one after the other, or prints the commands that do it on other machines."""

import json
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from star_jax import __version__
from star_jax.algorithms import star
from star_jax.config import Config
from star_jax.distributed import processes
from star_jax.errors import InputError
from star_jax.runs.layout import model_directory
from star_jax.runs.run_directory import RunDirectory
from star_jax.study.spec import BASE, Place, Study

LOG = logging.getLogger("star_jax")


def places(study: Study) -> Iterator[Place]:
    """All runs in their order: seed by seed, so that an unfinished study has as many of one arm as of another."""
    for seed in study.seeds:
        yield Place(BASE, seed)
        yield from (Place(arm, seed) for arm in study.arms)


def config_of(study: Study, workdir: Path, place: Place) -> Config:
    """The config of a run; the base of its seed is at an absolute path, however `workdir` is written."""
    if place.arm == BASE:
        return study.base_config(place.seed)
    base = model_directory(Place(BASE, place.seed).directory(workdir).resolve(), 0)
    return study.arm_config(place.arm, place.seed, base)


def make(study: Study, workdir: Path, place: Place, allow_changes: bool) -> bool:
    """Makes a run, and before it the base of its seed, or continues it. Returns False if it was finished before.

    Raises InputError as star.run does.
    """
    if place.arm != BASE:
        make(study, workdir, Place(BASE, place.seed), allow_changes)
    directory, config = place.directory(workdir), config_of(study, workdir, place)
    if is_finished(directory, config):
        return False
    LOG.info("study: %s", place)
    star.run(config, directory, allow_changes)
    return True


def is_finished(directory: Path, config: Config) -> bool:
    """Whether the directory holds this run, whole, and made by these versions. Costs no model."""
    run_dir = RunDirectory(directory, processes)
    if not run_dir.exists(directory / "config.json") or not run_dir.is_complete(config.star.iterations):
        return False
    world = run_dir.read_json(directory / "provenance.json").get("world") or {}
    versions = {"star_jax": __version__, "jax": jax.__version__}
    return _comparable(run_dir.read_config()) == _comparable(config.to_dict()) and versions.items() <= world.items()


def _comparable(values: dict[str, object]) -> str:
    """Settings without those that a run takes from its base, and without where that is: a study may be moved."""
    base = values.get("base")
    stages = base.get("stages") if isinstance(base, dict) else None
    return json.dumps({**values, "model": None, "base": stages}, sort_keys=True)


def commands(study: Study, argv: Sequence[str], which: str) -> list[str]:
    """A shell command for each run, for machines that make them side by side.

    Args:
      argv: the arguments of the command that asks for them, without those that choose runs.
      which: "bases", which come first; "arms"; or "all" of them, in the order in which one machine would make them.
    """
    wanted = [p for p in places(study) if which == "all" or (p.arm == BASE) == (which == "bases")]
    command = shlex.join([sys.executable, "-m", "star_jax.study", *argv])
    return [f"{command} --arm={place.arm} --seed={place.seed}" for place in wanted]


def check_place(study: Study, arm: str, seed: int | None) -> Place:
    """The run that --arm and --seed name. Raises InputError."""
    if arm != BASE and arm not in study.arms:
        raise InputError(f"--arm={arm[:60]}: the study's arms are {BASE}, {', '.join(study.arms)}")
    if seed is None or seed not in study.seeds:
        raise InputError(f"--arm={arm[:60]} goes with --seed=N, one of {', '.join(map(str, study.seeds))}")
    return Place(arm, seed)
