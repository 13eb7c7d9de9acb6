"""star_jax.tasks.answers.choices: which letter a completion chooses, what is named beside it, and in what time."""

import copy
import dataclasses
import pickle

import pytest

from star_jax.records import Problem
from star_jax.tasks.answers import choices
from star_jax.tasks.answers.choices import Choice, agrees, closing_choice, normalised, stated_choice
from tests.support.tables import every_row

INK = Problem(
    id="ink",
    question="What do people use to absorb extra ink from a fountain pen?",
    answer="e",
    choices=("shirt pocket", "calligrapher's hand", "inkwell", "desk drawer", "blotter"),
)

# (text, letter)
CHOSEN = [
    (" Therefore, the answer is blotter (e).", "e"),
    (" (e).", "e"),
    ("(e)", "e"),
    ("(E)", "e"),
    ("e)", "e"),
    ("[e]", "e"),
    ("{e}", "e"),
    (" (e) .", "e"),
    ("E.", "e"),
    ("E", "e"),
    ("e", "e"),
    ("**(e)**", "e"),
    ("**E**", "e"),
    ("answer: E", "e"),
    ("Answer: (e) blotter", "e"),
    ("the answer is (e)", "e"),
    ("the answer is E.", "e"),
    ("the answer is e: blotter", "e"),
    ("the correct answer is option E", "e"),
    ("choice (e)", "e"),
    ("so E is correct", "e"),
    ("(e) blotter", "e"),
    ("e. blotter", "e"),
    ("blotter (e)", "e"),
    ('(e)" ', "e"),
    ("'E'", "e"),
    ("The answer is therefore (e) blotter.", "e"),
    ("\\boxed{E}", "e"),
    ("$\\boxed{\\text{E}}$", "e"),
    ("\\(E\\)", "e"),
    ("\\[\\boxed{(E)}\\]", "e"),
    ("$E$", "e"),
    ("__E__", "e"),
    ("_e_", "e"),
    ("`e`", "e"),
    ("（ｅ）", "e"),
    ("(Ｅ)", "e"),
    ("“e”", "e"),
    ("( e )", "e"),
    ("(e.)", "e"),
    ("((e))", "e"),
    ("(**e**)", "e"),
    ("The answer is a.", "a"),
    ("a", "a"),
    ("A", "a"),
    ("the answer, I think, is (e)", "e"),
    ("(a) is wrong since it is small; therefore, the answer is river (c).", "c"),
    ("The answer is (c), not (a).", "c"),
    ("The answer is not (a) but (c).", "c"),
    ("The answer is not A but C.", "c"),
    ("the answer is (c) because (a) and (b) are both wrong.", "c"),
    ("the answer is (c) since (a) is too small.", "c"),
    ("the answer is (c). (a) is wrong.", "c"),
    ("The answer is (c) rather than (a).", "c"),
    ("the answer is (a). No wait, the answer is (b).", "b"),
    ("The answer is (c). The answer is not (a).", "c"),
    ("The answer must be a place. Only a river flows. Therefore, the answer is river (c).", "c"),
    ("The answer is (c). The answer must flow.", "c"),
    ("Therefore, the answer is he had a word with the driver. (c).", "c"),
    ("Therefore, the answer is washington d.c (e).", "e"),
    ("Therefore, the answer is washington d.c. (e).", "e"),
    ("the answer is u.s. capital (b).", "b"),
    ("the answer is trial or error (d).", "d"),
    ("the answer is not enough money (b).", "b"),
    ("the answer is answer questions (c).", "c"),
    ("the answer is a bed (a).", "a"),
    ('The answer is "bed" (b).', "b"),
    ("the answer is B (a).", "a"),
    ("the answer is blotter, which is option (e).", "e"),
    ("the answer is blotter (option e).", "e"),
    ("the answer is blotter: e.", "e"),
    ("the answer is blotter, E.", "e"),
    ("The answer is blotter - (e)", "e"),
    ("the answer is blotter(e).", "e"),
    ("the answer is shirt(s) (e).", "e"),
    ("Answer:\n(e)", "e"),
    ("The answer is:\n\n\\boxed{E}", "e"),
    ("**Answer:** E", "e"),
    ("**Answer: E**", "e"),
    ("Final answer: E", "e"),
    ("Answer - E", "e"),
    ("Answer (e)", "e"),
    ("Option E", "e"),
    ("Option E: blotter", "e"),
    ("the answer is option E blotter", "e"),
    ("(e) is the correct answer.", "e"),
    ("Blotter (e) is the best answer.", "e"),
    ("(e) blotter is correct.", "e"),
    ("So option E is the right choice.", "e"),
    ("I choose (e).", "e"),
    ("I would pick E.", "e"),
    ("I'll go with (e) blotter.", "e"),
    ("I think it is (e).", "e"),
    ("I think E.", "e"),
    ("The best choice is (e).", "e"),
    ("The correct option would be E.", "e"),
    ("The answer must be (e).", "e"),
    ("The answer, therefore, is (e).", "e"),
    ("The answer to this question is (e).", "e"),
    ("The answer should be E because it holds ink.", "e"),
    ("The answer is E, because it holds ink.", "e"),
    ("The answer is A because it holds ink.", "a"),
    ("(e) because it holds ink.", "e"),
    ("(e). It holds ink.", "e"),
    ("E. It holds ink.", "e"),
    ("Because ink spills, people use a blotter (e).", "e"),
    ("Therefore, blotter (e).", "e"),
    ("Hence (e).", "e"),
    ("since (a) is small, blotter (e).", "e"),
    ("A: (e)", "e"),
    ("A: E", "e"),
    ("(e) (blotter)", "e"),
    ("E (blotter)", "e"),
    ("the answer is E - blotter", "e"),
    ("the answer is E – blotter", "e"),
    ("z", "z"),
    ("(z)", "z"),
    ("the answer is (e) (e).", "e"),
    ("so it must be (e).", "e"),
    ("We can rule out (a). The answer is (b).", "b"),
    ("The answer is not blotter (e).", "e"),
    ("the answer is (c) and it is clear.", "c"),
    ("the answer is probably E.", "e"),
    ("Maybe (e).", "e"),
    ("Maybe the answer is (d).", "d"),
    ("The answer is E!", "e"),
    ("the answer is a: a bed", "a"),
    ("the answer is (a) a bed", "a"),
    ("the answer is a, the bed", "a"),
    ("I", "i"),
    ("(b) people who read", "b"),
    ("The answer is (B)", "b"),
    ("Answer is (b) .", "b"),
    ("he said (a)", "a"),
    ("My answer: C)", "c"),
    ("The answer is **blotter** (**e**).", "e"),
    ('The answer is "blotter" (e).', "e"),
    ("The answer is the blotter (e).", "e"),
    ("THE ANSWER IS BLOTTER (E).", "e"),
    ("The answer is blotter (e) because (a) cannot hold ink.", "e"),
    ("Of (a), (b), (c), (d) and (e), only a blotter absorbs. So the answer is (e).", "e"),
    ("The answer is $\\boxed{\\textbf{(E)}}$.", "e"),
    ("The answer is \\boxed{E. blotter}", "e"),
    ("The answer is: E) blotter", "e"),
    ("the answer is [E]", "e"),
    ("The answer is (B). Eliminated: (A), (C), (D).", "b"),
    ("So, it's blotter (b), not bank (d).", "b"),
    ("The answer is (b). In contrast, (a) is wet.", "b"),
    ("The answer is (b), whereas (a) and (c) are wet.", "b"),
    ("The answer is (b). I rejected (a), (c) and (d).", "b"),
    ("It does not hold ink, so the answer is (e).", "e"),
]

