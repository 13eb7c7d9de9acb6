"""Damages for tests of malformed models. Each function here returns a function that damages a model's folder."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file


class Trap:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return Path.touch, (self._path,)


def json_with(name, **changes):
    """Sets values of a JSON file; None deletes the key."""

    def change(folder):
        values = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    return change


def model_json_with(**changes):
    """Sets sizes in model.json."""

    def change(folder):
        values = json.loads((folder / "model.json").read_text())
        values["spec"].update(changes)
        (folder / "model.json").write_text(json.dumps(values))

    return change


def content(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def without(*names):
    return lambda folder: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in (folder / n for n in names)]


def truncated(name, size):
    """Keeps the first `size` bytes; a negative size removes bytes from the end."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def tensors_with(name, change, file="model.safetensors"):
    """Replaces a tensor by `change` of its array; deletes it if that is None."""

    def changed(folder):
        tensors = load_file(folder / file)
        value = change(tensors.pop(name, np.zeros(1, np.float32)))
        save_file(tensors if value is None else {**tensors, name: value}, folder / file)

    return changed


def spoiled(value):
    """A change of an array: one element gets this value."""

    def spoil(array):
        array = np.array(array)
        array.flat[3] = value
        return array

    return spoil


def index_with(tensor, file):
    def change(folder):
        values = json.loads((folder / "model.safetensors.index.json").read_text())
        values["weight_map"][tensor] = file
        (folder / "model.safetensors.index.json").write_text(json.dumps(values))

    return change


def torch_file(make, by="torch"):
    """Replaces the safetensors by a pytorch_model.bin of what `make` returns.

    `by`: "torch", "legacy" (its format before version 1.6), "pickle", or "bytes", which `make` returns.
    """

    def change(folder):
        torch = pytest.importorskip("torch", reason="reading pytorch_model.bin needs torch")
        (folder / "model.safetensors").unlink()
        path, made = folder / "pytorch_model.bin", make(folder)
        if by in ("torch", "legacy"):
            torch.save(made, path, _use_new_zipfile_serialization=by == "torch")
        else:
            path.write_bytes(pickle.dumps(made) if by == "pickle" else made)

    return change


def leaves_with(change, shard=1, number=4):
    """Replaces the arrays of one npz file by `change` of their list."""

    def changed(folder):
        path = folder / "step_3" / f"shard_{shard}" / f"{number}.npz"
        with np.load(path) as file:
            arrays = [file[name] for name in file.files]
        np.savez(path, *change(arrays), allow_pickle=True)

    return changed


def npy_with(descr, shape, shard=1, number=12):
    """Replaces the header of an npz file's first array by one of this type and shape, with the right checksum."""

    def changed(folder):
        path = folder / step_file(f"{number}.npz", shard)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        content = members["arr_0.npy"]
        size = 10 + int.from_bytes(content[8:10], "little")
        header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(size - 11) + "\n"
        members["arr_0.npy"] = content[:10] + header.encode() + content[size:]
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)

    return changed


def dangling(name):
    """Replaces a file by a link to nothing, as in a hub cache whose blobs were deleted."""

    def changed(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("../../blobs/0123")

    return changed


def sparse(name):
    """Replaces a file by a terabyte of zeros, which occupies no disk."""

    def changed(folder):
        with open(folder / name, "wb") as file:
            file.truncate(2**40)

    return changed


def every(change, shards=(0, 1)):
    """The same damage in every npz file of the shards."""
    return lambda folder: [leaves_with(change, shard, n)(folder) for shard in shards for n in range(16)]


def step_file(name, shard=1):
    return f"step_3/shard_{shard}/{name}"


def as_npy(folder):
    with open(folder / step_file("7.npz"), "wb") as file:
        np.save(file, np.zeros(3))


def trapped(arrays):
    return [np.array([Trap(Path(os.environ["STAR_TEST_TRAP"]))], object)] * len(arrays)
