"""A leader that has nothing but a vector: so little memory that 64 fit on one machine. Started by growth.py.

The mean is the pipeline's, over real MPI. It is checked bit by bit against a sum in float64 in the order of the
leaders, which the first rank takes from all vectors; every rank's messages are counted.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import mmap
import os
import statistics
import time
from pathlib import Path

import torch
from mpi4py import MPI

from colearn_hpc.algorithm.slices import chunks
from colearn_hpc.between import Offer, Vector
from colearn_hpc.mpi.pipeline import Pipeline
from colearn_hpc.mpi.tensor_wire import MpiWire


class Counting(MPI.Intracomm):
    """Counts what is sent."""

    messages, longest = 0, 0

    def Isend(self, buf, dest, tag=0):  # type: ignore[no-untyped-def]  # noqa: N802
        self.messages += 1
        self.longest = max(self.longest, buf.nbytes)
        return super().Isend(buf, dest, tag)


def own_memory() -> int:
    """Bytes of this process that are no file's and no other's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def miniature(size: int, period: int) -> torch.Tensor:
    """A vector of ``size`` float32 with the memory of ``period``: the same pages, mapped again and again."""
    nbytes, total = 4 * period, -(-size // period) * 4 * period
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    pages = os.memfd_create("miniature")
    os.ftruncate(pages, nbytes)
    no_reserve, fixed, failed = 0x4000, 0x10, ctypes.c_void_p(-1).value  # of Linux
    base = libc.mmap(None, total, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve, -1, 0)
    for start in range(0, total, nbytes):
        place = libc.mmap(base + start, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | fixed, pages, 0)
        assert place not in (None, failed), os.strerror(ctypes.get_errno())
    return torch.frombuffer((ctypes.c_float * size).from_address(base), dtype=torch.float32)


def values(center: int, size: int) -> torch.Tensor:
    """A leader's own vector."""
    return torch.randn(size, generator=torch.Generator().manual_seed(center))


def digest(vector: torch.Tensor) -> str:
    return hashlib.sha256(vector.numpy()).hexdigest()


def main() -> None:
    """On every rank; the first one prints."""
    options = argparse.ArgumentParser()
    options.add_argument("--worker", action="store_true")
    options.add_argument("--floats", type=int, required=True)
    options.add_argument("--period", type=int, default=0)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--ahead", type=int, default=0)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    world = Counting(MPI.COMM_WORLD)
    size, k = chosen.floats, world.size
    period = chosen.period or size
    whole = [miniature(size, period) if chosen.period else torch.empty(size) for _ in range(3)]
    own, result, previous = whole
    own[:period] = values(world.rank, period)
    previous[:period] = 1.0
    world.Alltoall(torch.zeros(k), torch.zeros(k))  # MPI's own buffers are not the exchange's
    seconds, memory, squares = [], 0, 0.0
    for _ in range(chosen.rounds):
        result[:period] = float("nan")
        world.messages, before = 0, own_memory()
        world.Barrier()
        start = time.perf_counter()
        pipeline = Pipeline(
            MpiWire(world), Offer(Vector(own), result, [1.0] * k, size, previous), [1.0] * k, chosen.ahead
        )
        pipeline.run()
        world.Barrier()
        seconds.append(time.perf_counter() - start)
        memory, squares = max(memory, own_memory() - before), squares + pipeline.squares.after
    squares = world.allreduce(squares) / chosen.rounds
    wanted = 2 * (k - 1) * len(list(chunks(size, size, k)))
    found = world.gather((digest(result[:period]), world.messages, pipeline.sent, memory, world.longest))
    if found is None:
        return
    total = torch.zeros(period, dtype=torch.float64)
    for center in range(k):
        total += values(center, period)
    exact = (total / k).float()
    ends = [exact] * (size // period) + ([exact[: size % period]] if size % period else [])
    after = sum(float(torch.dot(part.double(), part.double())) for part in ends)
    assert {bits for bits, *_ in found} == {digest(exact)}, "the bits of the mean"
    assert abs(squares - after) <= 1e-9 * after, "the norm of eq. 4"
    sent, messages = [one[2] for one in found], [one[1] for one in found]
    assert sum(sent) == 2 * (k - 1) * 4 * size, "bytes sent"
    assert set(messages) == {wanted}, "messages: a row to each other leader, and a mean to each, of every chunk"
    print(
        json.dumps(
            {
                "centers": k,
                "floats": size,
                "seconds": statistics.median(seconds),
                "messages": max(messages),
                "longest message (KiB)": max(one[4] for one in found) / 1024,
                "sent by a leader / vector": max(sent) / (4 * size),
                "memory of the pipeline (MB)": max(one[3] for one in found) / 1e6,
                "bits": "as a sum in float64, on all ranks",
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
