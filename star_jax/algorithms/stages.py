"""The stages of an iteration. A stage reads files of the run's directory and is done when its own outputs exist."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.algorithms import problem_order, schedule, selection
from star_jax.algorithms.run import Run
from star_jax.config import EvaluationConfig
from star_jax.distributed import processes
from star_jax.errors import InputError
from star_jax.evaluation import accuracy, results
from star_jax.evaluation.generate import check_contents, generate
from star_jax.evaluation.judging import SamplingPass
from star_jax.json_reader import Fields
from star_jax.records import Completion, Example, Problem, Record, Verdict
from star_jax.runs import checksums, metrics
from star_jax.sampling import scoring
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks import few_shot
from star_jax.training import fine_tune as training
from star_jax.training import packing
from star_jax.weights import checkpoint, train_state

LOG = logging.getLogger("star_jax")
WEIGHTS, ANCHORING = "params/model.json", "anchoring.json"
TITLES = {
    "sample": "sampling",
    "rationalize": "rationalizing",
    "anchoring": "scoring hints",
    "filter": "filtering",
    "fine_tune": "fine-tuning",
    "evaluate": "evaluating",
}


class Iteration:
    """Iteration n of a run: the problems of its turn, and the records of its stages, from memory or from disk.

    `needs_weights`: whether anything still to be done needs its weights, which star.keep_weights may have deleted.
    """

    def __init__(self, run: Run, n: int, needs_weights: bool = True) -> None:
        self.run, self.n, self._needs_weights = run, n, needs_weights
        self._records: dict[str, list[Any]] = {}

    @functools.cached_property
    def problems(self) -> list[Problem]:
        """The train problems of this iteration. Raises InputError if all of them rest (star.skip_solved)."""
        run, options, seed = self.run, self.run.config.star, self.run.config.seed
        past = options.skip_solved or options.problems == "adaptive"
        rounds = [run.round(n) for n in range(1, self.n)] if past else []
        resting = [problem_order.resting(rounds[: n - 1], options.skip_solved) for n in range(1, self.n + 1)]

        def available(problem: Problem, n: int) -> bool:
            return run.task.available(problem, n) and problem.key not in resting[n - 1]

        if options.problems == "adaptive":
            pool = [problem for problem in run.train_problems if available(problem, self.n)]
            problems = problem_order.adaptive(pool, options.problems_per_iteration, rounds, seed)
        else:
            count = options.problems_per_iteration
            problems = problem_order.uniform(run.train_problems, count, self.n, seed, available)
        if not problems:
            raise InputError(
                f"iteration {self.n} has no problems: all were solved in each of the last {options.skip_solved} "
                "iterations; set --config.star.skip_solved=0, or stop here with "
                f"--config.star.iterations={self.n - 1}"
            )
        return problems

    def is_done(self, stage: "Stage") -> bool:
        """Whether all outputs of a stage exist; weights only if they are needed."""
        names = [name for name in stage.outputs if name != WEIGHTS or self._needs_weights]
        return all(self.run.run_dir.has(self.n, name) for name in names)

    def put(self, name: str, records: list[Any]) -> None:
        """Keeps a stage's records in memory for the stages after it."""
        self._records[name] = records

    def get(self, kind: type[Record], name: str) -> list[Record]:
        """The records of a stage; empty if it is not part of this iteration.

        Raises InputError for completions of other problems than the iteration's: the data have changed since.
        """
        if name not in self._records:
            path = self.run.run_dir.path(self.n, name)
            records = self.run.run_dir.read_records(kind, path) if self.run.run_dir.exists(path) else []
            self._check_contents(path, records)
            self._records[name] = records
        return self._records[name]

    def sampling_pass(self, name: str) -> SamplingPass:
        """The pass that samples "samples.jsonl" or "rationalizations.jsonl"."""
        config, hinted = self.run.config, name == "rationalizations.jsonl"
        stage = "rationalization" if hinted else "sample"
        return SamplingPass(stage, config.seed, self.n, config.star.samples(self.n), hinted)

    def _check_contents(self, path: Path, records: Sequence[Problem | Completion | Example]) -> None:
        """Raises InputError if a file of an earlier start has records of other problems than the iteration's."""
        completions = [record for record in records if isinstance(record, Completion)]
        if completions:
            everything = path.name == "samples.jsonl"  # only failed problems are rationalized
            check_contents(path, completions, self.problems, self.sampling_pass(path.name), complete=everything)
        keys = {problem.key for problem in self.problems}
        kept = [record for record in records if isinstance(record, Example) and record.iteration == self.n]
        if foreign := [example for example in kept if example.problem_key not in keys]:
            raise InputError(
                f"{path}: {len(foreign)} examples are not of the problems of the data now, the first of "
                f"{foreign[0].problem_id!r}; restore the data, or delete {path.name} to select again"
            )


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of an algorithm."""

    name: str  # its phase in the time profile
    inputs: tuple[str, ...]  # files of the iteration
    outputs: tuple[str, ...]
    run: Callable[[Iteration], None]
    # The iteration whose weights it reads, relative to its own: -1 or 0. None: none, or the base's, which always exist.
    reads_weights: int | None = None
    # What an interrupted start has left of it, in words; "": nothing
    progress: Callable[[Iteration], str] = lambda iteration: ""

    @property
    def title(self) -> str:
        """The stage in a message."""
        return TITLES[self.name]


def sample(iteration: Iteration) -> None:
    """Line 3: a rationale and an answer from M_{n-1} for every problem."""
    _sample_train(iteration, "samples.jsonl", iteration.problems)


def rationalize(iteration: Iteration) -> None:
    """Line 4: sample again, with the answer as a hint, the problems that failed (star.rationalize="all": all)."""
    _sample_train(iteration, "rationalizations.jsonl", _to_rationalize(iteration))


def score_hints(iteration: Iteration) -> None:
    """How much the hint raises the log-probability of each usable rationalization, by the weights that sampled it."""
    run, n, config = iteration.run, iteration.n, iteration.run.config
    found = iteration.get(Completion, "rationalizations.jsonl")
    usable = [c for c in found if selection.is_usable(c, config.selection.check)]
    path = run.run_dir.path(n, ANCHORING)
    if run.samples_from:  # only the weights that sampled a text can score it
        scores = run.samples_from.anchoring(n, ANCHORING, [c.seed for c in usable])
        run.run_dir.write_json(path, {"weights": _sampled_from(run, n), "nats": scores})
        return
    params = run.weights.to_training(n - 1) if usable else None

    def score(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[np.ndarray]:
        return scoring.score(
            run.model,
            params,
            pairs,
            run.mesh,
            vocab_used=run.tokenizer.vocab_size,
            never_sampled=run.tokenizer.never_sampled,
            row_tokens=config.train.row_tokens,
            batch_rows=config.train.batch_rows,
        )

    scores = selection.anchoring_of(run.prompts(n), iteration.problems, usable, score)
    run.run_dir.write_json(path, {"weights": _sampled_from(run, n), "nats": scores})


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
            weights=_sampled_from(run, n),
            options=run.config.selection,
            anchoring=_anchoring(iteration),
            few_shot_train=options.few_shot_train,
            hint_keep_probability=run.config.replication.hint_keep_probability,
        )
        examples = selection.keep(prompts, problems, [*samples, *rationalizations], spec)
    previous = n if options.keep_previous < 0 else options.keep_previous
    for earlier in range(max(1, n - previous), n):
        # Only what that iteration itself kept: its file may hold examples from before it. They are texts with their own
        # prompts and answers, so they stay valid if the data have changed since.
        stored = run.run_dir.read_records(Example, run.run_dir.path(earlier, "kept.jsonl"))
        examples += [e for e in stored if e.iteration == earlier]
    if len(examples) < run.config.selection.min_kept:
        raise InputError(_too_few(run, n, len(examples)))
    run.run_dir.write_records(run.run_dir.path(n, "kept.jsonl"), examples)
    counts = selection.summary(n, problems, samples, rationalizations, examples)
    if not options.direct:
        counts["sampled_from"] = _sampled_from(run, n)
    run.run_dir.write_json(run.run_dir.path(n, "filter.json"), counts)
    run.log.log("filter", n, 0, {k: v for k, v in counts.items() if isinstance(v, int | float) and k != "iteration"})
    iteration.put("kept.jsonl", examples)
    _log_selection(n, samples + rationalizations, counts)


def fine_tune(iteration: Iteration) -> None:
    """Line 7: the ORIGINAL model, fine-tuned on what was kept (star.restart_from: or the previous one)."""
    run, n, examples = iteration.run, iteration.n, iteration.get(Example, "kept.jsonl")
    config, run_dir = run.config, run.run_dir
    # The weights are evaluated while they are saved. If that was interrupted they are trained again, and the
    # evaluations of the lost weights go. So they do if a later stage needs weights that star.keep_weights deleted.
    run_dir.discard(n, "DONE")
    run_dir.discard(n, "eval_*")
    seed = _fine_tuning_seed(iteration)
    with run.phases("pack"):
        rows = _pack(iteration)
        processes.check_equal("what the examples were packed into", rows.digest())
    steps = schedule.fine_tuning_steps(config.star, n, rows.rows, config.train.batch_rows)
    spec = training.FineTuneSpec(
        steps, seed, config.train, config.optimizer, config.replication.z_loss, name=f"iteration {n}: fine-tuning"
    )
    params = run.weights.to_training(0 if config.star.restart_from == "base" else n - 1)
    with metrics.Progress(steps, f"iteration {n}: fine-tuning", "step") as bar:

        def on_step(step: int, values: dict[str, Any]) -> None:
            bar.advance(step - bar.done, f"loss {values['loss']:.3f}")
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
        longer = config.train.row_tokens < run.model.spec.max_positions
        LOG.warning("iteration %d: %d of %d kept examples exceed train.row_tokens = %d and were left out%s", n,
                    rows.too_long, len(examples), config.train.row_tokens,
                    "; a run with a larger --config.train.row_tokens keeps them" * longer)  # fmt: skip
    sizes = {"iteration": n, "examples": len(examples), "too_long": rows.too_long, "rows": rows.rows}
    weights = {"learning_rate": config.optimizer.learning_rate, "weights": fingerprint}
    run_dir.write_json(run_dir.path(n, "finetune.json"), {**sizes, **weights, **dataclasses.asdict(report)})
    LOG.info(
        "iteration %d: %d steps in %.0f s, loss %.3f -> %.3f",
        n, steps, report.seconds, report.loss_first, report.loss_last,
    )  # fmt: skip


def evaluate(iteration: Iteration) -> None:
    """M_n on the split that selects, and on the one that is only reported: greedy, then evaluation.samples."""
    run, n, sampling = iteration.run, iteration.n, iteration.run.config.sampling
    for each in _evaluation_passes(run.config.evaluation):
        completions_file, figures_file = each.files
        if run.run_dir.has(n, completions_file) and run.run_dir.has(n, figures_file):
            continue
        problems = run.eval_problems[each.split]
        sampling_pass = SamplingPass("evaluate", run.config.seed, n, max(1, each.samples))
        if n == 0 and _take_evaluation(run, each, sampling_pass):
            continue
        decoding = Decoding(each.temperature, sampling.top_k, sampling.top_p) if each.samples else Decoding()
        completions, _ = generate(
            run.run_dir,
            run.run_dir.path(n, completions_file),
            run.stream(n, decoding),
            run.prompts(n + 1),  # the prompts with which the next iteration samples
            problems,
            sampling_pass,
        )
        run.weights.wait()
        result = {"iteration": n, "split": each.split, "weights": weights_fingerprint(run, n)}
        if each.samples:
            result |= {"temperature": each.temperature, **accuracy.vote(run.task, problems, completions)}
        else:
            result |= accuracy.score(problems, completions)
        run.run_dir.write_json(run.run_dir.path(n, figures_file), result)
        _log_evaluation(run, n, each, result)


def _take_evaluation(run: Run, each: results.EvaluationPass, sampling_pass: SamplingPass) -> bool:
    """Takes over an evaluation of the base from the run that made it, if that run has one; see shared_base."""
    problems = run.eval_problems[each.split]
    if not (base := run.shared_base) or not (
        taken := base.evaluation(each, run.weights.fingerprint(0), problems, sampling_pass)
    ):
        return False
    completions, result = taken
    LOG.info("the base's %s evaluation is that of %s, whose base and settings are the same", each.split, base.name)
    completions_file, figures_file = each.files
    run.run_dir.write_records(run.run_dir.path(0, completions_file), completions)
    run.run_dir.write_json(run.run_dir.path(0, figures_file), result)
    _log_evaluation(run, 0, each, result)
    return True


def _sampling_progress(iteration: Iteration) -> str:
    return _stored(iteration, "samples.jsonl", len(iteration.problems), iteration.run.config.star.samples(iteration.n))


def _rationalizing_progress(iteration: Iteration) -> str:
    name, per_problem = "rationalizations.jsonl", iteration.run.config.star.samples(iteration.n)
    return _stored(iteration, name, len(_to_rationalize(iteration)), per_problem)


def _fine_tuning_progress(iteration: Iteration) -> str:
    run, n = iteration.run, iteration.n
    reached = train_state.latest_step(run.run_dir.path(n, "train_state"))
    if not reached:
        return ""
    rows = _pack(iteration).rows
    steps = schedule.fine_tuning_steps(run.config.star, n, rows, run.config.train.batch_rows)
    return f"step {reached:,} of {steps:,}"


def _evaluation_progress(iteration: Iteration) -> str:
    for each in _evaluation_passes(iteration.run.config.evaluation):
        completions, figures = each.files
        if not iteration.run.run_dir.has(iteration.n, figures):
            problems = len(iteration.run.eval_problems[each.split])
            return ", ".join(
                filter(None, (each.split, _stored(iteration, completions, problems, max(1, each.samples))))
            )
    return ""


def _stored(iteration: Iteration, name: str, problems: int, per_problem: int = 1) -> str:
    """How much of a sampling stage's output is stored; "" for nothing."""
    path = iteration.run.run_dir.path(iteration.n, name)
    stored = iteration.run.run_dir.unfinished_stage(path).count()
    noun = "problems" if per_problem == 1 else "samples"
    return f"{stored:,} of {problems * per_problem:,} {noun} are stored" if stored else ""


