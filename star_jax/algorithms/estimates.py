"""Disk space and memory that a run will take, compared with what there is before the first long stage."""

import dataclasses
import logging
import os
import shutil

import jax
import numpy as np

from star_jax.algorithms import budget
from star_jax.algorithms.run import Run
from star_jax.config import Config
from star_jax.distributed import processes
from star_jax.evaluation.prompts import PromptEncoder
from star_jax.models.spec import DecoderSpec
from star_jax.records import Problem
from star_jax.sampling.sampler import round_up

LOG = logging.getLogger("star_jax")
# Of a completion: its line without the text, and ids, log-probabilities and text of a token.
LINE_BYTES, TOKEN_BYTES = 600, 16


@dataclasses.dataclass(frozen=True)
class DiskNeeds:
    """What a run will still store, in bytes."""

    models: int  # number of models, the base included
    weights: int  # of these models
    checkpoints: int  # of the train state, inside one fine-tuning
    samples: int  # at most, with every completion as long as its budget

    @property
    def total(self) -> int:
        return self.weights + self.checkpoints + self.samples


def report(run: Run) -> None:
    """Logs what the run will still store and what its programs take, as warnings where that is more than there is.

    Nothing for a finished run. All processes must call this together.
    """
    missing = [n for n in range(run.config.star.iterations + 1) if not run.weights.exists(n)]
    unfinished = [n for n in range(run.config.star.iterations + 1) if not run.run_dir.has(n)]
    if unfinished and processes.is_leader():
        _report_disk(run, missing, unfinished)
        _report_memory(run, any(unfinished))


def _report_disk(run: Run, missing: list[int], unfinished: list[int]) -> None:
    needs, free = disk_needs(run, missing, unfinished), shutil.disk_usage(run.run_dir.workdir).free
    parts = [f"{size(needs.weights)} for the weights of {needs.models} model{'s' * (needs.models != 1)}"]
    parts += [f"{size(needs.checkpoints)} for checkpoints of fine-tuning"] if needs.checkpoints else []
    parts += [f"at most {size(needs.samples)} for samples"]
    text = f"disk: this run will store {', '.join(parts)}; {size(free)} are free"
    if needs.total <= free:
        LOG.info("%s", text)
        return
    models = models_on_disk(run.config.star.iterations, 1, missing)
    fewer = f", or start in another --workdir with --config.star.keep_weights=1, which stores {models} of the models"
    LOG.warning("%s in %s: make room%s", text, run.run_dir.workdir, fewer * (models < needs.models))


def _report_memory(run: Run, trains: bool) -> None:
    needs, available = memory_needs(run, trains), device_memory()
    parts = " and ".join(f"{what} about {size(number)}" for what, number in needs.items())
    text = f"memory, by our count: {parts} of each device, which has {size(available)}"
    if max(needs.values()) <= available:
        LOG.info("%s", text)
    else:
        LOG.warning("%s: it may not fit; python -m star_jax.preflight names options and devices that do", text)


def memory_needs(run: Run, trains: bool) -> dict[str, float]:
    """Bytes that the largest program of each kind takes on one device. `trains`: an iteration is still to be trained.

    Each kind has the devices to itself, so the larger one decides.
    """
    config, spec = run.config, run.model.spec
    prefix = prefix_tokens(config, run.first_prompts, run.train_problems[0])
    new = config.sampling.max_new_tokens or run.task.max_new_tokens
    lengths = budget.Lengths(round_up(prefix, 16), round_up(run.longest_body, 8), new)
    tensor = dict(run.sampling_mesh.shape)["tensor"]
    needs = {"sampling takes": sum(budget.sampling_bytes(config, spec, tensor, lengths))}
    if trains:
        needs["training"] = sum(budget.train_bytes(config, spec, dict(run.mesh.shape)))
    return needs


def prompt_kinds(config: Config) -> tuple[bool, ...]:
    """Which prompts a run makes: plain ones (False), and hinted ones (True) if it rationalizes."""
    return (False, True) if config.star.rationalizes else (False,)


def prefix_tokens(config: Config, prompts: PromptEncoder, problem: Problem) -> int:
    """Tokens of the longest prefix that a run's prompts share; that of any problem."""
    return max(len(prompts(problem, hinted).prefix_ids) for hinted in prompt_kinds(config))


def device_memory() -> float:
    """Bytes that JAX may allocate on one of this process's devices; CPU devices share the machine's memory."""
    devices = jax.local_devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)


def disk_needs(run: Run, missing: list[int], unfinished: list[int]) -> DiskNeeds:
    """`missing`: the iterations whose weights are not stored; `unfinished`: those that are not done."""
    config = run.config
    models = models_on_disk(config.star.iterations, config.star.keep_weights, missing)
    return DiskNeeds(
        models,
        models * model_bytes(run.model.spec, config.train.param_dtype),
        _checkpoint_bytes(run) if any(unfinished) else 0,
        _sample_bytes(run, unfinished),
    )


def models_on_disk(iterations: int, keep_weights: int, missing: list[int]) -> int:
    """How many models are stored at once besides those that are stored already.

    With star.keep_weights an iteration's weights are deleted after the next ones are stored; the best one's stay.
    """
    if not keep_weights:
        return len(missing)
    stored = iterations + 1 - len(missing)
    return min(len(missing), max(0, 1 + min(iterations, keep_weights + 2) - stored))


def model_bytes(spec: DecoderSpec, dtype: str) -> int:
    """Bytes of a model's weights, which are stored without compression."""
    return budget.parameter_count(spec) * np.dtype(dtype).itemsize


def size(number: float) -> str:
    """1234567 -> "1.23 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def _checkpoint_bytes(run: Run) -> int:
    """Two checkpoints, and the third before the first of them is deleted: weights and both moments."""
    config = run.config
    if not config.train.checkpoint_every:
        return 0
    dtypes = (config.train.param_dtype, config.optimizer.moment_dtype, "float32")
    return 3 * sum(model_bytes(run.model.spec, dtype) for dtype in dtypes)


def _sample_bytes(run: Run, unfinished: list[int]) -> int:
    """Samples, rationalizations, kept examples and evaluations of these iterations."""
    options, budget = run.config.star, run.config.sampling.max_new_tokens or run.task.max_new_tokens
    problems = min(options.problems_per_iteration or len(run.train_problems), len(run.train_problems))
    evaluated = sum(map(len, run.eval_problems.values()))
    shots = len(run.first_prompts.prompt_set.plain.encode()) if options.few_shot_train else 0
    completion = LINE_BYTES + TOKEN_BYTES * budget
    example = completion + TOKEN_BYTES * run.longest_body + shots
    total = 0
    for n in unfinished:
        total += completion * evaluated
        if n:
            kept = problems * (run.config.selection.per_problem or options.samples(n)) * example
            earlier = n - 1 if options.keep_previous < 0 else min(n - 1, options.keep_previous)
            total += len(options.passes(n)) * completion * problems * options.samples(n) + (1 + earlier) * kept
    return total
