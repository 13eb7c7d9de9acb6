"""What a run needs before its first long stage: all that can be checked is checked, then the base is made."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from star_jax import __version__, tokenizers
from star_jax.config import SIZES, Config, ModelConfig
from star_jax.distributed import processes, sharding
from star_jax.errors import InputError
from star_jax.evaluation import generate as ev
from star_jax.models import decoder
from star_jax.records import Problem, write_lines
from star_jax.runs import metrics, trackers
from star_jax.runs.run_directory import RunDirectory
from star_jax.sampling.sampler import Sampler
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks import Task
from star_jax.tokenizers import base
from star_jax.training import pretrain
from star_jax.weights import checkpoint, placement

LOG = logging.getLogger("star_jax")


@dataclasses.dataclass
class Run:
    """What all stages need."""

    config: Config
    run_dir: RunDirectory
    task: Task
    tokenizer: base.Tokenizer
    mesh: Mesh  # for training
    sampling_mesh: Mesh
    model: decoder.GPT
    train_problems: list[Problem]
    eval_problems: dict[str, list[Problem]]  # of the split that selects, first, and of the one that is only reported
    log: metrics.MetricsLog
    longest_body: int  # tokens of the longest body of a prompt, hint included: all draws share their programs
    phases: metrics.Phases = dataclasses.field(default_factory=metrics.Phases)
    _drawing: tuple[int, decoder.Params] | None = None  # the iteration whose weights are on the sampling mesh
    _start: tuple[int, decoder.Params] | None = None  # the iteration the next fine-tuning starts from, in host memory
    _saving: tuple[checkpoint.AsyncModelSave, Callable[[], None]] | None = None  # what `settle` is to bring to an end
    _samplers: dict[Decoding, Sampler] = dataclasses.field(default_factory=dict)

    def directory(self, n: int) -> Path:
        """Where the model of iteration n is, 0 for the base."""
        return self.run_dir.path(n, "params") if n else self.run_dir.workdir / "base"

    def has_model(self, n: int) -> bool:
        """Whether iteration n's model is complete."""
        return processes.broadcast_from_leader(lambda: checkpoint.exists(self.directory(n)))

    def load(self, n: int) -> decoder.Params:
        """The weights of iteration n, on the training mesh; the base is made where there is none yet.

        Those that fine-tuning starts from wait in the host's memory where it has the room, and come from disk
        elsewhere: while weights are trained nothing else of their size is on the devices.
        """
        with self.phases("load"):
            if self._start is not None and self._start[0] == n:
                return placement.from_host(self._start[1])
            if n == 0 and not self.has_model(0):
                with self.phases("base"):
                    params = _make_base(self)
            else:
                params = checkpoint.load_model(self.directory(n), self.mesh, self.config.train.param_dtype)[1]
            self._remember(n, params)
            return params

    def _remember(self, n: int, params: decoder.Params) -> None:
        """Copies weights that a later fine-tuning starts from into the host's memory."""
        wanted = n == 0 or self.config.star.restart_from == "previous"
        if wanted and n < self.config.star.iterations and processes.host_memory_available(placement.host_bytes(params)):
            self._start = n, placement.to_host(params)

    def fingerprint(self, n: int) -> str:
        """What provenance calls the weights of iteration n."""
        return processes.broadcast_from_leader(lambda: checkpoint.stored_fingerprint(self.directory(n)))

    def keep(self, n: int, params: decoder.Params, then: Callable[[], None] = lambda: None) -> None:
        """Stores the weights of iteration n, and puts them on the sampling mesh, where they are drawn from.

        `then` is called when they are complete on disk. Where the host has the room for a copy, that is in `settle`,
        and the weights can be drawn from while they are written.
        """
        with self.phases("save"):
            if self.has_model(n):
                then()
            elif n and processes.host_memory_available(placement.host_bytes(params)):
                self._saving = checkpoint.AsyncModelSave(self.directory(n), self.model, params, self.tokenizer), then
            else:
                checkpoint.save_model(self.directory(n), self.model, params, self.tokenizer)
                then()
        if self.config.star.restart_from == "previous":
            self._remember(n, params)
        dtype = self.config.sampling.weights_dtype
        drawing = placement.to_decode_params(self.model, params, self.sampling_mesh, dtype)
        self._drawing = n, drawing

    def settle(self) -> None:
        """Waits until the weights that `keep` was given are complete on disk."""
        if self._saving is not None:
            with self.phases("save"):
                saving, then = self._saving
                saving.finish()
                self._saving = None
                then()

    def close(self) -> None:
        """Ends what goes on in the background. After an error nobody may write into what another run begins anew.

        Of several processes each ends after an error, and its threads with it: they would wait for each other.
        """
        self.log.close()
        if self._saving is not None and processes.count() == 1:
            with contextlib.suppress(Exception):  # the error that led here is the one to tell
                self._saving[0].wait()
        self.run_dir.close()

    def let_go(self) -> None:
        """Frees the weights that were drawn from: training needs the room."""
        self._drawing = None

    def moments(self) -> checkpoint.Moments | None:
        """The Adam moments each fine-tuning begins with, from disk: they do not exist while sampling."""
        if not self.config.optimizer.base_moments:
            return None
        with self.phases("load"):
            return checkpoint.load_moments(Path(self.config.base.path), self.mesh)

    def sampler(self, n: int, decoding: Decoding) -> Sampler:
        """A sampler of iteration n's weights; what does not depend on them (the stop automaton) is made once."""
        if self._drawing is None or self._drawing[0] != n:
            self.keep(n, self.load(n))
        assert self._drawing is not None
        params = self._drawing[1]
        if decoding not in self._samplers:
            made = ev.make_sampler(
                self.config,
                self.task,
                self.model,
                params,
                self.tokenizer,
                decoding,
                self.sampling_mesh,
                self.longest_body,
            )
            self._samplers[decoding] = made.with_params(None)  # weights of a past iteration must not stay alive
        return self._samplers[decoding].with_params(params)