def sampling_stage(hinted: bool, inputs: tuple[str, ...], is_stored: bool) -> Stage:
    """One of the passes of StarConfig.passes.

    `inputs`: the files of the passes before it; `is_stored`: its samples are those of star.samples_from.
    """
    reads = None if is_stored else -1
    if hinted:
        return Stage("rationalize", inputs, ("rationalizations.jsonl",), rationalize, reads, _rationalizing_progress)
    return Stage("sample", inputs, ("samples.jsonl",), sample, reads, _sampling_progress)


def anchoring_stage(is_stored: bool) -> Stage:
    """The scoring of hints, selection.anchoring; `is_stored` as in sampling_stage."""
    return Stage("anchoring", ("rationalizations.jsonl",), (ANCHORING,), score_hints, None if is_stored else -1)


def select_stage(*inputs: str) -> Stage:
    """The selection from these files; from none of them it takes the data set's answers.

    Files and metrics call this stage "filter".
    """
    return Stage("filter", inputs, ("kept.jsonl", "filter.json"), select)


def fine_tune_stage(restart_from: str) -> Stage:
    """The fine-tuning of the weights that star.restart_from names."""
    reads = -1 if restart_from == "previous" else None
    return Stage("fine_tune", ("kept.jsonl",), ("finetune.json", WEIGHTS), fine_tune, reads, _fine_tuning_progress)


