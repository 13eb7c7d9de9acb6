"""Samples completions of your own problems from a run's model.

    python -m star_jax.sample --workdir=DIR [--iteration=N|base|best|last] [--samples=K] [--temperature=T]
                              < problems.jsonl

Standard input: lines of the task's own files, or JSON lines with "question" and, optional, "choices" (a list, for
multiple choice) and "answer" (the letter or the text of a choice, if there are choices). On a terminal the command asks
for one question after another.
Standard output: a JSON line for each sample, with question, text, answer (as parsed), right (null without a reference
answer), truncated and log_probability (nats).
"""

import sys
from collections.abc import Iterator

from star_jax import terminal
from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.config import MAX_COUNT, MAX_TEMPERATURE, check_temperature
from star_jax.distributed import compile_cache
from star_jax.errors import InputError
from star_jax.evaluation import judging
from star_jax.evaluation.stored_run import StoredIteration, open_iteration
from star_jax.records import Problem
from star_jax.runs import metrics
from star_jax.sampling.sampler import Request, Sample
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks import questions


def main() -> None:
    """Parses the command line, reads problems, prints samples."""
    parser = Parser("sample", __doc__)
    parser.add_path("--workdir", required=True, help="the run directory")
    parser.add_argument("--iteration", default="best", metavar="N|base|best|last", help="which model (default: best)")
    parser.add_number("--samples", 1, MAX_COUNT, default=1, metavar="K", help="samples per problem (default: 1)")
    help_ = "default: 0 (greedy) for one sample; for several, that of the run's train samples or, if it is 0, 0.7"
    parser.add_number("--temperature", 0.0, MAX_TEMPERATURE, metavar="T", help=help_)
    parser.add_allow_import()
    args = parser.parse_args()
    check_temperature(args.temperature or 0.0, "--temperature")
    stored = open_iteration(args.workdir, args.iteration, args.allow_import)
    compile_cache.enable(stored.config.compile_cache)
    task, seed = stored.task, stored.config.seed
    decoding = Decoding()
    if args.samples > 1 or args.temperature:
        decoding = stored.random_decoding(args.temperature)
    # On a terminal each question is answered before the next; a file goes through the sampler at once.
    batches = (
        ([problem] for problem in _ask_questions(stored)) if sys.stdin.isatty() else iter([_read_problems(stored)])
    )
    how = f"temperature {decoding.temperature:g}" if decoding.temperature else "greedy"
    terminal.say(f"{stored.label}, {how}: loading its model; the first sample takes longest", sys.stderr)
    stored.load()
    stream = stored.stream(decoding)
    for batch in batches:
        order = [(problem, index) for problem in batch for index in range(args.samples)]
        requests = [Request(stored.prompts(p), f"{seed}/{p.question}/{index}") for p, index in order]
        samples: dict[int, Sample] = {}
        with metrics.Progress(len(requests), "sampling", "sample") as bar:
            for chunk in stream(requests):
                samples |= dict(chunk)
                bar.advance(len(chunk))
        for index, (problem, _) in enumerate(order):
            sample = samples[index]
            answer = None if sample.truncated else judging.answer_of(task, sample)
            line = {
                "question": problem.question,
                "text": sample.text,
                "answer": answer,
                "right": answer is not None and task.grade(problem, answer) if problem.answer else None,
                "truncated": sample.truncated,
                "log_probability": round(sample.log_probability, 4),
            }
            terminal.say_json(line)


def _read_problems(stored: StoredIteration) -> list[Problem]:
    problems = list(questions.read(stored.task, sys.stdin.buffer, "standard input", stored.check_prompt))
    if not problems:
        raise InputError('standard input: holds no problems; each line must be JSON like {"question": "..."}')
    return problems


def _ask_questions(stored: StoredIteration) -> Iterator[Problem]:
    for number in range(1, sys.maxsize):
        try:
            question = input("question: ").strip()
            question.encode()  # undecodable bytes come as lone surrogates
        except EOFError:
            return
        except UnicodeError as error:
            raise InputError(f"standard input:{number}: not UTF-8 text") from error
        problem = Problem(id=str(number), question=question, answer="")
        try:
            if question:
                stored.check_prompt(problem)
        except InputError as error:  # the next question may be a better one
            terminal.say(f"star_jax: {terminal.one_line(str(error))}", sys.stderr)
            continue
        if question:
            yield problem


if __name__ == "__main__":
    exit_on_bad_input(main)
