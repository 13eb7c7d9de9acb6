"""Model directories: `weights/` by Orbax, optional `moments/`, and `model.json` with sizes, tokenizer and fingerprint.

`model.json` is written last: a directory without it is an unfinished save. Readers here also take Hugging Face
directories and GGUF files.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from star_jax import __version__
from star_jax.config import MeshConfig, from_dict_of
from star_jax.distributed import processes, sharding
from star_jax.errors import InputError, shown
from star_jax.json_reader import Fields, is_present
from star_jax.models import decoder
from star_jax.models.decoder import Decoder
from star_jax.models.spec import DecoderSpec
from star_jax.runs import checksums
from star_jax.runs.atomic_files import make_empty
from star_jax.runs.run_directory import RunDirectory
from star_jax.tokenizers import from_spec
from star_jax.tokenizers.base import Tokenizer
from star_jax.weights import orbax_tree, placement
from star_jax.weights.fingerprint import fingerprint
from star_jax.weights.finite import non_finite_leaf
from star_jax.weights.sources import gguf, hf, loader

FORMAT = "star_jax model 2"
DTYPES = ("float32", "bfloat16", "float16")  # of stored weights


def save_model(directory: Path, model: Decoder, params: decoder.Params, tokenizer: Tokenizer | None) -> str:
    """Saves weights in their dtype, the model's sizes and its tokenizer; returns the weights' fingerprint.

    Replaces an unfinished save. All processes must call this together. model.json appears after the weights have been
    found finite and read again from disk; orbax_tree.check_stored has what that costs. Raises InputError if the
    directory holds a model or other files, and as orbax_tree.save_tree does.
    """
    processes.broadcast_from_leader(lambda: _make_empty(directory))
    fingerprint = orbax_tree.save_tree(directory / "weights", params)
    _write_description(directory, _description(model, params, tokenizer, fingerprint))
    return fingerprint


class AsyncModelSave:
    """`save_model` in background threads. The model directory is complete after `finish`.

    The constructor copies the weights into host memory, so the caller may free or donate `params` when it returns. All
    processes must make the same calls together. Raises InputError like `save_model`.
    """

    def __init__(self, directory: Path, model: Decoder, params: decoder.Params, tokenizer: Tokenizer | None) -> None:
        processes.broadcast_from_leader(lambda: _make_empty(directory))
        self._directory, self._save = directory, orbax_tree.Save(directory / "weights", params)
        self._about = _description(model, params, tokenizer, self._save.fingerprint)

    @property
    def fingerprint(self) -> str:
        """The weights' fingerprint."""
        return self._save.fingerprint

    def finish(self) -> None:
        """Waits until the weights are on disk, reads them again, then writes model.json."""
        self._save.finish()
        _write_description(self._directory, self._about)

    def wait(self) -> None:
        """Waits until all writes have ended and leaves the save unfinished."""
        self._save.wait()


def load_model(
    directory: Path | str, mesh: Mesh | None = None, dtype: Any = "float32"
) -> tuple[Decoder, decoder.Params]:
    """(model, parameters in `dtype`) on the mesh, by default on the first device.

    Args:
      directory: a model directory (a run's base/ or params/, a converted model), a Hugging Face directory or a GGUF
        file.

    Weights of ours are restored and compared with their fingerprint in the stored dtype, then cast leaf by leaf. Raises
    InputError if there is no complete model, its tensors do not have its sizes' shapes or the stored fingerprint, or a
    value is not finite in `dtype`.
    """
    directory = Path(directory)
    mesh = mesh or sharding.make_mesh(MeshConfig(data=1))
    if gguf.is_file(directory):
        return loader.load(gguf.GgufSource(directory), mesh, dtype)
    if hf.is_model(directory):
        return loader.load(hf.HfSource(directory), mesh, dtype)
    model = Decoder(load_spec(directory))
    target = placement.sharded_shapes(model, mesh, stored_dtype(directory))
    stored = [orbax_tree.load_tree(directory / "weights", target)]
    if fingerprint(stored[0]) != stored_fingerprint(directory):
        raise InputError(
            f"{directory}/weights: damaged, their fingerprint is not the one in model.json; "
            + orbax_tree.remedy(directory)
        )
    params = placement.cast(stored.pop(), jnp.dtype(dtype))
    if name := non_finite_leaf(params):
        raise InputError(
            f"{directory}/weights: {name} holds values that are not finite numbers of {jnp.dtype(dtype).name}; use a "
            f"wider dtype, or {orbax_tree.remedy(directory)}"
        )
    return model, params


def load_spec(directory: Path | str) -> DecoderSpec:
    """The spec of a directory's model. Raises InputError."""
    if gguf.is_file(directory):
        return gguf.read_spec(Path(directory))
    if hf.is_model(Path(directory)):
        return hf.read_spec(Path(directory))
    values = _read_description(Path(directory))["spec"]
    fields = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(DecoderSpec)}
    for name in (*(name for name, required in fields.items() if required), *values):
        if name not in values or name not in fields:
            what = "no field" if name not in values else "an unknown field"
            raise InputError(f"{directory}/model.json: the spec has {what} {name!r}; make or convert the model again")
    try:
        spec: DecoderSpec = from_dict_of(DecoderSpec, values, f"{directory}/model.json")
    except InputError as error:
        named = str(error).startswith(str(directory))
        raise (
            error if named else InputError(f"{directory}/model.json: {error}; make or convert the model again")
        ) from error
    return spec


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """The tokenizer stored with a model. Raises InputError if there is none."""
    tokenizer = find_tokenizer(directory)
    if tokenizer is None:
        raise InputError(f"{directory}: has no tokenizer; set --config.tokenizer, or convert it with --tokenizer=DIR")
    return tokenizer


