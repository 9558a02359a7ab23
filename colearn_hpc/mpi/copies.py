"""Copy one rank's tensors into those of all others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mpi4py import MPI


def copy_to_all(comm: MPI.Comm, root: int, tensors: Iterable[Tensor]) -> None:
    """Copy the root's tensors into everyone's, in place. Collective over ``comm``.

    Args:
        comm: the ranks.
        root: whose tensors.
        tensors: any dtype, on CPU or GPU; the same shapes on all ranks.
    """
    for tensor in tensors:
        source = tensor.detach()
        staged = source.cpu().contiguous()
        flat = staged.reshape(-1).view(torch.uint8) if staged.numel() else staged.reshape(-1)
        for block in flat.split(1 << 30):  # counts stay below 2^31
            comm.Bcast(block.numpy(), root)
        if comm.Get_rank() != root:
            with torch.no_grad():
                source.copy_(staged)
