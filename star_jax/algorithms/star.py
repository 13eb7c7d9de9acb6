"""Algorithm 1 of the paper: sample, rationalize, filter, fine-tune the original model, evaluate; again.

The controller has no state but the files of the run's directory: each stage first looks whether its output
is there. So the command that started a run also goes on with it.
"""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

from star_jax import report
from star_jax.algorithms import selection, setup
from star_jax.algorithms.schedule import fine_tuning_steps, iteration_problems
from star_jax.algorithms.setup import Run
from star_jax.config import Config
from star_jax.distributed import processes
from star_jax.errors import InputError, Stopped
from star_jax.evaluation import accuracy, collapse, stored_run
from star_jax.evaluation import generate as ev
from star_jax.records import Completion, Example, Problem, Verdict, write_lines
from star_jax.runs import console, metrics
from star_jax.sampling.token_sampling import Decoding
from star_jax.training import fine_tune, packing

LOG = logging.getLogger("star_jax")


def run(config: Config, workdir: Path | str, allow_changes: bool = False) -> Path:
    """Runs, or goes on with, the whole loop in `workdir`; returns the path of its report.

    `allow_changes`: goes on with a run of other settings, data, prompts or versions, and records what differs.

    Raises InputError for settings that do not fit each other, the files, or an earlier run in this directory.
    """
    star = setup.open_run(config, Path(workdir), allow_changes)
    try:
        _evaluate(star, 0)
        _finish(star, 0)
        for n in range(1, config.star.iterations + 1):
            if not _whole(star, n):
                _iterate(star, n)
        path = _report(star)
    except Stopped:
        star.settle()  # weights that are being written
        raise
    finally:
        star.close()
    LOG.info("report: %s", path)
    return path


def _whole(star: Run, n: int) -> bool:
    """Whether nothing of an iteration is to be made: its files are there, and its weights if the next needs them."""
    needed = n < star.config.star.iterations and not star.run_dir.done(n + 1)
    return star.run_dir.whole(n) and (not needed or star.has_model(n))


def _iterate(star: Run, n: int) -> None:
    """One outer iteration: M_{n-1} -> M_n."""
    options = star.config.star
    available = [p for p in star.train_problems if star.task.available(p, n)]
    problems = iteration_problems(available, options.problems_per_iteration, n, star.config.seed)
    samples, rationalizations = [], []
    if not options.direct:
        samples = _sample(star, n, problems)
        rationalizations = _rationalize(star, n, problems, samples)
    with star.phases("filter"):
        examples = _filter(star, n, problems, samples, rationalizations)
    _fine_tune(star, n, examples)
    _evaluate(star, n)
    _finish(star, n)


def _report(star: Run) -> Path:
    with star.phases("report"):
        return Path(processes.broadcast_from_leader(lambda: str(report.write(star.run_dir.workdir))))


def _sample(star: Run, n: int, problems: list[Problem]) -> list[Completion]:
    """Line 3: a rationale and an answer from M_{n-1} for every problem."""
    return _draw(star, n, "samples.jsonl", problems, hinted=False)


def _rationalize(star: Run, n: int, problems: list[Problem], samples: list[Completion]) -> list[Completion]:
    """Line 4: once more, with the answer as a hint, for the problems that failed."""
    options = star.config.star
    if not options.rationalize or n < options.rationalize_from:
        return []
    failed = selection.to_rationalize(
        problems, samples, options.rationalize_probability, star.config.seed, n, options.require_consistent
    )
    return _draw(star, n, "rationalizations.jsonl", failed, hinted=True)


def _draw(star: Run, n: int, name: str, problems: list[Problem], hinted: bool) -> list[Completion]:
    stage = name.removesuffix(".jsonl").removesuffix("s")
    options = star.config.sampling
    decoding = Decoding(options.temperature, options.top_k, options.top_p)
    sampler = star.sampler(n - 1, decoding)
    with star.phases("rationalize" if hinted else "sample"):
        return ev.complete(
            star.run_dir,
            star.run_dir.path(n, name),
            sampler,
            star.task,
            problems,
            ev.prompts_of(star.config, n),
            what=stage,
            seed=star.config.seed,
            iteration=n,
            draws=star.config.star.samples_per_problem,
            hinted=hinted,
            log=lambda values: star.log.log(stage, n, 0, values),
            meanwhile=packing.warm_up,
        )