def evaluate_stage(options: EvaluationConfig) -> Stage:
    """The evaluation of a run's splits."""
    outputs = tuple(name for each in _evaluation_passes(options) for name in each.files)
    return Stage("evaluate", (WEIGHTS,), outputs, evaluate, 0, _evaluation_progress)


def _evaluation_passes(options: EvaluationConfig) -> list[results.EvaluationPass]:
    """All evaluations of an iteration; the first one selects."""
    passes = [results.EvaluationPass(split) for split in options.splits]
    if options.samples:
        passes.append(results.EvaluationPass(options.split, options.samples, options.temperature))
    return passes


def weights_fingerprint(run: Run, n: int) -> str:
    """The fingerprint of iteration n's weights, which may have been deleted."""
    if n == 0:
        return run.weights.fingerprint(0)
    path = run.run_dir.path(n, "finetune.json")
    return Fields(run.run_dir.read_json(path), path, checksums.REMEDY).text("weights")


def _sampled_from(run: Run, n: int) -> str:
    """The fingerprint of the weights that iteration n's samples were drawn from."""
    return run.samples_from.weights(n) if run.samples_from else weights_fingerprint(run, n - 1)


def _sample_train(iteration: Iteration, name: str, problems: list[Problem]) -> None:
    run, n, options = iteration.run, iteration.n, iteration.run.config.sampling
    decoding = Decoding(options.temperature_of(n), options.top_k, options.top_p)
    sampling_pass = iteration.sampling_pass(name)
    if run.samples_from:
        completions = run.samples_from.completions(n, name, problems, sampling_pass)
        run.run_dir.write_records(run.run_dir.path(n, name), completions)
        iteration.put(name, completions)
        return
    completions, throughput = generate(
        run.run_dir,
        run.run_dir.path(n, name),
        run.stream(n - 1, decoding),
        run.prompts(n),
        problems,
        sampling_pass,
    )
    if throughput:
        run.log.log(sampling_pass.name, n, 0, throughput.figures())
    iteration.put(name, completions)


