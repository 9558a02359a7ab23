"""The equal budget, as a rule: every arm sees the same number of training samples, or the report says who does not.

Two numbers per run: local epochs of each data center, and samples over all data centers. ``single`` has the samples of
one data center by design: it is held to its own data center's part in the other arms' runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from colearn_hpc.studies.results import Result, StudyResults

_PADDING = 0.002  # several ranks fill up their last batch: a few examples an epoch


@dataclass(frozen=True)
class Budget:
    """What the arms of a group were given.

    Attributes:
        epochs: local epochs of every data center.
        samples: training samples over all data centers.
        violations: runs that saw something else, for people.
        batches: arm -> examples per optimizer step.
    """

    epochs: int
    samples: int
    violations: tuple[str, ...]
    batches: dict[str, int | None]


def check_budget(study: StudyResults, group: tuple[str, str]) -> Budget | None:
    """Compare all finished runs of a group; None if there is none."""
    finished = [r for arm in study.arms for r in study.of(group, arm)]
    if not finished:
        return None
    whole = [r for r in finished if not r.is_single]
    reference = whole[0] if whole else finished[0]
    violations = []
    for result in finished:
        expected = _expected(result, reference)
        if result.run.epochs != reference.run.epochs:
            violations.append(f"{result.name}: {result.run.epochs} local epochs, {reference.run.epochs} elsewhere")
        elif expected is not None and abs(result.run.samples - expected) > _PADDING * expected:
            violations.append(f"{result.name}: {result.run.samples:,} training samples, {expected:,} elsewhere")
    batches = {arm: runs[0].run.batch for arm in study.arms if (runs := study.of(group, arm))}
    return Budget(reference.run.epochs, reference.run.samples, tuple(violations), batches)


def _expected(result: Result, reference: Result) -> int | None:
    if not result.is_single or reference.is_single:
        return reference.run.samples
    name = result.run.center_names[0]
    parts = [c for line in reference.run.rounds for c in line["centers"] if c["name"] == name]
    return sum(c["examples"] for c in parts) if parts else None
