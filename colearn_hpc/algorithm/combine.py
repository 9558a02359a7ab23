"""Equation 2 and its robust rivals: how K vectors become one.

A single participant can pull the mean of eq. 2 as far as it likes. Trimmed mean and median bound what a few
participants can do, whatever these send. They need more honest data centers than poisoned ones, and they must see the
single models, which secure sums hide.

All of this is done element by element. So a vector can be combined slice by slice, by whoever holds the slices.

Source: Mi et al. 2020, eq. 2; Yin et al. 2018 (arXiv 1803.01498).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from colearn_hpc.algorithm.slice_sums import SliceSums, check_weights
from colearn_hpc.errors import ConfigurationError


class Combine(Protocol):
    """What a way of combining must offer. A new one is a new class with this one method."""

    def combine(self, rows: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Tensor:
        """Combine a slice of each data center's vector.

        To be called for one slice after the other; the result must not depend on where a vector is cut, and must be
        equal to the bit on every processor.

        Args:
            rows: a slice of w_k for each data center that gives to the mean, in their order, each of shape ``(n,)``.
            weights: n_k, one for each row, see :func:`~colearn_hpc.algorithm.slice_sums.check_weights`.
            out: the vector to write into, shape ``(n,)``; it may be one of the rows.

        Returns:
            ``out``.

        Raises:
            ValueError: it cannot combine so few rows, or rows of these weights.
        """


@dataclass
class WeightedMean:
    """Equation 2, by :meth:`SliceSums.mean`. Working memory is kept from slice to slice."""

    _sums: SliceSums = field(default_factory=lambda: SliceSums(0), init=False, repr=False, compare=False)

    def combine(self, rows: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Tensor:
        if self._sums.size < len(out):
            self._sums = SliceSums(len(out))
        return self._sums.mean(rows, weights, out)


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each element's values without the ``trim`` largest and the ``trim`` smallest ones.

    It withstands ``trim`` poisoned data centers: every element stays within the range of the honest values. NaN counts
    as the largest value, so it is cut off too.

    Source: Yin et al. 2018, arXiv 1803.01498, Definition 2 (there β is the part cut off at each end, ``trim / K``).

    Args:
        trim: values cut off at each end; K data centers need ``2 · trim < K``.

    Raises:
        ValueError: ``trim`` below 1.
    """

    trim: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.trim, bool) or not isinstance(self.trim, int) or self.trim < 1:
            raise ValueError(f"trim must be a whole number of data centers, at least 1; found {self.trim!r}")

    def combine(self, rows: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Tensor:
        """See :meth:`Combine.combine`.

        Raises:
            ValueError: too few rows, or weights that differ.
        """
        _check_equal_weights(weights)
        if len(rows) <= 2 * self.trim:
            raise ValueError(
                f"a trimmed mean without the {self.trim} largest and the {self.trim} smallest values needs at least "
                f"{2 * self.trim + 1} data centers, found {len(rows)}; lower trim, or use the mean"
            )
        return _mean_of_middle(rows, self.trim, out)


@dataclass(frozen=True)
class Median:
    """The median of each element's values. If their number is even, it is the mean of the two in the middle.

    It withstands any minority of poisoned data centers.

    Source: Yin et al. 2018, arXiv 1803.01498, Definition 1.
    """

    def combine(self, rows: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Tensor:
        """See :meth:`Combine.combine`.

        Raises:
            ValueError: fewer than three rows, of which no majority can be honest, or weights that differ.
        """
        _check_equal_weights(weights)
        if len(rows) < 3:
            raise ValueError(f"a median needs at least 3 data centers, found {len(rows)}; use the mean")
        return _mean_of_middle(rows, (len(rows) - 1) // 2, out)


def combiner_of(combine: Any) -> Combine | None:
    """What a name or an object means; None for eq. 2, which needs no object, and where no weights are combined.

    Args:
        combine: ``"weights"``, ``"predictions"``, ``"trimmed_mean"``, ``"median"``, or an object with ``combine``.

    Raises:
        ConfigurationError: it is neither.
    """
    makers = {"weights": None, "predictions": None, "trimmed_mean": TrimmedMean, "median": Median}
    if isinstance(combine, str):
        if combine not in makers:
            raise ConfigurationError(f"combine must be one of {', '.join(makers)} or an object; found {combine!r}")
        maker = makers[combine]
        return None if maker is None else maker()
    if not callable(getattr(combine, "combine", None)):
        raise ConfigurationError(
            f"combine={combine!r} has no `combine(rows, weights, out)` method; use one of {', '.join(makers)}"
        )
    return combine


@torch.no_grad()
def _mean_of_middle(rows: Sequence[Tensor], trim: int, out: Tensor) -> Tensor:
    """The mean of each element without ``trim`` values at each end, in float64 from the smallest up."""
    middle = torch.stack(list(rows)).sort(dim=0).values[trim : len(rows) - trim]
    total = middle[0].double()
    for row in middle[1:]:
        total = total + row
    return out.copy_(total / len(middle))


def _check_equal_weights(weights: Sequence[float]) -> None:
    check_weights(weights)
    if len(set(weights)) > 1:
        raise ValueError(
            f"trimmed mean and median count every data center once, found weights {list(weights)}: a poisoned one "
            'would choose its own; use weighting="uniform"'
        )
