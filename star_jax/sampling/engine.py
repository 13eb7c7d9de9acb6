"""The compiled loop: slots that decode together and are refilled from a queue of problems.

    while problems are left or rows are alive:            (sample_queues, one XLA program)
        put the next problems of the queue into free slots: one prefill of C tokens, their bodies packed
        while fewer slots are free than the next prefill fills, or nothing is left to put there:
            one decode step for all B slots; rows that reach a stop go quiet

A prefill leaves out each body's last token: the decode step that takes it draws the first new one, like any other.
Each place along the mesh's `data` axis runs that loop for a queue of its own, so devices wait for each other only
where they split one model (`tensor`).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from star_jax.config import ModelConfig
from star_jax.distributed import cuda
from star_jax.models import decoder
from star_jax.sampling import kv_cache
from star_jax.sampling.token_sampling import greedy_token_and_logprob

STOPPED, TRUNCATED = 1, 2  # values of Outputs.reason_Q; 0: not drawn


class Queue(NamedTuple):
    """The problems of one call: RIGHT-padded bodies, their lengths, their keys' data and how many are real.

    Outside of the loop Q runs over the queues of all G places along `data`, one after the other.
    """

    tokens_QT: jax.Array
    lengths_Q: jax.Array
    keys_Q2: jax.Array
    real_G: jax.Array


class Outputs(NamedTuple):
    """What was drawn, by place in the queue. `tokens_QM` holds `drawn_Q` tokens a row, zeros behind them."""

    tokens_QM: jax.Array
    drawn_Q: jax.Array
    log_probability_Q: jax.Array
    reason_Q: jax.Array
    steps_G: jax.Array  # decode steps taken for all of a queue


class Slots(NamedTuple):
    """The loop's state."""

    cache: kv_cache.RingCache
    problem_B: jax.Array  # place in the queue; Q for a slot that never held one
    token_B: jax.Array  # the last token, drawn or of the body, not yet in the cache
    drawn_B: jax.Array  # tokens drawn for this problem
    stop_state_B: jax.Array  # state of the stop automaton
    active_B: jax.Array
    next: jax.Array  # the first problem of the queue that has no slot yet
    due: jax.Array  # free slots that the next prefill fills; 0: no problem waits
    out: Outputs


@dataclasses.dataclass(frozen=True)
class EngineSpec:
    """The static part of a call: one compiled program for each distinct value."""

    slots: int  # B, at each place along `data`
    prefill_tokens: int  # C, where a body is not longer and those of a quarter of the slots are not shorter
    max_new_tokens: int  # M
    vocab_used: int  # ids at and above it are never drawn


def _queues(model, decoding, shape, mesh, params, prefix, queue, automaton_SV) -> Outputs:
    """Draws a completion for each problem of the queues, one queue a place along the mesh's data axis."""
    apart, shared = PartitionSpec("data"), PartitionSpec()
    loop = jax.shard_map(
        functools.partial(_loop, model, decoding, shape),
        mesh=mesh,
        in_specs=(shared, shared, apart, shared),
        out_specs=apart,
        axis_names={"data"},
        check_vma=False,
    )
    return loop(params, prefix, queue, automaton_SV)


sample_queues = jax.jit(_queues, static_argnums=(0, 1, 2, 3))
sample_queues_on_cuda = jax.jit(_queues, static_argnums=(0, 1, 2, 3), compiler_options=cuda.COMPILER_OPTIONS)


def _loop(model, decoding, shape, params, prefix, queue, automaton_SV) -> Outputs:
    """Draws a completion for each of the first `queue.real_G[0]` problems of one queue."""

    def decode(slots):
        logits_BV, filled = kv_cache.decode_step(model, params, slots.token_B, slots.cache, prefix)
        slots = slots._replace(cache=filled, out=slots.out._replace(steps_G=slots.out.steps_G + 1))
        return _sample_and_record(decoding, shape, queue, automaton_SV, slots, logits_BV)

    def keep_decoding(slots):
        return jnp.any(slots.active_B) & ((slots.due == 0) | (jnp.sum(~slots.active_B) < slots.due))

    def refill_and_decode(slots):
        # Every turn of the outer loop begins with problems that wait and slots for the next prefill.
        return jax.lax.while_loop(keep_decoding, decode, _refill(model, shape, params, prefix, queue, slots))

    def unfinished(slots):
        return (slots.due > 0) | jnp.any(slots.active_B)

    return jax.lax.while_loop(unfinished, refill_and_decode, _empty_slots(model.config, shape, queue)).out


