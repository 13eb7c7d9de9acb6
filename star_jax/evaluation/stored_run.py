"""One iteration of a stored run: its config, its model, and which iteration is best."""

import dataclasses
import functools
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from star_jax import tasks, user_code
from star_jax.config import Config, from_dict
from star_jax.distributed import processes, sharding
from star_jax.errors import InputError
from star_jax.evaluation import results
from star_jax.evaluation.generate import SampleStream, prompts_of, sampler_spec, split_problems
from star_jax.evaluation.prompts import PromptEncoder, tokenizer_for
from star_jax.json_reader import Fields
from star_jax.models import decoder, families
from star_jax.records import Problem
from star_jax.runs.checksums import REMEDY
from star_jax.runs.layout import CODE, PROMPTS, iteration_number, model_directory
from star_jax.runs.run_directory import RunDirectory
from star_jax.sampling.sampler import Sampler
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks import Task
from star_jax.tasks.few_shot import PromptSet
from star_jax.weights import checkpoint, placement

LOG = logging.getLogger("star_jax")


def best_iteration(run_dir: RunDirectory, split: str) -> int:
    """The iteration with the highest accuracy on the split that evaluation uses; the earliest of equals; see `best`."""
    numbers = _iteration_numbers(run_dir)
    paths = {n: run_dir.path(n, f"eval_{split}.json") for n in numbers if run_dir.has(n, f"eval_{split}.json")}
    evaluations = {n: results.evaluation(run_dir.read_json(path), path) for n, path in paths.items()}
    best = results.best_iteration(evaluations)
    if best is None:
        raise InputError(f"{run_dir.workdir}: no iteration has been evaluated on {split!r} yet")
    return best


