"""star_jax.preflight.model_sizes: names, and parameter counts that the models' publishers give."""

import pytest

from star_jax.algorithms import budget
from star_jax.config import GPTJ_6B, ModelConfig
from star_jax.errors import InputError
from star_jax.models import families
from star_jax.preflight import model_sizes

# Without the head where it is the embedding. The counts that are shown with the weights on the hub, but for GPT-2's,
# where the hub counts the attention masks too.
PUBLISHED = {
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-360M": 361_821_120,
    "SmolLM2-1.7B": 1_711_376_384,
    "Gemma-3-270M": 268_098_176,
    "Gemma-3-1B": 999_885_952,
    "GPT-J-6B": 6_050_882_784,
    "GPT-2": 124_439_808,
}


def test_each_model_has_the_published_number_of_parameters():
    counts = {name: budget.parameter_count(model_sizes.spec_of(name)) for name in model_sizes.MODELS}
    assert counts == PUBLISHED


def test_gpt_j_is_the_one_of_the_configs():
    assert model_sizes.spec_of("gpt-j-6b") == families.spec_of(ModelConfig(**GPTJ_6B))


def test_every_sixth_layer_of_gemma_3_has_no_window():
    spec = model_sizes.spec_of("gemma-3-1b")
    assert spec.window == 512 and [n for n in range(spec.n_layers) if not spec.is_local(n)] == [5, 11, 17, 23]


def test_names_may_have_an_owner_and_any_case():
    assert model_sizes.spec_of("qwen3-4b") == model_sizes.spec_of("Qwen/Qwen3-4B") == model_sizes.spec_of("QWEN3-4B")


def test_an_unknown_name_lists_the_known_ones_with_the_nearest_first():
    with pytest.raises(InputError) as error:
        model_sizes.spec_of("meta-llama/Llama-3.2-2B")
    names = str(error.value).removeprefix("--model=meta-llama/Llama-3.2-2B: no sizes under this name; there are ")
    assert set(names.split(", ")) == set(model_sizes.MODELS) and names.startswith("Llama-3.2-")
