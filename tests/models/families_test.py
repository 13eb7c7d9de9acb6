"""Every family computes what transformers computes, and each attribute of its spec is needed for that."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from star_jax.config import MeshConfig
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import decoder, families
from star_jax.models.decoder import Decoder
from star_jax.models.spec import Rope
from star_jax.training import loss
from star_jax.weights import placement
from star_jax.weights.sources import hf, loader
from tests.support.families import CASES, tiny_spec, torch_case
from tests.support.models import TINY, numpy_params
from tests.support.weights import libraries

LENGTH = 600
QUICK = ("llama 3.2", "gemma3")
ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]

forward = jax.jit(decoder.apply, static_argnums=0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Case -> (directory that transformers wrote, its model), written once."""

    @functools.cache
    def write(case):
        theirs = torch_case(case)
        directory = tmp_path_factory.mktemp("hf") / "model"
        theirs.save_pretrained(directory)
        return directory, theirs

    return write


def tokens(vocabulary, rows=1):
    return np.random.default_rng(3).integers(0, vocabulary, (rows, LENGTH)).astype(np.int32)


def load(directory):
    """(model, parameters, source)."""
    source = hf.HfSource(directory)
    model, params = loader.load(source, sharding.make_mesh(MeshConfig(data=1)), "float32")
    return model, params, source


def torch_logits(theirs, tokens_BT):
    torch, _ = libraries()
    with torch.no_grad():
        return theirs(torch.from_numpy(tokens_BT).long()).logits.numpy()


@jax.jit
def _mean_loss(logits_BTV, tokens_BT):
    return optax.softmax_cross_entropy_with_integer_labels(logits_BTV[:, :-1], tokens_BT[:, 1:]).mean()


@functools.partial(jax.jit, static_argnums=0)
def gradients_of(model, params, tokens_BT):
    """Of the mean next-token loss, by the packed pass that training uses."""
    positions_BT = jnp.broadcast_to(jnp.arange(LENGTH), tokens_BT.shape)

    def loss(params):
        args = tokens_BT, positions_BT, jnp.ones_like(tokens_BT)
        return _mean_loss(decoder.call(model, params, *args, method="packed_logits"), tokens_BT)

    return jax.grad(loss)(params)


@pytest.mark.parametrize("case", ALL)
def test_logits_are_those_of_transformers(case, saved, record_property):
    directory, theirs = saved(case)
    model, params, _ = load(directory)
    tokens_BT = tokens(model.spec.vocab_size)
    expected, actual = torch_logits(theirs, tokens_BT), np.asarray(forward(model, params, tokens_BT))
    record_property("logits", float(np.max(np.abs(actual - expected))))
    assert 3 < np.max(np.abs(expected)) < 60
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ALL)
def test_gradients_are_those_of_transformers(case, saved, record_property):
    """Per leaf, relative to its largest value, through the packed attention of training."""
    torch, _ = libraries()
    directory, theirs = saved(case)
    model, params, source = load(directory)
    tokens_BT = tokens(model.spec.vocab_size)
    theirs.zero_grad()
    labels = torch.from_numpy(tokens_BT).long()
    logits = theirs(labels).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    of_file = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    gradients = gradients_of(model, params, tokens_BT)
    wrong = {}
    for leaf, layer, shape in loader.tensors(model):
        expected = source.mapping(leaf).from_file(of_file[source.name(leaf, layer)], shape)
        actual = functools.reduce(lambda tree, key: tree[key], leaf.split("/"), gradients)
        actual = np.asarray(actual if layer is None else actual[layer])
        error = float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))
        if not error < 1e-4:
            wrong[leaf, layer] = error
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_bfloat16_is_near_float32(case, saved, record_property):
    """Relative to the norm of all logits."""
    directory, theirs = saved(case)
    model, params, _ = load(directory)
    tokens_BT = tokens(model.spec.vocab_size)
    expected = torch_logits(theirs, tokens_BT)
    actual = np.asarray(forward(model.clone(compute_dtype="bfloat16"), params, tokens_BT))
    error = float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
    record_property("bfloat16", error)
    assert error < 2e-2


