"""star_jax.weights.sources.location: paths, models of pip packages, and names on the hub (a local stand-in)."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from star_jax.errors import InputError
from star_jax.models import families
from star_jax.models.decoder import Decoder
from star_jax.weights.sources import hf, loader, location
from tests.support.hub import COMMIT, Hub
from tests.support.models import TINY, numpy_params
from tests.support.tables import every_row

ROOT = Path(__file__).parents[3]
# Resolves the names in argv and prints the result of each as a line of JSON.
PROGRAM = """
import json, sys
from star_jax.errors import InputError
from star_jax.weights.sources import location
for name in sys.argv[1:]:
    try:
        print(json.dumps([str(part) for part in location.resolve(name)]))
    except InputError as error:
        print(json.dumps(str(error)))
assert "jax" not in sys.modules
"""


def resolved(*names: str, **environment: str) -> list:
    """What another process resolves the names to: [path, origin], or the text of the error."""
    pytest.importorskip("huggingface_hub")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def hub(tmp_path):
    """A hub with a model in two files and much that is not needed, one that is gated, and one that is no model."""
    folder = tmp_path / "hub" / "some-lab" / "Model-1.5"
    hf.save(folder, families.spec_of(TINY), numpy_params(TINY), None, np.dtype("float32"), shard_bytes=40_000)
    for name in ("README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors", "model.gguf"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not needed")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("x")
    for name in ("gated", "README.md"):
        (tmp_path / "hub" / "some-lab" / name.removesuffix(".md")).mkdir()
        (tmp_path / "hub" / "some-lab" / name.removesuffix(".md") / name).write_text("")
    with Hub(tmp_path / "hub") as standin:
        yield standin


def test_a_name_on_the_hub_brings_what_is_needed_and_its_commit(hub, tmp_path):
    """Then it needs no network; and a revision that the cache holds, neither."""
    cache = {"HF_HOME": str(tmp_path / "cache")}
    name = "some-lab/Model-1.5"
    (path, origin), _ = resolved(name, f"{name}@v1", HF_ENDPOINT=hub.url, **cache)
    assert origin == f"{name}@{COMMIT}"
    shards = {file.name for file in Path(path).glob("*.safetensors")}
    needed = {"config.json", "model.safetensors.index.json", "tokenizer_config.json", "chat_template.jinja", *shards}
    assert len(shards) > 1 and set(hub.downloads) == needed == {file.name for file in Path(path).iterdir()}
    assert all(file.is_symlink() for file in Path(path).iterdir())  # to the blobs of the cache
    source, original = (hf.HfSource(folder) for folder in (Path(path), tmp_path / "hub" / name))
    assert source.spec == families.spec_of(TINY)
    for leaf, layer, _ in loader.tensors(Decoder(source.spec)):
        assert source.read(leaf, layer).tobytes() == original.read(leaf, layer).tobytes()
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        assert resolved(name, f"{name}@v1", f"{name}@{COMMIT}", **cache, **offline) == [[path, origin]] * 3


def test_what_the_hub_refuses_is_said_in_one_line(hub, tmp_path):
    rows = {
        "some-lab/none": "the hub has no such model, or it is private: then set HF_TOKEN",
        "some-lab/Model-1.5@v9": "the model has no such revision",
        "some-lab/gated": "its licence has to be accepted on the hub; then set HF_TOKEN",
        "some-lab/README": "holds no config.json on the hub",
    }
    answers = resolved(*rows, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "cache"))
    wrong = [
        (name, answer)
        for (name, expected), answer in zip(rows.items(), answers, strict=True)
        if not isinstance(answer, str) or expected not in answer or name not in answer or "\n" in answer
    ]
    assert not wrong


def test_offline_without_a_cache_is_one_line(tmp_path):
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        (answer,) = resolved("Qwen/Qwen3-0.6B-Base", HF_HOME=str(tmp_path / "empty"), **offline)
        assert answer.startswith("Qwen/Qwen3-0.6B-Base: there is no such directory, and as a name on the hub: the hub ")
        assert answer.endswith("and its cache does not hold the model")


def test_paths_are_taken_as_they_are(tmp_path, monkeypatch):
    """Also those that do not exist and cannot be names on the hub; a folder comes before a name."""
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("owner/name", "/no/such", "a/b/c", "name", "./a/b", "../x", "model.gguf"):
        assert location.resolve(name) == (Path(name), ""), name
    assert location.resolve("~/owner").path == tmp_path / "owner"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A model in two parts, which the package `parts_of_a_model` installs; files are joined in tmp_path/cache."""
    folder = tmp_path / "site" / "parts_of_a_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('the package was imported')")
    contents = [b"first " * 9, b"second"]
    for number, content in enumerate(contents):
        (folder / f"{number}.part").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(location, "CACHE", str(tmp_path / "cache"))
    parts = tuple(("parts_of_a_model", f"{number}.part") for number in range(2))
    digest = hashlib.sha256(b"".join(contents)).hexdigest()
    model = location.PipModel("pytest", "parts-of-a-model", parts, "joined.gguf", digest)
    monkeypatch.setitem(location.PACKAGES, "joined", model)
    return folder, b"".join(contents)


def test_the_parts_of_a_package_are_joined_once(package, tmp_path):
    _, content = package
    target = tmp_path / "cache" / "joined.gguf"
    for _ in range(2):
        assert location.resolve("pip:joined") == (target, f"pytest {pytest.__version__}: joined.gguf")
        assert target.read_bytes() == content
        before = target.stat().st_mtime_ns
    assert target.stat().st_mtime_ns == before and os.listdir(tmp_path / "cache") == ["joined.gguf"]
    target.write_bytes(content[:-1])  # of another size: made again
    location.resolve("pip:joined")
    assert target.read_bytes() == content


def test_packages_that_are_damaged_or_missing_are_named(package, tmp_path):
    folder, _ = package
    (folder / "1.part").write_bytes(b"Second")
    with pytest.raises(InputError, match=r"0\.part: damaged; pip install --force-reinstall parts-of-a-model"):
        location.resolve("pip:joined")
    assert os.listdir(tmp_path / "cache") == []
    (folder / "1.part").unlink()
    with pytest.raises(InputError, match=r"pip:joined: 1\.part is not installed; pip install parts-of-a-model"):
        location.resolve("pip:joined")
    with pytest.raises(InputError, match=r"pip:none: there is no such model; there are pip:smollm2, pip:gemma3-270m"):
        location.resolve("pip:none")


@every_row("name", ["smollm2", "gemma3-270m"])
def test_installed_packages_hold_the_published_files(name):
    try:
        path, origin = location.resolve(f"pip:{name}")
    except InputError as error:
        pytest.skip(str(error))
    model = location.PACKAGES[name]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == model.sha256
    assert origin.startswith(f"{model.distribution} ") and origin.endswith(model.file)
