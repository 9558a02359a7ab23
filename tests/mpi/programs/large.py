"""A mean of vectors over 2 GiB, in place: run by hand, for it needs 5 GB on two ranks.

mpirun -n 2 python tests/mpi/programs/large.py [ELEMENTS]
"""

import sys

import torch
from mpi4py import MPI

from colearn_hpc.mpi.mean import begin_mean
from colearn_hpc.mpi.pipeline import Vector

world = MPI.COMM_WORLD
size = int(sys.argv[1]) if len(sys.argv) > 1 else 600_000_000
vector = torch.arange(size, dtype=torch.int32).view(torch.float32).fill_(0)
vector.copy_(torch.arange(size, dtype=torch.int32).remainder_(1 << 20)).add_(world.rank)
sent = begin_mean(world, Vector(vector), vector, [1.0] * world.size).finish().bytes_sent
offset = (world.size - 1) / 2
for start in range(0, size, 1 << 24):
    part = vector[start : start + (1 << 24)]
    expected = torch.arange(start, start + len(part)).remainder_(1 << 20).float() + offset
    assert torch.equal(part, expected), start
total = world.allreduce(sent)
assert total == 2 * (world.size - 1) * 4 * size
print(f"rank {world.rank}: {4 * size / 2**30:.2f} GiB, every element right, {sent} bytes sent", flush=True)
