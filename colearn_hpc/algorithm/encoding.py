"""How the slices of a vector look on the wire, and how those of all data centers become their mean: one object a kind.

    Plain          the numbers as they are; eq. 2 or another way to combine them
    Coded          parameters as coded steps since the last shared model, the rest as it is (``coded_steps.py``)
    WholeNumbers   whole numbers of the steps (``fixed_point.py``); ``privacy/masked.py`` hides them under masks

A transport moves messages and knows none of this. It asks an encoding to :meth:`~Encoding.begin` a mean, and gets two
objects: one for slices of parameters, one for slices of what follows them. Whoever owns a slice is sent everyone's row
of it, and sends its mean to all. In a star nobody owns anything: one in the middle is sent all rows, combines them, and
sends what came of it to all. Whatever the kind: the same bits at all data centers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from colearn_hpc.algorithm import compiled
from colearn_hpc.algorithm.combine import Combine
from colearn_hpc.algorithm.fixed_point import Scales, decode, decode_near_zero, steps_of
from colearn_hpc.algorithm.slice_sums import SliceSums

Middle: TypeAlias = Literal["mean", "sum", "coded"]


@dataclass
class Ground:
    """What a mean stands on in one data center.

    Attributes:
        result: where the mean is put, shape ``(n,)``.
        previous: the last shared model, shape ``(>= parameters,)``; None: nothing is measured.
        weights: n_k of those who give, in the order of the data centers.
        width: elements of the longest slice.
        sums: for slices of that length.
        apart: per data center that gives: ‖w_k - w̄‖² of its parameters over the slices that are summed here.
        own_apart: of this data center alone, slice by slice in any order, where nobody else can measure it.
    """

    result: Tensor
    previous: Tensor | None
    weights: Sequence[float]
    width: int
    sums: SliceSums = field(init=False)
    apart: list[float] = field(init=False)
    own_apart: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sums, self.apart = SliceSums(self.width, self.result.device), [0.0] * len(self.weights)

    def combine(self, combiner: Combine | None) -> Any:
        """How the rows of a slice become one, see :meth:`SliceSums.mean`; None: eq. 2."""
        if combiner is not None:
            return combiner.combine
        if len(self.result) >= compiled.SUMS_WORTH and not self.result.is_cuda:
            compiled.prepare_sums(len(self.weights))
        return self.sums.mean

    def measure(self, rows: Sequence[Tensor], mean: Tensor) -> None:
        """How far each row of a slice is from its mean, while both are in cache."""
        self.add(self.sums.distances(rows, mean))

    def add(self, squares: Iterable[float]) -> None:
        """Count ``‖w_k - w̄‖²`` of each row of a slice."""
        for index, square in enumerate(squares):
            self.apart[index] += float(square)

    @property
    def own_distance(self) -> float:
        """The sum of :attr:`own_apart`, with the same bits in any order."""
        return math.fsum(self.own_apart)


class Slices(Protocol):
    """One kind of slices in one mean.

    Attributes:
        unit: dtype of the elements of a row's message.
        copies: rows are written into memory for messages, not sent from where the vector lies.
        waits: a message with a mean stays where it arrived until it is read; else it arrives in the result.
    """

    unit: torch.dtype
    copies: bool
    waits: bool

    def length(self, count: int) -> int:
        """Elements of the message for ``count`` numbers."""

    def write(self, values: Tensor, place: slice, room: Tensor) -> Tensor:
        """This data center's row as its owner is to see it.

        Args:
            values: the slice, shape ``(n,)``.
            place: where it is in the vector.
            room: ``unit`` of shape ``(>= length(n),)``; empty without ``copies``.

        Returns:
            The message: a part of ``room``, or ``values``.
        """

    def skip(self, place: slice) -> None:
        """Nothing is given of this part of the vector."""

    def mean(self, rows: Sequence[Tensor], mine: int, place: slice, room: Tensor) -> Tensor:
        """The mean of a slice that this data center owns: put into the result, and as a message to all others.

        Args:
            rows: of those who give, in order: their messages, and this data center's own values.
            mine: which one is its own; -1: it gives nothing.
            place, room: see :meth:`write`.
        """

    def arrival(self, place: slice, room: Tensor) -> Tensor:
        """Where the mean of another's slice is to arrive; see :meth:`write`."""

    def read(self, message: Tensor, place: slice) -> None:
        """Put a mean that has arrived into the result."""

    def take(self, message: Tensor, place: slice) -> None:
        """Put into the result what has come from the middle of a star: what it made of all rows."""

    def measure(self, place: slice) -> float | None:
        """How far this data center's row of a slice was from the mean that is in the result, where only it can tell;
        None where that is not so."""


class Encoding(Protocol):
    """How one vector is written, summed and read."""

    @property
    def middle(self) -> Middle | None:
        """What is done with rows in the middle of a star: "mean", "sum" modulo 2^32 or 2^64, or "coded", where they are
        decoded first and their mean is coded; None: it cannot be done there."""

    def source_dtype(self, result: torch.dtype) -> torch.dtype:
        """Of the vector that is sent, if the mean is to be of dtype ``result``."""

    def begin(self, ground: Ground) -> tuple[Slices, Slices]:
        """A mean begins: how its parameters are written, and how the rest is."""

    def prepare(self, parameters: int) -> None:
        """Make room for what is remembered about so many parameters."""

    def again(self) -> None:
        """The same vector is to be written once more, from its beginning on: its messages were lost on their way."""

    def part(self, place: slice) -> Encoding:
        """The same for a stretch of the vector."""

    def keep(self) -> Any:
        """What it remembers of a mean that is there, not copied."""

    def take_over(self, kept: Any) -> None:
        """Remember what another one has kept."""


