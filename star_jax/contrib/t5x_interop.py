"""A run's model and its kept examples in t5x: its trainer and PjitPartitioner train it, t5x.decoding decodes.

    python -m star_jax.contrib.t5x_interop --run_mode=train --gin_file=configs/t5x_finetune.gin ...

is `python -m t5x.main` with t5x made importable first (`import_t5x`), so any gin file of t5x's runs too.

Two things are not as t5x has them. Its id 0 is padding, and in decoding "not in the prompt", where GPT-2's id 0 is
"!": token i of ours is i + 1 of t5x's, as in data.py. And it puts a 0 in front of each text, where our models begin
with the text's own first token: that place is taken out again (nobody sees it, positions count from behind it), so a
model that t5x has trained is one of ours.
"""

import dataclasses
import functools
import importlib
import logging
import re
import runpy
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.partitioning import AxisMetadata
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, Mesh, PartitionSpec

from star_jax.cli.parser import exit_on_bad_input
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.records import Example, read_jsonl
from star_jax.sampling import kv_cache
from star_jax.training import packing
from star_jax.weights import checkpoint, placement

# The logit of padding and of ids beyond the tokenizer's. Finite: t5x multiplies log-probabilities by zeros.
_NEVER = -1e9

Batch = Mapping[str, jax.Array]


def import_t5x() -> types.ModuleType:
    """t5x, with what two of its imports miss put in place. Raises InputError where it is not installed.

    t5x imports `airio.core`, a second input pipeline that need not be there, for a few isinstance tests; and
    jestimator, which it imports for an optimizer, looks for PartitionSpec where JAX no longer keeps it. What can be
    imported is left as it is.
    """
    try:
        packing.import_seqio()
        pjit: Any = importlib.import_module("jax.experimental.pjit")
        if not hasattr(pjit, "PartitionSpec"):
            pjit.PartitionSpec = PartitionSpec
        _stand_in_for_airio()
        return importlib.import_module("t5x")
    except ImportError as error:
        raise InputError(f"t5x cannot be imported ({error}); pip install 'star_jax[t5x]'") from error


def _stand_in_for_airio() -> None:
    try:
        importlib.import_module("airio.core")
    except Exception:  # an airio that is there may fail in its own imports, with anything
        core: Any = types.ModuleType("airio.core")
        for name in ("AirIODatasetIterator", "DatasetProviderBase", "Task", "Mixture"):  # asked for by isinstance
            setattr(core, name, type(name, (), {}))
        sys.modules.update({"airio": types.ModuleType("airio"), "airio.core": core})


def vocabulary(base: str) -> Any:
    """The tokenizer of a model's directory as a seqio Vocabulary: ids plus one, 0 is padding. Raises InputError."""
    return _vocabulary_class()(checkpoint.load_tokenizer(base))


@functools.cache
def _vocabulary_class() -> type:
    packing.import_seqio()
    import seqio
    import tensorflow as tf

    class TokenizerVocabulary(seqio.Vocabulary):
        """One of our tokenizers, shifted by one."""

        unk_id = None

        def __init__(self, tokenizer: Any) -> None:
            super().__init__()
            self.tokenizer = tokenizer
            self._base_vocab_size = tokenizer.vocab_size + 1
            self.eos_id = self.bos_id = tokenizer.end_of_text + 1

        bos_id = eos_id = _base_vocab_size = None  # abstract properties; set above

        def _encode(self, s: str) -> list[int]:
            return [i + 1 for i in self.tokenizer.encode(s)]

        def _decode(self, ids: Any) -> str:
            return str(self.tokenizer.decode([int(i) - 1 for i in ids if i > 0]))

        def _encode_tf(self, s: Any) -> Any:
            ids = tf.numpy_function(lambda text: np.array(self._encode(text.decode()), np.int32), [s], tf.int32)
            return tf.ensure_shape(ids, [None])

        def _decode_tf(self, ids: Any) -> Any:
            def decode(rows: np.ndarray) -> np.ndarray:
                texts = [self._decode(row).encode() for row in rows.reshape(-1, rows.shape[-1])]
                return np.array(texts, object).reshape(rows.shape[:-1])

            return tf.numpy_function(decode, [ids], tf.string)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, TokenizerVocabulary) and self.tokenizer.spec() == other.tokenizer.spec()

        __hash__ = seqio.Vocabulary.__hash__

    return TokenizerVocabulary


