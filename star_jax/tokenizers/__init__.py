"""Text <-> token ids, three kinds with one interface (`base.Tokenizer`): GPT-2's byte-level BPE, bytes, and symbols.

`make` creates a tokenizer from the option `config.tokenizer`, `from_spec` from what a run or a model stores.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from star_jax.errors import InputError
from star_jax.tokenizers.base import Tokenizer
from star_jax.tokenizers.byte_level_bpe import Gpt2Tokenizer
from star_jax.tokenizers.simple import ByteTokenizer, SymbolTokenizer


def make(name: str, symbols: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer of `config.tokenizer`.

    Args:
      name: "bytes" (or ""), "symbols", a directory with GPT-2's tokenizer files, or a model's name on the hub.
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
    return Gpt2Tokenizer.load(Path(name)) if Path(name).is_dir() else Gpt2Tokenizer.from_hub(name)


def from_spec(spec: dict[str, Any]) -> Tokenizer:
    """The tokenizer whose `spec()` this is. Raises InputError for an unknown kind."""
    kind = spec.get("kind")
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "symbols":
        return SymbolTokenizer(spec["symbols"])
    if kind == "gpt2":
        return Gpt2Tokenizer(json.dumps(spec["tokenizer"]))
    raise InputError(f"unknown tokenizer kind {kind!r}; there are bytes, symbols and gpt2")
