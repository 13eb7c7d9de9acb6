"""Damages for tests of malformed models: each function makes one, a function of the model's folder."""

import json
import os
import pickle
import shutil
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
    """Values of a JSON file are set; None deletes the key."""

    def change(folder):
        values = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    return change


def model_json_with(**changes):
    """Sizes of our model.json are set."""

    def change(folder):
        values = json.loads((folder / "model.json").read_text())
        values["config"].update(changes)
        (folder / "model.json").write_text(json.dumps(values))

    return change


def content(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def without(*names):
    return lambda folder: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in (folder / n for n in names)]


def truncated(name, size):
    """The first `size` bytes are left; a negative number of bytes is taken from the end."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def tensors_with(name, change, file="model.safetensors"):
    """`change` of the tensor's array takes its place; None takes it out."""

    def changed(folder):
        tensors = load_file(folder / file)
        value = change(tensors.pop(name, np.zeros(1, np.float32)))
        save_file(tensors if value is None else {**tensors, name: value}, folder / file)

    return changed


def spoiled(value):
    """One element of an array gets this value."""

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
    """pytorch_model.bin with what `make` returns, in place of the safetensors; saved by torch, pickle or as it is."""

    def change(folder):
        torch = pytest.importorskip("torch", reason="reading pytorch_model.bin needs torch")
        (folder / "model.safetensors").unlink()
        path, made = folder / "pytorch_model.bin", make(folder)
        if by == "torch":
            torch.save(made, path)
        else:
            path.write_bytes(pickle.dumps(made) if by == "pickle" else made)

    return change


def leaves_with(change, shard=1, number=4):
    """`change` of the list of arrays of one npz of a shard."""

    def changed(folder):
        path = folder / "step_3" / f"shard_{shard}" / f"{number}.npz"
        with np.load(path) as file:
            arrays = [file[name] for name in file.files]
        np.savez(path, *change(arrays), allow_pickle=True)

    return changed


def every(change, shards=(0, 1)):
    """The same damage in every npz of the shards."""
    return lambda folder: [leaves_with(change, shard, n)(folder) for shard in shards for n in range(16)]


def step_file(name, shard=1):
    return f"step_3/shard_{shard}/{name}"


def as_npy(folder):
    with open(folder / step_file("7.npz"), "wb") as file:
        np.save(file, np.zeros(3))


def trapped(arrays):
    return [np.array([Trap(Path(os.environ["STAR_TEST_TRAP"]))], object)] * len(arrays)
