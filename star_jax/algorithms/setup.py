"""Set-up of a run: check everything that can be checked before the first long stage, store and lock the directory."""

import collections
import dataclasses
import hashlib
import json
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from star_jax import __version__, tasks, tokenizers
from star_jax.algorithms import shared_base
from star_jax.algorithms.run import Run
from star_jax.algorithms.stored_samples import StoredSamples
from star_jax.config import SIZES, Config, ModelConfig
from star_jax.distributed import processes, sharding
from star_jax.errors import InputError
from star_jax.evaluation import generate
from star_jax.evaluation.generate import prompts_of, sampler_spec, split_problems
from star_jax.evaluation.prompts import PromptEncoder, tokenizer_for
from star_jax.models import decoder, families
from star_jax.models.decoder import Decoder
from star_jax.models.spec import DecoderSpec
from star_jax.records import Problem, write_lines
from star_jax.runs import metrics, trackers
from star_jax.runs.layout import CODE, PROMPTS
from star_jax.runs.run_directory import RunDirectory
from star_jax.sampling import stop_strings
from star_jax.sampling.sampler import check_ids
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks import Task
from star_jax.tokenizers.base import Tokenizer
from star_jax.training import pretrain
from star_jax.weights import checkpoint, placement
from star_jax.weights.sources import location
from star_jax.weights.sources.location import Location
from star_jax.weights.store import StoreSpec, WeightStore

LOG = logging.getLogger("star_jax")
# Options that may differ between two starts of a run: they change no finished result.
HARMLESS = ("star.iterations", "star.keep_weights", "compile_cache", "tensorboard", "wandb")


def open_run(config: Config, workdir: Path, allow_changes: bool = False) -> Run:
    """A run that is checked, stored and locked, and has done nothing yet; see RunDirectory.open. Raises InputError."""
    task = config.make_task()
    # Once the run has its own copy of the base, continuing needs nothing outside of its directory.
    copied = processes.broadcast_from_leader(lambda: checkpoint.exists(workdir / "base"))
    base, origin = Location(workdir / "base", "") if copied else location.resolve(config.base.path)
    model_config, spec = resolve_model(config, base)
    config = dataclasses.replace(config, model=model_config)  # config.json holds the sizes that ran
    mesh, sampling_mesh = meshes(config, spec)
    tokenizer = run_tokenizer(config, task, base)
    train_problems, eval_problems = read_problems(config, task)
    problems = {**eval_problems, "train": train_problems}
    prompts = PromptEncoder(task, tokenizer, prompts_of(config, task, 1), config.prompt.format)
    lengths = {split: prompt_lengths(config, prompts, split, values) for split, values in problems.items()}
    lines = {split: write_lines(values) for split, values in problems.items()}
    processes.check_equal("the tokenizer", json.dumps(tokenizer.spec(), sort_keys=True))
    for split, text in lines.items():
        processes.check_equal(f"the {split} split", text)
    stored_samples = None
    if config.star.samples_from:
        stored_samples = StoredSamples(Path(config.star.samples_from), config.star.iterations)
    run_dir = RunDirectory(workdir, processes)
    processes.check_equal("the base model", origin)
    world = _world(tokenizer, prompts, lines, origin or _stored_origin(run_dir))
    world |= tasks.code_digests(config.task)
    # A task's options are not completed: an earlier default may have been another one.
    defaults = {group: values for group, values in Config().to_dict().items() if group != "task"}
    run_dir.open(config.to_dict(), world, HARMLESS, allow_changes, defaults)
    try:
        # Completions name their problem by id: with these files the directory can be read without the data set.
        for split, text in lines.items():
            _store_problems(run_dir, split, text)
        if config.prompt.shots:
            run_dir.write_json(run_dir.workdir / PROMPTS, dataclasses.asdict(prompts.prompt_set))
        if code := tasks.code_texts(config.task):
            run_dir.write_json(run_dir.workdir / CODE, code)
        log = metrics.MetricsLog(workdir, _trackers(config, workdir))
        for split, figures in lengths.items():
            _report_lengths(log, split, figures)
        for split, values in eval_problems.items():
            _warn_of_shared_problems(split, values, train_problems)
    except BaseException:
        run_dir.close()
        raise
    model, later = families.build(config.model, spec), prompts_of(config, task, 2)
    phases = metrics.Phases()
    return Run(
        config=config,
        run_dir=run_dir,
        task=task,
        tokenizer=tokenizer,
        model=model,
        mesh=mesh,
        sampling_mesh=sampling_mesh,
        weights=_weight_store(config, workdir, model, tokenizer, (mesh, sampling_mesh), phases),
        first_prompts=prompts,
        later_prompts=prompts
        if later == prompts.prompt_set
        else PromptEncoder(task, tokenizer, later, config.prompt.format),
        train_problems=train_problems,
        eval_problems=eval_problems,
        log=log,
        phases=phases,
        samples_from=stored_samples,
        shared_base=shared_base.find(config, world),
        longest_body=max(figures["body_tokens_max_hinted"] for figures in lengths.values()),
    )


