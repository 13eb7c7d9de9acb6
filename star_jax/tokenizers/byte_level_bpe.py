"""GPT-2's byte-level BPE, through Hugging Face `tokenizers`."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from star_jax.errors import InputError
from star_jax.tokenizers.base import Tokenizer

END_OF_TEXT = "<|endoftext|>"


class Gpt2Tokenizer(Tokenizer):
    """Byte-level BPE of GPT-2, which GPT-J shares. Created from a tokenizer.json, or by `load` and `from_hub`.

    Only the BPE's tokens and end-of-text are in use. Other added tokens of a file (GPT-J's <|extratoken_1|> ...) are
    padding of the vocabulary: they are never sampled, and their names in a text are encoded as ordinary text. So is
    "<|endoftext|>" in a text.
    """

    def __init__(self, json_text: str) -> None:
        """`json_text`: content of a tokenizer.json. Raises InputError if it is not byte-level BPE."""
        from tokenizers import Tokenizer as HfTokenizer

        values = json.loads(json_text)
        added = [t for t in values.get("added_tokens") or [] if t["content"] == END_OF_TEXT]
        values["added_tokens"] = [{**t, "special": True} for t in added]
        # Padding, truncation and templates would change the ids of a text.
        values.update(post_processor=None, padding=None, truncation=None)
        self._tokenizer = HfTokenizer.from_str(json.dumps(values))
        end = self._tokenizer.token_to_id(END_OF_TEXT)
        if end is None:
            raise InputError("the tokenizer has no <|endoftext|> token; star_jax needs GPT-2's vocabulary")
        if values["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(values["pre_tokenizer"]):
            raise InputError("the tokenizer is not a byte-level BPE; star_jax needs a tokenizer like GPT-2's")
        self._tokenizer.encode_special_tokens = True
        self._spec = json.loads(self._tokenizer.to_str())
        self.end_of_text = end
        self.vocab_size = max([end, *values["model"]["vocab"].values()]) + 1
        self.pieces = [self._piece(i) for i in range(self.vocab_size)]

    @classmethod
    def load(cls, directory: Path) -> "Gpt2Tokenizer":
        """From a directory with tokenizer.json, or with vocab.json and merges.txt. Raises InputError."""
        tokenizer_json, vocab, merges = (directory / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
        for path in () if tokenizer_json.is_file() else (vocab, merges):
            if not path.is_file():
                raise InputError(f"{directory}: holds neither tokenizer.json nor {path.name}")
        from tokenizers import ByteLevelBPETokenizer

        try:
            if tokenizer_json.is_file():
                return cls(tokenizer_json.read_text(encoding="utf-8"))
            tokenizer = ByteLevelBPETokenizer(str(vocab), str(merges))
            tokenizer.add_special_tokens([END_OF_TEXT])
            return cls(tokenizer.to_str())
        except Exception as error:  # the library raises a bare Exception for a file that it cannot read
            path = tokenizer_json if tokenizer_json.is_file() else vocab
            raise InputError(f"{path}: is not a tokenizer of GPT-2's kind ({error})") from error

    @classmethod
    def from_hub(cls, name: str) -> "Gpt2Tokenizer":
        """From the Hugging Face hub, or its cache on this machine. Raises InputError."""
        from tokenizers import Tokenizer as HfTokenizer

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs a warning for every retry
        try:
            if name.count("/") > 1:  # a hub name is "owner/name" at most, so this is the path of a missing directory
                raise ValueError("there is no such directory")
            return cls(HfTokenizer.from_pretrained(name).to_str())
        except Exception as error:  # a bare Exception again: no network, a wrong name
            raise InputError(
                f"tokenizer={name!r} is not 'bytes', 'symbols' or a directory that exists, nor is it on the hub "
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


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable bytes keep their code point, the others get 256, 257, ..."""
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()
