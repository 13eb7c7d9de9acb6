"""Stop strings, found token by token: the table that the decode loop follows on the device."""

from collections.abc import Sequence

import numpy as np

from star_jax.errors import InputError
from star_jax.tokenizers.base import Tokenizer


def automaton(tokenizer: Tokenizer, stops: Sequence[str]) -> np.ndarray:
    """Transition table [S, V] of an automaton over tokens that finds the stop strings byte by byte.

    A state is the longest tail of the text so far that begins a stop string (Aho & Corasick, 1975); state 0 is
    the empty tail, state S - 1 means "a stop was seen". Raises InputError for an empty stop string.
    """
    patterns = [tokenizer.stop_bytes(stop) for stop in stops]
    if not all(patterns):
        raise InputError("a stop string must not be empty")
    tails = sorted({p[:i] for p in patterns for i in range(len(p))} | {b""}, key=lambda tail: (len(tail), tail))
    state_of, seen = {tail: i for i, tail in enumerate(tails)}, len(tails)

    def step(tail: bytes, byte: int) -> int:
        text = tail + bytes([byte])
        if any(text.endswith(p) for p in patterns):
            return seen
        return next(state_of[text[i:]] for i in range(len(text) + 1) if text[i:] in state_of)

    by_byte = np.array([[step(tail, b) for b in range(256)] for tail in tails] + [[seen] * 256], np.int32)
    longest = max(map(len, tokenizer.pieces))
    padded = np.array([list(p) + [-1] * (longest - len(p)) for p in tokenizer.pieces], np.int32)
    table_SV = np.repeat(np.arange(seen + 1, dtype=np.int32)[:, None], len(padded), axis=1)
    for byte_V in padded.T:
        table_SV = np.where(byte_V >= 0, by_byte[table_SV, byte_V], table_SV)
    table_SV[:, tokenizer.end_of_text] = seen
    return table_SV.astype(np.int32)
