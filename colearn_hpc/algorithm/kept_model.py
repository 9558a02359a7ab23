"""Which model a run evaluates and saves: it may be another one than the one from which training goes on.

Source: Kaddour 2022 (LAWA, arXiv 2209.14981), after Izmailov et al. 2018 (SWA, arXiv 1803.05407).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from colearn_hpc.algorithm.shared_model import weighted_mean


class KeptModel(Protocol):
    """What a rule for the kept model must offer. A new rule is a new class with this one method."""

    def keep(self, shared: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The model to evaluate and to save as the result, and the state to be given to the next call.

        To be called on every leader when a shared model has been committed. The next round starts from ``shared`` all
        the same; that is the difference from an outer optimizer. Results must be equal to the bit on every processor,
        see :class:`~colearn_hpc.algorithm.outer.OuterOptimizer`.

        Args:
            shared: w̄ⁱ, shape ``(n,)``.
            state: what the last call returned, a tensor of any shape; None at the first. It travels in resume points.

        Returns:
            A new vector of shape ``(n,)`` and a new state; the arguments stay as they are.
        """


@dataclass(frozen=True)
class LatestMean:
    """LAWA: the mean of the last shared models, at most ``last`` of them.

    The paper averages the checkpoints of one training run at the ends of its epochs, and training goes on from the last
    one. Here the end of a round takes the place of the end of an epoch. BatchNorm statistics are averaged like weights,
    as in eq. 2. SWA instead estimates them anew by a pass over the training data.

    Args:
        last: how many models. All of them are held in memory and in every resume point.

    Raises:
        ValueError: ``last`` below 1.
    """

    last: int = 5

    def __post_init__(self) -> None:
        if isinstance(self.last, bool) or not isinstance(self.last, int) or self.last < 1:
            raise ValueError(f"last must be a whole number of shared models, at least 1; found {self.last!r}")

    @torch.no_grad()
    def keep(self, shared: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :class:`KeptModel`; the state is the last models, oldest first, shape ``(at most last, n)``."""
        newest = shared[None]
        models = newest.clone() if state is None else torch.cat([state[max(len(state) + 1 - self.last, 0) :], newest])
        return weighted_mean(list(models), [1.0] * len(models)), models
