"""How tensors get from leader to leader: what one stage of a mean sends and awaits, as one exchange.

    MpiWire          MPI's sends and receives between host memories; between GPUs' where the MPI is CUDA-aware
    CollectiveWire   torch's all-to-all: NCCL from GPU to GPU, gloo on CPUs, where it is the rehearsal of NCCL

A mean has the same bits over both: they only move rows and results, and who sums is ``pipeline.py``. Which one carries
a run is found here, by all leaders together.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, distributed

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.mpi.cuda_aware import cuda_aware, mpi_name
from colearn_hpc.mpi.wire import allgather_plain

if TYPE_CHECKING:
    from mpi4py import MPI

Tagged: TypeAlias = "tuple[int, Tensor]"
DeviceWay: TypeAlias = Literal["mpi", "collectives"]

_FOREVER = timedelta(days=30)  # a mean that stands still is the stall watch's to notice: it knows who is awaited
_START = timedelta(minutes=5)  # until all leaders have found the store


class Exchange(Protocol):
    """Messages under way."""

    def done(self) -> bool:
        """Whether all have come and gone. Never blocks; what was to be received is in its place from then on."""

    def awaited(self) -> set[int]:
        """With whom messages are still under way, as far as is known."""


class TensorWire(Protocol):
    """Tensors between the leaders of one mean.

    Attributes:
        size, rank: how many leaders there are, and which of them this is.
    """

    size: int
    rank: int

    def exchange(self, tag: int, receives: Sequence[Tagged], sends: Iterable[Tagged]) -> Exchange:
        """Begin one stage of a chunk. Every leader begins the same stages in the same order.

        Args:
            tag: of the stage.
            receives: (from whom, where to), contiguous; all tensors of one stage have one dtype.
            sends: (to whom, what); untouched until all is done. Each is taken when the one before it has been sent.
        """


# --- over MPI -----------------------------------------------------------------------------------------


class MpiWire:
    """MPI's sends and receives.

    Args:
        leaders: one rank per data center that takes part, in order.
    """

    def __init__(self, leaders: MPI.Comm) -> None:
        from mpi4py import MPI

        self.size, self.rank = leaders.Get_size(), leaders.Get_rank()
        self._leaders, self._testall = leaders, MPI.Request.Testall

    def exchange(self, tag: int, receives: Sequence[Tagged], sends: Iterable[Tagged]) -> Exchange:
        pending = [(k, self._leaders.Irecv(_memory_of(place), k, tag)) for k, place in receives]
        pending += [(k, self._leaders.Isend(_memory_of(message), k, tag)) for k, message in sends]
        return _Requests(pending, self._testall)


@dataclass(frozen=True)
class _Requests:
    pending: list[tuple[int, MPI.Request]]
    testall: Any

    def done(self) -> bool:
        return bool(self.testall([request for _, request in self.pending]))

    def awaited(self) -> set[int]:
        return {k for k, request in self.pending if not request.Test()}


def _memory_of(tensor: Tensor) -> Any:
    """What mpi4py takes for the tensor's memory."""
    if tensor.device.type == "cpu":
        return tensor.numpy()
    # MPI knows nothing of streams: what fills this memory, or still reads what is in it, has to have ended.
    torch.cuda.current_stream(tensor.device).synchronize()
    return tensor


# --- over torch's collectives -------------------------------------------------------------------------


class CollectiveWire:
    """All-to-all by a process group of the leaders alone, which DDP's groups know nothing of.

    Grouped by the collective, because NCCL's single sends and receives wait for each other. Messages are gathered into
    one, and taken apart where they arrive: in a GPU's memory that costs little beside a link.

    Args:
        leaders: one rank per data center that takes part, in order. Collective over them.
        device: where all tensors lie.

    Raises:
        RuntimeError: the backend does not start; what it says.
    """

    def __init__(self, leaders: MPI.Comm, device: torch.device) -> None:
        self.size, self.rank, self._device = leaders.Get_size(), leaders.Get_rank(), device
        hosts = allgather_plain(leaders, socket.gethostname())
        host, store = "127.0.0.1" if len(set(hosts)) == 1 else hosts[0], None
        if self.rank == 0:
            with suppress(RuntimeError):  # all are told below
                store = distributed.TCPStore(host, 0, None, True, _START, False)
        port = allgather_plain(leaders, 0 if store is None else store.port)[0]
        if not port:
            raise RuntimeError(f"no port could be opened on {hosts[0]}")
        if device.type == "cuda":
            torch.cuda.empty_cache()  # NCCL takes memory of its own, and torch may have kept it all
        with _ends_in_time():
            if store is None:
                store = distributed.TCPStore(host, port, None, False, _START)
            self._group: Any = _group(device.type == "cuda", store, self.rank, self.size)
            _groups.append(self._group)
            # What cannot work is to be known before training. NCCL connects two ranks when they first talk.
            each, there = [1] * self.size, torch.ones(self.size, device=device)
            self._group.alltoall_base(torch.empty_like(there), there, each, each).wait()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def exchange(self, tag: int, receives: Sequence[Tagged], sends: Iterable[Tagged]) -> Exchange:
        given, places = dict(sends), dict(receives)
        some = next(iter((*given.values(), *places.values())), None)
        dtype = torch.float32 if some is None else some.dtype
        pieces = [given[k] for k in range(self.size) if k in given]
        nothing = torch.empty(0, dtype=dtype, device=self._device)
        going = torch.cat(pieces) if pieces else nothing
        coming = torch.empty(sum(map(len, places.values())), dtype=dtype, device=self._device)
        counts = [[len(by[k]) if k in by else 0 for k in range(self.size)] for by in (places, given)]
        work = self._group.alltoall_base(coming, going, *counts)
        others = set(range(self.size)) - {self.rank}
        return _Collective(work, going, coming, [places[k] for k in range(self.size) if k in places], others)


