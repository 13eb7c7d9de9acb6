"""The embedded default's base model: a tiny GPT-J pretrained, in stages, on transcripts of its task."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from star_jax.config import Config
from star_jax.distributed import processes
from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.tasks.arithmetic import Arithmetic
from star_jax.tokenizers.base import Tokenizer
from star_jax.training import fine_tune, packing
from star_jax.training.transcripts import transcripts
from star_jax.weights import placement


def make_base(
    config: Config,
    model: decoder.GPT,
    tokenizer: Tokenizer,
    mesh: Mesh,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[decoder.Params, list[fine_tune.Report]]:
    """(weights, a report a stage), from freshly drawn weights through all of `config.base.stages`.

    `on_step` is called with the step counted over all stages. Raises InputError for a task without transcripts.
    """
    task = config.make_task()
    if not isinstance(task, Arithmetic):
        raise InputError(f"task {config.task['name']!r} has no transcripts to pretrain a base on; give base.path")
    shown = Arithmetic(**{**task.__dict__, "direct": False})  # every arm starts from the same base
    params, reports, done = placement.init_params(model, mesh, config.seed), [], 0
    for number, stage in enumerate(config.base.stages):
        seed = 1000 * config.seed + number
        examples = transcripts(shown, stage.gold, config.base.examples, seed)
        rows = packing.pack(examples, tokenizer, config.train.row_tokens, seed, name="base")

        def report_step(step: int, metrics: dict[str, Any], done: int = done) -> None:
            if on_step:
                on_step(done + step, metrics)
            processes.check_stop()  # nothing is stored of it: it begins anew, and comes out the same

        params, report = fine_tune.fine_tune(
            model,
            params,
            rows,
            steps=stage.steps,
            seed=seed,
            train=config.train,
            optimizer_config=config.optimizer,
            mesh=mesh,
            peak=stage.learning_rate,
            on_step=report_step,
        )
        reports.append(report)
        done += stage.steps
    return params, reports
