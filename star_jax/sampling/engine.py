"""Continuous batching engine: one compiled loop in which slots decode together and are refilled from a queue.

    while requests are left or rows are active:                       (sample_queues, one XLA program)
        prefill the next requests of the queue into free slots: one pass over C tokens, prompt bodies packed
        while fewer slots are free than the next prefill fills, or no request is left:
            one decode step for all B slots; rows that reach a stop become inactive

Prefill leaves out each body's last token: the decode step that takes it samples the first new token. Each index along
the mesh's `data` axis runs its own loop over its own queue, so devices wait for each other only if they share a model
copy (`tensor`).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from star_jax.distributed import platforms
from star_jax.models import decoder
from star_jax.models.attention.prefill import PrefillMask
from star_jax.sampling import kv_cache
from star_jax.sampling.token_sampling import greedy_token_and_logprob

STOPPED, TRUNCATED = 1, 2  # values of Outputs.reason_Q; 0: not sampled


class Queue(NamedTuple):
    """The requests of one call. Outside the loop, Q runs over the queues of all G indices along `data` in turn."""

    tokens_QT: jax.Array  # prompt bodies, RIGHT-padded
    lengths_Q: jax.Array
    keys_Q2: jax.Array  # data of their random keys
    real_G: jax.Array  # how many rows of each queue are requests


class Outputs(NamedTuple):
    """The samples, by index in the queue. Row q holds `count_Q[q]` tokens, then zeros."""

    tokens_QM: jax.Array
    log_probs_QM: jax.Array  # log p of each token, float32, at temperature 1
    count_Q: jax.Array
    reason_Q: jax.Array
    steps_G: jax.Array  # decode steps of each queue


class Slots(NamedTuple):
    """The loop's state."""

    cache: kv_cache.RingCache
    request_B: jax.Array  # index in the queue; Q for a slot that never held a request
    token_B: jax.Array  # the last token, sampled or of the body, not yet in the cache
    count_B: jax.Array  # tokens sampled for this request
    stop_state_B: jax.Array  # state of the stop automaton
    active_B: jax.Array
    next: jax.Array  # the first request of the queue that has no slot yet
    next_refill: jax.Array  # how many free slots the next prefill fills; 0: no request is left
    out: Outputs


@dataclasses.dataclass(frozen=True)
class EngineSpec:
    """The static part of a call: one compiled program for each distinct value."""

    slots: int  # B, for each index along `data`
    prefill_tokens: int  # C: raised to the longest body, lowered to a quarter of the slots' bodies
    max_new_tokens: int  # M
    vocab_used: int  # ids from here on are never sampled: rows of the embedding without a token in use
    never_sampled: tuple[int, ...] = ()  # ids below that are not sampled either: special tokens that end nothing


def _queues(model, decoding, spec, mesh, params, prefix, queue, automaton_SV) -> Outputs:
    """Samples a completion for each request of the queues, one queue for each index along the mesh's data axis."""
    by_queue, replicated = PartitionSpec("data"), PartitionSpec()
    loop = jax.shard_map(
        functools.partial(_loop, model, decoding, spec),
        mesh=mesh,
        in_specs=(replicated, replicated, by_queue, replicated),
        out_specs=by_queue,
        axis_names={"data"},
        check_vma=False,
    )
    return loop(params, prefix, queue, automaton_SV)


sample_queues = jax.jit(_queues, static_argnums=(0, 1, 2, 3))
sample_queues_on_cuda = jax.jit(_queues, static_argnums=(0, 1, 2, 3), compiler_options=platforms.CUDA_COMPILER_OPTIONS)


def _loop(model, decoding, spec, params, prefix, queue, automaton_SV) -> Outputs:
    """Samples a completion for each of the first `queue.real_G[0]` requests of one queue."""

    def decode(slots):
        logits_BV, cache = kv_cache.decode_step(model, params, slots.token_B, slots.cache, prefix)
        slots = slots._replace(cache=cache, out=slots.out._replace(steps_G=slots.out.steps_G + 1))
        return _sample_and_record(decoding, spec, queue, automaton_SV, slots, logits_BV)

    def keep_decoding(slots):
        return jnp.any(slots.active_B) & ((slots.next_refill == 0) | (jnp.sum(~slots.active_B) < slots.next_refill))

    def refill_and_decode(slots):
        # Every iteration of the outer loop starts with waiting requests and enough free slots for the next prefill.
        return jax.lax.while_loop(keep_decoding, decode, _refill(model, spec, params, prefix, queue, slots))

    def unfinished(slots):
        return (slots.next_refill > 0) | jnp.any(slots.active_B)

    return jax.lax.while_loop(unfinished, refill_and_decode, _empty_slots(model, spec, queue)).out