NOT_CHOSEN = [
    "he slept in a bed.",
    "the answer is a bed.",
    "I think so.",
    "I am not sure.",
    "the answer is I think bed",
    "(e.g. ink)",
    "i.e. ink",
    "e.g. ink",
    "plan B",
    "They went with plan B.",
    "vitamin C",
    "The answer is vitamin C.",
    "(a) or (b)",
    "(a)/(b)",
    "(a), (b)",
    "either A or B",
    "A or B",
    "A, B",
    "A and B",
    "C/D",
    "A & B",
    "the answer is (a) and (c)",
    "the answer is (a) or (c)",
    "the answer is A or B.",
    "The answer is A and C.",
    "the answer is C/D",
    "the answer is C, D",
    "the answer is either A or B",
    "The answer is both (a) and (b).",
    "the answer is not (a).",
    "The answer is not A.",
    "the answer isn't (a).",
    "the answer cannot be (a).",
    "The answer is neither (a) nor (b).",
    "It is not (a).",
    "I would not choose (a).",
    "(a) is wrong.",
    "(a) is not the answer.",
    "the answer is (c). Or maybe (d).",
    "the answer is (c). Or maybe D.",
    "The answer is (c) or river.",
    "the answer is (c), but (d) is also possible.",
    "the answer is (c). (d) is also correct.",
    "the answer is (c). Or maybe it is (d).",
    "the answer is (c). Or maybe the answer is (d).",
    "Either the answer is (a) or the answer is (b).",
    "the answer is shirt(s).",
    "The answer is blotter. (a) could be too.",
    "The answer is blotter. I also considered (a).",
    "The answer is blotter.",
    "the answer is A bed",
    "the answer is e-mail.",
    "The answer is T shirt.",
    "the answer is A+",
    "the answer is 5",
    "The answer is",
    "",
    "   ",
    ".",
    "()",
    "(1)",
    "(ab)",
    "(vitamin e)",
    "(a) is a place where people swim.",
    "(a) would be too small.",
    "(a) bank (b) library (c) mall (d) shop (e) town",
    "(e) blotter\n(d) bottle",
    "He had (a) a cat and (b) a dog.",
    "it is (a) small and (b) cheap",
    "(e)/(e)",
    "The answer is (e",
    "Ans. B",
    "The answer is (d)? No, it is (b).",
    "I don't think the answer is (a).",
    "The answer is river, (a) or (b).",
    "Not (e)",
    "The claim that the answer is (a) is wrong.",
    "the answer is salt and (e)",
    "the answer is blotter or (e)",
    "I, too, think so",
    "grade A",
    "type O",
    "x-ray",
    "f(x)",
    "the answer is f(x)",
    "He got a B.",
    "(e) and (d)",
    "A) or B)",
    "the answer is e.g. a bed",
    "the answer is i.e. a bed",
    "The answer is a matter of taste.",
    "The answer is I do not know.",
    "A person would be in bed.",
    "a bed",
    "A bed.",
    "e blotter",
    "I don't know.",
    "The answer is none of the above.",
    "The answer is unclear: (a) or (b).",
    "the answer is (a), (b)",
    "the answer is (a) / (b)",
    "The answer could be (a) or (b).",
    "Answer Choices:\n(a) bank\n(b) library",
]


