"""Named tensors in a directory: safetensors or torch's .bin, one file or several with an index, read one by one."""

import dataclasses
import functools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from star_jax.errors import InputError
from star_jax.runs.json_files import read_json_object

FLOATS = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor that has not been read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype | None  # None: not floating point (the masks some files carry)
    read: Callable[[], np.ndarray]


def open_directory(directory: Path) -> dict[str, Stored]:
    """Every tensor of the directory's weight files, by name. Raises InputError."""
    kinds = (("model.safetensors", _open_safetensors), ("pytorch_model.bin", _open_torch))
    for name, opened in kinds:
        index = directory / f"{name}.index.json"
        if index.is_file():
            return _open_index(index, opened)
        if (directory / name).is_file():
            return opened(directory / name)
    raise InputError(f"{directory}: no weights are there; model.safetensors or pytorch_model.bin, or their index.json")


def _open_index(index: Path, opened: Callable[[Path], dict[str, Stored]]) -> dict[str, Stored]:
    weight_map = read_json_object(index, "get the file again").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError(f"{index}: has no weight_map of tensor and file names; get the file anew")
    found: dict[str, Stored] = {}
    for file in sorted(set(weight_map.values())):
        path = index.parent / file
        if Path(file).name != file or not path.is_file():
            raise InputError(f"{index}: the file {file!r} it names is not beside it")
        inside = opened(path)
        for name in (n for n, f in weight_map.items() if f == file):
            if name not in inside:
                raise InputError(f"{path}: the tensor {name} is missing, which {index.name} says is there")
            found[name] = inside[name]
    return found


def _open_safetensors(path: Path) -> dict[str, Stored]:
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="np")
        found = {}
        for name in file.keys():  # noqa: SIM118 (the handle is no mapping)
            view = file.get_slice(name)
            read = functools.partial(file.get_tensor, name)
            found[name] = Stored(tuple(view.get_shape()), FLOATS.get(view.get_dtype()), read)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); get it anew") from error
    return found


def _open_torch(path: Path) -> dict[str, Stored]:
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{path}: reading it needs torch; install it, or get model.safetensors instead") from error
    dtypes = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}

    def read(tensor: Any) -> np.ndarray:
        tensor = tensor.detach()  # a file may hold parameters
        if tensor.dtype == torch.bfloat16:  # NumPy has no such type of its own
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    try:
        # weights_only: nothing in the file is run. mmap: nothing is read before it is asked for; files from before
        # torch 1.6 (GPT-2's own) are no zip archives and are read whole.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises what its unpickler and zip reader raise
        reason = str(error).partition("\n")[0].partition(". ")[0]  # what follows is advice to run the file after all
        raise InputError(f"{path}: not a file of weights ({reason}); get it anew") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(t, torch.Tensor) and t.layout == torch.strided
        for name, t in tensors.items()
    ):
        raise InputError(f"{path}: holds something else than named tensors; get it anew")
    return {
        name: Stored(tuple(t.shape), FLOATS[dtypes[t.dtype]] if t.dtype in dtypes else None, functools.partial(read, t))
        for name, t in tensors.items()
    }
