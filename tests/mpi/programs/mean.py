"""Checks Transfer against NumPy, at the boundaries of chunks and shares, with every number of lanes.

usage: mean.py RANKS_PER_CENTER
"""

import math
import sys

import numpy as np
import torch
from mpi4py import MPI

from colearn_hpc.mpi import lanes as lanes_module
from colearn_hpc.mpi import pipeline
from colearn_hpc.mpi.exchange import Exchange
from colearn_hpc.mpi.pipeline import Vector
from colearn_hpc.mpi.topology import DataCenter

world = MPI.COMM_WORLD
ranks_per_center = int(sys.argv[1])
lanes_module.CHUNK = 64
pipeline.SLICE = 32
center = DataCenter.join(world.size // ranks_per_center)
centers = len(center.topology.centers)
weights = [1.0 + k for k in range(centers)]
for lanes in range(1, ranks_per_center + 1):
    exchange = Exchange(center, lanes=lanes)
    transfer = exchange.transfer
    assert world.allreduce(transfer.carries) == (centers * lanes if centers > 1 else 1)
    for size in (0, 1, 2, 3, centers, 63, 64, 65, 127, 128, 129, 255, 256, 257, 513, 1000):
        for dtype in (torch.float32, torch.float64):
            rows = [np.random.default_rng(k).standard_normal(size).astype(str(dtype)[6:]) for k in range(centers)]
            exact = sum(w * row.astype(np.float64) for w, row in zip(weights, rows, strict=True)) / sum(weights)
            exact = exact.astype(rows[0].dtype)
            source, result = Vector(torch.from_numpy(rows[center.index])), torch.full((size,), math.nan, dtype=dtype)
            previous, parameters = torch.ones(size, dtype=dtype), 2 * size // 3
            taken = None
            if transfer.carries:
                taken = transfer.take(source, result, weights, parameters, previous)
            taken = transfer.spread(result, taken)
            np.testing.assert_allclose(result.numpy(), exact, rtol=1e-6, atol=1e-12)
            assert len(set(world.allgather(result.numpy().tobytes()))) == 1
            if center.is_leader:
                p = result[:parameters].double()
                assert taken.finite and math.isclose(taken.squares.after, float(p @ p), rel_tol=1e-12)
                assert math.isclose(taken.squares.change, float((p - 1) @ (p - 1)), rel_tol=1e-12)
                apart = torch.from_numpy(rows[center.index])[:parameters].double() - p
                assert math.isclose(taken.distance, float(apart @ apart), rel_tol=1e-5, abs_tol=1e-12)
            # 2 (K-1)/K of the vector, over all leaders: what leaves one arrives at another.
            total = world.allreduce(taken.bytes_sent if center.is_leader else 0)
            assert total == 2 * (centers - 1) * size * result.element_size()
            if center.is_leader:
                transfer.mean_of_leaders(source.vector, weights)
                assert torch.equal(source.vector, result)

# w⁰: everyone's tensors become the first leader's, of every dtype.
tensors = [torch.full((3,), center.index, dtype=d) for d in (torch.float32, torch.bfloat16, torch.int64, torch.bool)]
tensors += [torch.zeros(0), torch.tensor(center.index), torch.full((2, 3), center.index).t()]
exchange.broadcast(tensors)
assert all((t == 0).all() for t in tensors)
print("all equal", flush=True)
