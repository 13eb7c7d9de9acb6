"""Every option, once: a field of a frozen dataclass with its unit or consequence beside it.

`default()` turns the defaults into a ConfigDict for the files in configs/; `from_dict` turns what comes back
into a `Config` and refuses a wrong key, type or value at the door. Only `default` needs ml_collections.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from star_jax import tasks
from star_jax.errors import InputError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model. What is left out (0 or "") is the base model's at base.path."""

    n_layers: int = 0
    d_model: int = 0
    n_heads: int = 0
    d_mlp: int = 0
    rotary_dim: int = 0  # gptj: features of each head that rotate; even
    vocab_size: int = 0  # rows of the embedding; may exceed the tokenizer's (padding)
    max_positions: int = 0  # longest text, prompt included, in tokens
    architecture: str = ""  # "gptj" or "gpt2", see model.py; "" without a base: "gptj"
    compute_dtype: str = "float32"  # of activations and caches; see train.param_dtype and sampling.weights_dtype
    # What the backward pass recomputes: "none"; "dots", all but matrix products, and attention where no kernel does it;
    # "full", whole blocks: least memory, a third more FLOPs
    remat: str = "none"
    scan_unroll: int = 1  # layers a turn of the training scan: more is faster to run and slower to compile

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def is_gpt2(self) -> bool:
        return self.architecture == "gpt2"

    def check(self) -> None:
        _at_least(0, self, *SIZES)
        _at_least(1, self, "scan_unroll")
        _one_of(self, "architecture", ("", "gptj", "gpt2"))
        _one_of(self, "compute_dtype", FLOATS)
        _one_of(self, "remat", ("none", "dots", "full"))
        known = self.d_model and self.n_heads
        if (known and (self.d_model % self.n_heads or self.rotary_dim > self.head_dim)) or self.rotary_dim % 2:
            raise InputError("model: d_model must divide by n_heads; rotary_dim must be even and at most a head's size")

    def check_complete(self) -> None:
        """Raises InputError unless a model can be made of these sizes."""
        self.check()
        _at_least(1, self, *(name for name in SIZES if name != "rotary_dim"))
        if self.is_gpt2 != (self.rotary_dim == 0):
            raise InputError(f"model.rotary_dim is {self.rotary_dim}: a gptj rotates, a gpt2 does not (0)")


FLOATS = ("float32", "bfloat16")
GPTJ_6B = dict(
    n_layers=28,
    d_model=4096,
    n_heads=16,
    d_mlp=16384,
    rotary_dim=64,
    vocab_size=50400,  # 50,257 of them are GPT-2's tokens
    max_positions=2048,
    architecture="gptj",
)
SIZES = ("n_layers", "d_model", "n_heads", "d_mlp", "rotary_dim", "vocab_size", "max_positions")


