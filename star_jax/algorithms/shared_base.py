"""The evaluation of a base that another run has made and evaluated: as long as it is the same, it is not made again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star_jax.config import Config
from star_jax.distributed import processes
from star_jax.errors import InputError
from star_jax.evaluation.generate import check_contents
from star_jax.evaluation.judging import SamplingPass
from star_jax.evaluation.results import EvaluationPass
from star_jax.records import Completion, Problem
from star_jax.runs.run_directory import RunDirectory

# Options of sampling that change no evaluation: those of train samples, and sizes of batches.
_OTHER_SAMPLING = ("temperature", "temperature_by_iteration", "slots", "queue", "prefill_tokens")
_OTHER_WORLD = ("base", "train problems")  # the base is compared by the fingerprint of its weights


class SharedBase:
    """A run that evaluated the base at its own base/, to which another run's base.path leads."""

    def __init__(self, run_dir: RunDirectory) -> None:
        self._run_dir = run_dir

    def evaluation(
        self, each: EvaluationPass, weights: str, problems: list[Problem], sampling_pass: SamplingPass
    ) -> tuple[list[Completion], dict[str, Any]] | None:
        """The completions and the figures of an evaluation of these weights; None if the run has none.

        `weights`: their fingerprint. Raises InputError for a damaged file, or one of other problems.
        """
        completions, figures = (self._run_dir.path(0, name) for name in each.files)
        if not self._run_dir.has(0) or not self._run_dir.exists(completions) or not self._run_dir.exists(figures):
            return None
        result = self._run_dir.read_json(figures)
        if result.get("weights") != weights:
            return None
        stored = self._run_dir.read_records(Completion, completions)
        check_contents(completions, stored, problems, sampling_pass)
        return stored, result

    @property
    def name(self) -> str:
        """The run, for a message."""
        return str(self._run_dir.workdir)


def find(config: Config, world: Mapping[str, str]) -> SharedBase | None:
    """The run whose base this run starts from, if it evaluates as this run does; else None.

    It does if everything that an evaluation depends on is equal: problems, prompts, tokenizer, versions, and the
    options of task, evaluation and decoding. `world`: see RunDirectory.open.
    """
    path = Path(config.base.path)
    if not config.base.path or path.name != "base":
        return None
    run_dir = RunDirectory(path.parent, processes)
    provenance = run_dir.workdir / "provenance.json"
    if not run_dir.exists(run_dir.workdir / "config.json") or not run_dir.exists(provenance):
        return None
    try:
        there = _terms(run_dir.read_config(), run_dir.read_json(provenance).get("world"))
    except InputError:  # files of something else, or of a run that this one need not care about
        return None
    return SharedBase(run_dir) if there == _terms(config.to_dict(), world) else None


def _terms(values: Mapping[str, Any], world: Any) -> str:
    """What an evaluation depends on besides the weights, as JSON, which has no tuples."""
    groups = {name: dict(values.get(name) or {}) for name in ("sampling", "star", "model")}
    sampling = {key: value for key, value in groups["sampling"].items() if key not in _OTHER_SAMPLING}
    others = [values.get(name) for name in ("task", "prompt", "evaluation", "limit", "seed")]
    direct, dtype = groups["star"].get("direct"), groups["model"].get("compute_dtype")
    known = {key: text for key, text in dict(world or {}).items() if key not in _OTHER_WORLD}
    return json.dumps([*others, sampling, direct, dtype, known], sort_keys=True)
