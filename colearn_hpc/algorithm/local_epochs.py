"""Equation 4: how many epochs a data center trains between two averagings, and its rivals.

A rule is a pure function of the :class:`RoundOutcome` just finished. It is asked once, on the first
leader, and the answer is broadcast: two ranks that compare floats on their own can disagree, train
different numbers of epochs, and wait for each other forever.

Source: Mi et al. 2020, eq. 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class RoundOutcome:
    """What is known when a round has been averaged.

    Attributes:
        round: index i of the round that ended, from 0.
        local_epochs: T_i that the rule had chosen for it.
        relative_change: ‖w̄ - w̄_prev‖ / ‖w̄_prev‖ of eq. 4.
        epochs_done: local epochs finished so far, over the whole run.
        learning_rate: rate of the last local epoch (first parameter group).
    """

    round: int
    local_epochs: int
    relative_change: float
    epochs_done: int
    learning_rate: float


class LocalEpochsRule(Protocol):
    """What a rule for T_i must offer. A new rule is a new class with these two methods."""

    def first(self) -> int:
        """T_0."""

    def next(self, outcome: RoundOutcome) -> int:
        """T_{i+1} after the round described by ``outcome``."""


def increased_epochs(local_epochs: int, relative_change: float, epsilon: float) -> int:
    """Equation 4: 2·T where the relative change is at most ε, else T. NaN never doubles."""
    return 2 * local_epochs if relative_change <= epsilon else local_epochs


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of epochs, at least 1; found {value!r}")


@dataclass(frozen=True)
class IncreasingEpochs:
    """ILE (eq. 4): T doubles whenever the shared model's relative change falls to ε.

    Args:
        initial: T_0.
        epsilon: ε. Not in the paper; an ε under the noise floor of local SGD (about 0.005 plain, 0.017
            with Nesterov 0.9) never doubles anything. 0 doubles only if nothing changed at all.
        maximum: T never exceeds it (None: no bound, as in the paper).

    Raises:
        ValueError: a number of epochs below 1, ``epsilon`` negative, or ``maximum < initial``.
    """

    initial: int
    epsilon: float = 0.01
    maximum: int | None = None

    def __post_init__(self) -> None:
        _check_positive("local_epochs (T_0)", self.initial)
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon must be at least 0, found {self.epsilon!r}")
        if self.maximum is not None:
            _check_positive("max_local_epochs", self.maximum)
            if self.maximum < self.initial:
                raise ValueError(f"max_local_epochs={self.maximum} is below local_epochs={self.initial} (T_0)")

    def first(self) -> int:
        return self.initial

    def next(self, outcome: RoundOutcome) -> int:
        doubled = increased_epochs(outcome.local_epochs, outcome.relative_change, self.epsilon)
        return doubled if self.maximum is None else min(doubled, self.maximum)


@dataclass(frozen=True)
class FixedEpochs:
    """FLE: T_0 in every round. With a constant rate this is FedAvg's fixed E (McMahan et al. 2017, arXiv 1602.05629).

    Raises:
        ValueError: ``initial`` below 1.
    """

    initial: int

    def __post_init__(self) -> None:
        _check_positive("local_epochs (T_0)", self.initial)

    def first(self) -> int:
        return self.initial

    def next(self, outcome: RoundOutcome) -> int:
        return self.initial


@dataclass(frozen=True)
class QuadraticEpochs:
    """QSR, the quadratic synchronization rule: T grows as the rate decays, T = max(T_0, ⌊(α/η)²⌋).

    A rival of eq. 4 that needs no exchange to decide. The paper counts steps, here it is local epochs, so α has the
    unit rate·√epochs: the rate at which T would be 1. η is that of the last local epoch done, the one known when the
    decision is taken; under one decay over the whole run (ELR) the next round's first is the same or one step smaller.
    Under CLR every round ends at the same rate, and the rule would never grow.

    Source: Gu et al. 2024, arXiv 2310.14423.

    Args:
        initial: T_0, also the least T.
        alpha: α.
        maximum: T never exceeds it (None: no bound).

    Raises:
        ValueError: a number of epochs below 1, ``alpha`` not positive, or ``maximum < initial``.
    """

    initial: int
    alpha: float
    maximum: int | None = None

    def __post_init__(self) -> None:
        _check_positive("initial (T_0)", self.initial)
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, found {self.alpha!r}")
        if self.maximum is not None:
            _check_positive("maximum", self.maximum)
            if self.maximum < self.initial:
                raise ValueError(f"maximum={self.maximum} is below initial={self.initial} (T_0)")

    def first(self) -> int:
        return self.initial

    def next(self, outcome: RoundOutcome) -> int:
        bound = math.inf if self.maximum is None else self.maximum
        wanted = (self.alpha / outcome.learning_rate) ** 2 if outcome.learning_rate > 0 else math.inf
        epochs = min(max(float(self.initial), wanted), bound)
        # A rate that has decayed to nothing asks for ever: one more doubling is the answer then.
        return math.floor(epochs) if math.isfinite(epochs) else 2 * outcome.local_epochs
