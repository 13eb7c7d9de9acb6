"""A run in progress: what its stages share."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

from jax.sharding import Mesh

from star_jax.algorithms import problem_order
from star_jax.algorithms.shared_base import SharedBase
from star_jax.algorithms.stored_samples import StoredSamples
from star_jax.config import Config
from star_jax.evaluation.generate import SampleStream, sampler_spec
from star_jax.evaluation.prompts import PromptEncoder
from star_jax.models import decoder
from star_jax.records import Completion, Problem
from star_jax.runs.metrics import MetricsLog, Phases
from star_jax.runs.run_directory import RunDirectory
from star_jax.sampling.sampler import Request, Sample, Sampler
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks import Task
from star_jax.tokenizers.base import Tokenizer
from star_jax.weights.store import WeightStore


@dataclasses.dataclass
class Run:
    """Everything the stages of a run need. `setup.open_run` makes it."""

    config: Config
    run_dir: RunDirectory
    task: Task
    tokenizer: Tokenizer
    model: decoder.Decoder
    mesh: Mesh  # for training
    sampling_mesh: Mesh
    weights: WeightStore
    first_prompts: PromptEncoder  # of the base's evaluation and of iteration 1
    later_prompts: PromptEncoder  # of the others; see star.prompt_after_first_iteration
    train_problems: list[Problem]
    eval_problems: dict[str, list[Problem]]  # by split: first the one that selects, then the one that is only reported
    log: MetricsLog
    phases: Phases
    samples_from: StoredSamples | None  # the run whose samples take the place of new ones
    shared_base: SharedBase | None  # the run that has evaluated this run's base
    longest_body: int  # tokens of the longest prompt body, hints included, so that all passes share their programs

    def prompts(self, iteration: int) -> PromptEncoder:
        """The prompts with which iteration 1, 2, ... samples."""
        return self.first_prompts if iteration == 1 else self.later_prompts

    def round(self, n: int) -> problem_order.Round:
        """What the finished sampling of iteration n says of its problems."""
        if n not in self._rounds:
            paths = [self.run_dir.path(n, f"{name}.jsonl") for name in ("samples", "rationalizations")]
            completions = [self.run_dir.read_records(Completion, p) if self.run_dir.exists(p) else [] for p in paths]
            self._rounds[n] = problem_order.round_of(*completions)
        return self._rounds[n]

    def stream(self, n: int, decoding: Decoding) -> SampleStream:
        """Samples from the weights of iteration n; they are loaded when the first chunk is asked for."""

        def stream(requests: Sequence[Request]) -> Iterator[list[tuple[int, Sample]]]:
            return self._sampler(decoding).stream(self.weights.for_sampling(n), requests)

        return stream

    def close(self) -> None:
        """Ends background work and releases the run's directory."""
        self.log.close()
        self.weights.close()
        self.run_dir.close()

    @functools.cached_property
    def _rounds(self) -> dict[int, problem_order.Round]:
        return {}

    @functools.cached_property
    def _samplers(self) -> dict[Decoding, Sampler]:
        return {}

    def _sampler(self, decoding: Decoding) -> Sampler:
        """One sampler for each way of decoding: its stop automaton takes a while to build."""
        if decoding not in self._samplers:
            spec = sampler_spec(self.config, self.task, decoding, self.longest_body)
            self._samplers[decoding] = Sampler(self.model, self.tokenizer, self.sampling_mesh, spec)
        return self._samplers[decoding]
