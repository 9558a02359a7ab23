"""Checks Exchange.mean and Exchange.distribute_in_center against NumPy, at the boundaries of the chunks."""

import numpy as np
import torch
from mpi4py import MPI

from colearn_hpc.mpi import mean as mean_module
from colearn_hpc.mpi import pipeline
from colearn_hpc.mpi.exchange import Exchange
from colearn_hpc.mpi.topology import DataCenter

mean_module.CHUNK = 64
pipeline.SLICE = 32
center = DataCenter.join()
exchange = Exchange(center)
centers = len(center.topology.centers)
weights = [1.0 + k for k in range(centers)]
for size in (0, 1, 2, 3, centers, 63, 64, 65, 127, 128, 129, 1000):
    for dtype in (torch.float32, torch.float64):
        rows = [np.random.default_rng(k).standard_normal(size).astype(str(dtype)[6:]) for k in range(centers)]
        exact = sum(w * row.astype(np.float64) for w, row in zip(weights, rows, strict=True)) / sum(weights)
        vector = torch.from_numpy(rows[center.index].copy())
        sent = exchange.bytes_sent
        exchange.mean(vector, weights)
        exchange.distribute_in_center(vector)
        np.testing.assert_allclose(vector.numpy(), exact.astype(vector.numpy().dtype), rtol=1e-6, atol=1e-12)
        assert len(set(MPI.COMM_WORLD.allgather(vector.numpy().tobytes()))) == 1
        # 2 (K-1)/K of the vector, over all leaders: what leaves one arrives at another.
        total = MPI.COMM_WORLD.allreduce(exchange.bytes_sent - sent)
        assert total == 2 * (centers - 1) * size * vector.element_size()

# w⁰: everyone's tensors become the first leader's, of every dtype.
tensors = [torch.full((3,), center.index, dtype=d) for d in (torch.float32, torch.bfloat16, torch.int64, torch.bool)]
tensors += [torch.zeros(0), torch.tensor(center.index), torch.full((2, 3), center.index).t()]
exchange.broadcast(tensors)
assert all((t == 0).all() for t in tensors)
print("all equal", flush=True)
