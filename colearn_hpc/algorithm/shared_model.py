"""Equation 2: a model as one flat vector, the mean over participants, its relative change.

What data centers exchange is fixed here, once:

* trainable parameters, shared (tied) ones once; they alone enter the norm of eq. 4;
* floating-point buffers (BatchNorm statistics): without them the shared model is useless; but none that holds ±Inf by
  design, as a causal mask does;
* never: frozen parameters, integer counters such as ``num_batches_tracked``, and sparse buffers, which are structure
  (a graph's adjacency) and stay each participant's own.

Sums are carried out in float64 in the order of the data centers, so a mean depends neither on the
MPI's algorithm nor on its message sizes, and the mean of equal values is that value, to the bit.

Source: Mi et al. 2020, eq. 2 and 4; the paper leaves norm, buffers and accumulation open.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from colearn_hpc.algorithm.slice_sums import SliceSums, Squares, check_weights

_BLOCK = 1 << 15  # elements worked on at a time: they and their float64 copies stay in a core's cache
_GPU_BLOCK = 1 << 22  # on a GPU a call costs more than they do


@dataclass(frozen=True)
class FlatEntry:
    """One tensor's place in the flat vector: ``vector[offset : offset + length]``."""

    name: str
    offset: int
    length: int


class FlatModel:
    """The exchanged part of a model as one flat vector, parameters first, then the rest.

    The vector is float32 (float64 if any exchanged tensor is); float16 and bfloat16 tensors are averaged
    in float32 and rounded once on the way back. Complex tensors count as pairs of reals. Of a tensor that is sharded
    over several ranks (a ``DTensor``) the vector holds this rank's shard.

    Args:
        parameters: (name, tensor) pairs that enter the norm.
        others: (name, tensor) pairs that are averaged but do not enter the norm.
        counted_elsewhere: names of parameters of which another rank holds the same shard and counts it in the norm.
            They come after all that are counted here.
        device: where the vector lies when it is written down, and where it is read to.

    Attributes:
        size: length of the vector.
        parameter_size: length of its leading part, the parameters.
        counted_size: length of that part's leading part, the parameters that enter the norm here.
        is_narrow: whether some tensor holds fewer digits than the vector: what is unpacked is then rounded.
        entries: one :class:`FlatEntry` per tensor, in order.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]],
        others: Iterable[tuple[str, Tensor]] = (),
        counted_elsewhere: Collection[str] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        named = [*parameters]
        split = len(named)
        named += others
        tensors = [_real(shard_of(tensor)) for _, tensor in named]
        self._sources = [tensor.reshape(-1) for tensor in tensors]
        # Where a flat view is not a copy it is written to as well: in half the time, which thousands of tensors show.
        self._targets = [
            flat if tensor.is_contiguous() else tensor for flat, tensor in zip(self._sources, tensors, strict=True)
        ]
        self._gpu = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        self.on_gpu = self._gpu is not None
        self.device = torch.device(device)
        self.dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
        self.is_narrow = any(tensor.dtype != self.dtype for tensor in tensors)
        entries, offset = [], 0
        for (name, _), source in zip(named, self._sources, strict=True):
            entries.append(FlatEntry(name, offset, source.numel()))
            offset += source.numel()
        self.entries = tuple(entries)
        self._offsets = [entry.offset for entry in entries]
        self.size = offset
        self.parameter_size = sum(entry.length for entry in entries[:split])
        self.counted_size = sum(entry.length for entry in entries[:split] if entry.name not in counted_elsewhere)

    @classmethod
    def of(cls, module: nn.Module, constant: Mapping[str, Tensor] | None = None) -> FlatModel:
        """The exchanged part of ``module``: trainable parameters, then floating-point buffers but the ``constant`` ones
        (see :func:`infinite_buffers`)."""
        return cls(trainable_parameters(module), float_buffers(module, constant))

    @torch.no_grad()
    def pack(self, out: Tensor | None = None) -> Tensor:
        """Copy the tensors into a flat vector of shape ``(size,)``; ``out`` is reused if given."""
        vector = self.staging(self.size) if out is None else out
        self._copy(0, self.size, vector)
        self.wait()
        return vector

    def read(self, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Elements ``start:stop`` of the flat vector, without copying them where they lie in one piece on its device.

        Elsewhere they are copied into ``scratch``: tensors on another device, of another dtype, or several small ones.
        A copy from a GPU into pinned ``scratch`` is only begun; :meth:`wait` ends it. So the next chunk can come from
        the GPU while this one is on the wire.

        Args:
            start, stop: where; ``0 <= start <= stop <= size``.
            scratch: vector of the model's dtype on its device, shape ``(>= stop - start,)``.

        Returns:
            Shape ``(stop - start,)``; a view of a tensor or of ``scratch``, not to be written to.
        """
        entry, source = self._at(start)
        if start < stop <= entry.offset + entry.length and source.device == self.device and source.dtype == self.dtype:
            return source[start - entry.offset : stop - entry.offset]
        self._copy(start, stop, scratch)
        return scratch[: stop - start]

    def wait(self) -> None:
        """Wait for the copies that :meth:`read` and :meth:`unpack` began, where others than the GPU go on with them."""
        # Copies between pinned memory and a GPU return before they are done. What lies on the GPU is waited for by its
        # own queue alone: here messages are under way in it, and nobody is to wait for those without looking around.
        if self.on_gpu and self.device.type == "cpu":
            torch.cuda.synchronize(self._gpu)  # by name: the thread that asks may have another one as its own

    def staging(self, size: int) -> Tensor:
        """An uninitialised vector of the model's dtype on its device; pinned where that is the CPU and tensors are on a
        GPU, so that copies overlap."""
        return (
            self._host(size) if self.device.type == "cpu" else torch.empty(size, dtype=self.dtype, device=self.device)
        )

    def _host(self, size: int) -> Tensor:
        return torch.empty(size, dtype=self.dtype, pin_memory=self.on_gpu)

    @torch.no_grad()
    def stage_others(self) -> Tensor:
        """Offer a copy of what does not enter the norm in place of the tensors; what is written into it is exchanged.

        Returns:
            The copy, shape ``(size - parameter_size,)``, on the CPU.
        """
        others = self._host(self.size - self.parameter_size)
        self._copy(self.parameter_size, self.size, others)
        if self.on_gpu:
            torch.cuda.synchronize(self._gpu)
        for index, entry in enumerate(self.entries):
            if entry.offset >= self.parameter_size:
                place = entry.offset - self.parameter_size
                self._sources[index] = others[place : place + entry.length]
        return others

    @torch.no_grad()
    def unpack(self, vector: Tensor) -> None:
        """Copy a flat vector of shape ``(size,)`` back into the tensors, in place.

        Raises:
            ValueError: the vector has another length.
        """
        self._check_length(vector)
        parts = vector.split([entry.length for entry in self.entries])
        for part, target in zip(parts, self._targets, strict=True):
            target.copy_(part if target.dim() == 1 else part.view(target.shape), non_blocking=self.on_gpu)
        self.wait()

    @torch.no_grad()
    def round_(self, vector: Tensor) -> None:
        """Make a flat vector of shape ``(size,)`` what the tensors hold once it is unpacked, in place.

        Equation 4 is about shared models that exist: a mean of bfloat16 models that moves by less than their last digit
        has not moved any model.
        """
        self._check_length(vector)
        if self.is_narrow:
            for entry, target in zip(self.entries, self._targets, strict=True):
                part = vector[entry.offset : entry.offset + entry.length]
                part.copy_(part.to(target.dtype))

    def _at(self, place: int) -> tuple[FlatEntry, Tensor]:
        """The entry that holds element ``place``, and its tensor as a flat one."""
        # Of several entries at one offset all but the last are empty.
        index = max(bisect_right(self._offsets, place) - 1, 0)
        return (self.entries[index], self._sources[index]) if self.entries else (_NOWHERE, torch.empty(0))

    def _copy(self, start: int, stop: int, out: Tensor) -> None:
        copied, joined = 0, 0
        index = max(bisect_right(self._offsets, start) - 1, 0)
        pieces: list[Tensor] = []  # small neighbours of `joined` elements, which one call joins: thousands would show
        while start + copied < stop:
            entry, source = self.entries[index], self._sources[index]
            first = max(start - entry.offset, 0)
            last = min(stop - entry.offset, entry.length)
            length = last - first
            piece = source[first:last] if length < entry.length else source
            if source.device == out.device and source.dtype == out.dtype and length < _BLOCK:
                pieces.append(piece)
                joined += length
            else:
                _join(pieces, out[copied - joined : copied])
                out[copied : copied + length].copy_(piece, non_blocking=self.on_gpu)
                joined = 0
            copied += length
            index += 1
        _join(pieces, out[copied - joined : copied])
        assert copied == stop - start, f"packed {copied} of {stop - start} elements"

    def _check_length(self, vector: Tensor) -> None:
        if vector.shape != (self.size,):
            raise ValueError(f"the model packs into ({self.size},), found a vector of shape {tuple(vector.shape)}")