class _Forgetful:
    """What encodings have in common that remember nothing."""

    def again(self) -> None:
        """Nothing."""

    def source_dtype(self, result: torch.dtype) -> torch.dtype:
        return result

    def prepare(self, parameters: int) -> None:
        """Nothing."""

    def keep(self) -> Any:
        return None

    def take_over(self, kept: Any) -> None:
        """Nothing."""


# --- the numbers as they are --------------------------------------------------------------------------


@dataclass(frozen=True)
class Plain(_Forgetful):
    """The numbers as they are.

    Attributes:
        combiner: how the rows of a slice become one; None: eq. 2.
    """

    combiner: Combine | None = None

    @property
    def middle(self) -> Middle | None:
        return "mean" if self.combiner is None else None

    def begin(self, ground: Ground) -> tuple[Slices, Slices]:
        combine = ground.combine(self.combiner)
        return PlainSlices(ground, combine, ground.previous is not None), PlainSlices(ground, combine, False)

    def part(self, place: slice) -> Encoding:
        return self


class PlainSlices:
    """:class:`Slices` without a message of their own: from where the vector lies to where the mean belongs."""

    copies = waits = False

    def __init__(self, ground: Ground, combine: Any, measures: bool) -> None:
        self.unit = ground.result.dtype
        self._ground, self._combine, self._measures = ground, combine, measures

    def length(self, count: int) -> int:
        return count

    def write(self, values: Tensor, place: slice, room: Tensor) -> Tensor:
        return values

    def skip(self, place: slice) -> None:
        pass

    def mean(self, rows: Sequence[Tensor], mine: int, place: slice, room: Tensor) -> Tensor:
        mean: Tensor = self._combine(rows, self._ground.weights, self._ground.result[place])
        if self._measures:
            self._ground.measure(rows, mean)
        return mean

    def arrival(self, place: slice, room: Tensor) -> Tensor:
        return self._ground.result[place]

    def read(self, message: Tensor, place: slice) -> None:
        pass

    def take(self, message: Tensor, place: slice) -> None:
        self._ground.result[place] = message

    def measure(self, place: slice) -> float | None:
        return None


# --- whole numbers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WholeNumbers(_Forgetful):
    """Whole numbers of the steps since the last shared model: sums with the same bits in any order.

    What is sent is a vector that :func:`~colearn_hpc.algorithm.fixed_point.encode` has written, for all must know that
    everybody's numbers fit before anything is sent.

    Attributes:
        previous: the last shared model, all of it, shape ``(n,)``.
        scales: of the whole vector, see :class:`~colearn_hpc.algorithm.fixed_point.Scales`.
        factor: f_k of this data center.
        divisor: d.
        numbers: this data center's, shape ``(n,)``; None: it gives nothing.
        start: where in the whole vector this stretch begins.
    """

    previous: Tensor
    scales: Scales
    factor: float
    divisor: float
    numbers: Tensor | None
    start: int = 0

    @property
    def middle(self) -> Middle | None:
        return "sum"

    def source_dtype(self, result: torch.dtype) -> torch.dtype:
        return self.scales.dtype

    def begin(self, ground: Ground) -> tuple[Slices, Slices]:
        return WholeSlices(self, ground, True), WholeSlices(self, ground, False)

    def part(self, place: slice) -> Encoding:
        numbers = None if self.numbers is None else self.numbers[place]
        return replace(self, previous=self.previous[place], numbers=numbers, start=self.start + place.start)


class WholeSlices:
    """:class:`Slices` of whole numbers. Their mean goes as the numbers of the model, where it belongs.

    Who owns a slice cannot tell how far each row was from the mean where masks hide it, and need not: every data center
    has both.
    """

    copies = waits = False

    def __init__(self, whole: WholeNumbers, ground: Ground, parameters: bool) -> None:
        self.unit = whole.scales.dtype
        self._whole, self._ground = whole, ground
        self._decode = decode if parameters else decode_near_zero
        self._measures = parameters and ground.previous is not None and whole.numbers is not None
        self._total = torch.empty(ground.width, dtype=self.unit)

    def length(self, count: int) -> int:
        return count

    def write(self, values: Tensor, place: slice, room: Tensor) -> Tensor:
        return values

    def skip(self, place: slice) -> None:
        pass

    def mean(self, rows: Sequence[Tensor], mine: int, place: slice, room: Tensor) -> Tensor:
        total = self._total[: place.stop - place.start].copy_(rows[0])
        for row in rows[1:]:
            total.add_(row)
        result = self._ground.result[place]
        self.take(total, place)
        self.read(result, place)
        return result

    def arrival(self, place: slice, room: Tensor) -> Tensor:
        return self._ground.result[place]

    def read(self, message: Tensor, place: slice) -> None:
        if (distance := self.measure(place)) is not None:
            self._ground.own_apart.append(distance)

    def take(self, message: Tensor, place: slice) -> None:
        """Of a sum of whole numbers."""
        whole, result = self._whole, self._ground.result[place]
        start = whole.start + place.start
        self._decode(message, whole.previous[place], whole.scales, whole.divisor, result, start)

    def measure(self, place: slice) -> float | None:
        if not self._measures or place.stop <= place.start:
            return None
        whole = self._whole
        assert whole.numbers is not None, "else nothing is measured"
        start = whole.start + place.start
        mine = steps_of(whole.numbers[place], whole.scales, whole.factor, start)
        apart = mine.add_(whole.previous[place]).sub_(self._ground.result[place])
        return float(torch.dot(apart, apart))