def make_base(run: Run) -> decoder.Params:
    """The base's weights on the training mesh: those of `base.path`, or pretrained."""
    config = run.config
    if config.base.path:
        return checkpoint.load_model(location.resolve(config.base.path).path, run.mesh, config.train.param_dtype)[1]
    total, started = sum(stage.steps for stage in config.base.stages), time.monotonic()
    LOG.info("base: pretraining, %d steps", total)
    with metrics.Progress(total, "pretraining the base", "step") as bar:

        def on_step(step: int, values: dict[str, Any]) -> None:
            bar.advance(step - bar.done, f"loss {values['loss']:.3f}")
            run.log.log("pretrain", 0, step, values)

        params, reports = pretrain.make_base(config, run.model, run.tokenizer, run.mesh, on_step)
    seconds = time.monotonic() - started
    run.log.log("base", 0, 0, {"seconds": round(seconds, 2), "tokens": sum(r.tokens for r in reports)})
    LOG.info("base: %d steps in %.0f s, loss %.3f", total, seconds, reports[-1].loss_last)
    return params


def meshes(config: Config, spec: DecoderSpec, devices: Sequence[Any] | None = None) -> tuple[Mesh, Mesh]:
    """The meshes for training and for sampling, over all devices or the given ones. Raises as check_devices does."""
    process = None if devices is None else devices[0].process_index
    devices = jax.devices() if devices is None else devices
    check_devices(config, spec, [device.process_index for device in devices])
    mesh = sharding.make_mesh(config.mesh, devices)
    return mesh, sharding.sampling_mesh(mesh, config.sampling.tensor, process)


def check_devices(config: Config, spec: DecoderSpec, processes: Sequence[int]) -> tuple[dict[str, int], int]:
    """(mesh axis -> devices along it in training, devices of each copy of the model in sampling); needs no devices.

    Args:
      config: with the model's sizes, see resolve_model.
      processes: the process of each device, in the order of the devices. The copies are those of the first process.

    Raises InputError if the rows of a batch do not fit the model, or rows or weights do not divide over the devices.
    """
    if config.train.row_tokens > spec.max_positions:
        raise InputError(
            f"train.row_tokens {config.train.row_tokens} exceeds the model's {spec.max_positions} positions; set "
            f"--config.train.row_tokens={spec.max_positions}"
        )
    shape, counts = sharding.mesh_layout(config.mesh, processes)
    mesh, model = sharding.abstract_mesh(shape), families.build(config.model, spec)
    sharding.check_rows(mesh, config.train.batch_rows, config.train.microbatches)
    _check_kv_heads(spec, "mesh", shape["tensor"])
    placement.param_shardings(model, mesh)
    copies = {p: sharding.sampling_tensor(config.sampling.tensor, count) for p, count in counts.items()}
    for tensor in set(copies.values()):
        _check_kv_heads(spec, "sampling", tensor)
        placement.param_shardings(model, sharding.abstract_mesh({"data": 1, "fsdp": 1, "tensor": tensor}), "sampling")
    return shape, copies[processes[0]]


def _check_kv_heads(spec: DecoderSpec, group: str, tensor: int) -> None:
    """Raises InputError unless each of `tensor` devices gets whole KV heads. `group`: of the option `tensor`."""
    if spec.n_kv_heads % tensor:
        raise InputError(f"{group}.tensor: {tensor} does not divide the model's {spec.n_kv_heads} KV heads")


def resolve_model(config: Config, directory: Path) -> tuple[ModelConfig, DecoderSpec]:
    """(config.model with all sizes, the model's spec): the base's, or made from the sizes where there is no base.

    `directory`: the base. Raises InputError if the config has sizes that are not the base's.
    """
    model = config.model
    if not config.base.path:
        model = dataclasses.replace(model, architecture=model.architecture or "gptj")
        spec = families.spec_of(model)
        return model, spec
    spec = checkpoint.load_spec(directory)
    base = sizes_of(spec)
    # Rotary positions have no parameters: such a model may run with fewer or more of them.
    fixed = [name for name in base if name != "max_positions" or not spec.rope.dim]
    if different := [
        f"{name} {getattr(model, name)} (the base has {base[name]})"
        for name in fixed
        if getattr(model, name) not in (0, "", base[name])
    ]:
        raise InputError(f"base.path {config.base.path} does not fit the config: model.{', model.'.join(different)}")
    if model.max_positions:
        spec = dataclasses.replace(spec, max_positions=model.max_positions)
    return dataclasses.replace(model, **sizes_of(spec)), spec


