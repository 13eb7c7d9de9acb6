"""`every_row`: a table of cases as one test, which runs all rows and reports every row that fails."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

SHOWN = 20  # failures printed in full


def every_row(names: str | Sequence[str], rows: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Like `pytest.mark.parametrize(names, rows)`, but one test instead of one per row. Stacks: all combinations.

    Fixtures are shared by the rows, except that each row gets an empty folder as `tmp_path` and a cleared `caplog`.
    """
    names = [names] if isinstance(names, str) else list(names)
    table = [(row,) if len(names) == 1 else tuple(row) for row in rows]
    assert table and all(len(row) == len(names) for row in table), "a table without rows, or a row of another length"

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(check)

        def test(**fixtures: Any) -> None:
            failures = []
            for number, row in enumerate(table):
                arguments = {**fixtures, **dict(zip(names, row, strict=True))}
                if "tmp_path" in fixtures:
                    arguments["tmp_path"] = fixtures["tmp_path"] / f"row_{number}"
                    arguments["tmp_path"].mkdir()
                if "caplog" in fixtures:
                    fixtures["caplog"].clear()
                try:
                    check(**arguments)
                except (Exception, pytest.fail.Exception) as error:
                    failures.append(f"{', '.join(f'{value!r:.200}' for value in row)}\n    {error!r:.500}")
            assert not failures, f"{len(failures)} of {len(table)} rows fail:\n" + "\n".join(failures[:SHOWN])

        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        test.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[p for name, p in signature.parameters.items() if name not in names]
        )
        return test

    return decorate
