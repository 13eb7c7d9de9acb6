"""The sampler: a shared prefix encoded once, then one compiled loop over slots that refill inside it.

A call's prompts wait in queues; loop.py has the loop that draws them, which runs for each group of devices apart.
Each process draws its own share of the problems.

A draw is a pure function of (weights, prompt, key, how to draw): the key belongs to the problem, never to
its slot, so batch size, order, restarts, devices and processes change no text.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from star_jax.distributed import cuda, processes, sharding
from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.records import Prompt
from star_jax.sampling import kv_cache, stop_strings
from star_jax.sampling.engine import TRUNCATED, EngineSpec, Outputs, Queue, sample_queues, sample_queues_on_cuda
from star_jax.sampling.token_sampling import Decoding
from star_jax.tokenizers.base import Tokenizer
from star_jax.weights import placement


@dataclasses.dataclass(frozen=True)
class Sample:
    """One completion as drawn."""

    text: str  # cut in front of the first stop string
    token_ids: tuple[int, ...]  # everything drawn, the stop's tokens included
    log_probability: float  # sum over token_ids of log p at temperature 1 over the vocabulary in use, nats
    truncated: bool  # the token budget ran out before a stop


class Sampler:
    """Draws completions for prompts that share a few-shot prefix.

    `with_params` gives the same sampler for other weights; compiled programs are shared between them.
    Where several processes run, all of them must make the same calls.
    """

    def __init__(
        self,
        model: decoder.GPT,
        params: decoder.Params | decoder.DecodeParams,
        tokenizer: Tokenizer,
        *,
        mesh: Mesh | None = None,
        stop: Sequence[str] = (),
        max_new_tokens: int = 128,
        decoding: Decoding = Decoding(),
        slots: int = 128,
        queue: int = 1024,
        prefill_tokens: int = 512,
        longest: int = 0,
    ) -> None:
        """
        Args:
          params: on `mesh`, or anywhere (then they are put there as they are; see placement.to_decode_params).
          mesh: a sampling mesh, sharding.sampling_mesh; default: the devices on which the parameters lie.
          stop: strings that end a completion; end-of-text always does.
          slots: rows that decode together, at each place along the mesh's data axis.
          queue: problems handed to each such place at a time.
          prefill_tokens: tokens of bodies that a prefill takes at once; free slots are gathered until they fill it, or
            are a quarter of all.
          longest: tokens of the longest body to come, if it is known: calls with shorter ones then share a program.

        Raises InputError for sizes that do not fit each other.
        """
        if min(slots, queue, prefill_tokens, max_new_tokens) < 1:
            raise InputError("sampling: slots, queue, prefill_tokens and max_new_tokens must be at least 1")
        if model.config.vocab_size < tokenizer.vocab_size:
            raise InputError(
                f"the model has {model.config.vocab_size} rows of vocabulary and the tokenizer {tokenizer.vocab_size} "
                "ids; they do not belong together"
            )
        self.model, self.tokenizer = model, tokenizer
        if mesh is None:
            given = sharding.mesh_of(params)
            mesh = sharding.sampling_mesh(given, given.shape["tensor"])
        self.mesh, self.params = mesh, _decode_params(model, params, mesh)
        self.stop, self.decoding, self.queue, self.longest = tuple(stop), decoding, queue, longest
        self.shape = EngineSpec(slots, prefill_tokens, max_new_tokens, tokenizer.vocab_size)
        self._automaton_SV = jnp.asarray(stop_strings.automaton(tokenizer, self.stop))
        self._prefixes: dict[str, kv_cache.Prefix] = {}

    def with_params(self, params: decoder.Params | decoder.DecodeParams | None) -> "Sampler":
        """The same sampler with other weights; with None it holds none until it is given some in this way."""
        other = object.__new__(Sampler)
        placed = params if params is None else _decode_params(self.model, params, self.mesh)
        other.__dict__.update(self.__dict__, params=placed, _prefixes={})
        return other

    def __call__(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[str] | None = None,
        progress: Callable[[Sequence[int], Sequence[Sample]], Any] | None = None,
        meanwhile: Callable[[], Any] | None = None,
    ) -> list[Sample]:
        """Draws one completion a prompt, in the order of the prompts.

        Args:
          prompts: any number, of any length up to the model's; they may have different prefixes.
          seeds: one text a prompt, from which its random key is made; the prompt's place where not given.
          progress: called with (places, draws) as each queue comes back.
          meanwhile: called once, while the device draws the first queue.

        Raises InputError for a prompt that leaves no room for `max_new_tokens` in the model's positions.
        """
        seeds = [str(i) for i in range(len(prompts))] if seeds is None else seeds
        draws: dict[int, Sample] = {}

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
        return processes.count() * self.mesh.shape["data"]

    def _chunks(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], list[list[int]], int, str]]:
        """Prompts that go through the queues at once: (places, token ids of bodies, their padded length, prefix).

        The shortest come first, so that a call that was cut short and begins again with what is missing pads to the
        same length.
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
            padded = round_up(max(len(members[-1][1]), self.longest), 8)
            for start in range(0, len(members), size):
                chunk = members[start : start + size]
                yield [place for place, _ in chunk], [body for _, body in chunk], padded, text

    def _run(self, bodies: Sequence[Sequence[int]], padded: int, shots: str, seeds: Sequence[str]) -> Outputs:
        """Starts the drawing. Bodies are dealt out, one after the other, to all processes and their queues."""
        groups, ways = self.mesh.shape["data"], self._ways
        own = range(processes.index() * groups, (processes.index() + 1) * groups)
        mine = [(bodies[way::ways], seeds[way::ways]) for way in own]
        with sharding.use(self.mesh, rows_apart=True):
            prefix, queue = self._prefix(shots), self._queue(mine, padded)
            draw = sample_queues_on_cuda if cuda.capability() > (0, 0) else sample_queues
            how = self.model, self.decoding, self.shape, self.mesh
            return draw(*how, self.params, prefix, queue, self._automaton_SV)

    def _read(self, out: Outputs, count: int) -> list[Sample]:
        """What all processes drew, in the order of the `count` bodies."""
        drawn: Outputs = processes.gather(jax.device_get(out))
        return [self._draw(drawn, i % self._ways * self.queue + i // self._ways) for i in range(count)]

    def _queue(self, dealt: Sequence[tuple[Sequence[Sequence[int]], Sequence[str]]], padded: int) -> Queue:
        rows = self.queue * len(dealt)
        tokens_QT = np.zeros((rows, padded), np.int32)
        lengths_Q, keys_Q2 = np.ones((rows,), np.int32), np.zeros((rows, 2), np.uint32)
        for group, (bodies, seeds) in enumerate(dealt):
            for i, (body, seed) in enumerate(zip(bodies, seeds, strict=True), start=group * self.queue):
                tokens_QT[i, : len(body)] = body
                lengths_Q[i], keys_Q2[i] = len(body), key_data(seed)
        real_G = np.array([len(bodies) for bodies, _ in dealt], np.int32)
        place = NamedSharding(self.mesh, PartitionSpec("data"))
        return Queue(*(jax.device_put(array, place) for array in (tokens_QT, lengths_Q, keys_Q2, real_G)))

    def _prefix(self, text: str) -> kv_cache.Prefix:
        if text not in self._prefixes:
            ids = self.tokenizer.encode(text)
            tokens_P = np.array(ids + [0] * (round_up(len(ids), 16) - len(ids)), np.int32)
            self._prefixes[text] = _encode_prefix(self.model, self.params, jnp.asarray(tokens_P), len(ids))
        return self._prefixes[text]

    def _draw(self, out: Outputs, i: int) -> Sample:
        ids = out.tokens_QM[i, : out.drawn_Q[i]].tolist()
        text = self.tokenizer.decode(ids)
        cut = min((text.find(stop) for stop in self.stop if stop in text), default=len(text))
        return Sample(text[:cut], tuple(ids), float(out.log_probability_Q[i]), bool(out.reason_Q[i] == TRUNCATED))


def key_data(seed: str) -> np.ndarray:
    """Threefry key data [2], uint32: the first eight bytes of the text's SHA-256."""
    return np.frombuffer(hashlib.sha256(seed.encode()).digest()[:8], ">u4").astype(np.uint32)


def round_up(length: int, unit: int) -> int:
    """A multiple of `unit`, an eighth longer at most where that is longer: similar sizes share a compiled program."""
    unit *= max(1, (1 << length.bit_length()) // 16 // unit)
    return -(-length // unit) * unit


def _decode_params(
    model: decoder.GPT, params: decoder.Params | decoder.DecodeParams, mesh: Mesh
) -> decoder.DecodeParams:
    if isinstance(params, decoder.DecodeParams):
        return params
    return placement.to_decode_params(model, params, mesh)


@functools.partial(jax.jit, static_argnums=0)
def _encode_prefix(model, params, tokens_P, length):
    return kv_cache.encode_prefix(model, params, tokens_P, length)
