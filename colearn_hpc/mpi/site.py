"""Inside one data center: what its ranks say to each other, in a way that one failing rank can break.

A rank that fails in its user's code leaves the others of its data center in a collective that it will never join.
So every collective here begins with a non-blocking barrier, tested between sleeps, and while a rank waits it looks for
a *distress call* of its peers. The blocking part comes only when all have arrived: from there on no user's code runs.
After a break the ranks *regroup* on fresh communicators, because the broken ones hold a barrier that never ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from colearn_hpc.errors import CenterBrokenError, RoundTimeoutError
from colearn_hpc.mpi.copies import copy_to_all
from colearn_hpc.protocol.pacing import Patience

if TYPE_CHECKING:
    from mpi4py import MPI

    from colearn_hpc.mpi.topology import DataCenter

log = logging.getLogger("colearn_hpc")
T = TypeVar("T")

CHUNK = 1 << 24  # elements per message: counts stay far below 2^31 bytes
_SPIN = 0.002  # s of testing without sleep: ranks of a data center are in step to about a millisecond


def nothing() -> None:
    """Nothing is to be done meanwhile."""


class MpiSite:
    """A :class:`~colearn_hpc.between.TensorSite` over MPI. Messages here may be pickled: one organisation's ranks.

    Args:
        center: this process's data center. Collective over the data center.
    """

    def __init__(self, center: DataCenter) -> None:
        self.size, self.rank, self.name, self.host = center.size, center.rank, center.name, center.host
        self.meanwhile: Callable[[], object] = nothing
        self.broken = ""
        self.carriers: Sequence[int] = (0,)
        self._regrouping = center.comm.Dup()  # used by regroup alone, so nothing ever dangles on it
        self._distress = center.comm.Dup()
        self._words = center.comm.Dup()
        self._comm = center.comm.Dup()
        self._generation = 0
        self._distress_calls: list[MPI.Request] = []
        self._sent_words: list[MPI.Request] = []

    def enter(self) -> MPI.Comm:
        """Wait for all ranks; returns the communicator for one blocking collective right after.

        Raises:
            CenterBrokenError: a peer failed and will not come.
        """
        if self.size > 1:
            self._wait(self._comm.Ibarrier())
        return self._comm

    def largest(self, *numbers: int) -> list[int]:
        """The largest of each number that any rank brings. Cheaper than a meeting of pickled things."""
        if self.size == 1:
            return list(numbers)
        from mpi4py import MPI

        mine, found = np.array(numbers, dtype=np.int32), np.zeros(len(numbers), dtype=np.int32)
        self._wait(self._comm.Iallreduce(mine, found, MPI.MAX))
        return [int(number) for number in found]

    def gather(self, content: T) -> list[T] | None:
        """Every rank's content, by center_rank, on the leader; None elsewhere."""
        return self.enter().gather(content, 0) if self.size > 1 else [content]

    def bcast(self, content: T) -> T:
        """The leader's content. The others wait politely: the leader may have been away for hours."""
        return self.enter().bcast(content, 0) if self.size > 1 else content

    def call_leader(self, text: str) -> None:
        self._sent_words.append(self._words.isend(text, 0))

    def calls(self) -> list[str]:
        found = []
        while self.size > 1 and self._words.iprobe():
            found.append(self._words.recv())
        return found

    # --- tensors ----------------------------------------------------------------------------------------

    def rows(self, vector: Tensor) -> Tensor | None:
        rows = torch.empty((self.size, *vector.shape), dtype=vector.dtype) if self.rank == 0 else None
        self.enter().Gather(vector.numpy(), None if rows is None else rows.numpy(), 0)
        return rows

    def copy_to_all(self, tensors: Iterable[Tensor]) -> None:
        if self.size > 1:
            copy_to_all(self.enter(), 0, tensors)

    def spread(self, vector: Tensor, parts: Sequence[slice]) -> None:
        """Who is early waits politely: carriers may be busy with a slow link for minutes."""
        if self.size == 1:
            return
        from mpi4py import MPI

        comm = self.enter()
        # All parts at once: each begins on another node.
        MPI.Request.Waitall(
            [
                comm.Ibcast(block.numpy(), carrier)
                for carrier, part in zip(self.carriers, parts, strict=True)
                for block in vector[part].split(CHUNK)
            ]
        )

    # --- failures ---------------------------------------------------------------------------------------

    def break_(self, why: str) -> None:
        """Tell the peers not to wait for this rank. Never blocks; once per break."""
        if self.broken:
            return
        self.broken = why
        self._distress_calls = [
            self._distress.isend((self._generation, why), rank) for rank in range(self.size) if rank != self.rank
        ]

    def check(self) -> None:
        """Raise a CenterBrokenError if a peer has called distress. Never blocks."""
        while self.size > 1 and self._distress.iprobe():
            generation, why = self._distress.recv()
            if generation == self._generation and not self.broken:
                self.broken = why
        if self.broken:
            raise CenterBrokenError(self.broken)

    def regroup(self, content: T, patience: float | None = None) -> list[T]:
        """Meet after a break, and make the link whole again. Every rank calls it, whatever brought it here.

        Returns:
            What each rank brought, by center_rank.

        Raises:
            RoundTimeoutError: some rank did not come within ``patience`` seconds.
        """
        self.break_("a peer failed")
        if self.size > 1:
            waiting = Patience(patience)
            request = self._regrouping.Ibarrier()
            while not request.Test():
                self.meanwhile()
                if waiting.report_due():
                    log.warning("waiting for all ranks of %s to leave what they were doing", self.name)
                if waiting.over():
                    raise RoundTimeoutError(f"some rank of data center {self.name} did not come back")
                waiting.sleep()
            while self._distress.iprobe():
                self._distress.recv()
        contents: list[T] = self._regrouping.allgather(content)
        self._comm = self._regrouping.Dup()
        self._generation += 1
        self.broken = ""
        return contents

    def _wait(self, request: MPI.Request) -> None:
        waiting = Patience()
        while not request.Test():
            if waiting.seconds > _SPIN:
                try:
                    self.check()
                except CenterBrokenError:
                    if _comes_to_its_end(request):  # who broke off had come out of this very one, and failed then
                        return
                    raise
                self.meanwhile()
                waiting.sleep()


def _comes_to_its_end(request: MPI.Request, patience: float = 0.2) -> bool:
    """Whether all ranks have entered what this one waits for; then MPI needs a few more looks at it, and no longer."""
    end = time.monotonic() + patience
    while not request.Test():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
