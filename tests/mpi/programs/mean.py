"""Checks Means against NumPy, at the boundaries of chunks and shares, with every number of lanes.

usage: mean.py RANKS_PER_CENTER
"""

import math
import sys

import numpy as np
import torch
from mpi4py import MPI

from colearn_hpc.between import Offer, Vector
from colearn_hpc.algorithm import slices
from colearn_hpc.mpi import site
from colearn_hpc.mpi.topology import DataCenter
from colearn_hpc.trainer.place import Place

world = MPI.COMM_WORLD
ranks_per_center = int(sys.argv[1])
site.CHUNK = 64
slices.SLICE = 32
center = DataCenter.join(world.size // ranks_per_center)
centers = len(center.topology.centers)
weights = [1.0 + k for k in range(centers)]
for lanes in range(1, ranks_per_center + 1):
    place = Place.of(center, lanes)
    means, everyone = place.means, tuple(range(centers))
    assert world.allreduce(means.carries) == (centers * lanes if centers > 1 else 1)
    for size in (0, 1, 2, 3, centers, 63, 64, 65, 127, 128, 129, 255, 256, 257, 513, 1000):
        for dtype in (torch.float32, torch.float64):
            rows = [np.random.default_rng(k).standard_normal(size).astype(str(dtype)[6:]) for k in range(centers)]
            exact = sum(w * row.astype(np.float64) for w, row in zip(weights, rows, strict=True)) / sum(weights)
            exact = exact.astype(rows[0].dtype)
            source, result = Vector(torch.from_numpy(rows[center.index])), torch.full((size,), math.nan, dtype=dtype)
            previous, parameters = torch.ones(size, dtype=dtype), 2 * size // 3
            facts = None
            if means.carries:
                facts = means.take(Offer(source, result, weights, parameters, previous), everyone)
            facts = means.spread(result, facts)
            np.testing.assert_allclose(result.numpy(), exact, rtol=1e-6, atol=1e-12)
            assert len(set(world.allgather(result.numpy().tobytes()))) == 1
            if center.is_leader:
                p = result[:parameters].double()
                assert facts.finite and math.isclose(facts.squares.after, float(p @ p), rel_tol=1e-12)
                assert math.isclose(facts.squares.change, float((p - 1) @ (p - 1)), rel_tol=1e-12)
                apart = torch.from_numpy(rows[center.index])[:parameters].double() - p
                assert math.isclose(facts.distance, float(apart @ apart), rel_tol=1e-5, abs_tol=1e-12)
            # 2 (K-1)/K of the vector, over all leaders: what leaves one arrives at another.
            total = world.allreduce(facts.bytes_sent if center.is_leader else 0)
            assert total == 2 * (centers - 1) * size * result.element_size()
            if center.is_leader:
                # Without a last shared model the mean may take its source's place.
                alone = Offer(source, source.vector, weights, size)
                place.between.begin_mean(alone, everyone).finish()
                assert torch.equal(source.vector, result) or lanes > 1

# w⁰: everyone's tensors become the first leader's, of every dtype.
tensors = [torch.full((3,), center.index, dtype=d) for d in (torch.float32, torch.bfloat16, torch.int64, torch.bool)]
tensors += [torch.zeros(0), torch.tensor(center.index), torch.full((2, 3), center.index).t()]
if center.is_leader:
    place.between.broadcast(tensors)
place.site.copy_to_all(tensors)
assert all((t == 0).all() for t in tensors)
print("all equal", flush=True)
