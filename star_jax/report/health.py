"""Signs of health by iteration: how draws fail, whether they grow alike, what is never solved, what speaks of hints."""

import dataclasses

from star_jax.report import draws
from star_jax.report.draws import Drawn, Kept
from star_jax.report.load import Run


@dataclasses.dataclass(frozen=True)
class Health:
    """One iteration. What its stages have not written yet is None."""

    iteration: int
    sampled: Drawn
    rationalized: Drawn | None
    kept: Kept | None
    tried_so_far: int  # train problems drawn for, without the hint, in this iteration or an earlier one
    solved_so_far: int  # of those, solved at least once without the hint

    @property
    def never_solved(self) -> int:
        """Train problems that no draw has solved yet without the hint."""
        return self.tried_so_far - self.solved_so_far

    def used(self, source: str) -> float | None:
        """Share of the iteration's problems that gave an example of this source (the paper's "train data used")."""
        return len(self.kept.problems.get(source, ())) / len(self.sampled.tried) if self.kept else None

    @property
    def used_together(self) -> float | None:
        """Share of the iteration's problems that gave an example of any source."""
        return len(frozenset().union(*self.kept.problems.values())) / len(self.sampled.tried) if self.kept else None

    def leaking(self, source: str) -> float | None:
        """Share of the kept examples of this source that speak of a hint; None where there are none."""
        if not self.kept or not self.kept.examples[source]:
            return None
        return self.kept.leaks[source] / self.kept.examples[source]


def health_series(run: Run) -> list[Health]:
    """One entry for each iteration that has drawn. Raises InputError for a broken file."""
    series: list[Health] = []
    tried: set[str] = set()
    solved: set[str] = set()
    for iteration in run.iterations:
        sampled = draws.drawn(iteration, "samples")
        if sampled is None or not sampled.draws:
            continue
        tried |= sampled.tried
        solved |= sampled.solved
        rationalized, kept = draws.drawn(iteration, "rationalizations"), draws.kept(iteration)
        series.append(Health(iteration.number, sampled, rationalized, kept, len(tried), len(solved)))
    return series
