"""The exchange over links of a given bandwidth, against the bound that the link sets. Needs root, ip and tc.

Each data center is a network namespace with a link of its own to a bridge, limited both ways by `tc tbf`. The bound
is 2 (K-1)/K times the bytes of the vector over the bandwidth: what any Allreduce must send. Beside it, what TCP makes
of that bound on these links: the same bytes from all to all through plain sockets, with nothing to compute. Bytes on
the wire are read from the interfaces, headers and acknowledgements included, beside our ledger's (payload).

    python benchmarks/wan.py --centers 5 --rates 1000 200 50 --codec fp32 int8
"""

from __future__ import annotations

import argparse
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from _namespaces import Namespaces
from common import Participant, answer, median, parser, ranks, replica, report

NETWORK = "10.92.0"


def sent_by_link() -> int:
    """Bytes that left this namespace so far."""
    # /proc follows the process; /sys shows the namespace in which it was mounted.
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("eth0:"))
    return int(line.split(":")[1].split()[8])


class Sockets:
    """A plain TCP connection from each rank to each other. Collective over all ranks."""

    def __init__(self, world: Any) -> None:
        listener = socket.create_server(("", 0), backlog=world.size)
        addresses = world.allgather((socket.gethostname(), listener.getsockname()[1]))
        self.out = [socket.create_connection((f"{NETWORK}.{k + 1}", addresses[k][1])) for k in others(world)]
        self.into = [listener.accept()[0] for _ in self.out]

    def exchange(self, nbytes: int) -> None:
        """Send ``nbytes`` in all, the same to each other rank, and receive as much."""
        each = nbytes // len(self.out)
        threads = [threading.Thread(target=_send, args=(s, each)) for s in self.out]
        threads += [threading.Thread(target=_receive, args=(s, each)) for s in self.into]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def others(world: Any) -> list[int]:
    return [k for k in range(world.size) if k != world.rank]


def _send(connection: socket.socket, nbytes: int) -> None:
    block = bytes(1 << 20)
    while nbytes:
        part = min(nbytes, len(block))
        connection.sendall(block[:part])
        nbytes -= part


def _receive(connection: socket.socket, nbytes: int) -> None:
    while nbytes:
        nbytes -= len(connection.recv(min(nbytes, 1 << 20)))


def measure(parameters: int, rounds: int, megabits: int, codec: str, with_raw: bool) -> dict[str, Any] | None:
    """On every rank; the figures of the first."""
    from mpi4py import MPI

    from colearn_hpc.algorithm.shared_model import FlatModel

    world = MPI.COMM_WORLD
    participant = Participant(codec)
    module = replica(parameters, "resnet")
    participant.start_from(module)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(world.rank)))
    size = FlatModel.of(module).size
    vector = torch.ones(size)
    k = world.size
    plain = 2 * (k - 1) * 4 * size  # bytes in all
    sockets = Sockets(world)
    seconds: dict[str, list[float]] = {"ours": [], "sockets": [], "raw": []}
    wire, ledger = [], []
    for _ in range(rounds):
        world.Barrier()
        before, start = sent_by_link(), time.perf_counter()
        participant.average()
        world.Barrier()
        seconds["ours"].append(time.perf_counter() - start)
        wire.append(world.allreduce(sent_by_link() - before))
        ledger.append(world.allreduce(participant.report.bytes_sent))
        world.Barrier()
        start = time.perf_counter()
        sockets.exchange(plain // k)
        world.Barrier()
        seconds["sockets"].append(time.perf_counter() - start)
        if with_raw and codec == "fp32":
            world.Barrier()
            start = time.perf_counter()
            world.Allreduce(MPI.IN_PLACE, vector.numpy())
            world.Barrier()
            seconds["raw"].append(time.perf_counter() - start)
    bound = 2 * (k - 1) / k * 4 * size * 8 / (megabits * 1e6)
    return {
        "centers": k,
        "Mbit/s": megabits,
        "floats": size,
        "codec": codec,
        "ours (s)": median(seconds["ours"]),
        "bound (s)": bound,
        "ours / bound": median(seconds["ours"]) / bound,
        "sockets / bound": median(seconds["sockets"]) / bound,
        "raw Allreduce (s)": median(seconds["raw"]) if seconds["raw"] else "",
        "ledger (MB)": median(ledger) / 1e6,
        "wire (MB)": median(wire) / 1e6,
        "wire / ledger": median(wire) / median(ledger),
        "ledger / float32": median(ledger) / plain,
    }


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--centers", type=int, default=5, help="K (default: %(default)s)")
    options.add_argument("--rates", type=int, nargs="+", default=[1000, 200, 50], help="Mbit/s (default: %(default)s)")
    options.add_argument("--codec", nargs="+", default=["fp32"], help="fp32, bf16, fp16, int8 (default: %(default)s)")
    options.add_argument("--parameters", type=int, default=58_164_298, help="(default: %(default)s)")
    options.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    options.add_argument("--congestion", default="cubic", help="TCP's congestion control (default: %(default)s)")
    options.add_argument("--round-trip", type=float, default=0.0, help="ms (default: that of this machine)")
    options.add_argument("--raw", action="store_true", help="also a raw Allreduce, which keeps all cores busy waiting")
    chosen: argparse.Namespace = options.parse_args()
    if chosen.worker:
        torch.set_num_threads(1)
        answer(measure(chosen.parameters, chosen.rounds, chosen.rates[0], chosen.codec[0], chosen.raw))
        return
    rows = []
    for megabits in chosen.rates:
        with (
            tempfile.TemporaryDirectory() as folder,
            Namespaces(
                "colwan",
                NETWORK,
                chosen.centers,
                megabits,
                Path(folder),
                congestion=chosen.congestion,
                round_trip=chosen.round_trip,
            ) as links,
        ):
            for codec in chosen.codec:
                arguments = ["--parameters", chosen.parameters, "--rounds", chosen.rounds]
                arguments += ["--rates", megabits, "--codec", codec, *(["--raw"] if chosen.raw else [])]
                rows.append(ranks(chosen.centers, __file__, *arguments, mpirun=links.mpirun_options()))
    report(rows, chosen)


if __name__ == "__main__":
    main()
