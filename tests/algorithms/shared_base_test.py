"""star_jax.algorithms.shared_base: whose evaluation of the base a run may take for its own."""

import json
import shutil

import pytest

from star_jax.algorithms import shared_base
from star_jax.errors import InputError
from star_jax.evaluation.generate import split_problems
from star_jax.evaluation.judging import SamplingPass
from star_jax.evaluation.results import EvaluationPass
from star_jax.weights import checkpoint
from tests.support.runs import small_config
from tests.support.tables import every_row

PASS = EvaluationPass("dev")


def world_of(base) -> dict[str, str]:
    return json.loads((base.parent / "provenance.json").read_text())["world"]


def found(base, **changes) -> shared_base.SharedBase | None:
    return shared_base.find(small_config(base__path=str(base), **changes), world_of(base))


@every_row(
    "changes",
    [
        {},
        dict(star__iterations=7, star__rationalize="none", star__steps=99, selection__check="steps"),
        dict(sampling__temperature=0.5, sampling__slots=8, sampling__queue=64, sampling__prefill_tokens=32),
        dict(optimizer__learning_rate=1.0, train__batch_rows=2, mesh__data=2, tensorboard=True),
    ],
)
def test_what_changes_no_evaluation_leaves_it_shared(base, changes):
    assert found(base, **changes)


@every_row(
    "changes",
    [
        dict(seed=1),
        dict(limit=5),
        dict(task__max_digits=3),
        dict(prompt__shots=2),
        dict(prompt__format="chat"),
        dict(evaluation__problems=3),
        dict(evaluation__report_split="test"),
        dict(evaluation__samples=2),
        dict(sampling__max_new_tokens=40),
        dict(sampling__top_p=0.9),
        dict(sampling__weights_dtype="bfloat16"),
        dict(model__compute_dtype="bfloat16"),
        dict(star__direct=True),
    ],
)
def test_what_may_change_an_evaluation_has_it_made_again(base, changes):
    assert found(base, **changes) is None


@every_row("key", ["prompts", "dev problems", "tokenizer", "jax", "star_jax"])
def test_so_does_another_world(base, key):
    config = small_config(base__path=str(base))
    assert shared_base.find(config, world_of(base) | {key: "another"}) is None
    assert shared_base.find(config, world_of(base) | {"train problems": "others", "base": "pip:x"})


def test_a_base_that_is_no_run_s_has_none(base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    shutil.copytree(base, tmp_path / "other/base")
    (tmp_path / "other/config.json").write_text('{"hidden_size": 64}')  # as of a model in another format
    (tmp_path / "other/provenance.json").write_text("{}")
    for path in (tmp_path / "model", tmp_path / "other/base"):
        assert shared_base.find(small_config(base__path=str(path)), world_of(base)) is None


def test_the_weights_and_the_problems_must_be_the_same(base, tmp_path):
    config = small_config(base__path=str(base))
    problems, weights = split_problems(config, config.make_task(), "dev"), checkpoint.stored_fingerprint(base)
    evaluation_pass = SamplingPass("evaluate", 0, 0)
    completions, figures = found(base).evaluation(PASS, weights, problems, evaluation_pass)
    assert [c.problem_id for c in completions] == [p.id for p in problems] and figures["n"] == len(problems)
    assert found(base).evaluation(PASS, "another", problems, evaluation_pass) is None
    assert found(base).evaluation(EvaluationPass("test"), weights, problems, evaluation_pass) is None
    with pytest.raises(InputError, match="not among the problems any more"):
        found(base).evaluation(PASS, weights, problems[1:], evaluation_pass)
    shutil.copytree(base.parent, tmp_path / "unfinished")
    (tmp_path / "unfinished/iter_000/DONE").unlink()
    assert found(tmp_path / "unfinished/base").evaluation(PASS, weights, problems, evaluation_pass) is None
