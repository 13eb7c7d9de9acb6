"""Stop strings: an automaton over tokens, which the engine runs on the device, and the text before a stop."""

from collections.abc import Sequence

import numpy as np

from star_jax.errors import InputError
from star_jax.tokenizers.base import Tokenizer


def automaton(tokenizer: Tokenizer, stops: Sequence[str]) -> np.ndarray:
    """Transition table [S, V], int32: state and token to the next state (Aho & Corasick, 1975, over bytes).

    A state is the longest suffix of the completion that is a proper prefix of a stop string: state 0 is the empty one.
    State S - 1 is final: the completion contains a stop string or one of the tokenizer's end ids.

    Raises InputError for an empty stop string and for one that the tokenizer cannot write.
    """
    check_reachable(tokenizer, stops)
    table_SV = _table(tokenizer, [tokenizer.stop_bytes(stop) for stop in stops])
    table_SV[:, list(tokenizer.end_ids)] = len(table_SV) - 1
    return table_SV


def check_reachable(tokenizer: Tokenizer, stops: Sequence[str]) -> None:
    """Raises InputError for an empty stop string and for one that no sequence of the tokenizer's tokens holds."""
    single_bytes = {piece[0] for piece in tokenizer.pieces if len(piece) == 1}
    for stop in stops:
        try:
            pattern = tokenizer.stop_bytes(stop)
        except InputError as error:
            raise InputError(f"the stop string {stop!r}: {error}") from error
        if not pattern:
            raise InputError("a stop string is empty; remove it")
        if not single_bytes.issuperset(pattern) and not _is_reachable(_table(tokenizer, [pattern])):
            raise InputError(
                f"the tokenizer has no tokens for the stop string {stop!r}, so no completion would end there; use "
                "another tokenizer"
            )


def text_before(data: bytes, stops: Sequence[str]) -> tuple[str, bool]:
    """(the text before the first stop string, whether its bytes are valid UTF-8). Invalid sequences become U+FFFD."""
    text = data.decode("utf-8", errors="surrogateescape")  # no stop string holds the surrogates of invalid bytes
    text = text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]
    if text.isascii():
        return text, True
    kept = text.encode("utf-8", errors="surrogateescape")
    shown = kept.decode("utf-8", errors="replace")
    return shown, shown == text


def _is_reachable(table_SV: np.ndarray) -> bool:
    """Whether tokens lead from state 0 to the final one."""
    states = reached = {0}
    while states:
        states = set(np.unique(table_SV[sorted(states)]).tolist()) - reached
        reached |= states
    return len(table_SV) - 1 in reached


def _table(tokenizer: Tokenizer, patterns: Sequence[bytes]) -> np.ndarray:
    """The transition table of `automaton` without end ids."""
    prefixes = sorted(
        {p[:i] for p in patterns for i in range(len(p))} | {b""}, key=lambda prefix: (len(prefix), prefix)
    )
    state_of, final = {prefix: state for state, prefix in enumerate(prefixes)}, len(prefixes)

    def next_state(prefix: bytes, byte: int) -> int:
        text = prefix + bytes([byte])
        if any(text.endswith(pattern) for pattern in patterns):
            return final
        return next(state_of[text[i:]] for i in range(len(text) + 1) if text[i:] in state_of)

    byte_table = np.array([[next_state(p, b) for b in range(256)] for p in prefixes] + [[final] * 256], np.int32)
    return _over_pieces(byte_table, tokenizer.pieces)


def _over_pieces(byte_table: np.ndarray, pieces: Sequence[bytes]) -> np.ndarray:
    """A table [S, 256] over bytes as a table [S, V] over pieces, each a sequence of bytes.

    Byte i of all pieces that have one is looked up at once, so time and memory grow with the bytes of the vocabulary
    and not with V times its longest piece.
    """
    flat = np.frombuffer(b"".join(pieces), np.uint8)
    lengths_V = np.fromiter(map(len, pieces), np.int64, len(pieces))
    starts_V = np.cumsum(lengths_V) - lengths_V
    table_SV = np.repeat(np.arange(len(byte_table), dtype=np.int32)[:, None], len(pieces), axis=1)
    longer = np.flatnonzero(lengths_V)
    for i in range(max(map(len, pieces), default=0)):
        longer = longer[lengths_V[longer] > i]
        table_SV[:, longer] = byte_table[table_SV[:, longer], flat[starts_V[longer] + i]]
    return table_SV
