"""Run directories written by hand, for tests of the report and the audit."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

from star_jax.records import Completion, Example, Problem, Source, Verdict, read_jsonl, write_lines
from star_jax.tasks.arithmetic import make_problem, scratchpad

CATEGORIES = ("1 digit", "2 digits")
EVALUATIONS = {0: "rwuc", 1: "rwrw", 2: "rrrw"}  # verdicts of four dev problems, alternating categories, by iteration
LETTERS = {"r": Verdict.RIGHT, "w": Verdict.WRONG, "u": Verdict.UNPARSABLE, "c": Verdict.TRUNCATED}
SOURCES = (Source.SAMPLED, Source.RATIONALIZED)

BIG_CATEGORIES = ("1 digit", "2 digits", "3 digits")
# Rationale -> 1 if it mentions a hint that the problem does not.
HINTS = {"by the hint it is 4": 1, "(CORRECT) is b": 1, "the given answer": 1, "3 + 4 is 7": 0, "a hinterland": 0}

MARK_CATEGORIES = ("1 digit", "2 digits", "10 digits")
# By iteration: (source, index of the category) -> kept rationales. Categories have very different sizes.
KEPT = {
    1: {("sampled", 0): 30, ("sampled", 1): 9, ("rationalized", 1): 20, ("rationalized", 2): 2},
    2: {("sampled", 0): 40, ("sampled", 1): 20, ("sampled", 2): 1, ("rationalized", 2): 25},
}


def problem(index: int, split: str = "dev", category: int | None = None) -> Problem:
    name = CATEGORIES[index % 2 if category is None else category]
    return Problem(f"{split}-{index}", f"{index} + {index}", str(2 * index), name)


def completion(index: int, iteration: int, verdict: str, split: str = "dev", text: str | None = None) -> Completion:
    text = f"steps of {index} in {iteration}" if text is None else text
    answer = str(2 * index) if verdict == Verdict.RIGHT else None
    return Completion(f"{split}-{index}", iteration, 0, False, text, answer, Verdict(verdict), None, -1.0, 3, "seed")


def put(path: Path, content: dict | list) -> None:
    """Writes an object as JSON, a list of records as JSON lines.

    Completions and examples belong to the contents of the problems with their ids, as far as the run has them already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list) and content and not isinstance(content[0], Problem):
        files = path.parent.parent.glob("problems_*.jsonl")
        fingerprints = {p.id: p.fingerprint for file in files for p in read_jsonl(Problem, file)}
        content = [
            dataclasses.replace(r, problem_fingerprint=r.problem_fingerprint or fingerprints.get(r.problem_id, ""))
            for r in content
        ]
    path.write_text(write_lines(content) if isinstance(content, list) else json.dumps(content), encoding="utf-8")


def match_contents(workdir: Path) -> None:
    """Lets all completions and examples belong to the contents that their problems have now."""
    files = workdir.glob("problems_*.jsonl")
    fingerprints = {problem.id: problem.fingerprint for file in files for problem in read_jsonl(Problem, file)}
    for path in workdir.glob("iter_*/*.jsonl"):
        lines = read_lines(path)
        for line in lines:
            line["problem_fingerprint"] = fingerprints.get(line["problem_id"], "")
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))  # ASCII: texts may hold half a surrogate


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def remove(workdir: Path, *patterns: str) -> None:
    for path in {path for pattern in patterns for path in workdir.glob(pattern)}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def add_evaluation(directory: Path, number: int, letters: str) -> None:
    """eval_dev.json and eval_dev.jsonl of one iteration, one letter for each problem."""
    put(directory / "eval_dev.jsonl", [completion(i, number, LETTERS[letter]) for i, letter in enumerate(letters)])
    halves = {label: letters[index::2] for index, label in enumerate(CATEGORIES)}
    shares = {label: half.count("r") / len(half) for label, half in halves.items()}
    values = {"iteration": number, "split": "dev", "weights": "abc", "n": len(letters), "right_wrong_steps": 0}
    values |= {
        "accuracy": letters.count("r") / len(letters),
        "ci95": [0.0625, 0.9375],
        "mean_of_categories": sum(shares.values()) / 2,
        "by_category": {label: {"n": 2, "accuracy": shares[label], "ci95": [0.125, 0.875]} for label in CATEGORIES},
    }
    values |= {verdict: letters.count(letter) for letter, verdict in LETTERS.items()}
    put(directory / "eval_dev.json", values)


