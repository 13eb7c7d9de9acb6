"""The stages of an iteration. A stage reads files of the run's directory and is done when its own outputs exist."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from star_jax.algorithms import schedule, selection
from star_jax.algorithms.run import Run
from star_jax.distributed import processes
from star_jax.errors import InputError
from star_jax.evaluation import accuracy
from star_jax.evaluation.generate import generate
from star_jax.evaluation.judging import SamplingPass
from star_jax.records import Completion, Example, Problem, Record, Verdict
from star_jax.runs import metrics
from star_jax.sampling.token_sampling import Decoding
from star_jax.training import fine_tune as training
from star_jax.training import packing
from star_jax.weights import checkpoint

LOG = logging.getLogger("star_jax")


class Iteration:
    """Iteration n of a run: the problems of its turn, and the records of its stages, from memory or from disk."""

    def __init__(self, run: Run, n: int) -> None:
        self.run, self.n = run, n
        self._records: dict[str, list[Any]] = {}

    @functools.cached_property
    def problems(self) -> list[Problem]:
        """The train problems of this iteration."""
        run = self.run
        available = [p for p in run.train_problems if run.task.available(p, self.n)]
        count = run.config.star.problems_per_iteration
        return schedule.iteration_problems(available, count, self.n, run.config.seed)

    def has(self, names: tuple[str, ...]) -> bool:
        """Whether all of these files of the iteration exist."""
        return all(self.run.run_dir.has(self.n, name) for name in names)

    def put(self, name: str, records: list[Any]) -> None:
        """Keeps a stage's records in memory for the stages after it."""
        self._records[name] = records

    def get(self, kind: type[Record], name: str) -> list[Record]:
        """The records of a stage; empty if it is not part of this iteration."""
        if name not in self._records:
            path = self.run.run_dir.path(self.n, name)
            self._records[name] = self.run.run_dir.read_records(kind, path) if self.run.run_dir.exists(path) else []
        return self._records[name]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of an algorithm."""

    name: str  # its phase in the time profile
    inputs: tuple[str, ...]  # files of the iteration
    outputs: tuple[str, ...]
    run: Callable[[Iteration], None]


def sample(iteration: Iteration) -> None:
    """Line 3: a rationale and an answer from M_{n-1} for every problem."""
    _sample_train(iteration, "samples.jsonl", iteration.problems, "sample", hinted=False)


def rationalize(iteration: Iteration) -> None:
    """Line 4: sample again, with the answer as a hint, the problems that failed."""
    config, n = iteration.run.config, iteration.n
    failed = selection.to_rationalize(
        iteration.problems,
        iteration.get(Completion, "samples.jsonl"),
        config.replication.rationalize_probability,
        config.seed,
        n,
        config.star.require_consistent,
    )
    _sample_train(iteration, "rationalizations.jsonl", failed, "rationalization", hinted=True)


def select(iteration: Iteration) -> None:
    """Lines 5 and 6: what reached the right answer, without hint, with its provenance."""
    run, n, problems = iteration.run, iteration.n, iteration.problems
    options, prompts = run.config.star, run.prompts(n)
    samples = iteration.get(Completion, "samples.jsonl")
    rationalizations = iteration.get(Completion, "rationalizations.jsonl")
    if options.direct:
        examples = selection.references(prompts, problems, few_shot_train=options.few_shot_train, iteration=n)
    else:
        spec = selection.SelectionSpec(
            seed=run.config.seed,
            weights=run.weights.fingerprint(n - 1),
            per_problem=options.keep_per_problem,
            few_shot_train=options.few_shot_train,
            hint_keep_probability=run.config.replication.hint_keep_probability,
            require_consistent=options.require_consistent,
        )
        examples = selection.keep(prompts, problems, [*samples, *rationalizations], spec)
    for earlier in range(max(1, n - options.keep_previous), n):
        # Only what that iteration itself kept: its file may hold examples from before it.
        previous = run.run_dir.read_records(Example, run.run_dir.path(earlier, "kept.jsonl"))
        examples += [e for e in previous if e.iteration == earlier]
    if len(examples) < options.min_kept:
        raise InputError(_too_few(run, n, len(examples)))
    run.run_dir.write_records(run.run_dir.path(n, "kept.jsonl"), examples)
    counts = selection.summary(n, problems, samples, rationalizations, examples)
    run.run_dir.write_json(run.run_dir.path(n, "filter.json"), counts)
    run.log.log("filter", n, 0, {k: v for k, v in counts.items() if isinstance(v, int | float) and k != "iteration"})
    iteration.put("kept.jsonl", examples)
    _log_selection(n, samples, counts)


def fine_tune(iteration: Iteration) -> None:
    """Line 7: the ORIGINAL model, fine-tuned on what was kept (star.restart_from: or the previous one)."""
    run, n, examples = iteration.run, iteration.n, iteration.get(Example, "kept.jsonl")
    config, run_dir = run.config, run.run_dir
    # The weights are evaluated while they are saved. If that was interrupted they are trained again, and the
    # evaluations of the lost weights go.
    run_dir.discard(n, "eval_*")
    seed = 1_000_000 * (config.seed + 1) + n
    with run.phases("pack"):
        rows = packing.pack(examples, run.tokenizer, config.train.row_tokens, seed)
        processes.check_equal("what the examples were packed into", rows.digest())
    steps = schedule.fine_tuning_steps(config.star, n, rows.rows, config.train.batch_rows)
    spec = training.FineTuneSpec(steps, seed, config.train, config.optimizer, config.replication.z_loss)
    params = run.weights.to_training(0 if config.star.restart_from == "base" else n - 1)
    with metrics.progress(steps, f"iteration {n}: fine-tune", "step") as bar:

        def on_step(step: int, values: dict[str, Any]) -> None:
            bar.update(step - bar.n)
            bar.set_postfix_str(f"loss {values['loss']:.3f}")
            run.log.log("fine_tune", n, step, values)

        params, report = training.fine_tune(
            run.model,
            params,
            rows,
            spec,
            run.mesh,
            moments=_base_moments(run),
            state_dir=run_dir.path(n, "train_state"),
            on_step=on_step,
        )
    fingerprint = run.weights.publish(n, params)
    if rows.too_long:
        LOG.warning("iteration %d: %d of %d kept examples exceed train.row_tokens = %d and were left out", n,
                    rows.too_long, len(examples), config.train.row_tokens)  # fmt: skip
    sizes = {"iteration": n, "examples": len(examples), "too_long": rows.too_long, "rows": rows.rows}
    weights = {"learning_rate": config.optimizer.learning_rate, "weights": fingerprint}
    run_dir.write_json(run_dir.path(n, "finetune.json"), {**sizes, **weights, **dataclasses.asdict(report)})
    LOG.info(
        "iteration %d: %d steps in %.0f s, loss %.3f -> %.3f",
        n, steps, report.seconds, report.loss_first, report.loss_last,
    )  # fmt: skip


def evaluate(iteration: Iteration) -> None:
    """Accuracy of M_n on the split that selects, and on the one that is only reported; greedy."""
    run, n = iteration.run, iteration.n
    for split, problems in run.eval_problems.items():
        if run.run_dir.has(n, f"eval_{split}.json"):
            continue
        completions, _ = generate(
            run.run_dir,
            run.run_dir.path(n, f"eval_{split}.jsonl"),
            run.stream(n, Decoding()),
            run.prompts(n + 1),  # the prompts with which the next iteration samples
            problems,
            SamplingPass("evaluate", run.config.seed, n),
        )
        run.weights.wait()
        provenance = {"iteration": n, "split": split, "weights": run.weights.fingerprint(n)}
        result = {**provenance, **accuracy.score(problems, completions)}
        run.run_dir.write_json(run.run_dir.path(n, f"eval_{split}.json"), result)
        _log_evaluation(run, n, split, result)


SAMPLE = Stage("sample", (), ("samples.jsonl",), sample)
RATIONALIZE = Stage("rationalize", ("samples.jsonl",), ("rationalizations.jsonl",), rationalize)
FINE_TUNE = Stage("fine_tune", ("kept.jsonl",), ("finetune.json", "params/model.json"), fine_tune)


def select_stage(*inputs: str) -> Stage:
    """The selection from these files; from none of them it takes the data set's answers.

    Files and metrics call this stage "filter".
    """
    return Stage("filter", inputs, ("kept.jsonl", "filter.json"), select)


def evaluate_stage(splits: tuple[str, ...]) -> Stage:
    """The evaluation of a run's splits."""
    return Stage("evaluate", ("params/model.json",), tuple(f"eval_{split}.json" for split in splits), evaluate)


