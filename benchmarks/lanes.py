"""One exchange between data centers of several nodes: by the leaders alone, or by a rank on each node (lanes).

Each node is a network namespace with a link of the given bandwidth to the nodes of other data centers; inside a data
center the limit does not hold. Needs root, ip and tc. Both ways take turns within one run. The bound is 2 (K-1)/K times
the bytes of the vector over the bandwidth of as many links as there are lanes.

    python benchmarks/lanes.py --centers 3 --nodes 2 --rates 1000 200
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from _namespaces import Namespaces
from common import Participant, answer, median, parser, ranks, repeated, replica, report


def measure(centers: int, lanes: list[int], parameters: int, rounds: int, megabits: int) -> list[dict[str, Any]]:
    """On every rank; the figures of the first, by number of lanes."""
    from mpi4py import MPI

    from colearn_hpc import DataCenter
    from colearn_hpc.algorithm.shared_model import FlatModel
    from colearn_hpc.trainer.place import Place

    center = DataCenter.join(centers)
    ways, results = {}, {}
    for count in lanes:
        module = replica(parameters, "resnet")
        ways[count] = Participant("fp32", Place.of(center, lanes=count))
        ways[count].start_from(module)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(center.index)))
        results[count] = module
    size = FlatModel.of(module).size
    steps = {str(count): way.average for count, way in ways.items()}
    seconds = repeated(rounds, steps, MPI.COMM_WORLD.Barrier)
    digests = {FlatModel.of(module).pack().numpy().tobytes() for module in results.values()}
    assert len(digests) == 1, "the number of lanes must not change a bit"
    bound = 2 * (centers - 1) / centers * 4 * size * 8 / (megabits * 1e6)
    return [
        {
            "centers": centers,
            "nodes": center.nodes,
            "Mbit/s": megabits,
            "floats": size,
            "lanes": count,
            "ours (s)": median(seconds[str(count)]),
            "bound (s)": bound / count,
            "ours / bound": median(seconds[str(count)]) / (bound / count),
            "one lane / these": median(seconds[str(lanes[0])]) / median(seconds[str(count)]),
        }
        for count in lanes
    ]


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--centers", type=int, default=3, help="K (default: %(default)s)")
    options.add_argument("--nodes", type=int, default=2, help="of each data center, a rank each (default: %(default)s)")
    options.add_argument("--rates", type=int, nargs="+", default=[1000, 200], help="Mbit/s (default: %(default)s)")
    options.add_argument("--parameters", type=int, default=20_000_000, help="(default: %(default)s)")
    options.add_argument("--rounds", type=int, default=3, help="of each, in turn (default: %(default)s)")
    chosen = options.parse_args()
    if chosen.worker:
        torch.set_num_threads(1)
        lanes = [1, chosen.nodes]
        answer(measure(chosen.centers, lanes, chosen.parameters, chosen.rounds, chosen.rates[0]))
        return
    rows = []
    for megabits in chosen.rates:
        with (
            tempfile.TemporaryDirectory() as folder,
            Namespaces(
                "collane", "10.95.0", chosen.centers, megabits, Path(folder), congestion="cubic", nodes=chosen.nodes
            ) as links,
        ):
            arguments = ["--centers", chosen.centers, "--nodes", chosen.nodes, "--rates", megabits]
            arguments += ["--parameters", chosen.parameters, "--rounds", chosen.rounds]
            rows += ranks(chosen.centers * chosen.nodes, __file__, *arguments, mpirun=links.mpirun_options())
    report(rows, chosen)


if __name__ == "__main__":
    main()
