"""Model directories: `weights/` by Orbax, optional `moments/`, and `model.json` with sizes, tokenizer and fingerprint.

`model.json` is written last: a directory without it is an unfinished save. Readers here also take Hugging Face
directories.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from star_jax import __version__
from star_jax.config import MeshConfig, ModelConfig, from_dict_of
from star_jax.distributed import processes, sharding
from star_jax.errors import InputError, disk_errors_as_input_errors
from star_jax.models import decoder
from star_jax.runs import checksums
from star_jax.runs.atomic_files import make_empty
from star_jax.runs.json_files import parse_json_object
from star_jax.runs.run_directory import RunDirectory
from star_jax.tokenizers import from_spec
from star_jax.tokenizers.base import Tokenizer
from star_jax.weights import orbax_tree, placement
from star_jax.weights.fingerprint import fingerprint
from star_jax.weights.sources import hf, loader

FORMAT = "star_jax model 1"


def save_model(directory: Path, model: decoder.GPT, params: decoder.Params, tokenizer: Tokenizer | None) -> str:
    """Saves weights in their dtype, the model's sizes and its tokenizer; returns the weights' fingerprint.

    Replaces an unfinished save. All processes must call this together. Raises InputError if the directory holds a
    model or other files.
    """
    processes.broadcast_from_leader(lambda: _make_empty(directory))
    orbax_tree.save_tree(directory / "weights", params)
    about = _description(model, params, tokenizer)
    _write_description(directory, about)
    return str(about["fingerprint"])


class AsyncModelSave:
    """`save_model` in background threads. The model directory is complete after `finish`.

    The constructor copies the weights into host memory, so the caller may free or donate `params` when it returns. All
    processes must make the same calls together.
    """

    def __init__(
        self, directory: Path, model: decoder.GPT, params: decoder.Params, tokenizer: Tokenizer | None
    ) -> None:
        processes.broadcast_from_leader(lambda: _make_empty(directory))
        self._directory, self._about = directory, _description(model, params, tokenizer)
        # Orbax keeps its arrays alive until they are written; with a host copy that is no memory of the devices.
        self._checkpointer = orbax_tree.start_save(directory / "weights", placement.to_host(params))

    @property
    def fingerprint(self) -> str:
        """The weights' fingerprint."""
        return str(self._about["fingerprint"])

    def finish(self) -> None:
        """Waits until the weights are on disk, then writes model.json."""
        self.wait()
        _write_description(self._directory, self._about)

    def wait(self) -> None:
        """Waits until all writes have ended and leaves the save unfinished."""
        with disk_errors_as_input_errors(self._directory, ValueError):
            self._checkpointer.close()


def load_model(
    directory: Path | str, mesh: Mesh | None = None, dtype: Any = "float32"
) -> tuple[decoder.GPT, decoder.Params]:
    """(model, parameters in `dtype`) on the mesh, by default on the first device.

    Args:
      directory: a model directory (a run's base/ or params/, a converted model) or a Hugging Face directory.

    Raises InputError if there is no complete model, its tensors do not have its sizes' shapes, or, where `dtype` is
    the stored one, the weights do not have the stored fingerprint.
    """
    directory = Path(directory)
    mesh = mesh or sharding.make_mesh(MeshConfig(data=1))
    if hf.is_model(directory):
        return loader.load(hf.HfSource(directory), mesh, dtype)
    model = decoder.GPT(load_config(directory))
    params = orbax_tree.load_tree(directory / "weights", placement.sharded_shapes(model, mesh, dtype))
    if stored_dtype(directory) == str(jnp.dtype(dtype)) and fingerprint(params) != stored_fingerprint(directory):
        raise InputError(
            f"{directory}/weights: damaged, their fingerprint is not the one in model.json; delete {directory} to have "
            "it made or converted again"
        )
    return model, params


def load_config(directory: Path | str) -> ModelConfig:
    """The sizes of a directory's model. Raises InputError."""
    if hf.is_model(Path(directory)):
        return hf.HfSource(Path(directory)).config
    values = _read_description(Path(directory))["config"]
    config: ModelConfig = from_dict_of(ModelConfig, values, f"{directory}/model.json")
    config.check_complete()
    return config if config.architecture else dataclasses.replace(config, architecture="gptj")


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """The tokenizer stored with a model. Raises InputError if there is none."""
    tokenizer = find_tokenizer(directory)
    if tokenizer is None:
        raise InputError(f"{directory}: has no tokenizer; set --config.tokenizer, or convert it with --tokenizer=DIR")
    return tokenizer