@dataclasses.dataclass(frozen=True)
class BaseStage:
    """One stage of pretraining a tiny base on transcripts of the task (tasks/arithmetic_base.py)."""

    steps: int = 100
    learning_rate: float = 1e-3  # peak, then by the optimizer's decay over this stage
    gold: tuple[float, ...] = (1.0,)  # shares of worked sums of 1, 2, ... digits; the rest shows the form only

    def check(self) -> None:
        _at_least(1, self, "steps")
        _at_least(0, self, "learning_rate")
        if any(share < 0 for share in self.gold) or sum(self.gold) > 1 + 1e-9:
            raise InputError("base.stages: the shares in `gold` must not be negative or add up to more than 1")


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """Where the base model M comes from."""

    path: str = ""  # a directory with a model (a run's base/ or params/, or a converted one); "": pretrain by `stages`
    stages: tuple[BaseStage, ...] = ()
    examples: int = 10_000  # transcripts per stage; a stage with more steps than they fill goes over them again

    def check(self) -> None:
        _at_least(1, self, "examples")


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Few-shot prompts."""

    shots: int = 0  # shots in front of every problem; 0: none
    directory: str = ""  # of <task>.txt, <task>_hint.txt, <task>_direct.txt; "": the package's own

    def check(self) -> None:
        _at_least(0, self, "shots")


@dataclasses.dataclass(frozen=True)
class StarConfig:
    """Algorithm 1."""

    iterations: int = 5  # 0: only the base is evaluated (the few-shot rows)
    problems_per_iteration: int = 0  # drawn afresh each iteration, in a seeded order; 0: all train problems
    samples_per_problem: int = 1  # completions a problem
    keep_per_problem: int = 1  # distinct right completions kept a problem; 0: all of them
    min_kept: int = 1  # an iteration that keeps fewer examples ends the run with advice
    rationalize: bool = True  # a second try with the answer as a hint for what failed
    rationalize_from: int = 1  # the first iteration that rationalizes (GSM8K: 36 loops without, then 10 with)
    require_consistent: bool = False  # a right answer whose steps fail the task's check is not kept, and tried again
    restart_from: str = "base"  # "base" (paper) or "previous": the weights fine-tuning starts from
    few_shot_train: bool = False  # the few-shot prefix is part of the training text (without loss)
    prompt_after_first_iteration: bool = True  # False: shots in iteration 1 and for the base only (no_prompt)
    direct: bool = False  # no rationales: train on every problem's reference answer, sample nothing
    keep_weights: int = 0  # latest iterations whose weights stay on disk, beside the best's; 0: all iterations
    keep_previous: int = 0  # earlier iterations whose kept examples are trained on again (copy_n)
    schedule: str = "exponential"  # of fine-tuning steps: "exponential", "linear" or "epochs"
    steps: int = 40  # steps of iteration 1 (exponential, linear)
    step_growth: float = 1.2  # exponential: factor an iteration
    step_increment: int = 20  # linear: further steps an iteration
    epochs: float = 1.0  # epochs: passes over the kept examples
    max_steps: int = 0  # no iteration has more (GSM8K: 7912); 0: no cap

    def check(self) -> None:
        _at_least(
            0,
            self,
            "problems_per_iteration",
            "keep_per_problem",
            "keep_previous",
            "keep_weights",
            "step_increment",
            "iterations",
        )
        _at_least(0, self, "max_steps")
        _at_least(1, self, "samples_per_problem", "steps", "rationalize_from", "min_kept")
        _one_of(self, "restart_from", ("base", "previous"))
        _one_of(self, "schedule", ("exponential", "linear", "epochs"))
        if not (self.step_growth > 0 and self.epochs > 0):
            raise InputError("star.step_growth and star.epochs must be greater than 0")


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How train problems are drawn; evaluation is greedy."""

    temperature: float = 0.0  # 0: greedy (paper)
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0  # 1: all tokens
    max_new_tokens: int = 0  # token budget of one completion; 0: the task's own
    slots: int = 128  # rows that decode together, on each group of `tensor` devices
    queue: int = 2048  # problems handed to each such group at a time; a crash loses two such at most
    prefill_tokens: int = 512  # of problems' bodies, at once; free slots, up to a quarter, are gathered to fill it
    # Devices among which heads, mlp and vocabulary are split, inside a process; the others draw apart. -1: all of them
    tensor: int = 1
    weights_dtype: str = "float32"  # the weights are cast to it once an iteration

    def check(self) -> None:
        _one_of(self, "weights_dtype", FLOATS)
        if self.tensor < 1 and self.tensor != -1:
            raise InputError(f"sampling.tensor must be at least 1, or -1 for all devices, got {self.tensor}")
        _at_least(0, self, "temperature", "top_k", "max_new_tokens")
        _at_least(1, self, "slots", "queue", "prefill_tokens")
        if not 0 < self.top_p <= 1:
            raise InputError(f"sampling.top_p must be greater than 0 and at most 1, got {self.top_p}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam (paper, appendix)."""

    learning_rate: float = 1e-6  # peak
    warmup_steps: int = 100
    decay: str = "constant"  # after the warm-up: "constant", "linear" or "cosine"
    decay_share: float = 1.0  # share of the steps behind the warm-up that decay, at their end; constant before
    end_fraction: float = 0.0  # of the peak at the last step, for linear and cosine
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0  # decoupled (AdamW)
    clip_norm: float = 1.0  # global gradient norm; 0: no clipping
    # Of Adam's first moment. The second stays float32: in bfloat16 it could not change by a thousandth (1 - b2).
    moment_dtype: str = "float32"

    def check(self) -> None:
        _at_least(0, self, "warmup_steps", "weight_decay", "clip_norm", "learning_rate", "eps")
        _one_of(self, "decay", ("constant", "linear", "cosine"))
        _one_of(self, "moment_dtype", FLOATS)
        _share(self, "decay_share", "end_fraction", "b1", "b2")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One fine-tuning."""

    batch_rows: int = 8  # packed rows a step
    microbatches: int = 1  # parts of a step's rows, one after the other: activations of a part, gradients twice
    # Of the trained weights. bfloat16 loses what changes a weight by less than 1/256: at the paper's rate, nearly all
    param_dtype: str = "float32"
    row_tokens: int = 1024  # tokens a row; a longer example is left out and counted
    log_every: int = 10  # steps
    checkpoint_every: int = 0  # steps between checkpoints inside a fine-tuning; 0: none, a crash repeats it

    def check(self) -> None:
        _at_least(1, self, "batch_rows", "log_every", "microbatches")
        _one_of(self, "param_dtype", FLOATS)
        _at_least(2, self, "row_tokens")
        _at_least(0, self, "checkpoint_every")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured after every iteration; the best iteration is chosen by it."""

    split: str = "dev"
    problems: int = 0  # the first so many of the split; 0: all
    report_split: str = ""  # a further split, only reported and never selected on, measured as often; "": none

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that every iteration evaluates; the first one selects."""
        return (self.split, self.report_split) if self.report_split else (self.split,)

    def check(self) -> None:
        _at_least(0, self, "problems")
        if self.report_split == self.split:
            raise InputError(f"evaluation.report_split must differ from evaluation.split, {self.split!r}")


@dataclasses.dataclass(frozen=True)
class ReplicationConfig:
    """Options that exist only to replicate the released code or one figure of the paper. The defaults turn all off."""

    base_moments: bool = False  # start Adam from the moments stored with the base (released code), not from zero
    z_loss: float = 0.0  # weight of log(sum(exp(logits - max)))^2 per token, added to the loss (released code: 1e-4)
    rationalize_probability: float = 1.0  # share of the failed problems that get a rationalization
    hint_keep_probability: float = 0.0  # share of kept rationalizations stored with their hint (p_show_hint_save)
    later_digits: int = 0  # arithmetic: sums of up to this many digits join the train problems later (Figure 5: 8)
    later_from: int = 20  # arithmetic: the iteration in which they join

    def check(self) -> None:
        _at_least(0, self, "z_loss", "later_digits")
        _at_least(1, self, "later_from")
        _share(self, "rationalize_probability", "hint_keep_probability")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis."""

    data: int = -1  # copies of the model; -1: all devices the other two leave
    fsdp: int = 1  # ways the parameters and the optimizer state are split, with the batch; -1: all that are left
    tensor: int = 1  # ways heads, mlp and vocabulary are split

    def check(self) -> None:
        _at_least(-1, self, "data", "fsdp")
        _at_least(1, self, "tensor")
        if 0 in (self.data, self.fsdp) or self.data == self.fsdp == -1:
            raise InputError("mesh.data and mesh.fsdp must be at least 1; one of them may be -1 for all devices left")


# Option -> where it is set instead. Task options in this table are fields of the task's class, set by `make_task`.
MOVED = {
    "optimizer.base_moments": "replication.base_moments",
    "train.z_loss": "replication.z_loss",
    "star.rationalize_probability": "replication.rationalize_probability",
    "star.hint_keep_probability": "replication.hint_keep_probability",
    "task.later_digits": "replication.later_digits",
    "task.later_from": "replication.later_from",
    "task.direct": "star.direct",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    seed: int = 0
    # "bytes", "symbols" (the task's words), a directory with GPT-2's tokenizer files, or a name on the hub
    tokenizer: str = ""  # "": the base model's own; a base that is pretrained here reads bytes
    compile_cache: str = "~/.cache/star_jax/xla"  # directory of compiled programs, for all runs; "": none
    tensorboard: bool = True  # write TensorBoard events beside metrics.jsonl
    wandb: str = ""  # also log to this Weights & Biases project; WANDB_MODE=offline needs no login; "": not
    task: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "arithmetic"})
    model: ModelConfig = ModelConfig()
    base: BaseConfig = BaseConfig()
    prompt: PromptConfig = PromptConfig()
    star: StarConfig = StarConfig()
    sampling: SamplingConfig = SamplingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    replication: ReplicationConfig = ReplicationConfig()

    def check(self) -> None:
        _at_least(0, self, "seed")
        for key in self.task:
            if f"task.{key}" in MOVED:
                raise InputError(_no_option("task", key, ()))
        if not self.base.path and not self.base.stages:
            raise InputError("base: give base.path (a directory with a model) or base.stages to pretrain one")
        self.make_task()

    def make_task(self) -> tasks.Task:
        """The task of this config. Raises InputError."""
        name, replication = self.task["name"], self.replication
        values = {key: value for key, value in self.task.items() if key != "name"}
        values["direct"] = self.star.direct
        if replication.later_digits:
            if "later_digits" not in tasks.options(name):
                raise InputError(
                    f"replication.later_digits must be 0: task {name!r} has no longer problems to add later"
                )
            values.update(later_digits=replication.later_digits, later_from=replication.later_from)
        return tasks.make(name, **values)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, for config.json."""
        return dataclasses.asdict(self)


def at_gptj_6b(config: ConfigDict) -> ConfigDict:
    """The same config for GPT-J-6B, split over all devices; bfloat16 but for the trained weights and their moments."""
    config.model.update(dict(**GPTJ_6B, compute_dtype="bfloat16", remat="full"))
    config.mesh.update(dict(data=1, fsdp=-1))
    config.sampling.update(dict(slots=128, prefill_tokens=1024, tensor=-1, weights_dtype="bfloat16"))
    return config


def default(task: str) -> ConfigDict:
    """All options with their defaults, those of the task included, as a ConfigDict to override."""
    from ml_collections import ConfigDict

    values = dataclasses.asdict(Config())
    task_options = {key: value for key, value in tasks.options(task).items() if f"task.{key}" not in MOVED}
    values["task"] = {"name": task, **task_options}
    return ConfigDict(values, convert_dict=True)


def from_dict(values: Mapping[str, Any]) -> Config:
    """The typed config of a ConfigDict or of a config.json. Raises InputError naming the key and what it may be."""
    plain = values.to_dict() if hasattr(values, "to_dict") else dict(values)
    config: Config = _build(Config, plain, "config")
    return config


def from_dict_of(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    """One group of options from plain values, checked as `from_dict` does. Raises InputError."""
    return _build(cls, values, where)


def _build(cls: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"{where} must be a group of options, got {values!r}")
    types = typing.get_type_hints(cls)
    for key in values:
        if key not in types:
            raise InputError(_no_option(where.removeprefix("config").lstrip("."), key, types))
    built = cls(**{key: _convert(types[key], value, f"{where}.{key}") for key, value in values.items()})
    if hasattr(built, "check"):
        built.check()
    return built


def _no_option(group: str, key: str, options: Iterable[str]) -> str:
    message = f"config{'.' * bool(group)}{group} has no option {key!r}"
    if new_name := MOVED.get(f"{group}.{key}"):
        return f"{message}; its name is now config.{new_name}"
    near = difflib.get_close_matches(key, options, n=1)
    return message + (f"; did you mean {near[0]!r}?" if near else "; star_jax/config.py lists all options")


def _convert(expected: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(expected):
        return _build(expected, value, where)
    if typing.get_origin(expected) is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where} must be a list, got {value!r}")
        item = typing.get_args(expected)[0]
        return tuple(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if typing.get_origin(expected) is not None:  # the task's options: checked by tasks.make
        if not isinstance(value, Mapping) or "name" not in value:
            raise InputError(f"{where} must hold the task's name and options, got {value!r}")
        return dict(value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise InputError(f"{where} must be {expected.__name__}, got {value!r}")
    return value


def _at_least(low: int, group: Any, *names: str) -> None:
    for name in names:
        if not getattr(group, name) >= low:
            raise InputError(f"{_group(group)}.{name} must be at least {low}, got {getattr(group, name)}")


def _share(group: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(group, name) <= 1:
            raise InputError(f"{_group(group)}.{name} must be between 0 and 1, got {getattr(group, name)}")


def _one_of(group: Any, name: str, known: tuple[str, ...]) -> None:
    if getattr(group, name) not in known:
        raise InputError(f"{_group(group)}.{name} must be one of {', '.join(known)}, got {getattr(group, name)!r}")


def _group(group: Any) -> str:
    name = type(group).__name__.removesuffix("Config").lower()
    return {"": "config", "basestage": "base.stages"}.get(name, name)
