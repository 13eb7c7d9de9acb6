"""Tokenizers that need no vocabulary file: UTF-8 bytes, and a closed set of words."""

from collections.abc import Sequence
from typing import Any

from star_jax.errors import InputError, shown
from star_jax.tokenizers.base import Tokenizer


class ByteTokenizer(Tokenizer):
    """One token per UTF-8 byte; takes any text. Ids 0 to 255 are the bytes, 256 is end-of-text."""

    def __init__(self) -> None:
        self.vocab_size = 257
        self.end_ids = (256,)
        self.pieces = [bytes([i]) for i in range(256)] + [b""]

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(i for i in ids if i < 256)

    def stop_bytes(self, stop: str) -> bytes:
        return stop.encode("utf-8")

    def spec(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class SymbolTokenizer(Tokenizer):
    """A closed set of words, one token each, for tiny models on a formal task.

    A text is lines of words, with one space between two words. The spaces have no tokens: a five-digit sum with its
    scratchpad is 110 tokens instead of 250 bytes. "\\n" is a symbol. A symbol's id is its index in `symbols`;
    end-of-text comes last.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        if "\n" not in symbols or len(set(symbols)) != len(symbols) or any(" " in s or not s for s in symbols):
            raise InputError('symbols must be distinct words without spaces, and include "\\n"')
        self.symbols = tuple(symbols)
        self.vocab_size = len(symbols) + 1
        self.end_ids = (len(symbols),)
        self.pieces = [b"\n" if s == "\n" else b" " + s.encode() for s in symbols] + [b""]
        self._ids = {symbol: i for i, symbol in enumerate(symbols)}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, line in enumerate(text.split("\n")):
            if number:
                ids.append(self._ids["\n"])
            for word in line.split():
                if word not in self._ids:
                    words = " ".join(symbol for symbol in self.symbols if symbol != "\n")
                    raise InputError(
                        f"no symbol for {shown(word)}: the model knows only the words {words}; a new run with "
                        "--config.tokenizer=bytes knows any text"
                    )
                ids.append(self._ids[word])
        return ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        words = " ".join(self.symbols[i] for i in ids if i < len(self.symbols))
        return "\n".join(line.strip(" ") for line in words.split("\n")).encode()

    def stop_bytes(self, stop: str) -> bytes:
        return b"".join(self.pieces[i] for i in self.encode(stop))

    def spec(self) -> dict[str, Any]:
        return {"kind": "symbols", "symbols": list(self.symbols)}