def _packing(shape: EngineSpec, queue: Queue, first) -> tuple[jax.Array, jax.Array, int]:
    """The next problems of the queue as they lie in one prefill, without their last tokens.

    Returns (ends_R, lengths_R, C) of the R problems from `first` on, a quarter of the slots (more would stand idle
    while they are gathered): the place behind each one, more than C where it does not fit any more or no problem is
    there; and its tokens.
    """
    rows, longest = min(max(1, shape.slots // 4), queue.lengths_Q.shape[0]), queue.tokens_QT.shape[1] - 1
    size = max(longest, min(shape.prefill_tokens, rows * longest), 1)
    place_R = first + jnp.arange(rows)
    lengths_R = jnp.where(place_R < queue.real_G[0], queue.lengths_Q.at[place_R].get(mode="clip") - 1, size + 1)
    return jnp.cumsum(lengths_R), lengths_R, size


def _refill(model, shape, params, prefix, queue, slots: Slots) -> Slots:
    """Gives the next problems of the queue to free slots, as many as one prefill takes."""
    ends_R, lengths_R, size = _packing(shape, queue, slots.next)
    place_R, index_C = jnp.arange(ends_R.shape[0]), jnp.arange(size)
    taken_R = place_R < slots.due
    free_R = jnp.argsort(slots.active_B, stable=True)[: ends_R.shape[0]]  # free slots come first
    rows_R = jnp.where(taken_R, free_R, shape.slots)  # out of range: dropped by every scatter
    problem_R = slots.next + place_R
    body_C = jnp.sum(ends_R[None] <= index_C[:, None], axis=1)  # behind the last that is taken: of no slot
    at_C = index_C - (ends_R - lengths_R).at[body_C].get(mode="clip")
    tokens_C = queue.tokens_QT.at[slots.next + body_C, at_C].get(mode="clip")
    packed = decoder.PrefillMask(body_C, queue.tokens_QT.shape[1] - 1)
    new = kv_cache.prefill(model, params, tokens_C, packed, at_C, prefix)
    last_R = queue.tokens_QT.at[problem_R, lengths_R].get(mode="clip")

    def put(old, values_R):
        return old.at[rows_R].set(values_R, mode="drop")

    return slots._replace(
        cache=kv_cache.insert(slots.cache, rows_R, new, ends_R, lengths_R),
        problem_B=put(slots.problem_B, problem_R),
        token_B=put(slots.token_B, last_R),
        drawn_B=put(slots.drawn_B, 0),
        stop_state_B=put(slots.stop_state_B, 0),
        active_B=put(slots.active_B, True),
        next=slots.next + slots.due,
        due=_next_refill(shape, queue, slots.next + slots.due),
    )


def _next_refill(shape: EngineSpec, queue: Queue, first) -> jax.Array:
    """How many problems from `first` on the next prefill takes."""
    ends_R, _, size = _packing(shape, queue, first)
    return jnp.sum(ends_R <= size)


def _sample_and_record(decoding, shape, queue, automaton_SV, slots: Slots, logits_BV) -> Slots:
    """Draws one token a row, records it, and decides who stops."""
    logits_BV = jnp.where((jnp.arange(logits_BV.shape[-1]) < shape.vocab_used)[None], logits_BV, -jnp.inf)
    problem_B = jnp.where(slots.active_B, slots.problem_B, queue.lengths_Q.shape[0])  # out of range: dropped
    data_B2 = queue.keys_Q2.at[problem_B].get(mode="clip")
    keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(data_B2, impl="threefry2x32"), slots.drawn_B)
    if decoding.temperature == 0:
        token_B, logp_B = greedy_token_and_logprob(logits_BV)
    else:
        token_B = decoding.sample(logits_BV, keys_B)
        logp_B = decoder.log_probability(logits_BV, token_B)
    stop_state_B = automaton_SV[slots.stop_state_B, token_B]
    drawn_B = slots.drawn_B + slots.active_B
    stopped_B = stop_state_B == automaton_SV.shape[0] - 1
    ended_B = stopped_B | (drawn_B >= shape.max_new_tokens)
    reason_B = jnp.where(stopped_B, STOPPED, jnp.where(ended_B, TRUNCATED, 0))
    out = slots.out
    out = out._replace(
        tokens_QM=out.tokens_QM.at[problem_B, slots.drawn_B].set(token_B, mode="drop"),
        drawn_Q=out.drawn_Q.at[problem_B].set(drawn_B, mode="drop"),
        log_probability_Q=out.log_probability_Q.at[problem_B].add(logp_B, mode="drop"),
        reason_Q=out.reason_Q.at[problem_B].set(reason_B, mode="drop"),
    )
    active_B = slots.active_B & ~ended_B
    return slots._replace(token_B=token_B, drawn_B=drawn_B, stop_state_B=stop_state_B, active_B=active_B, out=out)


def _empty_slots(config: ModelConfig, shape: EngineSpec, queue: Queue) -> Slots:
    places, length = queue.tokens_QT.shape
    zeros_B = jnp.zeros((shape.slots,), jnp.int32)
    return Slots(
        cache=kv_cache.empty_cache(config, shape.slots, length - 1 + shape.max_new_tokens),
        problem_B=jnp.full((shape.slots,), places, jnp.int32),
        token_B=zeros_B,
        drawn_B=zeros_B,
        stop_state_B=zeros_B,
        active_B=jnp.zeros((shape.slots,), bool),
        next=jnp.asarray(0),
        due=_next_refill(shape, queue, 0),
        out=Outputs(
            jnp.zeros((places, shape.max_new_tokens), jnp.int32),
            jnp.zeros((places,), jnp.int32),
            jnp.zeros((places,), jnp.float32),
            jnp.zeros((places,), jnp.int32),
            jnp.zeros((1,), jnp.int32),
        ),
    )