@every_row(("text", "letter"), CHOSEN)
def test_a_choice_a_person_would_accept_is_read(text, letter):
    assert stated_choice(text) == letter


@every_row("text", NOT_CHOSEN)
def test_what_chooses_nothing_or_several_is_not_read(text):
    assert stated_choice(text) is None


@every_row("letter", choices.LETTERS)
@every_row("form", ["({})", " ({}).", "{}", "{}.", "{})", "[{}]", "the answer is ({}).", "Answer: {}"])
def test_every_letter_is_read_in_either_case(letter, form):
    for written in (letter, letter.upper()):
        assert stated_choice(form.format(written)) == letter


def test_a_choice_is_its_letter():
    choice = Choice("E", "blotter", ".")
    assert choice == "e" and hash(choice) == hash("e") and {choice} == {"e"} and f"{choice}" == "e"
    for again in (copy.deepcopy(choice), pickle.loads(pickle.dumps(choice))):
        assert (again, again.before, again.after) == ("e", "blotter", ".")


@every_row(
    ("text", "letter"),
    [
        (" Therefore, the answer is blotter (e).", "e"),
        (" (e).", "e"),
        ("(E).\n", "e"),
        ("Not a river. Blotter(e).", "e"),
        ("The answer is (a). No, it is (b).", "b"),
        ("he had a word with the driver. (c).", "c"),
        ("(a) is wet, so it must be (b).", "b"),
        ("The answer is (e)", None),
        ("The answer is (e)!", None),
        ("The answer is e.", None),
        ("The answer is [e].", None),
        ("The answer is (e). It holds ink.", None),
        ("The answer is not (e).", None),
        ("(a) or (b).", None),
        ("(a), (b).", None),
        ("both (a) and (b).", None),
        ("the answer is shirt(s).", None),
        ("f(x).", None),
        ("(ab).", None),
        ("(1).", None),
        ("", None),
        (").", None),
    ],
)
def test_the_strict_reader_wants_the_paper_s_ending(text, letter):
    assert closing_choice(text) == letter