def open_run(config: Config, workdir: Path, allow_changes: bool = False) -> Run:
    """A run that is checked, stored and locked, and has done nothing yet; see RunDirectory.open. Raises InputError."""
    task = config.make_task()
    ev.prompts_of(config, 1)
    run_dir = RunDirectory(workdir, processes)
    # The run's own copy of the base, once it is there: going on needs nothing outside its directory.
    copied = processes.broadcast_from_leader(lambda: checkpoint.exists(workdir / "base"))
    base = workdir / "base" if copied else Path(config.base.path)
    sizes = model_config(config, base)
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
    mesh, sampling_mesh = meshes(config)
    lengths = {
        split: _lengths(config, task, words, sizes, split, problems)
        for split, problems in {**eval_problems, "train": train_problems}.items()
    }
    processes.check_equal("the tokenizer", json.dumps(words.spec(), sort_keys=True))
    lines = {split: write_lines(problems) for split, problems in {**eval_problems, "train": train_problems}.items()}
    for split, text in lines.items():
        processes.check_equal(f"the {split} split", text)
    world = _world(config, words, lines)
    harmless = ("star.iterations", "tensorboard", "wandb")
    run_dir.open(config.to_dict(), world, may_change=harmless, allow_changes=allow_changes)
    try:
        # Completions name their problem by id: with these files the directory can be read by itself.
        for split, text in lines.items():
            _store_problems(run_dir, split, text)
        log = metrics.MetricsLog(workdir, _sinks(config, workdir))
        for split, values in lengths.items():
            _report_lengths(log, split, values)
    except BaseException:
        run_dir.close()
        raise
    longest = max(values["body_tokens_max_hinted"] for values in lengths.values())
    return Run(
        config,
        run_dir,
        task,
        words,
        mesh,
        sampling_mesh,
        decoder.GPT(sizes),
        train_problems,
        eval_problems,
        log,
        longest,
    )


def _sinks(config: Config, workdir: Path) -> list[trackers.Sink]:
    """Where the first process's numbers go besides metrics.jsonl."""
    wanted: list[trackers.Sink] = []
    if processes.is_leader():
        wanted += [trackers.TensorBoard(workdir)] if config.tensorboard else []
        wanted += [trackers.WeightsAndBiases(workdir, config.wandb, config.to_dict())] if config.wandb else []
    return wanted


def _store_problems(run_dir: RunDirectory, split: str, lines: str) -> None:
    path = run_dir.workdir / f"problems_{split}.jsonl"
    if not processes.broadcast_from_leader(lambda: path.is_file() and path.read_bytes() == lines.encode()):
        run_dir.write_text(path, lines)


def _world(config: Config, words: base.Tokenizer, lines: Mapping[str, str]) -> dict[str, str]:
    """What a run's results follow from beside its config and the base in its directory: versions and fingerprints."""
    texts = {f"{split} problems": text for split, text in lines.items()}
    texts["tokenizer"] = json.dumps(words.spec(), sort_keys=True)
    digests = {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in texts.items()}
    return {"star_jax": __version__, "jax": jax.__version__, "prompts": ev.prompts_of(config, 1).fingerprint, **digests}


def meshes(config: Config, devices: Sequence[Any] | None = None) -> tuple[Mesh, Mesh]:
    """The meshes for training and for sampling, over all devices or the given ones.

    Raises InputError where the model or the rows do not divide.
    """
    mesh, model = sharding.make_mesh(config.mesh, devices), decoder.GPT(config.model)
    sharding.check_rows(mesh, config.train.batch_rows, config.train.microbatches)
    placement.param_shardings(model, mesh)
    drawing = sharding.sampling_mesh(
        mesh, config.sampling.tensor, None if devices is None else devices[0].process_index
    )
    placement.param_shardings(model, drawing, "sampling")
    return mesh, drawing


def model_config(config: Config, directory: Path) -> ModelConfig:
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


def _tokenizer(config: Config, task: Task, base: Path) -> base.Tokenizer:
    """The config's tokenizer or, where it names none, the base model's. Raises InputError."""
    if config.tokenizer or not config.base.path:
        return tokenizers.make(config.tokenizer, task.symbols)
    return checkpoint.load_tokenizer(base)


def _lengths(
    config: Config,
    task: Task,
    words: base.Tokenizer,
    sizes: ModelConfig,
    split: str,
    problems: Sequence[Problem],
) -> dict[str, int]:
    """How many tokens the prompts and references of a split have; none is ever cut.

    Raises InputError for a prompt that leaves no room for a completion: now, not when its turn comes.
    """
    prompts, budget = ev.prompts_of(config, 1), config.sampling.max_new_tokens or task.max_new_tokens
    longest = longest_body = 0
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
        longest, longest_body = max(longest, shots + counts[name]), max(longest_body, counts[name])
        bodies = bodies or counts
    references = [len(words.encode(text)) + 1 for p in problems if (text := task.reference(p)) is not None]
    return {
        "problems": len(problems),
        "shots_tokens": len(words.encode(prompts.plain.rstrip())),
        "body_tokens_median": int(statistics.median(bodies.values())),
        "body_tokens_max": max(bodies.values()),
        "body_tokens_max_hinted": longest_body,
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


def _make_base(run: Run) -> decoder.Params:
    """Takes the base from `base.path`, or pretrains it."""
    config = run.config
    if config.base.path:
        return checkpoint.load_model(config.base.path, run.mesh, config.train.param_dtype)[1]
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
    return params