# Each attribute of a spec -> the cases whose logits change if it is not handled.
HANDLED = {
    "llama3 scaling": (("llama 3.2",), lambda spec: _with_rope(spec, scaling="")),
    "linear scaling": (("llama with biases", "gemma3, long context"), lambda spec: _with_rope(spec, scaling="")),
    "theta": (("smollm2", "qwen3", "olmo2", "gemma3"), lambda spec: _with_rope(spec, theta=2e4)),
    "half-split layout": (("qwen2.5",), lambda spec: _with_rope(spec, layout="interleaved")),
    "window": (
        ("mistral, short window", "qwen2, window", "gemma2, short window", "gemma3"),
        lambda spec: dataclasses.replace(spec, window=0, local_layers=()),
    ),
    "window's length": (("gemma3",), lambda spec: dataclasses.replace(spec, window=spec.window - 1)),
    "which layers are local": (
        ("qwen2, window", "gemma2, short window", "gemma3"),
        lambda spec: dataclasses.replace(spec, local_layers=tuple(not local for local in spec.local_layers)),
    ),
    "local theta": (("gemma3", "gemma3, long context"), lambda spec: dataclasses.replace(spec, local_rope=Rope())),
    "q/k norm": (("qwen3", "gemma3", "olmo2"), lambda spec: dataclasses.replace(spec, qk_norm="")),
    "biases of q, k and v": (
        ("llama with biases", "qwen2.5"),
        lambda spec: dataclasses.replace(spec, qkv_bias=False),
    ),
    "bias after attention": (("llama with biases",), lambda spec: dataclasses.replace(spec, out_bias=False)),
    "biases of the MLP": (("llama with biases",), lambda spec: dataclasses.replace(spec, mlp_bias=False)),
    "1 + scale": (("gemma2", "gemma3"), lambda spec: dataclasses.replace(spec, norm="rms")),
    "norms after": (("gemma2", "gemma3"), lambda spec: dataclasses.replace(spec, norm_position="before")),
    "norm epsilon": (("llama 3.2", "olmo2"), lambda spec: dataclasses.replace(spec, norm_eps=1e-3)),
    "embedding scale": (("gemma2", "gemma3"), lambda spec: dataclasses.replace(spec, embedding_scale=1.0)),
    "attention scale": (("gemma2", "gemma3"), lambda spec: dataclasses.replace(spec, attention_scale=0.0)),
    "soft cap of the scores": (
        ("gemma2, short window",),
        lambda spec: dataclasses.replace(spec, attention_softcap=0.0),
    ),
    "soft cap of the logits": (("gemma2",), lambda spec: dataclasses.replace(spec, logit_softcap=0.0)),
    "gate of the MLP": (("gemma2",), lambda spec: dataclasses.replace(spec, mlp="swiglu")),
    "silu": (("llama 3.2",), lambda spec: dataclasses.replace(spec, mlp="geglu")),
}


def _with_rope(spec, **changes):
    return dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("attribute", HANDLED)
def test_a_spec_without_the_attribute_has_other_logits(attribute, saved):
    """So the tests against transformers fail if its handling is dropped: they allow a tenth of this difference."""
    cases, without = HANDLED[attribute]
    unchanged = []
    for case in cases:
        directory, _ = saved(case)
        model, params, _ = load(directory)
        tokens_BT = tokens(model.spec.vocab_size)
        changed = forward(model.clone(spec=without(model.spec)), params, tokens_BT)
        if not np.max(np.abs(np.asarray(changed) - np.asarray(forward(model, params, tokens_BT)))) > 1e-3:
            unchanged.append(case)
    assert not unchanged


@pytest.mark.parametrize("case", ALL)
def test_an_export_has_the_same_bits_and_transformers_computes_the_same_from_it(case, saved, tmp_path):
    _, transformers = libraries()
    directory, theirs = saved(case)
    model, params, source = load(directory)
    hf.save(tmp_path / "export", model.spec, params, None, np.dtype("float32"))
    exported = hf.HfSource(tmp_path / "export")
    assert exported.spec == model.spec
    for leaf, layer, _ in loader.tensors(model):
        assert source.name(leaf, layer) == exported.name(leaf, layer)
        np.testing.assert_array_equal(source.read(leaf, layer), exported.read(leaf, layer))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", attn_implementation="eager").eval()
    tokens_BT = tokens(model.spec.vocab_size)
    np.testing.assert_array_equal(torch_logits(again, tokens_BT), torch_logits(theirs, tokens_BT))


SHARDED = ("llama", "gemma2", "gemma3_text", "qwen3", "olmo2")


@pytest.mark.slow
@pytest.mark.parametrize("family", SHARDED)
def test_sharded_training_has_the_gradients_of_one_device(family):
    """Over data, fsdp and tensor at once: two devices share the KV heads."""
    spec = tiny_spec(family)
    if spec.n_kv_heads == 1:
        spec = dataclasses.replace(spec, n_kv_heads=2)
    model, params = Decoder(spec), numpy_params(spec)
    rng = np.random.default_rng(0)
    batch = {
        "tokens_RT": rng.integers(0, spec.vocab_size, (8, 24)).astype(np.int32),
        "positions_RT": np.broadcast_to(np.arange(24, dtype=np.int32) % 12, (8, 24)).copy(),
        "segment_ids_RT": np.broadcast_to(1 + np.arange(24, dtype=np.int32) // 12, (8, 24)).copy(),
        "weights_RT": np.ones((8, 24), np.float32),
    }

    def on(config):
        mesh = sharding.make_mesh(config)
        placed = jax.device_put(params, placement.param_shardings(model, mesh))
        rows = {name: sharding.put_rows(mesh, array) for name, array in batch.items()}
        with sharding.use(mesh):
            grad = jax.jit(jax.value_and_grad(lambda p, b: loss.unchunked_loss_sums(model, p, b)[0]))
            return jax.device_get(grad(placed, rows))

    actual, expected = on(MeshConfig(data=2, fsdp=2, tensor=2)), on(MeshConfig(data=1))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), actual, expected)