def _filter(
    star: Run, n: int, problems: list[Problem], samples: list[Completion], rationalizations: list[Completion]
) -> list[Example]:
    """Lines 5 and 6: what reached the right answer, hint-free, with its provenance."""
    kept_path, options = star.run_dir.path(n, "kept.jsonl"), star.config.star
    if star.run_dir.done(n, "filter.json") and star.run_dir.exists(kept_path):
        return star.run_dir.read_lines(Example, kept_path)
    prompts = ev.prompts_of(star.config, n)
    if options.direct:
        examples = selection.references(
            star.task, problems, prompts, few_shot_train=options.few_shot_train, iteration=n
        )
    else:
        examples = selection.keep(
            star.task,
            problems,
            [*samples, *rationalizations],
            prompts,
            per_problem=options.keep_per_problem,
            few_shot_train=options.few_shot_train,
            hint_keep_probability=options.hint_keep_probability,
            seed=star.config.seed,
            weights=star.fingerprint(n - 1),
            require_consistent=options.require_consistent,
        )
    for earlier in range(max(1, n - options.keep_previous), n):
        # Only what that iteration itself kept: its file may hold still earlier ones.
        before = star.run_dir.read_lines(Example, star.run_dir.path(earlier, "kept.jsonl"))
        examples += [e for e in before if e.iteration == earlier]
    if len(examples) < options.min_kept:
        raise InputError(
            f"iteration {n} kept {len(examples) or 'nothing'}: too few completions reached a right answer "
            f"(star.min_kept = {options.min_kept}); give shots (prompt.shots), a base that can solve some problems, "
            "or star.rationalize=True"
        )
    star.run_dir.write_text(kept_path, write_lines(examples))
    counts = selection.summary(n, problems, samples, rationalizations, examples)
    star.run_dir.write_json(star.run_dir.path(n, "filter.json"), counts)
    star.log.log("filter", n, 0, {k: v for k, v in counts.items() if isinstance(v, int | float) and k != "iteration"})
    if options.direct:
        LOG.info("iteration %d: %d reference answers kept", n, counts["kept_reference"])
    else:
        solved = len({s.problem_id for s in samples if s.verdict == Verdict.RIGHT})
        LOG.info("iteration %d: %d of %d problems right, %d rationalized, %d kept", n, solved, len(problems),
                 counts["kept_rationalized"], len(examples))  # fmt: skip
    return examples


def _fine_tune(star: Run, n: int, examples: list[Example]) -> None:
    """Line 7: the ORIGINAL model, fine-tuned on what was kept."""
    config, run_dir = star.config, star.run_dir
    if run_dir.done(n, "finetune.json") and star.has_model(n):
        run_dir.remove(run_dir.path(n, "train_state"))  # a kill may have come between the two
        return
    star.let_go()
    # Weights may be evaluated while they are being saved. If that was cut short, these are trained anew, and what was
    # drawn from the others goes with them.
    run_dir.discard(n, "eval_*")
    seed = 1_000_000 * (config.seed + 1) + n
    with star.phases("pack"):
        rows = packing.pack(examples, star.tokenizer, config.train.row_tokens, seed)
        processes.check_equal("what the examples were packed into", rows.digest())
    steps = fine_tuning_steps(config.star, n, rows.rows, config.train.batch_rows)
    params, moments = star.load(0 if config.star.restart_from == "base" else n - 1), star.moments()
    with star.phases("fine_tune"), metrics.progress(steps, f"iteration {n}: fine-tune", "step") as bar:

        def on_step(step: int, values: dict[str, Any]) -> None:
            bar.update(step - bar.n)
            bar.set_postfix_str(f"loss {values['loss']:.3f}")
            star.log.log("fine_tune", n, step, values)

        params, done = fine_tune.fine_tune(
            star.model,
            params,
            rows,
            steps=steps,
            seed=seed,
            train=config.train,
            optimizer_config=config.optimizer,
            mesh=star.mesh,
            moments=moments,
            state_dir=run_dir.path(n, "train_state"),
            on_step=on_step,
        )
    if rows.too_long:
        LOG.warning("iteration %d: %d of %d kept examples exceed train.row_tokens = %d and were left out", n,
                    rows.too_long, len(examples), config.train.row_tokens)  # fmt: skip
    about: dict[str, Any] = {"iteration": n, "examples": len(examples), "too_long": rows.too_long, "rows": rows.rows}

    def record() -> None:
        weights = {"learning_rate": config.optimizer.learning_rate, "weights": star.fingerprint(n)}
        run_dir.write_json(run_dir.path(n, "finetune.json"), {**about, **weights, **dataclasses.asdict(done)})
        run_dir.remove(run_dir.path(n, "train_state"))

    star.keep(n, params, then=record)
    LOG.info(
        "iteration %d: %d steps in %.0f s, loss %.3f -> %.3f", n, steps, done.seconds, done.loss_first, done.loss_last
    )


