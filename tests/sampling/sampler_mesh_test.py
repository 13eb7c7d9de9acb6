"""The sampler over several devices: samples do not depend on them, and little is sent between them."""

import dataclasses

import jax
import numpy as np
import pytest

from star_jax import config as configs
from star_jax.algorithms import setup
from star_jax.algorithms.budget import Lengths
from star_jax.config import MeshConfig
from star_jax.distributed import sharding
from star_jax.models import families
from star_jax.preflight import hlo, programs
from star_jax.records import Prompt
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks.arithmetic import Arithmetic
from star_jax.tokenizers.simple import SymbolTokenizer
from star_jax.weights import placement
from tests.support.models import TINY, numpy_params
from tests.support.sampling import TextSampler

SYMBOLS = SymbolTokenizer(Arithmetic.symbols)
CONFIG = dataclasses.replace(TINY, n_heads=8, rotary_dim=4, vocab_size=24)
MODEL = families.build(CONFIG)
COMMON = dict(stop=("6 +", "3"), max_new_tokens=12, prefill_tokens=32, slots=4, queue=16)
MESHES = {
    "data 8": (MeshConfig(data=8), 1),
    "fsdp 8": (MeshConfig(data=1, fsdp=8), 1),
    "tensor 8": (MeshConfig(data=1, tensor=8), 8),
    "data 2 x fsdp 2 x tensor 2": (MeshConfig(data=2, fsdp=2, tensor=2), 2),
    "fsdp 8 for training, tensor 4 for sampling": (MeshConfig(data=1, fsdp=8), 4),
}
QUICK = "data 2 x fsdp 2 x tensor 2"


@pytest.fixture(scope="module")
def params():
    made = numpy_params(CONFIG, seed=1, scale=0.6)
    made["blocks"]["norm"]["scale"][:] = made["final_norm"]["scale"][:] = 1
    made["head"]["bias"][SYMBOLS.end_ids[0]] += 9
    return made


@pytest.fixture(scope="module")
def prompts():
    """37 of them, which fill no number of queues."""
    rng = np.random.default_rng(0)
    bodies = [" ".join(rng.choice(SYMBOLS.symbols, n)) for n in rng.integers(1, 30, 37)]
    return [Prompt("1 + 1 , 2", body) for body in bodies]


@pytest.fixture(scope="module")
def alone(params, prompts):
    """Samples of one device."""
    samples = {}
    for how in (Decoding(), Decoding(temperature=0.8, top_k=5, top_p=0.9)):
        samples[how] = TextSampler(MODEL, params, SYMBOLS, decoding=how, **COMMON)(prompts)
    return samples


@pytest.mark.parametrize(
    "name", [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in MESHES if name != QUICK)]
)
def test_samples_on_any_mesh_are_those_of_one_device(name, params, prompts, alone):
    config, tensor = MESHES[name]
    mesh = sharding.make_mesh(config)
    placed = jax.tree.map(sharding.put, params, placement.param_shardings(MODEL, mesh))
    sampling_mesh = sharding.sampling_mesh(mesh, tensor)
    for how, expected in alone.items() if name == "tensor 8" else [(Decoding(), alone[Decoding()])]:
        found = TextSampler(MODEL, placed, SYMBOLS, sampling_mesh, decoding=how, **COMMON)(prompts)
        assert [sample.token_ids for sample in found] == [sample.token_ids for sample in expected]
        assert [sample.text for sample in found] == [sample.text for sample in expected]
        np.testing.assert_allclose(
            np.concatenate([sample.token_log_probs for sample in found]),
            np.concatenate([sample.token_log_probs for sample in expected]),
            atol=1e-4,
        )
    assert len({sample.text for sample in alone[Decoding()]}) > 10
    assert 0 < sum(sample.truncated for sample in alone[Decoding()]) < len(prompts)


@pytest.mark.slow
def test_a_decode_step_gathers_neither_weights_nor_the_cache():
    """Split among eight devices: an all-reduce a layer, the embedding's and the sampler's few numbers a row."""
    values = configs.default("arithmetic")
    values.model.update(dataclasses.asdict(CONFIG))
    values.base.path = "none"
    values.sampling.update(dict(slots=16, queue=16, tensor=8))
    values.train.row_tokens = CONFIG.max_positions
    settings = configs.from_dict(values)
    spec = families.spec_of(settings.model)
    _, sampling_mesh = setup.meshes(settings, spec)
    lengths = Lengths(prefix=32, body=16, new=8)
    found = hlo.collectives(programs.lower_sampling_loop(settings, spec, sampling_mesh, lengths).compile().as_text())
    rows = 16 * CONFIG.d_model * 4  # activations of all slots, the largest thing that may travel
    wide = [one for one in found[2] if one.size >= rows]
    assert [one.kind for one in wide] == ["all-reduce"] * (CONFIG.n_layers + 1)  # and the embedding's
    assert all(one.size <= 8 * 16 * 8 for one in found[2] if one not in wide)  # of each device, of each row, 8 bytes
    assert {one.kind for one in found[2]} <= {"all-reduce", "all-gather"}


@pytest.mark.slow
def test_a_train_step_gathers_weights_layer_by_layer_and_never_the_logits():
    values = configs.default("arithmetic")
    values.model.update(dataclasses.asdict(dataclasses.replace(CONFIG, n_layers=3, scan_unroll=1, vocab_size=64)))
    values.base.path = "none"
    values.mesh.update(dict(data=1, fsdp=4, tensor=2))
    values.train.update(dict(batch_rows=8, row_tokens=64))
    settings = configs.from_dict(values)
    spec = families.spec_of(settings.model)
    mesh, _ = setup.meshes(settings, spec)
    found = hlo.collectives(programs.lower_train_step(settings, spec, mesh).compile().as_text())
    largest = max(one.size for one in found[0] if one.kind == "all-gather")
    layer = 4 * CONFIG.d_model * CONFIG.d_mlp
    assert largest < 3 * layer  # not all three layers at once, and not [2 rows, 64 tokens, 64 of the vocabulary]
    assert sum(one.times for one in found[0]) > 3 * 6
