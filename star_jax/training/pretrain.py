"""Pretraining of a tiny base, in stages, on transcripts that the task supplies (Task.transcripts)."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from star_jax.config import Config
from star_jax.distributed import processes
from star_jax.models import decoder
from star_jax.records import Example
from star_jax.tasks import few_shot
from star_jax.tokenizers.base import Tokenizer
from star_jax.training import fine_tune, packing
from star_jax.weights import placement


def make_base(
    config: Config,
    model: decoder.Decoder,
    tokenizer: Tokenizer,
    mesh: Mesh,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[decoder.Params, list[fine_tune.Report]]:
    """(weights, one report per stage), from random weights through all of `config.base.stages`.

    `on_step` is called with the step counted over all stages. Raises InputError for shares that the task lacks.
    """
    task = dataclasses.replace(config.make_task(), direct=False)  # every arm starts from the same base
    shots = few_shot.load(config.task["name"], config.prompt.shots, False, config.prompt.directory, task)
    params, reports, steps_before = placement.init_params(model, mesh, config.seed), [], 0
    for number, stage in enumerate(config.base.stages):
        seed = 1000 * config.seed + number
        examples = [_after(shots, e) for e in task.transcripts(stage.gold, config.base.examples, seed)]
        rows = packing.pack(examples, tokenizer, config.train.row_tokens, seed, name="base")

        def report_step(step: int, metrics: dict[str, Any], steps_before: int = steps_before) -> None:
            if on_step:
                on_step(steps_before + step, metrics)
            processes.check_stop()  # pretraining stores nothing on the way: it starts again with the same result

        spec = fine_tune.FineTuneSpec(
            steps=stage.steps,
            seed=seed,
            train=config.train,
            optimizer=config.optimizer,
            z_loss=config.replication.z_loss,
            peak_learning_rate=stage.learning_rate,
            name=f"base.stages[{number}]",
        )
        params, report = fine_tune.fine_tune(model, params, rows, spec, mesh, on_step=report_step)
        reports.append(report)
        steps_before += stage.steps
    return params, reports


def _after(shots: few_shot.PromptSet, example: Example) -> Example:
    """A transcript as it will be sampled: after the run's shots."""
    prefix = shots.hinted if example.hint_kept else shots.plain
    return dataclasses.replace(example, prompt=prefix + example.prompt, prefix_length=len(prefix))