# They live as long as the process: NCCL ends one only when all its ranks of a node do, and together they do so at the
# end alone.
_groups: list[Any] = []
_wires: dict[tuple[Any, ...], CollectiveWire] = {}


@atexit.register
def _let_go() -> None:
    while _groups:
        _groups.pop().shutdown()


@contextmanager
def _ends_in_time() -> Iterator[None]:
    """End the process, and so the run, where NCCL waits for ever for a leader that a network does not reach."""

    def end() -> None:
        text = f"exchange: device=True: the leaders did not find each other in {_START.total_seconds():.0f} s"
        print(f"colearn-hpc: error: {text}; see NCCL_SOCKET_IFNAME, or leave device out", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(1.5 * _START.total_seconds(), end)  # a store that is not found says so earlier
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _group(on_gpus: bool, store: Any, rank: int, size: int) -> Any:
    if not on_gpus:
        return distributed.ProcessGroupGloo(store, rank, size, _FOREVER)
    options = distributed.ProcessGroupNCCL.Options()
    options._timeout = _FOREVER
    return distributed.ProcessGroupNCCL(store, rank, size, options)


class _Collective:
    def __init__(self, work: Any, going: Tensor, coming: Tensor, places: Sequence[Tensor], others: set[int]) -> None:
        self._work, self._going, self._coming = work, going, coming  # kept while they are read and written
        self._places, self._others = places, others

    def done(self) -> bool:
        if self._work is None:
            return True
        if not self._work.is_completed():
            return False
        self._work.wait()  # sums are done in another stream than it came in; raises if it failed
        start = 0
        for place in self._places:
            place.copy_(self._coming[start : start + len(place)])
            start += len(place)
        self._work = None
        return True

    def awaited(self) -> set[int]:
        return set() if self._work is None else self._others


# --- which one ----------------------------------------------------------------------------------------


def device_facts(device: torch.device | None) -> list[str] | None:
    """What the others have to know of this carrier's device, as plain data; None: models travel through host memory.

    Returns:
        The device's kind; whether MPI can send its memory, in words; whether torch has NCCL; the GPU's own name.
    """
    if device is None:
        return None
    name = ""
    if device.type == "cuda":
        name = f"{socket.gethostname()} {getattr(torch.cuda.get_device_properties(device), 'uuid', device.index)}"
    return [device.type, cuda_aware(mpi_name(), "unknown"), "NCCL" if distributed.is_nccl_available() else "", name]


def choose_way(facts: Sequence[tuple[str, Sequence[str]]]) -> DeviceWay:
    """How models travel from device to device in one lane: pure, so all find the same.

    Args:
        facts: (data center, :func:`device_facts`) of each carrier.

    Raises:
        ConfigurationError: there is no way.
    """
    kinds = {name: fact[0] for name, fact in facts}
    if len(set(kinds.values())) > 1 or not set(kinds.values()) <= {"cpu", "cuda"}:
        found = ", ".join(f"{kind} in {name}" for name, kind in kinds.items())
        raise ConfigurationError(
            f"exchange: device=True needs CUDA GPUs in all data centers (or CPUs, to try it); found {found}. Leave "
            "device out there"
        )
    if "cpu" in kinds.values():
        return "collectives"
    # NCCL first: it is made for this, and MPIs that take GPU memory have been seen to crash or to stand still.
    blind = [name for name, (_, _, nccl, _) in facts if not nccl]
    users: dict[str, list[str]] = {}
    for name, (_, _, _, gpu) in facts:
        users.setdefault(gpu, []).append(name)
    shared = next((names for names in users.values() if len(names) > 1), [])
    if not blind and not shared:
        return "collectives"
    unaware = next((aware for _, (_, aware, _, _) in facts if not aware.startswith("yes")), None)
    if unaware is None:
        return "mpi"
    if blind:
        why, remedy = (
            f"torch has no NCCL in {', '.join(blind)}",
            "install a CUDA build of it",
        )
    else:
        why = f"data centers {', '.join(shared)} share a GPU, which NCCL does not allow"
        remedy = "give each a GPU of its own"
    raise ConfigurationError(
        f"exchange: device=True: {why}, and this MPI is not known to send GPU memory: {unaware}. To have it, "
        f"{remedy} or load a CUDA-aware MPI; or leave device out"
    )


def wire_of(leaders: MPI.Comm, device: torch.device | None, way: DeviceWay) -> TensorWire:
    """The wire of these leaders. Collective over them.

    Args:
        leaders: one rank per data center that takes part, in order.
        device: where models lie; None: they travel through host memory.
        way: what :func:`choose_way` found.
    """
    if device is None or way == "mpi" or leaders.Get_size() == 1:
        return MpiWire(leaders)
    from mpi4py import MPI

    # One for all runs of a process.
    key = (*allgather_plain(leaders, MPI.COMM_WORLD.Get_rank()), str(device))
    if key not in _wires:
        _wires[key] = CollectiveWire(leaders, device)
    return _wires[key]
