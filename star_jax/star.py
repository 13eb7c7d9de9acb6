"""Algorithm 1 of the paper: sample, rationalize, filter, fine-tune the original model, evaluate; again.

The controller has no state but the files of the run's directory: each stage first looks whether its output
is there. So the command that started a run also goes on with it.
"""

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from star_jax import checkpoint, data, filter, metrics, pretrain, report, sharding, tokenizer, train
from star_jax import evaluate as ev
from star_jax import model as gptj
from star_jax.config import Config, StarConfig
from star_jax.errors import InputError
from star_jax.ledger import Ledger
from star_jax.records import Completion, Example, Problem, read_jsonl, write_lines
from star_jax.sampler import Decoding, Sampler
from star_jax.tasks import Task

LOG = logging.getLogger("star_jax")


def run(config: Config, workdir: Path | str) -> Path:
    """Runs, or goes on with, the whole loop in `workdir`; returns the path of its report.

    Raises InputError for settings that do not fit each other, the files, or an earlier run in this directory.
    """
    star = _open(config, Path(workdir))
    with sharding.use(star.mesh):
        base = star.weights(0)
        _evaluate(star, 0, base)
        _finish(star, 0)
        for n in range(1, config.star.iterations + 1):
            if star.ledger.done(n):
                continue
            problems = iteration_problems(star.train_problems, config.star.problems_per_iteration, n, config.seed)
            if config.star.direct:
                samples, rationalizations = [], []
            else:
                samples = _sample(star, n, problems)
                rationalizations = _rationalize(star, n, problems, samples)
            examples = _filter(star, n, problems, samples, rationalizations)
            params = _fine_tune(star, n, examples)
            _evaluate(star, n, params)
            _finish(star, n)
    star.log.close()
    path = report.write(star.ledger.workdir)
    LOG.info("report: %s", path)
    return path


def fine_tuning_steps(config: StarConfig, iteration: int, rows: int, batch_rows: int) -> int:
    """Steps of iteration 1, 2, ...: 40 x 1.2^(n-1) in the paper; start + k (n-1) for its arithmetic; or by epochs."""
    if config.schedule == "exponential":
        return int(config.steps * config.step_growth ** (iteration - 1))
    if config.schedule == "linear":
        return config.steps + config.step_increment * (iteration - 1)
    return max(1, math.ceil(config.epochs * rows / batch_rows))


def iteration_problems(problems: Sequence[Problem], wanted: int, iteration: int, seed: int) -> list[Problem]:
    """The problems of an iteration: the next `wanted` of an endless, seeded sequence of shuffled passes (0: all).

    No problem comes twice in an iteration, and none comes a second time before all came once.
    """
    if wanted == 0 or wanted >= len(problems):
        return list(problems)
    order: list[int] = []
    passes = 0
    for _ in range(iteration):
        chosen, rest = order[:wanted], order[wanted:]
        if len(chosen) < wanted:
            fresh = np.random.default_rng([seed, passes]).permutation(len(problems)).tolist()
            passes += 1
            taken = set(chosen)
            rest = [i for i in fresh if i in taken]  # their turn in the new pass comes later
            fresh = [i for i in fresh if i not in taken]
            missing = wanted - len(chosen)
            chosen, rest = chosen + fresh[:missing], fresh[missing:] + rest
        order = rest
    return [problems[i] for i in chosen]


