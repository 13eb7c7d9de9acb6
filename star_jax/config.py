"""All options: each is defined once, as a field of a frozen dataclass with its unit or consequence.

Bounds are stated in each group's `validate`: numbers outside of them overflow, or are typing errors.

`default` returns the defaults as a ConfigDict, for the files in configs/. `from_dict` converts a ConfigDict, or a
stored config.json, to a `Config`, and raises InputError for a wrong name, type or value. Only `default` needs
ml_collections.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from star_jax import option_values, tasks
from star_jax.errors import InputError, shown
from star_jax.option_names import MOVED
from star_jax.option_values import PATH

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model. 0 or "" stands for the value of the base model at base.path."""

    n_layers: int = 0  # number of blocks
    d_model: int = 0  # features of the residual stream
    n_heads: int = 0  # query heads; must divide d_model
    d_mlp: int = 0  # hidden features of the MLP
    rotary_dim: int = 0  # number of rotary features of each head, even; 0: none (gpt2)
    vocab_size: int = 0  # rows of the embedding; at least the tokenizer's ids (the rest is padding)
    max_positions: int = 0  # longest text, prompt included, in tokens
    # Family (models/families/). Without a base: "gptj", which "" stands for, or "gpt2"
    architecture: str = ""
    compute_dtype: str = (
        "float32"  # of activations and KV caches; for weights see train.param_dtype, sampling.weights_dtype
    )
    # What the backward pass recomputes. "none": nothing. "dots": all but matrix products (and attention, if no kernel
    # computes it). "full": whole blocks; least memory, a third more FLOPs.
    remat: str = "none"
    scan_unroll: int = 1  # layers per step of the scan in training; more runs faster and compiles slower

    def validate(self) -> None:
        _between(0, MAX_SIZE, self, *SIZES)
        _between(1, 10_000, self, "scan_unroll")
        _one_of(self, "compute_dtype", FLOATS)
        _one_of(self, "remat", ("none", "dots", "full"))

    def check_complete(self) -> None:
        """Raises InputError unless all sizes are given."""
        self.validate()
        if missing := [name for name in SIZES if name != "rotary_dim" and not getattr(self, name)]:
            raise InputError(
                f"model.{', model.'.join(missing)}: 0 stands for the base model's size, and base.path is not set; give "
                "--config.base.path=MODEL, or sizes"
            )


FLOATS = ("float32", "bfloat16")
MAX_SIZE = 2**24  # of each size of a model
MAX_ITERATIONS = 100_000
MAX_COUNT = 10**8  # of steps, problems, tokens, ...: far beyond any run
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3  # float32 logits divided by less overflow: 1e-38 sampled a wrong token
GPTJ_6B = dict(
    n_layers=28,
    d_model=4096,
    n_heads=16,
    d_mlp=16384,
    rotary_dim=64,
    vocab_size=50400,  # GPT-2's 50,257 tokens, padded
    max_positions=2048,
    architecture="gptj",
)
# Fixed by the weights, like the architecture: algorithms/setup.py takes both from the base model, and no other field.
SIZES = ("n_layers", "d_model", "n_heads", "d_mlp", "rotary_dim", "vocab_size", "max_positions")


