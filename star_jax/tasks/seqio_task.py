"""Any registered seqio Task or Mixture whose "inputs" and "targets" are texts. The inputs "How much is 3 + 4?" and the
targets "3 and 4 more is 7.\\n#### 7" become this problem, whose completion begins after "A:":

    Q: How much is 3 + 4?                         <- with a hint: Q: How much is 3 + 4? (7)
    A: 3 and 4 more is 7.
    #### 7

Targets without the marker are the answer; there is no reference rationale then. The first rationales come from
few-shot prompts (seqio_task.txt and seqio_task_hint.txt in prompt.directory).
"""

import contextlib
import dataclasses
import importlib
import itertools
import string
from typing import Any, ClassVar

from star_jax import terminal
from star_jax.errors import InputError
from star_jax.option_values import CODE
from star_jax.records import Problem
from star_jax.tasks.base import MAX_TOKENS, Task, check_split


def import_seqio() -> Any:
    """seqio, which brings TensorFlow: five to ten seconds.

    Call it in the main thread: etils' lazy imports break imports in other threads while it runs.
    """
    with terminal.without_tensorflow_logs():
        import seqio
        import tensorflow as tf

        # It works on the CPU here, and would take GPU memory from JAX. A user's module may have started it before.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")

    return seqio


@dataclasses.dataclass(frozen=True)
class SeqioTask(Task):
    """Problems of a seqio Task, or of a Mixture's Tasks in turn, each problem once; mixing rates are not used."""

    task: str = ""  # name in seqio's registry; required
    # Python module to import, which registers it; "": it is registered already
    module: str = dataclasses.field(default="", metadata=CODE)
    train_split: str = "train"  # the data source's name of the split; TFDS sources accept slices such as "train[:90%]"
    dev_split: str = "validation"
    test_split: str = "test"
    answer_marker: str = "####"  # the answer follows the last marker, to the end of the line
    hint_template: str = "Q: {inputs} ({answer})\nA:"
    max_tokens: int = 256  # token budget of one completion

    stop: ClassVar[tuple[str, ...]] = ("\n\n", "\nQ:")

    def __post_init__(self) -> None:
        if not self.task:
            raise InputError("task 'seqio_task' needs the name of a seqio Task; set --config.task.task=...")
        if not 1 <= self.max_tokens <= MAX_TOKENS or not self.answer_marker.strip():
            raise InputError(
                f"task: needs max_tokens of at least 1 (at most {MAX_TOKENS}) and an answer_marker that is not blank"
            )
        try:
            parts = [part[1:] for part in string.Formatter().parse(self.hint_template) if part[1] is not None]
        except ValueError:
            parts = []
        # Plain fields only: a format specification such as {answer:>999999999} sets sizes.
        if {field for field, _, _ in parts} != {"inputs", "answer"} or any(spec or kind for _, spec, kind in parts):
            raise InputError(f"task.hint_template must hold {{inputs}} and {{answer}}, got {self.hint_template!r}")

    @property
    def max_new_tokens(self) -> int:
        return self.max_tokens

    def problems(self, split: str) -> list[Problem]:
        check_split(split, ("train", "dev", "test"))
        option = f"{split}_split"
        all_tasks = self._seqio_tasks()
        seqio_tasks = [t for t in all_tasks if getattr(self, option).split("[")[0] in t.splits]
        if not seqio_tasks:
            available = ", ".join(sorted({name for t in all_tasks for name in t.splits}))
            raise InputError(
                f"seqio task {self.task!r} has no split {getattr(self, option)!r}, only {available}; "
                f"set --config.task.{option}=..."
            )
        texts = [[(t.name, *pair) for pair in _read(t, getattr(self, option))] for t in seqio_tasks]
        interleaved = [item for turn in itertools.zip_longest(*texts) for item in turn if item is not None]
        return [
            self._problem(f"{split}-{i}", inputs, targets, category=name if len(seqio_tasks) > 1 else "")
            for i, (name, inputs, targets) in enumerate(interleaved)
        ]

    def render(self, problem: Problem, hint: bool = False) -> str:
        if hint:
            return self.hint_template.format(inputs=problem.question, answer=problem.answer)
        return f"Q: {problem.question}\nA:"

    def parse(self, text: str) -> str | None:
        if not self.direct:
            _, marker, after = text.rpartition(self.answer_marker)
            text = after.split("\n")[0] if marker else ""
        return " ".join(text.split()) or None

    def grade(self, problem: Problem, answer: str) -> bool:
        """Whether the answers are equal, ignoring case, the width of spaces, and one full stop at the end."""
        return _normal(answer) == _normal(problem.answer)

    def reference(self, problem: Problem) -> str | None:
        text = problem.answer if self.direct else problem.rationale
        return None if text is None else f" {text}"

    def _problem(self, name: str, inputs: str, targets: str, category: str) -> Problem:
        _, marker, after = targets.rpartition(self.answer_marker)
        answer = " ".join((after.split("\n")[0] if marker else targets).split())
        if not answer:
            raise InputError(f"seqio task {self.task!r}: {name} has targets without an answer: {targets!r}")
        # A blank line would stop the completion, so the reference has none.
        rationale = "\n".join(line.rstrip() for line in targets.strip().split("\n") if line.strip())
        return Problem(name, inputs.strip(), answer, category, rationale=rationale if marker else None)

    def _seqio_tasks(self) -> list[Any]:
        """The Task by that name, or the Tasks of the Mixture."""
        seqio = import_seqio()
        if self.module:
            try:
                importlib.import_module(self.module)
            except ImportError as error:
                raise InputError(
                    f"module {self.module!r} cannot be imported ({error}); correct --config.task.module"
                ) from error
        try:
            provider = seqio.get_mixture_or_task(self.task)
        except ValueError as error:
            raise InputError(
                f"no seqio Task or Mixture {self.task!r} is registered; set --config.task.module to its module"
            ) from error
        return list(provider.tasks) if isinstance(provider, seqio.Mixture) else [provider]


def _read(task: Any, split: str) -> list[tuple[str, str]]:
    """(inputs, targets) of a seqio Task's split, in its order, as texts before tokenization. Raises InputError."""
    try:
        dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False)
    except (ValueError, KeyError) as error:
        raise InputError(f"seqio task {task.name!r}: split {split!r} cannot be read ({error})") from error
    names = []
    for feature in ("inputs", "targets"):
        text_name = f"{feature}_pretokenized"
        names.append(text_name if text_name in dataset.element_spec else feature)
        if names[-1] not in dataset.element_spec:
            available = ", ".join(dataset.element_spec)
            raise InputError(f"seqio task {task.name!r} has no feature {feature!r}, only {available}")
        spec = dataset.element_spec[names[-1]]
        if spec.dtype.name != "string" or spec.shape.rank:
            raise InputError(
                f"seqio task {task.name!r}: {names[-1]!r} is not text but {spec.dtype.name} of shape {spec.shape}; "
                "use seqio.preprocessors.tokenize, which keeps the text, or no tokenization"
            )
    try:
        examples = [tuple(example[name].decode() for name in names) for example in dataset.as_numpy_iterator()]
    except UnicodeDecodeError as error:
        raise InputError(f"seqio task {task.name!r}: split {split!r} holds text that is not UTF-8 ({error})") from error
    return [(inputs, targets) for inputs, targets in examples]


def _normal(answer: str) -> str:
    return " ".join(answer.split()).casefold().removesuffix(".").rstrip()
