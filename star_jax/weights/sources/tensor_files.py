"""Named tensors in a directory, read one by one: safetensors or torch's .bin, in one file or several with an index."""

import dataclasses
import functools
import logging
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from star_jax.errors import InputError, first_line, shown
from star_jax.json_reader import read_json_object

LOG = logging.getLogger("star_jax")
FLOATS = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
DOWNLOAD_AGAIN = "download the file again"


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk."""

    shape: tuple[int, ...]
    type_name: str  # as the format names it, e.g. "F32", "F8_E4M3"
    dtype: np.dtype | None  # None: not one of FLOATS: integers, quantized numbers, the masks that some files carry
    read: Callable[[], np.ndarray]


def open_directory(directory: Path) -> dict[str, StoredTensor]:
    """Name -> tensor, of the weight files in a directory that transformers would load.

    A whole file wins over an index, and safetensors win over torch's files; an index that loses is named in a warning.
    A link whose target is gone, as in a cache that was cleared by half, does not give way to another file. Raises
    InputError if files are missing or malformed.
    """
    for name, open_file in (("model.safetensors", _open_safetensors), ("pytorch_model.bin", _open_torch)):
        index = directory / f"{name}.index.json"
        if _is_file(directory / name):
            if index.is_file():
                LOG.warning("%s: ignored, because %s is there, as transformers does", index, name)
            return open_file(directory / name)
        if _is_file(index):
            return _open_index(index, open_file)
    raise InputError(f"{directory}: has no weights: neither model.safetensors nor pytorch_model.bin nor their index")


def _is_file(path: Path) -> bool:
    """Whether a path is a file. Raises InputError for a link whose target is gone."""
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path}: is a link to a file that is gone; {DOWNLOAD_AGAIN}")
    return path.is_file()


def _open_index(index: Path, open_file: Callable[[Path], dict[str, StoredTensor]]) -> dict[str, StoredTensor]:
    weight_map = read_json_object(index, DOWNLOAD_AGAIN).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError(f"{index}: has no weight_map from tensor names to file names; {DOWNLOAD_AGAIN}")
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        path = index.parent / file
        # A name with a folder could point outside of the directory. Path.is_file raises for a name that is too long.
        if Path(file).name != file or not os.path.isfile(path):
            raise InputError(f"{index}: lists the file {shown(file)}, which is not in this directory; download it")
        of_file = open_file(path)
        for name in (n for n, f in weight_map.items() if f == file):
            if name not in of_file:
                raise InputError(f"{path}: the tensor {name} is missing, which {index.name} lists; {DOWNLOAD_AGAIN}")
            tensors[name] = of_file[name]
    return tensors


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="np")
        tensors = {}
        for name in file.keys():  # noqa: SIM118 (the handle is not a mapping)
            view = file.get_slice(name)
            read, kind = functools.partial(file.get_tensor, name), view.get_dtype()
            tensors[name] = StoredTensor(tuple(view.get_shape()), kind, FLOATS.get(kind), read)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a complete safetensors file ({first_line(error)}); {DOWNLOAD_AGAIN}") from error
    return tensors


def _open_torch(path: Path) -> dict[str, StoredTensor]:
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{path}: reading it needs torch; install torch, or get model.safetensors instead") from error
    dtypes = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}

    def read(tensor: Any) -> np.ndarray:
        tensor = tensor.detach()  # a file may hold parameters
        if tensor.dtype == torch.bfloat16:  # which NumPy lacks
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    try:
        # weights_only: runs no code from the file. mmap: reads a tensor when it is used; files from before torch 1.6
        # (GPT-2's own) are not zip archives and are read at once.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of the file's format; an error says what matters
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever torch's unpickler and zip reader raise
        # The first sentence only: the rest recommends to load the file with its code.
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise InputError(f"{path}: not a file of weights ({reason}); {DOWNLOAD_AGAIN}") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(t, torch.Tensor) and t.layout == torch.strided
        for name, t in tensors.items()
    ):
        raise InputError(f"{path}: holds other things than named tensors; {DOWNLOAD_AGAIN}")
    return {
        name: StoredTensor(
            tuple(t.shape),
            str(t.dtype).removeprefix("torch."),
            FLOATS[dtypes[t.dtype]] if t.dtype in dtypes else None,
            functools.partial(read, t),
        )
        for name, t in tensors.items()
    }
