"""A rival of equation 2: the next shared model is not the mean. An optimizer steps from the last one towards the mean.

The data centers' mean w̄ is read as a gradient, Δ = w̄_prev - w̄ (the *pseudo-gradient*), and an outer optimizer
takes a step along it. With rate 1 and no momentum the step ends at w̄: that is equation 2.

    DiLoCo                         OuterSGD()                                    arXiv 2311.08105
    FedAvgM                        OuterSGD(1.0, 0.9, nesterov=False)            Hsu et al. 2019, arXiv 1909.06335
    FedSWA's moving average        OuterSGD(α, momentum=0, nesterov=False)       Liu et al. 2025, arXiv 2507.20016
    FedAdam, FedYogi               :class:`FedAdam`, :class:`FedYogi`            arXiv 2003.00295
    delayed Nesterov               :class:`DelayedNesterov`                      Liu et al. 2024, arXiv 2401.09135

Source: Reddi et al. 2021 (FedOpt, arXiv 2003.00295); Douillard et al. 2023 (DiLoCo, arXiv 2311.08105).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_BLOCK = 1 << 20  # elements that are widened to float64 at a time


class OuterOptimizer(Protocol):
    """What an outer optimizer must offer. A new one is a new class with this one method."""

    def step(self, previous: Tensor, mean: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The next shared model, and the state to be given to the next call.

        Every leader computes it by itself, and the results must be equal to the bit. So use elementwise operations
        only, one at a time. Another processor may round reductions and fused multiply-add (``add(alpha=...)``)
        differently.

        Args:
            previous: w̄ⁱ⁻¹, the shared model from which the round started, shape ``(n,)``.
            mean: w̄, the mean over data centers (eq. 2), shape ``(n,)``.
            state: what the last call returned, a tensor of any shape; None at the first. It travels in resume points.

        Returns:
            A new vector of shape ``(n,)`` and a new state; the arguments stay as they are, for a round may yet be
            refused.
        """