def _sample_train(iteration: Iteration, name: str, problems: list[Problem], what: str, hinted: bool) -> None:
    run, n, options = iteration.run, iteration.n, iteration.run.config.sampling
    decoding = Decoding(options.temperature, options.top_k, options.top_p)
    samples_per_problem = run.config.star.samples_per_problem
    completions, throughput = generate(
        run.run_dir,
        run.run_dir.path(n, name),
        run.stream(n - 1, decoding),
        run.prompts(n),
        problems,
        SamplingPass(what, run.config.seed, n, samples_per_problem, hinted),
    )
    if throughput:
        run.log.log(what, n, 0, throughput.figures())
    iteration.put(name, completions)


def _base_moments(run: Run) -> checkpoint.Moments | None:
    """The Adam moments stored with the base, from disk: they do not exist while sampling."""
    if not run.config.replication.base_moments:
        return None
    with run.phases("load"):
        return checkpoint.load_moments(Path(run.config.base.path), run.mesh)


def _too_few(run: Run, n: int, kept: int) -> str:
    remedies = ["a base that solves some problems"]
    if not run.config.prompt.shots:
        remedies.append("few-shot prompts (prompt.shots)")
    if not run.config.star.rationalize:
        remedies.append("star.rationalize=True")
    return (
        f"iteration {n} kept {kept or 'nothing'}: too few completions reached a right answer "
        f"(star.min_kept = {run.config.star.min_kept}); give {' or '.join(remedies)}"
    )


