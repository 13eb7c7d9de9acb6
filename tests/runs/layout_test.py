"""star_jax.runs.layout: names of folders and numbers of iterations belong together one to one."""

from pathlib import Path

from star_jax.runs.layout import iteration_number, model_directory


def test_every_iteration_has_one_name():
    for number in (1, 9, 10, 99, 100, 999, 1000, 12345, 100_000):
        assert iteration_number(model_directory(Path("run"), number).parent) == number
    copies = (
        "iter_0001",
        "iter_00012",
        "iter_0000",
        "iter_1",
        "iter_01",
        "iter_001_old",
        "iter_001 (copy)",
        "iter_001~",
    )
    for name in (
        *copies,
        "iter_٠٠١",
        "iter_00１",
        "iter_-01",
        "iter_+01",
        "iter_1_000",
        "ITER_001",
        "iter_" + "9" * 99,
    ):
        assert iteration_number(Path("run") / name) is None, name
