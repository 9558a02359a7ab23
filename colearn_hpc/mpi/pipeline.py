"""How the mean travels: chunk after chunk, several under way at a time.

    post      read a chunk from the model, send each leader its slice of it
    average   GATHERING chunks later: all rows of the own slice are here, sum them, send the result to all
    collect   SPREADING chunks later: all slices of the mean are here

So many chunks are on the wire at a time that a link with a long delay does not run dry. What is not the result fits
in a few slots of one chunk each: slices of the mean arrive in the result itself, and need no slot. Plain sends and
receives, because a leader then sums straight from where rows arrive and sends straight from where weights lie; and
because collectives of different MPIs sum in different orders.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from colearn_hpc import faults
from colearn_hpc.algorithm.slice_sums import SliceSums, Squares, check_weights
from colearn_hpc.algorithm.slices import Chunk, chunks
from colearn_hpc.between import Awaited, Idle, Offer

if TYPE_CHECKING:
    from mpi4py import MPI

GATHERING = 4  # chunks that are sent before the first one is waited for; each takes a slot's memory
SPREADING = 8  # chunks of which the mean may be under way to all
_TO_OWNER, _TO_ALL = 11, 12  # tags; not those of the leaders' meetings, which may be held while a mean is under way


@dataclass
class _Slot:
    """Memory for one chunk under way, used again and again: fresh pages cost more than what is done in them."""

    staged: Tensor  # (chunk,): the chunk, where it does not lie in one piece
    inbox: Tensor  # (K, bytes): rows of the own slice, then slices of the mean
    rows: list[Tensor]  # K times the same memory as numbers
    outbox: Tensor  # (K, bytes) with a codec, else empty
    steps: Tensor  # (chunk,) with a codec, else empty: what is encoded
    values: list[Tensor] = field(default_factory=list)  # the chunk by owner


class Pipeline:
    """The mean of one vector over the leaders; :meth:`run` is collective over them, :meth:`advance` is not.

    Args:
        leaders: one rank per data center that takes part, in the order of the data centers.
        offer: this leader's; its result may be the source's own vector, if there is no ``previous``.
        weights: n_k per rank of ``leaders``; whoever has 0 takes the mean without contributing to it.
    """

    def __init__(self, leaders: MPI.Comm, offer: Offer, weights: Sequence[float]) -> None:
        from mpi4py import MPI

        source, result, compression, gathering = offer.source, offer.result, offer.compression, offer.gathering

        self._testall = MPI.Request.Testall
        self._leaders = leaders
        self._centers, self._me = leaders.Get_size(), leaders.Get_rank()
        # Everyone starts with another neighbour, or all would send to the first at once.
        self._others = [(self._me + i) % self._centers for i in range(1, self._centers)]
        self._source, self._result = source, result
        self._giving = [k for k in range(self._centers) if weights[k]]
        self._given = [weights[k] for k in self._giving]
        check_weights(self._given)
        self._previous, self._compression = offer.previous, compression
        self._chunks = list(chunks(source.size, offer.parameter_size, self._centers))
        self._gathering = GATHERING if gathering is None else gathering
        self._spreading = self._gathering if compression else max(SPREADING, self._gathering)
        # A coded slice of the mean waits in a slot until it is applied.
        slots = self._gathering + 2 + (self._spreading if compression else 0)
        self._width = max((c.length(0) for c in self._chunks), default=0)
        self._sums = SliceSums(self._width)
        self._combine = self._sums.mean if offer.combiner is None else offer.combiner.combine
        self._decoded = torch.empty((self._centers if compression else 0, self._width))
        self._slots = [self._slot() for _ in range(min(slots, len(self._chunks)))]
        self._requests: dict[int, list[tuple[int, MPI.Request]]] = {}  # by chunk: with whom
        self.sent = 0
        self.distances = [0.0] * self._centers
        self.squares = Squares()
        self.rest = Squares()
        self._progress = self._steps()
        self._awaited: Awaited | None = None

    def run(self, idle: Idle | None = None) -> None:
        """Fill ``result``. Then ``sent`` holds the payload bytes that this rank sent; ``squares`` and ``rest`` the sums
        of squares over its own slices, of the parameters and of what follows them; ``distances`` ``‖w_k - w̄‖²`` of each
        leader's parameters, over the same slices.

        Waits politely: on a slow link this takes minutes, and others may need the core.

        Args:
            idle: called again and again while this rank waits, with the seconds in which nothing came, and a function
                that tells who is awaited (ranks of ``leaders``); may raise to leave.
        """
        awaited, start = None, 0.0
        while not self.advance():
            if self._awaited is not awaited:  # the last one has come
                awaited, start = self._awaited, time.monotonic()
            waited = time.monotonic() - start
            if idle is not None and awaited is not None:
                idle(waited, awaited)
            if waited < 0.001:
                os.sched_yield()
            else:
                time.sleep(min(0.1 * waited, 0.001))

    def advance(self) -> bool:
        """Go on for as long as nothing has to be waited for. Never blocks; whether ``result`` is filled."""
        self._awaited = next(self._progress, None)
        return self._awaited is None

    def _steps(self) -> Iterator[Awaited]:
        """All of the mean; yields wherever messages are under way without which it does not go on."""
        total, gathering, spreading = len(self._chunks), self._gathering, self._spreading
        if total:
            self._read(0)
        for step in range(total + gathering + spreading):
            if step < total:
                self._post(step)
                faults.reached("exchange")
            if step + 1 < total:
                self._read(step + 1)
            if 0 <= step - gathering < total:
                yield from self._average(step - gathering)
            if 0 <= step - gathering - spreading < total:
                yield from self._collect(step - gathering - spreading)

    # --- the three stages -----------------------------------------------------------------------------

    def _read(self, number: int) -> None:
        """Begin to fetch a chunk."""
        chunk, slot = self._chunks[number], self._slots[number % len(self._slots)]
        first = chunk.bounds[0]
        # Slice by slice: one that lies within a tensor needs no copy, even if its chunk does not.
        slot.values = [
            self._source.read(start, stop, slot.staged[start - first :])
            for start, stop in zip(chunk.bounds, chunk.bounds[1:], strict=False)
        ]

    def _post(self, number: int) -> None:
        chunk, slot = self._chunks[number], self._slots[number % len(self._slots)]
        self._source.wait()
        if mine := chunk.length(self._me):
            for k in self._giving:
                if k != self._me:
                    row = self._row(slot, k, mine, self._coded(chunk))
                    self._receive(number, row, k, _TO_OWNER)
        if self._me not in self._giving:
            self._keep_residual(chunk)
            return
        for k in self._others:
            if chunk.length(k):
                message = self._encoded_step(chunk, slot, k) if self._coded(chunk) else slot.values[k]
                self._send(number, message, k, _TO_OWNER)

    def _average(self, number: int) -> Iterator[Awaited]:
        chunk, slot = self._chunks[number], self._slots[number % len(self._slots)]
        # The sends too: the result may go where the vector lies.
        yield from self._complete(number)
        place = chunk.place(self._me)
        target = self._result[place]
        if length := len(target):
            if self._coded(chunk):
                message = self._coded_mean(chunk, slot)
            else:
                rows = [slot.values[k] if k == self._me else self._row(slot, k, length, False) for k in self._giving]
                message = self._combine(rows, self._given, target)
                self._measure(chunk, rows, target)
            for k in self._others:
                self._send(number, message, k, _TO_ALL)
        for k in self._others:
            if theirs := chunk.length(k):
                here = self._row(slot, k, theirs, True) if self._coded(chunk) else self._result[chunk.place(k)]
                self._receive(number, here, k, _TO_ALL)
        if chunk.parameters:
            self.squares += self._sums.squares(target, None if self._previous is None else self._previous[place])
        else:
            self.rest += self._sums.squares(target, None)

    def _measure(self, chunk: Chunk, rows: Sequence[Tensor], mean: Tensor) -> None:
        """How far each leader's slice was from the mean, while both are in cache."""
        if chunk.parameters and self._previous is not None:
            for k, distance in zip(self._giving, self._sums.distances(rows, mean), strict=True):
                self.distances[k] += distance

    def _collect(self, number: int) -> Iterator[Awaited]:
        chunk, slot = self._chunks[number], self._slots[number % len(self._slots)]
        yield from self._complete(number)
        if self._coded(chunk):
            for k in self._others:
                if theirs := chunk.length(k):
                    self._apply(self._row(slot, k, theirs, True), chunk.place(k), slot)

    # --- codec ----------------------------------------------------------------------------------------

    def _coded(self, chunk: Chunk) -> bool:
        return self._compression is not None and chunk.parameters

    def _encoded_step(self, chunk: Chunk, slot: _Slot, k: int) -> Tensor:
        """This leader's step since the last shared model, and what earlier messages lacked, as a message to ``k``."""
        compression, place = self._compression, chunk.place(k)
        assert compression is not None
        step = self._step(chunk, slot, k)
        if compression.residual is not None:
            step.add_(compression.residual[place])
        message = slot.outbox[k, : compression.codec.nbytes(len(step))]
        compression.codec.encode(step, message)
        if compression.pending is not None:
            compression.codec.decode(message, compression.pending[place])
            torch.sub(step, compression.pending[place], out=compression.pending[place])
        return message

    def _coded_mean(self, chunk: Chunk, slot: _Slot) -> Tensor:
        """The mean step of the own slice: applied here, and as the message with which the others do the same."""
        compression = self._compression
        assert compression is not None
        codec, place, length = compression.codec, chunk.place(self._me), chunk.length(self._me)
        rows = []
        for k in self._giving:
            if k == self._me:
                rows.append(self._step(chunk, slot, k))
            else:
                rows.append(self._decoded[k, :length])
                codec.decode(self._row(slot, k, length, True), rows[-1])
        mean = self._combine(rows, self._given, self._decoded[self._me, :length])
        self._measure(chunk, rows, mean)
        if compression.residual is not None:
            mean.add_(compression.residual[place])
        message = slot.outbox[self._me, : codec.nbytes(length)]
        codec.encode(mean, message)
        decoded = self._apply(message, place, slot)
        if compression.pending is not None:
            torch.sub(mean, decoded, out=compression.pending[place])
        return message

    def _apply(self, message: Tensor, place: slice, slot: _Slot) -> Tensor:
        """Last shared model + decoded mean step: the same two operations, so the same bits, on all leaders."""
        assert self._compression is not None and self._previous is not None
        decoded = slot.steps[: place.stop - place.start]
        self._compression.codec.decode(message, decoded)
        torch.add(self._previous[place], decoded, out=self._result[place])
        return decoded

    def _step(self, chunk: Chunk, slot: _Slot, k: int) -> Tensor:
        assert self._previous is not None
        first = chunk.bounds[0]
        step = slot.steps[chunk.bounds[k] - first : chunk.bounds[k + 1] - first]
        previous = self._previous[chunk.place(k)]
        if previous.dtype == step.dtype:
            return torch.sub(slot.values[k], previous, out=step)
        return step.copy_(slot.values[k] - previous)

    def _keep_residual(self, chunk: Chunk) -> None:
        """Whoever gives nothing sends nothing, so what its messages lacked before is lacking still."""
        if self._coded(chunk) and self._compression is not None and self._compression.pending is not None:
            place = slice(chunk.bounds[0], chunk.bounds[-1])
            assert self._compression.residual is not None
            self._compression.pending[place] = self._compression.residual[place]

    # --- messages -------------------------------------------------------------------------------------

    def _send(self, number: int, message: Tensor, k: int, tag: int) -> None:
        self._requests.setdefault(number, []).append((k, self._leaders.Isend(message.numpy(), k, tag)))
        self.sent += message.nbytes

    def _receive(self, number: int, place: Tensor, k: int, tag: int) -> None:
        self._requests.setdefault(number, []).append((k, self._leaders.Irecv(place.numpy(), k, tag)))

    def _complete(self, number: int) -> Iterator[Awaited]:
        """Yields until a chunk's messages have come and gone."""
        pending = self._requests.pop(number, [])
        requests = [request for _, request in pending]

        def awaited() -> set[int]:
            return {k for k, request in pending if not request.Test()}

        while not self._testall(requests):
            yield awaited

    def _row(self, slot: _Slot, k: int, length: int, coded: bool) -> Tensor:
        """Where a message of ``length`` elements from ``k`` arrives."""
        if coded:
            assert self._compression is not None
            return slot.inbox[k, : self._compression.codec.nbytes(length)]
        return slot.rows[k][:length]

    def _slot(self) -> _Slot:
        # A single element with its scale can be longer than the element.
        width = self._width + 1
        size, dtype, codec = self._centers * width, self._result.dtype, self._compression and self._compression.codec
        row = -(-max(width * self._result.element_size(), codec.nbytes(width) if codec else 0) // 64) * 64
        inbox = torch.empty((self._centers, row), dtype=torch.uint8)
        return _Slot(
            staged=torch.empty(size, dtype=dtype, pin_memory=self._source.on_gpu),
            inbox=inbox,
            rows=list(inbox.view(dtype)),
            outbox=torch.empty((self._centers if codec else 0, row), dtype=torch.uint8),
            steps=torch.empty(size if codec else 0),
        )
