"""What a paired difference allows to be said, in words that do not overstate."""

from __future__ import annotations

import math

from colearn_hpc.studies.results import StudyResults
from colearn_hpc.studies.statistics import Difference, paired
from colearn_hpc.studies.words import is_percent, value

_SAME = 1e-12  # differences of accuracies are multiples of one example, up to rounding


def interval_in_words(gap: Difference, metric: str) -> str:
    """``+0.50 [+0.20, +0.80]``; without brackets where the pairs leave the interval unknown."""
    if not gap.count:
        return ""
    low, high = gap.interval
    mean = value(gap.mean, metric, sign=True)
    if not math.isfinite(low) or _no_spread(gap):
        return mean
    return f"{mean} [{value(low, metric, sign=True)}, {value(high, metric, sign=True)}]"


def _no_spread(gap: Difference) -> bool:
    """All pairs differ by the same, as with few seeds and a test set of some hundred examples."""
    low, high = gap.interval
    return abs(high - low) < _SAME


def verdict(ours: str, theirs: str, gap: Difference, metric: str) -> str:
    """One sentence on two arms.

    Args:
        ours, theirs: their names for people.
        gap: ours minus theirs; higher is better.
        metric: which.
    """
    if not gap.count:
        return f"{ours} and {theirs} have no finished seed in common."
    if gap.count == 1:
        return f"{ours} and {theirs} have one seed in common, which shows nothing."
    unit = " points" if is_percent(metric) else ""
    if _no_spread(gap):
        if abs(gap.mean) < _SAME:
            return f"{ours} and {theirs} have the same {metric} in all {gap.count} paired seeds."
        return (
            f"{ours} and {theirs} differ by {value(gap.mean, metric, sign=True)}{unit} in each of {gap.count} paired "
            "seeds: without a spread there is no interval, and no verdict."
        )
    low, high = gap.interval
    seen = f"{interval_in_words(gap, metric)}{unit}, {gap.count} paired seeds"
    if low > 0 or high < 0:
        word = "better" if low > 0 else "worse"
        return f"{ours} is {word} than {theirs} here ({seen})."
    return f"{ours} and {theirs} cannot be told apart by these runs ({seen})."


def verdicts(study: StudyResults, group: tuple[str, str], arm: str) -> list[str]:
    """A sentence on ``arm`` against each other arm, and what several of them together mean."""
    mine = study.by_seed(group, arm)
    others = [other for other in study.arms if other != arm and study.by_seed(group, other)]
    label = study.arm_label(arm)
    said = [
        verdict(label, study.arm_label(other), paired(mine, study.by_seed(group, other)), study.metric)
        for other in others
    ]
    if len(others) > 1:
        said.append(
            f"Each interval holds the true difference with 95 % confidence where differences are about normal; of "
            f"{len(others)} comparisons one in twenty would show a difference where there is none. All of this holds "
            "for this model, these data and this budget."
        )
    return said


def the_same_models(study: StudyResults, group: tuple[str, str]) -> list[str]:
    """A sentence on arms that went the same way in every round of every seed: what tells them apart did not act."""
    ways: dict[object, list[str]] = {}
    for arm in study.arms:
        runs = study.of(group, arm)
        way = tuple(
            (r.seed, line["epochs_done"], line["relative_change"], str(line["centers"][0]["shared_metrics"]))
            for r in runs
            for line in r.run.rounds
        )
        if way:
            ways.setdefault(way, []).append(study.arm_label(arm))
    return [
        f"{', '.join(labels[:-1])} and {labels[-1]} trained the same models in every round of every seed: what tells "
        "them apart did not come to act within this budget."
        for labels in ways.values()
        if len(labels) > 1
    ]
