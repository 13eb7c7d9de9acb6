"""Drawing and judging completions for a list of problems, and the accuracy that comes out.

python -m star_jax.evaluate --workdir=DIR [--iteration=N|base|best] [--split=dev|test] [--samples=K [--temperature=T]]
"""

import argparse
import collections
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from star_jax import cached, checkpoint, filter, hosts, metrics, prompting, sharding, significance
from star_jax import model as gpt
from star_jax.config import Config, from_dict
from star_jax.decoding import Decoding
from star_jax.errors import InputError, exit_on_bad_input
from star_jax.ledger import Ledger
from star_jax.prompting import PromptSet
from star_jax.records import VERDICTS, Completion, Problem, natural_order
from star_jax.sampler import Draw, Sampler
from star_jax.tasks import Task
from star_jax.tokenizer import Tokenizer


def make_sampler(
    config: Config,
    task: Task,
    model: gpt.GPT,
    params: gpt.Params,
    tokenizer: Tokenizer,
    decoding: Decoding,
    mesh: Mesh,
    longest: int = 0,
) -> Sampler:
    """The sampler of a run's settings, for parameters on its sampling mesh; `longest`: see Sampler."""
    options = config.sampling
    return Sampler(
        model,
        params,
        tokenizer,
        mesh=mesh,
        stop=task.stop,
        max_new_tokens=options.max_new_tokens or task.max_new_tokens,
        decoding=decoding,
        slots=options.slots,
        queue=options.queue,
        prefill_tokens=options.prefill_tokens,
        longest=longest,
    )


def complete(
    ledger: Ledger,
    path: Path,
    sampler: Sampler,
    task: Task,
    problems: Sequence[Problem],
    prompts: PromptSet,
    *,
    what: str,
    seed: int,
    iteration: int,
    draws: int = 1,
    hinted: bool = False,
    log: Callable[[dict[str, Any]], None] | None = None,
    meanwhile: Callable[[], Any] | None = None,
) -> list[Completion]:
    """`draws` judged completions for each problem, stored at `path` (and read from there when they are done).

    `what` names the stage, for the progress bar and in the random keys. `log` gets the totals at the end. `meanwhile`
    is called while the device is at work.
    """
    wanted = [(problem, draw) for problem in problems for draw in range(draws)]
    texts = [prompts.prompt(task, problem, hinted) for problem, _ in wanted]
    seeds = [f"{seed}/{what}/{iteration}/{problem.id}/{draw}/{int(hinted)}" for problem, draw in wanted]

    def judge(place: int, drawn: Draw) -> Completion:
        problem, draw = wanted[place]
        return filter.judge(
            task,
            problem,
            text=drawn.text,
            cut_off=drawn.cut_off,
            iteration=iteration,
            draw=draw,
            hinted=hinted,
            log_probability=drawn.log_probability,
            tokens=len(drawn.token_ids),
            seed=seeds[place],
        )

    def draw_missing(missing: Sequence[int], store: Callable[[Sequence[Completion]], None]) -> None:
        tally = _Tally()
        with metrics.progress(len(missing), f"iteration {iteration}: {what}", "problem") as bar:

            def chunk(places: Sequence[int], drawn: Sequence[Draw]) -> None:
                judged = [judge(missing[i], d) for i, d in zip(places, drawn, strict=True)]
                store(judged)
                tally.add(judged)
                bar.update(len(judged))
                bar.set_postfix_str(f"{tally.right} right, {tally.speed:,.0f} tokens/s")

            sampler([texts[i] for i in missing], [seeds[i] for i in missing], chunk, meanwhile)
        if log:
            log({"problems": len(missing), "right": tally.right, "tokens": tally.tokens,
                 "seconds": round(tally.seconds, 2), "tokens_per_second": round(tally.speed, 1)})  # fmt: skip

    return ledger.completions(path, [(problem.id, draw) for problem, draw in wanted], draw_missing)


@dataclasses.dataclass
class _Tally:
    """What a stage has drawn so far, and how fast."""

    right: int = 0
    tokens: int = 0
    started: float = dataclasses.field(default_factory=time.monotonic)

    def add(self, judged: Sequence[Completion]) -> None:
        self.right += sum(c.verdict == "right" for c in judged)
        self.tokens += sum(c.tokens for c in judged)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def score(problems: Sequence[Problem], completions: Sequence[Completion]) -> dict[str, Any]:
    """Accuracy of one completion a problem: over all, by class, and the mean over classes, with 95 % intervals."""
    verdict = {c.problem_id: c.verdict for c in completions}
    by_class: dict[str, list[bool]] = collections.defaultdict(list)
    for problem in problems:
        by_class[problem.category].append(verdict[problem.id] == "right")
    classes = _classes(by_class)
    counts = filter.counts(completions)
    return {
        **_accuracy(counts["right"], len(problems)),
        "mean_of_classes": sum(c["accuracy"] for c in classes.values()) / len(classes),
        "by_class": classes,
        **counts,
    }


