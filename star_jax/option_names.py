"""Earlier names and values of options. Imports nothing, so that the report starts fast."""

from collections.abc import Mapping
from typing import Any

# Option -> where it is set instead. Task options in this table are fields of the task's class, set by `make_task`.
MOVED = {
    "optimizer.base_moments": "replication.base_moments",
    "train.z_loss": "replication.z_loss",
    "star.rationalize_probability": "replication.rationalize_probability",
    "star.hint_keep_probability": "replication.hint_keep_probability",
    "task.later_digits": "replication.later_digits",
    "task.later_from": "replication.later_from",
    "task.direct": "star.direct",
    "star.keep_per_problem": "selection.per_problem",
    "star.min_kept": "selection.min_kept",
    "star.require_consistent": "selection.check",
}
# Option of today -> the values that earlier versions stored for it, and what they are today.
_EARLIER_VALUES = {
    "selection.check": {True: "steps", False: "answer"},
    "star.rationalize": {True: "failed", False: "none"},
}


def of_today(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config, perhaps of an earlier version, with today's names and values of options."""
    config = {key: dict(group) if isinstance(group, Mapping) else group for key, group in stored.items()}
    for old, new in [*MOVED.items(), *((name, name) for name in _EARLIER_VALUES)]:
        (old_group, old_key), (group, key) = old.split("."), new.split(".")
        values = config.get(old_group)
        if not isinstance(values, dict) or old_key not in values:
            continue
        value, known = values.pop(old_key), _EARLIER_VALUES.get(new, {})
        target = config.setdefault(group, {})
        if isinstance(target, dict):
            target[key] = known[value] if isinstance(value, bool) and value in known else value
    return config
