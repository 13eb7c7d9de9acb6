"""star_jax.contrib.t5x.vocabulary and .task: what seqio reads of a run."""

from pathlib import Path

import pytest

from star_jax.contrib.t5x import task
from star_jax.contrib.t5x.vocabulary import vocabulary
from star_jax.errors import InputError
from star_jax.tokenizers.simple import ByteTokenizer
from star_jax.training import packing
from tests.support.t5x_runs import EXAMPLES, TOKENIZER, converted, example, make_run, write_kept


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("t5x") / "run")


def test_the_vocabulary_is_the_tokenizer_with_ids_plus_one(run):
    import tensorflow as tf

    words = vocabulary(str(run / "base"))
    text = "0 0 Input: 1 0\n0"
    assert words.encode(text) == [i + 1 for i in TOKENIZER.encode(text)] and min(words.encode(text)) == 1
    texts = tf.data.Dataset.from_tensor_slices([text]).map(words.encode_tf)
    assert [row.tolist() for row in texts.as_numpy_iterator()] == [words.encode(text)]
    padded = [*words.encode(text), words.eos_id, 5, 0, 0]
    assert words.decode(padded) == text
    assert words.decode_tf(tf.constant([padded, [0] * len(padded)])).numpy().tolist() == [text.encode(), b""]
    sizes = (words.vocab_size, words.eos_id, words.pad_id)
    assert sizes == (TOKENIZER.vocab_size + 1, TOKENIZER.end_ids[0] + 1, 0)
    assert words == vocabulary(str(run / "base"))
    assert words != type(words)(ByteTokenizer())


def test_a_run_is_a_seqio_task_named_by_its_directory(run):
    import seqio

    name = task.register(str(run))
    assert name == f"star:{run}" and task.register(str(run)) == name
    registered = seqio.get_mixture_or_task(name)
    assert "/" not in registered.name
    rows = list(registered.get_dataset(None, split="train", shuffle=False).as_numpy_iterator())
    assert len(rows) == len(EXAMPLES)
    for row, kept in zip(rows, EXAMPLES, strict=True):
        ids, _ = packing.tokenize(kept, TOKENIZER)
        assert [*row["inputs"], *row["targets"]] == (ids + 1).tolist()
        assert row["inputs"].tolist() == [i + 1 for i in TOKENIZER.encode(kept.prompt)]


def test_sampled_ids_and_those_of_a_conversation_are_exported(tmp_path):
    """Here they are not those of the texts."""
    import seqio

    kept = example("1 2", "3 4", prompt_ids=(7, 8, 9), token_ids=(0, 5, 0))
    name = task.register(str(make_run(tmp_path / "run", examples=[kept])))
    (row,) = seqio.get_mixture_or_task(name).get_dataset(None, split="train").as_numpy_iterator()
    assert row["inputs"].tolist() == [8, 9, 10]
    assert row["targets"].tolist() == [1, 6, 1, TOKENIZER.end_ids[0] + 1]


def test_no_token_of_id_0_is_lost_and_the_loss_is_on_completions(run):
    """seqio's packer drops zeros."""
    tokens = [packing.tokenize(kept, TOKENIZER) for kept in EXAMPLES]
    expected = sorted([*(ids + 1), *weights] for ids, weights in tokens)  # sorted: packing may reorder the texts
    for pack in (True, False):
        batch = converted(task.register(str(run)), {"inputs": 16, "targets": 16}, pack)
        segments = batch.get("decoder_segment_ids", (batch["decoder_target_tokens"] > 0).astype(int))
        texts = []
        for row in range(len(segments)):
            for segment in range(1, segments[row].max() + 1):
                at = segments[row] == segment
                texts.append([*batch["decoder_target_tokens"][row, at], *batch["decoder_loss_weights"][row, at]])
        assert sorted(texts) == expected, pack


def test_examples_that_are_too_long_are_left_out_and_not_cut(run, caplog):
    name = task.register(str(run))
    batch = converted(name, {"inputs": 7, "targets": 5}, pack=False)
    fits = [e for e in EXAMPLES if len(TOKENIZER.encode(e.prompt)) <= 7 and len(TOKENIZER.encode(e.completion)) < 5]
    assert 0 < len(batch["decoder_target_tokens"]) == len(fits) < len(EXAMPLES)
    assert f"{len(EXAMPLES) - len(fits)} of {len(EXAMPLES)} kept examples exceed" in caplog.text
    with pytest.raises(InputError, match="none of 8 kept examples fits"):
        converted(name, {"inputs": 16, "targets": 1})


def test_the_last_iteration_is_registered_unless_one_is_named(tmp_path):
    import seqio

    workdir = write_kept(make_run(tmp_path / "run"), 2, EXAMPLES[:3])

    def count(name):
        return len(list(seqio.get_mixture_or_task(name).get_dataset(None, split="train").as_numpy_iterator()))

    assert count(task.register(str(workdir))) == 3
    first = task.register(str(workdir), iteration=1)
    assert first == f"star:{workdir}:1" and count(first) == len(EXAMPLES)
    with pytest.raises(InputError, match=r"iter_007/kept\.jsonl: no such file"):
        task.register(str(workdir), iteration=7)


def test_examples_that_t5x_cannot_train_on_are_refused(tmp_path):
    workdir, wrong = make_run(tmp_path / "run"), []
    for examples, message in (
        ([], "has no examples"),
        ([example("1", "2 3", unweighted=((0, 1),))], "`unweighted` spans"),
        ([example("1", "2 3", loss_weight=0.5)], "a `loss_weight` other than 1"),
    ):
        write_kept(workdir, 1, examples)
        try:
            wrong.append((message, task.register(str(workdir))))
        except InputError as error:
            if message not in str(error):
                wrong.append((message, error))
    assert not wrong