def sizes_of(spec: DecoderSpec) -> dict[str, Any]:
    """The fields of config.model that the weights fix."""
    values: dict[str, Any] = {name: getattr(spec, name) for name in SIZES if name != "rotary_dim"}
    return {"architecture": spec.family, **values, "rotary_dim": spec.rope.dim}


def run_tokenizer(config: Config, task: Task, base: Path) -> Tokenizer:
    """The tokenizer of a run, with the end ids of its prompt format. `base`: the directory of the base.

    Raises InputError if it does not fit the model, the task or the base's files.
    """
    if config.replication.base_moments and not checkpoint.has_moments(Path(config.base.path)):
        raise InputError(
            f"replication.base_moments: base.path {config.base.path} holds none; convert the base with --moments"
        )
    tokenizer = tokenizer_for(config.prompt.format, base_tokenizer(config, task, base))
    if config.model.vocab_size < tokenizer.vocab_size:
        raise InputError(
            f"model.vocab_size must be at least {tokenizer.vocab_size}, the tokenizer's; got {config.model.vocab_size}"
        )
    stop_strings.check_reachable(tokenizer, sampler_spec(config, task, Decoding()).stop)
    return tokenizer


def base_tokenizer(config: Config, task: Task, base: Path) -> Tokenizer:
    """The config's tokenizer or, if it names none, the base model's. Raises InputError."""
    if config.tokenizer or not config.base.path:
        return tokenizers.make(config.tokenizer, task.symbols)
    return checkpoint.load_tokenizer(base)


def read_problems(config: Config, task: Task) -> tuple[list[Problem], dict[str, list[Problem]]]:
    """(train problems, split -> problems that are evaluated). Raises InputError, MissingInput if files are missing."""
    train = generate.train_problems(config, task)
    evaluated = {split: split_problems(config, task, split) for split in config.evaluation.splits}
    for split, problems in {"train": train, **evaluated}.items():
        for problem_id, count in collections.Counter(problem.id for problem in problems).most_common(1):
            if count > 1:
                raise InputError(
                    f"task.name={config.task['name']}: {count:,} {split} problems have the id {problem_id!r}; give "
                    "each problem an id of its own"
                )
    return train, evaluated


def _weight_store(
    config: Config,
    workdir: Path,
    model: Decoder,
    tokenizer: Tokenizer,
    on: tuple[Mesh, Mesh],
    phases: metrics.Phases,
) -> WeightStore:
    options = config.star
    spec = StoreSpec(
        workdir=workdir,
        model=model,
        tokenizer=tokenizer,
        training_mesh=on[0],
        sampling_mesh=on[1],
        training_dtype=config.train.param_dtype,
        sampling_dtype=config.sampling.weights_dtype,
        starts_fine_tuning=lambda n: n < options.iterations and (n == 0 or options.restart_from == "previous"),
    )
    return WeightStore(spec, phases)


def _trackers(config: Config, workdir: Path) -> list[trackers.Tracker]:
    """Where the leader's metrics go besides metrics.jsonl."""
    sinks: list[trackers.Tracker] = []
    if processes.is_leader():
        sinks += [trackers.TensorBoard(workdir)] if config.tensorboard else []
        sinks += [trackers.WeightsAndBiases(workdir, config.wandb, config.to_dict())] if config.wandb else []
    return sinks


def _store_problems(run_dir: RunDirectory, split: str, lines: str) -> None:
    """Stores a split's problems. Those of before a change of the data stay, since stored samples are of them."""
    path = run_dir.workdir / f"problems_{split}.jsonl"
    stored = run_dir.read_text(path) if run_dir.exists(path) else ""
    if stored == lines:
        return
    if stored:
        digest = hashlib.sha256(stored.encode()).hexdigest()[:8]
        run_dir.write_text(run_dir.workdir / f"earlier_problems_{split}_{digest}.jsonl", stored)
    run_dir.write_text(path, lines)


def _stored_origin(run_dir: RunDirectory) -> str:
    """The origin of the base that provenance.json names; "" if it names none."""
    path = run_dir.workdir / "provenance.json"
    world = run_dir.read_json(path).get("world") if run_dir.exists(path) else None
    return str(world.get("base", "")) if isinstance(world, dict) else ""


