"""Who comes to a run, and who ends without one.

All ranks that have joined must take part in a run that some of them begin. One whose script ends first (no ``fit`` in
it, a branch that is not taken, ``sys.exit()``) would leave the others in a wait without end: MPI ends no process before
all end. So a process that ends says so, and those who wait for everybody at a run's beginning end it with its name.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from colearn_hpc.protocol import pacing

if TYPE_CHECKING:
    from mpi4py import MPI


class RollCall:
    """The roll call of all ranks. Collective over the world.

    Args:
        world: of all ranks.
        told: world ranks that hear of this process's end: for a leader all leaders, for the others their own.
        describe: the data center and the host of a world rank, for people.
    """

    def __init__(self, world: MPI.Intracomm, told: Sequence[int], describe: Callable[[int], str]) -> None:
        self._comm, self._told, self._describe, self._pid = world.Dup(), told, describe, os.getpid()
        self._words: list[MPI.Request] = []

    def wait(self, patience: float | None = None, text: Callable[[], str] = lambda: "") -> None:
        """Wait politely until all ranks have come here. Collective over the world.

        Does not return where a rank has ended instead, or does not come in time: then all ranks are ended.

        Args:
            patience: seconds; None: for ever.
            text: why they are ended when not all come in time.
        """
        request, waiting = self._comm.Ibarrier(), pacing.Patience(patience)
        while not request.Test():
            if (gone := self._gone()) is not None:
                end_world(
                    f"{self._describe(gone)} has ended without taking part in the run: its script came to its end "
                    "before `fit`, or without one. Let all ranks run the same script"
                )
            if waiting.over():
                end_world(text())
            waiting.sleep()

    def leave(self) -> None:
        """This process ends. Never blocks, and waits for nobody."""
        from mpi4py import MPI

        if os.getpid() != self._pid or MPI.Is_finalized():  # a loader's worker
            return
        for rank in self._told:
            self._words.append(self._comm.Isend([b"", MPI.BYTE], rank))

    def _gone(self) -> int | None:
        """World rank of one that has ended."""
        from mpi4py import MPI

        status = MPI.Status()
        return status.Get_source() if self._comm.Iprobe(status=status) else None


def end_world(text: str) -> None:
    """Say why, and end all ranks, wherever they are. Returns where there is no other rank: MPI does not run."""
    if "mpi4py.MPI" not in sys.modules:
        return
    from mpi4py import MPI

    if MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.Get_size() > 1:
        print(f"colearn-hpc: error: {text}", file=sys.stderr, flush=True)
        time.sleep(0.2)  # the launcher forwards what was printed by a path of its own
        MPI.COMM_WORLD.Abort(1)
