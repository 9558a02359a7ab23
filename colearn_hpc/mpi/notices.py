"""One word between ranks that nobody waits for: stop at your next safe point."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from colearn_hpc.mpi import pacing

if TYPE_CHECKING:
    from colearn_hpc.mpi.center_link import CenterLink
    from colearn_hpc.mpi.topology import DataCenter


_MOST_CALLS = 100  # answered without asking: should batches become slow, a stop does not wait for long


class StopNotices:
    """Who was asked to stop, known to all data centers without a collective between them.

    A rank that was signalled sends an empty message to every leader; leaders look for such messages whenever they
    are at a safe point or waiting. Safe points of different data centers need not be the same moment: each
    writes its own resume point, and within a round these fit together.

    Args:
        center: this process's data center. Collective over the world.
        link: the conversation inside it.

    Attributes:
        signal: tells whether this process was signalled: the signal's name, or nothing.
        reason: why to stop, empty while there is no reason.
    """

    def __init__(self, center: DataCenter, link: CenterLink) -> None:
        self.signal: Callable[[], str] = str
        self.reason = ""
        self._center = center
        self._world = center.world.Dup()
        self._link = link
        self._sent = False
        self._looked = 0.0
        self._calls, self._asked, self._asked_every, self._agreed = 0, time.monotonic(), 0, False

    def poll(self) -> str:
        """Why to stop, as far as this rank knows. Never blocks; passes this process's own signal on, once.

        Cheap enough for every batch: messages are looked for now and then.
        """
        signal, now = self.signal(), time.monotonic()
        if not signal and now - self._looked < pacing.LOOK_INTERVAL:
            return self.reason
        self._looked = now
        from mpi4py import MPI

        if signal and not self._sent:
            self._sent = True
            self.reason = self.reason or f"{signal} at data center {self._center.name} ({self._center.host})"
            for other in self._center.topology.centers:
                if other.leader != self._center.world_rank:
                    self._world.Isend([b"", MPI.BYTE], other.leader).Free()
        found = MPI.Status()
        while self._world.Iprobe(status=found):
            self._world.Recv([bytearray(0), MPI.BYTE], found.Get_source())
            sender = self._center.topology.center_of(found.Get_source())
            self.reason = self.reason or f"a signal at data center {sender.name}"
        return self.reason

    def agreed(self) -> bool:
        """Whether any rank of this data center knows a reason; once yes, always yes. Collective over the data center.

        The ranks of a data center stop at the same batch, because the next one's gradients take them all. A sum over
        them at every batch would show where cores are shared; so they agree on how many calls come in half a second,
        and all but the last of these are answered with no.

        Raises:
            CenterBrokenError: a rank of this data center failed.
        """
        if self._agreed or self._center.size == 1:
            return self._agreed or bool(self.poll())
        self._calls += 1
        if self._calls < self._asked_every:
            return False
        now = time.monotonic()
        usual = int(0.5 * self._calls / max(now - self._asked, 1e-3))
        # Two calls may come close together, as at an epoch's end: no leap from that.
        usual = min(usual, 2 * self._asked_every + 1, _MOST_CALLS)
        known, self._asked_every = self._link.largest(bool(self.poll()), usual)
        self._calls, self._asked, self._agreed = 0, now, bool(known)
        return self._agreed

    def regrouped(self) -> None:
        """The data center begins again: its ranks count their calls from here."""
        self._calls, self._asked, self._asked_every, self._agreed = 0, time.monotonic(), 0, False
