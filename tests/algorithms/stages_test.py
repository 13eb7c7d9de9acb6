"""What an iteration reads of an earlier start belongs to its problems; the advice after a selection of too few."""

import dataclasses
import re
import types

import pytest

from star_jax.algorithms import stages
from star_jax.algorithms.stages import Iteration
from star_jax.config import StarConfig
from star_jax.errors import InputError
from star_jax.evaluation.judging import SamplingPass
from star_jax.records import Completion, Example, Problem, Source, Verdict
from star_jax.runs.run_directory import RunDirectory
from tests.support.runs import small_config
from tests.support.tables import every_row

PROBLEMS = [Problem(f"p{i}", f"{i} + {i}?", str(2 * i)) for i in range(4)]


def iteration(run_dir: RunDirectory, problems: list[Problem], samples_per_problem: int = 2) -> Iteration:
    star = StarConfig(samples_per_problem=samples_per_problem)
    made = Iteration(types.SimpleNamespace(run_dir=run_dir, config=types.SimpleNamespace(star=star, seed=0)), 1)
    made.__dict__["problems"] = problems
    return made


def completion(problem: Problem, index: int) -> Completion:
    return Completion(
        problem.id, 1, index, False, "", None, Verdict.WRONG, None, -1.0, 1,
        seed=SamplingPass("sample", seed=0, iteration=1).key(problem, index), problem_fingerprint=problem.fingerprint,
        token_ids=(1,), token_log_probs=(-1.0,),
    )  # fmt: skip


def test_samples_are_read_only_if_they_are_all_that_is_asked_for(tmp_path):
    """The data grow, shrink or change, or the options do, between two stages."""
    run_dir = RunDirectory(tmp_path)
    path, stored = run_dir.path(1, "samples.jsonl"), [completion(p, i) for p in PROBLEMS for i in range(2)]
    run_dir.write_records(path, stored)
    assert iteration(run_dir, PROBLEMS).get(Completion, "samples.jsonl") == stored
    grown, changed = [*PROBLEMS, Problem("p4", "?", "1")], [*PROBLEMS[:3], dataclasses.replace(PROBLEMS[3], answer="7")]
    for problems, samples, reason in (
        (grown, 2, "the first missing is sample 0 of 'p4'"),
        (PROBLEMS[1:], 2, "'p0' is not among the problems"),
        (changed, 2, "'p3' has another question, choices or answer"),
        (PROBLEMS, 4, "the first missing is sample 2 of 'p0'"),
        (PROBLEMS, 1, "more than the 1 samples"),
    ):
        with pytest.raises(InputError, match=reason):
            iteration(run_dir, problems, samples).get(Completion, "samples.jsonl")


def test_kept_examples_of_this_iteration_are_of_its_problems(tmp_path):
    run_dir = RunDirectory(tmp_path)
    path = run_dir.path(1, "kept.jsonl")
    now, before = (
        Example(p.id, "", "", n, Source.SAMPLED, problem_fingerprint=p.fingerprint)
        for p, n in ((PROBLEMS[0], 1), (Problem("p9", "gone", "1"), 0))
    )
    run_dir.write_records(path, [now, before])  # `before`: of star.keep_previous
    assert iteration(run_dir, PROBLEMS).get(Example, "kept.jsonl") == [now, before]
    with pytest.raises(InputError, match=r"kept\.jsonl: 1 examples are not of the problems.*delete kept\.jsonl"):
        iteration(run_dir, PROBLEMS[1:]).get(Example, "kept.jsonl")


@every_row(
    ("changes", "kept", "options"),
    [
        ({}, 0, ["base.path=MODEL", "prompt.shots=N"]),
        ({"star__rationalize": "none"}, 0, ["base.path=MODEL", "prompt.shots=N", "star.rationalize=failed"]),
        ({"star__rationalize_from": 3}, 0, ["base.path=MODEL", "prompt.shots=N", "star.rationalize_from=2"]),
        ({"prompt__shots": 3, "selection__min_kept": 9}, 4, ["base.path=MODEL", "selection.min_kept=4"]),
        (
            {"task": {"name": "jsonl"}},
            0,
            ["base.path=MODEL", "prompt.shots=N", "prompt.directory=FOLDER_OF_THEIR_FILES"],
        ),
        ({"task": {"name": "jsonl"}, "prompt__directory": "mine"}, 0, ["base.path=MODEL", "prompt.shots=N"]),
        ({"star__direct": True, "selection__min_kept": 9}, 4, ["selection.min_kept=4"]),
    ],
)
def test_advice_names_the_options_that_are_not_set_so_already(changes, kept, options):
    task = changes.pop("task", None)
    config = small_config(**changes)
    run = types.SimpleNamespace(config=dataclasses.replace(config, task=task) if task else config)
    message = stages._too_few(run, 2, kept)
    assert re.findall(r"--config\.([\w.=]+)", message) == options
    assert message.endswith("in another --workdir") and "\n" not in message
