"""What a paired difference allows to be said, in words that do not overstate."""

from __future__ import annotations

import math

from colearn_hpc.studies.results import StudyResults
from colearn_hpc.studies.statistics import Difference, paired
from colearn_hpc.studies.words import is_percent, value


def interval_in_words(gap: Difference, metric: str) -> str:
    """``+0.50 [+0.20, +0.80]``; without brackets where one pair leaves the interval unknown."""
    if not gap.count:
        return ""
    low, high = gap.interval
    mean = value(gap.mean, metric, sign=True)
    if not math.isfinite(low):
        return mean
    return f"{mean} [{value(low, metric, sign=True)}, {value(high, metric, sign=True)}]"


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
    low, high = gap.interval
    unit = " points" if is_percent(metric) else ""
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