@dataclasses.dataclass
class _Star:
    """What all stages need."""

    config: Config
    ledger: Ledger
    task: Task
    tokenizer: tokenizer.Tokenizer
    mesh: Mesh
    model: gptj.GPTJ
    train_problems: list[Problem]
    eval_problems: list[Problem]
    log: metrics.MetricsLog
    _weights: dict[int, tuple[gptj.Params, str]] = dataclasses.field(default_factory=dict)
    _samplers: dict[Decoding, Sampler] = dataclasses.field(default_factory=dict)

    def weights(self, n: int) -> gptj.Params:
        """The weights of iteration n, 0 for the base: from memory, from disk, or made."""
        if n not in self._weights:
            directory = self.ledger.path(n, "params") if n else self.ledger.workdir / "base"
            if n == 0 and not checkpoint.exists(directory):
                _make_base(self, directory)
            else:
                self.remember(n, checkpoint.load_model(directory, self.mesh)[1])
        return self._weights[n][0]

    def fingerprint(self, n: int) -> str:
        """What provenance calls these weights."""
        self.weights(n)
        return self._weights[n][1]

    def remember(self, n: int, params: gptj.Params) -> None:
        """Keeps the base and the latest weights in memory, so that a restart from base reads nothing."""
        self._weights = {k: v for k, v in self._weights.items() if k == 0}
        self._weights[n] = (params, checkpoint.fingerprint(params))

    def sampler(self, params: gptj.Params, decoding: Decoding) -> Sampler:
        """A sampler of these weights; what does not depend on them (the stop automaton) is made once."""
        if decoding not in self._samplers:
            made = ev.make_sampler(self.config, self.task, self.model, params, self.tokenizer, decoding)
            self._samplers[decoding] = made.with_params(None)  # weights of a past iteration must not stay alive
        return self._samplers[decoding].with_params(params)


def _open(config: Config, workdir: Path) -> _Star:
    """Checks everything that can be checked before the first long stage."""
    threading.Thread(target=data.warm_up, daemon=True).start()
    task = config.make_task()
    ev.prompts_of(config, 1)
    ledger = Ledger(workdir)
    mesh = sharding.make_mesh(config.mesh)
    if config.base.path:
        words = checkpoint.load_tokenizer(config.base.path)
    else:
        words = tokenizer.make(config.tokenizer, task.symbols)
    eval_problems = ev.split_problems(config, task, config.evaluation.split)
    train_problems = task.problems("train")
    if not train_problems:
        raise InputError("the train split holds no problems")
    if config.model.vocab_size < words.vocab_size:
        raise InputError(
            f"model.vocab_size must be at least {words.vocab_size}, the tokenizer's; got {config.model.vocab_size}"
        )
    _warn_of_cut_references(config, task, words, eval_problems)
    ledger.open(config.to_dict(), may_change=("star.iterations", "tensorboard"))
    for split, problems in (("train", train_problems), (config.evaluation.split, eval_problems)):
        # Completions name their problem by id: with these files the directory can be read by itself.
        path = workdir / f"problems_{split}.jsonl"
        if not path.exists():
            ledger.write_text(path, write_lines(problems))
    log = metrics.MetricsLog(workdir, config.tensorboard)
    model = gptj.GPTJ(config.model)
    return _Star(config, ledger, task, words, mesh, model, train_problems, eval_problems, log)


def _warn_of_cut_references(
    config: Config, task: Task, words: tokenizer.Tokenizer, problems: Sequence[Problem]
) -> None:
    """A budget that even the reference exceeds makes a problem unsolvable; say so before hours are spent."""
    budget = config.sampling.max_new_tokens or task.max_new_tokens
    lengths = {p.id: len(words.encode(text)) + 1 for p in problems if (text := task.reference(p)) is not None}
    longest = max(lengths, key=lambda name: lengths[name], default=None)
    if longest is not None and lengths[longest] > budget:
        over = sum(n > budget for n in lengths.values())
        LOG.warning(
            "%d of %d references exceed the budget of %d new tokens (%s has %d): raise sampling.max_new_tokens",
            over, len(lengths), budget, longest, lengths[longest],
        )  # fmt: skip


