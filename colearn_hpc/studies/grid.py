"""From a study to its runs: model x data x arm x seed."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import Any

from colearn_hpc.studies.methods import completed
from colearn_hpc.studies.settings import lookup, merged
from colearn_hpc.studies.study_file import Study


@dataclass(frozen=True)
class RunPlan:
    """One run of the grid.

    Attributes:
        name: of its run folder.
        arm, model, data: names on the axes, empty where the study has no such axis.
        seed: of the trial.
        settings: the whole configuration of ``fit``, without name and folder.
        centers, ranks_per_center: how many groups of ranks are started, and how many ranks in each; an arm that puts
            all ranks into one data center may start fewer than ``settings["centers"]``.
    """

    name: str
    arm: str
    model: str
    data: str
    seed: int
    settings: dict[str, Any]
    centers: int
    ranks_per_center: int

    @property
    def ranks(self) -> int:
        return self.centers * self.ranks_per_center

    @property
    def fingerprint(self) -> str:
        """Equal for equal runs: a finished one with another fingerprint is out of date."""
        content = json.dumps([self.settings, self.centers, self.ranks_per_center], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()


def expand(study: Study) -> list[RunPlan]:
    """All runs of a study: trial by trial, so that an interrupted study has whole trials to report on.

    Every run is ended by the same number of local epochs (``trainer.max_epochs``), not by rounds: that is the equal
    budget. CoLearning shortens the last round where they do not divide.
    """
    plans = []
    for seed, model, data, arm in itertools.product(study.seeds, study.models, study.data, study.arms):
        settings = merged(
            study.base,
            {"centers": study.centers, "trainer.max_epochs": study.epochs, "colearning.rounds": None},
            study.settings,
            data.settings,
            model.settings,
            arm.settings,
            dict.fromkeys(study.seed_keys, seed),
        )
        for key in ("name", "runs"):
            settings.pop(key, None)
        settings = completed(settings)
        one_center = lookup(settings, "method") in ("vanilla", "single") and arm.ranks == "center"
        plans.append(
            RunPlan(
                name="-".join(part for part in (data.name, model.name, arm.name, f"s{seed}") if part),
                arm=arm.name,
                model=model.name,
                data=data.name,
                seed=seed,
                settings=settings,
                centers=1 if one_center else study.centers,
                ranks_per_center=study.ranks_per_center,
            )
        )
    return plans
