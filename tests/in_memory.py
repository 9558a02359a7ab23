"""Leaders in one process: a mean over MPI's own pipeline, whose messages go through memory, and are written down."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from colearn_hpc.between import Offer
from colearn_hpc.mpi.pipeline import _TO_OWNER, Pipeline
from colearn_hpc.mpi.tensor_wire import Tagged

TO_OWNER = _TO_OWNER


@dataclass
class Wire:
    """What was sent: by (sender, receiver, tag) in order; ``log`` keeps it."""

    queues: dict[tuple[int, int, int], deque[bytes]] = field(default_factory=lambda: defaultdict(deque))
    log: list[tuple[int, int, int, bytes]] = field(default_factory=list)


class Sent:
    def Test(self) -> bool:
        return True


class Received:
    def __init__(self, queue: deque[bytes], place: np.ndarray) -> None:
        self.queue, self.place, self.done = queue, place, False

    def Test(self) -> bool:
        if not self.done and self.queue:
            target = self.place.view(np.uint8)
            target[:] = np.frombuffer(self.queue.popleft(), np.uint8)
            self.done = True
        return self.done


@dataclass
class Exchange:
    pending: list[tuple[int, Sent | Received]]

    def done(self) -> bool:
        return all(request.Test() for _, request in self.pending)

    def awaited(self) -> set[int]:
        return {k for k, request in self.pending if not request.Test()}


class Leaders:
    """A :class:`~colearn_hpc.mpi.tensor_wire.TensorWire` between leaders of one process."""

    def __init__(self, size: int, rank: int, wire: Wire) -> None:
        self.size, self.rank, self.wire = size, rank, wire

    def exchange(self, tag: int, receives: Sequence[Tagged], sends: Iterable[Tagged]) -> Exchange:
        pending: list[tuple[int, Sent | Received]] = [
            (k, Received(self.wire.queues[k, self.rank, tag], place.numpy())) for k, place in receives
        ]
        for k, message in sends:
            content = message.numpy().tobytes()
            self.wire.queues[self.rank, k, tag].append(content)
            self.wire.log.append((self.rank, k, tag, content))
            pending.append((k, Sent()))
        return Exchange(pending)


def mean(
    offers: Sequence[Offer], weights: Sequence[float], order: Callable[[int], Sequence[int]] | None = None
) -> Wire:
    """Take the mean of all offers, each into its own result.

    Args:
        offers: one per leader.
        weights: n_k.
        order: pass -> the order in which leaders are moved on; None: one after the other.
    """
    wire, count = Wire(), len(offers)
    pipelines = []
    for rank, offer in enumerate(offers):
        offer.encoding.prepare(offer.parameter_size)
        pipelines.append(Pipeline(Leaders(count, rank, wire), offer, weights))
    waiting, number = set(range(count)), 0
    while waiting:
        before = len(wire.log)
        for rank in list(order(number) if order else range(count)):
            if rank in waiting and pipelines[rank].advance():
                waiting.discard(rank)
                before = -1
        number += 1
        assert number < 10_000 or len(wire.log) != before, "nothing moves"
    return wire
