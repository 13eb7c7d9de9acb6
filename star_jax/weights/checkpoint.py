"""Models on disk, by Orbax: a directory of `weights/`, `tokenizer.json`-able settings and, last, `model.json`.

`model.json` is written when everything else is there: a directory without it is an unfinished save.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from star_jax import __version__
from star_jax.config import MeshConfig, ModelConfig, from_dict_of
from star_jax.distributed import processes, sharding
from star_jax.errors import InputError, disk_errors_as_input_errors, is_peer_failure
from star_jax.models import decoder
from star_jax.runs import checksums
from star_jax.runs.atomic_files import make_empty
from star_jax.runs.json_files import parse_json_object
from star_jax.runs.run_directory import RunDirectory
from star_jax.tokenizers import from_spec
from star_jax.tokenizers.base import Tokenizer
from star_jax.weights import placement
from star_jax.weights.fingerprint import fingerprint
from star_jax.weights.sources import hf, loader

LOG = logging.getLogger("star_jax")


def save_model(directory: Path, model: decoder.GPT, params: decoder.Params, tokenizer: Tokenizer | None) -> str:
    """Saves weights in their dtype, model sizes and tokenizer; returns the fingerprint.

    An unfinished save of the same name is replaced. All processes must call this together.
    """
    processes.broadcast_from_leader(lambda: _make_room(directory))
    save_tree(directory / "weights", params)
    description = _description(model, params, tokenizer)
    _write_description(directory, description)
    return str(description["fingerprint"])


class AsyncModelSave:
    """A save that goes on while its process does other work. The model is there when `finish` has returned.

    The weights are copied into the host's memory before the constructor returns, so they may be given up then. All
    processes must make the same calls together.
    """

    def __init__(
        self, directory: Path, model: decoder.GPT, params: decoder.Params, tokenizer: Tokenizer | None
    ) -> None:
        processes.broadcast_from_leader(lambda: _make_room(directory))
        self._directory, self._about = directory, _description(model, params, tokenizer)
        # Our own copy: Orbax keeps what it is given until all is written, and the devices need that room.
        handler, args = _how_to_save(placement.to_host(params))
        self._checkpointer = ocp.AsyncCheckpointer(handler)
        with disk_errors_as_input_errors(directory, ValueError):
            self._checkpointer.save((directory / "weights").absolute(), args=args)

    @property
    def fingerprint(self) -> str:
        """Of the weights."""
        return str(self._about["fingerprint"])

    def finish(self) -> None:
        """Waits for the weights to be complete on disk and then says so: model.json comes last."""
        self.wait()
        _write_description(self._directory, self._about)

    def wait(self) -> None:
        """Waits until nothing is written any more, and leaves the save unfinished."""
        with disk_errors_as_input_errors(self._directory, ValueError):
            self._checkpointer.close()


def _description(model: decoder.GPT, params: decoder.Params, tokenizer: Tokenizer | None) -> dict[str, Any]:
    return {
        "format": "star_jax model 1",
        "star_jax": __version__,
        "config": model.config.__dict__,
        "dtype": str(jax.tree.leaves(params)[0].dtype),
        "fingerprint": fingerprint(params),
        "tokenizer": tokenizer and tokenizer.spec(),
    }


def _write_description(directory: Path, about: dict[str, Any]) -> None:
    RunDirectory(directory, processes).write_json(directory / "model.json", about)


def _make_room(directory: Path) -> None:
    there = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if "model.json" in there:
        raise InputError(f"{directory}: holds a model already; delete it or give another directory")
    if other := sorted(name for name in there if not name.startswith(("weights", "model.json.", checksums.NAME))):
        raise InputError(f"{directory}: holds files that are no unfinished model ({other[0]}); give another directory")
    make_empty(directory)


def load_model(
    directory: Path | str, mesh: Mesh | None = None, dtype: Any = "float32"
) -> tuple[decoder.GPT, decoder.Params]:
    """(model, parameters in `dtype`) on the mesh (default: the first device alone).

    Args:
      directory: what `save_model` wrote (a run's base/ or params/, a converted model), or a Hugging Face directory.

    Raises InputError where there is no complete model or its tensors do not fit its sizes.
    """
    directory = Path(directory)
    mesh = mesh or sharding.make_mesh(MeshConfig(data=1))
    if hf.is_model(directory):
        return loader.load(hf.HfSource(directory), mesh, dtype)
    model = decoder.GPT(load_config(directory))
    params = load_tree(directory / "weights", model, mesh, dtype)
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
    config: ModelConfig = from_dict_of(ModelConfig, _describe(Path(directory))["config"], f"{directory}/model.json")
    config.check_complete()
    return config if config.architecture else dataclasses.replace(config, architecture="gptj")


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """The tokenizer stored with a model. Raises InputError where there is none."""
    found = find_tokenizer(directory)
    if found is None:
        raise InputError(f"{directory}: has no tokenizer; set --config.tokenizer, or convert it with --tokenizer=DIR")
    return found


def find_tokenizer(directory: Path | str) -> Tokenizer | None:
    """The tokenizer stored with a model, or None where there is none. Raises InputError."""
    if hf.is_model(Path(directory)):
        return hf.find_tokenizer(Path(directory))
    spec = _describe(Path(directory))["tokenizer"]
    return spec and from_spec(spec)


def stored_fingerprint(directory: Path) -> str:
    """The fingerprint of the weights on disk. Raises InputError."""
    return str(_describe(directory)["fingerprint"])


def stored_dtype(directory: Path) -> str:
    """The dtype of the weights on disk. Raises InputError."""
    return str(_describe(directory).get("dtype", "float32"))


def save_tree(directory: Path, tree: Any) -> None:
    """Writes a tree of arrays with Orbax. Beside the arrays the host needs about as much as the largest of them."""
    handler, args = _how_to_save(tree)
    with disk_errors_as_input_errors(directory, ValueError), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(directory.absolute(), args=args)


def _how_to_save(tree: Any) -> tuple[Any, Any]:
    """Orbax's handler and arguments.

    Uncompressed: weights shrink by a tenth only, and take twice as long for it. In chunks: another mesh reads its
    shards without reading whole arrays.
    """
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(tree))
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=1 + largest // 10**9, use_compression=False)
    chunked = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=2**27), tree)
    return handler, ocp.args.PyTreeSave(tree, save_args=chunked)


def load_tree(directory: Path, model: decoder.GPT, mesh: Mesh, dtype: Any) -> decoder.Params:
    """A tree of the model's parameters, or of anything with their shapes, from `save_tree`. Raises InputError."""
    target = placement.placed_shapes(model, mesh, dtype)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            described = checkpointer.metadata(directory.absolute()).item_metadata
            if described is None:
                raise ValueError("no whole Orbax checkpoint is there")
            _check_shapes(directory, described.tree, target)
            return checkpointer.restore(directory.absolute(), target)
    except InputError:
        raise
    except Exception as error:  # of a damaged file Orbax and TensorStore raise whatever they stumble over
        if is_peer_failure(error):
            raise
        raise InputError(
            f"{directory}: cannot be restored ({_reason(error)}); delete {directory.parent} to have it made or "
            "converted again"
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of what an error began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0][:200]


def _check_shapes(directory: Path, stored: Any, wanted: decoder.Params) -> None:
    """Orbax would notice too, but in a thread of its own and in many lines."""
    shapes = [
        {placement.leaf_name(path): list(leaf.shape) for path, leaf in flat}
        for flat in (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (stored, wanted))
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        there, asked = (shape.get(name, "missing") for shape in shapes)
        if there != asked:
            raise InputError(f"{directory}: cannot be restored: {name} is {there}, the model's sizes ask for {asked}")


class Moments(NamedTuple):
    """Adam's state that came with a model: both moments as trees of its parameters, and the steps they have seen."""

    first: decoder.Params
    second: decoder.Params
    steps: int


def save_moments(directory: Path, which: str, tree: decoder.Params, steps: int) -> None:
    """Stores the "first" or the "second" moments beside a model that `save_model` wrote."""
    save_tree(directory / "moments" / which, tree)
    RunDirectory(directory, processes).write_json(directory / "moments" / f"{which}.json", {"steps": steps})


def load_moments(directory: Path, mesh: Mesh) -> Moments:
    """The Adam moments stored with a model, float32. Raises InputError where there are none."""
    if not has_moments(directory):
        raise InputError(
            f"{directory}: holds no Adam moments; convert it with --moments, or set replication.base_moments=False"
        )
    model = decoder.GPT(load_config(directory))
    first, second = (load_tree(directory / "moments" / which, model, mesh, "float32") for which in ("first", "second"))
    return Moments(
        first, second, int(RunDirectory(directory).read_json(directory / "moments" / "second.json")["steps"])
    )


def has_moments(directory: Path) -> bool:
    """Whether complete Adam moments are stored with a model."""
    return all((directory / "moments" / f"{which}.json").exists() for which in ("first", "second"))


def exists(directory: Path) -> bool:
    """Whether a complete model is there."""
    return (directory / "model.json").exists() or hf.is_model(directory)


def _describe(directory: Path) -> dict[str, Any]:
    path = directory / "model.json"
    if not path.exists():
        raise InputError(f"{directory}: no complete model is there: neither model.json nor a Hugging Face config.json")
    described = parse_json_object(checksums.read_verified(path), path)
    try:
        if described["format"] != "star_jax model 1":
            raise ValueError(f"unknown format {described['format']!r}")
        if not isinstance(described["config"], dict) or not isinstance(described["tokenizer"], dict | type(None)):
            raise ValueError("'config' and 'tokenizer' must be objects")
        return described
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: not a model description ({error!r})") from error
