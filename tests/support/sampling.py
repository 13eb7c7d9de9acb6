"""A sampler of texts: renders nothing, encodes prompts, and holds the weights that star_jax's sampler does not."""

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from star_jax.distributed import sharding
from star_jax.models import decoder
from star_jax.records import EncodedPrompt, Prompt
from star_jax.sampling.sampler import Request, Sample, Sampler, SamplerSpec
from star_jax.tokenizers.base import Tokenizer
from star_jax.weights import placement


def encoded(tokenizer: Tokenizer, prompt: Prompt) -> EncodedPrompt:
    """The prompt with its ids, as PromptEncoder makes it."""
    return EncodedPrompt(prompt, *tokenizer.encode_parts(prompt.prefix, prompt.body))


class TextSampler:
    """Samples after text prompts from one set of stacked parameters, wherever they are placed.

    `mesh`: a sampling mesh; default: the devices of the parameters. `spec`: fields of SamplerSpec.
    """

    def __init__(
        self, model: decoder.Decoder, params: decoder.Params, tokenizer: Tokenizer, mesh: Mesh | None = None, **spec
    ) -> None:
        if mesh is None:
            training_mesh = sharding.mesh_of(params)
            mesh = sharding.sampling_mesh(training_mesh, training_mesh.shape["tensor"])
        self.sampler = Sampler(model, tokenizer, mesh, SamplerSpec(**spec))
        self.params = placement.to_decode_params(model, params, mesh)

    def with_params(self, params: decoder.Params) -> "TextSampler":
        """The same sampler with other stacked parameters."""
        other = object.__new__(TextSampler)
        other.sampler = self.sampler
        other.params = placement.to_decode_params(self.sampler.model, params, self.sampler.mesh)
        return other

    def with_engine(self, **changes) -> "TextSampler":
        """The same sampler and weights, with other fields of EngineSpec."""
        other = object.__new__(TextSampler)
        other.sampler, other.params = object.__new__(Sampler), self.params
        other.sampler.__dict__.update(self.sampler.__dict__)
        other.sampler.engine = dataclasses.replace(self.sampler.engine, **changes)
        return other

    def requests(self, prompts: Sequence[Prompt | str], seeds: Sequence[str] | None = None) -> list[Request]:
        """One request for each prompt; a plain text is a prompt without prefix. Seeds default to "0", "1", ..."""
        texts = [Prompt("", prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        seeds = [str(i) for i in range(len(texts))] if seeds is None else seeds
        tokenizer = self.sampler.tokenizer
        return [Request(encoded(tokenizer, prompt), seed) for prompt, seed in zip(texts, seeds, strict=True)]

    def __call__(self, prompts: Sequence[Prompt | str], seeds: Sequence[str] | None = None) -> list[Sample]:
        """The samples, in the order of the prompts."""
        return self.sampler.sample(self.params, self.requests(prompts, seeds))
