"""selection.dedup: which solutions of a problem are the same, and which of those is kept."""

import functools
import random

import numpy as np
import pytest

from star_jax.algorithms.selection import distinct, edit_distance
from star_jax.tasks.arithmetic import Arithmetic, make_problem
from star_jax.tasks.gsm8k import Gsm8k
from tests.algorithms.selection_test import completion

PROBLEM = make_problem("p", 48, 24, digits=2)
HALF, SUM = "She sold 48/2=<<48/2=24>>24.", "In all 48+24=<<48+24=72>>72."
SAME, OTHER = True, False

# (a solution, another one, whether they count as one). RFT (arXiv 2308.01825, section 3.3): equal lists of equations in
# the same order; blanks and words do not matter, the order of equations and of terms does.
SOLUTIONS = [
    # the words around the equations
    (f"{HALF}\n{SUM}\n#### 72", f"{HALF}\n{SUM}\n#### 72", SAME),
    (f"{HALF}\n{SUM}\n#### 72", f"{HALF} {SUM}\n#### 72", SAME),
    (f"{HALF}\n{SUM}\n#### 72", f"{HALF}\n\n{SUM}\n#### 72", SAME),
    (f"{HALF}\n{SUM}\n#### 72", "Half: <<48/2=24>>24.\nTogether <<48+24=72>>72.\n#### 72", SAME),
    (f"{HALF}\n{SUM}\n#### 72", "<<48/2=24>><<48+24=72>>", SAME),
    (f"{HALF}\n{SUM}\n#### 72", f"{HALF}\n{SUM}\n#### 72.0", SAME),
    (f"{HALF}\n{SUM}\n#### 72", f"First, {HALF}\nThen, {SUM}\nSo it is 72.\n#### 72", SAME),
    (f"{HALF}\n{SUM}\n#### 72", f"{HALF.upper()}\n{SUM.lower()}\n#### 72", SAME),
    (f"{HALF}\n#### 24", "It is 48/2=<<48/2=24>>24, since 2*24=48.\n#### 24", SAME),
    (f"{HALF}\n#### 24", f"{HALF} Check: 24+24=48.\n#### 24", SAME),
    # blanks inside of the annotations
    (f"{HALF}\n#### 24", "<<48 / 2 = 24>>24", SAME),
    (f"{HALF}\n#### 24", "<< 48/2=24 >>24", SAME),
    (f"{HALF}\n#### 24", "<<48/2 =24>>24", SAME),
    ("<<(3 + 4) * 2 = 14>>", "<<(3+4)*2=14>>", SAME),
    ("<<1 000+1=1001>>", "<<1000+1=1001>>", SAME),
    # the order of equations
    (f"{HALF}\n{SUM}", f"{SUM}\n{HALF}", OTHER),
    ("<<2+3=5>> <<4*5=20>> <<20-1=19>>", "<<4*5=20>> <<2+3=5>> <<20-1=19>>", OTHER),
    ("<<2+3=5>> <<4*5=20>> <<20-1=19>>", "<<2+3=5>> <<20-1=19>> <<4*5=20>>", OTHER),
    ("<<1+1=2>> <<1+1=2>> <<2+2=4>>", "<<1+1=2>> <<1+1=2>> <<2+2=4>>", SAME),
    # more, fewer or repeated equations
    (f"{HALF}\n{SUM}", SUM, OTHER),
    (f"{HALF}\n{SUM}", HALF, OTHER),
    (HALF, f"{HALF}\n{HALF}", OTHER),
    ("<<1+1=2>> <<1+1=2>> <<2+2=4>>", "<<1+1=2>> <<2+2=4>>", OTHER),
    (f"{HALF}\n{SUM}", f"{HALF}\n{SUM}\n<<72-0=72>>72", OTHER),
    # commuted, regrouped and rewritten terms
    ("<<48+24=72>>", "<<24+48=72>>", OTHER),
    ("<<2*24=48>>", "<<24*2=48>>", OTHER),
    ("<<3+4+5=12>>", "<<(3+4)+5=12>>", OTHER),
    ("<<3+4+5=12>>", "<<3+4=7>> <<7+5=12>>", OTHER),
    ("<<24+24=48>>", "<<24*2=48>>", OTHER),
    ("<<48/2=24>>", "<<48*0.5=24>>", OTHER),
    ("<<48/2=24>>", "<<48/2=24.0>>", OTHER),
    ("<<100*.5=50>>", "<<100*0.5=50>>", OTHER),
    ("<<50%*100=50>>", "<<0.5*100=50>>", OTHER),
    # other numbers
    ("<<48/2=24>>", "<<48/3=16>>", OTHER),
    ("<<48/2=24>>", "<<48/2=25>>", OTHER),
    ("<<48/2=24>>25", "<<48/2=24>>24", SAME),
    # solutions without an annotation have the empty list
    ("It is 72.\n#### 72", "Forty-eight and 24.\n#### 72", SAME),
    ("It is 72.\n#### 72", "48+24=72\n#### 72", SAME),
    ("It is 72.\n#### 72", f"{SUM}\n#### 72", OTHER),
    ("", "#### 72", SAME),
]  # fmt: skip


