"""Models and tokenizers of other projects, for tests of parity and conversion; torch is the oracle."""

import contextlib
import io
from unittest import mock

import jax
import numpy as np
import pytest

from star_jax.cli.parser import exit_on_bad_input
from star_jax.config import ModelConfig
from star_jax.convert import __main__ as command
from star_jax.models import decoder
from star_jax.tokenizers import JsonTokenizer, Tokenizer


def libraries():
    """(torch, transformers)."""
    torch = pytest.importorskip("torch", reason="the parity oracle needs torch (test-only)")
    return torch, pytest.importorskip("transformers", reason="the parity oracle needs transformers (test-only)")


def torch_config(config: ModelConfig):
    """The transformers config of these sizes, without dropout."""
    _, transformers = libraries()
    shared = dict(
        vocab_size=config.vocab_size,
        n_positions=config.max_positions,
        n_embd=config.d_model,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        n_inner=config.d_mlp,
        activation_function="gelu_new",
        layer_norm_epsilon=1e-5,
        attn_implementation="eager",
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        **dict.fromkeys(("bos_token_id", "eos_token_id"), None),
    )
    if config.architecture == "gpt2":
        return transformers.GPT2Config(**shared)
    return transformers.GPTJConfig(**shared, rotary_dim=config.rotary_dim, tie_word_embeddings=False)


def torch_model(config: ModelConfig, seed: int):
    """A GPTJForCausalLM or GPT2LMHeadModel with random weights that make logits of order 10."""
    torch, transformers = libraries()
    kind = transformers.GPT2LMHeadModel if config.architecture == "gpt2" else transformers.GPTJForCausalLM
    theirs = kind(torch_config(config)).eval()
    head = "transformer.wte.weight" if config.architecture == "gpt2" else "lm_head.weight"
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            scale = 0.6 if name == head else 0.2
            values = scale * rng.standard_normal(tuple(parameter.shape))
            centre = 1.0 if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0.0
            parameter.copy_(torch.from_numpy(values.astype(np.float32) + np.float32(centre)))
    return theirs


def torch_logits(theirs, tokens_BT) -> np.ndarray:
    """Logits in float32, whatever the dtype of the model's weights.

    Casting a model also casts its table of rotary angles, so the weights are copied into a new model.
    """
    torch, _ = libraries()
    wide = type(theirs)(theirs.config).float().eval()
    wide.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        return wide(torch.from_numpy(np.asarray(tokens_BT)).long()).logits.numpy()


def from_torch(values, config: ModelConfig) -> decoder.Params:
    """Torch's weights, or their gradients, by name -> our tree."""
    block = _gpt2_block if config.architecture == "gpt2" else _gptj_block
    blocks = [block(values, f"transformer.h.{n}", config) for n in range(config.n_layers)]
    tree = {
        "embedding": {"embedding": values["transformer.wte.weight"]},
        "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
        "final_norm": _norm(values, "transformer.ln_f"),
    }
    if config.architecture == "gpt2":
        return {**tree, "positions": {"embedding": values["transformer.wpe.weight"]}}
    return {**tree, "head": _linear(values, "lm_head")}


def _linear(values, name):
    return {"kernel": values[f"{name}.weight"].T, "bias": values[f"{name}.bias"]}


def _conv1d(values, name):
    return {"kernel": values[f"{name}.weight"], "bias": values[f"{name}.bias"]}


def _norm(values, name):
    return {"scale": values[f"{name}.weight"], "bias": values[f"{name}.bias"]}


def _gptj_block(values, at, config):
    into = (config.d_model, config.n_heads, (config.d_model // config.n_heads))
    attention = {
        ours: values[f"{at}.attn.{theirs}_proj.weight"].T.reshape(into)
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"))
    }
    out = values[f"{at}.attn.out_proj.weight"].T.reshape(
        config.n_heads, (config.d_model // config.n_heads), config.d_model
    )
    return {
        "attention": {**attention, "out": out},
        "mlp": {"in": _linear(values, f"{at}.mlp.fc_in"), "out": _linear(values, f"{at}.mlp.fc_out")},
        "norm": _norm(values, f"{at}.ln_1"),
    }


def _gpt2_block(values, at, config):
    size, heads = config.d_model, (config.n_heads, (config.d_model // config.n_heads))
    attention = {}
    for i, name in enumerate(("query", "key", "value")):
        columns = slice(i * size, (i + 1) * size)
        attention[name] = values[f"{at}.attn.c_attn.weight"][:, columns].reshape(size, *heads)
        attention[f"{name}_bias"] = values[f"{at}.attn.c_attn.bias"][columns].reshape(heads)
    return {
        "attention": {
            **attention,
            "out": values[f"{at}.attn.c_proj.weight"].reshape(*heads, size),
            "out_bias": values[f"{at}.attn.c_proj.bias"],
        },
        "mlp": {"in": _conv1d(values, f"{at}.mlp.c_fc"), "out": _conv1d(values, f"{at}.mlp.c_proj")},
        "norm": _norm(values, f"{at}.ln_1"),
        "mlp_norm": _norm(values, f"{at}.ln_2"),
    }


class IdsTokenizer(Tokenizer):
    """Texts are ids with spaces between them; the end id decodes to nothing."""

    def __init__(self, vocab_size: int, end_id: int) -> None:
        self.vocab_size, self.end_ids = vocab_size, (end_id,)
        self.pieces = [b"" if i == end_id else b"%d " % i for i in range(vocab_size)]

    def encode(self, text):
        return [int(number) for number in text.split()]

    def decode_bytes(self, ids):
        return " ".join(str(i) for i in ids if i not in self.end_ids).encode()

    def stop_bytes(self, stop):
        return stop.encode()

    def spec(self):
        return {"kind": "ids"}


def bpe(texts, size=300, extra=0):
    """A byte-level BPE trained on the texts, then end-of-text and `extra` added tokens, as in GPT-J's file."""
    tokenizers = pytest.importorskip("tokenizers")
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=size, show_progress=False)
    trained.add_special_tokens(["<|endoftext|>"])
    trained.add_tokens([f"<|extratoken_{i}|>" for i in range(1, extra + 1)])
    return trained


def json_tokenizer_of(trained) -> JsonTokenizer:
    """Our tokenizer of what `bpe` trained."""
    return JsonTokenizer(trained._tokenizer.to_str(), end_ids=(trained.token_to_id("<|endoftext|>"),))


def convert(source, source_format, target, target_format, *more) -> tuple[int, str, str]:
    """(status, output, errors) of `python -m star_jax.convert`, in this process."""
    args = [f"--source={source}", f"--source_format={source_format}", f"--target={target}"]
    return convert_with(*args, f"--target_format={target_format}", *more)


def convert_with(*args: str) -> tuple[int, str, str]:
    """`convert` with these arguments only."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch("sys.argv", ["convert", *args]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            exit_on_bad_input(command.main)
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()