def register(workdir: str, iteration: int | None = None) -> str:
    """Registers what a run kept as a seqio Task with the split "train", and returns the Task's name.

    Inputs (no loss) are an example's prompt, targets (loss) its completion and end-of-text. An example longer than
    the feature lengths it is read with is left out, with a warning that counts them: seqio would cut its end off.

    Args:
      workdir: the run's directory.
      iteration: whose examples; the last that kept some where not given.

    Returns:
      "star:<workdir>", and "star:<workdir>:<iteration>" where that is given. A Task of that name is replaced.

    Raises InputError where the run has no such examples, or they carry loss on parts of a completion only.
    """
    packing.import_seqio()
    import seqio
    import tensorflow as tf

    words = vocabulary(str(Path(workdir) / "base"))
    arrays = [_ids(example, words.tokenizer) for example in _kept(Path(workdir), iteration)]
    features = ("inputs", "targets")

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
        columns = {
            name: tf.RaggedTensor.from_row_lengths(np.concatenate(column), [len(ids) for ids in column])
            for name, column in zip(features, zip(*arrays, strict=True), strict=True)
        }
        return tf.data.Dataset.from_tensor_slices(columns)

    def leave_out_long(rows: Any, sequence_length: Mapping[str, int] | None) -> Any:
        most = {name: (sequence_length or {}).get(name) or 2**31 - 1 for name in features}
        fit = [len(inputs) <= most["inputs"] and len(targets) <= most["targets"] for inputs, targets in arrays]
        if not any(fit):
            raise InputError(f"{workdir}: none of {len(fit)} kept examples fits {sequence_length}; raise these lengths")
        if not all(fit):
            logging.warning("%s: %d of %d kept examples exceed %s", workdir, fit.count(False), len(fit), most)
        return rows.filter(lambda row: tf.reduce_all([tf.size(row[name]) <= most[name] for name in features]))

    name = f"star:{workdir}" if iteration is None else f"star:{workdir}:{iteration}"
    task = seqio.Task(
        # A Task's own name, of which seqio makes names of files, has no slashes; the registry takes any key.
        re.sub(r"[^\w.:]", "_", name),
        source=seqio.FunctionDataSource(dataset, splits=["train"]),
        preprocessors=[leave_out_long],
        output_features={feature: seqio.Feature(words, add_eos=False) for feature in features},
    )
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add_provider(name, task)
    return name


def _kept(workdir: Path, iteration: int | None) -> list[Example]:
    pattern = "iter_*" if iteration is None else f"iter_{iteration:03d}"
    files = sorted(workdir.glob(f"{pattern}/kept.jsonl"))
    if not files:
        raise InputError(f"{workdir}/{pattern}/kept.jsonl: not there; give a run's directory and a finished iteration")
    examples = list(read_jsonl(Example, files[-1]))
    if not examples:
        raise InputError(f"{files[-1]}: holds no examples; give another iteration")
    if any(example.unweighted for example in examples):
        raise InputError(f"{files[-1]}: has examples with `unweighted` spans; t5x has loss on all of a completion")
    return examples


