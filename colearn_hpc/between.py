"""What a transport between data centers must do, tensors included; and what it is handed.

``mpi/`` implements it for data centers that share an MPI world. ``protocol/transport.py`` has what carries words alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from colearn_hpc.algorithm.encoding import Encoding, Plain
from colearn_hpc.algorithm.slice_sums import Squares, ratio_of_norms
from colearn_hpc.protocol.transport import Meetings, Site

Awaited: TypeAlias = "Callable[[], set[int]]"
Idle: TypeAlias = "Callable[[float, Awaited], object]"


class Source(Protocol):
    """Where a data center's vector comes from; see :meth:`FlatModel.read`."""

    size: int
    dtype: torch.dtype
    on_gpu: bool

    def read(self, start: int, stop: int, scratch: Tensor) -> Tensor: ...

    def wait(self) -> None: ...


class Vector:
    """A flat CPU vector as a :class:`Source`."""

    on_gpu = False

    def __init__(self, vector: Tensor) -> None:
        self.vector, self.size, self.dtype = vector, vector.numel(), vector.dtype

    def read(self, start: int, stop: int, scratch: Tensor) -> Tensor:
        return self.vector[start:stop]

    def wait(self) -> None:
        pass


class Part:
    """A stretch of a :class:`Source` as one."""

    def __init__(self, whole: Source, place: slice) -> None:
        self._whole, self._first = whole, place.start
        self.size, self.dtype, self.on_gpu = place.stop - place.start, whole.dtype, whole.on_gpu

    def read(self, start: int, stop: int, scratch: Tensor) -> Tensor:
        return self._whole.read(self._first + start, self._first + stop, scratch)

    def wait(self) -> None:
        self._whole.wait()


@dataclass(frozen=True)
class Offer:
    """What a data center gives to a mean, and where the mean goes. Untouched by the caller until the mean is there.

    Attributes:
        source: this data center's vector as its encoding wants it, the same size in all of them.
        result: contiguous vector, shape ``(source.size,)``, in which the mean is put. It stays as it is until the
            next mean begins. Not the source's memory, if there is a ``previous``.
        weights: n_k per data center, in order; 0 takes the mean without giving to it, and may hold NaN.
        parameter_size: length of the leading part to which norms apply.
        previous: the last shared model, the same bits everywhere, shape ``(>= parameter_size,)``; None: no norms.
        encoding: how slices are written on the wire, and how they become one.
        gathering: chunks, at least, that are sent before the first one is waited for; None: the transport's own number.
            More where the mean is seldom moved on, for no more than these can move from one time to the next.
        last_model: this is not the round's mean, but the last shared model, which one data center gives to those who
            have missed it.
        follows: of a round's means this is not the first, and the vectors of those before it stay as they are.
    """

    source: Source
    result: Tensor
    weights: Sequence[float]
    parameter_size: int
    previous: Tensor | None = None
    encoding: Encoding = field(default_factory=Plain)
    gathering: int | None = None
    last_model: bool = False
    follows: bool = False

    def part(self, place: slice) -> Offer:
        """The same, of a stretch of the vector."""
        size = min(max(self.parameter_size - place.start, 0), place.stop - place.start)
        previous = None if self.previous is None else self.previous[place]
        return replace(
            self,
            source=Part(self.source, place),
            result=self.result[place],
            parameter_size=size,
            previous=previous,
            encoding=self.encoding.part(place),
        )

    def keep(self) -> tuple[Tensor, Any]:
        """What a mean with this offer has brought: the vector, and what the encoding remembers; not copied."""
        return self.result, self.encoding.keep()

    def take_over(self, kept: tuple[Tensor, Any]) -> None:
        """Bring what another offer has kept, as if the mean had been taken with this one."""
        vector, remembered = kept
        self.result.copy_(vector)
        self.encoding.take_over(remembered)


