"""GPT-2's byte-level BPE."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from star_jax.errors import InputError

END_OF_TEXT = "<|endoftext|>"


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


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that show as themselves keep their code point, others take 256, 257, ..."""
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
