"""How a rank leaves its data center's process group so that its peers notice.

A rank whose code failed must not leave its peers in a collective for ever. torch 2.13 has no way to do that for gloo:
destroying the group, or ``abort()``, closes nothing while DDP still holds it. So the group's sockets are shut down, and
the peers see what they would see if this process had died: "connection closed". NCCL's ``abort`` does its own work.
"""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

from torch import distributed

log = logging.getLogger("colearn_hpc")

Sockets = dict[int, str]  # file descriptor -> the kernel's name of the socket


def open_sockets() -> Sockets:
    """This process's sockets; empty where the system does not tell (no ``/proc``)."""
    found: Sockets = {}
    for entry in Path("/proc/self/fd").glob("*"):
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # the one that listed the folder
        if target.startswith("socket:"):
            found[int(entry.name)] = target
    return found


def is_initialized() -> bool:
    """Whether this process is in a process group."""
    return distributed.is_available() and distributed.is_initialized()


def leave_process_group(sockets: Sockets) -> None:
    """Break the process group. Never blocks, and never raises: it is being left because something is broken.

    Args:
        sockets: those that were opened when the group was made.
    """
    if not is_initialized():
        return
    still_open = open_sockets()
    for number, name in sockets.items():
        if still_open.get(number) != name:
            continue
        try:
            with socket.socket(fileno=os.dup(number)) as one:
                one.getpeername()  # raises for a listening socket: gloo ends the process when that is shut down
                one.shutdown(socket.SHUT_RDWR)
        except OSError:  # or closed by the other side already
            continue
    try:
        if distributed.get_backend() == "nccl":
            distributed.distributed_c10d._abort_process_group()  # destroying would wait for kernels that never end
        else:
            distributed.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        log.info("leaving the process group: %r", error)
