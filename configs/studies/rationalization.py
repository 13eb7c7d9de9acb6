"""Study: which problems are rationalized, where fine-tuning starts, and whether kept examples accumulate, on addition.

Command:  python -m star_jax.study --config=configs/studies/rationalization.py[:anchoring]
Hardware: two CPU cores; an hour for the twelve arms, half an hour for :anchoring.
Expect:   README.md of this folder.
"""

import itertools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from star_jax.cli.config_flags import load
from star_jax.study.spec import study

BEST = "failed-previous"


def get_config(variant: str = "") -> ConfigDict:
    """Twelve arms, rationalize x restart_from x keep_previous; "anchoring": the best of them with bounds on hints."""
    common = load("arithmetic", Path(__file__).parents[1])
    # A fifth of the demo's steps, the same number in every iteration: with the demo's the reference arm solves all.
    common.star.update(dict(iterations=4, problems_per_iteration=2000, steps=200, schedule="linear", step_increment=0))
    arms: dict[str, dict[str, Any]] = {}
    for hints, start, accumulate in itertools.product(("failed", "all", "none"), ("base", "previous"), (False, True)):
        name = f"{hints}-{start}{'-accumulated' * accumulate}"
        arms[name] = {"star": {"rationalize": hints, "restart_from": start, "keep_previous": -1 if accumulate else 0}}
    if not variant:
        return study(common, arms, range(5), reference="failed-base")
    if variant != "anchoring":
        raise ValueError(f"configs/studies/rationalization.py has no variant {variant!r}: anchoring")
    bounded = {f"{BEST}-{nats}": {**arms[BEST], "selection": {"max_anchoring": float(nats)}} for nats in (60, 40)}
    return study(common, {BEST: arms[BEST], **bounded}, range(5), reference=BEST)