_NOWHERE = FlatEntry("", 0, 0)


def _join(pieces: list[Tensor], out: Tensor) -> None:
    if pieces:
        torch.cat(pieces, out=out)
        pieces.clear()


def trainable_parameters(module: nn.Module) -> list[tuple[str, Tensor]]:
    """(name, parameter) of every trainable parameter, tied ones once, under their first name."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def float_buffers(module: nn.Module, constant: Mapping[str, Tensor] | None = None) -> list[tuple[str, Tensor]]:
    """(name, buffer) of every dense floating-point or complex buffer, shared ones once.

    Args:
        module: whose buffers.
        constant: buffers to leave out while they are what they are here, see :func:`infinite_buffers`.
    """
    constant = constant or {}
    dense = [(name, b) for name, b in module.named_buffers() if b.layout == torch.strided]
    floats = [(name, b) for name, b in dense if b.is_floating_point() or b.is_complex()]
    return [(name, b) for name, b in floats if not (name in constant and torch.equal(b, constant[name].to(b.device)))]


@torch.no_grad()
def infinite_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the floating-point buffers that hold ±Inf and no NaN, by name.

    In a model that is not yet trained they hold it by design, as a causal mask does: nothing is to be averaged there.
    """
    found = {}
    for name, buffer in float_buffers(module):
        real = _real(buffer)
        if bool(torch.isinf(real).any()) and not bool(torch.isnan(real).any()):
            found[name] = buffer.detach().cpu().clone()
    return found


