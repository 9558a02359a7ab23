"""A rival of equation 2: the mean is not the shared model, but where an optimizer steps to from the last one.

The data centers' mean w̄ is read as a gradient, Δ = w̄_prev - w̄ (the *pseudo-gradient*), and an outer optimizer
takes a step along it. With rate 1 and no momentum the step ends at w̄: that is equation 2.

Source: Reddi et al. 2021 (FedOpt, arXiv 2003.00295); Douillard et al. 2023 (DiLoCo, arXiv 2311.08105).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_BLOCK = 1 << 20  # elements that are widened to float64 at a time


class OuterOptimizer(Protocol):
    """What an outer optimizer must offer. A new one is a new class with this one method."""

    def step(self, previous: Tensor, mean: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The next shared model, and the state to be given to the next call.

        Every leader computes it on its own CPU and the results must be equal to the bit: elementwise
        operations one at a time only, no reductions and no fused multiply-add (``add(alpha=...)``), whose rounding
        depends on the processor.

        Args:
            previous: w̄ⁱ⁻¹, the shared model from which the round started, shape ``(n,)``.
            mean: w̄, the mean over data centers (eq. 2), shape ``(n,)``.
            state: what the last call returned; None at the first. It travels in resume points.

        Returns:
            Two new vectors of shape ``(n,)``; the arguments stay as they are, for a round may yet be refused.
        """


@dataclass(frozen=True)
class OuterSGD:
    """SGD with (Nesterov) momentum on the pseudo-gradient; PyTorch's form of momentum.

    v ← μ·v + Δ;  w ← w̄_prev - α·(Δ + μ·v) with Nesterov, w̄_prev - α·v without. DiLoCo's defaults.

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
        if not self.learning_rate > 0:
            raise ValueError(f"outer learning_rate must be above 0, found {self.learning_rate!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"outer momentum must be in [0, 1), found {self.momentum!r}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("outer nesterov=true with momentum=0: set momentum above 0, or nesterov=false")

    @torch.no_grad()
    def step(self, previous: Tensor, mean: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        new = torch.empty_like(previous)
        velocity = torch.zeros_like(previous) if state is None else state.clone()
        for start in range(0, previous.numel(), _BLOCK):
            block = slice(start, start + _BLOCK)
            before = previous[block].double()
            gradient = before - mean[block].double()
            moved = velocity[block].double() * self.momentum + gradient
            velocity[block] = moved
            direction = gradient + moved * self.momentum if self.nesterov else moved
            new[block] = before - direction * self.learning_rate
        return new, velocity
