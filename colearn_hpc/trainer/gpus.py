"""Which GPU is whose on a host: what ``fit`` takes and ``doctor`` shows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from colearn_hpc.errors import ConfigurationError

if TYPE_CHECKING:
    import torch


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process sees, by names that are the same for all processes of a host.

    The numbers of CUDA_VISIBLE_DEVICES do not say it: where Slurm confines a task to its devices, every task has
    a GPU 0.
    """
    import torch

    if not torch.cuda.is_available():
        return ()
    count = torch.cuda.device_count()
    names = [str(getattr(torch.cuda.get_device_properties(index), "uuid", "")) for index in range(count)]
    if all(names) and len(set(names)) == count:
        return tuple(names)
    numbers = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")  # an older torch, or another vendor's
    return tuple(numbers) if len(numbers) == count else tuple(map(str, range(count)))


def choose(seen: Sequence[tuple[str, ...]], host_ranks: Sequence[int]) -> list[int]:
    """The index among its own GPUs that each rank of a data center on one host takes.

    Args:
        seen: of each rank, the GPUs that it sees.
        host_ranks: of each, its place among all ranks of the host, other data centers' included.

    Returns:
        Indices; several ranks see the same index as another GPU if their GPUs differ.

    Raises:
        ConfigurationError: two ranks would have to share a GPU, or a rank sees none.
    """
    if not all(seen):
        raise ConfigurationError(f"{sum(not gpus for gpus in seen)} of {len(seen)} ranks see no GPU")
    apart = len(set(seen)) > 1
    indices = [0] * len(seen) if apart else [place % len(seen[0]) for place in host_ranks]
    taken = {gpus[index] for gpus, index in zip(seen, indices, strict=True)}
    if len(taken) < len(seen):
        found = "; ".join(" ".join(gpus) for gpus in dict.fromkeys(seen)) if apart else str(len(seen[0]))
        raise ConfigurationError(f"{len(seen)} ranks see {found} GPUs")
    return indices


def lost_gpu(device: torch.device) -> str:
    """What CUDA says where this process cannot use its GPU any more; nothing where it can, or trains on no GPU.

    Waits for what the GPU still has to do. An error that leaves the GPU unusable shows up late, and under other names
    (cuBLAS, cuDNN): so it is asked.

    Args:
        device: where this process trains. A CPU run asks no GPU: the first question would take memory there.
    """
    import torch

    if device.type != "cuda" or not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        return ""
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""
