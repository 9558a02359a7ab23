"""Keep what a process listens for on this machine.

Open MPI's launcher listens on all addresses for launchers on other nodes, even where there is one node only; no setting
of Open MPI 5.0.11 changes that. The kernel can: a socket bound to the loopback device hears nothing else.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import time
from contextlib import suppress
from pathlib import Path

_PIDFD_GETFD = 438  # the system call's number, the same on every architecture; Python has no function for it
_LOOK_EVERY = 0.01  # s
_PATIENCE = 60.0  # s for a launcher to start its first rank


def keep_on_loopback(pid: int) -> None:
    """Bind what a child process listens on to the loopback device. Returns when that process starts children or ends.

    A launcher opens all its sockets before it starts ranks.

    Args:
        pid: of a child of this process.

    Raises:
        OSError: the system, or a container's rules, do not allow it.
    """
    if not hasattr(os, "pidfd_open"):
        raise OSError("only Linux can")
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    seen: set[str] = set()
    deadline = time.monotonic() + _PATIENCE
    try:
        started = ended = False
        while not (started or ended) and time.monotonic() < deadline:
            started = _has_children(pid)  # asked first: the look below then finds all that was opened before
            for number, name in _sockets(pid).items():
                if name in seen:
                    continue
                copy = libc.syscall(_PIDFD_GETFD, process, number, 0)
                if copy < 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                with socket.socket(fileno=copy) as ours:
                    if _listens(ours):
                        ours.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
                        seen.add(name)
            ended = bool(select.select([process], [], [], _LOOK_EVERY)[0])
    finally:
        os.close(process)


def _listens(ours: socket.socket) -> bool:
    internet = ours.family in (socket.AF_INET, socket.AF_INET6)
    return internet and bool(ours.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _sockets(pid: int) -> dict[int, str]:
    """Descriptor -> the kernel's name of a socket."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed since
            found[int(link.name)] = str(link.readlink())
    return {number: name for number, name in found.items() if name.startswith("socket:")}


def _has_children(pid: int) -> bool:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # the thread has ended, or the kernel does not tell
            if (task / "children").read_text().strip():
                return True
    return False