def test_more_devices_than_kv_heads_are_refused_by_name():
    """They are not replicated: see models/attention/masks.py."""
    model = Decoder(tiny_spec("llama"))
    with pytest.raises(InputError, match=r"sampling.tensor: 4 does not divide the 2 of blocks/attention/key"):
        placement.param_shardings(model, sharding.make_mesh(MeshConfig(data=1, tensor=4)), "sampling")


def test_sizes_that_do_not_fit_are_refused():
    """Those of a model that is made from `config.model`, and those of a config.json."""
    wrong = []
    for changes, message in (
        (dict(n_heads=3), "d_model, 32, must divide by n_heads, 3"),
        (dict(rotary_dim=7), "7 rotary features; they must be even and at most a head's size, 16"),
        (dict(rotary_dim=18), "18 rotary features; they must be even and at most a head's size, 16"),
        (dict(rotary_dim=0), "model.rotary_dim is 0: it must be at least 2 for gptj"),
        (dict(architecture="gpt2"), "model.rotary_dim is 8: it must be 0 for gpt2"),
        (dict(architecture="llama"), "llama models are not made from sizes; give base.path"),
        (
            dict(n_layers=0, d_mlp=0),
            "model.n_layers, model.d_mlp: 0 stands for the base model's size",
        ),
    ):
        with pytest.raises(InputError) as error:
            families.spec_of(dataclasses.replace(TINY, **changes))
        if message not in str(error.value):
            wrong.append((changes, str(error.value)))
    llama = dict(CASES["llama 3.2"][1], model_type="llama")
    gemma3 = dict(CASES["gemma3"][1], model_type="gemma3_text", **_DEFAULTS)
    scaling = llama["rope_scaling"]
    for values, message in (
        ({**llama, "model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'; star_jax supports gptj, gpt2, llama"),
        ({**llama, "num_key_value_heads": 3}, "4 heads do not divide into 3 groups"),
        ({**llama, "hidden_act": "gelu"}, "hidden_act is 'gelu'; star_jax supports 'silu' only"),
        ({**llama, "quantization_config": {"bits": 4}}, "quantization_config says that the weights are quantized"),
        ({**llama, "logits_scaling": 8.0}, "logits_scaling is 8.0; star_jax does not know this attribute of a llama"),
        ({**llama, "rope_scaling": {**scaling, "rope_type": "yarn"}}, "rope_type is 'yarn'; star_jax supports"),
        ({**llama, "rope_scaling": {**scaling, "attention_factor": 2.0}}, "attention_factor of the rotary positions"),
        ({**llama, "rope_scaling": {**scaling, "high_freq_factor": 1.0}}, "must be greater than low_freq_factor"),
        (
            {**llama, "rope_scaling": {**scaling, "original_max_position_embeddings": 2**31}},
            "which 32 bits do not hold",
        ),
        ({**llama, "rms_norm_eps": 1e39}, "norm_eps is 1e+39, which 32 bits do not hold"),
        ({**llama, "hidden_act": "x" * 5000}, f"hidden_act is '{'x' * 56}...; star_jax supports"),
        ({**llama, "hidden_size": "wide"}, "hidden_size must be a positive integer, got 'wide'"),
        ({**llama, "tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, got 1"),
        ({**llama, "rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number, got nan"),
        ({**gemma3, "layer_types": ["full_attention", "chunked_attention"]}, "layer_types must be 7 of"),
        ({**gemma3, "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ):
        with pytest.raises(InputError) as error:
            families.read_spec("DIR/config.json", values)
        if message not in str(error.value) or not str(error.value).startswith("DIR/config.json: "):
            wrong.append((message, str(error.value)))
    assert not wrong


def test_a_spec_is_read_back_from_its_own_config_json():
    wrong = []
    for case, (kind, values) in CASES.items():
        spec = families.read_spec("config.json", {**values, "model_type": kind, **_DEFAULTS})
        again = families.read_spec("config.json", {**families.of(spec).write(spec), "model_type": kind})
        if again != spec:
            wrong.append((case, spec, again))
    assert not wrong


_DEFAULTS = {"max_position_embeddings": 2048}