def _evaluate(star: Run, n: int) -> None:
    """Accuracy of M_n on the split that selects, and on the one that is only reported."""
    with star.phases("evaluate"):
        for split, problems in star.eval_problems.items():
            _evaluate_split(star, n, split, problems)


def _evaluate_split(star: Run, n: int, split: str, problems: list[Problem]) -> None:
    """Drawn greedily behind the prompts that iteration n + 1 would use."""
    if star.run_dir.done(n, f"eval_{split}.json"):
        return
    completions = ev.complete(
        star.run_dir,
        star.run_dir.path(n, f"eval_{split}.jsonl"),
        star.sampler(n, Decoding()),
        star.task,
        problems,
        ev.prompts_of(star.config, n + 1),
        what="evaluate",
        seed=star.config.seed,
        iteration=n,
        meanwhile=packing.warm_up,
    )
    star.settle()
    result = {
        "iteration": n,
        "split": split,
        "weights": star.fingerprint(n),
        **accuracy.score(problems, completions),
    }
    star.run_dir.write_json(star.run_dir.path(n, f"eval_{split}.json"), result)
    by_category = {f"accuracy {name}": value["accuracy"] for name, value in result["by_category"].items()}
    flat = {k: v for k, v in result.items() if isinstance(v, int | float) and k != "iteration"}
    stage = "evaluate" if split == star.config.evaluation.split else f"evaluate_{split}"
    star.log.log(stage, n, 0, {**flat, **by_category})
    classes = ", ".join(f"{name} {value['accuracy']:.2f}" for name, value in result["by_category"].items() if name)
    LOG.info("iteration %d: %s accuracy %.3f [%.3f, %.3f]%s", n, split, result["accuracy"], *result["ci95"],
             f"; mean of classes {result['mean_of_categories']:.3f} ({classes})" if classes else "")  # fmt: skip


def _finish(star: Run, n: int) -> None:
    """Marks an iteration as done and brings the report up to date."""
    if not star.run_dir.done(n):
        star.run_dir.write_text(star.run_dir.path(n, "DONE"), f"{time.time():.0f}\n")
        _warn(star, n)
        _let_weights_go(star, n)
        path = _report(star)
        _log_phases(star, n)
        if n:
            _summarize(star, n, path)


def _summarize(star: Run, n: int, path: Path) -> None:
    """Prints the figures of the iterations so far."""
    run_dir, name = star.run_dir, f"eval_{star.config.evaluation.split}.json"
    evaluations = [run_dir.read_json(run_dir.path(i, name)) for i in range(n + 1)]
    counts = [run_dir.read_json(run_dir.path(i, "filter.json")) if i else None for i in range(n + 1)]
    if processes.is_leader():
        console.show(evaluations, counts, str(path))


def _warn(star: Run, n: int) -> None:
    """Says what looks like a collapse beside the iteration before."""
    run_dir, name, signs = star.run_dir, f"eval_{star.config.evaluation.split}.json", []
    if n > 1:  # nothing is drawn for iteration 0, nor where answers are trained on: no alarm
        signs += collapse.of_draws(*(run_dir.read_json(run_dir.path(i, "filter.json")) for i in (n - 1, n)))
    if n > 0:
        results = [run_dir.read_json(run_dir.path(i, name)) for i in (n - 1, n)]
        signs += collapse.of_accuracy(*((result["accuracy"], *result["ci95"]) for result in results))
    for sign in signs:
        LOG.warning("iteration %d: %s", n, sign)


def _log_phases(star: Run, n: int) -> None:
    """Says where the time of an iteration went, as far as this process has seen it."""
    seconds = star.phases.take()
    total = sum(seconds.values())
    star.log.log("phases", n, 0, {name: round(value, 3) for name, value in {**seconds, "total": total}.items()})
    told = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if value >= 0.05)
    LOG.info("iteration %d: %.1f s: %s", n, total, told)


def _let_weights_go(star: Run, n: int) -> None:
    """Deletes the weights of earlier iterations that star.keep_weights does not ask for; the best's stay."""
    keep = star.config.star.keep_weights
    if keep:
        best = stored_run.best_iteration(star.run_dir, star.config.evaluation.split)
        for earlier in range(1, n - keep + 1):
            if earlier != best:
                star.run_dir.remove(star.directory(earlier))
