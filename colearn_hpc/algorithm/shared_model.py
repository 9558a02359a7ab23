"""Equation 2: a model as one flat vector, the mean over participants, its relative change.

What data centers exchange is fixed here, once:

* trainable parameters, shared (tied) ones once; they alone enter the norm of eq. 4;
* floating-point buffers (BatchNorm statistics): without them the shared model is useless;
* never: frozen parameters and integer counters such as ``num_batches_tracked``.

Sums are carried out in float64 in the order of the data centers, so a mean depends neither on the
MPI's algorithm nor on its message sizes, and the mean of equal values is that value, to the bit.

Source: Mi et al. 2020, eq. 2 and 4; the paper leaves norm, buffers and accumulation open.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_BLOCK = 1 << 20  # elements that are widened to float64 at a time


@dataclass(frozen=True)
class FlatEntry:
    """One tensor's place in the flat vector: ``vector[offset : offset + length]``."""

    name: str
    offset: int
    length: int


class FlatModel:
    """The exchanged part of a model as one flat vector, parameters first, then the rest.

    The vector is float32 (float64 if any exchanged tensor is); float16 and bfloat16 tensors are averaged
    in float32 and rounded once on the way back. Complex tensors count as pairs of reals.

    Args:
        parameters: (name, tensor) pairs that enter the norm.
        others: (name, tensor) pairs that are averaged but do not enter the norm.

    Attributes:
        size: length of the vector.
        parameter_size: length of its leading part, the parameters.
        entries: one :class:`FlatEntry` per tensor, in order.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], others: Iterable[tuple[str, Tensor]] = ()) -> None:
        named = [*parameters]
        split = len(named)
        named += others
        self._tensors = [tensor for _, tensor in named]
        self.dtype = torch.float64 if any(_real(t).dtype == torch.float64 for t in self._tensors) else torch.float32
        entries, offset = [], 0
        self.parameter_size = 0
        for index, (name, tensor) in enumerate(named):
            if index == split:
                self.parameter_size = offset
            length = _real(tensor).numel()
            entries.append(FlatEntry(name, offset, length))
            offset += length
        self.entries = tuple(entries)
        self.size = offset
        if split == len(named):
            self.parameter_size = offset

    @classmethod
    def of(cls, module: nn.Module) -> FlatModel:
        """The exchanged part of ``module``: trainable parameters, then floating-point buffers."""
        return cls(trainable_parameters(module), float_buffers(module))

    @torch.no_grad()
    def pack(self, out: Tensor | None = None) -> Tensor:
        """Copy the tensors into a flat CPU vector of shape ``(size,)``; ``out`` is reused if given."""
        vector = torch.empty(self.size, dtype=self.dtype) if out is None else out
        for entry, tensor in zip(self.entries, self._tensors, strict=True):
            source = _real(tensor.detach()).reshape(-1)
            vector[entry.offset : entry.offset + entry.length].copy_(source, non_blocking=vector.is_pinned())
        self._synchronize()
        return vector

    @torch.no_grad()
    def unpack(self, vector: Tensor) -> None:
        """Copy a flat vector of shape ``(size,)`` back into the tensors, in place.

        Raises:
            ValueError: the vector has another length.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"the model packs into ({self.size},), found a vector of shape {tuple(vector.shape)}")
        for entry, tensor in zip(self.entries, self._tensors, strict=True):
            target = _real(tensor.detach())
            source = vector[entry.offset : entry.offset + entry.length].view(target.shape)
            target.copy_(source, non_blocking=vector.is_pinned())
        self._synchronize()

    @torch.no_grad()
    def parameter_distance(self, vector: Tensor) -> float:
        """``‖w - v‖ / ‖v‖`` between the tensors as they are and a flat vector, over the parameters only."""
        difference = reference = 0.0
        for entry, tensor in zip(self.entries, self._tensors, strict=True):
            if entry.offset >= self.parameter_size:
                break
            other = vector[entry.offset : entry.offset + entry.length].double()
            difference += float((_real(tensor.detach()).reshape(-1).cpu().double() - other).square_().sum())
            reference += float(other.square_().sum())
        return _ratio(difference, reference)

    def _synchronize(self) -> None:
        # Copies between pinned memory and a GPU return before they are done.
        if any(tensor.is_cuda for tensor in self._tensors):
            torch.cuda.synchronize()


def trainable_parameters(module: nn.Module) -> list[tuple[str, Tensor]]:
    """(name, parameter) of every trainable parameter, tied ones once, under their first name."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def float_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """(name, buffer) of every floating-point or complex buffer, shared ones once."""
    return [(name, b) for name, b in module.named_buffers() if b.is_floating_point() or b.is_complex()]


@torch.no_grad()
def weighted_mean(rows: Sequence[Tensor], weights: Sequence[float], out: Tensor | None = None) -> Tensor:
    """Equation 2: ``Σ_k n_k w_k / Σ_k n_k`` in float64, summed in the order of ``rows``.

    Args:
        rows: K vectors of shape ``(n,)``, one per participant.
        weights: K positive numbers n_k; all equal is the paper's plain mean.
        out: where to write, shape ``(n,)``; may be one of the rows.

    Raises:
        ValueError: no row, or a weight that is not a positive finite number.
    """
    if not rows:
        raise ValueError("the mean of no participants is undefined")
    if not all(w > 0 and math.isfinite(w) for w in weights):
        raise ValueError(f"weights of the mean must be positive and finite, found {list(weights)}")
    result = torch.empty_like(rows[0]) if out is None else out
    total = float(sum(weights))
    for start in range(0, rows[0].numel(), _BLOCK):
        block = slice(start, start + _BLOCK)
        accumulated = torch.zeros_like(rows[0][block], dtype=torch.float64)
        for row, weight in zip(rows, weights, strict=True):
            accumulated.add_(row[block], alpha=weight)
        result[block].copy_(accumulated.div_(total))
    return result


@torch.no_grad()
def relative_change(new: Tensor, old: Tensor) -> float:
    """``‖new - old‖ / ‖old‖`` of eq. 4: L2 norm, float64 accumulation.

    Args:
        new: w̄ⁱ, shape ``(n,)``.
        old: w̄ⁱ⁻¹, shape ``(n,)``.

    Returns:
        0 when nothing changed, ``inf`` when something came from an all-zero vector.
    """
    difference = reference = 0.0
    for start in range(0, new.numel(), _BLOCK):
        block = slice(start, start + _BLOCK)
        before = old[block].double()
        difference += float((new[block].double() - before).square_().sum())
        reference += float(before.square_().sum())
    return _ratio(difference, reference)


@torch.no_grad()
def is_finite(vector: Tensor) -> bool:
    """Whether no element is NaN or ±Inf."""
    return all(bool(torch.isfinite(block).all()) for block in vector.split(_BLOCK))


@torch.no_grad()
def first_non_finite(vector: Tensor, model: FlatModel) -> str:
    """Name of the first tensor of ``model`` that holds NaN or ±Inf in ``vector``; empty if none does."""
    for entry in model.entries:
        if not is_finite(vector[entry.offset : entry.offset + entry.length]):
            return entry.name
    return ""


def _ratio(difference: float, reference: float) -> float:
    """Square root of a quotient of squared norms."""
    if reference == 0:
        return 0.0 if difference == 0 else math.inf
    return math.sqrt(difference / reference)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