def _world(tokenizer: Tokenizer, prompts: PromptEncoder, lines: Mapping[str, str], base_origin: str) -> dict[str, str]:
    """What results depend on besides the config and the base in the run's directory: versions and fingerprints.

    `base_origin`: the hub's commit or the package that the base comes from; "": from a path, which the config names.
    """
    texts = {f"{split} problems": text for split, text in lines.items()}
    texts["tokenizer"] = json.dumps(tokenizer.spec(), sort_keys=True)
    digests = {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in texts.items()}
    versions = {"star_jax": __version__, "jax": jax.__version__}
    origin = {"base": base_origin} if base_origin else {}
    return {**versions, **origin, "prompts": prompts.fingerprint, **digests}


def prompt_lengths(config: Config, prompts: PromptEncoder, split: str, problems: Sequence[Problem]) -> dict[str, int]:
    """Token counts of a split's prompts and references; none is ever truncated.

    Raises InputError for a prompt that leaves no room for a completion or has an id that the model lacks: now, and not
    when its turn comes.
    """
    task, positions = prompts.task, config.model.max_positions
    budget = config.sampling.max_new_tokens or task.max_new_tokens
    longest = longest_body = 0
    plain_bodies: dict[str, int] = {}
    for hinted in (False, True):
        if hinted and (split != "train" or not config.star.rationalizes):
            continue
        encoded = {p.id: prompts(p, hinted) for p in problems}
        prefix_ids = encoded[problems[0].id].prefix_ids
        for prompt_ids in (prefix_ids, *(prompt.body_ids for prompt in encoded.values())):
            check_ids(prompt_ids, config.model.vocab_size)
        shots = len(prefix_ids)
        bodies = {problem_id: len(prompt.body_ids) for problem_id, prompt in encoded.items()}
        problem_id = max(bodies, key=lambda key: bodies[key])
        if (room := positions - shots - bodies[problem_id]) < budget:
            raise InputError(
                f"{split} problem {problem_id!r}: {shots} tokens of shots, {bodies[problem_id]} of its own and "
                f"{budget} new ones exceed the model's {positions} positions; {_shorter_prompts(config, room)}"
            )
        longest, longest_body = max(longest, shots + bodies[problem_id]), max(longest_body, bodies[problem_id])
        plain_bodies = plain_bodies or bodies
    references = [len(ids) + 1 for p in problems if (ids := prompts.reference_ids(p)) is not None]
    return {
        "problems": len(problems),
        "shots_tokens": len(prompts(problems[0]).prefix_ids),
        "body_tokens_median": int(statistics.median(plain_bodies.values())),
        "body_tokens_max": max(plain_bodies.values()),
        "body_tokens_max_hinted": longest_body,
        "prompt_tokens_max": longest,
        "reference_tokens_max": max(references, default=0),
        "references_over_budget": sum(count > budget for count in references),
        "new_tokens_budget": budget,
    }


def _shorter_prompts(config: Config, room: int) -> str:
    """What to do about a prompt that leaves `room` positions for its completion, which may be less than 0."""
    remedies = ["lower --config.prompt.shots"] if config.prompt.shots else []
    remedies += [f"set --config.sampling.max_new_tokens={room}"] if room > 0 else []
    remedies += [] if config.base.path else ["raise --config.model.max_positions"]
    return " or ".join(remedies) or "leave the problem out or shorten it"


def _warn_of_shared_problems(split: str, problems: Sequence[Problem], train: Sequence[Problem]) -> None:
    fingerprints = {problem.fingerprint for problem in train}
    shared = [problem.id for problem in problems if problem.fingerprint in fingerprints]
    if shared and split != "train":
        LOG.warning(
            "%s: %d of %d problems are also train problems, the first is %r: the accuracy on them is no estimate for "
            "new problems; take them out of one of the two files",
            split, len(shared), len(problems), shared[0],
        )  # fmt: skip


def _report_lengths(log: metrics.MetricsLog, split: str, figures: dict[str, int]) -> None:
    log.log(f"lengths_{split}", 0, 0, figures)
    LOG.info(
        "%s: %d problems; tokens: %d of shots, %d (median) to %d for a problem, at most %d new",
        split, figures["problems"], figures["shots_tokens"], figures["body_tokens_median"], figures["body_tokens_max"],
        figures["new_tokens_budget"],
    )  # fmt: skip
    if figures["references_over_budget"]:
        LOG.warning(
            "%s: %d references exceed the budget of %d new tokens (the longest has %d); raise "
            "--config.sampling.max_new_tokens",
            split, figures["references_over_budget"], figures["new_tokens_budget"], figures["reference_tokens_max"],
        )  # fmt: skip
