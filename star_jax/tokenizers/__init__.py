"""Text <-> token ids.

Three kinds, one interface. `vocab_size` counts the ids in use (a model's table may be padded beyond it),
`end_of_text` is the id that ends a document, and `pieces[i]` are the bytes that token i adds to a text:
the sampler builds its stop automaton from them, so stop strings are found whatever the token borders.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from star_jax.errors import InputError
from star_jax.tokenizers.base import Tokenizer
from star_jax.tokenizers.byte_level_bpe import Gpt2Tokenizer
from star_jax.tokenizers.simple import ByteTokenizer, SymbolTokenizer


def from_spec(spec: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `spec()` described."""
    kind = spec.get("kind")
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "symbols":
        return SymbolTokenizer(spec["symbols"])
    if kind == "gpt2":
        return Gpt2Tokenizer(json.dumps(spec["tokenizer"]))
    raise InputError(f"unknown tokenizer kind {kind!r}")


def make(name: str, symbols: Sequence[str] = ()) -> Tokenizer:
    """`bytes` (also ""), `symbols` (the task's own words), or GPT-2's: a directory or a hub name. Raises InputError."""
    if name in ("", "bytes"):
        return ByteTokenizer()
    if name == "symbols":
        if not symbols:
            raise InputError("tokenizer='symbols': this task has no closed set of words; use 'bytes' or a directory")
        return SymbolTokenizer(symbols)
    return Gpt2Tokenizer.load(Path(name)) if Path(name).is_dir() else Gpt2Tokenizer.from_hub(name)
