"""The sampler: a shared prefix encoded once, then one compiled loop over slots that refill inside it.

    while problems are left or rows are alive:            (_sample_queue, one XLA program)
        put the next problems of the queue into free slots: one prefill of R rows
        while fewer than R slots are free, or nothing is left to put there:
            one decode step for all B slots; rows that reach a stop go quiet

Each place along the mesh's `data` axis runs that loop for a queue of its own, so devices wait for each other only
where they split one model (`tensor`); and each process draws its own share of the problems.

A draw is a pure function of (weights, prompt, key, how to draw): the key belongs to the problem, never to
its slot, so batch size, order, restarts, devices and processes change no text.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from star_jax import cached, cuda, hosts, sharding, stops
from star_jax import model as gpt
from star_jax.config import ModelConfig, SamplingConfig
from star_jax.decoding import Decoding
from star_jax.errors import InputError
from star_jax.records import Prompt
from star_jax.tokenizer import Tokenizer

STOPPED, CUT_OFF = 1, 2  # values of Outputs.reason_Q; 0: not drawn


@dataclasses.dataclass(frozen=True)
class Draw:
    """One completion as drawn."""

    text: str  # cut in front of the first stop string
    token_ids: tuple[int, ...]  # everything drawn, the stop's tokens included
    log_probability: float  # sum over token_ids of log p at temperature 1 over the vocabulary in use, nats
    cut_off: bool  # the token budget ran out before a stop


class Queue(NamedTuple):
    """The problems of one call: LEFT-padded bodies, their lengths, their keys' data and how many are real.

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

    cache: cached.RingCache
    problem_B: jax.Array  # place in the queue; Q for a slot that never held one
    token_B: jax.Array  # the last drawn token, not yet in the cache
    drawn_B: jax.Array  # tokens drawn for this problem
    matched_B: jax.Array  # state of the stop automaton
    active_B: jax.Array
    next: jax.Array  # the first problem of the queue that has no slot yet
    out: Outputs


@dataclasses.dataclass(frozen=True)
class Shape:
    """The static part of a call: one compiled program for each distinct value."""

    slots: int  # B, at each place along `data`
    refill: int  # R: how many free slots are gathered before a prefill
    chunk: int  # tokens a row that a prefill takes at once
    max_new_tokens: int  # M
    vocab_used: int  # ids at and above it are never drawn


