"""How a rank leaves its data center's process group so that its peers notice.

A rank whose code failed must not leave its peers in a collective for ever. torch has no way to do that for gloo:
destroying the group, or ``abort()``, closes nothing while DDP still holds it. So the group's sockets are shut down, and
the peers see what they would see if this process had died: "connection closed".

With NCCL the peers see nothing of the kind: a collective is a kernel on their own GPU, which only an abort of their own
communicator ends (nccl#279). There the sockets are left alone, and every rank has a :class:`Listener`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed

log = logging.getLogger("colearn_hpc")

Sockets = dict[int, str]  # file descriptor -> the kernel's name of the socket

LISTEN_INTERVAL = 0.2  # s between two looks of a Listener
_BROKEN = "colearn_hpc/broken"
_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
_OLD_HANDLING = "NCCL_ASYNC_ERROR_HANDLING"  # torch still reads it


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


def prepare_error_handling() -> None:
    """Have torch abort a NCCL communicator that is broken, and leave the process alive. To be called before the process
    group is made; what the user has set stays.

    torch's own choice (3) is to end the process: then a data center could not begin again in place. With 0 a network
    that broke would leave a rank in its collective for ever.
    """
    if _HANDLING not in os.environ and _OLD_HANDLING not in os.environ:
        os.environ[_HANDLING] = "2"  # c10d's CleanUpOnly
    # Its watchdog would end the process where a kernel has failed, before anyone has said which GPU needs a new start;
    os.environ.setdefault("TORCH_NCCL_RETHROW_CUDA_ERRORS", "0")
    # and would hold up a new group for a minute, in which it waits for traces to be written.
    os.environ.setdefault("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "500")


def needs_abort() -> bool:
    """Whether some backend of the process group keeps a rank in a collective until its own abort: all but gloo."""
    kinds = distributed.get_backend_config().split(",")  # "cpu:gloo,cuda:nccl"
    return any(kind.rpartition(":")[2] != "gloo" for kind in kinds)


class Listener:
    """A thread that aborts this rank's communicators when another rank of its data center has called.

    Its channel is the process group's own store, by a connection of its own: no MPI is called from a thread, and
    nothing waits for the main thread, which sits in CUDA.

    Args:
        abort: ends the collectives that this rank is in. Called in the thread.
    """

    def __init__(self, abort: Callable[[], None]) -> None:
        # One rank's store is the server; it must live until all have heard, though the group is gone.
        self._server = distributed.distributed_c10d._get_default_store()
        self._store = self._server.clone()  # type: ignore[attr-defined]
        self._abort = abort
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="colearn-listener", daemon=True)
        atexit.register(self.stop)  # a thread that is in torch's C++ when the interpreter ends would crash it
        self._thread.start()

    def call(self) -> None:
        """Have all other ranks abort theirs; this rank does it itself."""
        self._over.set()
        try:
            self._store.set(_BROKEN, "1")
        except RuntimeError as error:
            log.info("telling the others to leave the process group: %r", error)

    def stop(self) -> None:
        """Listen no more."""
        self._over.set()
        self._thread.join(5)
        atexit.unregister(self.stop)

    def _listen(self) -> None:
        while not self._over.wait(LISTEN_INTERVAL):
            try:
                heard = self._store.check([_BROKEN])
            except RuntimeError as error:  # who kept the store has ended: so does the launcher end all, or the run did
                log.info("listening for a failure in this data center: %r", error)
                return
            if heard and not self._over.is_set():
                log.info("another rank of this data center has failed: leaving its collectives")
                try:
                    self._abort()
                except RuntimeError as error:
                    log.warning("the communicators could not be aborted: %r", error)
                return


def abort_communicators() -> None:
    """End the collectives of this process in all its groups. They stay registered, so that the next collective fails: a
    rank without a group would go on alone."""
    c10d = distributed.distributed_c10d
    groups = sorted(c10d._world.pg_names, key=c10d._world.pg_names.__getitem__, reverse=True)
    try:
        nccl = distributed.group.WORLD._get_backend(torch.device("cuda"))  # type: ignore[union-attr]
    except RuntimeError:
        nccl = None  # a backend in Python
    # As torch does it: aborts of several communicators would wait for each other (pytorch#119797).
    together = nccl is not None and hasattr(nccl, "_group_start")
    if together:
        nccl._group_start()  # type: ignore[union-attr]
    for group in groups:
        group.abort()
    if together:
        nccl._group_end()  # type: ignore[union-attr]


def leave_process_group(sockets: Sockets) -> None:
    """Break the process group. Never raises: it is being left because something is broken.

    Args:
        sockets: those that were opened when the group was made.
    """
    if not is_initialized():
        return
    try:
        if needs_abort():
            distributed.distributed_c10d._abort_process_group()  # destroying would wait for kernels that never end
        else:
            _shut_down(sockets)
            distributed.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        log.info("leaving the process group: %r", error)


def _shut_down(sockets: Sockets) -> None:
    still_open = open_sockets()
    for number, name in sockets.items():
        if still_open.get(number) != name:
            continue
        # OSError: or closed by the other side already
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as one:
            one.getpeername()  # raises for a listening socket: gloo ends the process when that is shut down
            one.shutdown(socket.SHUT_RDWR)
