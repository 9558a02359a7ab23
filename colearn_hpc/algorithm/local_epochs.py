"""Equation 4: how many epochs a data center trains between two averagings, and its rivals.

A rule is a pure function of the :class:`RoundOutcome` just finished, which knows the rounds before it. It is asked
once, on the first leader, and the answer is broadcast: two ranks that compare floats on their own can disagree, train
different numbers of epochs, and wait for each other forever.

Source: Mi et al. 2020, eq. 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, takewhile
from typing import Any, Literal, Protocol

from colearn_hpc.algorithm.learning_rate import made
from colearn_hpc.errors import ConfigurationError

# T_0 where neither unit is given: the default of CoLearning, which has it as a number because help reads it unrun.
LOCAL_EPOCHS = 5


@dataclass(frozen=True)
class RoundOutcome:
    """What is known when a round has been averaged. If T counts optimizer steps, read "steps" for "local epochs".

    Attributes:
        round: index i of the round that ended, from 0.
        local_epochs: T_i that the rule had chosen for it.
        relative_change: ‖w̄ - w̄_prev‖ / ‖w̄_prev‖ of eq. 4.
        epochs_done: local epochs finished so far, over the whole run.
        learning_rate: rate of the last local epoch (first parameter group).
        loss: mean training loss over the round and the data centers; NaN where it was not measured.
        history: the outcomes of the rounds before it, from round 0 on, each with an empty history of its own. A rule
            keeps nothing itself, so a resumed run needs no state of its rule.
    """

    round: int
    local_epochs: int
    relative_change: float
    epochs_done: int
    learning_rate: float
    loss: float = math.nan
    history: tuple[RoundOutcome, ...] = ()

    @property
    def with_these_epochs(self) -> tuple[RoundOutcome, ...]:
        """The outcomes since the rule chose this T_i, oldest first; this one is the last."""
        before = takewhile(lambda outcome: outcome.local_epochs == self.local_epochs, reversed(self.history))
        return (*reversed(tuple(before)), self)


class LocalEpochsRule(Protocol):
    """What a rule for T_i must offer. A new rule is a new class with these two methods.

    A rule that has an attribute ``unit`` equal to ``"steps"`` counts optimizer steps instead of local epochs, see
    :class:`InSteps`.
    """

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


def _check_bounds(initial: int, maximum: int | None) -> None:
    _check_positive("initial (T_0)", initial)
    if maximum is not None:
        _check_positive("maximum", maximum)
        if maximum < initial:
            raise ValueError(f"maximum={maximum} is below initial={initial} (T_0)")


@dataclass(frozen=True)
class IncreasingEpochs:
    """ILE (eq. 4): T doubles whenever the shared model's relative change falls to ε.

    Args:
        initial: T_0.
        epsilon: ε; the paper gives no value. The relative change does not fall below the noise of local SGD, about
            0.005 for plain SGD and 0.017 with Nesterov momentum 0.9. With an ε below that T never doubles. With 0 it
            doubles only if nothing has changed at all.
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
class PlateauEpochs:
    """ILE with ε left to the run: T doubles when the relative change has stopped falling (``epsilon="auto"``).

    Equation 4 waits until the shared model's relative change is small. How small it can become depends on network,
    rate and data: it falls until the noise of local SGD holds it up. This rule finds that floor. It looks at the last
    ``window`` rounds that were trained with the present T (a longer round changes the model more), and compares every
    two of them. T doubles when the change does not fall in at least half of these pairs. While it only falls, it falls
    in all pairs. On a floor each order of the rounds is equally likely. The rule has no unit and no scale (it asks
    whether the S of Mann 1945, Econometrica 13, 245-259, is not below 0).

    With the default window of 5, T doubles after three of five rounds on a floor. Where the change still falls by the
    standard deviation of its own noise in every round, T doubles after 4 of 1000 rounds; with a window of 3, after 76.

    Not in the paper, which leaves ε open.

    Args:
        initial: T_0.
        maximum: T never exceeds it (None: no bound).
        window: rounds that are compared.

    Raises:
        ValueError: a number of epochs below 1, ``window`` below 2, or ``maximum < initial``.
    """

    initial: int
    maximum: int | None = None
    window: int = 5

    def __post_init__(self) -> None:
        _check_bounds(self.initial, self.maximum)
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 2:
            raise ValueError(f"window must be a whole number of rounds, at least 2; found {self.window!r}")

    def first(self) -> int:
        return self.initial

    def next(self, outcome: RoundOutcome) -> int:
        changes = [seen.relative_change for seen in outcome.with_these_epochs[-self.window :]]
        if len(changes) < self.window or not stands(changes):
            return outcome.local_epochs
        return 2 * outcome.local_epochs if self.maximum is None else min(2 * outcome.local_epochs, self.maximum)


