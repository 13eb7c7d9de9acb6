"""star_jax.report.formatting: numbers as people read them, texts without traps."""

from star_jax.report import formatting


def test_numbers():
    cases = {
        formatting.duration: {
            None: "–", 7.25: "7.2 s", 59.97: "1 min 0 s", 85.2: "1 min 25 s", 3599.6: "1 h 0 min", 3725: "1 h 2 min",
        },
        formatting.count: {None: "–", 12000: "12,000", 0.000123: "0.000123", 0.0: "0"},
        formatting.p_value: {1.0: "p = 1", 0.03125: "p = 0.031", 0.001: "p = 0.001", 1e-9: "p < 0.001"},
    }  # fmt: skip
    wrong = [
        (function.__name__, value, function(value), text)
        for function, texts in cases.items()
        for value, text in texts.items()
        if function(value) != text
    ]
    assert not wrong


def test_long_texts_are_clipped_with_a_note():
    assert formatting.clipped("x" * 9_999).endswith("x … [shortened for this page; 9,999 characters in all]")
    assert formatting.clipped("x" * 4_000) == "x" * 4_000


def test_names_wrap_between_words_only():
    texts = {
        "star.samples_per_problem": "star.<wbr>samples_<wbr>per_<wbr>problem",
        "a/b.c <i>": "a/<wbr>b.<wbr>c &lt;i&gt;",
        "0.25, v1.5_2": "0.25, v1.5_2",
        "95 % of 1_000": "95\u00a0% of 1_000",
        "\u202ex": "⟨U+202E⟩x",
    }
    assert {text: str(formatting.breakable(text)) for text in texts} == texts