class Sampler:
    """Draws completions for prompts that share a few-shot prefix.

    `with_params` gives the same sampler for other weights; compiled programs are shared between them.
    Where several processes run, all of them must make the same calls.
    """

    def __init__(
        self,
        model: gpt.GPT,
        params: gpt.Params,
        tokenizer: Tokenizer,
        *,
        mesh: Mesh | None = None,
        stop: Sequence[str] = (),
        max_new_tokens: int = 128,
        decoding: Decoding = Decoding(),
        slots: int = 128,
        refill: int = 0,
        queue: int = 1024,
        prefill_chunk: int = 16,
        longest: int = 0,
    ) -> None:
        """
        Args:
          params: on `mesh`, or anywhere (then they are put there as they are; see cached.placed).
          mesh: a sampling mesh, sharding.sampling_mesh; default: the devices on which the parameters lie.
          stop: strings that end a completion; end-of-text always does.
          slots: rows that decode together, at each place along the mesh's data axis.
          refill: free slots gathered before a prefill (0: a quarter of them).
          queue: problems handed to each such place at a time.
          prefill_chunk: tokens a row that a prefill takes at once; a prefill costs what its longest body costs,
            rounded up to a multiple of this.
          longest: tokens of the longest body to come, if it is known: calls with shorter ones then share a program.

        Raises InputError for sizes that do not fit each other.
        """
        if min(slots, queue, prefill_chunk, max_new_tokens) < 1 or not 0 <= refill <= slots:
            raise InputError("sampling: slots, queue, prefill_chunk, max_new_tokens >= 1 and 0 <= refill <= slots")
        if model.config.vocab_size < tokenizer.vocab_size:
            raise InputError(
                f"the model has {model.config.vocab_size} rows of vocabulary and the tokenizer {tokenizer.vocab_size} "
                "ids; they do not belong together"
            )
        self.model, self.tokenizer = model, tokenizer
        if mesh is None:
            given = sharding.mesh_of(params)
            mesh = sharding.sampling_mesh(given, given.shape["tensor"])
        self.mesh, self.params = mesh, cached.placed(model, params, mesh)
        self.stop, self.decoding, self.queue, self.longest = tuple(stop), decoding, queue, longest
        gathered = SamplingConfig(slots=slots, refill=refill).refill_rows
        self.shape = Shape(slots, gathered, prefill_chunk, max_new_tokens, tokenizer.vocab_size)
        self._automaton_SV = jnp.asarray(stops.automaton(tokenizer, self.stop))
        self._prefixes: dict[str, cached.Prefix] = {}

    def with_params(self, params: gpt.Params) -> "Sampler":
        """The same sampler with other weights; with None it holds none until it is given some in this way."""
        other = object.__new__(Sampler)
        placed = params if params is None else cached.placed(self.model, params, self.mesh)
        other.__dict__.update(self.__dict__, params=placed, _prefixes={})
        return other

    def __call__(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[str] | None = None,
        progress: Callable[[Sequence[int], Sequence[Draw]], Any] | None = None,
        meanwhile: Callable[[], Any] | None = None,
    ) -> list[Draw]:
        """Draws one completion a prompt, in the order of the prompts.

        Args:
          prompts: any number, of any length up to the model's; they may have different prefixes.
          seeds: one text a prompt, from which its random key is made; the prompt's place where not given.
          progress: called with (places, draws) as each queue comes back.
          meanwhile: called once, while the device draws the first queue.

        Raises InputError for a prompt that leaves no room for `max_new_tokens` in the model's positions.
        """
        seeds = [str(i) for i in range(len(prompts))] if seeds is None else seeds
        draws: dict[int, Draw] = {}

        def read(places: Sequence[int], out: Outputs) -> None:
            new = self._read(out, len(places))
            draws.update(zip(places, new, strict=True))
            if progress:
                progress(places, new)

        pending: tuple[list[int], Outputs] | None = None
        for places, bodies, padded, shots in self._chunks(prompts):
            out = self._run(bodies, padded, shots, [seeds[i] for i in places])
            if pending:  # texts are made, judged and stored while the device draws the next ones
                read(*pending)
            elif meanwhile:
                meanwhile()
            pending = places, out
        if pending:
            read(*pending)
        return [draws[i] for i in range(len(prompts))]

    @property
    def _ways(self) -> int:
        """Queues that run side by side, those of all processes."""
        return hosts.count() * self.mesh.shape["data"]

    def _chunks(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], list[list[int]], int, str]]:
        """Prompts that go through the queues at once: (places, token ids of bodies, their padded length, prefix).

        The shortest come first: bodies of a refill are about equally long, and a call that was cut short and begins
        again with what is missing pads to the same length.
        """
        groups: dict[str, list[tuple[int, list[int]]]] = {}
        for place, prompt in enumerate(prompts):
            shared, own = prompt.parts
            body = self.tokenizer.encode(own)
            if not body:
                raise InputError("a prompt's body has no tokens; a completion needs at least one to follow")
            groups.setdefault(shared, []).append((place, body))
        for text, members in groups.items():  # all of them, before the first is drawn
            members.sort(key=lambda member: len(member[1]))
            size = len(self.tokenizer.encode(text)) + len(members[-1][1])
            if size + self.shape.max_new_tokens > self.model.config.max_positions:
                raise InputError(
                    f"a prompt of {size} tokens and {self.shape.max_new_tokens} new ones "
                    f"do not fit the model's {self.model.config.max_positions} positions; give fewer shots"
                )
        size = self.queue * self._ways
        for text, members in sorted(groups.items()):
            padded = round_up(max(len(members[-1][1]), self.longest), self.shape.chunk)
            for start in range(0, len(members), size):
                chunk = members[start : start + size]
                yield [place for place, _ in chunk], [body for _, body in chunk], padded, text

    def _run(self, bodies: Sequence[Sequence[int]], padded: int, shots: str, seeds: Sequence[str]) -> Outputs:
        """Starts the drawing. Bodies are dealt out, one after the other, to all processes and their queues."""
        groups, ways = self.mesh.shape["data"], self._ways
        own = range(hosts.index() * groups, (hosts.index() + 1) * groups)
        mine = [(bodies[way::ways], seeds[way::ways]) for way in own]
        with sharding.use(self.mesh, rows_apart=True):
            prefix, queue = self._prefix(shots), self._queue(mine, padded)
            draw = _sample_queue_on_cuda if cuda.capability() > (0, 0) else _sample_queue
            how = self.model, self.decoding, self.shape, self.mesh
            return draw(*how, self.params, prefix, queue, self._automaton_SV)

    def _read(self, out: Outputs, count: int) -> list[Draw]:
        """What all processes drew, in the order of the `count` bodies."""
        drawn: Outputs = hosts.gather(jax.device_get(out))
        return [self._draw(drawn, i % self._ways * self.queue + i // self._ways) for i in range(count)]

    def _queue(self, dealt: Sequence[tuple[Sequence[Sequence[int]], Sequence[str]]], padded: int) -> Queue:
        rows = self.queue * len(dealt)
        tokens_QT = np.zeros((rows, padded), np.int32)
        lengths_Q, keys_Q2 = np.ones((rows,), np.int32), np.zeros((rows, 2), np.uint32)
        for group, (bodies, seeds) in enumerate(dealt):
            for i, (body, seed) in enumerate(zip(bodies, seeds, strict=True), start=group * self.queue):
                tokens_QT[i, padded - len(body) :] = body
                lengths_Q[i], keys_Q2[i] = len(body), key_data(seed)
        real_G = np.array([len(bodies) for bodies, _ in dealt], np.int32)
        place = NamedSharding(self.mesh, PartitionSpec("data"))
        return Queue(*(jax.device_put(array, place) for array in (tokens_QT, lengths_Q, keys_Q2, real_G)))

    def _prefix(self, text: str) -> cached.Prefix:
        if text not in self._prefixes:
            ids = self.tokenizer.encode(text)
            tokens_P = np.array(ids + [0] * (round_up(len(ids), 16) - len(ids)), np.int32)
            self._prefixes[text] = _encode_prefix(self.model, self.params, jnp.asarray(tokens_P), len(ids))
        return self._prefixes[text]

    def _draw(self, out: Outputs, i: int) -> Draw:
        ids = out.tokens_QM[i, : out.drawn_Q[i]].tolist()
        text = self.tokenizer.decode(ids)
        cut = min((text.find(stop) for stop in self.stop if stop in text), default=len(text))
        return Draw(text[:cut], tuple(ids), float(out.log_probability_Q[i]), bool(out.reason_Q[i] == CUT_OFF))


def key_data(seed: str) -> np.ndarray:
    """Threefry key data [2], uint32: the first eight bytes of the text's SHA-256."""
    return np.frombuffer(hashlib.sha256(seed.encode()).digest()[:8], ">u4").astype(np.uint32)


def round_up(length: int, unit: int) -> int:
    """A multiple of `unit`, an eighth longer at most where that is longer: similar sizes share a compiled program."""
    unit *= max(1, (1 << length.bit_length()) // 16 // unit)
    return -(-length // unit) * unit


@functools.partial(jax.jit, static_argnums=0)
def _encode_prefix(model, params, tokens_P, length):
    return cached.encode_prefix(model, params, tokens_P, length)


def _sample_queues(model, decoding, shape, mesh, params, prefix, queue, automaton_SV) -> Outputs:
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


_sample_queue = jax.jit(_sample_queues, static_argnums=(0, 1, 2, 3))
_sample_queue_on_cuda = jax.jit(_sample_queues, static_argnums=(0, 1, 2, 3), compiler_options=cuda.COMPILER_OPTIONS)


def _loop(model, decoding, shape, params, prefix, queue, automaton_SV) -> Outputs:
    """Draws a completion for each of the first `queue.real_G[0]` problems of one queue."""
    emit = functools.partial(_emit, decoding, shape, queue, automaton_SV)

    def decode(slots):
        logits_BV, filled = cached.decode_step(model, params, slots.token_B, slots.cache, prefix)
        slots = slots._replace(cache=filled, out=slots.out._replace(steps_G=slots.out.steps_G + 1))
        return emit(slots, jnp.arange(shape.slots), logits_BV, slots.active_B)

    def keep_decoding(slots):
        waiting, room = slots.next < queue.real_G[0], jnp.sum(~slots.active_B) >= shape.refill
        return jnp.any(slots.active_B) & ~(waiting & room)

    def refill_and_decode(slots):
        # Every turn of the outer loop but the last few begins with free slots and waiting problems.
        return jax.lax.while_loop(keep_decoding, decode, _refill(model, shape, params, prefix, queue, emit, slots))

    def unfinished(slots):
        return (slots.next < queue.real_G[0]) | jnp.any(slots.active_B)

    return jax.lax.while_loop(unfinished, refill_and_decode, _empty_slots(model.config, shape, queue)).out


def _refill(model, shape, params, prefix, queue, emit, slots: Slots) -> Slots:
    """Gives the next R problems of the queue to free slots and draws their first tokens."""
    free_R = jnp.argsort(slots.active_B, stable=True)[: shape.refill]  # free slots come first
    problem_R = slots.next + jnp.arange(shape.refill)
    valid_R = ~slots.active_B[free_R] & (problem_R < queue.real_G[0])
    safe_R = jnp.where(valid_R, problem_R, 0)
    rows_R = jnp.where(valid_R, free_R, shape.slots)  # out of range: dropped by every scatter
    lengths_R = queue.lengths_Q[safe_R]
    logits_RV, new = cached.prefill(model, params, queue.tokens_QT[safe_R], lengths_R, prefix, shape.chunk)
    slots = slots._replace(
        cache=cached.insert_rows(slots.cache, rows_R, new, lengths_R),
        problem_B=slots.problem_B.at[rows_R].set(problem_R, mode="drop"),
        drawn_B=slots.drawn_B.at[rows_R].set(0, mode="drop"),
        matched_B=slots.matched_B.at[rows_R].set(0, mode="drop"),
        next=slots.next + jnp.sum(valid_R),
    )
    return emit(slots, rows_R, logits_RV, valid_R)


def _emit(decoding, shape, queue, automaton_SV, slots: Slots, rows_R, logits_RV, valid_R) -> Slots:
    """Draws one token for the rows `rows_R` where `valid_R`, records it, and decides who stops."""
    used = jnp.arange(logits_RV.shape[-1]) < shape.vocab_used
    logits_RV = jnp.where(used[None], logits_RV, -jnp.inf)
    problem_R = jnp.where(valid_R, slots.problem_B.at[rows_R].get(mode="clip"), queue.lengths_Q.shape[0])
    drawn_R = slots.drawn_B.at[rows_R].get(mode="clip")
    data_R2 = queue.keys_Q2.at[problem_R].get(mode="clip")
    keys_R = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(data_R2, impl="threefry2x32"), drawn_R)
    token_R = decoding.draw(logits_RV, keys_R)
    if decoding.temperature == 0:  # the drawn logit is the largest: nothing to pick
        logp_R = jnp.max(logits_RV, axis=-1) - jax.nn.logsumexp(logits_RV, axis=-1)
    else:
        logp_R = gpt.log_probability(logits_RV, token_R)
    matched_R = automaton_SV[slots.matched_B.at[rows_R].get(mode="clip"), token_R]
    stopped_R = matched_R == automaton_SV.shape[0] - 1
    ended_R = stopped_R | (drawn_R + 1 >= shape.max_new_tokens)
    rows_R = jnp.where(valid_R, rows_R, shape.slots)

    def put(old, new, index=rows_R):
        return old.at[index].set(new, mode="drop")

    out = slots.out._replace(
        tokens_QM=slots.out.tokens_QM.at[problem_R, drawn_R].set(token_R, mode="drop"),
        drawn_Q=put(slots.out.drawn_Q, drawn_R + 1, problem_R),
        log_probability_Q=slots.out.log_probability_Q.at[problem_R].add(logp_R, mode="drop"),
        reason_Q=put(slots.out.reason_Q, jnp.where(stopped_R, STOPPED, jnp.where(ended_R, CUT_OFF, 0)), problem_R),
    )
    return slots._replace(
        token_B=put(slots.token_B, token_R),
        drawn_B=put(slots.drawn_B, drawn_R + 1),
        matched_B=put(slots.matched_B, matched_R),
        active_B=put(slots.active_B, ~ended_R),
        out=out,
    )


def _empty_slots(config: ModelConfig, shape: Shape, queue: Queue) -> Slots:
    places, length = queue.tokens_QT.shape
    zeros_B = jnp.zeros((shape.slots,), jnp.int32)
    return Slots(
        cache=cached.empty_cache(config, shape.slots, length + shape.max_new_tokens),
        problem_B=jnp.full((shape.slots,), places, jnp.int32),
        token_B=zeros_B,
        drawn_B=zeros_B,
        matched_B=zeros_B,
        active_B=jnp.zeros((shape.slots,), bool),
        next=jnp.asarray(0),
        out=Outputs(
            jnp.zeros((places, shape.max_new_tokens), jnp.int32),
            jnp.zeros((places,), jnp.int32),
            jnp.zeros((places,), jnp.float32),
            jnp.zeros((places,), jnp.int32),
            jnp.zeros((1,), jnp.int32),
        ),
    )
