"""What a run needs before its first long stage: all that can be checked is checked, then the base is made."""

import dataclasses
import logging
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from star_jax import checkpoint, data, metrics, pretrain, sharding, tokenizer
from star_jax import evaluate as ev
from star_jax import model as gpt
from star_jax.config import SIZES, Config, ModelConfig
from star_jax.errors import InputError
from star_jax.ledger import Ledger
from star_jax.records import Problem, write_lines
from star_jax.sampler import Decoding, Sampler
from star_jax.tasks import Task

LOG = logging.getLogger("star_jax")


@dataclasses.dataclass
class Run:
    """What all stages need."""

    config: Config
    ledger: Ledger
    task: Task
    tokenizer: tokenizer.Tokenizer
    mesh: Mesh
    model: gpt.GPT
    train_problems: list[Problem]
    eval_problems: dict[str, list[Problem]]  # of the split that selects, first, and of the one that is only reported
    log: metrics.MetricsLog
    _weights: dict[int, tuple[gpt.Params, str]] = dataclasses.field(default_factory=dict)
    _samplers: dict[Decoding, Sampler] = dataclasses.field(default_factory=dict)

    def weights(self, n: int) -> gpt.Params:
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

    def remember(self, n: int, params: gpt.Params) -> None:
        """Keeps the base and the latest weights in memory, so that a restart from base reads nothing."""
        self._weights = {k: v for k, v in self._weights.items() if k == 0}
        self._weights[n] = (params, checkpoint.fingerprint(params))

    def moments(self) -> checkpoint.Moments | None:
        """The Adam moments each fine-tuning begins with, from disk: they do not exist while sampling."""
        if not self.config.optimizer.base_moments:
            return None
        return checkpoint.load_moments(Path(self.config.base.path), self.mesh)

    def sampler(self, params: gpt.Params, decoding: Decoding) -> Sampler:
        """A sampler of these weights; what does not depend on them (the stop automaton) is made once."""
        if decoding not in self._samplers:
            made = ev.make_sampler(self.config, self.task, self.model, params, self.tokenizer, decoding)
            self._samplers[decoding] = made.with_params(None)  # weights of a past iteration must not stay alive
        return self._samplers[decoding].with_params(params)


def open_run(config: Config, workdir: Path) -> Run:
    """A run that is checked and stored but has done nothing yet. Raises InputError."""
    threading.Thread(target=data.warm_up, daemon=True).start()
    task = config.make_task()
    ev.prompts_of(config, 1)
    ledger = Ledger(workdir)
    mesh = sharding.make_mesh(config.mesh)
    # The run's own copy of the base, once it is there: going on needs nothing outside its directory.
    base = workdir / "base" if checkpoint.exists(workdir / "base") else Path(config.base.path)
    sizes = _model_config(config, base)
    config = dataclasses.replace(config, model=sizes)  # what is stored says what was run
    if config.optimizer.base_moments and not checkpoint.has_moments(Path(config.base.path)):
        raise InputError(f"optimizer.base_moments: base.path {config.base.path} holds none; see star_jax.convert")
    words = _tokenizer(config, task, base)
    splits = [config.evaluation.split, *filter(None, [config.evaluation.report_split])]
    eval_problems = {split: ev.split_problems(config, task, split) for split in splits}
    train_problems = task.problems("train")
    if not train_problems:
        raise InputError("the train split holds no problems")
    if sizes.vocab_size < words.vocab_size:
        raise InputError(
            f"model.vocab_size must be at least {words.vocab_size}, the tokenizer's; got {sizes.vocab_size}"
        )
    if config.train.row_tokens > sizes.max_positions:
        raise InputError(
            f"train.row_tokens {config.train.row_tokens} exceeds the model's {sizes.max_positions} positions"
        )
    sharding.check_rows(mesh, config.train.batch_rows)
    sharding.param_shardings(gpt.GPT(sizes), mesh)
    lengths = {
        split: _lengths(config, task, words, sizes, split, problems)
        for split, problems in {**eval_problems, "train": train_problems}.items()
    }
    ledger.open(config.to_dict(), may_change=("star.iterations", "tensorboard"))
    for split, problems in {**eval_problems, "train": train_problems}.items():
        # Completions name their problem by id: with these files the directory can be read by itself.
        path = workdir / f"problems_{split}.jsonl"
        if not path.exists():
            ledger.write_text(path, write_lines(problems))
        elif path.read_bytes() != write_lines(problems).encode():
            raise InputError(
                f"{path}: the run began with other {split} problems; give the same data or another --workdir"
            )
    log = metrics.MetricsLog(workdir, config.tensorboard)
    for split, values in lengths.items():
        _report_lengths(log, split, values)
    return Run(config, ledger, task, words, mesh, gpt.GPT(sizes), train_problems, eval_problems, log)


