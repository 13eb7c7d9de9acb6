"""A small study: seconds for each run, from the base of the other small runs."""

from pathlib import Path

from ml_collections import ConfigDict

from star_jax.study import spec
from tests.support.runs import small_config

ARMS = {"with": {}, "same": {}, "none": {"star": {"rationalize": "none"}}}


def small_values(base: Path | str, arms=ARMS, seeds=(0,), reference="with", outcome="last", **changes) -> ConfigDict:
    """The config of a study, as its file returns it; `changes` are those of small_config, for all arms."""
    common = ConfigDict(small_config(base__path=str(base), **changes).to_dict(), convert_dict=True)
    return spec.study(common, arms, seeds, reference, outcome)


def small_study(base: Path | str, **changes) -> spec.Study:
    return spec.read(small_values(base, **changes))


def study_file(folder: Path, base: Path | str, **changes) -> Path:
    """A config file with that study."""
    path = folder / "small_study.py"
    path.write_text(
        "from tests.support.studies import small_values\n\n\n"
        f"def get_config():\n    return small_values({str(base)!r}, **{changes!r})\n"
    )
    return path
