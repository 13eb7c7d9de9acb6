"""What a study is: arms, each a few options over one common config, and seeds.

A config file in configs/studies/ defines `get_config`, which returns `study(...)`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from star_jax import config, option_values
from star_jax.config import Config
from star_jax.errors import InputError, shown

if TYPE_CHECKING:
    from ml_collections import ConfigDict

BASE = "base"  # the folder of the bases, and the name under which `--arm` makes one
OUTCOMES = ("last", "best")
OPTIONS = ("common", "arms", "order", "seeds", "reference", "outcome")
# What all arms of a study have in common. Others could not be compared problem by problem, or not from one base.
_SHARED = ("seed", "limit", "tokenizer", "base", "model", "evaluation", "task.name", "task.seed")
_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,59}", re.ASCII)


def study(
    common: ConfigDict,
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    reference: str,
    outcome: str = "last",
) -> ConfigDict:
    """The config of a study, to be returned by `get_config` of its file.

    Args:
      common: the config of every run, task and base included.
      arms: name -> the options in which the arm differs from `common`, nested: {"star": {"rationalize": "none"}}.
      seeds: `config.seed` of the runs of each arm.
      reference: the arm with which the others are compared.
      outcome: the accuracy that is compared: of the "last" iteration on evaluation.split, or of the iteration that is
        "best" on evaluation.split, on evaluation.report_split, which selects nothing.

    Raises InputError for an arm's name that cannot be a folder.
    """
    for name in arms:
        _check_name(name)
    from ml_collections import ConfigDict

    values = dict(common=common, arms=arms, seeds=tuple(seeds), reference=reference, outcome=outcome)
    # A ConfigDict sorts its keys, so the order of the arms is an option; without some names it leaves those arms out.
    return ConfigDict({**values, "order": tuple(arms)}, convert_dict=True)


class Place(NamedTuple):
    """One run of a study."""

    arm: str  # BASE: the base that the arms of the seed start from, with its evaluation
    seed: int

    def directory(self, workdir: Path) -> Path:
        """Its run directory in the study's."""
        return workdir / self.arm / f"seed_{self.seed}"

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
    """A checked study."""

    reference: str
    outcome: str
    seeds: tuple[int, ...]
    common: Mapping[str, Any]  # plain values
    arms: Mapping[str, Mapping[str, Any]]  # in order: name -> plain values of the options that it sets

    def base_config(self, seed: int) -> Config:
        """The run that makes the base of a seed and evaluates it."""
        return config.from_dict(_merged(self.common, {"seed": seed, "star": {"iterations": 0}}))

    def arm_config(self, arm: str, seed: int, base: Path) -> Config:
        """A run of an arm, from the base in the directory `base`."""
        of_arm = _merged(self.common, self.arms[arm])
        try:
            return config.from_dict(_merged(of_arm, {"seed": seed, "base": {"path": str(base)}}))
        except InputError as error:
            raise InputError(f"arm {arm!r}: {error}") from error

    @property
    def split(self) -> str:
        """The split whose accuracies are compared."""
        return str(self.common["evaluation"]["report_split" if self.outcome == "best" else "split"])


def read(values: Mapping[str, Any]) -> Study:
    """The study of a config. Raises InputError for a wrong name or value, of an arm's options too."""
    plain = values.to_dict() if hasattr(values, "to_dict") else dict(values)
    if missing := [name for name in OPTIONS if name not in plain]:
        raise InputError(
            f"the config is not a study's: it has no {missing[0]!r}; its get_config() returns star_jax.study.spec.study"
            "(...), as those of configs/studies do"
        )
    if surplus := [name for name in plain if name not in OPTIONS]:
        raise InputError(f"a study has no option {surplus[0]!r}; its options are {', '.join(OPTIONS)}")
    seeds, order = plain["seeds"], plain["order"]
    if unknown := [name for name in order if name not in plain["arms"]]:
        raise InputError(f"order names {shown(unknown[0])}, which is no arm; the arms are {', '.join(plain['arms'])}")
    arms = {name: plain["arms"][name] for name in order}
    for name, options in arms.items():
        _check_arm(name, options)
    if plain["reference"] not in arms:
        raise InputError(f"reference must be one of the arms {', '.join(arms)}, got {shown(plain['reference'])}")
    whole = [seed for seed in seeds if type(seed) is int and 0 <= seed <= option_values.MAX_INTEGER]
    if not seeds or len(set(whole)) < len(seeds):
        raise InputError(f"seeds must be different integers, at least 0, got {shown(seeds)}")
    if plain["outcome"] not in OUTCOMES:
        raise InputError(f"outcome must be one of {', '.join(OUTCOMES)}, got {shown(plain['outcome'])}")
    found = Study(plain["reference"], plain["outcome"], tuple(seeds), plain["common"], arms)
    found.base_config(seeds[0])
    for name in arms:
        found.arm_config(name, seeds[0], Path("base"))
    if found.outcome == "best" and not found.split:
        raise InputError(
            'outcome="best" needs a split that selects nothing: set --config.common.evaluation.report_split'
        )
    return found


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name == BASE:
        raise InputError(f"arm {name!r}: its name must be letters, digits, '_' and '-', and not {BASE!r}")


def _check_arm(name: str, options: Any) -> None:
    """Raises InputError for a name that cannot be a folder, and for options that all arms must share."""
    _check_name(name)
    if not isinstance(options, Mapping):
        raise InputError(f"arm {name!r} must be a group of options, got {shown(options)}")
    task = options.get("task")
    given = [*options, *(f"task.{key}" for key in (task if isinstance(task, Mapping) else ()))]
    if shared := [key for key in given if key in _SHARED]:
        raise InputError(f"arm {name!r} sets {shared[0]}, which all arms of a study share; set it in `common`")


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the changes in their place, group by group."""
    merged = dict(values)
    for key, change in changes.items():
        before = merged.get(key)
        if isinstance(change, Mapping) and isinstance(before, Mapping):
            change = _merged(before, change)
        merged[key] = change
    return merged
