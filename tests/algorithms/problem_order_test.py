"""star_jax.algorithms.problem_order: which problems an iteration samples."""

import heapq
import random
from fractions import Fraction

import numpy as np
import pytest

from star_jax.algorithms import problem_order
from star_jax.config import StarConfig
from star_jax.errors import InputError
from star_jax.tasks.arithmetic import Arithmetic, make_problem
from tests.algorithms.selection_test import completion
from tests.support.runs import assert_same_result, completions, run_with, small_config


def test_problems_come_once_before_any_comes_twice():
    for size, count in [(10, 4), (10, 10), (10, 0), (7, 5), (100, 33)]:
        problems = Arithmetic(max_digits=2, train_per_length=size).problems("train")[:size]
        chosen: list[str] = []
        for n in range(1, 9):
            new = problem_order.uniform(problems, count, n, seed=3)
            assert len(new) == len({p.id for p in new}) == (count or size), (size, count)
            assert problem_order.uniform(problems, count, n, seed=3) == new, "depends on its arguments alone"
            chosen += [p.id for p in new]
        if count:
            times = [chosen.count(p.id) for p in problems]
            assert max(times) - min(times) <= 1 + (count == size), (size, count)


def pool_of(sizes, n):
    """Indices available in iteration n: sizes[0] from the beginning, sizes[1] more from iteration 5 on, ..."""
    return sum(sizes[: 1 + (n - 1) // 4])


def test_problems_that_become_available_join_the_pass():
    for sizes, count in [((150, 130), 30), ((20, 130), 30), ((100, 100, 100), 33), ((120, 1), 30), ((7, 5), 5)]:
        problems = Arithmetic(max_digits=1, train_per_length=sum(sizes)).problems("train")
        index = {p.id: i for i, p in enumerate(problems)}
        seen: list[int] = []
        for n in range(1, 13):
            pool = pool_of(sizes, n)
            new = problem_order.uniform(problems, count, n, 3, lambda p, k, s=sizes, i=index: i[p.id] < pool_of(s, k))
            chosen = [index[p.id] for p in new]
            assert len(set(chosen)) == len(chosen) == min(count, pool) and max(chosen) < pool, (sizes, n)
            if sum(sizes) == 280 and n <= 9:
                assert not set(chosen) & set(seen), f"iteration {n} repeats problems while others are unseen"
            seen += chosen
        if sizes != (20, 130):  # there all twenty come in each of the first iterations
            for first, last in zip(range(0, len(problems), sizes[0]), sizes, strict=False):
                times = [seen.count(i) for i in range(first, first + last)]
                assert max(times) - min(times) <= 2, (sizes, first)


def test_new_problems_are_mixed_with_those_that_wait():
    problems = Arithmetic(max_digits=1, train_per_length=200).problems("train")
    index = {p.id: i for i, p in enumerate(problems)}
    chosen = problem_order.uniform(problems, 40, 2, 3, lambda p, n: n > 1 or index[p.id] < 100)
    assert 15 < sum(index[p.id] >= 100 for p in chosen) < 38  # 100 of the 160 that wait


def test_problems_that_become_unavailable_leave_the_pass():
    problems = Arithmetic(max_digits=1, train_per_length=90).problems("train")
    index = {p.id: i for i, p in enumerate(problems)}
    chosen = problem_order.uniform(problems, 20, 2, 3, lambda p, n: n == 1 or index[p.id] < 50)
    assert len(chosen) == 20 and all(index[p.id] < 50 for p in chosen)


PROBLEMS = [make_problem(f"t-{i}", 10 + i, 20, digits=2) for i in range(40)]


class Heap:
    """AdaSTaR as its Algorithm 1 has it: a heap from which observations are peeked, and popped after the round."""

    def __init__(self, problems, seed):
        rank = np.random.default_rng([seed, 2505]).permutation(len(problems)).tolist()
        self.entries = [(0, Fraction(0), rank[i], problem.id) for i, problem in enumerate(problems)]
        heapq.heapify(self.entries)

    def peek(self, m):
        return [entry[3] for entry in heapq.nsmallest(m, self.entries)]

    def update(self, n, wins, strength):
        for _ in range(len(wins) * strength**2 // 1):
            _, _, rank, name = heapq.heappop(self.entries)
            heapq.heappush(self.entries, (n, wins[name], rank, name))


def samples_of(chosen, rng, draws, rate):
    """Random samples and rationalizations of the problems, and per problem the right samples."""
    verdicts = {p.id: [rng.random() < rate for _ in range(draws)] for p in chosen}
    samples = [
        completion(p, "right" if right else "wrong", sample_index=i)
        for p in chosen
        for i, right in enumerate(verdicts[p.id])
    ]
    hinted = [completion(p, rng.choice(["right", "truncated"]), hinted=True) for p in chosen if not any(verdicts[p.id])]
    return samples, hinted if rng.random() < 0.7 else [], verdicts


def test_the_adaptive_order_is_that_of_a_heap():
    """1,000 histories of random strength; on ties the seed's order decides."""
    rng, rounds_seen = random.Random(0), 0
    for history in range(1000):
        problems = PROBLEMS[: rng.randrange(1, 41)]
        wanted, draws, rate = rng.randrange(len(problems) + 1), rng.randrange(1, 4), rng.random()
        heap, rounds = Heap(problems, history), []
        for n in range(1, rng.randrange(2, 8)):
            chosen = problem_order.adaptive(problems, wanted, rounds, history)
            assert [p.id for p in chosen] == heap.peek(wanted or len(problems)), (history, n)
            samples, hinted, verdicts = samples_of(chosen, rng, draws, rate)
            rounds.append(problem_order.round_of(samples, hinted))
            right = Fraction(sum(map(sum, verdicts.values())), len(samples))
            of_hints = Fraction(sum(c.verdict == "right" for c in hinted), max(1, len(hinted)))
            wins = {name: Fraction(sum(values), draws) for name, values in verdicts.items()}
            heap.update(n, wins, right + (1 - right) * of_hints)
            rounds_seen += 1
    assert rounds_seen > 3000


def test_problems_that_are_solved_every_time_rest_once():
    always, often, never = PROBLEMS[:3]
    solved, missed = [completion(p, sample_index=0) for p in (always, often)], completion(never, "wrong")
    half = [completion(often, "wrong", sample_index=1)]
    rounds = [problem_order.round_of([*solved, missed], []), problem_order.round_of([*solved, *half, missed], [])]
    assert problem_order.resting(rounds, 0) == problem_order.resting(rounds, 3) == frozenset()
    assert problem_order.resting(rounds[:1], 1) == {always.key, often.key}
    assert problem_order.resting(rounds, 1) == problem_order.resting(rounds, 2) == {always.key}
    rounds.append(problem_order.round_of([solved[1], missed], []))  # `always` rested
    assert problem_order.resting(rounds, 1) == {often.key} and problem_order.resting(rounds, 2) == frozenset()


@pytest.mark.parametrize("options", [{"problems": "adaptive"}, {"skip_solved": 1}])
def test_an_order_by_samples_needs_samples(options):
    for without in ({"direct": True}, {"rationalize": "all"}):
        with pytest.raises(InputError, match="go by samples without a hint"):
            StarConfig(**options, **without).validate()
    with pytest.raises(InputError, match="problems must be one of uniform, adaptive"):
        small_config(star__problems="hard")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"star__problems": "adaptive"}, {"star__skip_solved": 1}])
def test_a_run_that_was_continued_has_the_order_of_one_that_was_not(base, tmp_path, options):
    for iterations in (1, 2):
        continued = run_with(base, tmp_path / "continued", star__iterations=iterations, **options)
    whole = run_with(base, tmp_path / "whole", **options)
    assert_same_result(continued.workdir, whole.workdir)
    ids = [{c.problem_id for c in completions(whole, n)} for n in (1, 2)]
    solved = {c.problem_id for c in completions(whole, 1) if c.verdict == "right"}
    assert solved and ids[0] != ids[1]
    if "star__skip_solved" in options:
        assert not solved & ids[1]
    else:
        problems = small_config().make_task().problems("train")
        chosen = problem_order.adaptive(problems, 80, [whole_round(whole)], seed=0)
        assert [p.id for p in chosen] == [c.problem_id for c in completions(whole, 2)]


def whole_round(run_dir):
    return problem_order.round_of(completions(run_dir, 1), completions(run_dir, 1, "rationalizations"))
