"""Text generation, host side: requests -> queues -> the compiled engine -> samples, in chunks.

A sample is a pure function of (weights, prompt, random key, decoding). The key belongs to the request and never to a
slot, so batch size, order, restarts, devices and processes change no text. Each process samples its own share.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from star_jax.distributed import platforms, processes, sharding
from star_jax.errors import InputError
from star_jax.models.decoder import DecodeParams, Decoder
from star_jax.records import EncodedPrompt
from star_jax.sampling import kv_cache, stop_strings
from star_jax.sampling.engine import TRUNCATED, EngineSpec, Outputs, Queue, sample_queues, sample_queues_on_cuda
from star_jax.sampling.token_sampling import Decoding
from star_jax.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Request:
    """One completion to sample."""

    prompt: EncodedPrompt
    seed: str  # the random key is derived from this text


@dataclasses.dataclass(frozen=True)
class Sample:
    """One completion as sampled."""

    text: str  # cut before the first stop string; an invalid UTF-8 sequence is U+FFFD
    token_ids: tuple[int, ...]  # all sampled tokens, the stop's included
    token_log_probs: tuple[float, ...]  # log p of each, nats, at temperature 1 over the vocabulary in use
    truncated: bool  # the token budget ran out before a stop
    valid_utf8: bool = True  # the tokens' bytes are a text, which a model may have written U+FFFD in

    @property
    def log_probability(self) -> float:
        """Sum of the token log-probabilities in float32, in the order of the tokens."""
        return float(np.cumsum(np.asarray(self.token_log_probs, np.float32))[-1]) if self.token_log_probs else 0.0


@dataclasses.dataclass(frozen=True)
class SamplerSpec:
    """The settings of a sampler. Raises InputError for sizes below 1."""

    stop: tuple[str, ...] = ()  # strings that end a completion; the tokenizer's end ids always do
    max_new_tokens: int = 128
    decoding: Decoding = Decoding()
    slots: int = 128  # rows that decode together, for each index along the mesh's data axis
    queue: int = 1024  # requests handed to each such group of slots at a time
    prefill_tokens: int = (
        512  # prompt tokens of one prefill; free slots are gathered until they fill it, a quarter at most
    )
    longest_body: int = 0  # tokens of the longest prompt body to come, if known: shorter calls then share its program

    def __post_init__(self) -> None:
        if min(self.slots, self.queue, self.prefill_tokens, self.max_new_tokens) < 1:
            raise InputError("sampling: slots, queue, prefill_tokens and max_new_tokens must be at least 1")


class Sampler:
    """Samples completions of prompts that share a few-shot prefix. Holds no weights: each call gets them."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, mesh: Mesh, spec: SamplerSpec = SamplerSpec()) -> None:
        """
        Args:
          mesh: a sampling mesh (sharding.sampling_mesh), on which the weights of every call are placed.

        Raises InputError where the tokenizer has more ids than the model.
        """
        if model.spec.vocab_size < tokenizer.vocab_size:
            raise InputError(
                f"the model has {model.spec.vocab_size} rows of vocabulary and the tokenizer {tokenizer.vocab_size} "
                "ids; they do not belong together"
            )
        self.model, self.tokenizer, self.mesh, self.spec = model, tokenizer, mesh, spec
        self.engine = EngineSpec(
            spec.slots, spec.prefill_tokens, spec.max_new_tokens, tokenizer.vocab_size, tokenizer.never_sampled
        )
        self._automaton_SV = jnp.asarray(stop_strings.automaton(tokenizer, spec.stop))

    def sample(self, params: DecodeParams, requests: Sequence[Request]) -> list[Sample]:
        """One sample for each request, in their order. Where several processes run, all of them make the same calls."""
        samples: dict[int, Sample] = {}
        for chunk in self.stream(params, requests):
            samples.update(chunk)
        return [samples[index] for index in range(len(requests))]

    def stream(self, params: DecodeParams, requests: Sequence[Request]) -> Iterator[list[tuple[int, Sample]]]:
        """Yields chunks of (index of the request, its sample).

        The device samples the next chunk while the caller works on one: the caller should judge and store it, then ask
        for the next. Chunks are cut by prompt length, shortest first, so a call that continues with the missing
        requests of an interrupted one pads to the same length.

        Raises InputError for a prompt that leaves no room for `max_new_tokens` in the model's positions, for one with
        an id that the model lacks, and for logits that are not finite.
        """
        prefixes: dict[tuple[int, ...], kv_cache.PrefixCache] = {}
        previous: tuple[list[int], Outputs] | None = None
        for prefix_ids, indices, padded_length in self._chunks(requests):
            if prefix_ids not in prefixes:
                prefixes[prefix_ids] = self._encode_prefix(params, prefix_ids)
            chunk = [requests[index] for index in indices]
            outputs = self._start(params, prefixes[prefix_ids], chunk, padded_length)
            if previous:
                yield self._read(*previous)
            previous = indices, outputs
        if previous:
            yield self._read(*previous)

    @property
    def _queues(self) -> int:
        """The number of queues that run side by side, over all processes."""
        return processes.count() * self.mesh.shape["data"]

    def _chunks(self, requests: Sequence[Request]) -> Iterator[tuple[tuple[int, ...], list[int], int]]:
        """Requests that go through the queues together: (prefix ids, their indices, padded length of their bodies)."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(requests):
            if not request.prompt.body_ids:
                raise InputError("a prompt's body has no tokens; a completion needs at least one to follow")
            check_ids(request.prompt.body_ids, self.model.spec.vocab_size)
            groups.setdefault(request.prompt.prefix_ids, []).append(index)

        def length(index: int) -> int:
            return len(requests[index].prompt.body_ids)

        for prefix_ids, indices in groups.items():  # check all of them before the first is sampled
            check_ids(prefix_ids, self.model.spec.vocab_size)
            indices.sort(key=length)
            tokens = len(prefix_ids) + length(indices[-1])
            if tokens + self.spec.max_new_tokens > self.model.spec.max_positions:
                raise InputError(
                    f"a prompt of {tokens} tokens and {self.spec.max_new_tokens} new ones do not fit the model's "
                    f"{self.model.spec.max_positions} positions; shorten the prompt or leave it out"
                )
        size = self.spec.queue * self._queues
        for prefix_ids, indices in sorted(groups.items()):
            padded_length = round_up(max(length(indices[-1]), self.spec.longest_body), 8)
            for start in range(0, len(indices), size):
                yield prefix_ids, indices[start : start + size], padded_length

    def _encode_prefix(self, params: DecodeParams, prefix_ids: tuple[int, ...]) -> kv_cache.PrefixCache:
        tokens_P = np.zeros(round_up(len(prefix_ids), 16), np.int32)
        tokens_P[: len(prefix_ids)] = prefix_ids
        with sharding.use(self.mesh, local_rows=True):
            return _encode_prefix(self.model, params, jnp.asarray(tokens_P), len(prefix_ids))

    def _start(
        self, params: DecodeParams, prefix: kv_cache.PrefixCache, requests: Sequence[Request], padded_length: int
    ) -> Outputs:
        """Starts the engine. Requests are dealt out in turn to the queues of all processes."""
        groups, queues = self.mesh.shape["data"], self._queues
        first = processes.index() * groups
        dealt = [requests[first + group :: queues] for group in range(groups)]
        with sharding.use(self.mesh, local_rows=True):
            sample = sample_queues_on_cuda if platforms.cuda_capability() > (0, 0) else sample_queues
            queue = self._queue(dealt, padded_length)
            settings = self.model, self.spec.decoding, self.engine, self.mesh
            return sample(*settings, params, prefix, queue, self._automaton_SV)

    def _queue(self, dealt: Sequence[Sequence[Request]], padded_length: int) -> Queue:
        rows = self.spec.queue * len(dealt)
        tokens_QT = np.zeros((rows, padded_length), np.int32)
        lengths_Q, keys_Q2 = np.ones((rows,), np.int32), np.zeros((rows, 2), np.uint32)
        for group, requests in enumerate(dealt):
            for row, request in enumerate(requests, start=group * self.spec.queue):
                body_ids = request.prompt.body_ids
                tokens_QT[row, : len(body_ids)] = body_ids
                lengths_Q[row], keys_Q2[row] = len(body_ids), key_data(request.seed)
        real_G = np.array([len(requests) for requests in dealt], np.int32)
        by_queue = NamedSharding(self.mesh, PartitionSpec("data"))
        return Queue(*(jax.device_put(array, by_queue) for array in (tokens_QT, lengths_Q, keys_Q2, real_G)))

    def _read(self, indices: Sequence[int], outputs: Outputs) -> list[tuple[int, Sample]]:
        """Waits for a chunk and gathers it from all processes. Raises InputError if the model's logits overflowed."""
        gathered: Outputs = processes.gather(jax.device_get(outputs))
        if not np.isfinite(gathered.log_probs_QM).all():
            raise InputError(
                "the model's logits are not finite numbers, so its samples mean nothing: its weights or activations "
                f"overflow in {self.model.compute_dtype}; use other weights, or a wider model.compute_dtype"
            )
        rows = (i % self._queues * self.spec.queue + i // self._queues for i in range(len(indices)))
        return [(index, self._sample(gathered, row)) for index, row in zip(indices, rows, strict=True)]

    def _sample(self, outputs: Outputs, row: int) -> Sample:
        count = outputs.count_Q[row]
        token_ids = outputs.tokens_QM[row, :count].tolist()
        text, valid_utf8 = stop_strings.text_before(self.tokenizer.decode_bytes(token_ids), self.spec.stop)
        log_probs, truncated = outputs.log_probs_QM[row, :count].tolist(), bool(outputs.reason_Q[row] == TRUNCATED)
        return Sample(text, tuple(token_ids), tuple(log_probs), truncated, valid_utf8)


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raises InputError for an id that a model of `vocab_size` rows lacks.

    A lookup beyond the embedding gives another token's row and no error. `Tokenizer.vocab_size` does not cover special
    tokens that are never sampled, such as a BOS.
    """
    if wrong := [i for i in ids if not 0 <= i < vocab_size]:
        raise InputError(
            f"a text has the token id {wrong[0]} and the model ids 0 to {vocab_size - 1}: the tokenizer has tokens "
            "that the model was not trained with; give the model's own tokenizer"
        )


def key_data(seed: str) -> np.ndarray:
    """Threefry key data [2], uint32: the first eight bytes of the text's SHA-256."""
    return np.frombuffer(hashlib.sha256(seed.encode()).digest()[:8], ">u4").astype(np.uint32)


def round_up(length: int, unit: int) -> int:
    """The next multiple of `unit`, or of an eighth of the length if that is more: similar sizes share a program."""
    unit *= max(1, (1 << length.bit_length()) // 16 // unit)
    return -(-length // unit) * unit


@functools.partial(jax.jit, static_argnums=0)
def _encode_prefix(model, params, tokens_P, length):
    return kv_cache.encode_prefix(model, params, tokens_P, length)