def _anchoring(iteration: Iteration) -> dict[str, float]:
    """Seed of each scored rationalization -> nats; empty unless selection.scores_hints."""
    path = iteration.run.run_dir.path(iteration.n, ANCHORING)
    if not iteration.run.config.selection.scores_hints or not iteration.run.run_dir.exists(path):
        return {}
    return results.anchoring(iteration.run.run_dir.read_json(path), path)


def _to_rationalize(iteration: Iteration) -> list[Problem]:
    """The problems of the iteration that failed and get a hint."""
    config = iteration.run.config
    return selection.to_rationalize(
        iteration.problems,
        iteration.get(Completion, "samples.jsonl"),
        config.replication.rationalize_probability,
        config.seed,
        iteration.n,
        config.selection.check,
    )


def _pack(iteration: Iteration) -> packing.PackedRows:
    """The rows that the iteration's fine-tuning sees."""
    run, examples = iteration.run, iteration.get(Example, "kept.jsonl")
    return packing.pack(examples, run.tokenizer, run.config.train.row_tokens, _fine_tuning_seed(iteration))


def _fine_tuning_seed(iteration: Iteration) -> int:
    return 1_000_000 * (iteration.run.config.seed + 1) + iteration.n


def _base_moments(run: Run) -> checkpoint.Moments | None:
    """The Adam moments stored with the base, from disk: they do not exist while sampling."""
    if not run.config.replication.base_moments:
        return None
    with run.phases("load"):
        return checkpoint.load_moments(Path(run.config.base.path), run.mesh)


