"""Text <-> token ids.

Three kinds, one interface. `vocab_size` counts the ids in use (a model's table may be padded beyond it),
`end_of_text` is the id that ends a document, and `pieces[i]` are the bytes that token i adds to a text:
the sampler builds its stop automaton from them, so stop strings are found whatever the token borders.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from star_jax.errors import InputError


class Tokenizer(Protocol):
    """What the rest of the program asks of a tokenizer."""

    vocab_size: int
    end_of_text: int
    pieces: list[bytes]

    def encode(self, text: str) -> list[int]:
        """Token ids of the text. Raises InputError for text this tokenizer has no symbols for."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; end-of-text decodes to nothing, a broken UTF-8 sequence to U+FFFD."""
        ...

    def stop_bytes(self, stop: str) -> bytes:
        """The bytes by which the stop string shows in a concatenation of `pieces`."""
        ...

    def spec(self) -> dict[str, Any]:
        """JSON-able description from which `from_spec` makes the same tokenizer again."""
        ...


class ByteTokenizer:
    """One token a byte of UTF-8, end-of-text behind them: 257 ids, any text."""

    def __init__(self) -> None:
        self.vocab_size = 257
        self.end_of_text = 256
        self.pieces = [bytes([i]) for i in range(256)] + [b""]

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def stop_bytes(self, stop: str) -> bytes:
        return stop.encode("utf-8")

    def spec(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class SymbolTokenizer:
    """A closed set of words, one token each, for tiny models on a formal task.

    Text is lines of words with one space between two words of a line; that space is implied, so a
    five-digit sum with its scratchpad is 110 tokens and not 250. "\\n" is a symbol of its own.
    Ids are the positions in `symbols`; end-of-text comes last.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        if "\n" not in symbols or len(set(symbols)) != len(symbols) or any(" " in s or not s for s in symbols):
            raise InputError('symbols must be distinct words without spaces, "\\n" among them')
        self.symbols = tuple(symbols)
        self.vocab_size = len(symbols) + 1
        self.end_of_text = len(symbols)
        self.pieces = [b"\n" if s == "\n" else b" " + s.encode() for s in symbols] + [b""]
        self._ids = {symbol: i for i, symbol in enumerate(symbols)}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, line in enumerate(text.split("\n")):
            if number:
                ids.append(self._ids["\n"])
            for word in line.split():
                if word not in self._ids:
                    raise InputError(f"no symbol for {word!r}: only the task's words; tokenizer='bytes' takes any text")
                ids.append(self._ids[word])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        words = " ".join(self.symbols[i] for i in ids if i < self.end_of_text)
        return "\n".join(line.strip(" ") for line in words.split("\n"))

    def stop_bytes(self, stop: str) -> bytes:
        return b"".join(self.pieces[i] for i in self.encode(stop))

    def spec(self) -> dict[str, Any]:
        return {"kind": "symbols", "symbols": list(self.symbols)}


class Gpt2Tokenizer:
    """GPT-2's byte-level BPE, which GPT-J shares: a wrapper of Hugging Face `tokenizers`.

    `json_text` is the content of a tokenizer.json; `load` also takes vocab.json + merges.txt.
    """

    def __init__(self, json_text: str) -> None:
        from tokenizers import Tokenizer as HfTokenizer

        self._json_text = json_text
        self._tokenizer = HfTokenizer.from_str(json_text)
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        end = self._tokenizer.token_to_id("<|endoftext|>")
        if end is None:
            raise InputError("the tokenizer has no <|endoftext|> token; star_jax needs GPT-2's vocabulary")
        self.end_of_text = end
        self.pieces = [self._piece(i) for i in range(self.vocab_size)]

    @classmethod
    def load(cls, directory: Path) -> "Gpt2Tokenizer":
        """From a directory with tokenizer.json, or with vocab.json and merges.txt. Raises InputError."""
        whole, vocab, merges = (directory / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
        for path in () if whole.is_file() else (vocab, merges):
            if not path.is_file():
                raise InputError(f"{directory}: neither tokenizer.json nor {path.name} is there")
        from tokenizers import ByteLevelBPETokenizer

        try:
            if whole.is_file():
                return cls(whole.read_text(encoding="utf-8"))
            tokenizer = ByteLevelBPETokenizer(str(vocab), str(merges))
            tokenizer.add_special_tokens(["<|endoftext|>"])
            return cls(tokenizer.to_str())
        except InputError:
            raise
        except Exception as error:  # the library raises nothing more particular for a file it cannot read
            path = whole if whole.is_file() else vocab
            raise InputError(f"{path}: no tokenizer can be made of it ({error})") from error

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[i] for i in ids if i < self.vocab_size).decode("utf-8", errors="replace")

    def stop_bytes(self, stop: str) -> bytes:
        return stop.encode("utf-8")

    def spec(self) -> dict[str, Any]:
        return {"kind": "gpt2", "tokenizer": json.loads(self._json_text)}

    def _piece(self, token: int) -> bytes:
        text = self._tokenizer.id_to_token(token) if token != self.end_of_text else ""
        return bytes(_BYTE_OF[c] for c in text) if text else b""


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
    """`bytes`, `symbols` (the task's own words) or a directory with GPT-2's tokenizer files. Raises InputError."""
    if name == "bytes":
        return ByteTokenizer()
    if name == "symbols":
        if not symbols:
            raise InputError("tokenizer='symbols': this task has no closed set of words; use 'bytes' or a directory")
        return SymbolTokenizer(symbols)
    if not Path(name).is_dir():
        raise InputError(f"tokenizer={name!r}: not 'bytes', 'symbols' or a directory that exists")
    return Gpt2Tokenizer.load(Path(name))


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that show as themselves keep their code point, others take 256, 257, ..."""
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