def stands(values: Sequence[float]) -> bool:
    """Whether at least half of all pairs, in their order, do not fall. False where a value is not finite."""
    falls = sum(later < earlier for earlier, later in combinations(values, 2))
    return all(map(math.isfinite, values)) and 2 * falls <= math.comb(len(values), 2)


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

    A rival of eq. 4 that needs no exchange to decide. α is the rate at which T would be 1. The paper counts steps. Here
    T counts local epochs, so α has the unit rate·√epochs; in :class:`InSteps` it is the paper's α. η is the rate of the
    last local epoch, which is known when the decision is taken. Take a schedule that decays over the whole run (ELR):
    there the next round's first rate is the same or one step smaller. Under CLR every round ends at the same rate, and
    T would never grow.

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
        _check_bounds(self.initial, self.maximum)
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, found {self.alpha!r}")

    def first(self) -> int:
        return self.initial

    def next(self, outcome: RoundOutcome) -> int:
        bound = math.inf if self.maximum is None else self.maximum
        wanted = (self.alpha / outcome.learning_rate) ** 2 if outcome.learning_rate > 0 else math.inf
        epochs = min(max(float(self.initial), wanted), bound)
        # A rate that has decayed to nothing asks for ever: one more doubling is the answer then.
        return math.floor(epochs) if math.isfinite(epochs) else 2 * outcome.local_epochs


@dataclass(frozen=True)
class PostLocalEpochs:
    """Post-local SGD: the data centers average often at first, and train on their own for longer afterwards.

    T is ``initial`` until ``switch`` epochs are done, then ``after``. The paper averages after every step at first, and
    switches where the rate is decayed for the first time. That is :class:`InSteps` around this rule with T = 1 step at
    first; with plain SGD the first phase then equals mini-batch SGD over all data centers. Without ``InSteps`` the
    closest is one local epoch.

    Source: Lin et al. 2020, arXiv 1808.07217.

    Args:
        switch: epochs after which a round has ``after`` epochs.
        after: T of the second phase.
        initial: T of the first.

    Raises:
        ValueError: a number of epochs below 1, or ``after`` below ``initial``.
    """

    switch: int
    after: int
    initial: int = 1

    def __post_init__(self) -> None:
        _check_positive("switch", self.switch)
        _check_positive("initial (T_0)", self.initial)
        _check_positive("after", self.after)
        if self.after < self.initial:
            raise ValueError(f"after={self.after} is below initial={self.initial}: the second phase is the longer one")

    def first(self) -> int:
        return self.initial

    def next(self, outcome: RoundOutcome) -> int:
        return self.initial if outcome.epochs_done < self.switch else self.after


@dataclass(frozen=True)
class DecayingEpochs:
    """Decaying local steps: T falls from T_0, the opposite of eq. 4.

    T_i = ⌈T_0 · ∛(1 / (i + 1))⌉ by rounds, or ⌈T_0 · ∛(F_i / F_0)⌉ by the training loss F, which must be measured; T
    stays as it is after round 0 and after a round without a loss. The paper counts steps (see :class:`InSteps`); its
    third variant, one fall where the validation error stands, is not here.

    Source: Mills et al. 2023, arXiv 2305.09628 (K_r-rounds and K_r-error).

    Args:
        initial: T_0, also the largest T.
        by: ``"rounds"`` or ``"loss"``.

    Raises:
        ValueError: ``initial`` below 1, or ``by`` is neither.
    """

    initial: int
    by: Literal["rounds", "loss"] = "rounds"

    def __post_init__(self) -> None:
        _check_positive("initial (T_0)", self.initial)
        if self.by not in ("rounds", "loss"):
            raise ValueError(f'by must be "rounds" or "loss", found {self.by!r}')

    def first(self) -> int:
        return self.initial

    def next(self, outcome: RoundOutcome) -> int:
        left = 1 / (outcome.round + 2) if self.by == "rounds" else loss_left(outcome)
        if math.isnan(left):
            return outcome.local_epochs
        return _at_least_one(self.initial * min(left, 1.0) ** (1 / 3))


@dataclass(frozen=True)
class AdaptiveEpochs:
    """AdaComm: T falls with the square root of the training loss, the opposite of eq. 4.

    T_{i+1} = ⌈T_0 · √(F_i / F_0)⌉; where that is not below T_i, ⌈γ·T_i⌉ instead, so that a loss which stands makes
    rounds shorter too. F is the training loss, which must be measured; T stays as it is after round 0 and after a round
    without a loss. The paper counts steps (see :class:`InSteps`), takes F_0 before the first step, asks after a fixed
    time instead of every round, and has a variant for rates that are decayed, which is not here.

    Source: Wang and Joshi 2019, arXiv 1810.08313.

    Args:
        initial: T_0, also the largest T.
        gamma: γ.

    Raises:
        ValueError: ``initial`` below 1, or ``gamma`` not in (0, 1).
    """

    initial: int
    gamma: float = 0.5

    def __post_init__(self) -> None:
        _check_positive("initial (T_0)", self.initial)
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma must be in (0, 1), found {self.gamma!r}")

    def first(self) -> int:
        return self.initial

    def next(self, outcome: RoundOutcome) -> int:
        left = loss_left(outcome)
        if math.isnan(left):
            return outcome.local_epochs
        wanted = _at_least_one(self.initial * math.sqrt(left))
        return wanted if wanted < outcome.local_epochs else _at_least_one(self.gamma * outcome.local_epochs)