def _packing(spec: EngineSpec, queue: Queue, first) -> tuple[jax.Array, jax.Array, int]:
    """The next requests of the queue as packed into one prefill, without their last tokens.

    Returns (ends_R, lengths_R, C) for the R requests from `first` on. R is a quarter of the slots: more of them would
    idle while they are gathered. `ends_R`: offset after each body; more than C if it does not fit or is no request.
    """
    rows, longest = min(max(1, spec.slots // 4), queue.lengths_Q.shape[0]), queue.tokens_QT.shape[1] - 1
    size = max(longest, min(spec.prefill_tokens, rows * longest), 1)
    index_R = first + jnp.arange(rows)
    lengths_R = jnp.where(index_R < queue.real_G[0], queue.lengths_Q.at[index_R].get(mode="clip") - 1, size + 1)
    return jnp.cumsum(lengths_R), lengths_R, size


def _refill(model, spec, params, prefix, queue, slots: Slots) -> Slots:
    """Prefills the next requests of the queue into free slots, as many as one prefill takes."""
    ends_R, lengths_R, size = _packing(spec, queue, slots.next)
    index_R, index_C = jnp.arange(ends_R.shape[0]), jnp.arange(size)
    taken_R = index_R < slots.next_refill
    free_R = jnp.argsort(slots.active_B, stable=True)[: ends_R.shape[0]]  # free slots come first
    rows_R = jnp.where(taken_R, free_R, spec.slots)  # out of range: dropped by every scatter
    request_R = slots.next + index_R
    body_C = jnp.sum(ends_R[None] <= index_C[:, None], axis=1)  # after the last one taken: of no slot
    position_C = index_C - (ends_R - lengths_R).at[body_C].get(mode="clip")
    tokens_C = queue.tokens_QT.at[slots.next + body_C, position_C].get(mode="clip")
    mask = PrefillMask(body_C, queue.tokens_QT.shape[1] - 1)
    new = kv_cache.prefill(model, params, tokens_C, mask, position_C, prefix)
    last_R = queue.tokens_QT.at[request_R, lengths_R].get(mode="clip")

    def put(old, values_R):
        return old.at[rows_R].set(values_R, mode="drop")

    return slots._replace(
        cache=kv_cache.insert(slots.cache, rows_R, new, ends_R, lengths_R),
        request_B=put(slots.request_B, request_R),
        token_B=put(slots.token_B, last_R),
        count_B=put(slots.count_B, 0),
        stop_state_B=put(slots.stop_state_B, 0),
        active_B=put(slots.active_B, True),
        next=slots.next + slots.next_refill,
        next_refill=_next_refill(spec, queue, slots.next + slots.next_refill),
    )


def _next_refill(spec: EngineSpec, queue: Queue, first) -> jax.Array:
    """How many requests from `first` on the next prefill takes."""
    ends_R, _, size = _packing(spec, queue, first)
    return jnp.sum(ends_R <= size)


def _sample_and_record(decoding, spec, queue, automaton_SV, slots: Slots, logits_BV) -> Slots:
    """Samples one token for each row, records it, and advances the stop automaton."""
    used_V = jnp.arange(logits_BV.shape[-1]) < spec.vocab_used
    if spec.never_sampled:
        used_V = used_V.at[np.array(spec.never_sampled)].set(False)
    logits_BV = jnp.where(used_V[None], logits_BV, -jnp.inf)
    request_B = jnp.where(slots.active_B, slots.request_B, queue.lengths_Q.shape[0])  # out of range: dropped
    data_B2 = queue.keys_Q2.at[request_B].get(mode="clip")
    keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(data_B2, impl="threefry2x32"), slots.count_B)
    if decoding.temperature == 0:
        token_B, log_prob_B = greedy_token_and_logprob(logits_BV)
    else:
        token_B = decoding.sample(logits_BV, keys_B)
        log_prob_B = decoder.log_probability(logits_BV, token_B)
    stop_state_B = automaton_SV[slots.stop_state_B, token_B]
    count_B = slots.count_B + slots.active_B
    stopped_B = stop_state_B == automaton_SV.shape[0] - 1
    ended_B = stopped_B | (count_B >= spec.max_new_tokens)
    reason_B = jnp.where(stopped_B, STOPPED, jnp.where(ended_B, TRUNCATED, 0))
    out = slots.out
    out = out._replace(
        tokens_QM=out.tokens_QM.at[request_B, slots.count_B].set(token_B, mode="drop"),
        log_probs_QM=out.log_probs_QM.at[request_B, slots.count_B].set(log_prob_B, mode="drop"),
        count_Q=out.count_Q.at[request_B].set(count_B, mode="drop"),
        reason_Q=out.reason_Q.at[request_B].set(reason_B, mode="drop"),
    )
    return slots._replace(
        token_B=token_B, count_B=count_B, stop_state_B=stop_state_B, active_B=slots.active_B & ~ended_B, out=out
    )


def _empty_slots(model: decoder.Decoder, spec: EngineSpec, queue: Queue) -> Slots:
    requests, length = queue.tokens_QT.shape
    zeros_B = jnp.zeros((spec.slots,), jnp.int32)
    return Slots(
        cache=kv_cache.empty_cache(model, spec.slots, length - 1 + spec.max_new_tokens),
        request_B=jnp.full((spec.slots,), requests, jnp.int32),
        token_B=zeros_B,
        count_B=zeros_B,
        stop_state_B=zeros_B,
        active_B=jnp.zeros((spec.slots,), bool),
        next=jnp.asarray(0),
        next_refill=_next_refill(spec, queue, 0),
        out=Outputs(
            tokens_QM=jnp.zeros((requests, spec.max_new_tokens), jnp.int32),
            log_probs_QM=jnp.zeros((requests, spec.max_new_tokens), jnp.float32),
            count_Q=jnp.zeros((requests,), jnp.int32),
            reason_Q=jnp.zeros((requests,), jnp.int32),
            steps_G=jnp.zeros((1,), jnp.int32),
        ),
    )
