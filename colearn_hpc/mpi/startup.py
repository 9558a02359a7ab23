"""Before anyone knows of data centers: who am I, and has everyone read a valid configuration?"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

_RANK_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


def launched_as(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, size) as the launcher's environment says, without starting MPI; (0, 1) without a launcher."""
    for rank, size in _RANK_VARIABLES:
        if environ.get(rank, "").isdigit() and environ.get(size, "").isdigit():
            return int(environ[rank]), int(environ[size])
    return 0, 1


def all_errors(error: str) -> list[str]:
    """Every rank's error text, distinct, in order of rank, empty ones left out. Collective over the world.

    Ranks start together, so this may block; it is the one meeting that needs no data centers.
    """
    from mpi4py import MPI

    return list(dict.fromkeys(filter(None, MPI.COMM_WORLD.allgather(error))))


def leave_together(patience: float = 10.0) -> None:
    """Wait, but not for ever, until every rank is about to exit. Collective over the world.

    The launcher kills all others when the first rank exits with an error: whoever has a message to
    print must have printed it by then.
    """
    from mpi4py import MPI

    deadline = time.monotonic() + patience
    request = MPI.COMM_WORLD.Ibarrier()
    while not request.Test() and time.monotonic() < deadline:
        time.sleep(0.01)