def _log_selection(n: int, samples: list[Completion], counts: dict[str, Any]) -> None:
    if not samples:
        LOG.info("iteration %d: %d reference answers kept", n, counts["kept_reference"])
        return
    solved = len({s.problem_id for s in samples if s.verdict == Verdict.RIGHT})
    LOG.info("iteration %d: %d of %d problems right, %d rationalized, %d kept", n, solved, counts["problems"],
             counts["kept_rationalized"], counts["kept"])  # fmt: skip
    if counts["kept_retokenized"]:
        LOG.info("iteration %d: %d kept completions were cut inside a token; their text is encoded again for training",
                 n, counts["kept_retokenized"])  # fmt: skip


def _log_evaluation(run: Run, n: int, split: str, result: dict[str, Any]) -> None:
    by_category = {f"accuracy {name}": value["accuracy"] for name, value in result["by_category"].items()}
    figures = {k: v for k, v in result.items() if isinstance(v, int | float) and k != "iteration"}
    stage = "evaluate" if split == run.config.evaluation.split else f"evaluate_{split}"
    run.log.log(stage, n, 0, {**figures, **by_category})
    names = ", ".join(f"{name} {value['accuracy']:.2f}" for name, value in result["by_category"].items() if name)
    LOG.info("iteration %d: %s accuracy %.3f [%.3f, %.3f]%s", n, split, result["accuracy"], *result["ci95"],
             f"; mean of categories {result['mean_of_categories']:.3f} ({names})" if names else "")  # fmt: skip
