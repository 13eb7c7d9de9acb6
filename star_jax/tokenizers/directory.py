"""A model directory's tokenizer: tokenizer.json with what the files next to it say of it."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from star_jax.errors import InputError, shown
from star_jax.json_reader import is_present, read_bytes, read_json_object, short
from star_jax.tokenizers.json_tokenizer import (
    MALFORMED,
    PADDING,
    REMEDY,
    JsonTokenizer,
    parse,
    puts_space_first,
    token_ids,
)

END_OF_TEXT = "<|endoftext|>"
_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
# Ends of a text in files that name none: GPT-2's, SentencePiece's, Gemma's, Llama-3's.
_ENDS = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>")
FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "config.json", "generation_config.json",
)  # fmt: skip


def load_directory(directory: Path) -> JsonTokenizer:
    """The tokenizer in a directory with tokenizer.json, or with vocab.json and merges.txt (GPT-2's kind).

    End ids: tokenizer_config.json's `eos_token` first, then all `eos_token_id` of generation_config.json and
    config.json. Ids that the tokenizer does not have are ignored: configs made by default hold other models' ids.
    BOS: where tokenizer_config.json says `add_bos_token`; without that option, where the file's post-processor puts one
    before a text. Chat template: chat_template.jinja, or `chat_template` of tokenizer_config.json (of several named
    ones, "default"). Tokens that tokenizer_config.json does not name are those of special_tokens_map.json, in which
    older versions of transformers named them all.

    Raises InputError if a file is missing or malformed, or if tokenizer_config.json describes another tokenizer.
    """
    about, special = (_json_object(directory / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    path, text = _tokenizer_json(directory, add_prefix_space=about.get("add_prefix_space") is True)
    names: dict[str, str] = {}
    for file, values in (("special_tokens_map.json", special), ("tokenizer_config.json", about)):
        with _errors_name(directory / file):
            names |= {name: token for name in _NAMES if (token := _token_text(name, values.get(name)))}
    with _errors_name(path):
        values = parse(text)
        ids = token_ids(values)
        first, space_first = _first_of_template(values.get("post_processor"), ids), puts_space_first(values)
    with _errors_name(directory / "tokenizer_config.json"):
        _check_agreement(values, space_first, about)
        bos_id = _bos_id(ids, first, about, names)
        chat_template = _chat_template(directory, about)
    end_ids = _end_ids(path, ids, names)
    with _errors_name(path):
        return JsonTokenizer(values, end_ids=end_ids, bos_id=bos_id, chat_template=chat_template, template_tokens=names)


def from_hub(name: str) -> JsonTokenizer:
    """The tokenizer of a model on the Hugging Face hub, or in its cache on this machine. Raises InputError."""
    from huggingface_hub import snapshot_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs a warning for every retry
    try:
        if name.count("/") > 1:  # a hub name is "owner/name" at most, so this is the path of a missing directory
            raise ValueError("there is no such directory")
        directory = snapshot_download(name, allow_patterns=list(FILES))
    except Exception as error:  # no network, a wrong name; the hub's errors have no common base
        raise InputError(
            f"tokenizer={name!r} is not 'bytes', 'symbols' or a directory that exists, nor is it on the hub "
            f"({str(error).splitlines()[0]}); give a directory with tokenizer.json, or vocab.json and merges.txt"
        ) from error
    return load_directory(Path(directory))


@contextlib.contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Converts what a malformed value raises into an InputError that names the file, and adds its name to others."""
    try:
        yield
    except InputError as error:
        raise error if str(error).startswith(f"{path.parent}/") else InputError(f"{path}: {error}") from error
    except MALFORMED as error:
        raise InputError(f"{path}: malformed: {error!r:.200}; {REMEDY}") from error


def _tokenizer_json(directory: Path, add_prefix_space: bool) -> tuple[Path, str]:
    """(file, content of a tokenizer.json). `add_prefix_space`: of vocab.json and merges.txt, which do not say it."""
    tokenizer_json, vocab, merges = (directory / name for name in FILES[:3])
    if is_present(tokenizer_json):  # a link whose target is gone is an error, and other files no substitute
        return tokenizer_json, _read(tokenizer_json)
    for path in (vocab, merges):
        if not is_present(path):
            raise InputError(f"{directory}: holds neither tokenizer.json nor {path.name}")
        _read(path)  # bounds its size: the library reads a file of any
    from tokenizers import ByteLevelBPETokenizer

    try:
        library = ByteLevelBPETokenizer(str(vocab), str(merges), add_prefix_space=add_prefix_space)
    except Exception as error:  # the library raises a bare Exception for a file that it cannot read
        raise InputError(f"{vocab}: is not a vocabulary of GPT-2's kind ({error})") from error
    library.add_special_tokens([END_OF_TEXT])
    return vocab, str(library.to_str())


def _check_agreement(values: dict[str, Any], space_first: bool | None, about: dict[str, Any]) -> None:
    """Raises InputError where tokenizer_config.json would give a text other ids than tokenizer.json.

    Which of the two decides depends on the class that transformers picks, so neither is right for all programs.
    """
    stated = about.get("add_prefix_space")
    if isinstance(stated, bool) and space_first is not None and stated != space_first:
        raise InputError(
            f"says add_prefix_space={str(stated).lower()} and tokenizer.json does the opposite; "
            "correct the one that the model was not trained with"
        )
    tokens = {int(token["id"]): token for token in values["added_tokens"]}
    for key, token in (about.get("added_tokens_decoder") or {}).items():
        content = _token_text("added_tokens_decoder", token)
        if PADDING.fullmatch(content):
            continue
        ours = tokens.get(int(key), {})
        flags = ("content", "special", "lstrip", "rstrip", "single_word")
        different = [flag for flag in flags if token.get(flag, False) != ours.get(flag, False)]
        if different:
            raise InputError(
                f"has the token {shown(content)} with the id {key}, tokenizer.json has "
                f"{'none' if not ours else f'it with another {different[0]}'}; save both files from one tokenizer"
            )


def _end_ids(path: Path, ids: dict[str, int], names: dict[str, str]) -> list[int]:
    """The ids that end a text. `path`: the file with the vocabulary `ids`; those that name ends are next to it."""
    known = set(ids.values())
    stated: list[int | None] = []
    if eos := names.get("eos_token"):
        if eos not in ids:
            raise InputError(
                f"{path}: has no token {shown(eos)}, which tokenizer_config.json or special_tokens_map.json names as "
                "the eos_token; save all of them from one tokenizer"
            )
        stated.append(ids[eos])
    for file in ("generation_config.json", "config.json"):
        given = _json_object(path.parent / file).get("eos_token_id")
        listed = given if isinstance(given, list) else [given]
        if not all(value is None or type(value) is int for value in listed):
            raise InputError(f"{path.parent / file}: eos_token_id must be an id or a list of ids, is {short(given)}")
        stated += listed
    ends = [i for i in stated if i in known]
    return ends or [ids[name] for name in _ENDS if name in ids][:1]


def _bos_id(ids: dict[str, int], first: str | None, about: dict[str, Any], names: dict[str, str]) -> int | None:
    """The id before a text. `first`: the token that the post-processor puts there."""
    added = about.get("add_bos_token")
    if added is None:
        return ids[first] if first else None
    if not isinstance(added, bool):
        raise InputError(f"add_bos_token must be true or false, is {short(added)}; {REMEDY}")
    if not added:
        return None
    name = names.get("bos_token") or first or ""
    if name not in ids:
        raise InputError(f"says add_bos_token, and the tokenizer has no token {shown(name)}")
    return ids[name]


def _first_of_template(processor: dict[str, Any] | None, ids: dict[str, int]) -> str | None:
    """The special token that a post-processor puts before a single text. Raises InputError if no id has this name."""
    for part in (processor or {}).get("processors") or [processor]:
        if part and part["type"] == "TemplateProcessing":
            first = part["single"][0]
            name = first["SpecialToken"]["id"] if "SpecialToken" in first else None
            if name is not None and name not in ids:
                raise InputError(f"its post-processor puts {shown(name)} before a text, which is no token; {REMEDY}")
            return name
    return None


def _chat_template(directory: Path, about: dict[str, Any]) -> str:
    path = directory / "chat_template.jinja"
    if is_present(path):
        return _read(path)
    template = about.get("chat_template") or ""
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        if "default" not in named:
            raise InputError("none of the chat templates is named 'default'")
        template = named["default"]
    if not isinstance(template, str):
        raise InputError(f"chat_template must be a text, is {short(template)}; {REMEDY}")
    return template


def _token_text(key: str, value: Any) -> str:
    """A token of tokenizer_config.json: a text, or an object that holds it; "" for null. `key`: for messages."""
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str | None):
        raise InputError(f"{key} must be a token's text, is {short(value)}; {REMEDY}")
    return content or ""


def _json_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; {} if there is no such file. Raises InputError."""
    return read_json_object(path, REMEDY) if is_present(path) else {}


def _read(path: Path) -> str:
    try:
        return read_bytes(path, REMEDY).decode("utf-8-sig")  # a byte order mark is no part of the text
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; {REMEDY}") from error
