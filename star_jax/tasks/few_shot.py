"""Few-shot prompts: texts a person can read and edit, one shot after the other with a blank line between."""

import dataclasses
import hashlib
from pathlib import Path

from star_jax.errors import InputError
from star_jax.records import Problem, Prompt
from star_jax.tasks.base import Task

PACKAGED = Path(__file__).parent / "prompts"


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """The prefixes of one run: shots with rationales (or bare answers), and shots whose problems show the answer."""

    plain: str = ""
    hinted: str = ""

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of the SHA-256 of both texts, for provenance."""
        return hashlib.sha256(f"{self.plain}\0{self.hinted}".encode()).hexdigest()[:12]

    def prompt(self, task: Task, problem: Problem, hint: bool = False) -> Prompt:
        """The prompt of a problem behind this set's shots."""
        return Prompt(self.hinted if hint else self.plain, task.render(problem, hint))

    def without_shots(self) -> "PromptSet":
        """The empty set, for a model that has been fine-tuned and needs no examples."""
        return PromptSet()


def load(name: str, shots: int, direct: bool, directory: str = "") -> PromptSet:
    """The first `shots` shots of <name>.txt and <name>_hint.txt, or of <name>_direct.txt for answers only.

    From `directory`, or from the package's own prompts. Raises InputError where a file is missing or too short.
    """
    if shots == 0:
        return PromptSet()
    folder = Path(directory) if directory else PACKAGED
    if direct:
        return PromptSet(plain=_prefix(folder / f"{name}_direct.txt", shots))
    return PromptSet(_prefix(folder / f"{name}.txt", shots), _prefix(folder / f"{name}_hint.txt", shots))


def read_shots(path: Path) -> list[str]:
    """The shots of a prompt file, in order, without the blank lines between them. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the few-shot prompts ({error}); set --config.prompt.shots=0") from error
    return [shot.strip("\n") for shot in text.split("\n\n") if shot.strip()]


def _prefix(path: Path, shots: int) -> str:
    found = read_shots(path)
    if len(found) < shots:
        raise InputError(f"{path} holds {len(found)} shots, {shots} are asked for; lower --config.prompt.shots")
    return "".join(shot + "\n\n" for shot in found[:shots])
