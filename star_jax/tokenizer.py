"""Text <-> token ids.

Three kinds, one interface. `vocab_size` counts the ids in use (a model's table may be padded beyond it),
`end_of_text` is the id that ends a document, and `pieces[i]` are the bytes that token i adds to a text:
the sampler builds its stop automaton from them, so stop strings are found whatever the token borders.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from star_jax.errors import InputError

END_OF_TEXT = "<|endoftext|>"


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

    `json_text` is the content of a tokenizer.json; `load` also takes vocab.json + merges.txt, `from_hub` a name.
    Only the BPE's own tokens and end-of-text are in use: what else a file adds (GPT-J's <|extratoken_1|> ...) pads
    the vocabulary, is never drawn, and its name in a text is ordinary text. So is "<|endoftext|>".
    """

    def __init__(self, json_text: str) -> None:
        from tokenizers import Tokenizer as HfTokenizer

        described = json.loads(json_text)
        added = [t for t in described.get("added_tokens") or [] if t["content"] == END_OF_TEXT]
        described["added_tokens"] = [{**t, "special": True} for t in added]
        # Padding, truncation and templates would change what a text is encoded to.
        described.update(post_processor=None, padding=None, truncation=None)
        self._tokenizer = HfTokenizer.from_str(json.dumps(described))
        end = self._tokenizer.token_to_id(END_OF_TEXT)
        if end is None:
            raise InputError("the tokenizer has no <|endoftext|> token; star_jax needs GPT-2's vocabulary")
        if described["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(described["pre_tokenizer"]):
            raise InputError("the tokenizer is no byte-level BPE; star_jax needs one of GPT-2's kind")
        self._tokenizer.encode_special_tokens = True
        self._spec = json.loads(self._tokenizer.to_str())
        self.end_of_text = end
        self.vocab_size = max([end, *described["model"]["vocab"].values()]) + 1
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
            tokenizer.add_special_tokens([END_OF_TEXT])
            return cls(tokenizer.to_str())
        except Exception as error:  # the library raises nothing more particular for a file it cannot read
            path = whole if whole.is_file() else vocab
            raise InputError(f"{path}: no tokenizer can be made of it ({error})") from error

    @classmethod
    def from_hub(cls, name: str) -> "Gpt2Tokenizer":
        """From the Hugging Face hub or its cache on this machine. Raises InputError."""
        from tokenizers import Tokenizer as HfTokenizer

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of each of its retries
        try:
            if name.count("/") > 1:  # "owner/name" at most: this is a path that is not there
                raise ValueError("no such directory")
            return cls(HfTokenizer.from_pretrained(name).to_str())
        except Exception as error:  # as above: a missing network, a wrong name
            raise InputError(
                f"tokenizer={name!r} is not 'bytes', 'symbols' or a directory that exists, nor does the hub give it "
                f"({str(error).splitlines()[0]}); give a directory with tokenizer.json, or vocab.json and merges.txt"
            ) from error

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[i] for i in ids if i < self.vocab_size).decode("utf-8", errors="replace")

    def stop_bytes(self, stop: str) -> bytes:
        return stop.encode("utf-8")

    def spec(self) -> dict[str, Any]:
        return {"kind": "gpt2", "tokenizer": self._spec}

    def _piece(self, token: int) -> bytes:
        text = self._tokenizer.id_to_token(token) if token != self.end_of_text else ""
        return bytes(_BYTE_OF[c] for c in text or "")


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


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that show as themselves keep their code point, others take 256, 257, ..."""
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