@dataclasses.dataclass(frozen=True)
class StoredIteration:
    """One iteration of a run on disk."""

    run_dir: RunDirectory
    config: Config
    number: int  # 0: the base
    directory: Path  # of its model
    is_best: bool  # it was asked for as the best one
    share: float = 1.0  # of its weights in the model; the rest is the base's (arXiv 2504.10478)

    @functools.cached_property
    def task(self) -> Task:
        return self.config.make_task()

    @functools.cached_property
    def prompts(self) -> PromptEncoder:
        """The prompts with which the next iteration would sample."""
        prompt_format = self.config.prompt.format
        tokenizer = tokenizer_for(prompt_format, checkpoint.load_tokenizer(self.directory))
        return PromptEncoder(self.task, tokenizer, self._prompt_set, prompt_format)

    @property
    def label(self) -> str:
        """The iteration as a person names it, and that it is the best one if that was asked for."""
        split = self.config.evaluation.split
        if self.number:
            mixed = f", {self.share:g} of its weights and {1 - self.share:g} of the base's" * (self.share < 1)
            return f"iteration {self.number}{f', the best on {split}' * self.is_best}{mixed}"
        return f"the base (iteration 0){f', which no iteration beats on {split}' * self.is_best}"

    def random_decoding(self, temperature: float | None) -> Decoding:
        """For several samples per problem. `temperature`: None for that of the run's train samples or, if it is 0, 0.7.

        Raises InputError for 0: all samples of a problem would be the same.
        """
        options = self.config.sampling
        if temperature == 0:
            raise InputError("--temperature=0 is greedy: all samples of a problem are the same; leave --samples out")
        return Decoding(temperature or options.temperature_of(self.number + 1) or 0.7, options.top_k, options.top_p)

    def check_prompt(self, problem: Problem) -> None:
        """Raises InputError for a problem that the tokenizer cannot write or that leaves no room for a completion."""
        prompt, positions = self.prompts(problem), self.config.model.max_positions
        tokens, budget = len(prompt.prefix_ids) + len(prompt.body_ids), self.config.sampling.max_new_tokens
        budget = budget or self.task.max_new_tokens
        if tokens + budget > positions:
            raise InputError(
                f"its prompt of {tokens:,} tokens and {budget:,} new ones exceed the model's {positions:,} positions; "
                "shorten it"
            )

    def fingerprint(self) -> str:
        """The fingerprint of the model's weights; of mixed ones, those of both models and their shares."""
        found = checkpoint.stored_fingerprint(self.directory)
        if self.share == 1:
            return found
        base = checkpoint.stored_fingerprint(model_directory(self.run_dir.workdir, 0))
        return f"{self.share:g} {found} + {1 - self.share:g} {base}"

    def load(self) -> None:
        """Loads the model now."""
        _ = self._weights

    def problems(self, split: str) -> list[Problem]:
        """The problems of a split as the run stored them or, of a split that it did not use, as the task has them.

        Raises InputError if there are none.
        """
        path = self.run_dir.workdir / f"problems_{split}.jsonl"
        if self.run_dir.exists(path):
            return self.run_dir.read_records(Problem, path)[: self.config.evaluation.problems or None]
        try:
            return split_problems(self.config, self.task, split)
        except InputError as error:
            stored = [found.stem.partition("_")[2] for found in self.run_dir.find("problems_*.jsonl")]
            if not stored:
                raise
            raise InputError(
                f"{error} (in the run's own command, whose folder relative paths are relative to); the run itself "
                f"holds the splits {', '.join(stored)}: --split={stored[0]}"
            ) from error

    @property
    def _prompt_set(self) -> PromptSet:
        """The few-shot prompts that the run stored; of a run from before it stored them, those of their files."""
        path, options = self.run_dir.workdir / PROMPTS, self.config
        if not options.prompt.shots or not self.run_dir.exists(path):
            return prompts_of(options, self.task, self.number + 1)
        fields = Fields(self.run_dir.read_json(path), path, REMEDY)
        prompts = PromptSet(fields.text("plain"), fields.text("hinted"))
        return prompts.without_shots() if self.number and not options.star.prompt_after_first_iteration else prompts

    def stream(self, decoding: Decoding) -> SampleStream:
        """Samples from this iteration's model, which is loaded when the first chunk is asked for."""

        @functools.cache
        def sampler() -> Sampler:
            model, _ = self._weights
            return Sampler(model, self.prompts.tokenizer, self._sampling_mesh, spec)

        spec = sampler_spec(self.config, self.task, decoding)
        return lambda requests: sampler().stream(self._weights[1], requests)

    @functools.cached_property
    def _sampling_mesh(self) -> Mesh:
        return sharding.sampling_mesh(sharding.make_mesh(self.config.mesh), self.config.sampling.tensor)

    @functools.cached_property
    def _weights(self) -> tuple[decoder.Decoder, decoder.DecodeParams]:
        mesh = sharding.make_mesh(self.config.mesh)
        stored, stacked = checkpoint.load_model(self.directory, mesh, self.config.train.param_dtype)
        if self.share < 1:
            directory = model_directory(self.run_dir.workdir, 0)
            _, base = checkpoint.load_model(directory, mesh, self.config.train.param_dtype)
            mix = functools.partial(_mixed, self.share)
            stacked = jax.jit(lambda own, base: jax.tree.map(mix, own, base), donate_argnums=0)(stacked, base)
        model = families.build(self.config.model, stored.spec)
        dtype = self.config.sampling.weights_dtype
        return model, placement.to_decode_params(model, stacked, self._sampling_mesh, dtype)


def _mixed(share: float, own: jax.Array, base: jax.Array) -> jax.Array:
    """The weighted mean of two arrays, computed in float32."""
    return (share * own.astype(jnp.float32) + (1 - share) * base.astype(jnp.float32)).astype(own.dtype)