def _ids(example: Example, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets), as data.tokenize makes one text of them."""
    ids, _ = packing.tokenize(example, tokenizer)
    prompt = len(tokenizer.encode(example.prompt))
    return ids[:prompt] + 1, ids[prompt:] + 1


def decoder_only(
    base: str,
    optimizer_def: Any,
    decode_fn: Any = None,
    z_loss: float = 0.0,
    loss_normalizing_factor: Any = "NUM_REAL_TARGET_TOKENS",
    compute_dtype: str = "",
    remat: str = "",
) -> Any:
    """The model of a directory as a t5x DecoderOnlyModel. Its initial variables are random: see `from_base`.

    Args:
      base: what star_jax saved (a run's base/ or iter_NNN/params/, a converted model), or a Hugging Face directory.
      optimizer_def: t5x's, t5x.optimizers.adamw(...) say; None where nothing is trained.
      decode_fn: one of t5x.decoding's; greedy where not given. (t5x's own default, temperature_sample, draws from the
        one likeliest token unless it is given topk=0.)
      z_loss, loss_normalizing_factor: as in t5x; the default is the mean over the batch's completion tokens.
      compute_dtype, remat: as in star_jax.config.ModelConfig; the base's own where not given.

    Raises InputError where the directory holds no model or no tokenizer.
    """
    config, words = checkpoint.load_config(base), vocabulary(base)
    if config.vocab_size < words.tokenizer.vocab_size:
        raise InputError(f"{base}: has {config.vocab_size} rows of vocabulary for {words.tokenizer.vocab_size} tokens")
    config = dataclasses.replace(
        config, compute_dtype=compute_dtype or config.compute_dtype, remat=remat or config.remat
    )
    config.check()
    t5x: Any = import_t5x()
    model = _model_class()(
        module=decoder.GPT(config),
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
        """GPT-J or GPT-2 behind t5x's interface."""

        def get_initial_variables(self, rng: Any, input_shapes: Any, input_types: Any = None) -> Any:
            params = placement.unbox(decoder.init(self.module, rng))
            return flax.core.freeze({"params": params, "params_axes": _params_axes(self.module)})

        def loss_fn(self, params: Any, batch: Batch, dropout_rng: Any) -> Any:
            return super().loss_fn(params, _without_first(batch), dropout_rng)

        def score_batch(self, params: Any, batch: Batch, return_intermediates: bool = False) -> Any:
            return super().score_batch(params, _without_first(batch), return_intermediates)

        def _compute_logits(self, params: Any, batch: Batch, dropout_rng: Any = None, mutable: Any = False) -> Any:
            # dropout_rng: these models have no dropout. mutable: nor do they sow any intermediates.
            logits_BTV = training_logits(self.module, params, batch, self._end)
            return (logits_BTV, {}) if mutable else logits_BTV

        def _compute_kv_cache(self, params: Any, inputs: Any, causal_attention_mask: Any) -> Any:
            return prefilled_cache(self.module, params, inputs, causal_attention_mask)

        def _compute_logits_from_slice(self, decoding_state: Any, params: Any, max_decode_length: int) -> Any:
            tokens_B1, words = decoding_state.cur_token, self.output_vocabulary
            logits_BV, cache = step(self.module, params, tokens_B1[:, 0], decoding_state.cache, self._end)
            used_V = jnp.arange(logits_BV.shape[-1]) < words.vocab_size  # a table may have rows of no token
            return jnp.where(used_V[None], logits_BV, _NEVER), cache

        @property
        def _end(self) -> int:
            return int(self.output_vocabulary.tokenizer.end_of_text)

    return StarModel


def training_logits(model: decoder.GPT, params: decoder.Params, batch: Batch, end_of_text: int) -> jax.Array:
    """Logits [B, T, 1 + V] over t5x's ids for a batch of seqio.DecoderFeatureConverter's, packed or not."""
    inputs_BT = batch["decoder_input_tokens"]
    segments_BT = batch.get("decoder_segment_ids", jnp.ones_like(inputs_BT))
    positions_BT = batch.get("decoder_positions", jnp.broadcast_to(jnp.arange(inputs_BT.shape[1]), inputs_BT.shape))
    # The place in front of a text is segment 0, as padding is.
    segments_BT, positions_BT = jnp.where(inputs_BT > 0, segments_BT, 0), jnp.maximum(positions_BT - 1, 0)
    return _over_t5x_ids(decoder.apply(model, params, _ours(inputs_BT, end_of_text), positions_BT, segments_BT))


def prefilled_cache(
    model: decoder.GPT, params: decoder.Params, inputs_BT: jax.Array, causal_BT: jax.Array
) -> tuple[dict[str, Any], jax.Array]:
    """KV and values of all but the last token of each prompt, which the first `step` takes.

    Args:
      inputs_BT: t5x's ids: a place in front, the prompt, zeros. T is the length up to which t5x decodes.
      causal_BT: 1 on the place in front and on the prompt. (Its length is read here: an id may be anything.)

    Returns:
      (a cache for `step`, the place [B] of each prompt's last token).

    Raises InputError where T exceeds the model's positions.
    """
    length = inputs_BT.shape[1]
    if length - 1 > model.config.max_positions:
        raise InputError(
            f"texts of {length - 1} tokens do not fit the model's {model.config.max_positions} positions; "
            "give smaller feature lengths"
        )
    last_B = jnp.sum(causal_BT != 0, axis=1) - 1
    cached_B = jnp.maximum(last_B - 1, 0)
    bodies_BT = jax.vmap(jnp.roll)(_ours(inputs_BT, 0), length - last_B)  # left-padded, without the last token
    layers = kv_cache.encode_rows(model, decoder.split_layers(params), bodies_BT, cached_B)
    # As many slots as places: the keys as they come are a ring that is written at slot 0 next. t5x repeats and picks
    # rows of every leaf, so the ring's clock is kept once a row.
    cache = {"layers": layers, "time_B": jnp.zeros_like(cached_B), "filled_B": cached_B}
    return cache, last_B