def _model_config(config: Config, directory: Path) -> ModelConfig:
    """The model's sizes: the config's, and the base's where it gives none. Raises InputError where they differ."""
    given = config.model
    if config.base.path:
        base = checkpoint.load_config(directory)
        # Rotary positions have no parameters: such a model may be run with fewer or more.
        fixed = [name for name in ("architecture", *SIZES) if base.is_gpt2 or name != "max_positions"]
        asked = {name: getattr(given, name) for name in fixed}
        if wrong := [
            f"{k} {v} (the base has {getattr(base, k)})" for k, v in asked.items() if v not in (0, "", getattr(base, k))
        ]:
            raise InputError(f"base.path {config.base.path} does not fit the config: model.{', model.'.join(wrong)}")
        taken = {name: getattr(given, name) or getattr(base, name) for name in ("architecture", *SIZES)}
        given = dataclasses.replace(given, **taken)
    given = dataclasses.replace(given, architecture=given.architecture or "gptj")
    given.check_complete()
    return given


def _tokenizer(config: Config, task: Task, base: Path) -> tokenizer.Tokenizer:
    """The config's tokenizer or, where it names none, the base model's. Raises InputError."""
    if config.tokenizer or not config.base.path:
        return tokenizer.make(config.tokenizer, task.symbols)
    return checkpoint.load_tokenizer(base)


def _lengths(
    config: Config,
    task: Task,
    words: tokenizer.Tokenizer,
    sizes: ModelConfig,
    split: str,
    problems: Sequence[Problem],
) -> dict[str, int]:
    """How many tokens the prompts and references of a split have; none is ever cut.

    Raises InputError for a prompt that leaves no room for a completion: now, not when its turn comes.
    """
    prompts, budget = ev.prompts_of(config, 1), config.sampling.max_new_tokens or task.max_new_tokens
    longest = 0
    bodies: dict[str, int] = {}
    for hint in (False, True):
        if hint and (split != "train" or config.star.direct or not config.star.rationalize):
            continue
        parts = {p.id: prompts.prompt(task, p, hint).parts for p in problems}
        shots = len(words.encode(parts[problems[0].id][0]))
        counts = {name: len(words.encode(own)) for name, (_, own) in parts.items()}
        name = max(counts, key=lambda key: counts[key])
        if shots + counts[name] + budget > sizes.max_positions:
            raise InputError(
                f"{split} problem {name!r}: {shots} tokens of shots, {counts[name]} of its own and {budget} new ones "
                f"exceed the model's {sizes.max_positions} positions; give fewer shots or a smaller budget"
            )
        longest = max(longest, shots + counts[name])
        bodies = bodies or counts
    references = [len(words.encode(text)) + 1 for p in problems if (text := task.reference(p)) is not None]
    return {
        "problems": len(problems),
        "shots_tokens": len(words.encode(prompts.plain.rstrip())),
        "body_tokens_median": int(statistics.median(bodies.values())),
        "body_tokens_max": max(bodies.values()),
        "prompt_tokens_max": longest,
        "reference_tokens_max": max(references, default=0),
        "references_over_budget": sum(count > budget for count in references),
        "new_tokens_budget": budget,
    }


def _report_lengths(log: metrics.MetricsLog, split: str, values: dict[str, int]) -> None:
    log.log(f"lengths_{split}", 0, 0, values)
    LOG.info(
        "%s: %d problems; tokens: %d of shots, %d (median) to %d a problem, at most %d new",
        split, values["problems"], values["shots_tokens"], values["body_tokens_median"], values["body_tokens_max"],
        values["new_tokens_budget"],
    )  # fmt: skip
    if values["references_over_budget"]:
        LOG.warning(
            "%s: %d references exceed the budget of %d new tokens (the longest has %d): raise sampling.max_new_tokens",
            split, values["references_over_budget"], values["new_tokens_budget"], values["reference_tokens_max"],
        )  # fmt: skip


def _make_base(run: Run, directory: Path) -> None:
    """Takes the base from `base.path`, or pretrains it, and stores it in the run."""
    config = run.config
    if config.base.path:
        _, params = checkpoint.load_model(config.base.path, run.mesh)
    else:
        total, started = sum(stage.steps for stage in config.base.stages), time.monotonic()
        with metrics.progress(total, "pretraining the base", "step") as bar:

            def on_step(step: int, values: dict[str, Any]) -> None:
                bar.update(step - bar.n)
                bar.set_postfix_str(f"loss {values['loss']:.3f}")
                run.log.log("pretrain", 0, step, values)

            params, reports = pretrain.make_base(config, run.model, run.tokenizer, run.mesh, on_step)
        seconds = time.monotonic() - started
        run.log.log("base", 0, 0, {"seconds": round(seconds, 2), "tokens": sum(r.tokens for r in reports)})
        LOG.info("base: %d steps in %.0f s, loss %.3f", total, seconds, reports[-1].loss_last)
    checkpoint.save_model(directory, run.model, params, run.tokenizer)
    run.remember(0, params)
