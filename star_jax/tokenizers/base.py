"""The interface of a tokenizer."""

from collections.abc import Sequence
from typing import Any, Protocol


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