def find_tokenizer(directory: Path | str) -> Tokenizer | None:
    """The tokenizer stored with a model, or None. Raises InputError if it or the model's description is damaged."""
    if gguf.is_file(directory):
        return gguf.find_tokenizer(Path(directory))
    if hf.is_model(Path(directory)):
        return hf.find_tokenizer(Path(directory))
    spec = _read_description(Path(directory))["tokenizer"]
    try:
        return None if spec is None else from_spec(spec)
    except InputError as error:
        path = Path(directory) / "model.json"
        raise InputError(f"{path}: tokenizer: {error}; {orbax_tree.remedy(Path(directory))}") from error


def stored_fingerprint(directory: Path) -> str:
    """The fingerprint of the weights on disk, from model.json. Raises InputError."""
    fingerprint: str = _read_description(directory)["fingerprint"]
    return fingerprint


def stored_dtype(directory: Path) -> str:
    """The dtype of the weights on disk, from model.json. Raises InputError."""
    dtype = _read_description(directory).get("dtype", "float32")
    if dtype not in DTYPES:
        raise InputError(
            f"{directory}/model.json: dtype is {shown(dtype)}, not one of {', '.join(DTYPES)}; "
            + orbax_tree.remedy(directory)
        )
    return str(dtype)


def exists(directory: Path) -> bool:
    """Whether a directory holds a complete model, ours or Hugging Face's, or a path is a model's file."""
    return is_present(directory / "model.json") or hf.is_model(directory) or gguf.is_file(directory)


class Moments(NamedTuple):
    """Adam's state that came with a model, for `replication.base_moments`."""

    first: decoder.Params  # float32, shaped like the parameters
    second: decoder.Params
    steps: int  # optimizer steps that the moments have accumulated


def save_moments(directory: Path, which: str, tree: decoder.Params, steps: int) -> None:
    """Stores the "first" or the "second" moments in the directory of a model that `save_model` wrote.

    Their JSON file appears last, as model.json does.
    """
    about = {"steps": steps, "fingerprint": orbax_tree.save_tree(directory / "moments" / which, tree)}
    RunDirectory(directory, processes).write_json(directory / "moments" / f"{which}.json", about)


def load_moments(directory: Path, mesh: Mesh) -> Moments:
    """The Adam moments stored with a model, float32. Raises InputError if there are none."""
    if not has_moments(directory):
        raise InputError(
            f"{directory}: holds no Adam moments; convert it with --moments, or set replication.base_moments=False"
        )
    target = placement.sharded_shapes(Decoder(load_spec(directory)), mesh, "float32")
    (first, steps), (second, _) = (_load_moment(directory, which, target) for which in ("first", "second"))
    return Moments(first, second, steps)


def has_moments(directory: Path) -> bool:
    """Whether complete Adam moments are stored with a model."""
    return all(is_present(directory / "moments" / f"{which}.json") for which in ("first", "second"))


def _load_moment(directory: Path, which: str, target: decoder.Params) -> tuple[decoder.Params, int]:
    """(one of the moments, its steps), checked."""
    path, remedy = directory / "moments" / f"{which}.json", "convert the model again"
    about = checksums.read_verified_object(path, remedy)
    steps = Fields(about, path, remedy).integer("steps", high=2**31 - 1)
    tree = orbax_tree.load_tree(directory / "moments" / which, target)
    # Earlier versions stored no fingerprint of moments.
    if "fingerprint" in about and fingerprint(tree) != about["fingerprint"]:
        raise InputError(
            f"{directory}/moments/{which}: damaged, their fingerprint is not the one in {path.name}; " + remedy
        )
    return tree, steps


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


def _description(
    model: Decoder, params: decoder.Params, tokenizer: Tokenizer | None, fingerprint: str
) -> dict[str, Any]:
    """The content of model.json."""
    return {
        "format": FORMAT,
        "star_jax": __version__,
        "spec": dataclasses.asdict(model.spec),
        "dtype": str(jax.tree.leaves(params)[0].dtype),
        "fingerprint": fingerprint,
        "tokenizer": tokenizer and tokenizer.spec(),
    }


def _write_description(directory: Path, about: dict[str, Any]) -> None:
    RunDirectory(directory, processes).write_json(directory / "model.json", about)


def _read_description(directory: Path) -> dict[str, Any]:
    path = directory / "model.json"
    if not is_present(path):
        raise InputError(f"{directory}: no complete model is there: neither model.json nor a Hugging Face config.json")
    remedy = orbax_tree.remedy(directory)
    about = checksums.read_verified_object(path, remedy)
    if about.get("format") != FORMAT:
        raise InputError(
            f"{path}: its format is {shown(about.get('format'))}; star_jax reads {FORMAT!r}; make or convert "
            "the model again"
        )
    fields = Fields(about, path, remedy)
    fields.object("spec")
    fields.text("fingerprint")
    if "tokenizer" not in about:
        raise InputError(f"{path}: key 'tokenizer' is missing; {remedy}")
    fields.object("tokenizer", {})  # or null
    return about
