"""Fine-tuning: the loop of train steps over packed rows, with checkpoints and metrics."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from star_jax.config import OptimizerConfig, TrainConfig
from star_jax.distributed import preemption, processes, sharding
from star_jax.errors import InputError, Stopped
from star_jax.models import decoder
from star_jax.training import optimizer, packing
from star_jax.training.step import TrainState, abstract_state, initial_state, train_step
from star_jax.weights import checkpoint, train_state


@dataclasses.dataclass(frozen=True)
class FineTuneSpec:
    """The settings of one fine-tuning."""

    steps: int
    seed: int  # fixes the order of the rows
    train: TrainConfig
    optimizer: OptimizerConfig
    z_loss: float = 0.0  # see ReplicationConfig
    peak_learning_rate: float | None = None  # in place of the optimizer's


@dataclasses.dataclass(frozen=True)
class Report:
    """The figures of a fine-tuning. finetune.json holds them next to the iteration and the example counts."""

    steps: int
    tokens: int  # tokens trained on, without padding
    loss_tokens: int  # sum of their loss weights
    loss_first: float  # of the first and of the last step, nats per token
    loss_last: float
    seconds: float


def fine_tune(
    model: decoder.GPT,
    params: decoder.Params,
    rows: packing.PackedRows,
    spec: FineTuneSpec,
    mesh: Mesh,
    *,
    moments: checkpoint.Moments | None = None,
    state_dir: Path | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[decoder.Params, Report]:
    """Trains `spec.steps` steps from `params` and returns the new weights.

    Args:
      params: on `mesh`; their buffers are donated.
      rows: packed examples, repeated as often as the steps need.
      moments: Adam's initial state; zeros if None.
      state_dir: the directory for checkpoints inside this fine-tuning (every train.checkpoint_every steps, and on
        SIGTERM), from which it resumes. The last two are kept.
      on_step: called with (step, metrics) after every `train.log_every`-th step and the last.

    Raises InputError if a loss is not finite, naming the step and its rows. Raises Stopped if the process was asked to
    stop: a single process after the current step, several where metrics are fetched, since they have to agree.
    """
    train = spec.train
    checkpointer = train_state.TrainStateCheckpointer(state_dir) if state_dir else None
    state, totals = _initial_state(checkpointer, spec.optimizer, params, moments)
    first_step = int(state.step)
    started = time.monotonic() - totals["seconds"]
    accumulator = MetricsAccumulator(
        totals, spec, on_step, lambda n: packing.describe_batch(rows, train.batch_rows, spec.seed, n)
    )
    with sharding.use(mesh):
        batches = prefetch_one(_sharded_batches(rows, spec, first_step, mesh))
        for step, batch in zip(range(first_step, spec.steps), batches, strict=False):
            rate = optimizer.learning_rate(spec.optimizer, step, spec.steps, spec.peak_learning_rate)
            state, metrics = train_step(
                model, spec.optimizer, state, batch, np.float32(rate), spec.z_loss, train.microbatches
            )
            fetched = accumulator.add(step, {**metrics, "learning_rate": rate})
            stop = preemption.requested() if processes.count() == 1 else fetched and processes.preemption_requested()
            due = (step + 1) % (train.checkpoint_every or spec.steps) == 0
            if checkpointer and step + 1 < spec.steps and (stop or due):
                accumulator.fetch()
                checkpointer.save(state, {**totals, "seconds": time.monotonic() - started})
                if stop:
                    raise Stopped
    accumulator.fetch()
    if checkpointer:
        checkpointer.close()
    return state.params, Report(steps=spec.steps, **{**totals, "seconds": round(time.monotonic() - started, 2)})


def _initial_state(
    checkpointer: train_state.TrainStateCheckpointer | None,
    config: OptimizerConfig,
    params: decoder.Params,
    moments: checkpoint.Moments | None,
) -> tuple[TrainState, dict[str, Any]]:
    """(state, totals) of the last intact checkpoint, or of step 0."""
    # For a moment the restored state and the weights are both in memory: no more than a step's gradients take.
    if checkpointer and (restored := checkpointer.restore(abstract_state(config, params))):
        jax.tree.map(lambda leaf: leaf.delete(), params)
        return restored
    totals = {"tokens": 0, "loss_tokens": 0, "loss_first": math.nan, "loss_last": math.nan, "seconds": 0.0}
    return initial_state(config, params, moments), totals


def _sharded_batches(
    rows: packing.PackedRows, spec: FineTuneSpec, first_step: int, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    for batch in packing.batches(rows, spec.train.batch_rows, spec.seed, first_step):
        yield {name: sharding.put_rows(mesh, array) for name, array in batch.items()}


def prefetch_one(batches: Iterator[dict[str, jax.Array]]) -> Iterator[dict[str, jax.Array]]:
    """Prefetches one batch."""
    batch = next(batches)
    for following in batches:
        yield batch
        batch = following


class MetricsAccumulator:
    """Totals of a fine-tuning. Metrics are fetched every `log_every` steps, while the device computes the next."""

    def __init__(
        self,
        totals: dict[str, Any],
        spec: FineTuneSpec,
        on_step: Callable[[int, dict[str, Any]], None] | None,
        describe_batch: Callable[[int], str],
    ) -> None:
        self._totals, self._spec, self._on_step, self._describe_batch = totals, spec, on_step, describe_batch
        self._pending: list[tuple[int, dict[str, Any]]] = []

    def add(self, step: int, metrics: dict[str, Any]) -> bool:
        """Queues a step's metrics, which may not be computed yet; returns whether earlier ones were fetched."""
        if fetched := len(self._pending) >= self._spec.train.log_every:
            self.fetch()
        self._pending.append((step, metrics))
        return fetched

    def fetch(self) -> None:
        """Waits for the queued metrics, adds them to the totals, and reports every `log_every`-th step and the last.

        Raises InputError if a loss is not finite.
        """
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        for (step, _), metrics in zip(self._pending, fetched, strict=True):
            self._add(step, {name: float(value) for name, value in metrics.items()})
        self._pending.clear()

    def _add(self, step: int, values: dict[str, float]) -> None:
        if not math.isfinite(values["loss"]):
            raise InputError(
                f"fine-tuning: the loss of step {step} is {values['loss']}, over {self._describe_batch(step)}; "
                "lower optimizer.learning_rate or look at these examples"
            )
        totals, every = self._totals, self._spec.train.log_every
        totals["tokens"] += int(values["tokens"])
        totals["loss_tokens"] += int(values["loss_tokens"])
        totals["loss_last"] = values["loss"]
        if step == 0:
            totals["loss_first"] = values["loss"]
        if self._on_step and ((step + 1) % every == 0 or step + 1 == self._spec.steps):
            self._on_step(step + 1, values)
