"""star_jax.algorithms.schedule: steps and problems of each iteration."""

from star_jax.algorithms import schedule
from star_jax.config import StarConfig
from star_jax.tasks.arithmetic import Arithmetic


def test_fine_tuning_steps():
    for name, expected in [("exponential", [40, 48, 57, 69]), ("linear", [40, 60, 80, 100]), ("epochs", [25] * 4)]:
        options = StarConfig(schedule=name, epochs=2.0)
        assert [schedule.fine_tuning_steps(options, n, rows=99, batch_rows=8) for n in (1, 2, 3, 4)] == expected


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
