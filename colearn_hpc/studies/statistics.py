"""Means over trials, and how sure one may be of a difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

X = TypeVar("X", int, float)


@dataclass(frozen=True)
class Trials:
    """Mean, sample standard deviation (NaN of one trial) and number of trials; NaNs are left out."""

    mean: float
    deviation: float
    count: int


def of_trials(values: Sequence[float]) -> Trials:
    """Mean ± sd."""
    kept = [v for v in values if math.isfinite(v)]
    if not kept:
        return Trials(math.nan, math.nan, 0)
    mean = math.fsum(kept) / len(kept)
    if len(kept) == 1:
        return Trials(mean, math.nan, 1)
    return Trials(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in kept) / (len(kept) - 1)), len(kept))


@dataclass(frozen=True)
class Difference:
    """Paired difference over the seeds that both have: mean, its standard error, and wins, ties and losses."""

    mean: float
    error: float
    count: int
    won: int
    tied: int
    lost: int

    @property
    def interval(self) -> tuple[float, float]:
        """Confidence interval of the mean, 95 %, by Student's t; NaN with one pair. Exact for normal differences."""
        if self.count < 2:
            return math.nan, math.nan
        half = _STUDENT[min(self.count - 1, len(_STUDENT)) - 1] * self.error
        return self.mean - half, self.mean + half


# 97.5 % quantiles of Student's t with 1, 2, … 30 degrees of freedom; beyond, that of 30 is a little too wide.
_STUDENT = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """Ours minus theirs, seed by seed: trials share data and w⁰, so pairing takes that noise out."""
    seeds = [s for s in ours if s in theirs and math.isfinite(ours[s]) and math.isfinite(theirs[s])]
    differences = [ours[s] - theirs[s] for s in seeds]
    trials = of_trials(differences)
    return Difference(
        trials.mean,
        trials.deviation / math.sqrt(trials.count) if trials.count > 1 else math.nan,
        trials.count,
        sum(d > 0 for d in differences),
        sum(d == 0 for d in differences),
        sum(d < 0 for d in differences),
    )


def mean_curve(curves: Sequence[Sequence[tuple[X, float]]]) -> list[tuple[X, Trials]]:
    """Mean over trials of curves known at different epochs, or at other places of an axis.

    A trial's value between two of its rounds is that of its last shared model. The mean begins where the last
    trial has its first value, and ends where the first trial ends.
    """
    kept = [list(curve) for curve in curves if curve]
    if not kept:
        return []
    start = max(curve[0][0] for curve in kept)
    stop = min(curve[-1][0] for curve in kept)
    epochs = sorted({x for curve in kept for x, _ in curve if start <= x <= stop})
    return [(x, of_trials([next(y for e, y in reversed(curve) if e <= x) for curve in kept])) for x in epochs]
