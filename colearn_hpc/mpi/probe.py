"""Measures what lies between data centers, before a job waits in the queue for it: used by ``colearn-hpc doctor``."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import astuple, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colearn_hpc.mpi.cuda_aware import mpi_name
from colearn_hpc.mpi.wire import allgather_plain

if TYPE_CHECKING:
    from mpi4py import MPI

    from colearn_hpc.mpi.topology import DataCenter

_ROUND_TRIPS = 30
_SMALLEST, _LARGEST = 1 << 18, 1 << 26  # bytes of a message whose time is taken for bandwidth
_LONG_ENOUGH = 0.05  # s, and ten round trips: a longer message would not tell more, and a slow link would take minutes


@dataclass(frozen=True)
class Link:
    """What was measured between the leaders of two data centers.

    Attributes:
        one, other: their names.
        latency: s, one way, median.
        bandwidth: bytes/s, one way, of a long message.
        skew: s by which the other's clock is ahead; None between two of which none is the first data center.
        window: bytes that Linux lets a TCP connection of the first one hold; None where it does not tell.
    """

    one: str
    other: str
    latency: float
    bandwidth: float
    skew: float | None
    window: int | None = None


def describe_mpi() -> dict[str, str]:
    """Vendor, versions and thread level of the MPI that mpi4py found. Starts MPI."""
    import mpi4py
    from mpi4py import MPI

    levels = {
        MPI.THREAD_SINGLE: "single",
        MPI.THREAD_FUNNELED: "funneled",
        MPI.THREAD_SERIALIZED: "serialized",
        MPI.THREAD_MULTIPLE: "multiple",
    }
    vendor, _ = MPI.get_vendor()
    return {
        "vendor": mpi_name(),
        "standard": ".".join(map(str, MPI.Get_version())),
        "mpi4py": mpi4py.__version__,
        "threads": levels[MPI.Query_thread()],
        "cuda": _cuda_aware(vendor),
    }


def gather(center: DataCenter, content: Any) -> list[Any]:
    """Everyone's content, plain data, by world rank, on all ranks. Collective over the world."""
    return allgather_plain(center.world, content)


def ring(center: DataCenter) -> str:
    """Send a word once around the leaders; what went wrong, or nothing. Collective over the leaders."""
    leaders = _leaders(center)
    size, me = leaders.Get_size(), leaders.Get_rank()
    if size == 1:
        return ""
    found = np.empty(1, dtype=np.int64)
    leaders.Sendrecv(np.array([me], dtype=np.int64), (me + 1) % size, recvbuf=found, source=(me - 1) % size)
    return "" if found[0] == (me - 1) % size else f"{center.name} got the word of leader {found[0]}"


def allreduce(center: DataCenter) -> str:
    """Sum a vector over all ranks; what went wrong, or nothing. Collective over the world."""
    size = center.world_size
    vector = np.full(1 << 16, center.world_rank + 1, dtype=np.float32)
    total = np.empty_like(vector)
    center.world.Allreduce(vector, total)
    expected = size * (size + 1) / 2
    return "" if (total == expected).all() else f"{center.name} found {total[0]} instead of {expected}"


def links(center: DataCenter) -> list[Link]:
    """Measure every pair of data centers, pair after pair; all links, on every leader. Collective over the leaders."""
    leaders = _leaders(center)
    me = leaders.Get_rank()
    names = [c.name for c in center.topology.centers]
    mine = []
    for one, other in combinations(range(leaders.Get_size()), 2):
        if me == one:
            latency, bandwidth, skew = _measure(leaders, other)
            mine.append(Link(names[one], names[other], latency, bandwidth, skew if one == 0 else None, _tcp_window()))
        elif me == other:
            _answer(leaders, one)
        wait(leaders)  # those who only watch must not take the cores of those who measure
    parts = allgather_plain(leaders, [astuple(link) for link in mine])
    return [Link(*link) for part in parts for link in part]


def wait(comm: MPI.Comm) -> None:
    """A barrier that sleeps. Collective over ``comm``."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.002)


def _leaders(center: DataCenter) -> MPI.Comm:
    if center.leaders is None:
        raise AssertionError("only leaders measure")
    return center.leaders


def _measure(leaders: MPI.Comm, other: int) -> tuple[float, float, float]:
    """(latency, bandwidth, skew); the one who asks tells the size of what comes, and 0 at the end."""
    trips, clocks = [], []
    clock = np.empty(1, dtype=np.float64)
    for _ in range(_ROUND_TRIPS):
        before, start = time.time(), time.perf_counter()
        leaders.Send(np.array([1], dtype=np.int64), other)
        leaders.Recv(clock, other)
        trips.append(time.perf_counter() - start)
        clocks.append((trips[-1], clock[0] - before - trips[-1] / 2))
    best, size, trip = 0.0, _SMALLEST, statistics.median(trips)
    while size <= _LARGEST:
        payload, best = np.zeros(size, dtype=np.uint8), 0.0  # of the longest: links let short ones pass faster
        for _ in range(2):  # the first one of a size also sets up its way
            leaders.Send(np.array([size], dtype=np.int64), other)
            start = time.perf_counter()
            leaders.Send(payload, other)
            leaders.Recv(clock, other)
            seconds = time.perf_counter() - start
            # The answer's way, and the message's own delay, are no part of what the link carries in a second.
            best = max(best, size / max(seconds - trip, seconds / 2))
        if seconds > _LONG_ENOUGH + 10 * trip:
            break
        size *= 4
    leaders.Send(np.array([0], dtype=np.int64), other)
    return trip / 2, best, float(min(clocks)[1])


def _tcp_window() -> int | None:
    try:
        return int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2])
    except (OSError, ValueError, IndexError):
        return None


def _answer(leaders: MPI.Comm, asker: int) -> None:
    size = np.empty(1, dtype=np.int64)
    while True:
        leaders.Recv(size, asker)
        if size[0] == 0:
            return
        if size[0] > 1:
            leaders.Recv(np.empty(size[0], dtype=np.uint8), asker)
        leaders.Send(np.array([time.time()], dtype=np.float64), asker)


def _cuda_aware(vendor: str) -> str:
    """``yes``, ``no`` or ``unknown``: MPI has no standard question for it."""
    if vendor != "Open MPI":
        return "unknown"
    beside = Path(sys.executable).parent / "ompi_info"
    tool = str(beside) if beside.exists() else shutil.which("ompi_info")
    if tool is None:
        return "unknown"
    # In an environment of its own: as a child of a rank it would take itself for a rank.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PRTE_", "SLURM_"))}
    try:
        done = subprocess.run(
            [tool, "--parsable", "--all"], env=environment, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = [line for line in done.stdout.splitlines() if "mpi_built_with_cuda_support:value" in line]
    return "unknown" if not found else "yes" if found[0].endswith("true") else "no"