def find_tokenizer(directory: Path | str) -> Tokenizer | None:
    """The tokenizer stored with a model, or None. Raises InputError if it or the model's description is damaged."""
    if hf.is_model(Path(directory)):
        return hf.find_tokenizer(Path(directory))
    spec = _read_description(Path(directory))["tokenizer"]
    return spec and from_spec(spec)


def stored_fingerprint(directory: Path) -> str:
    """The fingerprint of the weights on disk, from model.json. Raises InputError."""
    return str(_read_description(directory)["fingerprint"])


def stored_dtype(directory: Path) -> str:
    """The dtype of the weights on disk, from model.json. Raises InputError."""
    return str(_read_description(directory).get("dtype", "float32"))


def exists(directory: Path) -> bool:
    """Whether a directory holds a complete model, ours or Hugging Face's."""
    return (directory / "model.json").exists() or hf.is_model(directory)


class Moments(NamedTuple):
    """Adam's state that came with a model, for `replication.base_moments`."""

    first: decoder.Params  # float32, shaped like the parameters
    second: decoder.Params
    steps: int  # optimizer steps that the moments have accumulated


def save_moments(directory: Path, which: str, tree: decoder.Params, steps: int) -> None:
    """Stores the "first" or the "second" moments in the directory of a model that `save_model` wrote."""
    orbax_tree.save_tree(directory / "moments" / which, tree)
    RunDirectory(directory, processes).write_json(directory / "moments" / f"{which}.json", {"steps": steps})


def load_moments(directory: Path, mesh: Mesh) -> Moments:
    """The Adam moments stored with a model, float32. Raises InputError if there are none."""
    if not has_moments(directory):
        raise InputError(
            f"{directory}: holds no Adam moments; convert it with --moments, or set replication.base_moments=False"
        )
    target = placement.sharded_shapes(decoder.GPT(load_config(directory)), mesh, "float32")
    first, second = (orbax_tree.load_tree(directory / "moments" / which, target) for which in ("first", "second"))
    about = RunDirectory(directory).read_json(directory / "moments" / "second.json")
    return Moments(first, second, int(about["steps"]))


def has_moments(directory: Path) -> bool:
    """Whether complete Adam moments are stored with a model."""
    return all((directory / "moments" / f"{which}.json").exists() for which in ("first", "second"))


def _make_empty(directory: Path) -> None:
    """Empties the directory of an unfinished save. Raises InputError if it holds anything else."""
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if "model.json" in names:
        raise InputError(f"{directory}: holds a model already; delete it or give another directory")
    of_a_save = ("weights", "model.json.", checksums.NAME)
    if others := sorted(name for name in names if not name.startswith(of_a_save)):
        raise InputError(
            f"{directory}: holds files that are not of an unfinished model ({others[0]}); give another directory"
        )
    make_empty(directory)


def _description(model: decoder.GPT, params: decoder.Params, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The content of model.json."""
    return {
        "format": FORMAT,
        "star_jax": __version__,
        "config": model.config.__dict__,
        "dtype": str(jax.tree.leaves(params)[0].dtype),
        "fingerprint": fingerprint(params),
        "tokenizer": tokenizer and tokenizer.spec(),
    }


def _write_description(directory: Path, about: dict[str, Any]) -> None:
    RunDirectory(directory, processes).write_json(directory / "model.json", about)


def _read_description(directory: Path) -> dict[str, Any]:
    path = directory / "model.json"
    if not path.exists():
        raise InputError(f"{directory}: no complete model is there: neither model.json nor a Hugging Face config.json")
    about = parse_json_object(checksums.read_verified(path), path)
    if about.get("format") != FORMAT:
        raise InputError(f"{path}: its format is {about.get('format')!r}; star_jax reads {FORMAT!r}")
    for key in ("config", "tokenizer", "fingerprint"):
        if key not in about:
            raise InputError(f"{path}: the key {key!r} is missing; convert the model again")
    if not isinstance(about["config"], dict) or not isinstance(about["tokenizer"], dict | None):
        raise InputError(f"{path}: config and tokenizer must be JSON objects; convert the model again")
    return about