def _make_base(star: _Star, directory: Path) -> None:
    """Takes the base from `base.path`, or pretrains it, and stores it in the run."""
    config = star.config
    if config.base.path:
        model, params = checkpoint.load_model(config.base.path, star.mesh)
        sizes = {k: (v, getattr(model.config, k)) for k, v in config.model.__dict__.items() if k in _SHAPES}
        if wrong := [f"{k} {want} (the base has {got})" for k, (want, got) in sizes.items() if want != got]:
            raise InputError(f"base.path {config.base.path} does not fit the config: model.{', model.'.join(wrong)}")
    else:
        total, started = sum(stage.steps for stage in config.base.stages), time.monotonic()
        with metrics.progress(total, "pretraining the base", "step") as bar:

            def on_step(step: int, values: dict[str, Any]) -> None:
                bar.update(step - bar.n)
                bar.set_postfix_str(f"loss {values['loss']:.3f}")
                star.log.log("pretrain", 0, step, values)

            params, reports = pretrain.make_base(config, star.model, star.tokenizer, star.mesh, on_step)
        seconds = time.monotonic() - started
        star.log.log("base", 0, 0, {"seconds": round(seconds, 2), "tokens": sum(r.tokens for r in reports)})
        LOG.info("base: %d steps in %.0f s, loss %.3f", total, seconds, reports[-1].loss_last)
    checkpoint.save_model(directory, star.model, params, star.tokenizer)
    star.remember(0, params)


_SHAPES = ("n_layers", "d_model", "n_heads", "d_mlp", "rotary_dim", "vocab_size")


def _sample(star: _Star, n: int, problems: list[Problem]) -> list[Completion]:
    """Line 3: a rationale and an answer from M_{n-1} for every problem."""
    return _draw(star, n, "samples.jsonl", problems, hinted=False)


def _rationalize(star: _Star, n: int, problems: list[Problem], samples: list[Completion]) -> list[Completion]:
    """Line 4: once more, with the answer as a hint, for the problems that failed."""
    options = star.config.star
    if not options.rationalize:
        return []
    failed = filter.to_rationalize(problems, samples, options.rationalize_probability, star.config.seed, n)
    return _draw(star, n, "rationalizations.jsonl", failed, hinted=True)


def _draw(star: _Star, n: int, name: str, problems: list[Problem], hinted: bool) -> list[Completion]:
    stage = name.removesuffix(".jsonl").removesuffix("s")
    options = star.config.sampling
    decoding = Decoding(options.temperature, options.top_k, options.top_p)
    return ev.complete(
        star.ledger,
        star.ledger.path(n, name),
        star.sampler(star.weights(n - 1), decoding),
        star.task,
        problems,
        ev.prompts_of(star.config, n),
        what=stage,
        seed=star.config.seed,
        iteration=n,
        draws=star.config.star.draws,
        hinted=hinted,
        log=lambda values: star.log.log(stage, n, 0, values),
    )


def _filter(
    star: _Star, n: int, problems: list[Problem], samples: list[Completion], rationalizations: list[Completion]
) -> list[Example]:
    """Lines 5 and 6: what reached the right answer, hint-free, with its provenance."""
    kept_path, options = star.ledger.path(n, "kept.jsonl"), star.config.star
    if star.ledger.done(n, "filter.json"):
        return list(read_jsonl(Example, kept_path))
    prompts = ev.prompts_of(star.config, n)
    if options.direct:
        examples = filter.references(star.task, problems, prompts, few_shot_train=options.few_shot_train, iteration=n)
    else:
        examples = filter.keep(
            star.task,
            problems,
            [*samples, *rationalizations],
            prompts,
            per_problem=options.keep_per_problem,
            few_shot_train=options.few_shot_train,
            hint_keep_probability=options.hint_keep_probability,
            seed=star.config.seed,
            weights=star.fingerprint(n - 1),
        )
    for earlier in range(max(1, n - options.keep_previous), n):
        # Only what that iteration itself kept: its file may hold still earlier ones.
        examples += [e for e in read_jsonl(Example, star.ledger.path(earlier, "kept.jsonl")) if e.iteration == earlier]
    if not examples:
        raise InputError(
            f"iteration {n} kept nothing: no completion reached a right answer; give shots (prompt.shots), "
            "a base that can solve some problems, or star.rationalize=True"
        )
    star.ledger.write_text(kept_path, write_lines(examples))
    counts = filter.summary(n, problems, samples, rationalizations, examples)
    star.ledger.write_json(star.ledger.path(n, "filter.json"), counts)
    star.log.log("filter", n, 0, {k: v for k, v in counts.items() if isinstance(v, int) and k != "iteration"})
    if options.direct:
        LOG.info("iteration %d: %d reference answers kept", n, counts["kept_reference"])
    else:
        LOG.info("iteration %d: %d of %d problems right, %d rationalized, %d kept", n, counts["right"], len(problems),
                 counts["kept_rationalized"], len(examples))  # fmt: skip
    return examples


