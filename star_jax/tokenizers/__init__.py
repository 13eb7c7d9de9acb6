"""Text <-> token ids, three kinds with one interface (`base.Tokenizer`): any tokenizer.json, bytes, and symbols.

`make` creates a tokenizer from the option `config.tokenizer`, `load_directory` from a model's files, and `from_spec`
from what a run or a model stores.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from star_jax import json_reader, option_values
from star_jax.errors import InputError, shown
from star_jax.tokenizers import json_tokenizer
from star_jax.tokenizers.base import Tokenizer
from star_jax.tokenizers.directory import from_hub, load_directory
from star_jax.tokenizers.json_tokenizer import JsonTokenizer
from star_jax.tokenizers.simple import ByteTokenizer, SymbolTokenizer

__all__ = ["JsonTokenizer", "Tokenizer", "from_spec", "load_directory", "make"]


def make(name: str, symbols: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer of `config.tokenizer`.

    Args:
      name: "bytes" (or ""), "symbols", a directory with a model's tokenizer files, or a model's name on the hub.
      symbols: the task's words, for "symbols".

    Raises InputError if there is no such tokenizer, or its files cannot be read.
    """
    if name in ("", "bytes"):
        return ByteTokenizer()
    if name == "symbols":
        if not symbols:
            raise InputError(
                "tokenizer='symbols': this task has no closed set of words; set --config.tokenizer=bytes or a directory"
            )
        return SymbolTokenizer(symbols)
    name = option_values.local_path(name, "tokenizer")
    return load_directory(Path(name)) if Path(name).is_dir() else from_hub(name)


def from_spec(spec: dict[str, Any]) -> Tokenizer:
    """The tokenizer whose `spec()` this is. Raises InputError with the reason, without a file, if it is none's."""
    kind = spec.get("kind")
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "symbols":
        symbols = spec.get("symbols")
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
            raise InputError(f"symbols should be a list of texts, is {json_reader.short(symbols)}")
        return SymbolTokenizer(symbols)
    if kind == "json":
        return json_tokenizer.from_spec(spec)
    raise InputError(f"unknown tokenizer kind {shown(kind)}; there are bytes, symbols and json")