def kept(texts, count=0, task=Gsm8k()):
    samples = [completion(PROBLEM, text=text, sample_index=i) for i, text in enumerate(texts)]
    return [sample.text for sample in distinct(samples, task, count)]


def test_the_table_is_the_paper_s_rule():
    assert len(SOLUTIONS) == 40
    wrong = [(a, b) for a, b, same in SOLUTIONS if (len(kept([a, b])) == 1) != same or (len(kept([b, a])) == 1) != same]
    assert not wrong


def test_without_steps_equal_texts_are_the_same_and_nothing_else():
    assert [len(kept([a, b], task=None)) for a, b, _ in SOLUTIONS] == [1 + (a != b) for a, b, _ in SOLUTIONS]


def test_scratchpads_are_their_lines_and_texts_without_one_are_themselves():
    task = Arithmetic()
    right = task.reference(PROBLEM)
    other = right.replace("C: 1", "C: 0", 1)
    assert other != right and kept([right, right + "\n", other], task=task) == [right, other]
    assert kept(["7 2", "7 3", "7 2"], task=task) == ["7 2", "7 3"]


def test_of_the_same_steps_the_text_farthest_from_those_kept_is_kept():
    first, near, far = "<<1+1=2>>2 apples", "<<2+1=3>>3 apples", "<<2+1=3>>so there are, in the end, three pears"
    assert kept([first, near, far]) == [first, far]
    assert kept([near, far, first]) == [near, first]  # nothing is kept before them: the first of equals
    assert kept([first, near, far], count=1) == [first]


@functools.cache
def brute_force_distance(a, b):
    """The recursive definition."""
    if not a or not b:
        return len(a) + len(b)
    step = brute_force_distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(step, 1 + brute_force_distance(a[1:], b), 1 + brute_force_distance(a, b[1:]))


@pytest.mark.parametrize("seed", range(4))
def test_the_edit_distance_is_the_definition_s(seed):
    rng = random.Random(seed)
    for _ in range(100):
        a, b = ("".join(rng.choices("abé", k=rng.randrange(9))) for _ in range(2))
        assert edit_distance(a, b) == edit_distance(b, a) == brute_force_distance(a, b)


def test_kept_solutions_are_those_of_an_independent_selection():
    """Random solutions with few distinct equations, against the rule in a few lines of NumPy."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        texts = [
            " ".join(f"<<{k}+1={k + 1}>>" + " so" * int(rng.integers(3)) for k in rng.integers(2, size=2))
            for _ in range(12)
        ]
        keys = np.array([" ".join(part.split(">>")[0] for part in text.split("<<")[1:]) for text in texts])
        expected: list[str] = []
        for key in keys[np.sort(np.unique(keys, return_index=True)[1])]:
            same = [text for text, of in zip(texts, keys, strict=True) if of == key]
            distances = np.array([sum(brute_force_distance(text, other) for other in expected) for text in same])
            expected.append(same[int(distances.argmax())])
        assert kept(texts) == expected
        assert kept(texts, count=2) == expected[:2]
