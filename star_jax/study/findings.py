"""What a study has found so far: the outcomes of its runs, and the differences of its arms."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from star_jax.study import comparison, outcomes
from star_jax.study.comparison import Difference
from star_jax.study.outcomes import Outcome
from star_jax.study.spec import BASE, Place, Study


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a study has found so far."""

    study: Study
    workdir: Path
    outcomes: Mapping[str, Mapping[int, Outcome]]  # BASE or arm -> seed -> outcome of each finished run
    failures: Mapping[Place, str]  # why a run failed
    differences: tuple[Difference, ...]

    @property
    def finished_arms(self) -> dict[str, Mapping[int, Outcome]]:
        """The arms with a finished run."""
        return {arm: by_seed for arm, by_seed in self.outcomes.items() if arm != BASE and by_seed}


def read(study: Study, workdir: Path, failures: Mapping[Place, str]) -> Findings:
    """Reads the runs in the study's directory. Raises InputError for a broken file."""
    found = {
        arm: {
            seed: outcome
            for seed in study.seeds
            if (outcome := outcomes.read(Place(arm, seed).directory(workdir), study.outcome, study.split))
        }
        for arm in (BASE, *study.arms)
    }
    arms = {arm: found[arm] for arm in study.arms}
    differences = tuple(comparison.differences(arms, study.reference, len(study.seeds)))
    return Findings(study, workdir, found, dict(failures), differences)
