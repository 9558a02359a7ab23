"""How long an exchange takes, from the pipeline's own schedule: a model of ``mpi/pipeline.py``, event by event.

All leaders do the same at the same time, and the i-th message of each goes to its i-th neighbour. So no two messages
meet at a link's far end, and the events of one leader are those of all. What a leader sends leaves its link in order;
what is sent to it arrives as its own messages leave, one delay later. A leader waits where the pipeline waits: for the
rows of a chunk before it is summed, for the means of a chunk before it is done with.

What is not in it: leaders that are slower than others, what else travels on a link, and what TCP does beyond
:attr:`Link.overhead`. Where a vector has fewer than some 30 chunks that shows (docs/measurements/exchange.md#growth).
"""

from __future__ import annotations

from dataclasses import dataclass

from colearn_hpc.algorithm.slices import chunks
from colearn_hpc.mpi.pipeline import LONG_LINK, chunks_under_way


@dataclass(frozen=True)
class Link:
    """What joins a leader to the others.

    Attributes:
        megabits: per second, in each direction.
        round_trip: between any two leaders, s.
        overhead: bytes on the wire by payload. Of Ethernet's frames of 1500 bytes TCP leaves 1448 of 1538 (1.06).
    """

    megabits: float
    round_trip: float = 0.0
    overhead: float = 1.06

    def seconds(self, nbytes: float) -> float:
        """To send a payload."""
        return nbytes * self.overhead * 8 / (self.megabits * 1e6)


@dataclass(frozen=True)
class Host:
    """What a leader's processor needs; the figures are of docs/measurements/exchange.md, one core.

    Attributes:
        message: s to send or receive one.
        read, add, norm: s per float that is read, that is added to a sum, of whose mean the norms are taken.
        outside: s per float before and after the pipeline: the finite check and the commit.
        cores: how much of a core a leader has; less than 1 where several share one.
    """

    message: float = 4e-6
    read: float = 0.5e-9
    add: float = 0.7e-9
    norm: float = 1.2e-9
    outside: float = 1.5e-9
    cores: float = 1.0


@dataclass(frozen=True)
class Predicted:
    """One exchange.

    Attributes:
        seconds: of the pipeline.
        exchange: with the check, the commit and two meetings.
        bound: 2 (K-1)/K · bytes / bandwidth, with nothing for headers.
        messages: that a leader sends.
    """

    seconds: float
    exchange: float
    bound: float
    messages: int


def predict(floats: int, centers: int, link: Link, host: Host = Host(), itemsize: int = 4) -> Predicted:
    """An exchange of a vector of ``floats`` among ``centers`` leaders.

    Args:
        floats: n.
        centers: K.
        link: of every leader.
        host: of every leader.
        itemsize: bytes of a float on the wire.
    """
    others, delay = centers - 1, link.round_trip / 2
    cut = [chunk.length(0) for chunk in chunks(floats, floats, centers)]  # of the longest slice
    gathering, spreading = chunks_under_way(len(cut), others * cut[0] * itemsize, LONG_LINK)
    now = free = 0.0  # when this leader's processor, and its link, has done all that it was given
    rows: list[float] = []  # by chunk: when all of them are here
    means: list[float] = []

    def send(length: int) -> float:
        """One slice to each other leader; when what they send at that moment is here."""
        nonlocal now, free
        now += 2 * others * host.message / host.cores  # each is one to send and one to receive
        free = max(free, now) + others * link.seconds(length * itemsize)
        return free + delay

    for step in range(len(cut) + gathering + spreading):
        gathered, collected = step - gathering, step - gathering - spreading
        if step < len(cut):
            now += centers * cut[step] * host.read / host.cores
            rows.append(send(cut[step]))
        if 0 <= gathered < len(cut):
            length = cut[gathered]
            now = max(now, rows[gathered]) + length * (centers * host.add + host.norm) / host.cores
            means.append(send(length))
        if 0 <= collected < len(cut):
            now = max(now, means[collected])
    return Predicted(
        seconds=now,
        exchange=now + floats * host.outside / host.cores + 2 * link.round_trip,
        bound=2 * others / centers * floats * itemsize * 8 / (link.megabits * 1e6),
        messages=2 * others * len(cut),
    )
