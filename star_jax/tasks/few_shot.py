"""Few-shot prompts, from text files that a person can read and edit: shots separated by blank lines.

README.md in this folder describes the files.
"""

import dataclasses
import hashlib
import io
import itertools
from pathlib import Path

from star_jax.errors import InputError
from star_jax.json_reader import open_regular
from star_jax.records import Problem, Prompt
from star_jax.tasks.base import Task

PACKAGED = Path(__file__).parent / "prompts"
_REMEDY = "name their folder in --config.prompt.directory, or set --config.prompt.shots=0"


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


def load(name: str, shots: int, direct: bool, directory: str = "", task: Task | None = None) -> PromptSet:
    """The first `shots` shots of <name>.txt and <name>_hint.txt, or of <name>_direct.txt if `direct`.

    `name`: of the task; of a user's own, "file.py:Parity", the class's name in lower case. A task with `hinted_shot`
    needs no <name>_hint.txt.
    The files are in `directory`; by default, in this package's prompts/. Raises InputError if a file is missing, holds
    fewer shots, or holds a shot that is not a problem and a completion of `task` (None: not checked).
    """
    if shots == 0:
        return PromptSet()
    folder, name = Path(directory) if directory else PACKAGED, name.rpartition(":")[2].lower()
    if direct:
        return PromptSet(plain="".join(_shots(folder / f"{name}_direct.txt", shots, task)))
    plain = _shots(folder / f"{name}.txt", shots, task)
    hinted = [hinted for shot in plain if task and (hinted := task.hinted_shot(shot)) is not None]
    if not hinted:
        hinted = _shots(folder / f"{name}_hint.txt", shots, task)
    return PromptSet("".join(plain), "".join(hinted))


def are_packaged(name: str) -> bool:
    """Whether a task's prompt files are in this package."""
    return (PACKAGED / f"{name}.txt").is_file()


def read_shots(path: Path) -> list[str]:
    """The shots of a prompt file, in order, without the blank lines between them. Raises InputError if unreadable."""
    return [shot for _, shot in _numbered_shots(path)]


def _numbered_shots(path: Path) -> list[tuple[int, str]]:
    """(number of its first line, shot) of a file. A line of white space alone separates shots, as an empty one does."""
    try:
        with open_regular(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig").read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot read the few-shot prompts ({reason}); {_REMEDY}") from error
    lines = list(enumerate(text.split("\n"), start=1))
    groups = itertools.groupby(lines, key=lambda line: bool(line[1].strip()))
    shots = [list(group) for is_shot, group in groups if is_shot]
    return [(shot[0][0], "\n".join(line for _, line in shot)) for shot in shots]


def _shots(path: Path, shots: int, task: Task | None) -> list[str]:
    """The first shots of a file, each with a blank line at its end. Raises InputError."""
    available = _numbered_shots(path)
    if len(available) < shots:
        raise InputError(f"{path} holds {len(available)} shots, {shots} are asked for; lower --config.prompt.shots")
    for number, shot in available[:shots]:
        if task and (fault := _fault(shot, task)):
            raise InputError(f"{path}:{number}: {fault}; correct the shot, and separate shots by blank lines alone")
    return [shot + "\n\n" for _, shot in available[:shots]]


def _fault(shot: str, task: Task) -> str:
    """What is wrong with a shot; "" if it is a problem and a completion with an answer.

    A blank line in a shot cuts it in two: one of them has no completion, or its completion has no answer.
    """
    problem, completion = task.split_turns(shot)
    if not problem.strip() or not completion.strip():
        return "the shot is not a problem and its completion"
    if stops := [stop for stop in task.stop if stop in completion.rstrip("\n")]:
        return f"the completion of the shot holds {stops[0]!r}, a stop of completions"
    return "" if task.parse(completion) is not None else "the completion of the shot has no answer"
