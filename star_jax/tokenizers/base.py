"""The interface of a tokenizer, and the rule by which the parts of a prompt are encoded."""

import abc
import functools
from collections.abc import Sequence
from typing import Any

from star_jax.tokenizers.chat_template import ChatTemplate


class Tokenizer(abc.ABC):
    """Text <-> token ids.

    Attributes:
      vocab_size: one more than the largest id in use: one that adds bytes to a text or ends a completion. A model's
        embedding may have more rows (padding, special tokens), and the sampler samples none of them.
      pieces: `pieces[i]` are the bytes that token i adds to a text; b"" for special tokens. The sampler builds its stop
        automaton from them, so a stop string is recognized wherever the token borders fall.
      end_ids: every id that ends a completion. The first is put after a training text.
      bos_id: the id before every prompt and document; None: there is none.
      chat_template: how the model's conversations are written; None: it has none.
    """

    vocab_size: int
    pieces: list[bytes]
    end_ids: tuple[int, ...]
    bos_id: int | None = None
    chat_template: ChatTemplate | None = None

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of a text at the start of a document, without `bos_id` and `end_ids`.

        No part of the text becomes a special token. Raises InputError for text that has no ids.
        """

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of a text that follows another text: without the space that some tokenizers put before a text."""
        return self.encode(text)

    @abc.abstractmethod
    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes that the ids add to a text. Special tokens and padding ids add none.

        A model may sample any tokens, so the bytes need not be valid UTF-8.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `decode_bytes`; an invalid UTF-8 sequence becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @abc.abstractmethod
    def stop_bytes(self, stop: str) -> bytes:
        """The bytes of a stop string as they occur in a concatenation of `pieces`."""

    @abc.abstractmethod
    def spec(self) -> dict[str, Any]:
        """JSON-serializable description, from which `tokenizers.from_spec` creates an equal tokenizer."""

    def cut(self, prefix: str) -> int:
        """Length of the part of a prefix whose ids do not depend on what follows; the rest belongs to the body.

        Here the white space at the end goes to the body. That suits byte-level BPE with GPT-2's pre-tokenizer: at the
        end of a text "\\n\\n" is one token of its vocabulary, before a word it is two.
        """
        return len(prefix.rstrip())

    def split_parts(self, prefix: str, body: str) -> tuple[str, str]:
        """Prefix and body as they are encoded: what follows the cut belongs to the body."""
        cut = self.cut(prefix)
        return prefix[:cut], prefix[cut:] + body

    def encode_document(self, text: str) -> list[int]:
        """`bos_id`, if there is one, and the ids of the text."""
        return [*self._bos_ids, *self.encode(text)]

    def encode_parts(self, prefix: str, body: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of a prefix and of the body after it; together they are those of the whole document.

        The prefix's ids begin with `bos_id` and do not depend on the body, so problems that share few-shot examples
        share them. The body's ids may begin with those of the prefix's end (see `cut`).
        """
        head, rest = self.split_parts(prefix, body)
        if head not in self._head_ids:
            self._head_ids[head] = (*self._bos_ids, *(self.encode(head) if head else ()))
        return self._head_ids[head], tuple(self.encode_continuation(rest) if head else self.encode(rest))

    @functools.cached_property
    def never_sampled(self) -> tuple[int, ...]:
        """The ids below `vocab_size` that a model must not sample: special tokens that end nothing."""
        return tuple(i for i, piece in enumerate(self.pieces) if not piece and i not in self.end_ids)

    @property
    def _bos_ids(self) -> tuple[int, ...]:
        return () if self.bos_id is None else (self.bos_id,)

    @functools.cached_property
    def _head_ids(self) -> dict[str, tuple[int, ...]]:
        """The ids of each prefix up to its cut, encoded once. A run has one prefix or two."""
        return {}
