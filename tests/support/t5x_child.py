"""The process that against_t5x_test.py starts: t5x uses all devices of a process, and here there are four."""

import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from star_jax.config import MeshConfig
from star_jax.contrib.t5x import importing, initializer, task
from star_jax.contrib.t5x import model as t5x_model
from star_jax.distributed import sharding
from star_jax.records import Example, read_jsonl
from star_jax.training import packing
from star_jax.training.loss import unchunked_loss_sums
from star_jax.weights import checkpoint, fingerprint, placement
from tests.support.sampling import TextSampler

LENGTHS = {"inputs": 16, "targets": 16}


def partitioner_of(shape):
    """t5x's PjitPartitioner over the four devices; on CPUs its own mesh is always 1 x all of them."""
    t5x = importing.import_t5x()

    partitioner = t5x.partitioning.PjitPartitioner(1, logical_axis_rules=t5x.partitioning.standard_logical_axis_rules())
    partitioner.__dict__["mesh"] = Mesh(np.array(jax.devices()).reshape(shape), ("data", "model"))
    return partitioner


def rows(name, pack):
    """All examples of a seqio Task as one batch of t5x's."""
    import seqio

    converter = seqio.DecoderFeatureConverter(pack=pack)
    dataset = seqio.get_dataset(
        name, LENGTHS, dataset_split="train", shuffle=False, num_epochs=1, feature_converter=converter
    )
    read = list(dataset.as_numpy_iterator())
    batch = {key: np.stack([row[key] for row in read]) for key in read[0]}
    missing = -len(read) % 4
    return {key: np.pad(value, ((0, missing), (0, 0))) for key, value in batch.items()}, len(read)


def ours(base, examples):
    """(mean loss of the packed examples, greedy token ids for each prompt) by star_jax."""
    model, params = checkpoint.load_model(base)
    tokenizer = checkpoint.load_tokenizer(base)
    packed = packing.pack(examples, tokenizer, sum(LENGTHS.values()), seed=0)
    with sharding.use(sharding.make_mesh(MeshConfig(data=1))):
        rows = packed.take(np.arange(packed.rows))
        total, weight = jax.jit(unchunked_loss_sums, static_argnums=0)(model, params, rows)
    sampler = TextSampler(model, params, tokenizer, max_new_tokens=sum(LENGTHS.values()) - 1, slots=8, queue=64)
    samples = sampler([example.prompt for example in examples])
    return float(total / weight), [list(sample.token_ids) for sample in samples]


def theirs(base, name, shape):
    """The same by t5x on a mesh; tokens up to end-of-text or to the end of the row."""
    t5x = importing.import_t5x()

    partitioner = partitioner_of(shape)
    model = t5x_model.decoder_only(str(base), t5x.optimizers.adamw(1e-3))
    batch, count = rows(name, pack=False)
    state_initializer = initializer.from_base(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes={key: value.shape for key, value in batch.items()},
        input_types={key: value.dtype for key, value in batch.items()},
        partitioner=partitioner,
    )
    state, axes = state_initializer.from_scratch(jax.random.PRNGKey(0)), state_initializer.train_state_axes.params
    rows_axis = partitioner.data_partition_spec
    on_mesh = functools.partial(partitioner.partition, in_axis_resources=(axes, rows_axis), out_axis_resources=None)
    evaluate = on_mesh(lambda params, batch: model.loss_fn(params, batch, None)[0])
    decode = on_mesh(lambda params, batch: model.predict_batch(params, batch))
    several = on_mesh(lambda params, batch: model.predict_batch_with_aux(params, batch, num_decodes=2)[0])
    packed, _ = rows(name, pack=True)
    end = model.output_vocabulary.eos_id

    def cut(ids):
        sampled = [int(i) for i in ids if i > 0]
        return [i - 1 for i in (sampled[: sampled.index(end) + 1] if end in sampled else sampled)]

    return {
        "loss": float(evaluate(state.params, packed)),
        "samples": [cut(ids) for ids in np.asarray(decode(state.params, batch))[:count]],
        "one_of_two": [cut(ids) for ids in np.asarray(several(state.params, batch))[:count]],
        "specs": {placement.leaf_name(path): list(leaf.sharding.spec)
                  for path, leaf in jax.tree_util.tree_flatten_with_path(dict(state.params))[0]},
        "constraints": decode.lower(state.params, batch).as_text().count("sharding_constraint"),
        "fingerprint": fingerprint.fingerprint(
            jax.tree.map(jax.numpy.asarray, jax.device_get(state.params.unfreeze()))),
    }  # fmt: skip


def main(workdir: Path, two_ways: int) -> None:
    """Prints a JSON object with the results of both sides."""
    name = task.register(str(workdir))
    examples = list(read_jsonl(Example, workdir / "iter_001" / "kept.jsonl"))
    loss, samples = ours(workdir / "base", examples)
    prompts = [len(checkpoint.load_tokenizer(workdir / "base").encode(e.prompt)) for e in examples]
    here = {"loss": loss, "samples": samples, "prompts": prompts, "devices": jax.device_count()}
    print(json.dumps({"ours": here, "t5x": theirs(workdir / "base", name, (4 // two_ways, two_ways))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
