"""One iteration of a stored run: which is best, its config and its model."""

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from star_jax.config import Config, from_dict
from star_jax.distributed import processes, sharding
from star_jax.errors import InputError
from star_jax.evaluation.generate import make_sampler
from star_jax.runs.run_directory import RunDirectory
from star_jax.sampling.sampler import Sampler
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks import Task
from star_jax.weights import checkpoint, placement


def best_iteration(run_dir: RunDirectory, split: str) -> int:
    """The iteration of the highest accuracy on the split that evaluation uses, the earliest of equals."""
    results = [run_dir.read_json(path) for path in run_dir.find(f"iter_*/eval_{split}.json")]
    if not results:
        raise InputError(f"{run_dir.workdir}: no iteration has been evaluated on {split!r} yet")
    return int(min(results, key=lambda result: (-result["accuracy"], result["iteration"]))["iteration"])


@dataclasses.dataclass(frozen=True)
class Opened:
    """One iteration of a run that is on disk."""

    run_dir: RunDirectory
    config: Config
    number: int  # 0: the base
    directory: Path  # of its model

    def sampler(self, task: Task, mesh: Mesh, decoding: Decoding) -> Sampler:
        """A sampler of its model, loaded onto the (training) mesh. Raises InputError."""
        options, words = self.config.sampling, checkpoint.load_tokenizer(self.directory)
        drawing = sharding.sampling_mesh(mesh, options.tensor)
        model, params = checkpoint.load_model(self.directory, mesh, self.config.train.param_dtype)
        params = placement.to_decode_params(model, params, drawing, options.weights_dtype)
        return make_sampler(self.config, task, model, params, words, decoding, drawing)


def open_iteration(workdir: str, iteration: str) -> Opened:
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
    directory = run_dir.path(number, "params") if number else run_dir.workdir / "base"
    if not processes.broadcast_from_leader(lambda: checkpoint.exists(directory)):
        raise InputError(f"{directory}: no complete model is there; not made yet, or let go by star.keep_weights")
    return Opened(run_dir, config, number, directory)