def loss_left(outcome: RoundOutcome) -> float:
    """F_i / F_0, the training loss against that of round 0; NaN in round 0, and where one of the two is unusable."""
    first, last = (outcome.history[0].loss if outcome.history else math.nan), outcome.loss
    return last / first if 0 < first < math.inf and 0 < last < math.inf else math.nan


def _at_least_one(epochs: float) -> int:
    # A hair above a whole number is that number: ∛8 is 2.0000000000000004 on some processors.
    return max(math.ceil(epochs - 1e-9), 1)


@dataclass(frozen=True)
class InSteps:
    """A rule whose numbers are optimizer steps of a data center instead of local epochs.

    All that the rule counts is in steps then: T_0, what it returns, ``local_epochs`` and ``epochs_done`` of the
    outcomes it is given. So does a schedule, and ``learning_rate`` of an outcome is that of the round's last step.
    Every data center takes the same number of steps in a round, whatever its number of examples. ``CoLearning(
    local_steps=500)`` makes one around eq. 4.

    Args:
        rule: any rule.

    Raises:
        ValueError: the rule itself is an ``InSteps``.
    """

    rule: LocalEpochsRule

    unit = "steps"

    def __post_init__(self) -> None:
        if isinstance(self.rule, InSteps):
            raise ValueError("rule is an InSteps already: its numbers are steps; give the rule within it")

    def first(self) -> int:
        return self.rule.first()

    def next(self, outcome: RoundOutcome) -> int:
        return self.rule.next(outcome)


def local_epochs_rule_of(
    rule: Any,
    local_epochs: int,
    epsilon: float | str,
    maximum: int | None,
    local_steps: int | None = None,
    max_steps: int | None = None,
) -> LocalEpochsRule:
    """The rule for T_i that a name or an object means.

    Args:
        rule: ``"ile"``, ``"fle"``, or an object with ``first`` and ``next``.
        local_epochs: T_0.
        epsilon: ε of eq. 4, for ``"ile"``; ``"auto"``: :class:`PlateauEpochs`.
        maximum: bound for ``"ile"``; None: none.
        local_steps: T_0 in optimizer steps; None: T counts local epochs.
        max_steps: bound for ``"ile"`` in steps; None: none.

    Raises:
        ConfigurationError: it is neither, or T is given in both units.
    """
    if local_steps is not None:
        return InSteps(_in_steps(rule, local_epochs, epsilon, maximum, local_steps, max_steps))
    if max_steps is not None:
        raise ConfigurationError(
            f"max_local_steps={max_steps} bounds local_steps, which is not set; set it, or use max_local_epochs"
        )
    if isinstance(epsilon, str) and epsilon != "auto":
        raise ConfigurationError(f'epsilon must be a number or "auto"; found {epsilon!r}')
    makers = {
        "ile": lambda: (
            PlateauEpochs(local_epochs, maximum)
            if isinstance(epsilon, str)
            else IncreasingEpochs(local_epochs, epsilon, maximum)
        ),
        "fle": lambda: FixedEpochs(local_epochs),
    }
    if isinstance(rule, str):
        return made("local_epochs_rule", rule, makers)
    if not (callable(getattr(rule, "first", None)) and callable(getattr(rule, "next", None))):
        raise ConfigurationError(
            f"local_epochs_rule={rule!r} has no `first()` and `next(outcome)`; use one of {list(makers)}"
        )
    return rule


def _in_steps(
    rule: Any, local_epochs: int, epsilon: float | str, maximum: int | None, local_steps: int, max_steps: int | None
) -> LocalEpochsRule:
    for name, value, usual in (("local_epochs", local_epochs, LOCAL_EPOCHS), ("max_local_epochs", maximum, None)):
        if value != usual:
            instead = name.replace("epochs", "steps")
            raise ConfigurationError(
                f"{name}={value} and local_steps={local_steps} count T in two units; drop one of the two ({instead} is "
                "in steps)"
            )
    if not isinstance(rule, str):
        raise ConfigurationError(
            f"local_epochs_rule={rule!r} has a T_0 of its own; leave local_steps out, and give InSteps(rule) to have "
            "it count optimizer steps"
        )
    for name, value in (("local_steps", local_steps), ("max_local_steps", max_steps)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigurationError(f"{name} must be a whole number of optimizer steps, at least 1; found {value!r}")
    if max_steps is not None and max_steps < local_steps:
        raise ConfigurationError(f"max_local_steps={max_steps} is below local_steps={local_steps} (T_0)")
    return local_epochs_rule_of(rule, local_steps, epsilon, max_steps)


def counts_steps(rule: LocalEpochsRule) -> bool:
    """Whether T is in optimizer steps by this rule."""
    return getattr(rule, "unit", "epochs") == "steps"


def checked_epochs(local_epochs: Any) -> int:
    """T_{i+1} as a rule returned it; rules are users' code too.

    Raises:
        ConfigurationError: it is no whole number, or below 1.
    """
    if isinstance(local_epochs, bool) or not isinstance(local_epochs, int) or local_epochs < 1:
        raise ConfigurationError(f"the local epochs rule returned {local_epochs!r}; it must return an int, at least 1")
    return local_epochs
