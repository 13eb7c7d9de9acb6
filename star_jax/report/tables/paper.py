"""The paper's results and settings (Zelikman et al., 2022: Tables 1 and 2, section 4.1) next to those of the runs."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from star_jax.evaluation import statistics
from star_jax.evaluation.results import Rate
from star_jax.records import Source
from star_jax.report.run_data import RunData, rationalizes, setting
from star_jax.report.samples import health_series


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """An accuracy with its 95 % interval, and the share of the train problems used for it."""

    label: str
    rate: Rate
    used: str = "–"
    run: str = ""  # name of the run; "": a row of the paper
    used_shares: tuple[float | None, float | None] = (None, None)  # of a run: without hint, by rationalization


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """The paper's rows for a task, followed by the runs' rows."""

    title: str
    rows: tuple[PaperRow, ...]


# task -> title, problems, [(label, accuracy in %, train data used)].
_TABLES: dict[str, tuple[str, int, tuple[tuple[str, float, str], ...]]] = {
    "commonsense_qa": (
        "CommonsenseQA, next to the paper's Table 1 (its dev file)",
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
        "GSM8K, next to the paper's Table 2 (its test file)",
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
        "Addition of 1 to 5 digits, next to the paper's section 4.1",
        0,  # the paper gives no number of problems
        (
            ("GPT-J 6B, answers only, fine-tuned", 76.3, "10,000 examples"),
            ("GPT-J 6B, STaR with rationalization, 16 iterations", 89.5, "–"),
        ),
    ),
}

# The settings that the paper gives, as dotted keys of a run's config.
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
_HOW = {"failed": "with rationalization", "all": "with hints only", "none": "without rationalization"}
# The paper's arithmetic with rationalization has more steps.
_ARITHMETIC_STEPS = {"star.schedule": "linear", "star.steps": 300, "star.step_increment": 20}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted key -> the paper's value, for the settings it gives for the run's task; empty for other tasks."""
    task = setting(config, "task.name")
    if task not in _OF_TASK:
        return {}
    values = _COMMON | _OF_TASK[task]
    if task == "arithmetic" and rationalizes(config):
        values = {key: value for key, value in values.items() if key != "star.step_growth"} | _ARITHMETIC_STEPS
    if task == "gsm8k" and not rationalizes(config):
        values = {key: value for key, value in values.items() if key != "star.rationalize_from"}
        values["star.iterations"] = 36
    return values


def settings_diff(run: RunData) -> list[tuple[str, str, str]]:
    """(dotted key, the paper's value, the run's value) as JSON, for settings that differ."""
    if setting(run.config, "star.direct"):
        return []  # a baseline; the paper gives no settings for it
    rows = []
    for key, of_paper in settings(run.config).items():
        of_run = setting(run.config, key)
        if of_run is not None and of_run != of_paper:
            rows.append((key, json.dumps(of_paper), json.dumps(of_run)))
    return rows


def table(runs: Sequence[RunData], names: Sequence[str]) -> PaperTable | None:
    """The paper's table for the runs' task with their rows after it; None without one, or if the tasks differ."""
    tasks = {setting(run.config, "task.name") for run in runs}
    task = tasks.pop() if len(tasks) == 1 else None
    if task not in _TABLES:
        return None
    title, n, printed = _TABLES[task]
    rows = [PaperRow(label, _paper_rate(accuracy / 100, n), used) for label, accuracy, used in printed]
    for run, name in zip(runs, names, strict=True):
        rows += _run_rows(run, name)
    return PaperTable(title, tuple(rows))


def _paper_rate(accuracy: float, n: int) -> Rate:
    low, high = statistics.wilson(round(accuracy * n), n) if n else (None, None)
    return Rate(n or None, accuracy, low, high)


def _run_rows(run: RunData, name: str) -> list[PaperRow]:
    """The base's and the best iteration's rows, on `report_split` if they were evaluated on it."""
    rows = []
    for number in dict.fromkeys((0, run.best or 0)):
        iteration = run.iteration(number)
        evaluation = iteration and (iteration.report_evaluation or iteration.evaluation)
        if iteration and evaluation:
            split = run.report_split if iteration.report_evaluation else run.split
            shares = _used_shares(run, number)
            label = f"{_method(run, number)} ({split})"
            rows.append(PaperRow(label, evaluation.overall, _used(run, number, shares), name, shares))
    return rows


def _method(run: RunData, number: int) -> str:
    direct, rationalize = (setting(run.config, f"star.{key}") for key in ("direct", "rationalize"))
    if number == 0:
        shots = "zero-shot" if setting(run.config, "prompt.shots") == 0 else "few-shot"
        return f"the base, {shots}, answers only" if direct else f"the base, {shots} rationale"
    if direct:
        return "answers only, fine-tuned"
    start = setting(run.config, "star.rationalize_from") or 1
    how = _HOW.get(rationalize if number >= start else "none", _HOW["none"])
    unfiltered = ", unfiltered" * (setting(run.config, "selection.check") == "none")
    return f"STaR {how}{unfiltered}, iteration {number}"


def _used(run: RunData, number: int, shares: tuple[float | None, float | None]) -> str:
    """`_used_shares` as the paper prints them."""
    if setting(run.config, "star.direct") and number:
        return "100 %"
    sampled, rationalized = shares
    if sampled is None:
        return "–"
    return f"{100 * sampled:.1f} + {100 * rationalized:.1f} %" if rationalized else f"{100 * sampled:.1f} %"


def _used_shares(run: RunData, number: int) -> tuple[float | None, float | None]:
    """Shares of the train problems that the iteration was trained on: solved without the hint, by rationalization."""
    health = next((health for health in health_series(run) if health.iteration == number), None)
    if not health or not health.kept:
        return None, None
    return health.used(Source.SAMPLED), health.used(Source.RATIONALIZED)
