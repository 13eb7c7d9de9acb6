"""Response times of the report's browser of rationales in Chromium, on a synthetic run.

    python tests/benchmarks/report_browser.py                        10,000 problems x 3 iterations, both collections
    python tests/benchmarks/report_browser.py --problems=1221 --train_problems=9741 --iterations=30      paper-size

Texts are random words, about 400 characters each; half of the train problems are rationalized. A row of the second
table is one action, repeated: milliseconds by performance.now() in the page, from the event to the next frame with its
result. The bar is 300 ms for all but the first load of a block ("first", for comparison).
"""

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from star_jax import report
from star_jax.records import Completion, Example, Problem, write_lines

BAR = 300  # milliseconds
NAMES = ("chromium", "chromium-browser", "google-chrome")
CLASSES = ("1 digit", "2 digits", "3 digits")
# Performs an action and resolves with the milliseconds until a frame shows its result.
TIMED = """async (act) => {
  const root = document.querySelector(".browser");
  const form = root.querySelector("form").elements;
  const change = (name, value) => {
    form[name].value = value;
    form[name].dispatchEvent(new Event("input", { bubbles: true }));
  };
  const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  root.scrollIntoView();
  const started = performance.now();
  new Function("change", "press", "root", act)(change, press, root);
  while (root.getAttribute("aria-busy") !== "false") await new Promise((go) => setTimeout(go));
  await new Promise((go) => requestAnimationFrame(() => setTimeout(go)));
  return performance.now() - started;
}"""


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=10_000, help="evaluated problems")
    parser.add_argument("--train_problems", type=int, default=10_000)
    parser.add_argument("--iterations", type=int, default=3, help="iterations after the base")
    parser.add_argument("--characters", type=int, default=400, help="mean length of a text")
    parser.add_argument("--repeats", type=int, default=7, help="repetitions of each action")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        make_run(workdir, args)
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            path = report.write(workdir)
            seconds.append(time.perf_counter() - started)
        beside = list(path.parent.glob("report_texts/*.js"))
        print(f"{args.problems:,} + {args.train_problems:,} problems, {args.iterations} iterations, "
              f"{sum(p.stat().st_size for p in workdir.rglob('*.jsonl')) / 1e6:,.1f} MB of JSON lines")  # fmt: skip
        print(f"page {path.stat().st_size / 1e6:.2f} MB; beside it {len(beside)} files, "
              f"{sum(p.stat().st_size for p in beside) / 1e6:.2f} MB")  # fmt: skip
        print(f"written in {seconds[0]:.2f} s; again, nothing new packed, in {seconds[1]:.2f} s")
        in_chromium(path, args.iterations, args.repeats)


