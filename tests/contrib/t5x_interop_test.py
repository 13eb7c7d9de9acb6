"""star_jax.contrib.t5x_interop: what t5x trains and decodes is what star_jax would.

The tests against t5x itself look for it installed, or as a checkout that STAR_T5X_DIR names, and skip without it.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.contrib import t5x_interop
from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.records import Example, write_lines
from star_jax.tasks.arithmetic import Arithmetic
from star_jax.tokenizers.simple import ByteTokenizer, SymbolTokenizer
from star_jax.training import packing
from star_jax.weights import checkpoint
from tests.support.models import TINY, numpy_params

ROOT = Path(__file__).parents[2]
WORDS = SymbolTokenizer(Arithmetic.symbols)
END = WORDS.end_of_text
FOUR_HEADS = dataclasses.replace(TINY, n_heads=4)  # t5x splits them over all four devices
GPT2 = dataclasses.replace(FOUR_HEADS, architecture="gpt2", rotary_dim=0)
BOTH = pytest.mark.parametrize("config", [FOUR_HEADS, GPT2], ids=["gptj", "gpt2"])
# Symbol "0" is token id 0, t5x's padding: it begins and ends texts, stands alone, and in long runs.
TEXTS = [
    ("0", "0 0 0"),
    ("0 0 0 0 0 0 0", "0"),
    ("Input: 3 0 + 4", "7 0"),
    ("1 2", "0 1 0"),
    ("9 8 7 6 5 4 3 2 1 0", "4 + 0 , 1"),
    ("Target: 0 0", "</scratch>"),
    ("5", "6"),
    ("0 1 0 1 0 1 0 1", "0 0 0 0 0 0 0 0 0 0"),
]


def example(prompt, completion, **more) -> Example:
    return Example("p", prompt, completion, 1, "sampled", **more)


EXAMPLES = [example(*texts) for texts in TEXTS]


def params_of(config) -> decoder.Params:
    """Random weights, of a seed under which greedy completions hold id 0 and end-of-text among others."""
    seed, scale = (2, 0.8) if config.is_gpt2 else (28, 0.6)
    return jax.tree.map(jnp.asarray, numpy_params(config, seed, scale))


def make_run(workdir: Path, config=FOUR_HEADS, examples=EXAMPLES) -> Path:
    """A run's directory as far as t5x needs it: the base with its tokenizer, and what one iteration kept."""
    checkpoint.save_model(workdir / "base", decoder.GPT(config), params_of(config), WORDS)
    (workdir / "iter_001").mkdir()
    (workdir / "iter_001" / "kept.jsonl").write_text(write_lines(examples))
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("t5x") / "run")


