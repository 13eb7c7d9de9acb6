"""Compares the strict readers with one regular expression, on over 10,000 texts that a trained model samples per task.

    python tests/drills/answer_readers.py --data=../shared/data                      a tiny model, trained on answers
    python tests/drills/answer_readers.py --data=../shared/data --base=pip:smollm2 --problems=50      few-shot prompts

The tiny model learns the form of the answers (star.direct) and guesses their content, mostly in that form. The
references: the letter of "(e)." at the end of the text (CommonsenseQA), and the first "#### NUMBER" of it (GSM8K, the
expression of lm-evaluation-harness's strict figure). Texts on which reader and reference differ are printed. The exit
status is 1 if the strict accuracy is not the reference's, or above the lenient one.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import golden_run
import real_weights

from star_jax import tasks
from star_jax.records import Completion, Problem, Verdict, read_jsonl

SAMPLES = {"commonsense_qa": 9, "gsm8k": 8}  # of each of the 1,221 and 1,319 problems of the test splits
TRAINED = {
    "star.direct": True,
    "star.iterations": 1,
    "star.problems_per_iteration": 2000,
    "star.steps": 300,
    "optimizer.learning_rate": 0.01,
    "optimizer.warmup_steps": 10,
    "train.batch_rows": 4,
    "train.row_tokens": 512,
    "prompt.shots": 0,
    "evaluation.report_split": "",
    "tensorboard": False,
}


def main() -> int:
    """Prints a line per task; returns 1 if accuracies differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="directory of the data sets' directories")
    parser.add_argument("--base", default="", help='what base.path takes; "": a tiny random model, which is trained')
    parser.add_argument("--tasks", default=",".join(SAMPLES))
    parser.add_argument("--problems", type=int, default=0, help="of the test split; 0: all")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return max(compare(args, name, Path(scratch) / name) for name in args.tasks.split(","))


def compare(args: argparse.Namespace, name: str, folder: Path) -> int:
    folder.mkdir()
    texts, problems = sampled(args, name, folder)
    right = {"strict": 0, "lenient": 0, "reference": 0}
    for text in texts:
        problem = problems[text.problem_key]
        strict = text.verdict == Verdict.RIGHT
        reference = text.verdict != Verdict.TRUNCATED and REFERENCES[name](text.text, problem)
        right["strict"] += strict
        right["lenient"] += bool(text.right_leniently)
        right["reference"] += reference
        if strict != reference:
            print(f"{name}: the reader says {text.verdict}, the reference {reference}: {problem} {text.text!r}")
    cut = sum(text.verdict == Verdict.TRUNCATED for text in texts)
    distinct = len({text.text for text in texts})
    print(f"{name}: {len(texts)} texts, {distinct} distinct, {cut} cut, right: {right}", flush=True)
    return int(right["strict"] != right["reference"] or right["strict"] > right["lenient"])


def sampled(
    args: argparse.Namespace, name: str, folder: Path
) -> tuple[list[Completion], dict[tuple[str, str], Problem]]:
    """Completions of the test split, and the problems by key."""
    options, iteration = TRAINED, 1
    if args.base:
        sizes = argparse.Namespace(base=args.base, data=args.data, problems=4, steps=1, shots=4, new_tokens=96)
        flags, iteration = real_weights.flags(sizes, name, "plain"), 0
        options = {"task.answer_rule": "strict", "star.iterations": 0, "sampling.slots": 64, "sampling.queue": 64}
    else:
        golden_run.write_qa_base(folder / "base", args.data / "gpt2")
        flags = [f"--config=configs/{name}.py", f"--config.base.path={folder / 'base'}"]
        flags.append(f"--config.task.data_dir={args.data.resolve() / name}")
    if args.problems:
        options = {**options, "evaluation.problems": args.problems}
    flags += [f"--config.{key}={value}" for key, value in options.items()]
    run("star_jax.main", f"--workdir={folder / 'run'}", *flags)
    sampling = ["--split=test", f"--samples={SAMPLES[name]}", "--temperature=0.5"]
    run("star_jax.evaluate", f"--workdir={folder / 'run'}", f"--iteration={iteration}", *sampling)
    (path,) = (folder / "run" / f"iter_{iteration:03d}").glob("eval_test_*.jsonl")
    problems = tasks.make(name, data_dir=str(args.data / name)).problems("test")
    return list(read_jsonl(Completion, path)), {problem.key: problem for problem in problems}


def closing_letter(text: str, problem: Problem) -> bool:
    match = re.search(r"\(([A-Za-z])\)\.\s*$", text)
    return match is not None and match[1].lower() == problem.answer


def marked_number(text: str, problem: Problem) -> bool:
    match = re.search(r"#### (-?[0-9.,]+)", text)
    return match is not None and match[1].replace(",", "").rstrip(".") == problem.answer


REFERENCES = {"commonsense_qa": closing_letter, "gsm8k": marked_number}


def run(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
