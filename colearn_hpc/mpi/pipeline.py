"""How the mean travels: chunk after chunk, several under way at a time.

    post      read a chunk from the model, send each leader its slice of it
    average   some chunks later: all rows of the own slice are here, sum them, send the result to all
    collect   some chunks later again: all slices of the mean are here

So many chunks are on the wire at a time that a link with a long delay does not run dry. Few leaders have more of them
there than many: a chunk has a slice for each. What is not the result fits in slots of one chunk each: slices of the
mean arrive in the result itself, and need no slot. Rows are moved and nothing else (``tensor_wire.py``), because a
leader then sums straight from where rows arrive and sends straight from where weights lie; and because collectives of
different MPIs sum in different orders.

All memory is on the result's device. On a GPU chunks are longer: there a call costs as much as a hundred thousand
elements.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from colearn_hpc import faults
from colearn_hpc.algorithm.encoding import Ground, Slices
from colearn_hpc.algorithm.slice_sums import Squares, check_weights
from colearn_hpc.algorithm.slices import chunks
from colearn_hpc.between import Awaited, Idle, Offer
from colearn_hpc.mpi.tensor_wire import Exchange, Tagged, TensorWire

GATHERING = 4  # chunks, at least, that are sent before the first one is waited for; each takes a slot's memory
SPREADING = 8  # chunks, at least, of which the mean may be under way to all
LONG_LINK = 4 * 2**20  # bytes that are sent before a chunk is waited for, where leaders are on several hosts
_TO_OWNER, _TO_ALL = 11, 12  # tags; not those of the leaders' meetings, which may be held while a mean is under way


def chunks_under_way(count: int, sent: int, ahead: int, at_least: int = 0) -> tuple[int, int]:
    """How many of ``count`` chunks are sent before the first one is waited for, and of how many more the mean is under
    way before it is waited for.

    Args:
        count: chunks of the vector.
        sent: bytes that a leader sends of a chunk.
        ahead: see :class:`Pipeline`.
        at_least: chunks that are sent before.
    """
    gathering = min(max(GATHERING, ahead // max(1, sent), at_least), count)
    return gathering, max(SPREADING, 2 * gathering)


@dataclass
class _Slot:
    """Memory for one chunk under way, used again and again: fresh pages cost more than what is done in them."""

    staged: Tensor  # (chunk,): the chunk, where it does not lie in one piece
    inbox: tuple[list[Tensor], ...]  # by kind: K rooms for rows of the own slice, then for slices of the mean
    outbox: tuple[list[Tensor], ...]  # by kind: K rooms for messages, empty where they are written in no room
    values: list[Tensor] = field(default_factory=list)  # the chunk by owner


class Pipeline:
    """The mean of one vector over the leaders; :meth:`run` is collective over them, :meth:`advance` is not.

    What a slice looks like on the wire, and how slices are summed, is the offer's encoding's to know
    (``algorithm/encoding.py``).

    Args:
        wire: between the leaders, one per data center that takes part, in the order of the data centers.
        offer: this leader's; its result may be the source's own vector, if there is no ``previous``.
        weights: n_k per leader; whoever has 0 takes the mean without contributing to it.
        ahead: bytes that this leader sends before it waits for a chunk, if they are more than :data:`GATHERING` chunks.
    """

    def __init__(self, wire: TensorWire, offer: Offer, weights: Sequence[float], ahead: int = 0) -> None:
        source, gathering = offer.source, offer.gathering
        self._wire, self._centers, self._me = wire, wire.size, wire.rank
        # Everyone starts with another neighbour, or all would send to the first at once.
        self._others = [(self._me + i) % self._centers for i in range(1, self._centers)]
        self._source, self._result, self._previous = source, offer.result, offer.previous
        self._giving = [k for k in range(self._centers) if weights[k]]
        self._mine = self._giving.index(self._me) if self._me in self._giving else -1
        given = [weights[k] for k in self._giving]
        check_weights(given)
        on_gpu = offer.result.is_cuda
        self._chunks = list(chunks(source.size, offer.parameter_size, self._centers, on_gpu))
        self._width = max((c.length(0) for c in self._chunks), default=0)
        self._ground = Ground(offer.result, offer.previous, given, self._width)
        self._sums = self._ground.sums
        self._kinds: tuple[Slices, Slices] = offer.encoding.begin(self._ground)
        # A slice of the mean that has to be read waits in a slot until then.
        waits = any(kind.waits for kind in self._kinds)
        sent = (self._centers - 1) * self._width * offer.result.element_size() * (2 if waits else 1)
        self._gathering, spreading = chunks_under_way(len(self._chunks), sent, ahead, gathering or 0)
        self._spreading = self._gathering if waits else spreading
        slots = self._gathering + 2 + (self._spreading if waits else 0)
        self._slots = [self._slot() for _ in range(min(slots, len(self._chunks)))]
        self._under_way: dict[int, Exchange] = {}  # by chunk
        self._arriving: dict[int, list[Tagged]] = {}  # by chunk: slices of its mean, from whom and where to
        self.sent = 0
        self.squares = Squares()
        self.rest = Squares()
        self._progress = self._steps()
        self._awaited: Awaited | None = None

    def run(self, idle: Idle | None = None) -> None:
        """Fill ``result``. Then ``sent`` holds the payload bytes that this rank sent; ``squares`` and ``rest`` the sums
        of squares over its own slices, of the parameters and of what follows them; :attr:`distances` and
        :attr:`own_distance` tell how far the leaders' models were from the mean.

        Waits politely: on a slow link this takes minutes, and others may need the core.

        Args:
            idle: called again and again while this rank waits, with the seconds in which nothing came, and a function
                that tells which leaders are awaited; may raise to leave.
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
        kind = self._kinds[chunk.kind]
        inbox, outbox, mine = slot.inbox[chunk.kind], slot.outbox[chunk.kind], chunk.length(self._me)
        self._source.wait()
        senders = [k for k in self._giving if k != self._me] if mine else []
        receivers = [k for k in self._others if chunk.length(k)] if self._mine >= 0 else []
        if self._mine < 0:
            kind.skip(slice(chunk.bounds[0], chunk.bounds[-1]))
        length = kind.length(mine)
        sends = ((k, kind.write(slot.values[k], chunk.place(k), outbox[k])) for k in receivers)
        self._exchange(number, _TO_OWNER, [(k, inbox[k][:length]) for k in senders], sends)

    def _average(self, number: int) -> Iterator[Awaited]:
        chunk, slot = self._chunks[number], self._slots[number % len(self._slots)]
        kind, inbox, place = self._kinds[chunk.kind], slot.inbox[chunk.kind], chunk.place(self._me)
        # The sends too: the result may go where the vector lies.
        yield from self._complete(number)
        target, mine, sends = self._result[place], chunk.length(self._me), list[Tagged]()
        if mine:
            length = kind.length(mine)
            rows = [slot.values[k] if k == self._me else inbox[k][:length] for k in self._giving]
            message = kind.mean(rows, self._mine, place, slot.outbox[chunk.kind][self._me])
            sends = [(k, message) for k in self._others]
        arriving = [(k, kind.arrival(chunk.place(k), inbox[k])) for k in self._others if chunk.length(k)]
        self._arriving[number] = arriving
        self._exchange(number, _TO_ALL, arriving, sends)
        if chunk.kind == 0:
            self.squares += self._sums.squares(target, None if self._previous is None else self._previous[place])
        else:
            self.rest += self._sums.squares(target, None)

    def _collect(self, number: int) -> Iterator[Awaited]:
        chunk = self._chunks[number]
        kind = self._kinds[chunk.kind]
        yield from self._complete(number)
        for k, message in self._arriving.pop(number):
            kind.read(message, chunk.place(k))

    @property
    def distances(self) -> list[float]:
        """``‖w_k - w̄‖²`` of each leader's parameters over this rank's own slices, as far as it can tell."""
        found = [0.0] * self._centers
        for k, distance in zip(self._giving, self._ground.apart, strict=True):
            found[k] = distance
        return found

    @property
    def own_distance(self) -> float:
        """The same of this leader alone over all slices, where only it can tell."""
        return self._ground.own_distance

    # --- messages -------------------------------------------------------------------------------------

    def _exchange(self, number: int, tag: int, receives: Sequence[Tagged], sends: Iterable[Tagged]) -> None:
        self._under_way[number] = self._wire.exchange(tag, receives, self._counted(sends))

    def _counted(self, sends: Iterable[Tagged]) -> Iterator[Tagged]:
        for k, message in sends:
            self.sent += message.nbytes
            yield k, message

    def _complete(self, number: int) -> Iterator[Awaited]:
        """Yields until a chunk's messages have come and gone."""
        exchange = self._under_way.pop(number)
        awaited = exchange.awaited  # one object: by it `run` knows that nothing else is waited for
        while not exchange.done():
            yield awaited

    def _slot(self) -> _Slot:
        # A single element with its scale can be longer than the element.
        width, result, device = self._width + 1, self._result, self._result.device
        lengths = [kind.length(width) * kind.unit.itemsize for kind in self._kinds]
        row = -(-max(width * result.element_size(), *lengths) // 64) * 64
        inbox = torch.empty((self._centers, row), dtype=torch.uint8, device=device)
        # A view as another dtype needs some memory, even if nothing is written in it.
        room = row if any(k.copies for k in self._kinds) else 64
        outbox = torch.empty((self._centers, room), dtype=torch.uint8, device=device)
        pinned = self._source.on_gpu and device.type == "cpu"
        return _Slot(
            staged=torch.empty(self._centers * width, dtype=self._source.dtype, device=device, pin_memory=pinned),
            inbox=tuple(list(inbox.view(kind.unit)) for kind in self._kinds),
            outbox=tuple(list(outbox.view(kind.unit)) for kind in self._kinds),
        )
