"""The samples of another run in the place of new ones (star.samples_from), to train on another selection of them."""

from collections.abc import Sequence
from pathlib import Path

from star_jax.distributed import processes
from star_jax.errors import InputError
from star_jax.evaluation import results
from star_jax.evaluation.generate import check_contents
from star_jax.evaluation.judging import SamplingPass
from star_jax.records import Completion, Problem
from star_jax.runs.layout import read_config
from star_jax.runs.run_directory import RunDirectory


class StoredSamples:
    """What a finished run sampled in each iteration. Nothing is written to its directory."""

    def __init__(self, workdir: Path, iterations: int) -> None:
        """Raises InputError unless the run has finished that many iterations."""
        self._run_dir = RunDirectory(workdir, processes)
        self._run_dir.broadcast(lambda: read_config(workdir))
        if missing := [n for n in range(1, iterations + 1) if not self._run_dir.is_complete(n)]:
            raise InputError(
                f"star.samples_from={workdir}: iteration {missing[0]} is not finished there; set "
                f"--config.star.iterations={missing[0] - 1}, or finish that run"
            )

    def completions(
        self, n: int, name: str, problems: Sequence[Problem], sampling_pass: SamplingPass
    ) -> list[Completion]:
        """The completions of "samples.jsonl" or "rationalizations.jsonl" of iteration n that are of these problems.

        Raises InputError for samples of other problems, another seed, or too few or too many of a problem. A problem
        that the run did not rationalize has no rationalization here.
        """
        path, ids = self._run_dir.path(n, name), {problem.id for problem in problems}
        stored = self._run_dir.read_records(Completion, path) if self._run_dir.exists(path) else []
        chosen = [completion for completion in stored if completion.problem_id in ids]
        check_contents(path, chosen, problems, sampling_pass, complete=not sampling_pass.hinted)
        return chosen

    def weights(self, n: int) -> str:
        """The fingerprint of the weights that iteration n was sampled from."""
        path = self._run_dir.path(n, "filter.json")
        return results.filter_result(self._run_dir.read_json(path), path).sampled_from

    def anchoring(self, n: int, name: str, seeds: Sequence[str]) -> dict[str, float]:
        """The scores of these completions in iteration n's file `name`. Raises InputError if the run lacks one."""
        path = self._run_dir.path(n, name)
        scores = results.anchoring(self._run_dir.read_json(path), path) if self._run_dir.exists(path) else {}
        if missing := [seed for seed in seeds if seed not in scores]:
            state = f"has no score of {missing[0]!r}" if scores else "is not there"
            raise InputError(
                f"{path}: {state}, and only the weights that sampled a text can score it; set "
                "--config.selection.anchoring=False and max_anchoring=0, or score it in that run"
            )
        return {seed: scores[seed] for seed in seeds}