def vote(task: Task, problems: Sequence[Problem], completions: Sequence[Completion]) -> dict[str, Any]:
    """K draws a problem: accuracy of the commonest answer (the earliest of equals) and pass@k for k = 1, 2, 4, ..., K.

    pass@k is the chance that at least one of k draws is right, estimated without bias from all K (Chen et al., 2021).
    """
    votes: dict[str, list[tuple[str, bool]]] = collections.defaultdict(list)
    right: collections.Counter[str] = collections.Counter()
    by_id = {p.id: p for p in problems}
    for c in completions:
        if c.answer is not None and c.verdict != "cut_off":
            votes[c.problem_id].append((task.canonical(by_id[c.problem_id], c.answer), c.verdict == "right"))
        right[c.problem_id] += c.verdict == "right"
    draws = len(completions) // len(problems)
    voted = {p.id: _elected(votes[p.id]) for p in problems}
    by_class: dict[str, list[bool]] = collections.defaultdict(list)
    for problem in problems:
        by_class[problem.category].append(voted[problem.id])
    sizes = [2**i for i in range(draws.bit_length()) if 2**i < draws]
    return {
        "draws": draws,
        "majority": _accuracy(sum(voted.values()), len(problems)),
        **{f"pass@{k}": _mean([pass_at(k, draws, right[p.id]) for p in problems]) for k in sizes},
        f"pass@{draws}": _accuracy(sum(right[p.id] > 0 for p in problems), len(problems)),
        "majority_by_class": _classes(by_class),
        **filter.counts(completions),
    }


def _elected(votes: Sequence[tuple[str, bool]]) -> bool:
    """Whether the commonest of (answer, judged right) pairs is right: most of the draws that gave it were."""
    if not votes:
        return False
    winner = collections.Counter(answer for answer, _ in votes).most_common(1)[0][0]
    verdicts = [right for answer, right in votes if answer == winner]
    return 2 * sum(verdicts) > len(verdicts)


def pass_at(k: int, draws: int, right: int) -> float:
    """The chance that k of `draws` draws, chosen at random, hold one of the `right` ones: 1 - C(n - c, k) / C(n, k)."""
    return 1.0 - math.comb(draws - right, k) / math.comb(draws, k)


def prompts_of(config: Config, drawing_iteration: int) -> PromptSet:
    """The few-shot prompts by which iteration 1, 2, ... draws; see star.prompt_after_first_iteration."""
    prompts = prompting.load(config.task["name"], config.prompt.shots, config.star.direct, config.prompt.directory)
    later = drawing_iteration > 1 and not config.star.prompt_after_first_iteration
    return prompts.without_shots() if later else prompts


def split_problems(config: Config, task: Task, split: str) -> list[Problem]:
    """The problems of a split that are evaluated. Raises InputError where there are none."""
    problems = task.problems(split)[: config.evaluation.problems or None]
    if not problems:
        raise InputError(f"the split {split!r} holds no problems")
    return problems


def best_iteration(ledger: Ledger, split: str) -> int:
    """The iteration of the highest accuracy on the split that evaluation uses, the earliest of equals."""
    results = [ledger.read_json(path) for path in ledger.find(f"iter_*/eval_{split}.json")]
    if not results:
        raise InputError(f"{ledger.workdir}: no iteration has been evaluated on {split!r} yet")
    return int(min(results, key=lambda result: (-result["accuracy"], result["iteration"]))["iteration"])


@dataclasses.dataclass(frozen=True)
class Opened:
    """One iteration of a run that is on disk."""

    ledger: Ledger
    config: Config
    number: int  # 0: the base
    directory: Path  # of its model

    def sampler(self, task: Task, mesh: Mesh, decoding: Decoding) -> Sampler:
        """A sampler of its model, loaded onto the (training) mesh. Raises InputError."""
        options, words = self.config.sampling, checkpoint.load_tokenizer(self.directory)
        drawing = sharding.sampling_mesh(mesh, options.tensor)
        model, params = checkpoint.load_model(self.directory, mesh, self.config.train.param_dtype)
        params = cached.placed(model, params, drawing, options.weights_dtype)
        return make_sampler(self.config, task, model, params, words, decoding, drawing)


