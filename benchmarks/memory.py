"""Peak extra host memory of an exchange, as a multiple of the model's size, on a leader.

Resident memory before the callback holds anything of the model, against the highest while exchanges run: the last
shared model, the mean and the pipeline's slots are all in it.

    python benchmarks/memory.py --centers 2 5 --parameters 58164298
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from common import Participant, answer, parser, ranks, replica, report


def resident(highest: bool = False) -> int:
    """Bytes of this process in memory, now or at most since :func:`forget`."""
    name = "VmHWM:" if highest else "VmRSS:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(parameters: int, codec: str) -> dict[str, Any]:
    """On every rank; the worst of all."""
    from mpi4py import MPI

    from colearn_hpc.algorithm.shared_model import FlatModel

    module = replica(parameters)
    size = 4 * FlatModel.of(module).size
    # MPI's own buffers are not the exchange's: let it make them first.
    warm = Participant(codec)
    warm.start_from(replica(1_000_000))
    warm.average()
    participant = Participant(codec, warm.place)
    forget()
    before = resident()
    participant.start_from(module)
    for _ in range(3):
        participant.average()
    between, peak = resident() - before, resident(highest=True) - before
    return {
        "centers": MPI.COMM_WORLD.size,
        "model (MB)": size / 1e6,
        "codec": codec,
        "between rounds / model": MPI.COMM_WORLD.allreduce(between, MPI.MAX) / size,
        "peak / model": MPI.COMM_WORLD.allreduce(peak, MPI.MAX) / size,
    }


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--centers", type=int, nargs="+", default=[2, 5], help="K (default: %(default)s)")
    options.add_argument("--parameters", type=int, nargs="+", default=[58_164_298], help="(default: %(default)s)")
    options.add_argument("--codec", nargs="+", default=["fp32", "int8"], help="(default: %(default)s)")
    chosen = options.parse_args()
    if chosen.worker:
        torch.set_num_threads(1)
        answer(measure(chosen.parameters[0], chosen.codec[0]))
        return
    rows = []
    for count in chosen.centers:
        for parameters in chosen.parameters:
            for codec in chosen.codec:
                rows.append(ranks(count, __file__, "--parameters", parameters, "--codec", codec))
    report(rows, chosen)


if __name__ == "__main__":
    main()
