"""Leaders in one process: a mean over MPI's own pipeline, whose messages go through memory, and are written down."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from colearn_hpc.between import Offer
from colearn_hpc.mpi.pipeline import _TO_OWNER, Pipeline

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


class Leaders:
    """As much of a communicator as a pipeline needs."""

    def __init__(self, size: int, rank: int, wire: Wire) -> None:
        self.size, self.rank, self.wire = size, rank, wire

    def Get_size(self) -> int:
        return self.size

    def Get_rank(self) -> int:
        return self.rank

    def Isend(self, message: np.ndarray, to: int, tag: int) -> Sent:
        content = message.tobytes()
        self.wire.queues[self.rank, to, tag].append(content)
        self.wire.log.append((self.rank, to, tag, content))
        return Sent()

    def Irecv(self, place: np.ndarray, source: int, tag: int) -> Received:
        return Received(self.wire.queues[source, self.rank, tag], place)


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
        pipeline = Pipeline(Leaders(count, rank, wire), offer, weights)  # type: ignore[arg-type]
        pipeline._testall = lambda requests: all(request.Test() for request in requests)  # type: ignore[assignment]
        pipelines.append(pipeline)
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