@pytest.fixture(scope="module")
def t5x_environment() -> dict[str, str]:
    """Environment of a process with t5x and four devices."""
    folder = os.environ.get("STAR_T5X_DIR", "")
    if not (Path(folder) / "t5x").is_dir() if folder else importlib.util.find_spec("t5x") is None:
        pytest.skip("no t5x: install it (pip install 'star_jax[t5x]') or set STAR_T5X_DIR to a checkout")
    flags = "--xla_force_host_platform_device_count=4"
    paths = os.pathsep.join(filter(None, [str(ROOT), folder, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"}


def full(model, params, ids) -> np.ndarray:
    """Logits of texts in one pass without a cache."""
    return np.asarray(jax.jit(decoder.apply, static_argnums=0)(model, params, jnp.asarray(ids)))


def converted(name, lengths, pack=True):
    """The batch that seqio makes of a Task for a t5x DecoderOnlyModel."""
    import seqio

    dataset = seqio.get_dataset(
        name,
        lengths,
        dataset_split="train",
        shuffle=False,
        num_epochs=1,
        feature_converter=seqio.DecoderFeatureConverter(pack=pack),
    )
    rows = list(dataset.as_numpy_iterator())
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def test_the_vocabulary_is_the_tokenizer_moved_by_one(run):
    import tensorflow as tf

    words = t5x_interop.vocabulary(str(run / "base"))
    text = "0 0 Input: 1 0\n0"
    assert words.encode(text) == [i + 1 for i in WORDS.encode(text)] and min(words.encode(text)) == 1
    texts = tf.data.Dataset.from_tensor_slices([text]).map(words.encode_tf)
    assert [row.tolist() for row in texts.as_numpy_iterator()] == [words.encode(text)]
    padded = [*words.encode(text), words.eos_id, 5, 0, 0]
    assert words.decode(padded) == text
    assert words.decode_tf(tf.constant([padded, [0] * len(padded)])).numpy().tolist() == [text.encode(), b""]
    assert (words.vocab_size, words.eos_id, words.pad_id) == (WORDS.vocab_size + 1, END + 1, 0)
    assert words == t5x_interop.vocabulary(str(run / "base"))
    assert words != type(words)(ByteTokenizer())


def test_a_run_is_a_seqio_task_by_its_directory(run):
    import seqio

    name = t5x_interop.register(str(run))
    assert name == f"star:{run}" and t5x_interop.register(str(run)) == name
    task = seqio.get_mixture_or_task(name)
    assert "/" not in task.name
    read = list(task.get_dataset(None, split="train", shuffle=False).as_numpy_iterator())
    assert len(read) == len(EXAMPLES)
    for row, kept in zip(read, EXAMPLES, strict=True):
        ids, _ = packing.tokenize(kept, WORDS)
        assert [*row["inputs"], *row["targets"]] == (ids + 1).tolist()
        assert row["inputs"].tolist() == [i + 1 for i in WORDS.encode(kept.prompt)]


@pytest.mark.parametrize("pack", [True, False])
def test_no_token_of_id_0_is_lost_and_the_loss_is_on_completions(run, pack):
    """seqio's packer drops every 0 it meets."""
    batch = converted(t5x_interop.register(str(run)), {"inputs": 16, "targets": 16}, pack)
    tokens = [packing.tokenize(kept, WORDS) for kept in EXAMPLES]
    # By texts, for packing may change their order; each weight goes with the token that is predicted.
    wanted = sorted([*(ids + 1), *weights] for ids, weights in tokens)
    segments = batch.get("decoder_segment_ids", (batch["decoder_target_tokens"] > 0).astype(int))
    found = []
    for row in range(len(segments)):
        for segment in range(1, segments[row].max() + 1):
            at = segments[row] == segment
            found.append([*batch["decoder_target_tokens"][row, at], *batch["decoder_loss_weights"][row, at]])
    assert sorted(found) == wanted


def test_too_long_examples_are_left_out_and_not_cut(run, caplog):
    name = t5x_interop.register(str(run))
    batch = converted(name, {"inputs": 7, "targets": 5}, pack=False)
    fitting = [e for e in EXAMPLES if len(WORDS.encode(e.prompt)) <= 7 and len(WORDS.encode(e.completion)) < 5]
    assert 0 < len(batch["decoder_target_tokens"]) == len(fitting) < len(EXAMPLES)
    assert f"{len(EXAMPLES) - len(fitting)} of {len(EXAMPLES)} kept examples exceed" in caplog.text
    with pytest.raises(InputError, match="none of 8 kept examples fits"):
        converted(name, {"inputs": 16, "targets": 1})


def test_the_last_iteration_is_registered_unless_one_is_named(tmp_path):
    import seqio

    workdir = make_run(tmp_path / "run")
    (workdir / "iter_002").mkdir()
    (workdir / "iter_002" / "kept.jsonl").write_text(write_lines(EXAMPLES[:3]))

    def count(name):
        return len(list(seqio.get_mixture_or_task(name).get_dataset(None, split="train").as_numpy_iterator()))

    assert count(t5x_interop.register(str(workdir))) == 3
    first = t5x_interop.register(str(workdir), iteration=1)
    assert first == f"star:{workdir}:1" and count(first) == len(EXAMPLES)
    with pytest.raises(InputError, match=r"iter_007/kept\.jsonl: not there"):
        t5x_interop.register(str(workdir), iteration=7)


@pytest.mark.parametrize(
    "examples, message",
    [([], "holds no examples"), ([example("1", "2 3", unweighted=((0, 1),))], "`unweighted` spans")],
)
def test_what_cannot_be_trained_on_is_refused(tmp_path, examples, message):
    with pytest.raises(InputError, match=message):
        t5x_interop.register(str(make_run(tmp_path / "run", examples=examples)))


@BOTH
def test_the_place_in_front_of_a_text_changes_nothing(run, config):
    """A packed row of t5x's gives the logits of its texts alone, from position 0 on (only GPT-2 can tell)."""
    model, params = decoder.GPT(config), params_of(config)
    batch = converted(t5x_interop.register(str(run)), {"inputs": 16, "targets": 16})
    batch = {key: jnp.asarray(value) for key, value in batch.items()}
    logits = jax.jit(t5x_interop.training_logits, static_argnums=(0, 3))(model, params, batch, END)
    assert logits.shape == (*batch["decoder_target_tokens"].shape, config.vocab_size + 1)
    assert np.all(np.asarray(logits[..., 0]) < -1e8)
    texts = 0
    for row, segments in enumerate(np.asarray(batch["decoder_segment_ids"])):
        for segment in range(1, segments.max() + 1):
            (at,) = np.nonzero(segments == segment)
            ids = np.asarray(batch["decoder_target_tokens"])[row, at] - 1
            alone = full(model, params, np.pad(ids, (0, 32 - len(ids)))[None])[0, : len(ids)]
            # The logits of t5x's place i predict its target i; ours behind token i predict token i + 1.
            np.testing.assert_allclose(logits[row, at[1:], 1:], alone[:-1], atol=1e-4)
            texts += 1
    assert texts == len(EXAMPLES)


@BOTH
def test_cached_steps_equal_the_full_pass(config):
    """Prompts of 1, 3 and 8 tokens in one batch, ids of 0 among them, and one without a prompt."""
    model, params = decoder.GPT(config), params_of(config)
    rng, length, lengths = np.random.default_rng(0), 12, np.array([1, 3, 8, 0])
    ids = rng.integers(0, 4, (4, length)) * rng.integers(0, 2, (4, length))
    place = np.arange(length + 1)
    shifted = np.concatenate([np.zeros((4, 1), int), ids + 1], axis=1)
    causal = (place[None] <= lengths[:, None]).astype(int)
    prefill = jax.jit(t5x_interop.prefilled_cache, static_argnums=0)
    cache, last = prefill(model, params, jnp.asarray(shifted * causal), jnp.asarray(causal))
    assert last.tolist() == lengths.tolist()
    # Without a prompt the text begins with end-of-text.
    texts = np.where((lengths == 0)[:, None], np.concatenate([np.full((4, 1), END), ids[:, :-1]], axis=1), ids)
    wanted = full(model, params, texts)
    step = jax.jit(t5x_interop.step, static_argnums=(0, 4))
    for taken in range(4):
        at = lengths + taken
        tokens = jnp.asarray(shifted[np.arange(4), at])
        logits, cache = step(model, params, tokens, cache, END)
        behind = np.where(lengths == 0, at, at - 1)
        np.testing.assert_allclose(logits[:, 1:], wanted[np.arange(4), behind], atol=1e-4)


def test_texts_beyond_the_positions_are_refused():
    model = decoder.GPT(dataclasses.replace(FOUR_HEADS, max_positions=8))
    tokens = jnp.ones((1, 10), jnp.int32)
    with pytest.raises(InputError, match="texts of 9 tokens do not fit the model's 8 positions"):
        t5x_interop.prefilled_cache(model, params_of(model.config), tokens, tokens)


def test_a_tokenizer_of_more_tokens_than_rows_is_refused(tmp_path):
    model = decoder.GPT(TINY)
    checkpoint.save_model(tmp_path / "base", model, params_of(TINY), ByteTokenizer())
    with pytest.raises(InputError, match="has 20 rows of vocabulary for 257 tokens"):
        t5x_interop.decoder_only(str(tmp_path / "base"), optimizer_def=None)


def test_without_t5x_one_line_says_how_to_get_it(monkeypatch, run):
    monkeypatch.setitem(sys.modules, "t5x", None)
    monkeypatch.setitem(sys.modules, "airio", sys.modules.get("airio"))
    with pytest.raises(InputError, match=r"pip install 'star_jax\[t5x\]'"):
        t5x_interop.decoder_only(str(run / "base"), optimizer_def=None)


def t5x_child(environment, *arguments):
    child = [sys.executable, "-m", "tests.contrib.t5x_child", *map(str, arguments)]
    done = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("config, two_ways", [(FOUR_HEADS, 4), (FOUR_HEADS, 2), (GPT2, 2)], ids=["1x4", "2x2", "gpt2"])
def test_t5x_decodes_and_measures_as_we_do(t5x_environment, tmp_path, config, two_ways):
    workdir = make_run(tmp_path / "run", config)
    both = t5x_child(t5x_environment, workdir, two_ways)
    ours, theirs = both["ours"], both["t5x"]
    assert ours["devices"] == 4
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    room = [32 - prompt for prompt in ours["prompts"]]
    wanted = [ids[:most] for ids, most in zip(ours["drawn"], room, strict=True)]
    assert theirs["drawn"] == wanted and theirs["one_of_two"] == wanted
    drawn = {token for ids in wanted for token in ids}
    assert {0, END} < drawn and len({*ours["prompts"]}) > 4
    assert theirs["fingerprint"] == checkpoint.stored_fingerprint(workdir / "base")
    # Our logical axes under standard_logical_axis_rules: what is wide lies along "model", what is not is whole.
    assert theirs["specs"]["blocks/attention/query"] == [None, None, "model", None]
    assert theirs["specs"]["blocks/mlp/in/kernel"] == [None, None, "model"]
    assert theirs["specs"]["embedding/embedding"] == ["model", None]
    assert theirs["constraints"] > 0


def losses(model_dir: Path) -> list[float]:
    """The loss of each step from t5x's TensorBoard events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(model_dir / "train"))
    events.Reload()
    return [float(make_ndarray(event.tensor_proto)) for event in events.Tensors("loss")]


def train_through_gin(environment, workdir, **bindings):
    values = {
        "RUN": f'"{workdir}"',
        "BASE": f'"{workdir}/base"',
        "MODEL_DIR": f'"{workdir}/t5x"',
        "TRAIN_STEPS": 3,
        "STATS_PERIOD": 1,
        "CHECKPOINT_PERIOD": 3,
        "LEARNING_RATE": 0.003,
        "BATCH_SIZE": 128,  # so many that three batches of the few texts are alike
        "TASK_FEATURE_LENGTHS": "{'inputs': 16, 'targets': 16}",
        **bindings,
    }
    command = [
        sys.executable,
        "-m",
        "star_jax.contrib.t5x_interop",
        "--run_mode=train",
        "--gin_file=configs/t5x_finetune.gin",
    ]
    command += [f"--gin.{name}={value}" for name, value in values.items()]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)


def test_the_gin_file_trains_on_four_devices(t5x_environment, tmp_path):
    workdir = make_run(tmp_path / "run")
    done = train_through_gin(t5x_environment, workdir)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second, third = losses(workdir / "t5x")
    assert first > second > third
    assert (workdir / "t5x" / "checkpoint_3").is_dir()


@pytest.mark.parametrize(
    "bindings, message",
    [
        ({}, "4 does not divide the 2 of blocks/attention/"),  # the tiny model's two heads
        ({"TRAIN_STEPS": "%gin.REQUIRED"}, "TRAIN_STEPS is not set; give --gin.TRAIN_STEPS="),
    ],
)
def test_bad_input_is_one_line(t5x_environment, tmp_path, bindings, message):
    done = train_through_gin(t5x_environment, make_run(tmp_path / "run", TINY), **bindings)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, last.startswith("star_jax: ")) == (2, True) and message in last
    assert "Traceback" not in done.stderr