@dataclass(frozen=True)
class MeanFacts:
    """What is known about a mean beside its value, or about a part of it; that of disjoint parts adds up.

    Attributes:
        bytes_sent: payload this process sent.
        squares: the sums of eq. 4 over the parameters; the same in all data centers.
        finite: whether nothing in the mean is NaN or ±Inf; the same in all data centers.
        distance: ‖w_k - w̄‖² of this data center's parameters, with a codec as they arrived; NaN without a last
            shared model, or if it gave nothing.
        void: why there is no mean, nor will be: who gave to it has left. Empty where there is one.
    """

    bytes_sent: int
    squares: Squares
    finite: bool
    distance: float
    void: str = ""

    def __add__(self, other: MeanFacts) -> MeanFacts:
        return MeanFacts(
            self.bytes_sent + other.bytes_sent,
            self.squares + other.squares,
            self.finite and other.finite,
            self.distance + other.distance,
            self.void or other.void,
        )

    @property
    def divergence(self) -> float:
        """‖w_k - w̄‖ / ‖w̄‖; NaN where the distance is."""
        return math.nan if math.isnan(self.distance) else ratio_of_norms(self.distance, self.squares.after)


class UnderWay(Protocol):
    """A mean that has begun."""

    def advance(self) -> None:
        """Let messages pass, as far as no waiting is needed. Never blocks."""

    def finish(self, idle: Idle | None = None) -> MeanFacts:
        """Wait politely until the mean is in the offer's result. Collective over the carriers.

        Args:
            idle: called while this rank waits, with the seconds in which nothing came, and a function that tells which
                data centers are awaited (indices into those present); may raise to leave.
        """

    def abandon(self, idle: Idle | None = None) -> None:
        """Forget it, because the run is left. Collective over the carriers where messages that are under way need all
        of them to come to an end; ``idle`` as in :meth:`finish`."""


class Between(Meetings, Protocol):
    """All that data centers say to each other. One object per rank.

    Attributes:
        carries: this rank takes part in means: a leader, or one that shares the transfer with it.
    """

    carries: bool

    def hand_on(self, tensors: Iterable[Tensor], round_index: int, giver: int) -> None:
        """Copy one data center's tensors into those of the ones that join, in place; the others are not called. Only
        between data centers that are separate.

        Args:
            tensors: the same shapes and dtypes at all who are called.
            round_index: before which they join.
            giver: index of the one.
        """

    def begin_mean(self, offer: Offer, present: tuple[int, ...]) -> UnderWay:
        """Begin eq. 2 over the data centers ``present``. Collective over their carriers, but waits for nobody.

        The offer's encoding says how slices are written and summed, so the bits are the same whatever carries them. To
        be called right after the meeting whose :class:`Attendance` says who is present.

        Raises:
            ValueError: all weights are 0, or the offer's result does not fit.
        """

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the tensors of the first data center's carrier into those of all carriers of this lane, in place.
        Collective over them; the leaders are lane 0."""


class TensorSite(Site, Protocol):
    """A :class:`Site` that also moves tensors; its collective methods are over the data center.

    Attributes:
        carriers: center_ranks of those that carry a part of a mean, by lane; rank 0 is the first.
    """

    carriers: Sequence[int]

    def rows(self, vector: Tensor) -> Tensor | None:
        """Every rank's vector of shape ``(n,)``, on the leader as rows, shape ``(size, n)``; None elsewhere."""

    def copy_to_all(self, tensors: Iterable[Tensor]) -> None:
        """Copy the leader's tensors into everyone's, in place; any dtype, CPU or GPU."""

    def spread(self, vector: Tensor, parts: Sequence[slice]) -> None:
        """Copy each carrier's part of a contiguous CPU vector into everyone's, in place.

        Args:
            vector: shape ``(n,)``.
            parts: by lane.
        """


@dataclass(frozen=True)
class Connection:
    """How this process reaches the others of its run; made by ``join.connect``.

    Attributes:
        center: this process's data center (:class:`~colearn_hpc.DataCenter`).
        site: inside it.
        between: to the other data centers.
    """

    center: Any
    site: TensorSite
    between: Between = field(repr=False)