RIVER = Problem(id="river", question="What absorbs ink?", answer="b", choices=("river", "blotter", "ink"))
# The letter of the blotter beside another choice, with every separator.
CONTRADICTIONS = [
    "The answer is (b), river.", "B, river", "(b); river.", "(b), which is river.", "(b), i.e. river.", "(b) = river",
    "(b) → river", "(b)\nriver", "The answer is river, so (b).", "(b). River.", "It is river, so (b).", "b) river",
    "The answer is not blotter (b).", "The answer is not river (b).", "The answer is (b): the river", "**river** (b).",
    "B - river", "river (b).", "The answer is either river or blotter (b).", "The answer is (b) river.", "River: (b).",
    "The answer is (b) (river).", "The answer is (b), the RIVER.", "(b) / river", "The answer is the river: (b).",
    "The answer is (b) and the ink.", "Therefore, the answer is ink (b).", "The answer is a (b).",
]  # fmt: skip
# It names another choice, but not as the answer.
DISMISSALS = [
    "The answer is (b), because the river is wet.", "The answer is (b). The river is wet.", "(b), not the river.",
    "Since a river flows, the answer is blotter (b).", "Unlike the river, a blotter (b).", "(b) rather than river",
    "The ink is wet. Therefore, the answer is blotter (b).", "It is not ink, but a blotter (b).",
    "Ink dries in the river, but people use a blotter (b).", "The answer is (b). In contrast, (a) is wet.",
]  # fmt: skip


def test_a_letter_beside_another_choice_is_never_right():
    for read in (stated_choice, closing_choice):
        assert not [text for text in CONTRADICTIONS if agrees(RIVER, read(text))]
    assert [text for text in DISMISSALS if not agrees(RIVER, stated_choice(text))] == []
    endings = [text for text in DISMISSALS if text.endswith("(b).")]
    assert len(endings) == 5 and all(agrees(RIVER, closing_choice(text)) for text in endings)


def test_a_choice_within_another_is_not_named_by_it():
    bank = dataclasses.replace(RIVER, choices=("river", "river bank", "bank"))
    assert agrees(bank, "The answer is the river bank (b).") and agrees(bank, "(b), the river bank")
    assert not agrees(dataclasses.replace(bank, answer="a"), "The answer is the river bank (a).")
    cafe = dataclasses.replace(RIVER, choices=("tea", "caf\u00e9", "cafe"))
    assert agrees(cafe, "The answer is cafe\u0301 (b).") and not agrees(cafe, "The answer is cafe (b).")
    assert normalised("the Cafe\u0301.") == normalised("CAF\u00c9")


