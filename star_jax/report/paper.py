"""What the paper reports (Zelikman et al., 2022: Tables 1 and 2, section 4.1), and the runs' own rows beside it."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from star_jax.evaluation import statistics
from star_jax.report import series
from star_jax.report.health import health_series
from star_jax.report.load import Rate, Run, setting


@dataclasses.dataclass(frozen=True)
class Row:
    """An accuracy with its 95 % interval, and the share of the train problems that it was trained on."""

    label: str
    rate: Rate
    used: str = "–"
    run: str = ""  # the run it is of; "": the paper


@dataclasses.dataclass(frozen=True)
class Table:
    """The paper's rows of a task, then the runs'."""

    title: str
    rows: tuple[Row, ...]


# task -> title, problems, [(label, accuracy in %, train data used)].
_TABLES: dict[str, tuple[str, int, tuple[tuple[str, float, str], ...]]] = {
    "commonsense_qa": (
        "CommonsenseQA, beside the paper's Table 1 (its dev file)",
        1221,
        (
            ("GPT-3 175B, answers only, fine-tuned", 73.0, "100 %"),
            ("GPT-J 6B, few-shot, answers only", 20.9, "~0 %"),
            ("GPT-J 6B, few-shot rationale", 36.6, "~0 %"),
            ("LaMDA 137B, few-shot rationale", 55.6, "~0 %"),
            ("GPT-J 6B, answers only, fine-tuned", 60.0, "100 %"),
            ("GPT-J 6B, STaR without rationalization", 68.8, "69.7 %"),
            ("GPT-J 6B, STaR with rationalization", 72.5, "78.2 + 8.5 %"),
        ),
    ),
    "gsm8k": (
        "GSM8K, beside the paper's Table 2 (its test file)",
        1319,
        (
            ("GPT-J 6B, few-shot, answers only", 3.0, "~0 %"),
            ("GPT-J 6B, few-shot rationale", 3.1, "~0 %"),
            ("GPT-J 6B, answers only, fine-tuned", 5.8, "100 %"),
            ("GPT-J 6B, STaR without rationalization", 10.1, "25.0 %"),
            ("GPT-J 6B, STaR with rationalization", 10.7, "28.7 %"),
        ),
    ),
    "arithmetic": (
        "Addition of 1 to 5 digits, beside the paper's section 4.1",
        0,  # it does not say of how many
        (
            ("GPT-J 6B, answers only, fine-tuned", 76.3, "10,000 examples"),
            ("GPT-J 6B, STaR with rationalization, 16 iterations", 89.5, "–"),
        ),
    ),
}

# The paper's settings, where it gives them; dotted keys of a run's config.
_COMMON: dict[str, Any] = {
    "model.architecture": "gptj",
    "model.n_layers": 28,
    "model.d_model": 4096,
    "model.n_heads": 16,
    "model.d_mlp": 16384,
    "model.rotary_dim": 64,
    "model.vocab_size": 50400,
    "star.samples_per_problem": 1,
    "replication.rationalize_probability": 1.0,
    "replication.hint_keep_probability": 0.0,
    "star.restart_from": "base",
    "star.keep_previous": 0,
    "star.schedule": "exponential",
    "star.steps": 40,
    "star.step_growth": 1.2,
    "sampling.temperature": 0.0,
    "optimizer.learning_rate": 1e-6,
    "optimizer.warmup_steps": 100,
    "optimizer.decay": "constant",
    "optimizer.weight_decay": 0.0,
    "optimizer.clip_norm": 1.0,
    "train.batch_rows": 8,
    "train.row_tokens": 1024,
}
_OF_TASK: dict[str, dict[str, Any]] = {
    "commonsense_qa": {"star.rationalize_from": 1, "star.few_shot_train": True, "prompt.shots": 10},
    "gsm8k": {"star.iterations": 46, "star.rationalize_from": 37, "star.max_steps": 7912},
    "arithmetic": {"star.iterations": 16, "star.problems_per_iteration": 10_000, "prompt.shots": 10},
}
# With rationalization its arithmetic has more steps.
_ARITHMETIC_STEPS = {"star.schedule": "linear", "star.steps": 300, "star.step_increment": 20}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted key -> the paper's value, of those settings that the paper gives for the run's task; empty for others."""
    task = setting(config, "task.name")
    if task not in _OF_TASK:
        return {}
    wanted = _COMMON | _OF_TASK[task]
    if task == "arithmetic" and setting(config, "star.rationalize"):
        wanted = {key: value for key, value in wanted.items() if key != "star.step_growth"} | _ARITHMETIC_STEPS
    if task == "gsm8k" and not setting(config, "star.rationalize"):
        wanted = {key: value for key, value in wanted.items() if key != "star.rationalize_from"}
        wanted["star.iterations"] = 36
    return wanted


def settings_diff(run: Run) -> list[tuple[str, str, str]]:
    """(dotted key, the paper's value, the run's), as JSON, where they differ."""
    if setting(run.config, "star.direct"):
        return []  # a baseline, for which the paper gives no settings
    found = []
    for key, wanted in settings(run.config).items():
        own = setting(run.config, key)
        if own is not None and own != wanted:
            found.append((key, json.dumps(wanted), json.dumps(own)))
    return found


def table(runs: Sequence[Run], names: Sequence[str]) -> Table | None:
    """The paper's table of the runs' task with their rows behind it; None where it has none, or the tasks differ."""
    tasks = {setting(run.config, "task.name") for run in runs}
    task = tasks.pop() if len(tasks) == 1 else None
    if task not in _TABLES:
        return None
    title, n, printed = _TABLES[task]
    rows = [Row(label, _printed(accuracy / 100, n), used) for label, accuracy, used in printed]
    for run, name in zip(runs, names, strict=True):
        rows += _own_rows(run, name)
    return Table(title, tuple(rows))


def _printed(accuracy: float, n: int) -> Rate:
    low, high = statistics.wilson(round(accuracy * n), n) if n else (None, None)
    return Rate(n or None, accuracy, low, high)


def _own_rows(run: Run, name: str) -> list[Row]:
    """The base's and the best iteration's, on the split that is only reported where there is one."""
    best = series.best(run)
    rows = []
    for number in dict.fromkeys((0, best.iteration if best else 0)):
        found = next((it for it in run.iterations if it.number == number), None)
        result = found and (found.reported or found.evaluation)
        if found and result:
            split = run.report_split if found.reported else run.split
            rows.append(Row(f"{_what(run, number)} ({split})", result.overall, _used(run, number), name))
    return rows


def _what(run: Run, number: int) -> str:
    direct, rationalize = (setting(run.config, f"star.{key}") for key in ("direct", "rationalize"))
    if number == 0:
        return "the base, answers only" if direct else "the base, few-shot rationale"
    if direct:
        return "answers only, fine-tuned"
    begin = setting(run.config, "star.rationalize_from") or 1
    how = "with" if rationalize and number >= begin else "without"
    return f"STaR {how} rationalization, iteration {number}"


def _used(run: Run, number: int) -> str:
    if setting(run.config, "star.direct") and number:
        return "100 %"
    found = next((health for health in health_series(run) if health.iteration == number), None)
    if not found or not found.kept:
        return "–"
    plain, rationalized = (100 * (found.used(source) or 0.0) for source in ("sampled", "rationalized"))
    return f"{plain:.1f} + {rationalized:.1f} %" if rationalized else f"{plain:.1f} %"
