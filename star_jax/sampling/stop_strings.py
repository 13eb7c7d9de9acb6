"""Stop strings as an automaton over tokens, which the engine runs on the device."""

from collections.abc import Sequence

import numpy as np

from star_jax.errors import InputError
from star_jax.tokenizers.base import Tokenizer


def automaton(tokenizer: Tokenizer, stops: Sequence[str]) -> np.ndarray:
    """Transition table [S, V], int32: state and token to the next state (Aho & Corasick, 1975, over bytes).

    A state is the longest suffix of the completion that is a proper prefix of a stop string: state 0 is the empty one.
    State S - 1 is final: the completion contains a stop string or end-of-text. Raises InputError for an empty stop
    string.
    """
    patterns = [tokenizer.stop_bytes(stop) for stop in stops]
    if not all(patterns):
        raise InputError("a stop string is empty; remove it")
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
    max_bytes = max(map(len, tokenizer.pieces))
    bytes_VI = np.array([list(piece) + [-1] * (max_bytes - len(piece)) for piece in tokenizer.pieces], np.int32)
    table_SV = np.repeat(np.arange(final + 1, dtype=np.int32)[:, None], len(bytes_VI), axis=1)
    for byte_V in bytes_VI.T:
        table_SV = np.where(byte_V >= 0, byte_table[table_SV, byte_V], table_SV)
    table_SV[:, tokenizer.end_of_text] = final
    return table_SV.astype(np.int32)
