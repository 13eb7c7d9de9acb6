"""star_jax.runs.console: the table shows the figures of the run's files."""

import json
import re

from star_jax.runs import console


def test_the_table_has_the_files_figures(finished, capsys):
    results = [json.loads((finished / f"iter_{n:03d}/eval_dev.json").read_text()) for n in range(3)]
    counts = [None] + [json.loads((finished / f"iter_{n:03d}/filter.json").read_text()) for n in (1, 2)]
    accuracies = [result["accuracy"] for result in results]
    shown = [
        console.Row(
            result["accuracy"], *result["ci95"], result["mean_of_categories"],
            *(count and count[key] for key in ("kept", "kept_rationalized", "problems")),
        )
        for result, count in zip(results, counts, strict=True)
    ]  # fmt: skip
    console.show(shown, accuracies.index(max(accuracies)), "here/report.html")
    out, text = capsys.readouterr()
    rows = [line for line in text.splitlines() if re.match(r"\s*(base|\d)", line)]
    assert out == "" and len(rows) == 3 and text.splitlines()[-1].endswith("report: here/report.html")
    for n, (row, result, count) in enumerate(zip(rows, results, counts, strict=True)):
        low, high = result["ci95"]
        words = f"{result['accuracy']:.1%} {100 * low:.1f} – {high:.1%} {result['mean_of_categories']:.1%}"
        words += f" {count['kept']} {count['kept_rationalized']} {count['problems']}" if count else " – – –"
        assert words in " ".join(row.split())
        assert ("*" in row) == (n == accuracies.index(max(accuracies)))
