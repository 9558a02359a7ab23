"""Into which slices a vector is cut among K leaders, and what is measured over them (eq. 4).

Floating-point sums depend on their order. Some runs have the whole mean in one place, in others the leaders share the
work. Both measure over the same slices and add up in the same order, so both find the same bits.

Source: Mi et al. 2020, eq. 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from colearn_hpc.algorithm.codec import BLOCK
from colearn_hpc.algorithm.slice_sums import SliceSums, Squares

SLICE = 1 << 15  # elements of a leader's slice of a chunk: 128 KiB stay in a core's cache, and on a link take turns
CHUNK = 1 << 19  # elements of a chunk at most, over all leaders: what is not the result stays under 25 MB for any K
# On a GPU a call takes about as long as 100,000 elements, so that slices are 1 MiB, and what is not the result 100 MB.
GPU_SLICE, GPU_CHUNK = 1 << 18, 1 << 21


class Readable(Protocol):
    """A vector that is read piece by piece."""

    def read(self, start: int, stop: int, scratch: Tensor) -> Tensor: ...

    def wait(self) -> None: ...


@dataclass(frozen=True)
class Chunk:
    """A stretch of the vector, in K slices.

    Attributes:
        bounds: shape ``(K + 1,)``; slice k is ``bounds[k]:bounds[k + 1]``.
        parameters: whether it is of the leading part, the parameters.
    """

    bounds: tuple[int, ...]
    parameters: bool

    @property
    def kind(self) -> int:
        """0: of the parameters, 1: of what follows them; each may travel in its own way."""
        return 0 if self.parameters else 1

    def length(self, k: int) -> int:
        return self.bounds[k + 1] - self.bounds[k]

    def place(self, k: int) -> slice:
        return slice(self.bounds[k], self.bounds[k + 1])


def chunks(size: int, parameter_size: int, centers: int, on_gpu: bool = False) -> Iterator[Chunk]:
    """The vector in chunks of K slices; none holds both parameters and other things."""
    longest, together = (GPU_SLICE, GPU_CHUNK) if on_gpu else (SLICE, CHUNK)
    # Whole blocks of a codec, where there is room for them.
    length = min(longest, max(together // centers // BLOCK, 1) * BLOCK)
    for first, last, parameters in ((0, parameter_size, True), (parameter_size, size, False)):
        for start in range(first, last, length * centers):
            yield Chunk(_bounds(start, min(length * centers, last - start), centers), parameters)


def _bounds(start: int, length: int, centers: int) -> tuple[int, ...]:
    # Rounded up, so that no slice is longer than the first.
    return tuple(start + -(-length * k // centers) for k in range(centers + 1))


@torch.no_grad()
def measure(
    mean: Tensor | None, previous: Tensor | None, own: Readable | None, parameter_size: int, centers: int
) -> tuple[Squares, Squares, float]:
    """What is known of a mean beside its value.

    Args:
        mean: w̄ⁱ, shape ``(n,)``; None: nothing is known.
        previous: w̄ⁱ⁻¹, shape ``(>= parameter_size,)``; None: only w̄ⁱ is measured.
        own: w_k, of the same size; None: no distance is measured.
        parameter_size: length of the leading part.
        centers: K, of the data centers that took part.

    Returns:
        The sums of eq. 4 over the parameters; those over the rest; ``‖w_k - w̄‖²`` of the parameters, NaN without
        ``own`` or ``previous``.
    """
    if mean is None:
        return Squares(), Squares(), math.nan
    cut = list(chunks(len(mean), parameter_size, centers))
    width = max((chunk.length(0) for chunk in cut), default=0)
    sums, scratch = SliceSums(width), torch.empty(width, dtype=mean.dtype)
    squares, rest = [Squares()] * centers, [Squares()] * centers
    distances = [0.0] * centers
    for chunk in cut:
        for k in range(centers):
            place = chunk.place(k)
            target = mean[place]
            if chunk.parameters and previous is not None and own is not None and len(target):
                row = own.read(place.start, place.stop, scratch)
                own.wait()
                distances[k] += sums.distances([row], target)[0]
            if chunk.parameters:
                squares[k] += sums.squares(target, None if previous is None else previous[place])
            else:
                rest[k] += sums.squares(target, None)
    total, others, distance = Squares(), Squares(), 0.0
    for k in range(centers):
        total, others, distance = total + squares[k], others + rest[k], distance + distances[k]
    return total, others, distance if own is not None and previous is not None else math.nan
