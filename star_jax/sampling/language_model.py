"""A model in three lines, for notebooks and checks from outside: logits, tokenizer, sampled texts.

model = star_jax.load_model("pip:smollm2")
logits_BTV = model.logits([model.tokenizer.encode("2 + 2 = 4")])
samples = model.generate(["2 + 2 ="], max_new_tokens=8, stop=["\\n"])
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.config import FLOATS, MeshConfig
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.models.decoder import DecodeParams, Decoder, Params
from star_jax.records import EncodedPrompt, Prompt
from star_jax.sampling.sampler import Request, Sample, Sampler, SamplerSpec, round_up
from star_jax.sampling.token_sampling import Decoding
from star_jax.tokenizers.base import Tokenizer
from star_jax.tokenizers.round_trip import check_text
from star_jax.weights import checkpoint, placement
from star_jax.weights.sources import location

_SLOTS = 64  # rows that decode together, at most
_QUEUE = 1024  # prompts in one call of the engine, at most


class LanguageModel:
    """A model with its weights and tokenizer, on the first device.

    Attributes:
      model: the decoder; `model.spec` has its sizes.
      params: stacked parameters.
    """

    def __init__(self, model: Decoder, params: Params, tokenizer: Tokenizer | None, path: Path | str = "") -> None:
        """`path`: where the model came from, for messages."""
        self.model, self.params = model, params
        self._tokenizer, self._path = tokenizer, path

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises InputError if none is stored with it."""
        if self._tokenizer is None:
            raise InputError(f"{self._path}: has no tokenizer")
        return self._tokenizer

    def logits(self, ids_BT: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """Logits [B, T, V], float32, of the token after each; by dense attention.

        Raises InputError for rows of different lengths and for ids that the model lacks.
        """
        try:
            array_BT = np.asarray(ids_BT, np.int64)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError("logits: give rows of equal lengths of token ids") from error
        if array_BT.ndim != 2 or not array_BT.size:
            raise InputError(f"logits: give an array [B, T] of token ids, got shape {list(array_BT.shape)}")
        low, high, spec = np.min(array_BT), np.max(array_BT), self.model.spec
        if low < 0 or high >= spec.vocab_size:
            raise InputError(f"logits: ids {low} to {high}; the model has ids 0 to {spec.vocab_size - 1}")
        if array_BT.shape[1] > spec.max_positions:
            raise InputError(f"logits: {array_BT.shape[1]} tokens exceed the model's {spec.max_positions} positions")
        # Similar lengths share a program: no token attends to the padding after it.
        length = array_BT.shape[1]
        padded_BT = np.pad(array_BT, [(0, 0), (0, round_up(length, 32) - length)])
        return np.asarray(_apply(self.model, self.params, jnp.asarray(padded_BT, jnp.int32))[:, :length])

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int = 128,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[Sample]:
        """One sample for each prompt, by the sampler of training runs: texts, token ids, log-probabilities.

        Args:
          prompts: texts, which begin with the tokenizer's BOS if it has one, or token ids as they are.
          stop: strings that end a completion; the tokenizer's end ids always do.
          temperature: 0 is greedy.
          seed: a sample depends on it, on the prompt and on the prompt's index, and not on the other prompts.

        Raises InputError for a prompt that is empty, too long, or not kept by the tokenizer.
        """
        if not prompts:
            return []
        requests = [Request(self._encode(prompt), f"{seed} {index}") for index, prompt in enumerate(prompts)]
        rows = 1 << (len(prompts) - 1).bit_length()  # similar numbers of prompts share a program
        spec = SamplerSpec(
            stop=tuple(stop),
            max_new_tokens=max_new_tokens,
            decoding=Decoding(temperature, top_k, top_p),
            slots=min(_SLOTS, rows),
            queue=min(_QUEUE, rows),
        )
        return Sampler(self.model, self.tokenizer, self._mesh, spec).sample(self._decode_params, requests)

    def _encode(self, prompt: str | Sequence[int]) -> EncodedPrompt:
        """The prompt without a shared prefix: prompts here need not have anything in common."""
        ids = self.tokenizer.encode_document(prompt) if isinstance(prompt, str) else prompt
        if isinstance(prompt, str):
            check_text(self.tokenizer, ids, prompt, starts_document=True)
        return EncodedPrompt(Prompt("", prompt if isinstance(prompt, str) else ""), (), tuple(map(int, ids)))

    @functools.cached_property
    def _mesh(self) -> jax.sharding.Mesh:
        return sharding.sampling_mesh(sharding.mesh_of(self.params), 1)

    @functools.cached_property
    def _decode_params(self) -> DecodeParams:
        return placement.to_decode_params(self.model, self.params, self._mesh)


def load(path: Path | str, dtype: str = "float32") -> LanguageModel:
    """The model at `path`, with weights and activations in `dtype`, on the first device.

    Args:
      path: anything that `base.path` takes: a directory of a run, of star_jax.convert or of Hugging Face, a GGUF file,
        pip:NAME, or a name on the hub.
      dtype: "float32" or "bfloat16".

    Raises InputError.
    """
    if dtype not in FLOATS:
        raise InputError(f"load_model: dtype must be one of {', '.join(FLOATS)}, got {dtype!r}")
    directory = location.resolve(path).path
    tokenizer = checkpoint.find_tokenizer(directory)
    model, params = checkpoint.load_model(directory, sharding.make_mesh(MeshConfig(data=1)), dtype)
    return LanguageModel(dataclasses.replace(model, compute_dtype=dtype), params, tokenizer, path)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: Decoder, params: Params, tokens_BT: jax.Array) -> jax.Array:
    return decoder.apply(model, params, tokens_BT)