def step(
    model: decoder.GPT, params: decoder.Params, tokens_B: jax.Array, cache: Mapping[str, Any], end_of_text: int
) -> tuple[jax.Array, dict[str, Any]]:
    """One token of t5x's a row: (logits [B, 1 + V] over t5x's ids, the cache one step on)."""
    ring = kv_cache.RingCache(cache["layers"], cache["time_B"][0], cache["filled_B"])
    per_layer = decoder.split_layers(params)
    prefix = kv_cache.encode_prefix(model, per_layer, jnp.zeros((0,), jnp.int32), jnp.asarray(0))
    # An empty prompt begins with end-of-text, as GPT-2 writes without one; rows that have ended may take anything.
    logits_BV, ring = kv_cache.decode_step(model, per_layer, _ours(tokens_B, end_of_text), ring, prefix)
    cache = {"layers": ring.layers, "time_B": cache["time_B"] + 1, "filled_B": ring.filled_B}
    return _over_t5x_ids(logits_BV), cache


def _ours(ids: jax.Array, instead_of_padding: int) -> jax.Array:
    return jnp.where(ids > 0, ids - 1, instead_of_padding)


def _over_t5x_ids(logits: jax.Array) -> jax.Array:
    return jnp.pad(logits, [(0, 0)] * (logits.ndim - 1) + [(1, 0)], constant_values=_NEVER)


def _without_first(batch: Batch) -> Batch:
    """No loss on a text's first token where it has no prompt: nothing precedes it, so nothing can predict it."""
    weights_BT = batch["decoder_loss_weights"]
    return {**batch, "decoder_loss_weights": jnp.where(batch["decoder_input_tokens"] > 0, weights_BT, 0)}


def _params_axes(model: decoder.GPT) -> Any:
    """Our logical axes in t5x's form: the axes of a parameter "kernel" are called "kernel_axes"."""
    specs = flatten_dict(nn.get_partition_spec(placement.abstract_params(model)))
    return unflatten_dict({(*path, f"{name}_axes"): AxisMetadata(tuple(spec)) for (*path, name), spec in specs.items()})


def from_base(*, init_fn: Any, partitioner: Any, **options: Any) -> Any:
    """A t5x TrainStateInitializer whose "from scratch" is the weights in the directory that the model was made from.

    For `train.train_state_initializer_cls`; `init_fn` is `get_initial_variables` of a `decoder_only` model. A
    checkpoint of t5x's own goes first, as ever: in model_dir, or given to be restored. Raises InputError where the
    parameters do not divide over the partitioner's mesh.
    """
    t5x: Any = import_t5x()
    model = init_fn.__self__
    try:  # now, and not in `from_scratch`: t5x has threads by then that do not end well
        placement.param_shardings(model.module, _our_mesh(partitioner.mesh))
    except InputError as error:
        reason = str(error).split(": ", 1)[1]
        raise InputError(f"num_partitions (of CPUs t5x takes all devices, whatever it is): {reason}") from error

    class FromBase(t5x.utils.TrainStateInitializer):
        def from_scratch(self, init_rng: Any) -> Any:
            state = super().from_scratch(init_rng)
            return state.replace_params(base_params(model.base, state.params))

    return FromBase(init_fn=init_fn, partitioner=partitioner, **options)


def base_params(base: str, like: Any) -> Any:
    """A directory's weights in place, and in the dtype, of `like`: parameters on a t5x mesh, which are given up."""
    first = jax.tree.leaves(like)[0]
    places = jax.tree.map(lambda leaf: leaf.sharding, like)
    jax.tree.map(lambda leaf: leaf.delete(), like)
    _, params = checkpoint.load_model(base, _our_mesh(first.sharding.mesh), first.dtype)
    return jax.tree.map(jax.device_put, flax.core.freeze(params), places)


def _our_mesh(mesh: Mesh) -> Mesh:
    """The devices of a t5x mesh in the same order by our names: its "model" is "tensor", the rest is "data"."""
    grid = mesh.devices.reshape(-1, 1, mesh.shape["model"])
    return Mesh(grid, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * grid.ndim)


def main() -> None:
    """The command line at the head of this file."""
    import_t5x()
    try:
        runpy.run_module("t5x.main", run_name="__main__", alter_sys=True)
    except InputError as error:
        raise InputError(str(error).splitlines()[0]) from error  # gin adds lines that say where it was
    except ValueError as error:
        name, missing, _ = str(error).partition("/macro.value set to `%gin.REQUIRED`")
        if not missing:
            raise
        raise InputError(f"{name} is not set; give --gin.{name}=...") from error


if __name__ == "__main__":
    exit_on_bad_input(main)
