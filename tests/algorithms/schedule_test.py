"""star_jax.algorithms.schedule: the fine-tuning steps of each iteration."""

import itertools
from fractions import Fraction

from star_jax.algorithms import schedule
from star_jax.config import StarConfig


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
