"""The interface of a tokenizer, and the rule by which the parts of a prompt are encoded."""

import abc
from collections.abc import Sequence
from typing import Any


class Tokenizer(abc.ABC):
    """Text <-> token ids.

    Attributes:
      vocab_size: number of ids in use. A model's embedding may have more rows (padding).
      end_of_text: the id that ends a document.
      pieces: `pieces[i]` are the bytes that token i adds to a text; b"" for end-of-text. The sampler builds its stop
        automaton from them, so a stop string is recognized wherever the token borders fall.
    """

    vocab_size: int
    end_of_text: int
    pieces: list[bytes]

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of the text, without end-of-text. Raises InputError for text that has no ids."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids. End-of-text and padding ids decode to "", an invalid UTF-8 sequence to U+FFFD."""

    @abc.abstractmethod
    def stop_bytes(self, stop: str) -> bytes:
        """The bytes of a stop string as they occur in a concatenation of `pieces`."""

    @abc.abstractmethod
    def spec(self) -> dict[str, Any]:
        """JSON-serializable description, from which `tokenizers.from_spec` creates an equal tokenizer."""

    def split_parts(self, prefix: str, body: str) -> tuple[str, str]:
        """Prefix and body as they are encoded: the white space between them belongs to the body.

        Their ids then concatenate to those of the whole text. Byte-level BPE needs that: at the end of a text
        "\\n\\n" is one token of GPT-2's vocabulary, before a word it is two. The ids of a prefix do not depend on the
        body, so problems that share few-shot examples share the prefix's ids.
        """
        shared = prefix.rstrip()
        return shared, prefix[len(shared) :] + body
