"""star_jax.study.spec: what a study's config may be, and the config of each run."""

import re
from pathlib import Path

import pytest

from star_jax.cli.config_flags import load
from star_jax.errors import InputError
from star_jax.study import spec
from tests.support.runs import small_config
from tests.support.studies import small_study, small_values
from tests.support.tables import every_row

STUDIES = sorted((Path(__file__).parents[2] / "configs/studies").glob("*.py"))


def test_an_arm_is_the_common_config_with_its_options_seed_and_base():
    arms = {"with": {}, "none": {"star": {"rationalize": "none"}, "sampling": {"temperature": 0.5}}}
    study = small_study("a/base", arms=arms, seeds=(3, 5))
    expected = small_config(base__path="b", seed=5, star__rationalize="none", sampling__temperature=0.5)
    assert study.arm_config("none", 5, Path("b")) == expected
    assert study.arm_config("with", 3, Path("b")) == small_config(base__path="b", seed=3)
    assert study.base_config(5) == small_config(base__path="a/base", seed=5, star__iterations=0)


def test_arms_keep_their_order_and_may_be_left_out():
    arms = {"z": {}, "a": {}, "m": {}}
    values = small_values("base", arms=arms, reference="z")
    assert list(spec.read(values).arms) == ["z", "a", "m"]
    values.order = ("m", "z")
    assert list(spec.read(values).arms) == ["m", "z"]


@every_row(
    ("changes", "message"),
    [
        (dict(arms={"with": {}, "base": {}}), "its name must be letters"),
        (dict(arms={"with": {}, "../up": {}}), "its name must be letters"),
        (dict(arms={"with": {}, "b": {"seed": 3}}), "sets seed, which all arms of a study share"),
        (dict(arms={"with": {}, "b": {"task": {"name": "gsm8k"}}}), "sets task.name, which all arms"),
        (dict(arms={"with": {}, "b": {"evaluation": {"problems": 3}}}), "sets evaluation, which all arms"),
        (
            dict(arms={"with": {}, "b": {"star": {"step": 3}}}),
            "arm 'b': config.star has no option 'step'; did you mean",
        ),
        (dict(arms={"with": {}, "b": {"star": {"rationalize": "some"}}}), "arm 'b': star.rationalize must be one of"),
        (dict(reference="best"), "reference must be one of the arms with, same, none"),
        (dict(seeds=(1, 1)), "seeds must be different integers"),
        (dict(seeds=()), "seeds must be different integers"),
        (dict(seeds=("1",)), "seeds must be different integers"),
        (dict(outcome="first"), "outcome must be one of last, best"),
        (dict(outcome="best"), 'outcome="best" needs a split that selects nothing'),
    ],
)
def test_what_is_no_study_is_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as error:
        small_study("base", **changes)
    assert "\n" not in str(error.value)


def test_a_run_s_config_is_no_study():
    with pytest.raises(InputError, match="the config is not a study's: it has no 'common'"):
        spec.read(small_config(base__path="b").to_dict())


@every_row("path", STUDIES)
def test_every_study_of_the_repository_can_be_read_as_its_docstring_says(path):
    documented = re.search(rf"--config=configs/studies/{path.name}(?:\[([^\]]*)\])?", path.read_text())
    assert documented and f"python -m star_jax.study {documented[0]}" in path.read_text()
    for variant in ("", *filter(None, (documented[1] or "").split("|"))):
        assert len(spec.read(load(f"{path}{variant}")).arms) > 1
    with pytest.raises(InputError, match="no variant 'nonsense'"):
        load(f"{path}:nonsense")
