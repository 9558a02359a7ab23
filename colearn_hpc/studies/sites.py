"""Per-site fairness: how the data centers fare, where each one is judged by itself."""

from __future__ import annotations

from colearn_hpc.studies.blocks import Table
from colearn_hpc.studies.results import StudyResults
from colearn_hpc.studies.run_folder import RunFolder
from colearn_hpc.studies.statistics import of_trials
from colearn_hpc.studies.words import value


def of_run(run: RunFolder, metric: str) -> list[float]:
    """The metric of each data center after the last round: of the model it uses, on the data it evaluates."""
    if not run.rounds:
        return []
    centers = run.rounds[-1]["centers"]
    members = run.members(metric) if run.method == "ensemble" else {}
    found = [members.get(center["name"], center["shared_metrics"].get(metric)) for center in centers]
    return [float(one) for one in found if one is not None]


def table(study: StudyResults, group: tuple[str, str]) -> Table | None:
    """Mean, worst data center and spread of each arm; None where all data centers measure the same in every arm."""
    rows, differ = [], False
    for arm in study.arms:
        runs = [found for r in study.of(group, arm) if len(found := of_run(r.run, study.metric)) > 1]
        if not runs:
            continue
        differ |= any(max(found) > min(found) for found in runs)
        kinds = (
            [sum(found) / len(found) for found in runs],
            [min(found) for found in runs],
            [max(found) - min(found) for found in runs],
        )
        rows.append([study.arm_label(arm), *(value(of_trials(kind).mean, study.metric) for kind in kinds)])
    if not differ:
        return None
    caption = (
        f"{study.metric} of each data center's own judgement after the last round, means over trials: mean over the "
        "data centers, the worst of them, and the distance from best to worst."
    )
    return Table(["arm", "mean", "worst data center", "spread"], rows, caption)
