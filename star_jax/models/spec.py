"""The decoder's specification: one frozen value that fixes its parameters and the function it computes of them."""

import dataclasses

from star_jax.errors import InputError, shown

MAX_SIZE = 2**31 - 1  # of any axis, and what a 32-bit integer of JAX holds
_MAX_FLOAT = 3e38
MAX_LAYERS = 10_000  # some lists have one entry for each layer: they are bounded before a file of weights is looked at


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al., 2021). `dim` 0: none."""

    dim: int = 0  # rotated features of a head, from the first one on
    theta: float = 10000.0
    layout: str = "half"  # pairs are features (i, i + dim / 2); "interleaved": (2i, 2i + 1)
    scaling: str = ""  # "": none. "linear": frequencies are divided by `factor`. "llama3": the low ones only
    factor: float = 1.0
    low_frequency_factor: float = 0.0  # llama3: full scaling below this many turns in `original_positions` tokens
    high_frequency_factor: float = 0.0  # llama3: no scaling above this many turns
    original_positions: int = 0  # llama3: positions of the model before its context was extended


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer. The families (models/families/) are functions from a config.json to this value.

    Raises InputError for sizes that do not fit each other.
    """

    family: str  # `model_type` of its config.json
    n_layers: int
    d_model: int
    n_heads: int  # of the queries
    n_kv_heads: int  # of keys and values, each shared by n_heads / n_kv_heads query heads (grouped-query attention)
    head_dim: int
    d_mlp: int
    vocab_size: int  # rows of the embedding
    max_positions: int  # longest text in tokens
    norm: str = "rms"  # "layer": LayerNorm with a bias. "rms": RMSNorm. "rms_plus_one": RMSNorm by 1 + scale
    norm_eps: float = 1e-5
    norm_position: str = "before"  # of attention and of the MLP; "after"; "both"
    parallel: bool = False  # attention and MLP read the same normed input and are added together
    mlp: str = "swiglu"  # "gelu": two matrices, tanh form. "swiglu", "geglu": gated by silu or tanh-form gelu
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tied_head: bool = False  # the output head is the embedding
    qk_norm: str = ""  # RMSNorm of queries and keys: "head": each head's features. "all": over all heads together
    rope: Rope = Rope()  # dim 0: learned positions, one vector for each
    window: int = 0  # a query of a local layer attends to this many tokens, itself included
    local_layers: tuple[bool, ...] = ()  # True for a layer with the window; (): none has it
    local_rope: Rope = Rope()  # of the local layers; dim 0: `rope`
    embedding_scale: float = 1.0  # embeddings are multiplied by it
    attention_scale: float = 0.0  # scores are multiplied by it; 0: head_dim ** -0.5
    attention_softcap: float = 0.0  # scores become cap * tanh(scores / cap); 0: they stay
    logit_softcap: float = 0.0  # likewise for the logits

    def __post_init__(self) -> None:
        sizes = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_mlp", "vocab_size", "max_positions")
        for name in sizes:
            if getattr(self, name) < 1:
                raise InputError(f"model: {name} must be at least 1, got {getattr(self, name)}")
            if getattr(self, name) > (limit := MAX_LAYERS if name == "n_layers" else MAX_SIZE):
                raise InputError(f"model: {name} must be at most {limit:,}, got {getattr(self, name):,}")
        for group in (self, self.rope, self.local_rope):
            _check_numbers(group)
        if self.n_heads % self.n_kv_heads:
            raise InputError(f"model: {self.n_heads} heads do not divide into {self.n_kv_heads} groups (KV heads)")
        for rope in (self.rope, self.local_rope):
            if rope.dim % 2 or not 0 <= rope.dim <= self.head_dim:
                raise InputError(
                    f"model: {rope.dim} rotary features; they must be even and at most a head's size, {self.head_dim}"
                )
        if self.local_layers and (len(self.local_layers) != self.n_layers or self.window < 1):
            raise InputError(
                f"model: {len(self.local_layers)} layers are marked as local or not, of {self.n_layers}, "
                f"with a window of {self.window} tokens"
            )

    @property
    def score_scale(self) -> float:
        """What scores are multiplied by."""
        return self.attention_scale or self.head_dim**-0.5

    def is_local(self, layer: int) -> bool:
        """Whether a layer's attention has the window."""
        return bool(self.local_layers) and self.local_layers[layer]


def _check_numbers(group: DecoderSpec | Rope) -> None:
    """Raises InputError for an integer that 32 bits do not hold, or a number that float32 does not."""
    for name, value in vars(group).items():
        if isinstance(value, int | float) and not abs(value) <= (MAX_SIZE if isinstance(value, int) else _MAX_FLOAT):
            raise InputError(f"model: {name} is {shown(value)}, which 32 bits do not hold")
