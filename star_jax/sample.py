"""A run's model on your own problems.

    python -m star_jax.sample --workdir=DIR [--iteration=N|base|best] [--samples=K] [--temperature=T] < problems.jsonl

Each line of standard input is {"question": ..., for multiple choice "choices": [...], and, where it is known,
"answer": ...} (the letter, for choices); on a terminal the questions are asked for one by one. Each draw is one JSON
line on standard output: question, text, answer, right (null where no answer was given), truncated, log_probability.
"""

import argparse
import json
import sys
from collections.abc import Iterator

from star_jax.cli.parser import exit_on_bad_input
from star_jax.errors import InputError
from star_jax.evaluation import stored_run
from star_jax.records import Problem
from star_jax.sampling.sampler import Request
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks.answers.choices import LETTERS


def main() -> None:
    """The command line at the head of this file."""
    parser = argparse.ArgumentParser(prog="python -m star_jax.sample", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--iteration", default="best", help="a number, base or best (default)")
    parser.add_argument("--samples", type=int, default=1, help="completions for each problem")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default): greedy")
    args = parser.parse_args()
    if args.samples < 1 or args.temperature < 0:
        raise InputError("--samples must be at least 1 and --temperature must not be negative")
    stored = stored_run.open_iteration(args.workdir, args.iteration)
    task, seed, stream = stored.task, stored.config.seed, stored.stream(Decoding(args.temperature))
    # A person gets each answer before the next question; a file goes through the sampler at once.
    batches = ([p] for p in _asked()) if sys.stdin.isatty() else iter([list(_read())])
    for batch in batches:
        order = [(problem, index) for problem in batch for index in range(args.samples)]
        requests = [Request(stored.prompts(p), f"{seed}/{p.question}/{index}") for p, index in order]
        samples = {index: sample for chunk in stream(requests) for index, sample in chunk}
        for index, (problem, _) in enumerate(order):
            sample = samples[index]
            answer = None if sample.truncated else task.parse(sample.text)
            line = {
                "question": problem.question,
                "text": sample.text,
                "answer": answer,
                "right": answer is not None and task.grade(problem, answer) if problem.answer else None,
                "truncated": sample.truncated,
                "log_probability": round(sample.log_probability, 4),
            }
            print(json.dumps(line, ensure_ascii=False), flush=True)


def _read() -> Iterator[Problem]:
    for number, line in enumerate(sys.stdin, start=1):
        try:
            values = json.loads(line)
            choices = tuple(map(str, values.get("choices") or ()))
            answer = "" if values.get("answer") is None else str(values["answer"])
            if choices and answer and answer not in LETTERS[: len(choices)]:
                raise ValueError(f"the answer {answer!r} is no letter of the choices")
            yield Problem(id=str(number), question=str(values["question"]), answer=answer, choices=choices)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f'standard input:{number}: give {{"question": ...}} on each line ({error!r})') from error


def _asked() -> Iterator[Problem]:
    for number in range(1, sys.maxsize):
        try:
            question = input("question: ").strip()
        except EOFError:
            return
        if question:
            yield Problem(id=str(number), question=question, answer="")


if __name__ == "__main__":
    exit_on_bad_input(main)
