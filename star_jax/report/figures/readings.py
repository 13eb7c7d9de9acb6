"""How to read each figure: what a healthy one looks like, and what a sign of trouble is."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Reading:
    """Two parts of a sentence below a figure."""

    healthy: str
    trouble: str


ACCURACY = Reading(
    "the lines climb and level off",
    "a line falls by more than its intervals, or all stay within the base's, so that nothing shows progress",
)
OVERLAY = Reading(
    "the lines climb and level off, and the bands are narrow next to the distance between the lines",
    "lines that differ by no more than a band is wide: the seed alone makes as much of a difference",
)
MANY_LINES = Reading(
    "the lines climb and level off",
    "a line falls back, or stays where it began while others climb",
)
SEED_DOTS = Reading(
    "the dots of an arm lie close together next to the distance between the arms",
    "the dots of two arms overlap as much as those of one spread: more seeds are needed to tell them apart",
)
CATEGORY_OVERLAYS = Reading(
    "a category climbs in all runs of a line",
    "a category stays level while others climb, or loses what it had gained",
)
KEPT = Reading(
    "the sampled part grows towards the outline, and the rationalized part shrinks as fewer problems are left to it",
    "few examples are kept, or fewer than before, so that there is little to learn from",
)
LOSS = Reading(
    "each line falls, fast at first and then slowly",
    "a line rises or jumps, often because the learning rate is too high; where rationales are free text, a loss near 0 "
    "suggests that the examples are learned by heart",
)
BASE_LOSS = Reading(
    "the line falls and levels off",
    "it rises or jumps, or still falls steeply at its end, where more steps would probably have lowered it further",
)
STEPS = Reading(
    "the dots stay near the line, or below it where a shorter solution exists",
    "many dots lie far above it, where solutions often repeat themselves, or far below, where steps may be left out",
)
NOT_RIGHT = Reading(
    "“wrong” falls",
    "“unparsable” or “truncated” rises: completions lose the form of an answer, or do not end",
)
WRONG_STEPS = Reading(
    "near 0",
    "it rises: unless selection.check is steps, such rationales are kept and trained on",
)
DISTINCT = Reading(
    "it hardly changes",
    "it falls by half or more: the same texts are written again and again",
)
TOKENS = Reading(
    "it hardly changes",
    "it rises on and on, as when texts repeat themselves, or falls towards the length of a bare answer",
)
NLL = Reading(
    "it falls slowly, as training makes the model surer",
    "it is near 0 and the accuracy no longer rises: the samples hardly vary, so there is little new to keep",
)
HINTS = Reading(
    "0, or near it",
    "it rises: the model learns to write of hints, which it does not have when it is evaluated",
)
NEVER_SOLVED = Reading(
    "it falls",
    "it stays level while the same problems are tried again: the loop finds no new solutions",
)
EXPLORATION = Reading(
    "it shrinks only as fast as one try gets right more often",
    "it goes to 0 while accuracy stays level: all samples of a problem are alike, and nothing new can be kept",
)
SOLUTIONS = Reading(
    "it stays above 1: different ways to an answer are found",
    "it falls to 1: each problem has one solution, and training repeats it",
)