def add_training(directory: Path, number: int, sampled: int, rationalized: int) -> None:
    """What an iteration writes before its evaluation, for eight train problems; both counts are even."""
    verdicts = ["right"] * sampled + ["wrong"] * (8 - sampled)
    put(directory / "samples.jsonl", [completion(i, number, verdict, "train") for i, verdict in enumerate(verdicts)])
    put(directory / "rationalizations.jsonl", [])
    sources = [Source.SAMPLED] * sampled + [Source.RATIONALIZED] * rationalized
    kept = [Example(f"train-{i}", f"{i} + {i} =", f"kept {i}", number, source) for i, source in enumerate(sources)]
    put(directory / "kept.jsonl", kept)
    halves = {"sampled": sampled // 2, "rationalized": rationalized // 2}
    counts = {"iteration": number, "problems": 8, "samples": 8, "right": sampled, "wrong": 8 - sampled}
    counts |= {"unparsable": 0, "truncated": 0, "right_wrong_steps": 0, "hints_kept": 0, "kept": len(kept)}
    counts |= {"rationalization_tried": 8 - sampled, "rationalization_right": rationalized}
    counts |= {"kept_sampled": sampled, "kept_rationalized": rationalized, "kept_reference": 0}
    counts |= {"kept_by_category": dict.fromkeys(CATEGORIES, halves)}
    put(directory / "filter.json", counts | {"problems_by_category": dict.fromkeys(CATEGORIES, 4)})
    put(directory / "finetune.json", {"steps": 20, "loss_first": 2.0, "loss_last": 0.5, "seconds": 90.0 * number})


def make_run(workdir: Path, iterations: int = 2) -> Path:
    """A finished run of up to two iterations."""
    config = {"seed": 0, "task": {"name": "arithmetic"}, "model": {"n_layers": 2, "d_model": 64}}
    put(workdir / "config.json", config | {"star": {"iterations": iterations, "rationalize": "failed"}})
    put(workdir / "problems_dev.jsonl", [problem(index) for index in range(4)])
    log = [{"time": 0, "iteration": 0, "stage": "pretrain", "step": step, "loss": 4.0 - step} for step in (0, 1)]
    for number in range(iterations + 1):
        directory = workdir / f"iter_{number:03d}"
        add_evaluation(directory, number, EVALUATIONS[number])
        if number:
            add_training(directory, number, sampled=2 * number, rationalized=2)
            tuning = {"iteration": number, "stage": "fine_tune"}
            log += [tuning | {"step": 10, "loss": 2.0 / number}, tuning | {"step": 20, "loss": 0.5}]
            log += [{"iteration": number, "stage": "sample", "step": 0, "seconds": 30.0}]
        (directory / "DONE").touch()
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    return workdir


def make_training_run(workdir: Path, iterations: int = 2) -> Path:
    """`make_run` with two samples and one rationalization for each train problem.

    Kept is sample 1 of problems with an even number.
    """
    make_run(workdir, iterations)
    put(workdir / "problems_train.jsonl", [problem(index, "train") for index in range(6)])
    for number in range(1, iterations + 1):
        samples = []
        for index in range(6):
            for sample_index in range(2):
                right = sample_index == 1 and index % 2 == 0
                text = f"{number}/{index}/{sample_index}"
                sample = completion(index, number, "right" if right else "wrong", "train", text)
                nats = -1.5 * sample_index
                samples.append(dataclasses.replace(sample, sample_index=sample_index, log_probability=nats, tokens=4))
        hinted = [
            dataclasses.replace(completion(index, number, "right", "train", f"hinted {index}"), hinted=True)
            for index in (1, 3)
        ]
        right = [c for c in samples if c.verdict == Verdict.RIGHT]
        kept = [Example(c.problem_id, "p", c.text, number, Source.SAMPLED, sample_index=1) for c in right]
        kept += [Example("train-1", "p", "hinted 1", number, Source.RATIONALIZED)]
        kept += [Example("train-0", "p", "0/0/0", number - 1, Source.SAMPLED)]  # of the iteration before
        folder = workdir / f"iter_{number:03d}"
        put(folder / "samples.jsonl", samples)
        put(folder / "rationalizations.jsonl", hinted)
        put(folder / "kept.jsonl", kept)
    return workdir


def make_random_run(workdir: Path, iterations: int = 2) -> Path:
    """A run of 45 dev and 18 train problems in three categories with random verdicts."""
    make_run(workdir, iterations)
    rng = random.Random(1)

    def judged(index, number, split, sample_index=0, hinted=False):
        verdict = rng.choice(list(Verdict))
        text = f"{split} {index} sample {sample_index} of {number} {rng.random():.3f}"
        consistent = rng.choice((True, False)) if verdict == Verdict.RIGHT else None
        judged_completion = completion(index, number, verdict, split, text)
        return dataclasses.replace(judged_completion, sample_index=sample_index, hinted=hinted, consistent=consistent)

    for split, size in (("dev", 45), ("train", 18)):
        problems = [dataclasses.replace(problem(i, split), category=("one", "two", "")[i % 3]) for i in range(size)]
        put(workdir / f"problems_{split}.jsonl", problems)
    for number in range(iterations + 1):
        folder = workdir / f"iter_{number:03d}"
        put(folder / "eval_dev.jsonl", [judged(index, number, "dev") for index in range(44 if number == 1 else 45)])
        if number:
            sampled = [judged(index, number, "train", sample) for index in range(18) for sample in range(2)]
            hinted = [judged(index, number, "train", hinted=True) for index in range(0, 18, 2)]
            put(folder / "samples.jsonl", sampled)
            put(folder / "rationalizations.jsonl", hinted)
            right = [c for c in sampled + hinted if c.verdict == Verdict.RIGHT and rng.random() < 0.7]
            put(
                folder / "kept.jsonl",
                [
                    Example(c.problem_id, "p", c.text, number, SOURCES[c.hinted], sample_index=c.sample_index)
                    for c in right
                ],
            )
    return workdir


def make_big_run(folder: Path, seed: int = 0, iterations: int = 3) -> Path:
    """A run of random samples with every figure: 60 train problems, 30 dev problems, two samples for each."""
    rng = random.Random(seed)
    texts = [*HINTS, "so it is 12"]
    train = [Problem(f"t{i}", f"{i}?", str(i), BIG_CATEGORIES[i % 3]) for i in range(60)]
    dev = [make_problem(f"dev-{i}", 10 + i, 20 + i, 2) for i in range(30)]
    put(folder / "config.json", {"seed": seed, "task": {"name": "arithmetic"}, "star": {"iterations": iterations}})
    put(folder / "problems_train.jsonl", train)
    put(folder / "problems_dev.jsonl", dev)
    metrics = []
    for n in range(iterations + 1):
        directory = folder / f"iter_{n:03d}"
        letters = "".join(rng.choice("rrw") for _ in dev)
        add_evaluation(directory, n, letters)
        solutions = [_solution(rng, p, n, letter == "r") for p, letter in zip(dev, letters, strict=True)]
        put(directory / "eval_dev.jsonl", solutions)
        (directory / "DONE").touch()
        if not n:
            continue
        problems = rng.sample(train, 40) if n < iterations else train
        samples = [_random_completion(rng, p, n, index, False, texts) for p in problems for index in (0, 1)]
        solved = {c.problem_id for c in samples if c.verdict == Verdict.RIGHT}
        unsolved = [p for p in problems if p.id not in solved]
        hinted = [_random_completion(rng, p, n, index, True, texts) for p in unsolved for index in (0, 1)]
        put(directory / "samples.jsonl", samples)
        put(directory / "rationalizations.jsonl", hinted)
        kept = [
            Example(c.problem_id, "What is it?", c.text, n, SOURCES[c.hinted], sample_index=c.sample_index)
            for c in (*samples, *hinted)
            if c.verdict == Verdict.RIGHT
        ]
        earlier = Example("t0", "old", "the hint", n - 1, Source.SAMPLED)  # of star.keep_previous
        put(directory / "kept.jsonl", [earlier, *kept])
        put(directory / "filter.json", _filter_counts(samples, problems, kept, {p.id: p.category for p in train}))
        put(directory / "finetune.json", {"tokens": 100 * n, "steps": 5, "seconds": 2.0})
        metrics.append({"stage": "sample", "iteration": n, "step": 0, "tokens_per_second": 10.0 * n})
        phases = {"stage": "phases", "iteration": n, "step": 0, "time": 1e9, "sample": 3.0 * n, "save": 0.25}
        metrics.append(phases | {"total": 3.0 * n + 0.25})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


def _filter_counts(samples: list, problems: list, kept: list[Example], category_of: dict[str, str]) -> dict:
    by_category = {
        c: {s: sum((category_of[e.problem_id], e.source) == (c, s) for e in kept) for s in SOURCES}
        for c in BIG_CATEGORIES
    }
    return {
        "samples": len(samples),
        "problems": len(problems),
        "kept": len(kept),
        "kept_by_category": by_category,
        **{f"kept_{source}": sum(e.source == source for e in kept) for source in SOURCES},
        "problems_by_category": {label: sum(p.category == label for p in problems) for label in BIG_CATEGORIES},
    }


def _random_completion(
    rng: random.Random, problem: Problem, n: int, sample_index: int, hinted: bool, texts: list[str]
) -> Completion:
    verdict = Verdict(rng.choice(("right", "wrong", "wrong", "unparsable", "truncated")))
    right, nats, tokens = verdict == Verdict.RIGHT, rng.random() * 9, rng.randint(1, 9)
    checked = rng.choice((True, False)) if right else None
    text, answer = rng.choice(texts), "x" if right else None
    return Completion(problem.id, n, sample_index, hinted, text, answer, verdict, checked, -nats, tokens, "")


def _solution(rng: random.Random, problem: Problem, n: int, right: bool) -> Completion:
    """A scratchpad without up to two of its lines, or with one line too many."""
    lines = scratchpad(*(int(part.replace(" ", "")) for part in problem.question.split("+"))).split("\n")
    change = rng.choice((-2, -1, 0, 0, 1))
    lines = lines[:1] + lines[1 - change :] if change < 0 else lines[:1] + lines[1:2] * change + lines[1:]
    verdict = Verdict.RIGHT if right else Verdict.WRONG
    return Completion(problem.id, n, 0, False, "\n".join(lines), problem.answer, verdict, True, -1.0, 3, "")


def make_kept_run(workdir: Path, text: str = "steps") -> Path:
    """A run of two iterations whose kept sets are KEPT; the second's file also holds the first's examples."""
    make_run(workdir)
    problems = [
        Problem(f"train-{c}-{i}", f"what is {i}?", str(i), name)
        for c, name in enumerate(MARK_CATEGORIES)
        for i in range(60)
    ]
    put(workdir / "problems_train.jsonl", problems)
    earlier: list[Example] = []
    for number, groups in KEPT.items():
        completions: dict[bool, list[Completion]] = {False: [], True: []}
        examples, used = [], dict.fromkeys(range(3), 0)
        for (source, category), size in groups.items():
            for _ in range(size):
                problem, hinted = problems[60 * category + used[category]], source == Source.RATIONALIZED
                used[category] += 1
                steps = (True, False, None)[used[category] % 3]
                full = f"{text} of {problem.id} in {number}"
                completions[hinted].append(
                    Completion(problem.id, number, 0, hinted, full, problem.answer, Verdict.RIGHT, steps, -1.0, 3, "s")
                )
                examples.append(Example(problem.id, "a prompt", full, number, Source(source)))
        directory = workdir / f"iter_{number:03d}"
        put(directory / "samples.jsonl", completions[False])
        put(directory / "rationalizations.jsonl", completions[True])
        put(directory / "kept.jsonl", examples + earlier)
        values = json.loads((directory / "filter.json").read_text())
        put(directory / "filter.json", values | {"samples": len(completions[False])})
        earlier = examples
    return workdir