def _too_few(run: Run, n: int, kept: int) -> str:
    """An iteration kept fewer examples than selection.min_kept; names what is not done yet and may help."""
    options, prompt, minimum = run.config.star, run.config.prompt, run.config.selection.min_kept
    what = "problems have a reference answer" if options.direct else "completions reached a right answer"
    remedies = []
    if not options.direct:
        remedies.append("a base that solves some problems (--config.base.path=MODEL)")
        if not prompt.shots:
            packaged = few_shot.are_packaged(run.config.task["name"])
            files = "" if packaged or prompt.directory else " --config.prompt.directory=FOLDER_OF_THEIR_FILES"
            remedies.append(f"few-shot prompts (--config.prompt.shots=N{files})")
        if options.rationalize == "none":
            remedies.append("--config.star.rationalize=failed")
        elif n < options.rationalize_from:
            remedies.append(f"--config.star.rationalize_from={n}")
    if kept:
        remedies.append(f"--config.selection.min_kept={kept}")
    advice = f"give {' or '.join(remedies)}, in another --workdir" if remedies else "give problems that have one"
    return f"iteration {n} kept {kept or 'nothing'}: too few {what} (selection.min_kept = {minimum}); {advice}"


def _log_selection(n: int, completions: list[Completion], counts: dict[str, Any]) -> None:
    if not completions:
        LOG.info("iteration %d: %d reference answers kept", n, counts["kept_reference"])
        return
    solved = len({c.problem_id for c in completions if c.verdict == Verdict.RIGHT and not c.hinted})
    LOG.info("iteration %d: %d of %d problems right, %d rationalized, %d kept", n, solved, counts["problems"],
             counts["kept_rationalized"], counts["kept"])  # fmt: skip
    if counts["kept_retokenized"]:
        LOG.info("iteration %d: %d kept completions were cut inside a token, the rest of which is encoded for training "
                 "(problems %s)", n, counts["kept_retokenized"], ", ".join(counts["retokenized_problems"]))  # fmt: skip


def _log_evaluation(run: Run, n: int, each: results.EvaluationPass, result: dict[str, Any]) -> None:
    split = each.split
    if each.samples:
        rates = {key: value["accuracy"] for key, value in result.items() if isinstance(value, dict) and "ci95" in value}
        run.log.log(f"evaluate_{each.samples}_samples", n, 0, rates)
        LOG.info("iteration %d: %s, %d samples: %s", n, split, each.samples,
                 ", ".join(f"{name} {rate:.3f}" for name, rate in rates.items()))  # fmt: skip
        return
    by_category = {f"accuracy {name}": value["accuracy"] for name, value in result["by_category"].items()}
    figures = {k: v for k, v in result.items() if isinstance(v, int | float) and k != "iteration"}
    stage = "evaluate" if split == run.config.evaluation.split else f"evaluate_{split}"
    run.log.log(stage, n, 0, {**figures, **by_category})
    names = ", ".join(f"{name} {value['accuracy']:.2f}" for name, value in result["by_category"].items() if name)
    LOG.info("iteration %d: %s accuracy %.3f [%.3f, %.3f]%s", n, split, result["accuracy"], *result["ci95"],
             f"; mean of categories {result['mean_of_categories']:.3f} ({names})" if names else "")  # fmt: skip
