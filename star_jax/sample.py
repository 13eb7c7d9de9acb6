"""Samples completions of your own problems from a run's model.

    python -m star_jax.sample --workdir=DIR [--iteration=N|base|best] [--samples=K] [--temperature=T] < problems.jsonl

Standard input: JSON lines with "question" and, optional, "choices" (a list, for multiple choice) and "answer" (the
letter, if there are choices). On a terminal the command asks for one question after another.
Standard output: a JSON line for each sample, with question, text, answer (as parsed), right (null without a reference
answer), truncated and log_probability (nats).
"""

import json
import sys
from collections.abc import Iterator

from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.distributed import compile_cache
from star_jax.errors import InputError
from star_jax.evaluation import stored_run
from star_jax.records import Problem
from star_jax.sampling.sampler import Request
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks.answers.choices import LETTERS


def main() -> None:
    """Parses the command line, reads problems, prints samples."""
    parser = Parser("sample", __doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run directory")
    parser.add_argument("--iteration", default="best", metavar="N|base|best", help="which model (default: best)")
    parser.add_argument("--samples", type=int, default=1, metavar="K", help="samples per problem (default: 1)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    args = parser.parse_args()
    if args.samples < 1 or args.temperature < 0:
        raise InputError("--samples must be at least 1 and --temperature must not be negative")
    stored = stored_run.open_iteration(args.workdir, args.iteration)
    compile_cache.enable(stored.config.compile_cache)
    task, seed, stream = stored.task, stored.config.seed, stored.stream(Decoding(args.temperature))
    # On a terminal each question is answered before the next; a file goes through the sampler at once.
    batches = ([p] for p in _ask_questions()) if sys.stdin.isatty() else iter([list(_read_problems())])
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


def _read_problems() -> Iterator[Problem]:
    for number, line in enumerate(sys.stdin, start=1):
        try:
            values = json.loads(line)
            choices = tuple(map(str, values.get("choices") or ()))
            answer = "" if values.get("answer") is None else str(values["answer"])
            if choices and answer and answer not in LETTERS[: len(choices)]:
                raise ValueError(f"the answer {answer!r} is not the letter of a choice")
            yield Problem(id=str(number), question=str(values["question"]), answer=answer, choices=choices)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f'standard input:{number}: each line must be JSON like {{"question": "..."}} ({error!r}); fix and rerun'
            ) from error


def _ask_questions() -> Iterator[Problem]:
    for number in range(1, sys.maxsize):
        try:
            question = input("question: ").strip()
        except EOFError:
            return
        if question:
            yield Problem(id=str(number), question=question, answer="")


if __name__ == "__main__":
    exit_on_bad_input(main)
