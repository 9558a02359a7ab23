"""Equation 3: the learning rate within a round, and its rivals.

A schedule answers one question: by what factor is the base rate multiplied in this local
epoch? It is a pure function of an :class:`EpochPosition`, so that every rank of every data
center computes the same factor and a resumed run needs no schedule state.

Source: Mi et al. 2020, eq. 3 and Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from colearn_hpc.errors import ConfigurationError


@dataclass(frozen=True)
class EpochPosition:
    """Where a local epoch lies in the run. If T counts optimizer steps, read "steps" for "local epochs".

    Attributes:
        round: index i of the round, from 0.
        epoch_in_round: index of the local epoch within the round, from 0 to ``local_epochs - 1``.
        local_epochs: T_i, local epochs of this round.
        epochs_done: local epochs finished before this one, over the whole run.
    """

    round: int
    epoch_in_round: int
    local_epochs: int
    epochs_done: int


class LearningRateSchedule(Protocol):
    """What a learning-rate rule must offer. A new rule is a new class with this one method."""

    def factor(self, position: EpochPosition) -> float:
        """The factor by which every base rate is multiplied in the epoch at ``position``."""


def cyclical_factor(j: float, local_epochs: int, decay: float = 0.25) -> float:
    """Equation 3 without its η: ``r ** (j / T_i)``.

    Args:
        j: local epoch; the paper's Algorithm 1 counts 1 … T_i.
        local_epochs: T_i.
        decay: r, the ratio of the last rate of a round to ηⁱ.
    """
    return float(decay ** (j / local_epochs))


@dataclass(frozen=True)
class CyclicalLR:
    """CLR (eq. 3): η · r^(j/T_i), restarting at every round.

    Args:
        decay: r; the paper uses 1/4.
        first_j: 1 counts j = 1 … T_i, as in the paper's Algorithm 1: a round ends at exactly η·r, and no epoch is
            trained at η itself. 0 counts j = 0 … T_i - 1: a round begins at η.

    Raises:
        ValueError: ``decay`` is not in (0, 1] or ``first_j`` is neither 0 nor 1.
    """

    decay: float = 0.25
    first_j: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay (r of eq. 3) must be in (0, 1], found {self.decay!r}; the paper uses 0.25")
        if self.first_j not in (0, 1):
            raise ValueError(f"first_j must be 1 (the paper's j = 1…T) or 0 (j = 0…T-1), found {self.first_j!r}")

    def factor(self, position: EpochPosition) -> float:
        return cyclical_factor(position.epoch_in_round + self.first_j, position.local_epochs, self.decay)


@dataclass(frozen=True)
class ExponentialLR:
    """ELR (the paper's ablation): one exponential decay over the whole run, never restarting.

    The paper does not give its constants. By default the rate is multiplied by 0.94 after every 2 epochs: that is the
    default of the framework from which the paper's nets came.

    Args:
        gamma: factor per ``every`` epochs.
        every: epochs.
        staircase: True: the rate falls once in ``every`` epochs. False: it falls a little in every epoch.

    Raises:
        ValueError: ``gamma`` is not in (0, 1] or ``every`` is not positive.
    """

    gamma: float = 0.94
    every: int = 2
    staircase: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], found {self.gamma!r}")
        if self.every < 1:
            raise ValueError(f"every must be at least 1 epoch, found {self.every!r}")

    def factor(self, position: EpochPosition) -> float:
        periods = position.epochs_done / self.every
        return float(self.gamma ** (int(periods) if self.staircase else periods))


@dataclass(frozen=True)
class ConstantLR:
    """The base rate throughout."""

    def factor(self, position: EpochPosition) -> float:
        return 1.0


@dataclass(frozen=True)
class LinearLR:
    """FedSWA's rate: it falls along a line from η to ρ·η within every round, and restarts.

    The rate is η · (1 - (1 - ρ) · j/T). It is a rival of eq. 3, whose rate falls exponentially. The paper counts j in
    optimizer steps from 0 to T - 1, so a round begins at η and ends just above ρ·η. Here j counts local epochs. FedSWA
    has a second half, a moving average of shared models: that is ``OuterSGD(α, momentum=0, nesterov=False)``.

    Source: Liu et al. 2025, arXiv 2507.20016 (FedSWA).

    Args:
        decay: ρ.
        first_j: 0 counts j = 0 … T_i - 1 (the paper's); 1 counts j = 1 … T_i: a round ends at exactly ρ·η.

    Raises:
        ValueError: ``decay`` is not in [0, 1], is 0 with ``first_j=1``, or ``first_j`` is neither 0 nor 1.
    """

    decay: float = 0.1
    first_j: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay (ρ of FedSWA) must be in [0, 1], found {self.decay!r}")
        if self.first_j not in (0, 1):
            raise ValueError(f"first_j must be 0 (the paper's j = 0…T-1) or 1 (j = 1…T), found {self.first_j!r}")
        if self.decay == 0 and self.first_j == 1:
            raise ValueError(
                "decay=0 with first_j=1 trains the last local epoch of every round at rate 0; set first_j=0, or decay "
                "above 0"
            )

    def factor(self, position: EpochPosition) -> float:
        return 1 - (1 - self.decay) * (position.epoch_in_round + self.first_j) / position.local_epochs


@dataclass(frozen=True)
class WarmUp:
    """Any schedule with a warm-up: over the first epochs of the run the rates rise along a line.

    In epoch e = 0, 1, … of the run the schedule's factor is multiplied by min((e + 1) / (E + 1), 1). So the rates of E
    epochs are below those of the schedule, and the rate of the next epoch is the schedule's.
    ``WarmUp(CyclicalLR(), 5)`` is eq. 3 with a warm-up.

    Source: Goyal et al. 2017, arXiv 1706.02677, section 2.2 (gradual warm-up; they raise the rate at every step).

    Args:
        schedule: any schedule.
        epochs: E, over the whole run, not in each round.

    Raises:
        ValueError: ``epochs`` below 1, or ``schedule`` has no ``factor(position)``.
    """

    schedule: LearningRateSchedule
    epochs: int = 5

    def __post_init__(self) -> None:
        if not callable(getattr(self.schedule, "factor", None)):
            raise ValueError(f"schedule={self.schedule!r} has no `factor(position)` method; give a schedule object")
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 1:
            raise ValueError(f"epochs of the warm-up must be a whole number, at least 1; found {self.epochs!r}")

    def factor(self, position: EpochPosition) -> float:
        return min((position.epochs_done + 1) / (self.epochs + 1), 1.0) * self.schedule.factor(position)


def schedule_of(schedule: Any, decay: float, in_steps: bool = False) -> LearningRateSchedule | None:
    """The schedule that a name or an object means; None for ``"none"``: rates are the optimizer's own.

    Args:
        schedule: ``"clr"``, ``"elr"``, ``"constant"``, ``"none"``, or an object with a ``factor`` method.
        decay: r of eq. 3, for ``"clr"``.
        in_steps: T counts optimizer steps.

    Raises:
        ConfigurationError: it is neither, or it is ``"elr"``, whose constants are of epochs, in steps.
    """
    if in_steps and schedule == "elr":
        raise ConfigurationError(
            'schedule="elr" decays every 2 local epochs, and with local_steps the run counts optimizer steps; give '
            "ExponentialLR(gamma, every=STEPS)"
        )
    makers = {"clr": lambda: CyclicalLR(decay), "elr": ExponentialLR, "constant": ConstantLR, "none": lambda: None}
    if isinstance(schedule, str):
        return made("schedule", schedule, makers)
    if not callable(getattr(schedule, "factor", None)):
        raise ConfigurationError(f"schedule={schedule!r} has no `factor(position)` method; use one of {list(makers)}")
    return schedule


def made(argument: str, name: str, makers: dict[str, Any]) -> Any:
    """What ``makers`` has under ``name``.

    Raises:
        ConfigurationError: nothing, or it refuses its settings.
    """
    if name not in makers:
        raise ConfigurationError(f"{argument} must be one of {', '.join(makers)} or an object; found {name!r}")
    try:
        return makers[name]()
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
