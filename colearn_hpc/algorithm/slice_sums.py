"""Equations 2 and 4 on a slice: the mean, and the sums of squares from which norms come.

Source: Mi et al. 2020, eq. 2 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from colearn_hpc.algorithm import compiled


@dataclass(frozen=True)
class Squares:
    """Sums of squares over a slice of the parameters, in float64; those of disjoint slices add up.

    Attributes:
        change: ‖w̄ⁱ - w̄ⁱ⁻¹‖².
        before: ‖w̄ⁱ⁻¹‖².
        after: ‖w̄ⁱ‖²; not finite if and only if something in w̄ⁱ is not (or overflows float64).
    """

    change: float = 0.0
    before: float = 0.0
    after: float = 0.0

    def __add__(self, other: Squares) -> Squares:
        return Squares(self.change + other.change, self.before + other.before, self.after + other.after)

    @property
    def relative_change(self) -> float:
        """``‖w̄ⁱ - w̄ⁱ⁻¹‖ / ‖w̄ⁱ⁻¹‖`` of eq. 4; 0 when nothing changed, ``inf`` when something came from all zeros."""
        return ratio_of_norms(self.change, self.before)


def check_weights(weights: Sequence[float]) -> None:
    """Refuse what eq. 2 cannot divide by.

    Raises:
        ValueError: no weight, or one that is not a positive finite number.
    """
    if not weights:
        raise ValueError("the mean of no participants is undefined")
    if not all(w > 0 and math.isfinite(w) for w in weights):
        raise ValueError(f"weights of the mean must be positive and finite, found {list(weights)}")


def are_float32(weights: Sequence[float]) -> bool:
    """Whether they are float32's numbers: then float64 holds the product of each with a float32 exactly."""
    return all(float(np.float32(w)) == w for w in weights)


class SliceSums:
    """Equation 2 and the sums of eq. 4, on one slice of a vector after the other.

    Working memory is kept from slice to slice, because fresh pages cost as much as the sums that are done in them. A
    slice is worked on as a whole, because a call costs as much as thousands of elements.

    Args:
        size: elements of the longest slice; it and two float64 copies of it should stay in a core's cache.
        device: where all vectors lie. The mean has the same bits on all devices, for every number of it comes from the
            same operations in the same order; sums of squares differ in their last digits.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.size = size
        self._first, self._second = torch.empty((2, size), dtype=torch.float64, device=device)

    def mean(self, rows: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Tensor:
        """Equation 2: ``Σ_k n_k w_k / Σ_k n_k`` in float64, summed in the order of ``rows``.

        Args:
            rows: of w_k, each of shape ``(n,)``.
            weights: n_k per row, see :func:`check_weights`.
            out: where to write, shape ``(n,)``; may be one of the rows.

        Returns:
            ``out``.
        """
        total = float(sum(weights))
        loops = self._loops(rows, out)
        if loops is not None and are_float32(weights):
            loops.mean(tuple(row.numpy() for row in rows), np.array(weights, np.float64), total, out.numpy())
            return out
        accumulated = self._first[: len(out)].copy_(rows[0])
        if weights[0] != 1:
            accumulated.mul_(weights[0])
        for row, weight in zip(rows[1:], weights[1:], strict=True):
            accumulated.add_(row, alpha=weight)
        # Multiplying by a power of two is the same division, and faster.
        if math.frexp(total)[0] == 0.5:
            return out.copy_(accumulated.mul_(1 / total))
        # On a GPU torch divides by a number as it multiplies by its reciprocal, which is rounded; not so by a tensor.
        divisor = torch.full((), total, dtype=torch.float64, device=out.device) if out.is_cuda else total
        return out.copy_(accumulated.div_(divisor))

    def squares(self, new: Tensor, old: Tensor | None) -> Squares:
        """The sums of squares of eq. 4.

        Args:
            new: of w̄ⁱ, shape ``(n,)``.
            old: of w̄ⁱ⁻¹, shape ``(n,)``; None if only ``after`` is wanted.
        """
        fresh = self._first[: len(new)].copy_(new)
        after = float(torch.dot(fresh, fresh))
        if old is None:
            return Squares(after=after)
        last = self._second[: len(new)].copy_(old)
        before = float(torch.dot(last, last))
        fresh.sub_(last)
        return Squares(float(torch.dot(fresh, fresh)), before, after)

    def distances(self, rows: Sequence[Tensor], mean: Tensor) -> list[float]:
        """``‖w_k - w̄‖²`` of each row, a figure for people: its last digits may differ where machine code sums them.

        Args:
            rows: of w_k, each of shape ``(n,)``.
            mean: of w̄, shape ``(n,)``.
        """
        if loops := self._loops(rows, mean):
            squares = np.empty(len(rows))
            loops.distances(tuple(row.numpy() for row in rows), mean.numpy(), squares)
            return [float(square) for square in squares]
        step = self._first.view(mean.dtype)[: len(mean)]
        return [_square(torch.sub(row, mean, out=step)) for row in rows]

    def _loops(self, rows: Sequence[Tensor], out: Tensor) -> compiled.Sums | None:
        """Machine code for these, where there is some."""
        loops = compiled.sums(len(rows))
        fits = loops and not out.is_cuda and all(t.dtype == torch.float32 for t in (*rows, out))
        return loops if fits else None


def _square(vector: Tensor) -> float:
    """``‖v‖²`` of a short vector."""
    square = float(torch.dot(vector, vector))
    return square if math.isfinite(square) else float(vector.double().square().sum())


def ratio_of_norms(difference: float, reference: float) -> float:
    """The quotient of two norms from their squares; 0 / 0 is 0."""
    if reference == 0:
        return 0.0 if difference == 0 else math.inf
    return math.sqrt(difference / reference)
