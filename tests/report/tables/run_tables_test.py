"""star_jax.report.tables.run_tables: which columns a run's tables have."""

import json

from star_jax.report.run_data import read_run
from star_jax.report.tables import run_tables
from tests.support.report_runs import make_run, put


def headings(run) -> set[str]:
    (table,) = run_tables.evaluations(read_run(run), None)
    return {column.heading for column in table.columns}


def test_wrong_steps_have_a_column_where_a_task_s_check_found_some(tmp_path):
    """Most tasks have no check of steps: 0 there would read as if there were no wrong ones."""
    run = make_run(tmp_path)
    for count in (0, 1):
        for number in (0, 1, 2):
            path = run / f"iter_{number:03d}/eval_dev.json"
            wrong_steps = count if number == 1 else 0
            put(path, json.loads(path.read_text()) | {"right_wrong_steps": wrong_steps})
        assert (run_tables.WRONG_STEPS in headings(run)) is bool(count)
