"""Equation 2 on the wire: the weighted mean of the leaders' vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from colearn_hpc import faults
from colearn_hpc.algorithm.shared_model import weighted_mean

if TYPE_CHECKING:
    from mpi4py import MPI

CHUNK = 1 << 24  # elements per message round: bounds memory, and counts stay far below 2^31 bytes


def mean_over_leaders(leaders: MPI.Comm, vector: Tensor, weights: Sequence[float]) -> int:
    """Replace the leaders' vectors by their weighted mean (eq. 2), in place. Collective over ``leaders``.

    An Allreduce in two halves: each leader is sent its slice of every vector, sums the slices in
    float64 in the order of the data centers, and sends the result to all. The bits therefore do not depend
    on the MPI's vendor, algorithm or message sizes. Bytes sent: 2 (K-1)/K of the vector per leader.

    To be called right after a meeting: it blocks.

    Args:
        leaders: one rank per data center that takes part, in the order of the data centers.
        vector: contiguous CPU vector, shape ``(n,)``, the same n on all leaders.
        weights: n_k per rank of ``leaders``; whoever has 0 takes the mean without contributing to it.

    Returns:
        Payload bytes this process sent.
    """
    centers, me = leaders.Get_size(), leaders.Get_rank()
    if centers == 1:
        return 0
    giving = [k for k in range(centers) if weights[k]]
    sent = 0
    for block in vector.split(CHUNK):
        counts = [len(part) for part in torch.arange(block.numel()).tensor_split(centers)]
        offsets = [sum(counts[:k]) for k in range(centers)]
        rows = torch.empty((centers, counts[me]), dtype=block.dtype)
        received = ([counts[me]] * centers, [counts[me] * k for k in range(centers)])
        faults.reached("exchange")
        leaders.Alltoallv([block.numpy(), (counts, offsets)], [rows.numpy(), received])
        result = weighted_mean([rows[k] for k in giving], [weights[k] for k in giving])
        gathered = block.clone()
        leaders.Allgatherv(result.numpy(), [gathered.numpy(), (counts, offsets)])
        block.copy_(gathered)
        sent += ((block.numel() - counts[me]) + (centers - 1) * counts[me]) * block.element_size()
    return sent