def open_iteration(
    workdir: Path | str, iteration: str, allow_import: bool = False, share: float = 1.0
) -> StoredIteration:
    """`base`, `best`, `last` or a numbered iteration of a run. Raises InputError.

    `share`: of the iteration's weights in the model; the rest is the base's.

    A run's directory is data, perhaps received from somewhere. Its config.json may name Python code that the task
    is or uses: that runs only with `allow_import`, and must be what the run was made with. Its compile_cache is not
    used: such a directory holds machine code.
    """
    run_dir = RunDirectory(workdir, processes)
    values = run_dir.read_config()
    try:
        if not allow_import:
            _refuse_code(values)
        else:
            _take_stored_code(run_dir)
        config = from_dict(values)
    except InputError as error:
        raise InputError(f"{run_dir.workdir / 'config.json'}: {error}") from error
    config = dataclasses.replace(config, task=tasks.as_stored(config.task), compile_cache=Config().compile_cache)
    _refuse_changed_code(run_dir, config)
    if iteration == "best":
        number = best_iteration(run_dir, config.evaluation.split)
    elif iteration == "last":
        number = _last_iteration(run_dir)
    elif iteration == "base":
        number = 0
    elif re.fullmatch("[0-9]{1,9}", iteration):
        number = int(iteration)
    else:
        raise InputError(f"--iteration={iteration[:40]}: give a number, 'base', 'best' or 'last'")
    directory = model_directory(run_dir.workdir, number)
    if not processes.broadcast_from_leader(lambda: checkpoint.exists(directory)):
        raise InputError(
            f"{directory}: no complete model; it was not made yet, or deleted by star.keep_weights; give another "
            "--iteration"
        )
    if share < 1 and not number:
        raise InputError("--interpolate: iteration 0 is the base itself; give the --iteration to mix with it")
    return StoredIteration(run_dir, config, number, directory, iteration == "best", share)


def _iteration_numbers(run_dir: RunDirectory) -> list[int]:
    return [n for folder in run_dir.find("iter_*") if (n := iteration_number(folder)) is not None]


def _last_iteration(run_dir: RunDirectory) -> int:
    """The latest iteration whose model is stored; 0 if none is."""
    numbers = _iteration_numbers(run_dir)
    stored = processes.broadcast_from_leader(
        lambda: [n for n in numbers if checkpoint.exists(model_directory(run_dir.workdir, n))]
    )
    return max(stored, default=0)


def _take_stored_code(run_dir: RunDirectory) -> None:
    """Has the user's code loaded as the run was made with it, where its file is not here or is another one now."""
    path = run_dir.workdir / CODE
    if not run_dir.exists(path):
        return
    fields = Fields(run_dir.read_json(path), path, REMEDY)
    for source in fields.values:
        text, here = fields.text(source), user_code.file_text(source)
        if here != text:
            state = "is not in this folder" if here is None else "has changed since the run was made"
            LOG.warning("%s %s: its text in %s is used", source, state, path)
            user_code.use_stored(source, text)


def _refuse_changed_code(run_dir: RunDirectory, config: Config) -> None:
    """Raises InputError if code that the run does not hold is no longer what it was: its figures are of that code."""
    path = run_dir.workdir / "provenance.json"
    if not (digests := tasks.code_digests(config.task)) or not run_dir.exists(path):
        return
    world = Fields(run_dir.read_json(path), path, REMEDY).object("world")
    for option, digest in digests.items():
        if world.get(option, digest) != digest:
            raise InputError(
                f"{path}: the file that {option.removesuffix(' code')} names has changed since the run was made; "
                "restore it, or let the run's own command record the change with --allow_changes"
            )


def _refuse_code(values: Mapping[str, Any]) -> None:
    """Raises InputError if the options of a stored config name Python code. Runs none of it."""
    task = values.get("task")
    if not isinstance(task, Mapping) or "name" not in task:
        return  # which `from_dict` refuses
    for option, code in tasks.named_code(task).items():
        raise InputError(
            f"task.{option} names the Python module {(code.rpartition(':')[0] or code)!r}; if you trust it, give "
            "--allow_import to import it, which runs its code"
        )