def open_run(workdir: str, iteration: str) -> Opened:
    """`base`, `best` or a numbered iteration of a run. Raises InputError."""
    ledger = Ledger(workdir, hosts)
    config = from_dict(ledger.read_json(ledger.workdir / "config.json"))
    if iteration == "best":
        number = best_iteration(ledger, config.evaluation.split)
    elif iteration == "base":
        number = 0
    elif iteration.isdecimal():
        number = int(iteration)
    else:
        raise InputError(f"--iteration={iteration}: give a number, 'base' or 'best'")
    directory = ledger.path(number, "params") if number else ledger.workdir / "base"
    if not hosts.agree(lambda: checkpoint.exists(directory)):
        raise InputError(f"{directory}: no complete model is there; not made yet, or let go by star.keep_weights")
    return Opened(ledger, config, number, directory)


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """The mean of one figure a problem, with the 95 % interval of its standard error."""
    n, middle = len(values), sum(values) / len(values)
    variance = sum((v - middle) ** 2 for v in values) / max(1, n - 1)
    half = significance.Z95 * math.sqrt(variance / n)
    return {"n": n, "accuracy": middle, "ci95": [round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)]}


def _classes(right: Mapping[str, Sequence[bool]]) -> dict[str, dict[str, Any]]:
    return {name: _accuracy(sum(right[name]), len(right[name])) for name in sorted(right, key=natural_order)}


def _accuracy(right: int, n: int) -> dict[str, Any]:
    low, high = significance.wilson(right, n)
    return {"n": n, "accuracy": right / n, "ci95": [round(low, 4), round(high, 4)]}


def main() -> None:
    """The command line at the head of this file."""
    parser = argparse.ArgumentParser(prog="python -m star_jax.evaluate", description="Accuracy of a run's model.")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--iteration", default="best", help="a number, base or best (default)")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--samples", type=int, default=0, help="K draws a problem: majority vote and pass@k; 0: greedy")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the K draws; default: the run's, or 0.7")
    args = parser.parse_args()
    if args.samples < 0 or args.temperature < 0:
        raise InputError("--samples and --temperature must not be negative; --samples=0 is greedy")
    if args.temperature and not args.samples:
        raise InputError("--temperature goes with --samples=K; without it decoding is greedy")
    with hosts.joined():
        _evaluate(args)


def _evaluate(args: argparse.Namespace) -> None:
    opened = open_run(args.workdir, args.iteration)
    config, ledger, number = opened.config, opened.ledger, opened.number
    task = config.make_task()
    problems, name = split_problems(config, task, args.split), f"eval_{args.split}"
    decoding = Decoding()
    if args.samples:
        decoding = Decoding(
            args.temperature or config.sampling.temperature or 0.7, config.sampling.top_k, config.sampling.top_p
        )
        name += f"_{args.samples}_samples_t{decoding.temperature:g}"
    sampler = opened.sampler(task, sharding.make_mesh(config.mesh), decoding)
    completions = complete(
        ledger, ledger.path(number, name + ".jsonl"), sampler, task, problems, prompts_of(config, number + 1),
        what="evaluate", seed=config.seed, iteration=number, draws=max(1, args.samples),
    )  # fmt: skip
    weights = hosts.agree(lambda: checkpoint.stored_fingerprint(opened.directory))
    result = {"iteration": number, "split": args.split, "weights": weights}
    result |= {"temperature": decoding.temperature}
    result |= vote(task, problems, completions) if args.samples else score(problems, completions)
    ledger.write_json(ledger.path(number, name + ".json"), result)
    if hosts.first():
        _print(result)
        print(f"written to {ledger.path(number, name + '.json')}")


def _print(result: dict[str, Any]) -> None:
    """A line for each accuracy, by class where there are several, and the verdicts."""
    lines = {key: value for key, value in result.items() if isinstance(value, dict) and "ci95" in value}
    classes = result.get("by_class") or result["majority_by_class"]
    if "accuracy" in result:
        lines = {"accuracy": result}
    if len(classes) > 1:
        lines |= {f"  {name}": value for name, value in classes.items()}
    for key, line in lines.items():
        low, high = line["ci95"]
        print(f"{key:10} {line['accuracy']:.4f}  [{low:.4f}, {high:.4f}]  n = {line['n']}")
    print(", ".join(f"{result[verdict]} {verdict.replace('_', ' ')}" for verdict in (*VERDICTS, "right_wrong_steps")))


if __name__ == "__main__":
    exit_on_bad_input(main)