def in_chromium(path: Path, iterations: int, repeats: int) -> None:
    """Opens the page and prints the times."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        print(f"no times: none of {', '.join(NAMES)} is on the PATH")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        print(f"Chromium {browser.version}")
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        started = time.perf_counter()
        page.goto(path.as_uri())
        opened = time.perf_counter() - started
        page.wait_for_selector(".browser[aria-busy=false]", timeout=60_000)
        print(f"opened in {opened:.2f} s, first rationales shown after {time.perf_counter() - started:.2f} s")
        print(f"{'action':46}{'first':>8}{'median':>8}{'max':>8}  ms  (bar: {BAR})")
        slowest = 0.0
        for collection in ("evaluation", "training"):
            print(f"{f'to the {collection} collection':46}{timed(page, change('collection', collection)):8.0f}")
            for name, acts in actions(collection, iterations).items():
                slowest = max(slowest, row(page, name, acts, repeats))
        print(f"slowest answer {slowest:.0f} ms: {'under' if slowest < BAR else 'OVER'} the bar of {BAR} ms")
        browser.close()


def actions(collection: str, iterations: int) -> dict[str, tuple[str, str]]:
    """Action -> JavaScript that performs it, and JavaScript that reverts it; both are timed."""
    filters = [("category", "1", ""), ("verdict", "wrong", ""), ("verdict", "steps", ""), ("solved", "never", "")]
    filters += [("search", "Reason", ""), ("search", "no such words", ""), ("iteration", "1", str(iterations))]
    if collection == "evaluation":
        filters += [("change", "gained", ""), ("change", "lost", "")]
    else:
        filters += [("kept", "kept", ""), ("source", "rationalized", "")]
    by_filter = {f"{name}: {value}": (change(name, value), change(name, back)) for name, value, back in filters}
    return {
        **by_filter,
        "page turned": ('press("n")', 'press("p")'),
        "history": ('root.querySelector("a.open").click()', 'press("Escape")'),
    }


def change(name: str, value: str) -> str:
    """JavaScript that sets a field and dispatches its event."""
    return f"change({json.dumps(name)}, {json.dumps(value)})"


def timed(page: Page, act: str) -> float:
    """Milliseconds that an action takes."""
    return page.evaluate(TIMED, act)


def row(page: Page, name: str, acts: tuple[str, str], repeats: int) -> float:
    """Prints the times of an action and its reversal; returns the longest after the first."""
    first, _ = (timed(page, act) for act in acts)
    taken = [timed(page, act) for _ in range(repeats) for act in acts]
    print(f"{'  ' + name:46}{first:8.0f}{statistics.median(taken):8.0f}{max(taken):8.0f}")
    return max(taken)


def make_run(workdir: Path, args: argparse.Namespace) -> None:
    """Writes what the report reads of a run: problems, samples, kept examples, evaluations."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(rng.choices(letters, range(26, 0, -1), k=rng.randint(2, 9))) for _ in range(8_000)] + ["reason"]
    put(workdir / "config.json", {"star": {"iterations": args.iterations}})
    sizes = {"dev": args.problems, "train": args.train_problems}
    for split, size in sizes.items():
        problems = [Problem(f"{split}-{i}", text(rng, words, 120), "answer", CLASSES[i % 3]) for i in range(size)]
        put(workdir / f"problems_{split}.jsonl", problems)
    for number in range(args.iterations + 1):
        folder = workdir / f"iter_{number:03d}"

        def completions(split: str, indices: Any, hinted: bool, number: int = number) -> list[Completion]:
            return [completion(rng, words, f"{split}-{i}", number, hinted, args.characters) for i in indices]

        evaluated = completions("dev", range(args.problems), False)
        right = sum(c.verdict == "right" for c in evaluated)
        put(folder / "eval_dev.jsonl", evaluated)
        put(folder / "eval_dev.json", {"n": len(evaluated), "accuracy": right / max(1, len(evaluated))})
        if number:
            samples = completions("train", range(args.train_problems), False)
            hinted = completions("train", range(args.train_problems // 2), True)
            kept = [kept_example(c) for c in samples + hinted if c.verdict == "right"]
            put(folder / "samples.jsonl", samples)
            put(folder / "rationalizations.jsonl", hinted)
            put(folder / "kept.jsonl", kept)
        (folder / "DONE").touch()


def completion(rng: random.Random, words: list[str], name: str, number: int, hinted: bool, size: int) -> Completion:
    """A random completion; later iterations are right more often."""
    right = rng.random() < 0.3 + 0.1 * number / (number + 1)
    verdict = "right" if right else rng.choice(("wrong", "unparsable", "truncated"))
    consistent = rng.random() < 0.9 if right else None
    tokens = rng.randint(size // 8, size // 3 + 1)
    rationale = text(rng, words, size)
    return Completion(name, number, 0, hinted, rationale, "answer" if right else None, verdict, consistent,
                      -0.5 * tokens, tokens, "seed")  # fmt: skip


def kept_example(c: Completion) -> Example:
    """The training example made of a rng."""
    return Example(c.problem_id, "prompt", c.text, c.iteration, "rationalized" if c.hinted else "sampled")


def text(rng: random.Random, words: list[str], size: int) -> str:
    """Random words, `size` characters on average."""
    return " ".join(rng.choices(words, k=max(1, round(size * rng.uniform(0.5, 1.5) / 6.5))))


def put(path: Path, content: dict | list) -> None:
    """Writes an object as JSON, a list of records as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(write_lines(content) if isinstance(content, list) else json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