@dataclasses.dataclass(frozen=True)
class BaseStage:
    """One stage of pretraining a tiny base model on texts that the task supplies (Task.transcripts)."""

    steps: int = 100  # train steps of this stage
    learning_rate: float = 1e-3  # peak; decays over this stage as optimizer.decay says
    # Shares of kinds of texts. arithmetic: correct sums of 1, 2, ... digits, the rest is form only. jsonl: no hint
    gold: tuple[float, ...] = (1.0,)

    def validate(self) -> None:
        _between(1, MAX_COUNT, self, "steps")
        _between(0, 1000, self, "learning_rate")
        if any(share < 0 for share in self.gold) or sum(self.gold) > 1 + 1e-9:
            raise InputError("base.stages: the shares in `gold` must not be negative or add up to more than 1")


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """The base model M, from which fine-tuning starts."""

    # A run's base/ or params/, a converted model, a Hugging Face directory, a GGUF file, pip:NAME, or a name on the hub
    # (star_jax/weights/README.md). "": pretrain by `stages`
    path: str = dataclasses.field(default="", metadata=PATH)
    stages: tuple[BaseStage, ...] = ()
    examples: int = 10_000  # transcripts per stage; repeated if the steps need more

    def validate(self) -> None:
        _between(1, MAX_COUNT, self, "examples")


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How problems are put to the model (star_jax/tasks/README.md)."""

    format: str = "plain"  # "plain": shots and problem as one text; "chat": as turns, by the model's chat template
    shots: int = 0  # number of shots before every problem; 0: none
    # Folder of <task>.txt, <task>_hint.txt, <task>_direct.txt; "": star_jax/tasks/prompts
    directory: str = dataclasses.field(default="", metadata=PATH)

    def validate(self) -> None:
        _between(0, 10_000, self, "shots")
        _one_of(self, "format", ("plain", "chat"))


@dataclasses.dataclass(frozen=True)
class StarConfig:
    """Algorithm 1 of the paper: what is sampled, kept and trained on in each iteration."""

    iterations: int = 5  # outer loops; 0: only evaluate the base (the paper's few-shot rows)
    problems_per_iteration: int = 0  # a fresh seeded selection in each iteration; 0: all train problems
    # Which problems come. "uniform": passes in random order; "adaptive": those that were sampled longest ago, hardest
    # first, as the model gets stronger (AdaSTaR, arXiv 2505.16322)
    problems: str = "uniform"
    # A problem whose samples were all right in each of the last N iterations is left out of the next one
    # (arXiv 2504.11343); 0: none is left out
    skip_solved: int = 0
    samples_per_problem: int = 1  # completions per problem
    # The same for iterations 1, 2, ...; the last one also for those after it. (): samples_per_problem in all
    samples_by_iteration: tuple[int, ...] = ()
    # Which problems are sampled with the answer as a hint. "failed": those without a usable sample (paper); "all": all
    # of them, and none without it (hint-only rounds, arXiv 2512.20169v1); "none": none (STaR without rationalization)
    rationalize: str = "failed"
    rationalize_from: int = 1  # the first iteration that rationalizes (GSM8K: 36 loops without, then 10 with)
    restart_from: str = "base"  # weights that fine-tuning starts from: "base" (paper) or "previous"
    # Directory of a finished run whose samples take the place of new ones, to train on another selection; "": sample
    samples_from: str = dataclasses.field(default="", metadata=PATH)
    few_shot_train: bool = False  # training texts include the few-shot prefix (without loss)
    prompt_after_first_iteration: bool = True  # False: shots only for the base and in iteration 1
    # Stop the run when pass@k of evaluation.samples has fallen N iterations in a row (arXiv 2407.05013); 0: never
    stop_when: int = 0
    direct: bool = False  # no rationales: train on the reference answer of every problem, sample nothing
    keep_weights: int = 0  # number of latest iterations whose weights stay on disk (and the best's); 0: all
    # Number of previous iterations whose kept examples are trained on again; -1: all (accumulation, arXiv 2404.01413)
    keep_previous: int = 0
    schedule: str = "exponential"  # of fine-tuning steps per iteration: "exponential", "linear" or "epochs"
    steps: int = 40  # steps of iteration 1 (exponential, linear)
    step_growth: float = 1.2  # exponential: factor per iteration; each has at least one step
    step_increment: int = 20  # linear: additional steps per iteration
    epochs: float = 1.0  # epochs: passes over the kept examples per iteration
    max_steps: int = 0  # cap on the steps of an iteration (GSM8K: 7912); 0: none

    def samples(self, iteration: int) -> int:
        """Completions per problem in iteration 1, 2, ..."""
        return _of_iteration(self.samples_by_iteration, iteration, self.samples_per_problem)

    def passes(self, iteration: int) -> tuple[bool, ...]:
        """Whether each sampling pass of iteration 1, 2, ... shows the answer as a hint, in their order."""
        if self.direct:
            return ()
        if self.rationalize == "none" or iteration < self.rationalize_from:
            return (False,)
        return (True,) if self.rationalize == "all" else (False, True)

    @property
    def rationalizes(self) -> bool:
        """Whether any iteration shows answers as hints."""
        return True in self.passes(self.rationalize_from)

    def validate(self) -> None:
        _between(0, MAX_ITERATIONS, self, "iterations", "keep_weights")
        _between(-1, MAX_ITERATIONS, self, "keep_previous")
        _between(0, MAX_COUNT, self, "problems_per_iteration", "step_increment", "max_steps")
        _between(1, MAX_COUNT, self, "samples_per_problem", "steps")
        if any(not 1 <= count <= MAX_COUNT for count in self.samples_by_iteration):
            raise InputError(f"star.samples_by_iteration: each must be at least 1 and at most {MAX_COUNT}")
        _between(1, MAX_ITERATIONS, self, "rationalize_from")
        if self.samples_from and self.direct:
            raise InputError("star.samples_from: star.direct trains on reference answers and needs no samples")
        _one_of(self, "rationalize", ("failed", "all", "none"))
        _one_of(self, "problems", ("uniform", "adaptive"))
        _between(0, MAX_ITERATIONS, self, "skip_solved", "stop_when")
        if (self.skip_solved or self.problems == "adaptive") and (self.direct or self.rationalize == "all"):
            raise InputError(
                'star.skip_solved and star.problems="adaptive" go by samples without a hint, and '
                f"star.{'direct' if self.direct else 'rationalize=all'} draws none"
            )
        _one_of(self, "restart_from", ("base", "previous"))
        _one_of(self, "schedule", ("exponential", "linear", "epochs"))
        if not (0 < self.step_growth <= 1000 and 0 < self.epochs <= 1e6):
            raise InputError(
                "star.step_growth must be greater than 0 and at most 1000, star.epochs greater than 0 and at most "
                f"1000000; got {self.step_growth} and {self.epochs}"
            )
        if self.schedule == "exponential" and not self.max_steps:
            digits = math.log10(self.steps) + (self.iterations - 1) * math.log10(self.step_growth)
            if digits > math.log10(MAX_COUNT):
                raise InputError(
                    f"star.step_growth={self.step_growth} gives iteration {self.iterations} more than {MAX_COUNT} "
                    "steps; lower it or star.iterations, or set star.max_steps"
                )


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """Which of an iteration's completions are trained on (paper, Algorithm 1, lines 5 and 6)."""

    # "answer": the right ones (paper); "steps": those of them without a step that Task.consistent refuses; "none": all
    # that ended before the token budget, right or wrong (the unfiltered control, arXiv 2604.01193)
    check: str = "answer"
    per_problem: int = 1  # distinct completions kept per problem (ReST-EM, arXiv 2312.06585: 10); 0: all
    # Which completions of a problem are the same. "text": equal texts; "steps": equal lists of Task.step_list, of which
    # the text farthest from those kept before it is taken (RFT, arXiv 2308.01825)
    dedup: str = "text"
    # Score how much the hint raises log p of each right rationalization, in nats: a text that only the hint explains is
    # no reasoning (arXiv 2602.14469). Costs a forward pass over their prompts, shots included
    anchoring: bool = False
    max_anchoring: float = 0.0  # rationalizations with a higher score are not kept; 0: no bound, else they are scored
    min_kept: int = 1  # an iteration that keeps fewer examples stops the run with advice

    @property
    def scores_hints(self) -> bool:
        """Whether rationalizations are scored."""
        return self.anchoring or self.max_anchoring > 0

    def validate(self) -> None:
        _between(0, MAX_COUNT, self, "per_problem")
        _between(1, MAX_COUNT, self, "min_kept")
        _between(0, MAX_COUNT, self, "max_anchoring")
        _one_of(self, "check", ("answer", "steps", "none"))
        _one_of(self, "dedup", ("text", "steps"))


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Sampling. Temperature, top-k and top-p apply to train problems; evaluation is greedy."""

    temperature: float = 0.0  # of train samples; 0: greedy (paper)
    # The same for iterations 1, 2, ...; the last one also for those after it. (): temperature in all
    temperature_by_iteration: tuple[float, ...] = ()
    top_k: int = 0  # sample from the k likeliest tokens; 0: all tokens
    top_p: float = 1.0  # sample from the likeliest tokens that hold this probability; 1: all tokens
    max_new_tokens: int = 0  # token budget of one completion; 0: the task's
    slots: int = 128  # rows that decode together, for each group of `tensor` devices
    queue: int = 2048  # problems per call of the engine for each such group; a crash loses at most two calls
    prefill_tokens: int = 512  # tokens of one prefill; waits for at most a quarter of the slots to fill it
    # Devices of one process over which heads, MLP and vocabulary are sharded; groups of them sample independently.
    # -1: all devices of the process.
    tensor: int = 1
    weights_dtype: str = "float32"  # weights are cast to it once per iteration

    def temperature_of(self, iteration: int) -> float:
        """The temperature of train samples in iteration 1, 2, ..."""
        return _of_iteration(self.temperature_by_iteration, iteration, self.temperature)

    def validate(self) -> None:
        _one_of(self, "weights_dtype", FLOATS)
        if self.tensor < 1 and self.tensor != -1:
            raise InputError(f"sampling.tensor must be at least 1, or -1 for all devices, got {self.tensor}")
        for value in (self.temperature, *self.temperature_by_iteration):
            check_temperature(value, "sampling.temperature")
        _between(0, MAX_SIZE, self, "top_k", "max_new_tokens")
        _between(1, MAX_SIZE, self, "slots", "queue", "prefill_tokens")
        if self.tensor > 10_000:
            raise InputError(f"sampling.tensor must be at most 10000, got {self.tensor}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"sampling.top_p must be greater than 0 and at most 1, got {self.top_p}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam and its schedule (paper, appendix)."""

    learning_rate: float = 1e-6  # peak, after the warm-up
    warmup_steps: int = 100  # steps in which the rate rises linearly to its peak; they are part of star.steps
    decay: str = "constant"  # after the warm-up: "constant", "linear" or "cosine"
    decay_share: float = 1.0  # the last share of the steps after warm-up in which the rate decays; constant before
    end_fraction: float = 0.0  # learning rate at the last step / peak, for linear and cosine
    b1: float = 0.9  # decay of Adam's first moment per step
    b2: float = 0.999  # decay of its second moment per step
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.0  # decoupled (AdamW)
    clip_norm: float = 1.0  # global gradient norm; 0: no clipping
    # Of Adam's first moment. The second is float32: bfloat16 cannot represent its changes, a thousandth (1 - b2).
    moment_dtype: str = "float32"

    def validate(self) -> None:
        _between(0, MAX_COUNT, self, "warmup_steps", "clip_norm")
        _between(0, 1000, self, "learning_rate", "weight_decay")
        # Adam divides by sqrt(v) + eps and by 1 - b^n, in float32: 0 / 0 is NaN.
        if not 1e-30 <= self.eps <= 1:
            raise InputError(f"optimizer.eps must be between 1e-30 and 1, got {self.eps}")
        for name, value in (("b1", self.b1), ("b2", self.b2)):
            if not 0 <= value <= 1 - 1e-6:
                raise InputError(f"optimizer.{name} must be at least 0 and at most 0.999999, got {value}")
        _one_of(self, "decay", ("constant", "linear", "cosine"))
        _one_of(self, "moment_dtype", FLOATS)
        _share(self, "decay_share", "end_fraction")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Fine-tuning: batches, precision, logs and checkpoints."""

    batch_rows: int = 8  # packed rows per step
    microbatches: int = 1  # gradient accumulation: activations of one part in memory, gradients twice
    # Of the trained weights. bfloat16 loses changes below 1/256 of a weight: nearly all, at the paper's learning rate.
    param_dtype: str = "float32"
    row_tokens: int = 1024  # tokens per row; longer examples are skipped and counted
    log_every: int = 10  # steps between losses in metrics.jsonl
    checkpoint_every: int = 0  # steps between checkpoints inside a fine-tuning; 0: none

    def validate(self) -> None:
        _between(1, MAX_SIZE, self, "batch_rows", "microbatches")
        _between(1, MAX_COUNT, self, "log_every")
        _one_of(self, "param_dtype", FLOATS)
        _between(2, MAX_SIZE, self, "row_tokens")
        _between(0, MAX_COUNT, self, "checkpoint_every")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation of every iteration. The accuracy on `split` selects the best iteration."""

    split: str = "dev"  # the split that selects the best iteration
    problems: int = 0  # number of problems, from the start of the split; 0: all
    report_split: str = ""  # another split to evaluate and report, which selects nothing; "": none
    # Completions per problem of `split` that are also sampled in every iteration, for pass@k and votes; 0: none
    samples: int = 0
    temperature: float = 0.7  # of these samples

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that every iteration evaluates; the first one selects."""
        return (self.split, self.report_split) if self.report_split else (self.split,)

    def validate(self) -> None:
        _between(0, MAX_COUNT, self, "problems", "samples")
        check_temperature(self.temperature, "evaluation.temperature")
        if self.samples and not self.temperature:
            raise InputError(
                "evaluation.temperature=0 is greedy: all evaluation.samples of a problem would be the same"
            )
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

    def validate(self) -> None:
        _between(0, 1000, self, "z_loss", "later_digits")
        _between(1, MAX_ITERATIONS, self, "later_from")
        _share(self, "rationalize_probability", "hint_keep_probability")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the training mesh."""

    data: int = -1  # data parallelism; -1: all devices that the other axes leave
    fsdp: int = 1  # parameters, optimizer state and batch are sharded over it; -1: as above
    tensor: int = 1  # heads, MLP and vocabulary are sharded over it

    def validate(self) -> None:
        _between(-1, 1_000_000, self, "data", "fsdp")
        _between(1, 10_000, self, "tensor")
        if 0 in (self.data, self.fsdp) or self.data == self.fsdp == -1:
            raise InputError(
                "mesh.data and mesh.fsdp must be at least 1; one of them may be -1 for all remaining devices"
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """All options of a run."""

    seed: int = 0  # of sampling, of the order of problems and of training rows; the data have task.seed
    limit: int = 0  # problems of each split, from its start, for a quick try; 0: all
    # "bytes", "symbols" (the task's words), a directory with tokenizer.json (or vocab.json, merges.txt), or a hub name.
    # "": the base model's tokenizer; "bytes" for a base that is pretrained by base.stages.
    tokenizer: str = dataclasses.field(default="", metadata=PATH)
    compile_cache: str = (
        "~/.cache/star_jax/xla"  # directory of compiled programs, for all runs; "": none. ~ is expanded
    )
    tensorboard: bool = True  # write TensorBoard events in addition to metrics.jsonl
    wandb: str = ""  # Weights & Biases project to log to; "": none. WANDB_MODE=offline needs no login
    task: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "arithmetic"})
    model: ModelConfig = ModelConfig()
    base: BaseConfig = BaseConfig()
    prompt: PromptConfig = PromptConfig()
    star: StarConfig = StarConfig()
    selection: SelectionConfig = SelectionConfig()
    sampling: SamplingConfig = SamplingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    replication: ReplicationConfig = ReplicationConfig()

    def validate(self) -> None:
        _between(0, option_values.MAX_INTEGER, self, "seed")
        _between(0, MAX_COUNT, self, "limit")
        if self.compile_cache:
            option_values.check_path(self.compile_cache, "config.compile_cache")
        for key in self.task:
            if f"task.{key}" in MOVED:
                raise InputError(_no_option("task", key, ()))
        if not self.base.path and not self.base.stages:
            raise InputError(
                "base.path is not set: give base.path (--config.base.path=MODEL, a directory with a model, or a name), "
                "or base.stages to pretrain one"
            )
        if self.star.stop_when and not self.evaluation.samples:
            raise InputError("star.stop_when goes by pass@k: set --config.evaluation.samples=K, e.g. 8")
        task = self.make_task()
        if not self.base.path and type(task).transcripts is tasks.Task.transcripts:
            raise InputError(
                f"task {self.task['name']!r} has no transcripts to pretrain a base on; give base.path, or define "
                "Task.transcripts"
            )

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
        """Nested plain values, for config.json."""
        return dataclasses.asdict(self)