@every_row(
    ("text", "right"),
    [
        (" Therefore, the answer is blotter (e).", True),
        (" (e).", True),
        ("e", True),
        ("E", True),
        ("(E)", True),
        ("the answer is good blotter paper (e)", True),
        ("the answer is a Blotter. (e)", True),
        ("the answer is blotting paper (e)", True),
        ("the answer is shirt pocket (e)", False),
        ("the answer is the Shirt  Pocket (e).", False),
        ("the answer is probably shirt pocket (e)", False),
        ("the answer is calligrapher’s hand (e)", False),
        ("(e) inkwell", False),
        ("(e) inkwell because it holds ink", False),
        ("e. desk drawer", False),
        ("So shirt pocket (e) is correct.", False),
        ("the answer is not blotter (e)", False),
        ("the answer is A (e)", False),
        ("the answer is blotter (a)", False),
        ("(a)", False),
        ("z", False),
        ("the answer is blotter", False),
        ("", False),
    ],
)
def test_the_letter_must_be_right_and_no_other_choice_named(text, right):
    assert agrees(INK, text) is right
    assert agrees(INK, stated_choice(text)) is right


@every_row("letter", "abcd")
def test_choices_of_equal_text_do_not_contradict_each_other(letter):
    twice = dataclasses.replace(INK, choices=("a bed", "Bed", "bed.", "the bed"), answer=letter)
    assert agrees(twice, f" the answer is bed ({letter}).")
    assert agrees(twice, choices.conclusion(twice))
    assert not any(agrees(twice, f" the answer is bed ({other}).") for other in "abcd" if other != letter)


@every_row(
    "texts",
    [
        ("A", "B", "AB", "O"),
        ("B", "A"),
        ("(a) and (b)", "both A and B", "A or B", "all of the above"),
        ("neither (a) nor (b)", "not (a)", "(c)", "the answer is (a)"),
        ("+", "-", "*", "/"),
        ("he had a word.", "washington d.c", "why not?", "never; not once", "the answer", "answer is no", "(e.g. x)"),
        tuple(f"choice {number}" for number in range(26)),
    ],
)
def test_the_shortest_right_completion_is_right_for_any_texts(texts):
    for letter in choices.LETTERS[: len(texts)]:
        problem = dataclasses.replace(INK, choices=texts, answer=letter)
        assert agrees(problem, choices.conclusion(problem))
        assert stated_choice(choices.conclusion(problem)) == letter


def test_the_conclusion_names_the_choice():
    assert choices.conclusion(INK) == " Therefore, the answer is blotter (e)."


def test_a_problem_and_its_hint():
    plain = (
        "Q: What do people use to absorb extra ink from a fountain pen?\nAnswer Choices:\n(a) shirt pocket\n"
        "(b) calligrapher's hand\n(c) inkwell\n(d) desk drawer\n(e) blotter\nA:"
    )
    assert choices.render(INK) == plain
    assert choices.render(INK, hint=True) == plain.replace("blotter", "blotter (CORRECT)")


@pytest.mark.slow
@every_row(
    "unit",
    ["(", "a", " ", "\n", ".", ". ", '"', "-", "*", "_a_ ", "a ", "E. ", "e) ", "(a)", "(a) ", "((a", "(a)(b)",
     "not (a) ", "answer ", "answer is ", "answer: the ", "answer---", "the answer is (",
     "the answer is blotter. ", "answer is so ", "answer is (a), not (b) ", "so a is the ", "(e) is ",
     "it is (a) ", "because (b) ", "(b) is wrong. ", "A: ", "(e) good good good good ",
     "the answer is b, or maybe it. ", "or a ", "s(e)", "\\text{", "\u0301"],
)  # fmt: skip
@every_row(("before", "behind"), [("", ""), ("the answer is (a) ", ""), ("the answer is ", " (e)")])
def test_long_texts_of_any_kind_are_read_in_linear_time(unit, before, behind):
    """A quarter of a megabyte: seconds at the most, but hours where time grows with its square."""
    stated_choice(before + unit * (250_000 // len(unit)) + behind)