def batch_norm_names(module: nn.Module) -> frozenset[str]:
    """Names of all parameters and buffers of BatchNorm layers, as :func:`trainable_parameters` and
    :func:`float_buffers` name them: what stays in its data center with FedBN (Li et al. 2021, arXiv 2102.07623).
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    layers = [layer for layer in module.modules() if isinstance(layer, kinds)]
    inside = {id(tensor) for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}
    named = (*module.named_parameters(), *module.named_buffers())
    return frozenset(name for name, tensor in named if id(tensor) in inside)


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
    check_weights(weights)
    if len(rows) != len(weights):
        raise ValueError(f"{len(rows)} rows, but {len(weights)} weights")
    result = torch.empty_like(rows[0]) if out is None else out
    length = _block(result)
    sums = SliceSums(min(length, len(result)), result.device)
    for target, *blocks in zip(*(v.split(length) for v in (result, *rows)), strict=True):
        sums.mean(blocks, weights, target)
    return result


@torch.no_grad()
def squares(new: Tensor, old: Tensor | None) -> Squares:
    """:meth:`SliceSums.squares` of vectors of any length, shape ``(n,)``."""
    length = _block(new)
    sums, total = SliceSums(min(length, len(new)), new.device), Squares()
    for start in range(0, len(new), length):
        place = slice(start, start + length)
        total += sums.squares(new[place], None if old is None else old[place])
    return total


def relative_change(new: Tensor, old: Tensor) -> float:
    """``‖new - old‖ / ‖old‖`` of eq. 4: L2 norm, float64 accumulation.

    Args:
        new: w̄ⁱ, shape ``(n,)``.
        old: w̄ⁱ⁻¹, shape ``(n,)``.

    Returns:
        0 when nothing changed, ``inf`` when something came from an all-zero vector.
    """
    return squares(new, old).relative_change


def is_finite(vector: Tensor) -> bool:
    """Whether no element is NaN or ±Inf."""
    vector = vector.detach()
    # A sum with NaN or Inf in it is never finite, and needs no memory. One of finite numbers may overflow: look again.
    return math.isfinite(vector.sum()) or all(bool(torch.isfinite(block).all()) for block in vector.split(_BLOCK))


@torch.no_grad()
def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no element of any tensor is NaN or ±Inf, asked of their device once, and not once for each.

    False may also mean that a sum of finite numbers overflowed.
    """
    sums = [tensor.sum().to(tensors[0].device, torch.float32) for tensor in tensors]
    return not sums or bool(torch.stack(sums).isfinite().all())


@torch.no_grad()
def first_non_finite(vector: Tensor | None, model: FlatModel) -> str:
    """Name of the first tensor of ``model`` that holds NaN or ±Inf; empty if none does.

    Args:
        vector: where to look, shape ``(size,)``; None looks into what the model offers, without a copy of it.
        model: whose tensors.
    """
    if vector is None and model.on_gpu and are_finite(model._sources):
        return ""
    for entry, source in zip(model.entries, model._sources, strict=True):
        if not is_finite(source if vector is None else vector[entry.offset : entry.offset + entry.length]):
            return entry.name
    return ""


def shard_of(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor that is sharded over several ranks, sharing its memory; of another, all of it."""
    tensor = tensor.detach()
    to_local = getattr(tensor, "to_local", None)  # a DTensor
    return tensor if to_local is None else to_local()


def _block(vector: Tensor) -> int:
    return _GPU_BLOCK if vector.is_cuda else _BLOCK


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
