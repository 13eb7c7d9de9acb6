"""A model directory as a t5x DecoderOnlyModel."""

import functools
from typing import Any

import flax.core
import flax.linen as nn
import jax.numpy as jnp
from flax.linen.partitioning import AxisMetadata
from flax.traverse_util import flatten_dict, unflatten_dict

from star_jax.config import ModelConfig
from star_jax.contrib.t5x import forward
from star_jax.contrib.t5x.forward import NEVER, Batch
from star_jax.contrib.t5x.importing import import_t5x
from star_jax.contrib.t5x.vocabulary import vocabulary
from star_jax.errors import InputError
from star_jax.models import decoder, families
from star_jax.weights import checkpoint, placement


def decoder_only(
    base: str,
    optimizer_def: Any,
    decode_fn: Any = None,
    z_loss: float = 0.0,
    loss_normalizing_factor: Any = "NUM_REAL_TARGET_TOKENS",
    compute_dtype: str = "float32",
    remat: str = "none",
) -> Any:
    """The model of a directory as a t5x DecoderOnlyModel. Its initial variables are random: see initializer.from_base.

    Args:
      base: a directory that star_jax saved (base/ or iter_NNN/params/ of a run, a converted model), or a Hugging Face
        directory.
      optimizer_def: an optimizer of t5x, e.g. t5x.optimizers.adamw(...); None if nothing is trained.
      decode_fn: a function of t5x.decoding; default: greedy. (t5x's default, temperature_sample, samples from the
        single most likely token unless topk=0 is given.)
      z_loss, loss_normalizing_factor: as in t5x; the default is the mean over the batch's completion tokens.
      compute_dtype, remat: as in star_jax.config.ModelConfig.

    Raises InputError if the directory has no model or no tokenizer.
    """
    spec, words = checkpoint.load_spec(base), vocabulary(base)
    if spec.vocab_size < words.tokenizer.vocab_size:
        raise InputError(f"{base}: has {spec.vocab_size} rows of vocabulary for {words.tokenizer.vocab_size} tokens")
    options = ModelConfig(compute_dtype=compute_dtype, remat=remat)
    options.validate()
    t5x: Any = import_t5x()
    model = _model_class()(
        module=families.build(options, spec),
        vocabulary=words,
        optimizer_def=optimizer_def,
        decode_fn=decode_fn or functools.partial(t5x.decoding.temperature_sample, temperature=0.0, topk=0),
        z_loss=z_loss,
        loss_normalizing_factor=loss_normalizing_factor,
    )
    model.base = base
    return model


@functools.cache
def _model_class() -> type:
    t5x: Any = import_t5x()

    class StarModel(t5x.models.DecoderOnlyModel):
        """A decoder of star_jax with t5x's interface."""

        def get_initial_variables(self, rng: Any, input_shapes: Any, input_types: Any = None) -> Any:
            params = placement.unbox(decoder.init(self.module, rng))
            return flax.core.freeze({"params": params, "params_axes": _params_axes(self.module)})

        def loss_fn(self, params: Any, batch: Batch, dropout_rng: Any) -> Any:
            return super().loss_fn(params, _without_first_tokens(batch), dropout_rng)

        def score_batch(self, params: Any, batch: Batch, return_intermediates: bool = False) -> Any:
            return super().score_batch(params, _without_first_tokens(batch), return_intermediates)

        def _compute_logits(self, params: Any, batch: Batch, dropout_rng: Any = None, mutable: Any = False) -> Any:
            # These models have no dropout, and sow no intermediates for `mutable`.
            logits_BTV = forward.training_logits(self.module, params, batch, self._end_of_text)
            return (logits_BTV, {}) if mutable else logits_BTV

        def _compute_kv_cache(self, params: Any, inputs: Any, causal_attention_mask: Any) -> Any:
            return forward.prefilled_cache(self.module, params, inputs, causal_attention_mask)

        def _compute_logits_from_slice(self, decoding_state: Any, params: Any, max_decode_length: int) -> Any:
            tokens_B = decoding_state.cur_token[:, 0]
            logits_BV, cache = forward.decode_step(
                self.module, params, tokens_B, decoding_state.cache, self._end_of_text
            )
            used_V = jnp.arange(logits_BV.shape[-1]) < self.output_vocabulary.vocab_size  # other rows have no token
            return jnp.where(used_V[None], logits_BV, NEVER), cache

        @property
        def _end_of_text(self) -> int:
            return int(self.output_vocabulary.tokenizer.end_ids[0])

    return StarModel


def _without_first_tokens(batch: Batch) -> Batch:
    """No loss on the first token of a text that has no prompt: nothing precedes it, so nothing can predict it."""
    weights_BT = batch["decoder_loss_weights"]
    return {**batch, "decoder_loss_weights": jnp.where(batch["decoder_input_tokens"] > 0, weights_BT, 0)}


def _params_axes(model: decoder.Decoder) -> Any:
    """Our logical axes in t5x's form: the axes of a parameter "kernel" are named "kernel_axes"."""
    specs = flatten_dict(nn.get_partition_spec(placement.abstract_params(model)))
    return unflatten_dict({(*path, f"{name}_axes"): AxisMetadata(tuple(spec)) for (*path, name), spec in specs.items()})
