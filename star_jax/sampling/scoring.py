"""Log-probabilities of given completions, by a packed forward pass."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.sampling.sampler import check_ids
from star_jax.training import packing


def score(
    model: decoder.Decoder,
    params: decoder.Params,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    mesh: Mesh,
    *,
    vocab_used: int,
    never_sampled: tuple[int, ...] = (),
    row_tokens: int = 1024,
    batch_rows: int = 8,
) -> list[np.ndarray]:
    """log p of every completion token given what precedes it: one array [M] in float32 nats for each pair.

    The counterpart of sampling: for sampled ids it returns the sampler's `token_log_probs`, at temperature 1 over the
    first `vocab_used` ids without `never_sampled` (EngineSpec). log p of one of those is -inf, in a prompt too.

    Args:
      params: stacked, on `mesh`.
      pairs: (prompt ids, completion ids). A prompt has at least one token.
      row_tokens: tokens of a packed row; raised to the longest pair. `batch_rows` rows are computed at a time.

    Raises InputError for an empty prompt, for a pair longer than the model's positions, and for an id that it lacks.
    """
    lengths = [len(prompt_ids) + len(ids) for prompt_ids, ids in pairs]
    if any(not len(prompt_ids) for prompt_ids, _ in pairs):
        raise InputError("score: a prompt has no tokens; the first completion token needs one to condition on")
    if lengths and max(lengths) > model.spec.max_positions:
        raise InputError(f"score: {max(lengths)} tokens exceed the model's {model.spec.max_positions} positions")
    for ids in (ids for pair in pairs for ids in pair):
        check_ids(ids, model.spec.vocab_size)
    if not pairs:
        return []
    order = packing.best_fit_order(lengths, max(row_tokens, *lengths), np.random.default_rng(0))
    flat = {
        "ids": np.concatenate([np.array([*pairs[i][0], *pairs[i][1]], np.int32) for i in order]),
        "pair": np.concatenate([np.full(lengths[i], i, np.int32) for i in order]),
    }
    rows = packing.fill_rows(flat, np.array([lengths[i] for i in order]), max(row_tokens, *lengths))
    log_probs_RT = _by_batches(model, params, rows, mesh, batch_rows, (vocab_used, never_sampled))
    filled_RT = rows["ids_segment_ids"] > 0
    by_pair = dict(
        zip(order, np.split(log_probs_RT[filled_RT], np.cumsum([lengths[i] for i in order])[:-1]), strict=True)
    )
    return [by_pair[i][len(prompt_ids) :] for i, (prompt_ids, _) in enumerate(pairs)]


def _by_batches(
    model: decoder.Decoder,
    params: decoder.Params,
    rows: dict[str, np.ndarray],
    mesh: Mesh,
    batch_rows: int,
    vocabulary: tuple[int, tuple[int, ...]],
) -> np.ndarray:
    """log p of each token of the packed rows given its segment before it [R, T]; 0 for a segment's first token."""
    count = len(rows["ids"])
    batch_rows = -(-batch_rows // sharding.batch_shards(mesh)) * sharding.batch_shards(mesh)
    names = ("ids", "ids_positions", "ids_segment_ids")
    found = []
    with sharding.use(mesh):
        for start in range(0, count, batch_rows):
            batch = [rows[name][start : start + batch_rows] for name in names]
            padding = ((0, batch_rows - len(batch[0])), (0, 0))
            arrays = [sharding.put_rows(mesh, np.pad(array_RT, padding)) for array_RT in batch]
            found.append(np.asarray(_log_probs(model, vocabulary, params, *arrays))[: len(batch[0])])
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_probs(model, vocabulary, params, tokens_RT, positions_RT, segment_ids_RT):
    logits_RTV = decoder.call(model, params, tokens_RT, positions_RT, segment_ids_RT, method="packed_logits")
    vocab_used, never_sampled = vocabulary
    logits_RTV = logits_RTV[:, :-1, :vocab_used]
    if never_sampled:
        logits_RTV = logits_RTV.at[..., np.array(never_sampled)].set(-jax.numpy.inf)
    log_probs_RT = decoder.log_probability(logits_RTV, tokens_RT[:, 1:])
    same_segment_RT = segment_ids_RT[:, 1:] == segment_ids_RT[:, :-1]
    log_probs_RT = jax.numpy.pad(jax.numpy.where(same_segment_RT, log_probs_RT, 0.0), ((0, 0), (1, 0)))
    return jax.lax.with_sharding_constraint(log_probs_RT, PartitionSpec())  # every process reads all rows
