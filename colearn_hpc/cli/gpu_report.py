"""What can be asked of GPUs before a run: how the driver shares them, and whether a data center's collective works.

The collective is a child process of each rank, which has an end: NCCL with a wrong network waits for minutes, and a
GPU that is tried here should be free again when training wants it.

    python -m colearn_hpc.cli.gpu_report ADDRESS PORT RANK SIZE BACKEND DEVICE
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta

from colearn_hpc.mpi.topology import DataCenter

_PATIENCE = 90.0  # s for a collective: the first one of a process loads CUDA, and finds the networks
_QUERY = ("nvidia-smi", "--query-gpu=uuid,compute_mode,mig.mode.current", "--format=csv,noheader")


def modes_of(text: str) -> dict[str, tuple[str, bool]]:
    """GPU -> (compute mode, whether it is divided into MIG instances), from what ``nvidia-smi`` prints. The names are
    those of :func:`~colearn_hpc.trainer.gpus.visible_gpus`."""
    found = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3:
            found[fields[0].removeprefix("GPU-")] = (fields[1], fields[2] == "Enabled")
    return found


def gpu_modes() -> dict[str, tuple[str, bool]]:
    """:func:`modes_of` this machine's GPUs; empty where the driver's program is not there, or does not answer."""
    try:
        return modes_of(subprocess.run(_QUERY, capture_output=True, text=True, timeout=20).stdout)
    except (OSError, subprocess.TimeoutExpired):
        return {}


def try_collective(center: DataCenter, backend: str, device: str, patience: float = _PATIENCE) -> str:
    """Sum a number over the ranks of this data center by torch; what went wrong, or nothing. Collective over the data
    center.

    Args:
        center: this process's.
        backend: of torch.distributed.
        device: of this rank, as torch names it.
        patience: seconds after which it is given up.
    """
    address = "127.0.0.1" if center.nodes == 1 else socket.gethostname()
    where = center.comm.bcast((address, _free_port()) if center.is_leader else None, 0)
    arguments = (*where, center.rank, center.size, backend, device)
    command = [sys.executable, "-m", __name__, *map(str, arguments)]
    # It is no rank of MPI's, whatever its parent is.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PRTE_", "PMI_"))}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired:
        return f"no answer in {patience:.0f} s"
    said = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else said[-1] if said else f"exit code {done.returncode}"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


def main(argv: Sequence[str]) -> int:
    """The child: returns 0 where the sum is right."""
    import torch
    from torch import distributed

    address, port, rank, size, backend, device = argv
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device))
    store = distributed.TCPStore(address, int(port), int(size), rank == "0", timedelta(seconds=60))
    distributed.init_process_group(backend, store=store, rank=int(rank), world_size=int(size))
    number = torch.full((1 << 16,), float(rank) + 1, device=device)
    distributed.all_reduce(number)
    found, expected = number.mean().item(), int(size) * (int(size) + 1) / 2
    distributed.destroy_process_group()
    if found != expected:
        print(f"the sum over the ranks is {found}, and should be {expected}", file=sys.stderr)
    return int(found != expected)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
