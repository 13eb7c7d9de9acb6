"""One iteration of a stored run: its config, its model, and which iteration is best."""

import dataclasses
import functools
from pathlib import Path

from jax.sharding import Mesh

from star_jax.config import Config, from_dict
from star_jax.distributed import processes, sharding
from star_jax.errors import InputError
from star_jax.evaluation import best
from star_jax.evaluation.generate import SampleStream, prompts_of, sampler_spec
from star_jax.evaluation.prompts import PromptEncoder
from star_jax.models import decoder
from star_jax.runs.run_directory import RunDirectory, model_directory
from star_jax.sampling.sampler import Sampler
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks import Task
from star_jax.weights import checkpoint, placement


def best_iteration(run_dir: RunDirectory, split: str) -> int:
    """The iteration with the highest accuracy on the split that evaluation uses; the earliest of equals."""
    results = [run_dir.read_json(path) for path in run_dir.find(f"iter_*/eval_{split}.json")]
    if not results:
        raise InputError(f"{run_dir.workdir}: no iteration has been evaluated on {split!r} yet")
    return best.best_iteration({int(result["iteration"]): result["accuracy"] for result in results})


@dataclasses.dataclass(frozen=True)
class StoredIteration:
    """One iteration of a run on disk."""

    run_dir: RunDirectory
    config: Config
    number: int  # 0: the base
    directory: Path  # of its model

    @functools.cached_property
    def task(self) -> Task:
        return self.config.make_task()

    @functools.cached_property
    def prompts(self) -> PromptEncoder:
        """The prompts with which the next iteration would sample."""
        tokenizer = checkpoint.load_tokenizer(self.directory)
        return PromptEncoder(self.task, tokenizer, prompts_of(self.config, self.number + 1))

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
    def _weights(self) -> tuple[decoder.GPT, decoder.DecodeParams]:
        mesh = sharding.make_mesh(self.config.mesh)
        model, stacked = checkpoint.load_model(self.directory, mesh, self.config.train.param_dtype)
        dtype = self.config.sampling.weights_dtype
        return model, placement.to_decode_params(model, stacked, self._sampling_mesh, dtype)


def open_iteration(workdir: str, iteration: str) -> StoredIteration:
    """`base`, `best` or a numbered iteration of a run. Raises InputError."""
    run_dir = RunDirectory(workdir, processes)
    config = from_dict(run_dir.read_json(run_dir.workdir / "config.json"))
    if iteration == "best":
        number = best_iteration(run_dir, config.evaluation.split)
    elif iteration == "base":
        number = 0
    elif iteration.isdecimal():
        number = int(iteration)
    else:
        raise InputError(f"--iteration={iteration}: give a number, 'base' or 'best'")
    directory = model_directory(run_dir.workdir, number)
    if not processes.broadcast_from_leader(lambda: checkpoint.exists(directory)):
        raise InputError(f"{directory}: no complete model; it was not made yet, or deleted by star.keep_weights")
    return StoredIteration(run_dir, config, number, directory)
