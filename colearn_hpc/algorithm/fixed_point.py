"""Equation 2 in whole numbers: sums that have the same bits in any order, and that masks can hide.

Every data center writes its step since the last shared model as whole numbers, q_k = round(f_k · s · (w_k - w̄_prev)).
They are added modulo 2^32 or 2^64, so that neither the order nor masks that cancel change a bit, and the mean is
w̄_prev + Σ q_k / (s · d):

    plain mean                       f_k = 1                    d = K
    by examples                      f_k = K · n_k / Σ n        d = K
    by examples that stay secret     f_k = n_k, 64 bits         d = Σ n, summed like the q_k

Each tensor has a scale s, a power of two. It follows from numbers that all data centers hold, the last mean step: a
scale of one's own would tell the size of one's own step. So a step may be too large for its scale. Then the data center
says so before anything is sent, and all of them make room (:meth:`Scales.with_more_room`). No sum can wrap around
unseen.

Source: Bonawitz et al. 2017 (Practical Secure Aggregation, CCS) for sums of whole numbers; the scales are ours.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from colearn_hpc.algorithm.shared_model import FlatEntry, is_finite

_BLOCK = 1 << 16  # elements worked on at a time: they and their float64 copies stay in a core's cache
MORE_ROOM = 4  # bits of room that all make at a time
_FINEST = 1000  # 2 to this power and its inverse are finite float64


@dataclass(frozen=True)
class Scales:
    """How a flat vector is written in whole numbers: 2 to the power ``exponents[i]`` for each tensor.

    Plain numbers that all data centers hold alike: they belong into what is agreed on before a sum.

    Attributes:
        bits: 32 or 64; the sums are modulo 2 to this power.
        centers: K, how many vectors are added.
        offsets: where each tensor that is not empty begins.
        exponents: of their scales.
    """

    bits: int
    centers: int
    offsets: tuple[int, ...]
    exponents: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the whole numbers."""
        return torch.int32 if self.bits == 32 else torch.int64

    def with_more_room(self, bits: int = MORE_ROOM) -> Scales:
        """For steps that are larger by 2 to the power ``bits``, and coarser by as much."""
        return replace(self, exponents=tuple(exponent - bits for exponent in self.exponents))

    def of(self, start: int, stop: int) -> Tensor:
        """The scale of each of the elements ``start:stop``, float64 of shape ``(stop - start,)``."""
        scales = torch.empty(stop - start, dtype=torch.float64)
        index = bisect_right(self.offsets, start) - 1
        while start < stop:
            end = self.offsets[index + 1] if index + 1 < len(self.offsets) else stop
            scales[len(scales) - (stop - start) : len(scales) - max(stop - end, 0)] = 2.0 ** self.exponents[index]
            start, index = end, index + 1
        return scales


@torch.no_grad()
def largest_of(entries: Sequence[FlatEntry], vector: Tensor) -> list[float]:
    """max|v| of each tensor in a flat vector of shape ``(size,)``; 0 of an empty one."""
    parts = (vector[entry.offset : entry.offset + entry.length] for entry in entries)
    return [float(part.abs().max()) if len(part) else 0.0 for part in parts]


@torch.no_grad()
def public_scales(entries: Sequence[FlatEntry], last: Tensor, bits: int, centers: int, headroom: int = 6) -> Scales:
    """:func:`scales_for` the last mean step.

    Args:
        entries: one per tensor, in order, see :class:`~colearn_hpc.algorithm.shared_model.FlatModel`.
        last: the last mean step w̄ⁱ - w̄ⁱ⁻¹, shape ``(size,)``; in round 0 the model w⁰ itself. A tensor of zeros gets
            the scale of the largest number in ``last``.
        bits: 32 or 64.
        centers: K.
        headroom: bits of room for a data center's step to be larger than the last mean of them.

    Raises:
        ValueError: ``bits`` is neither, ``centers`` is below 1, or ``last`` holds NaN or ±Inf.
    """
    if bits not in (32, 64):
        raise ValueError(f"whole numbers have 32 or 64 bits, found bits={bits!r}")
    if centers < 1:
        raise ValueError(f"a sum needs at least 1 data center, found centers={centers!r}")
    if not is_finite(last):
        raise ValueError("the last mean step holds NaN or Inf: no scale can be taken from it")
    return scales_for(entries, largest_of(entries, last), bits, centers, headroom)


