"""Attention in float64 NumPy, one query and head at a time: the oracle of the backends."""

import dataclasses

import numpy as np

from star_jax.models.attention.masks import SharedPrefix
from star_jax.models.attention.softmax import ScoreSpec

# Scores of the families: plain, with a window, with a soft cap, with both; and query heads for each KV head.
PLAIN = ScoreSpec(0.5)
WINDOW = ScoreSpec(0.5, window=5)
CAP = ScoreSpec(0.4, softcap=1.5)
BOTH = ScoreSpec(0.4, softcap=1.5, window=3)


def without_window(scores: ScoreSpec) -> ScoreSpec:
    return dataclasses.replace(scores, window=0)


def one_query(q_K: np.ndarray, k_SK: np.ndarray, v_SK: np.ndarray, scores: ScoreSpec) -> np.ndarray:
    """Output [K] over the given keys, all of which the query attends to."""
    score_S = (k_SK @ q_K) * scores.scale
    if scores.softcap:
        score_S = scores.softcap * np.tanh(score_S / scores.softcap)
    weight_S = np.exp(score_S - score_S.max())
    return weight_S @ v_SK / weight_S.sum()


def prefix_keys(
    prefix: SharedPrefix | None, head: int, position: int, scores: ScoreSpec, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(keys, values) [P, K] of the prefix that a query at this position attends to, for a KV head."""
    if prefix is None:
        return np.zeros((0, size)), np.zeros((0, size))
    at_P = int(prefix.first) + np.arange(prefix.kv.k.shape[1])
    visible = (at_P < int(prefix.length)) & ((at_P > position - scores.window) | (scores.window == 0))
    k_PK, v_PK = (np.asarray(x, np.float64)[head, visible] for x in prefix.kv)
    return k_PK, v_PK
