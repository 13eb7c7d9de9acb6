"""star_jax.training.packing: no token is lost, moved or mixed on the way through seqio's packer, whatever its id."""

import collections
import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.errors import InputError
from star_jax.models import families
from star_jax.records import Example
from star_jax.tasks import seqio_task
from star_jax.tokenizers import load_directory
from star_jax.tokenizers.simple import ByteTokenizer
from star_jax.training import loss, packing
from tests.support.models import TINY, numpy_params
from tests.support.tokenizers import trained

BYTES = ByteTokenizer()
SEPARATOR = BYTES.end_ids[0]


def example(prompt="", completion="", unweighted=(), **fields) -> Example:
    return Example("t-0", prompt, completion, 1, "sampled", unweighted=tuple(unweighted), **fields)


def some_examples(count: int, seed: int = 0, longest: int = 40) -> list[Example]:
    """Texts of random lengths; every third one is full of NUL bytes, token 0 of the byte tokenizer."""
    rng = np.random.default_rng(seed)
    alphabets = ("\0", "\0!a", "ab !\n")

    def text(number: int, size: int) -> str:
        alphabet = alphabets[number % 3]
        return "".join(alphabet[k] for k in rng.integers(len(alphabet), size=size))

    lengths = [(int(rng.integers(1, longest // 2)), int(rng.integers(0, longest // 2))) for _ in range(count)]
    return [example(text(i, prompt), text(i, completion)) for i, (prompt, completion) in enumerate(lengths)]


def segments(rows: packing.PackedRows) -> list[tuple[bytes, bytes]]:
    """(tokens, weights) of every segment; fails where a row is not segments 1, 2, ... and then padding."""
    pairs = []
    for r in range(rows.rows):
        ids_T = rows.segment_ids_RT[r]
        real = int((ids_T > 0).sum())
        assert real > 0 and (ids_T[real:] == 0).all()
        assert not rows.tokens_RT[r, real:].any() and not rows.weights_RT[r, real:].any()
        assert (np.diff(ids_T[:real]) >= 0).all() and set(ids_T[:real]) == set(range(1, ids_T.max() + 1))
        for segment in range(1, ids_T.max() + 1):
            mine = ids_T == segment
            assert (rows.positions_RT[r, mine] == np.arange(mine.sum())).all()
            pairs.append((rows.tokens_RT[r, mine].tobytes(), rows.weights_RT[r, mine].tobytes()))
    return pairs


def expected(examples, tokenizer) -> collections.Counter:
    pairs = (packing.tokenize(e, tokenizer) for e in examples)
    return collections.Counter((ids.tobytes(), weights.astype(np.float32).tobytes()) for ids, weights in pairs)


TOKENIZED = [
    (example("ab", "cd"), [97, 98, 99, 100, SEPARATOR], [0, 0, 1, 1, 1]),
    (example("a", ""), [97, SEPARATOR], [0, 1]),
    (example("", "cd"), [99, 100, SEPARATOR], [0, 1, 1]),  # nothing precedes the first token
    (example("", ""), [SEPARATOR], [0]),
    (example("\0", "\0\0"), [0, 0, 0, SEPARATOR], [0, 1, 1, 1]),
    (example("a:", "b:c"), [97, 58, 98, 58, 99, SEPARATOR], [0, 0, 1, 1, 1, 1]),  # a colon is no border
    (example("é", "è"), [195, 169, 195, 168, SEPARATOR], [0, 0, 1, 1, 1]),
    (example("a", "bcde", [(1, 3)]), [97, 98, 99, 100, 101, SEPARATOR], [0, 1, 0, 0, 1, 1]),
    (example("a", "bcde", [(0, 1), (3, 4)]), [97, 98, 99, 100, 101, SEPARATOR], [0, 0, 1, 1, 0, 1]),
    (example("a", "bc", [(0, 2)]), [97, 98, 99, SEPARATOR], [0, 0, 0, 1]),
    (example("a", "bc", token_ids=(99, 98)), [97, 99, 98, SEPARATOR], [0, 1, 1, 1]),  # as sampled
    (example("a", "b", loss_weight=0.3), [97, 98, SEPARATOR], [0, np.float32(0.3), np.float32(0.3)]),
    (example("", "bc", [(0, 1)], loss_weight=2.5), [98, 99, SEPARATOR], [0, 2.5, 2.5]),
]


def test_loss_is_on_the_completion_and_the_end_of_text():
    wrong = []
    for one, tokens, weights in TOKENIZED:
        ids, loss_weights = packing.tokenize(one, BYTES)
        if (ids.tolist(), loss_weights.tolist(), ids.dtype, loss_weights.dtype) != (
            tokens,
            weights,
            np.int32,
            np.float32,
        ):
            wrong.append((one, ids, loss_weights))
    assert not wrong


def test_a_document_begins_with_bos_and_a_completion_without_the_space_of_a_beginning():
    tokenizer = trained("llama2")
    ids, weights = packing.tokenize(example("Q: a\nA:", " b"), tokenizer)
    prompt_ids, completion_ids = tokenizer.encode("Q: a\nA:"), tokenizer.encode_continuation(" b")
    assert ids.tolist() == [tokenizer.bos_id, *prompt_ids, *completion_ids, tokenizer.end_ids[0]]
    assert weights.tolist() == [0] * (1 + len(prompt_ids)) + [1] * (len(completion_ids) + 1)
    assert tokenizer.decode(ids.tolist()) == " Q: a\nA: b"  # the space of a document's beginning


def test_the_prompt_s_stored_ids_are_used():
    ids, weights = packing.tokenize(example("ab", "c", prompt_ids=(7, 8, 9)), BYTES)
    assert ids.tolist() == [7, 8, 9, 99, SEPARATOR] and weights.tolist() == [0, 0, 0, 1, 1]


def test_loss_weights_survive_packing_bit_for_bit():
    """Float32 numbers that no shorter type holds, one for each example, through seqio."""
    rng = np.random.default_rng(0)
    examples = [
        dataclasses.replace(e, loss_weight=float(np.float32(rng.uniform(0, 3)))) for e in some_examples(40, seed=3)
    ]
    rows = packing.pack(examples, BYTES, 64, seed=0)
    assert collections.Counter(segments(rows)) == expected(examples, BYTES)
    weights = {float(w) for w in np.unique(rows.weights_RT)}
    assert weights == {0.0, *(e.loss_weight for e in examples)} and len(weights) == 41


def test_half_the_weight_is_half_the_summed_loss():
    model = families.build(dataclasses.replace(TINY, vocab_size=257))
    params = jax.tree.map(jax.numpy.asarray, numpy_params(model.spec))
    sums = {}
    for weight in (1.0, 0.5):
        examples = [dataclasses.replace(e, loss_weight=weight) for e in some_examples(6, seed=1)]
        rows = packing.pack(examples, BYTES, 64, seed=0)
        batch = {name: jax.numpy.asarray(array) for name, array in rows.take(np.arange(rows.rows)).items()}
        sums[weight] = jax.jit(loss.unchunked_loss_sums, static_argnums=0)(model, params, batch)
    np.testing.assert_allclose(sums[0.5], 0.5 * np.array(sums[1.0]), rtol=1e-6)


def test_every_example_is_in_one_row_bit_for_bit():
    examples, seed = some_examples(60, 0), 0
    rows = packing.pack(examples, BYTES, 64, seed)
    assert collections.Counter(segments(rows)) == expected(examples, BYTES)
    assert rows.too_long == 0 and rows.tokens_RT.shape[1] == 64
    assert [rows.tokens_RT.dtype, rows.segment_ids_RT.dtype, rows.weights_RT.dtype] == [np.int32, np.int32, np.float32]


@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=40),
    row_tokens=st.integers(1, 64),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_packing_for_any_lengths(sizes, row_tokens, seed):
    """Each example that fits is in one row, bit for bit; the rows know whose they are; few are filled badly."""
    texts = [("p" * prompt, f"{i:02d}" + "c" * completion) for i, (prompt, completion) in enumerate(sizes)]
    examples = [Example(f"t-{text[:2]}", prompt, text, 1, "sampled") for prompt, text in texts]
    fitting = [e for e in examples if len(e.prompt) + len(e.completion) < row_tokens]
    if not fitting:
        with pytest.raises(InputError, match=f"none of {len(examples)} training examples fits"):
            packing.pack(examples, BYTES, row_tokens, seed)
        return
    rows = packing.pack(examples, BYTES, row_tokens, seed)
    assert rows.too_long == len(examples) - len(fitting)
    assert collections.Counter(segments(rows)) == expected(fitting, BYTES)
    for tokens_T, segments_T, ids in zip(rows.tokens_RT, rows.segment_ids_RT, rows.problem_ids, strict=True):
        packed_texts = [BYTES.decode(tokens_T[segments_T == n].tolist()) for n in range(1, segments_T.max() + 1)]
        assert [name.removeprefix("t-") for name in ids] == [text.lstrip("p")[:2] for text in packed_texts]
    real = sum(len(e.prompt) + len(e.completion) + 1 for e in fitting)
    # Best-fit leaves at most one row half empty, and each batch that next-fit reads may cost a row more.
    assert rows.rows <= 2 * real // row_tokens + 1 + len(fitting) // row_tokens


def test_packing_by_hand():
    rows = packing.pack([example("ab", "c"), example("d", "e")], BYTES, 9, seed=0)
    assert rows.rows == 1
    assert rows.segment_ids_RT[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 0, 0]  # the longest first
    assert rows.tokens_RT[0].tolist() == [97, 98, 99, SEPARATOR, 100, 101, SEPARATOR, 0, 0]
    assert rows.positions_RT[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 0]
    assert rows.weights_RT[0].tolist() == [0, 0, 1, 1, 0, 1, 1, 0, 0]


def test_exclamation_marks_survive_gpt_2s_vocabulary(shared_dir):
    """Token 0 is "!" there and padding to seqio: its packer used to drop every one of them without a word."""
    tokenizer = load_directory(shared_dir / "data" / "gpt2")
    assert tokenizer.encode("!") == [0]
    texts = ["!", "a!b!", "! ! !", "!?!", "Hello! World!\n!"]
    examples = [example(p, c) for p, c in itertools.product(texts, texts)]
    rows = packing.pack(examples, tokenizer, 48, seed=0)
    assert collections.Counter(segments(rows)) == expected(examples, tokenizer)
    zeros = sum(packing.tokenize(e, tokenizer)[0].tolist().count(0) for e in examples)
    assert zeros > 50 and int(((rows.tokens_RT == 0) & (rows.segment_ids_RT > 0)).sum()) == zeros


def test_texts_of_every_byte_come_back_from_their_packed_tokens(shared_dir):
    """All bytes that UTF-8 has, each next to a "!", through GPT-2's tokens and packing and back to text."""
    tokenizer = load_directory(shared_dir / "data" / "gpt2")
    signs = [chr(i) for i in [*range(0x800), *range(0x800, 0xD800, 97), *range(0xE000, 0x110000, 4099)]]
    assert {b for sign in signs for b in sign.encode()} == {*range(256)} - {0xC0, 0xC1, *range(0xF5, 0x100)}
    texts = ["!".join(signs[i : i + 8]) + "!" for i in range(0, len(signs), 8)]
    examples = [example(a, b) for a, b in zip(texts[::2], texts[1::2], strict=False)]
    rows = packing.pack(examples, tokenizer, 256, seed=0)
    packed_texts = []
    for tokens_T, segments_T in zip(rows.tokens_RT, rows.segment_ids_RT, strict=True):
        packed_texts += [tokenizer.decode(tokens_T[segments_T == n].tolist()) for n in range(1, segments_T.max() + 1)]
    assert sorted(packed_texts) == sorted(e.prompt + e.completion for e in examples) and rows.too_long == 0


def test_nothing_but_nul_bytes_survives():
    examples = [example("\0" * n, "\0" * n) for n in range(1, 12)]
    rows = packing.pack(examples, BYTES, 32, seed=0)
    assert collections.Counter(segments(rows)) == expected(examples, BYTES)


def test_what_exceeds_a_row_is_left_out_and_counted():
    fitting = [example("a" * 5, "b" * 6), example("a", "b")]  # 12 tokens, exactly a row, and 3
    rows = packing.pack([example("a" * 6, "b" * 6), *fitting, example("a" * 99, "b")], BYTES, 12, seed=0)
    assert rows.too_long == 2
    assert collections.Counter(segments(rows)) == expected(fitting, BYTES)


def test_no_example_that_fits_is_bad_input():
    for examples in ([], [example("a" * 20, "b")]):
        with pytest.raises(InputError, match=rf"none of {len(examples)} training examples fits a row of 12 tokens"):
            packing.pack(examples, BYTES, 12, seed=0)


def test_rows_are_at_most_those_of_next_fit():
    """The open row is closed after every `row_tokens` examples: one row more for each such batch but the last."""
    wrong = []
    for count, longest, seed in [(64, 16, 0), (64, 60, 1), (150, 16, 2)]:
        examples = some_examples(count, seed, longest)
        lengths = [len(packing.tokenize(e, BYTES)[0]) for e in examples]
        next_fit, room = 0, 0
        for length in lengths:
            if length > room:
                next_fit, room = next_fit + 1, 64
            room -= length
        rows = packing.pack(examples, BYTES, 64, seed).rows
        if not -(-sum(lengths) // 64) <= rows <= next_fit + (count - 1) // 64:
            wrong.append((count, longest, seed, rows, next_fit))
    assert not wrong


def test_packing_is_fixed_by_its_seed():
    examples = some_examples(60)
    first, again, other = (packing.pack(examples, BYTES, 64, seed, name=f"s{seed}").tokens_RT for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def numbered_rows(count: int) -> packing.PackedRows:
    """Rows whose tokens are their own number."""
    tokens_RT = np.repeat(np.arange(count, dtype=np.int32)[:, None], 3, axis=1)
    ones_RT = np.ones_like(tokens_RT)
    names = tuple((str(row),) for row in range(count))
    return packing.PackedRows(tokens_RT, ones_RT, ones_RT, ones_RT.astype(np.float32), 0, names)


def numbers(rows, batch_rows, seed, start, steps) -> list[list[int]]:
    stream = itertools.islice(packing.batches(rows, batch_rows, seed, start), steps)
    return [batch["tokens_RT"][:, 0].tolist() for batch in stream]


def test_every_row_comes_once_an_epoch_and_no_batch_is_short():
    for rows, batch_rows in [(12, 4), (10, 4), (7, 7), (3, 8), (1, 4)]:
        batches = numbers(numbered_rows(rows), batch_rows, seed=0, start=0, steps=6 * rows)
        assert {len(batch) for batch in batches} == {batch_rows}, (rows, batch_rows)
        stream = [n for batch in batches for n in batch]
        epochs = [stream[i : i + rows] for i in range(0, len(stream) - rows + 1, rows)]
        assert all(sorted(epoch) == list(range(rows)) for epoch in epochs), (rows, batch_rows)
        assert rows < 5 or len({tuple(epoch) for epoch in epochs}) > 1, (rows, batch_rows)  # not always in one order


def test_a_resumed_stream_is_the_same_stream():
    for rows, batch_rows in [(10, 4), (3, 8), (1, 1)]:
        whole = numbers(numbered_rows(rows), batch_rows, seed=5, start=0, steps=20)
        for start in range(20):
            resumed = numbers(numbered_rows(rows), batch_rows, seed=5, start=start, steps=20 - start)
            assert resumed == whole[start:], (rows, batch_rows, start)


def test_the_order_of_batches_is_fixed_by_the_seed():
    first, other = (numbers(numbered_rows(30), 5, seed, 0, 6) for seed in (0, 1))
    assert first != other


def test_a_batch_holds_every_array_of_its_rows():
    rows = packing.pack(some_examples(30), BYTES, 64, seed=0)
    batch = rows.take(np.array([2, 0]))
    assert set(batch) == {"tokens_RT", "positions_RT", "segment_ids_RT", "weights_RT"}
    for name, values in batch.items():
        assert np.array_equal(values, getattr(rows, name)[[2, 0]])


def test_rows_are_those_of_seqio_s_own_packer():
    """Ids from 1 on, which it does not drop."""
    seqio = seqio_task.import_seqio()
    import tensorflow as tf

    rng, size = np.random.default_rng(0), 16
    arrays = [np.arange(1, n + 1, dtype=np.int32) + 100 * i for i, n in enumerate(rng.integers(1, size + 1, 50))]
    source = tf.data.Dataset.from_generator(
        lambda: ({"ids": a} for a in arrays), output_signature={"ids": tf.TensorSpec((None,), tf.int32)}
    )
    theirs = list(seqio.utils.trim_and_pack_dataset(source, {"ids": size}).as_numpy_iterator())
    ours = packing.fill_rows({"ids": np.concatenate(arrays)}, np.array([len(a) for a in arrays]), size)
    assert set(ours) == set(theirs[0]) == {"ids", "ids_segment_ids", "ids_positions"}
    for name, values in ours.items():
        assert values.dtype == np.int32
        np.testing.assert_array_equal(values, np.stack([row[name] for row in theirs]))
