"""Study: which problems are rationalized, where fine-tuning starts, and whether kept examples accumulate, on addition.

Command:  python -m star_jax.study --config=configs/studies/rationalization.py
Hardware: two CPU cores, some two hours.
Expect:   README.md of this folder.
"""

import itertools
from pathlib import Path

from ml_collections import ConfigDict

from star_jax.cli.config_flags import load
from star_jax.study.spec import study


def get_config() -> ConfigDict:
    """Twelve arms: rationalize x restart_from x keep_previous."""
    common = load("arithmetic", Path(__file__).parents[1])
    # A quarter of the demo's fine-tuning, the same in every iteration: with the demo's the reference arm solves all.
    common.star.update(dict(iterations=4, problems_per_iteration=2000, steps=200, schedule="linear", step_increment=0))
    arms = {}
    for hints, start, accumulate in itertools.product(("failed", "all", "none"), ("base", "previous"), (False, True)):
        name = f"{hints}-{start}{'-accumulated' * accumulate}"
        arms[name] = {"star": {"rationalize": hints, "restart_from": start, "keep_previous": -1 if accumulate else 0}}
    return study(common, arms, range(5), reference="failed-base")
