"""Plain data over MPI: bytes that are encoded and decoded by ``protocol/plain.py``, never pickled.

mpi4py's lower-case calls unpickle what comes, and a pickle may run any code: they are for the inside of a data center.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from colearn_hpc.errors import PeerError
from colearn_hpc.protocol import messages, plain
from colearn_hpc.protocol.messages import Message

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger("colearn_hpc")


def allgather_plain(comm: MPI.Comm, value: Any) -> list[Any]:
    """Everyone's value, plain data, by rank. Collective over ``comm``; blocks.

    Raises:
        PeerError: on all ranks, where some rank sent what is not plain data, or too much of it.
    """
    mine = np.frombuffer(plain.encode(value), dtype=np.uint8)
    sizes = np.empty(comm.Get_size(), dtype=np.int64)
    comm.Allgather(np.array([len(mine)], dtype=np.int64), sizes)
    if int(sizes.sum()) > plain.LIMIT:
        raise PeerError(f"the ranks sent {int(sizes.sum())} bytes at once; at most {plain.LIMIT} are taken")
    all_bytes = np.empty(int(sizes.sum()), dtype=np.uint8)
    comm.Allgatherv(mine, [all_bytes, sizes])
    ends = np.cumsum(sizes)
    try:
        return [plain.decode(all_bytes[end - size : end].tobytes()) for end, size in zip(ends, sizes, strict=True)]
    except plain.PlainError as error:
        raise PeerError(f"a rank sent {error}") from None


class Mailbox:
    """Messages between leaders; nothing here blocks.

    Args:
        leaders: one rank per data center, in order. Collective over them.
    """

    def __init__(self, leaders: MPI.Intracomm) -> None:
        self._comm = leaders.Dup()
        self._outgoing: list[tuple[MPI.Request, bytes]] = []

    def send(self, leader: int, message: Message) -> None:
        """Messages to one leader arrive in order."""
        from mpi4py import MPI

        content = plain.encode(messages.to_plain(message))
        self._outgoing.append((self._comm.Isend([content, MPI.BYTE], leader), content))

    def receive(self) -> list[tuple[int, Message]]:
        """What has come, (leader, message) in order.

        Raises:
            PlainError: some leader sent what is no message; only this rank knows.
        """
        from mpi4py import MPI

        found: list[tuple[int, Message]] = []
        status = MPI.Status()
        while (probed := self._comm.Improbe(status=status)) is not None:
            sender, size = status.Get_source(), status.Get_count(MPI.BYTE)
            if size > plain.LIMIT:
                raise plain.PlainError(f"leader {sender} sent {size} bytes; at most {plain.LIMIT} are taken")
            content = bytearray(size)
            probed.Recv([content, MPI.BYTE])
            try:
                found.append((sender, messages.from_plain(plain.decode(bytes(content)))))
            except plain.PlainError as error:
                raise plain.PlainError(f"leader {sender} sent {error}") from None
        self._outgoing = [(request, content) for request, content in self._outgoing if not request.Test()]
        return found
