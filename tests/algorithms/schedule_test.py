"""star_jax.algorithms.schedule: steps and problems of each iteration."""

import itertools
from fractions import Fraction

from star_jax.algorithms import schedule
from star_jax.config import StarConfig
from star_jax.tasks.arithmetic import Arithmetic


def test_fine_tuning_steps():
    for name, expected in [("exponential", [40, 48, 57, 69]), ("linear", [40, 60, 80, 100]), ("epochs", [25] * 4)]:
        options = StarConfig(schedule=name, epochs=2.0)
        assert [schedule.fine_tuning_steps(options, n, rows=99, batch_rows=8) for n in (1, 2, 3, 4)] == expected


def test_the_time_left_grows_with_the_steps_and_not_with_other_phases():
    """Iteration 2 of 4 took 48, 60 or 25 s for its steps, a second each, and 10 s for the rest."""
    for name, tuning, later in [("exponential", 48, 57 + 69), ("linear", 60, 80 + 100), ("epochs", 25, 25 + 25)]:
        options, seconds = StarConfig(schedule=name, iterations=4), {"sample": 7.0, "fine_tune": tuning, "other": 3.0}
        assert abs(schedule.remaining_seconds(options, 2, seconds) - (later + 2 * 10)) < 1e-6
        assert schedule.remaining_seconds(options, 4, seconds) == 0


def test_exponential_steps_are_the_whole_part_of_the_decimal_product_and_at_least_one():
    for steps, growth in itertools.product((1, 10, 40, 100), ("0.3", "0.5", "0.9", "1", "1.1", "1.15", "1.2", "2.5")):
        options = StarConfig(steps=steps, step_growth=float(growth))
        for n in range(1, 13):
            expected = max(1, int(steps * Fraction(growth) ** (n - 1)))
            assert schedule.fine_tuning_steps(options, n, 1, 1) == expected, (steps, growth, n)


def test_the_paper_s_schedule_reaches_its_published_length():
    """40 x 1.2^29 = 7912 steps in loop 30 (paper, appendix)."""
    assert schedule.fine_tuning_steps(StarConfig(), 30, 1, 1) == 7912


def test_no_schedule_exceeds_the_cap():
    for name in ("exponential", "linear", "epochs"):
        free = StarConfig(schedule=name, epochs=100.0)
        capped = StarConfig(schedule=name, epochs=100.0, max_steps=60)
        for n in range(1, 12):
            steps = schedule.fine_tuning_steps(free, n, rows=9, batch_rows=8)
            assert schedule.fine_tuning_steps(capped, n, rows=9, batch_rows=8) == min(60, steps), (name, n)


def test_problems_come_once_before_any_comes_twice():
    for size, count in [(10, 4), (10, 10), (10, 0), (7, 5), (100, 33)]:
        problems = Arithmetic(max_digits=2, train_per_length=size).problems("train")[:size]
        chosen: list[str] = []
        for n in range(1, 9):
            new = schedule.iteration_problems(problems, count, n, seed=3)
            assert len(new) == len({p.id for p in new}) == (count or size), (size, count)
            assert schedule.iteration_problems(problems, count, n, seed=3) == new, "depends on its arguments alone"
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
            new = schedule.iteration_problems(
                problems, count, n, 3, lambda p, k, s=sizes, i=index: i[p.id] < pool_of(s, k)
            )
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
    chosen = schedule.iteration_problems(problems, 40, 2, 3, lambda p, n: n > 1 or index[p.id] < 100)
    assert 15 < sum(index[p.id] >= 100 for p in chosen) < 38  # 100 of the 160 that wait


def test_problems_that_become_unavailable_leave_the_pass():
    problems = Arithmetic(max_digits=1, train_per_length=90).problems("train")
    index = {p.id: i for i, p in enumerate(problems)}
    chosen = schedule.iteration_problems(problems, 20, 2, 3, lambda p, n: n == 1 or index[p.id] < 50)
    assert len(chosen) == 20 and all(index[p.id] < 50 for p in chosen)
