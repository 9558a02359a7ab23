"""What is added to a data center's gradients so that its model strays less from the others.

In co-learning every participant minimizes its own loss between two averagings. If their data differ, their models run
to different points. A correction pulls each optimizer step back: towards the last shared model (FedProx), or along the
difference between everyone's direction and one's own (SCAFFOLD).

Source: Li et al. 2020 (FedProx, arXiv 1812.06127); Karimireddy et al. 2020 (SCAFFOLD, arXiv 1910.06378).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Variates(NamedTuple):
    """What a correction remembers from round to round: two estimates of a gradient, each of shape ``(n,)``.

    Attributes:
        own: c_k of this data center; it never leaves, and travels in its own resume points.
        common: c, the mean of all c_k (eq. 2 with the weights of the models); the same in all data centers.
    """

    own: Tensor
    common: Tensor


class LocalCorrection(Protocol):
    """What a correction must offer. A new one is a new class with this one method."""

    def correct(self, gradient: Tensor, parameter: Tensor, shared: Tensor, variates: Variates | None) -> None:
        """Change ``gradient`` in place. To be called before each optimizer step, for every trainable parameter.

        To be called when the gradients of a data center's ranks have been averaged. All tensors have one shape and one
        device; it does not matter which part of the model they are, for all that is done is done element by element.

        Args:
            gradient: of the local loss.
            parameter: w_k, as it is now.
            shared: w̄ⁱ⁻¹, from which the round started.
            variates: of this part of the model; None for a correction that has none.
        """


class VariateCorrection(LocalCorrection, Protocol):
    """What a correction with :class:`Variates` must offer besides.

    They are all zeros in round 0. The common part is taken anew with each mean: every data center gives the vector that
    :meth:`renewed` returns, as it gives its model. That doubles the bytes of the exchange.
    """

    def renewed(self, parameter: Tensor, shared: Tensor, variates: Variates, distance: float) -> Tensor:
        """The data center's own variate after a round.

        To be called when the round's last step is done, before the model is replaced by the mean. What it returns
        becomes ``own``, and its mean over the data centers becomes ``common``, if the round is committed.

        Args:
            parameter: w_k at the round's end.
            shared: w̄ⁱ⁻¹, from which the round started.
            variates: those the round was trained with.
            distance: sum of the learning rates of all optimizer steps of the round.

        Returns:
            A new tensor of the arguments' shape.
        """


@dataclass(frozen=True)
class FedProx:
    """The gradient of the proximal term: g ← g + μ·(w_k - w̄).

    It is that of F_k(w) + μ/2 · ‖w - w̄‖². With μ = 0 it is FedAvg.

    Source: Li et al. 2020, arXiv 1812.06127, Algorithm 2.

    Args:
        mu: μ; the paper searches 0.001, 0.01, 0.1 and 1.

    Raises:
        ValueError: ``mu`` is not positive.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        if not self.mu > 0:
            raise ValueError(f"mu of the proximal term must be above 0, found {self.mu!r}; without it drop FedProx")

    @torch.no_grad()
    def correct(self, gradient: Tensor, parameter: Tensor, shared: Tensor, variates: Variates | None) -> None:
        gradient.add_(parameter - shared, alpha=self.mu)


@dataclass(frozen=True)
class Scaffold:
    """SCAFFOLD's control variates: g ← g - c_k + c.

    At a round's end c_k ← c_k - c + (w̄ - w_k) / Σ η. That is the mean gradient of the round's steps without their
    correction. (It is the paper's option II, with Σ η in place of the number of steps times a constant rate.) Then c
    becomes the mean of all c_k. In the paper a server sees only some participants in a round, so they send how c_k has
    changed, and the server adds that up. If all data centers take part, the mean of the c_k is the same.

    It is derived for plain SGD. Momentum μ makes w̄ - w_k about 1/(1 - μ) times as long, and the variates too. So use an
    optimizer without momentum.

    Source: Karimireddy et al. 2020, arXiv 1910.06378, Algorithm 1.
    """

    @torch.no_grad()
    def correct(self, gradient: Tensor, parameter: Tensor, shared: Tensor, variates: Variates | None) -> None:
        assert variates is not None, "all zeros in round 0"
        gradient.sub_(variates.own).add_(variates.common)

    @torch.no_grad()
    def renewed(self, parameter: Tensor, shared: Tensor, variates: Variates, distance: float) -> Tensor:
        """See :meth:`LocalCorrection.renewed`.

        Raises:
            ValueError: no step was taken, or only at rate 0.
        """
        if not distance > 0:
            raise ValueError(
                f"SCAFFOLD divides by the sum of a round's learning rates, found {distance!r}: every data center must "
                "take a step at a rate above 0 in every round"
            )
        return variates.own - variates.common + (shared - parameter) / distance