def at_gptj_6b(config: ConfigDict) -> ConfigDict:
    """The config with GPT-J-6B's sizes, sharded over all devices; only trained weights and moments are float32."""
    config.model.update(dict(**GPTJ_6B, compute_dtype="bfloat16", remat="full"))
    config.mesh.update(dict(data=1, fsdp=-1))
    config.sampling.update(dict(slots=128, prefill_tokens=1024, tensor=-1, weights_dtype="bfloat16"))
    return config


def default(task: str) -> ConfigDict:
    """All options with their defaults, including those of the task, as a ConfigDict."""
    from ml_collections import ConfigDict

    values = dataclasses.asdict(Config())
    task_options = {key: value for key, value in tasks.options(task).items() if f"task.{key}" not in MOVED}
    values["task"] = {"name": task, **task_options}
    return ConfigDict(values, convert_dict=True)


def from_dict(values: Mapping[str, Any]) -> Config:
    """The typed config of a ConfigDict or of a config.json. Raises InputError with the option and what it may be."""
    plain = values.to_dict() if hasattr(values, "to_dict") else dict(values)
    config: Config = _build(Config, plain, "config")
    return config


def from_dict_of(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    """One group of options (a dataclass of this module) from plain values. Raises InputError prefixed with `where`."""
    return _build(cls, values, where)


def _build(cls: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"{where} must be a group of options, got {shown(values)}")
    types = typing.get_type_hints(cls)
    for key in values:
        if key not in types:
            raise InputError(_no_option(where.removeprefix("config").lstrip("."), key, types))
    paths = {field.name for field in dataclasses.fields(cls) if field.metadata == PATH}
    built = cls(**{key: _convert(types[key], value, f"{where}.{key}", key in paths) for key, value in values.items()})
    if hasattr(built, "validate"):
        built.validate()
    return built


def _no_option(group: str, key: str, options: Iterable[str]) -> str:
    message = f"config{'.' * bool(group)}{group} has no option {key!r}"
    if new_name := MOVED.get(f"{group}.{key}"):
        return f"{message}; its name is now config.{new_name}"
    near = difflib.get_close_matches(key, options, n=1)
    return message + (f"; did you mean {near[0]!r}?" if near else "; star_jax/config.py lists all options")


def _convert(expected: Any, value: Any, where: str, is_path: bool = False) -> Any:
    if dataclasses.is_dataclass(expected):
        return _build(expected, value, where)
    if typing.get_origin(expected) is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where} must be a list, got {shown(value)}")
        item = typing.get_args(expected)[0]
        return tuple(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if typing.get_origin(expected) is not None:  # the options of the task, which tasks.make checks
        if not isinstance(value, Mapping) or "name" not in value:
            raise InputError(f"{where} must hold the task's name and options, got {shown(value)}")
        return dict(value)
    return option_values.checked(value, expected, where, is_path)


def _of_iteration(values: tuple[Any, ...], iteration: int, otherwise: Any) -> Any:
    """The value of iteration 1, 2, ...; the last one also holds later. `otherwise`: the value of an empty list."""
    return values[min(iteration, len(values)) - 1] if values else otherwise


def check_temperature(value: float, option: str) -> None:
    """Raises InputError unless the temperature is 0 (greedy) or one that float32 logits can be divided by."""
    if value and not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
        bounds = f"between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g}"
        raise InputError(f"{option} must be 0 (greedy) or {bounds}, got {value}")


def _between(low: float, high: float, group: Any, *names: str) -> None:
    for name in names:
        value = getattr(group, name)
        if not low <= value <= high:
            bound = f"at least {low}" if value < low else f"at most {high}"
            raise InputError(f"{_group(group)}.{name} must be {bound}, got {value}")


def _share(group: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(group, name) <= 1:
            raise InputError(f"{_group(group)}.{name} must be between 0 and 1, got {getattr(group, name)}")


def _one_of(group: Any, name: str, known: tuple[str, ...]) -> None:
    if getattr(group, name) not in known:
        raise InputError(f"{_group(group)}.{name} must be one of {', '.join(known)}, got {shown(getattr(group, name))}")


def _group(group: Any) -> str:
    name = type(group).__name__.removesuffix("Config").lower()
    return {"": "config", "basestage": "base.stages"}.get(name, name)