@dataclass(frozen=True)
class OuterSGD:
    """SGD on the pseudo-gradient Δ, with momentum in PyTorch's form. The defaults are DiLoCo's.

    First v ← μ·v + Δ. Then w ← w̄_prev - α·(Δ + μ·v) with Nesterov's form, or w ← w̄_prev - α·v without it.

    Args:
        learning_rate: α.
        momentum: μ.
        nesterov: Nesterov's form.

    Raises:
        ValueError: ``learning_rate`` not positive, ``momentum`` not in [0, 1), or Nesterov without momentum.
    """

    learning_rate: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"outer momentum must be in [0, 1), found {self.momentum!r}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("outer nesterov=true with momentum=0: set momentum above 0, or nesterov=false")

    @torch.no_grad()
    def step(self, previous: Tensor, mean: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        new = torch.empty_like(previous)
        velocity = torch.zeros_like(previous) if state is None else state.clone()
        for block in _blocks(previous):
            before = previous[block].double()
            gradient = before - mean[block].double()
            moved = velocity[block].double() * self.momentum + gradient
            velocity[block] = moved
            direction = gradient + moved * self.momentum if self.nesterov else moved
            new[block] = before - direction * self.learning_rate
        return new, velocity


@dataclass(frozen=True)
class FedAdam:
    """Adam on the pseudo-gradient, without the correction for the first steps.

    m ← β₁·m + (1-β₁)·Δ;  v ← β₂·v + (1-β₂)·Δ²;  w ← w̄_prev - α·m / (√v + τ).  m starts at 0 and v at τ².

    A step moves each parameter by about α, whatever the size of Δ. So α has to be found anew for every network. The
    paper searches α and τ over powers of √10.

    Source: Reddi et al. 2021, arXiv 2003.00295, Algorithm 2.

    Args:
        learning_rate: α.
        beta1: β₁.
        beta2: β₂.
        tau: τ, the degree of adaptivity. If τ is far above √v, a step is that of SGD with momentum at the rate α/τ.

    Raises:
        ValueError: ``learning_rate`` or ``tau`` not positive, ``beta1`` or ``beta2`` not in [0, 1).
    """

    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)
        if not self.tau > 0:
            raise ValueError(f"outer tau must be above 0, found {self.tau!r}")
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise ValueError(f"outer {name} must be in [0, 1), found {value!r}")

    @torch.no_grad()
    def step(self, previous: Tensor, mean: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :class:`OuterOptimizer`; the state is m and v, shape ``(2, n)``."""
        if state is None:
            state = torch.stack([torch.zeros_like(previous), torch.full_like(previous, self.tau**2)])
        new, moments = torch.empty_like(previous), torch.empty_like(state)
        for block in _blocks(previous):
            before = previous[block].double()
            gradient = before - mean[block].double()
            first = state[0, block].double() * self.beta1 + gradient * (1 - self.beta1)
            second = self._second(state[1, block].double(), gradient * gradient)
            moments[0, block], moments[1, block] = first, second
            new[block] = before - first / (second.sqrt() + self.tau) * self.learning_rate
        return new, moments

    def _second(self, moment: Tensor, square: Tensor) -> Tensor:
        return moment * self.beta2 + square * (1 - self.beta2)


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """Yogi on the pseudo-gradient: :class:`FedAdam` with a second moment that shrinks only slowly.

    v ← v - (1-β₂)·Δ²·sign(v - Δ²).

    Source: Reddi et al. 2021, arXiv 2003.00295, Algorithm 2.
    """

    def _second(self, moment: Tensor, square: Tensor) -> Tensor:
        return moment - square * (1 - self.beta2) * (moment - square).sign()


@dataclass(frozen=True)
class DelayedNesterov:
    """Nesterov's momentum that is renewed only once in N rounds. In the rounds between, Δ alone moves the model.

    In every round S ← S + Δ. In every N-th round m ← β·m + S/N, then w ← w̄_prev - α·((1 - c·N + c)·β·m + Δ/N), and
    S ← 0. In the other rounds w ← w̄_prev - α·(c·β·m + Δ/N). With N = 1 it is ``OuterSGD(α, β, nesterov=True)``.

    In the paper each Δ comes from one worker, at its own time, and N is about the number of workers. Here each Δ is the
    mean of all data centers. So one step of momentum is spread over N rounds: that is what remains of the method if
    nobody is late.

    Source: Liu et al. 2024, arXiv 2401.09135, Algorithm 3.

    Args:
        learning_rate: α.
        momentum: β.
        every: N, in rounds.
        activation: c, the part of the momentum that acts in each round; 0 acts once in N rounds.

    Raises:
        ValueError: ``learning_rate`` not positive, ``momentum`` not in [0, 1), ``every`` below 1, or ``activation``
            not in [0, 1/N].
    """

    learning_rate: float = 0.7
    momentum: float = 0.9
    every: int = 2
    activation: float = 0.0

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"outer momentum must be in [0, 1), found {self.momentum!r}")
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"outer every must be a whole number of rounds, at least 1; found {self.every!r}")
        if not 0 <= self.activation <= 1 / self.every:
            raise ValueError(
                f"outer activation must be in [0, 1/every = {1 / self.every:g}], found {self.activation!r}"
            )

    @torch.no_grad()
    def step(self, previous: Tensor, mean: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :class:`OuterOptimizer`; the state is m, S and the number of Δ in S, shape ``(2n + 1,)``."""
        size = len(previous)
        new, held = torch.empty_like(previous), previous.new_zeros(2 * size + 1) if state is None else state.clone()
        momentum, waiting, number = held[:size], held[size : 2 * size], held[2 * size :]
        renewed = int(number) + 1 == self.every
        # A tensor: on a GPU torch divides by a number as it multiplies by its reciprocal, which is rounded.
        every = previous.new_full((), self.every, dtype=torch.float64)
        active = (1 - self.activation * self.every + self.activation if renewed else self.activation) * self.momentum
        for block in _blocks(previous):
            before = previous[block].double()
            gradient = before - mean[block].double()
            total, moved = waiting[block].double() + gradient, momentum[block].double()
            if renewed:
                moved = moved * self.momentum + total / every
                momentum[block] = moved
            waiting[block] = 0 if renewed else total
            new[block] = before - (moved * active + gradient / every) * self.learning_rate
        number.fill_(0 if renewed else int(number) + 1)
        return new, held


def _check_rate(learning_rate: float) -> None:
    if not learning_rate > 0:
        raise ValueError(f"outer learning_rate must be above 0, found {learning_rate!r}")


def _blocks(vector: Tensor) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, len(vector), _BLOCK))