def scales_for(
    entries: Sequence[FlatEntry], sizes: Sequence[float], bits: int, centers: int, headroom: int = 6
) -> Scales:
    """The finest scales with which K steps fit that are up to 2 to the power ``headroom`` times as large as ``sizes``.

    Args:
        entries: one per tensor, in order.
        sizes: the largest number in each tensor of the last mean step; 0: that of the largest tensor.
        bits: 32 or 64.
        centers: K.
        headroom: bits of room for a data center's step to be larger than the last mean of them.
    """
    filled = [(entry, size) for entry, size in zip(entries, sizes, strict=True) if entry.length]
    largest = max((size for _, size in filled), default=0.0) or 1.0
    # K · size < 2^exponent
    exponents = (bits - 1 - headroom - math.frexp(centers * (size or largest))[1] for _, size in filled)
    offsets = tuple(entry.offset for entry, _ in filled)
    return Scales(bits, centers, offsets, tuple(max(-_FINEST, min(e, _FINEST)) for e in exponents))


@torch.no_grad()
def encode(vector: Tensor, previous: Tensor, scales: Scales, factor: float, out: Tensor, start: int = 0) -> bool:
    """Write the step of a slice as whole numbers.

    Args:
        vector: of w_k, shape ``(n,)``.
        previous: of w̄_prev, shape ``(n,)``.
        scales: of the whole vector.
        factor: f_k.
        out: where to write, ``scales.dtype`` of shape ``(n,)``.
        start: where in the whole vector the slice begins.

    Returns:
        Whether everything fits: K · max|q| < 2^(bits - 1). If not, ``out`` must not be used.

    Raises:
        ValueError: NaN or ±Inf in one of the vectors.
    """
    limit, largest = 2 ** (scales.bits - 1), 0
    for place in _blocks(len(vector)):
        steps = vector[place].double().sub_(previous[place])
        steps.mul_(scales.of(start + place.start, start + place.stop)).mul_(factor).round_()
        size = float(steps.abs().max())
        if not math.isfinite(size):
            _refuse_non_finite(vector[place], start + place.start)
            _refuse_non_finite(previous[place], start + place.start)
            return False  # finite, and far too large
        largest = max(largest, int(size))
        if largest * scales.centers >= limit:
            return False
        out[place] = steps
    return True


@torch.no_grad()
def decode(total: Tensor, previous: Tensor, scales: Scales, divisor: float, out: Tensor, start: int = 0) -> Tensor:
    """The mean of a slice from the sum of its whole numbers: w̄_prev + Σ q_k / (s · d), the same bits everywhere.

    Args:
        total: Σ q_k, ``scales.dtype`` of shape ``(n,)``.
        previous: of w̄_prev, shape ``(n,)``.
        scales: of the whole vector.
        divisor: d.
        out: where to write, shape ``(n,)``; may be ``previous``.
        start: where in the whole vector the slice begins.

    Returns:
        ``out``.
    """
    for place in _blocks(len(total)):
        # Dividing by a power of two is exact; one operation at a time, so that no processor fuses two.
        steps = total[place].double().div_(scales.of(start + place.start, start + place.stop)).div_(divisor)
        out[place] = steps.add_(previous[place])
    return out


@torch.no_grad()
def decode_near_zero(
    total: Tensor, previous: Tensor, scales: Scales, divisor: float, out: Tensor, start: int = 0
) -> Tensor:
    """:func:`decode`, with 0 for a mean that is closer to it than rounding can tell.

    For what may not change its sign: a variance that is rounded below zero would make NaN. See :func:`decode`.
    """
    for place in _blocks(len(total)):
        scale = scales.of(start + place.start, start + place.stop)
        means = total[place].double().div_(scale).div_(divisor).add_(previous[place])
        # K numbers, each rounded by at most one half.
        blur = scale.reciprocal_().mul_(scales.centers / (2 * divisor))
        out[place] = means.masked_fill_(means.abs() <= blur, 0.0)
    return out


def steps_of(numbers: Tensor, scales: Scales, factor: float, start: int = 0) -> Tensor:
    """The step that a data center's whole numbers stand for, float64 of shape ``(n,)``; see :func:`encode`."""
    return numbers.double().div_(scales.of(start, start + len(numbers))).div_(factor)


def _refuse_non_finite(vector: Tensor, start: int) -> None:
    places = (~vector.isfinite()).nonzero()
    if len(places):
        raise ValueError(
            f"element {start + int(places[0])} is {float(vector[places[0]])}: no whole number can say that"
        )


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
