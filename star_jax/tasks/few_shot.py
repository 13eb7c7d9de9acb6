"""Few-shot prompts, from text files that a person can read and edit: shots separated by blank lines.

README.md in this folder describes the files.
"""

import dataclasses
import hashlib
from pathlib import Path

from star_jax.errors import InputError
from star_jax.records import Problem, Prompt
from star_jax.tasks.base import Task

PACKAGED = Path(__file__).parent / "prompts"


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """The few-shot prefixes of a run, each with a blank line at its end, or empty.

    `plain` holds shots with rationales (bare answers for star.direct), `hinted` shots whose problems state the answer.
    """

    plain: str = ""
    hinted: str = ""

    @property
    def fingerprint(self) -> str:
        """The first twelve hex digits of the SHA-256 of both texts, for provenance."""
        return hashlib.sha256(f"{self.plain}\0{self.hinted}".encode()).hexdigest()[:12]

    def prompt(self, task: Task, problem: Problem, hint: bool = False) -> Prompt:
        """This set's shots, then the problem; with `hint`, the hinted shots and the hinted problem."""
        return Prompt(self.hinted if hint else self.plain, task.render(problem, hint))

    def without_shots(self) -> "PromptSet":
        """The empty set, for a fine-tuned model that needs no examples (star.prompt_after_first_iteration=False)."""
        return PromptSet()


def load(name: str, shots: int, direct: bool, directory: str = "") -> PromptSet:
    """The first `shots` shots of <name>.txt and <name>_hint.txt, or of <name>_direct.txt if `direct`.

    The files are in `directory`; by default, in this package's prompts/. Raises InputError if a file is missing or
    holds fewer shots.
    """
    if shots == 0:
        return PromptSet()
    folder = Path(directory) if directory else PACKAGED
    if direct:
        return PromptSet(plain=_prefix(folder / f"{name}_direct.txt", shots))
    return PromptSet(_prefix(folder / f"{name}.txt", shots), _prefix(folder / f"{name}_hint.txt", shots))


def read_shots(path: Path) -> list[str]:
    """The shots of a prompt file, in order, without the blank lines between them. Raises InputError if unreadable."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the few-shot prompts ({error}); set --config.prompt.shots=0") from error
    return [shot.strip("\n") for shot in text.split("\n\n") if shot.strip()]


def _prefix(path: Path, shots: int) -> str:
    available = read_shots(path)
    if len(available) < shots:
        raise InputError(f"{path} holds {len(available)} shots, {shots} are asked for; lower --config.prompt.shots")
    return "".join(shot + "\n\n" for shot in available[:shots])
