"""Fine-tuning: loss, one compiled train step, and the loop that goes over packed rows."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from star_jax import errors
from star_jax.config import OptimizerConfig, TrainConfig
from star_jax.distributed import preemption, processes, sharding
from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.training import optimizer, packing
from star_jax.training.step import TrainState, abstract_state, initial_state, train_step
from star_jax.weights import checkpoint, train_state


@dataclasses.dataclass(frozen=True)
class Report:
    """What a fine-tuning did; the content of finetune.json beside the iteration and the example counts."""

    steps: int
    tokens: int  # real tokens the steps went over, padding not counted
    loss_tokens: int  # those that carried loss
    loss_first: float  # of the first and the last step, nats a token
    loss_last: float
    seconds: float


def fine_tune(
    model: decoder.GPT,
    params: decoder.Params,
    rows: packing.PackedRows,
    *,
    steps: int,
    seed: int,
    train: TrainConfig,
    optimizer_config: OptimizerConfig,
    mesh: Mesh,
    peak: float | None = None,
    moments: checkpoint.Moments | None = None,
    state_dir: Path | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[decoder.Params, Report]:
    """Trains `steps` steps from `params`, whose buffers are given up, and returns the new weights.

    Args:
      params: on `mesh`.
      rows: packed examples; gone over in an order fixed by `seed`, as often as the steps need.
      peak: learning rate in place of the config's.
      moments: Adam's state to begin with; a fresh one where not given.
      state_dir: where checkpoints inside this fine-tuning go (train.checkpoint_every, and when the process is told to
        stop) and it resumes from. The last two stay.
      on_step: called with (step, metrics) for every `log_every`-th step and the last.

    Raises InputError when the loss is not finite, naming the step and its rows; Stopped when the process was told to
    stop: one alone behind the step it is at, several, which have to agree, where numbers are fetched.
    """
    keeper = train_state.TrainStateCheckpointer(state_dir) if state_dir else None
    state, totals = _begin(keeper, optimizer_config, params, moments)
    begin = int(state.step)
    started = time.monotonic() - totals["seconds"]
    account = MetricsAccumulator(
        totals, steps, train.log_every, on_step, lambda n: packing.describe_batch(rows, train.batch_rows, seed, n)
    )
    with sharding.use(mesh):
        batches = prefetch_one(_on_mesh(rows, train, seed, begin, mesh))
        for step, batch in zip(range(begin, steps), batches, strict=False):
            rate = optimizer.learning_rate(optimizer_config, step, steps, peak)
            state, metrics = train_step(
                model, optimizer_config, state, batch, np.float32(rate), train.z_loss, train.microbatches
            )
            fetched = account.add(step, {**metrics, "learning_rate": rate})
            told = preemption.requested() if processes.count() == 1 else fetched and processes.preemption_requested()
            if keeper and step + 1 < steps and (told or (step + 1) % (train.checkpoint_every or steps) == 0):
                account.fetch()
                keeper.save(state, {**totals, "seconds": time.monotonic() - started})
                if told:
                    raise errors.Stopped
    account.fetch()
    if keeper:
        keeper.close()
    return state.params, Report(steps=steps, **{**totals, "seconds": round(time.monotonic() - started, 2)})


def _begin(
    keeper: train_state.TrainStateCheckpointer | None,
    config: OptimizerConfig,
    params: decoder.Params,
    moments: checkpoint.Moments | None,
) -> tuple[TrainState, dict[str, Any]]:
    """(state, totals): those of the last good checkpoint, or of step 0."""
    # What is restored lies beside the weights for a moment: no more than a step's gradients take.
    if keeper and (found := keeper.restore(abstract_state(config, params))):
        jax.tree.map(lambda leaf: leaf.delete(), params)
        return found
    totals = {"tokens": 0, "loss_tokens": 0, "loss_first": math.nan, "loss_last": math.nan, "seconds": 0.0}
    return initial_state(config, params, moments), totals


def _on_mesh(
    rows: packing.PackedRows, train: TrainConfig, seed: int, begin: int, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    for batch in packing.batches(rows, train.batch_rows, seed, begin):
        yield {name: sharding.put_rows(mesh, array) for name, array in batch.items()}


def prefetch_one(batches: Iterator[dict[str, jax.Array]]) -> Iterator[dict[str, jax.Array]]:
    """The same, each asked for before the one in front of it is worked on: it is on its way meanwhile."""
    batch = next(batches)
    for following in batches:
        yield batch
        batch = following


class MetricsAccumulator:
    """What the steps come to. Their numbers are fetched once in `every` steps, while the device works on the next."""

    def __init__(
        self,
        totals: dict[str, Any],
        steps: int,
        every: int,
        on_step: Callable[[int, dict[str, Any]], None] | None,
        batch: Callable[[int], str],
    ) -> None:
        self._totals, self._steps, self._every, self._on_step, self._batch = totals, steps, every, on_step, batch
        self._pending: list[tuple[int, dict[str, Any]]] = []

    def add(self, step: int, metrics: dict[str, Any]) -> bool:
        """Takes a step's numbers, which may not be there yet; returns whether earlier steps' were fetched."""
        if fetched := len(self._pending) >= self._every:
            self.fetch()
        self._pending.append((step, metrics))
        return fetched

    def fetch(self) -> None:
        """Waits for all numbers, takes them into the totals, and reports every few steps and the last.

        Raises InputError at a loss that is no number.
        """
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        for (step, _), metrics in zip(self._pending, fetched, strict=True):
            self._take(step, {name: float(value) for name, value in metrics.items()})
        self._pending.clear()

    def _take(self, step: int, values: dict[str, float]) -> None:
        if not math.isfinite(values["loss"]):
            raise InputError(
                f"fine-tuning: the loss of step {step} is {values['loss']}, over {self._batch(step)}; "
                "lower optimizer.learning_rate or look at these examples"
            )
        totals = self._totals
        totals["tokens"] += int(values["tokens"])
        totals["loss_tokens"] += int(values["loss_tokens"])
        totals["loss_last"] = values["loss"]
        if step == 0:
            totals["loss_first"] = values["loss"]
        if self._on_step and ((step + 1) % self._every == 0 or step + 1 == self._steps):
            self._on_step(step + 1, values)
