"""Before anyone knows of data centers: who am I, and has everyone read a valid configuration?"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from colearn_hpc.mpi.wire import allgather_plain

_RANK_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


# Open MPI over TCP asks the receiver before it sends more than 64 KiB. On a slow link the answer waits in the
# receiver's own full send buffers behind slices of the mean, for a second or more: slices must go without asking.
_TCP_LIMITS = {f"OMPI_MCA_btl_tcp_{limit}": str((1 << 19) + 4096) for limit in ("eager_limit", "max_send_size")}


def prepare_environment() -> str:
    """Tell Open MPI, by its environment variables, to send a slice of float64 over TCP without asking first.

    MPI reads them when it starts. What the user has set stays.

    Returns:
        Where MPI runs already: what to do about it; otherwise nothing.
    """
    missing = {name: value for name, value in _TCP_LIMITS.items() if name not in os.environ}
    if missing and "mpi4py.MPI" in sys.modules:
        settings = " ".join(f"{name}={value}" for name, value in missing.items())
        return (
            f"MPI was started before colearn_hpc could prepare it: on slow links set {settings} in the environment, or "
            "import mpi4py.MPI after DataCenter.join()"
        )
    os.environ.update(missing)
    return ""


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
    prepare_environment()
    from mpi4py import MPI

    return list(dict.fromkeys(filter(None, allgather_plain(MPI.COMM_WORLD, error))))


def told_by_all(content: list[str]) -> list[list[str]]:
    """Every rank's words, by rank. Collective over the world; ranks start together, so this may block."""
    prepare_environment()
    from mpi4py import MPI

    return allgather_plain(MPI.COMM_WORLD, content)


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
