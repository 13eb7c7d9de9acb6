"""The weights of a run: on disk, in host memory, on the training mesh and on the sampling mesh."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from star_jax.distributed import processes
from star_jax.models import decoder
from star_jax.models.decoder import DecodeParams
from star_jax.runs.atomic_files import refuse_links
from star_jax.runs.layout import model_directory
from star_jax.runs.metrics import Phases
from star_jax.tokenizers.base import Tokenizer
from star_jax.weights import checkpoint, placement
from star_jax.weights import fingerprint as fingerprints


@dataclasses.dataclass(frozen=True)
class StoreSpec:
    """What a store holds and where."""

    workdir: Path
    model: decoder.Decoder
    tokenizer: Tokenizer
    training_mesh: Mesh
    sampling_mesh: Mesh
    training_dtype: str
    sampling_dtype: str
    # Iterations that a later fine-tuning starts from; their weights wait in host memory if it has the room.
    starts_fine_tuning: Callable[[int], bool]


class WeightStore:
    """The weights of iteration 0 (the base), 1, 2, ... of one run.

    Training weights are stacked trees on the training mesh, sampling weights are DecodeParams on the sampling mesh. At
    most one iteration's sampling weights are on the devices. All processes must make the same calls together.
    """

    def __init__(self, spec: StoreSpec, phases: Phases) -> None:
        self.spec, self._phases = spec, phases
        self._sampling: tuple[int, DecodeParams] | None = None
        self._host: tuple[int, decoder.Params] | None = None
        self._saving: checkpoint.AsyncModelSave | None = None

    def directory(self, n: int) -> Path:
        """The model directory of iteration n."""
        return model_directory(self.spec.workdir, n)

    def exists(self, n: int) -> bool:
        """Whether iteration n's model is complete on disk."""
        return processes.broadcast_from_leader(lambda: checkpoint.exists(self.directory(n)))

    def fingerprint(self, n: int) -> str:
        """The fingerprint of iteration n's weights, from disk."""
        return processes.broadcast_from_leader(lambda: checkpoint.stored_fingerprint(self.directory(n)))

    def ensure_base(self, make: Callable[[], decoder.Params]) -> None:
        """Stores what `make` returns as the base if there is none yet. Costs whatever `make` costs, and a save."""
        if not self.exists(0):
            with self._phases("base"):
                params = make()
            self.publish(0, params)

    def to_training(self, n: int) -> decoder.Params:
        """Iteration n's weights on the training mesh, in buffers that the caller may donate.

        Costs a copy from host memory or a load from disk. Frees the sampling weights first: training needs the room.
        """
        self.free()
        with self._phases("load"):
            if self._host is not None and self._host[0] == n:
                return placement.from_host(self._host[1])
            return self._load(n)

    def for_sampling(self, n: int) -> DecodeParams:
        """Iteration n's weights on the sampling mesh. Costs a load and a reshard unless they are there already."""
        if self._sampling is None or self._sampling[0] != n:
            self.free()
            with self._phases("load"):
                params = self._load(n)
            self._to_sampling_mesh(n, params)
        assert self._sampling is not None
        return self._sampling[1]

    def publish(self, n: int, params: decoder.Params) -> str:
        """Saves new weights and puts them on the sampling mesh; returns their fingerprint.

        The save continues in the background if host memory has room for a copy; `wait` before relying on it.
        """
        with self._phases("save"):
            processes.broadcast_from_leader(lambda: refuse_links(self.spec.workdir, self.directory(n), below=True))
            model = self.directory(n), self.spec.model, params, self.spec.tokenizer
            stored = self.fingerprint(n) if self.exists(n) else ""
            if stored and stored != fingerprints.fingerprint(params):
                processes.broadcast_from_leader(lambda: shutil.rmtree(self.directory(n)))  # saved with other settings
                stored = ""
            if stored:  # saved by a run that was killed before it could write finetune.json
                fingerprint = stored
            elif n and processes.host_memory_available(placement.host_bytes(params)):
                self._saving = checkpoint.AsyncModelSave(*model)
                fingerprint = self._saving.fingerprint
            else:
                fingerprint = checkpoint.save_model(*model)
        self._cache_on_host(n, params)
        self._to_sampling_mesh(n, params)
        return fingerprint

    def wait(self) -> None:
        """Waits until published weights are complete on disk."""
        if self._saving is not None:
            with self._phases("save"):
                self._saving.finish()
                self._saving = None

    def free(self) -> None:
        """Frees the weights on the sampling mesh."""
        self._sampling = None

    def close(self) -> None:
        """Ends background work. After an error no process may write into a directory that another run starts again.

        With several processes each exits after an error and takes its threads along: waiting for them would deadlock.
        """
        if self._saving is not None and processes.count() == 1:
            with contextlib.suppress(Exception):  # the error that led here is the one to report
                self._saving.wait()

    def _load(self, n: int) -> decoder.Params:
        _, params = checkpoint.load_model(self.directory(n), self.spec.training_mesh, self.spec.training_dtype)
        self._cache_on_host(n, params)
        return params

    def _cache_on_host(self, n: int, params: decoder.Params) -> None:
        needed = self.spec.starts_fine_tuning(n) and (self._host is None or self._host[0] != n)
        if needed and processes.host_memory_available(placement.host_bytes(params)):
            self._host = n, placement.to_host(params)

    def _to_sampling_mesh(self, n: int, params: decoder.Params) -> None:
        spec = self.spec
        self.free()
        self._sampling = n, placement.to_decode_params(spec.model, params, spec.sampling_mesh, spec.sampling_dtype)