def _fine_tune(star: _Star, n: int, examples: list[Example]) -> gptj.Params:
    """Line 7: the ORIGINAL model, fine-tuned on what was kept."""
    config, ledger, directory = star.config, star.ledger, star.ledger.path(n, "params")
    if ledger.done(n, "finetune.json"):
        return star.weights(n)
    start = star.weights(0 if config.star.restart_from == "base" else n - 1)
    seed = 1_000_000 * (config.seed + 1) + n
    rows = data.pack(examples, star.tokenizer, config.train.row_tokens, seed)
    steps = fine_tuning_steps(config.star, n, rows.rows, config.train.batch_rows)
    with metrics.progress(steps, f"iteration {n}: fine-tune", "step") as bar:

        def on_step(step: int, values: dict[str, Any]) -> None:
            bar.update(step - bar.n)
            bar.set_postfix_str(f"loss {values['loss']:.3f}")
            star.log.log("fine_tune", n, step, values)

        params, done = train.fine_tune(
            star.model,
            start,
            rows,
            steps=steps,
            seed=seed,
            train=config.train,
            optimizer_config=config.optimizer,
            mesh=star.mesh,
            state_dir=ledger.path(n, "train_state"),
            on_step=on_step,
        )
    if not checkpoint.exists(directory):
        checkpoint.save_model(directory, star.model, params, star.tokenizer)
    star.remember(n, params)
    about: dict[str, Any] = {"iteration": n, "examples": len(examples), "too_long": rows.too_long, "rows": rows.rows}
    about |= {"learning_rate": config.optimizer.learning_rate, "weights": star.fingerprint(n)}
    ledger.write_json(ledger.path(n, "finetune.json"), {**about, **dataclasses.asdict(done)})
    LOG.info(
        "iteration %d: %d steps in %.0f s, loss %.3f -> %.3f", n, steps, done.seconds, done.loss_first, done.loss_last
    )
    return params


def _evaluate(star: _Star, n: int, params: gptj.Params) -> None:
    """Accuracy of M_n, drawn greedily behind the prompts that iteration n + 1 would use."""
    split = star.config.evaluation.split
    if star.ledger.done(n, f"eval_{split}.json"):
        return
    completions = ev.complete(
        star.ledger,
        star.ledger.path(n, f"eval_{split}.jsonl"),
        star.sampler(params, Decoding()),
        star.task,
        star.eval_problems,
        ev.prompts_of(star.config, n + 1),
        what="evaluate",
        seed=star.config.seed,
        iteration=n,
    )
    result = {
        "iteration": n,
        "split": split,
        "weights": star.fingerprint(n),
        **ev.score(star.eval_problems, completions),
    }
    star.ledger.write_json(star.ledger.path(n, f"eval_{split}.json"), result)
    by_class = {f"accuracy {name}": value["accuracy"] for name, value in result["by_class"].items()}
    flat = {k: v for k, v in result.items() if isinstance(v, int | float) and k != "iteration"}
    star.log.log("evaluate", n, 0, {**flat, **by_class})
    classes = ", ".join(f"{name} {value['accuracy']:.2f}" for name, value in result["by_class"].items())
    LOG.info("iteration %d: %s accuracy %.3f, mean of classes %.3f (%s)", n, split, result["accuracy"],
             result["mean_of_classes"], classes)  # fmt: skip


def _finish(star: _Star, n: int) -> None:
    """Marks an iteration as done and brings the report up to date."""
    if not star.ledger.done(n):
        star.ledger.write_text(star.ledger.path(n, "DONE"), f"{time.time():.0f}\n")
        report.write(star.ledger.workdir)
