"""The exchange over links of a given bandwidth, against the bound that the link sets. Needs root, ip and tc.

Each data center is a network namespace with a link of its own to a bridge, limited both ways by `tc tbf`. The bound
is 2 (K-1)/K times the bytes of the vector over the bandwidth: what any Allreduce must send. Bytes on the wire are read
from the interfaces, headers and acknowledgements included, beside our ledger's (payload).

    python benchmarks/wan.py --centers 5 --rates 1000 200 50 --codec fp32 int8
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import Participant, answer, median, parser, ranks, replica, report

NETWORK, BRIDGE = "10.92.0", "colearnwan"
# mpirun starts its daemon on each "host" by this; HOST is a namespace.
AGENT = """#!/bin/bash
while [[ "$1" == -* ]]; do shift; done
host=$1; shift
exec ip netns exec "$host" unshare --uts /bin/bash -c 'hostname "$0"; exec /bin/bash -c "$*"' "$host" "$@"
"""


def up(centers: int, megabits: int) -> None:
    """Namespaces wan0 … with links of so many Mbit/s."""
    commands = [
        f"ip link add {BRIDGE} type bridge",
        f"ip addr add {NETWORK}.254/24 dev {BRIDGE}",
        f"ip link set {BRIDGE} up",
    ]
    for k in range(centers):
        limit = f"root tbf rate {megabits}mbit burst {max(128, megabits)}kb latency 100ms"
        commands += [
            f"ip netns add wan{k}",
            f"ip link add colearnw{k} type veth peer name eth0 netns wan{k}",
            f"ip link set colearnw{k} master {BRIDGE} up",
            f"ip -n wan{k} link set lo up",
            f"ip -n wan{k} addr add {NETWORK}.{k + 1}/24 dev eth0",
            f"ip -n wan{k} link set eth0 up",
            f"tc -n wan{k} qdisc add dev eth0 {limit}",
            f"tc qdisc add dev colearnw{k} {limit}",
        ]
    for command in commands:
        subprocess.run(command.split(), check=True)


def down() -> None:
    names = subprocess.run(["ip", "netns", "list"], text=True, capture_output=True).stdout.split()
    for name in [n for n in names if n.startswith("wan") and n[3:].isdigit()]:
        subprocess.run(["ip", "netns", "del", name])
    subprocess.run(["ip", "link", "del", BRIDGE], stderr=subprocess.DEVNULL)


def sent_by_link() -> int:
    """Bytes that left this namespace so far."""
    # /proc follows the process; /sys shows the namespace in which it was mounted.
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("eth0:"))
    return int(line.split(":")[1].split()[8])


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
    seconds: dict[str, list[float]] = {"ours": [], "raw": []}
    wire, ledger = [], []
    for _ in range(rounds):
        world.Barrier()
        before, start = sent_by_link(), time.perf_counter()
        participant.average()
        world.Barrier()
        seconds["ours"].append(time.perf_counter() - start)
        wire.append(world.allreduce(sent_by_link() - before))
        ledger.append(world.allreduce(participant.record.bytes_sent))
        if with_raw and codec == "fp32":
            world.Barrier()
            start = time.perf_counter()
            world.Allreduce(MPI.IN_PLACE, vector.numpy())
            world.Barrier()
            seconds["raw"].append(time.perf_counter() - start)
    k = world.size
    bound = 2 * (k - 1) / k * 4 * size * 8 / (megabits * 1e6)
    plain = 2 * (k - 1) * 4 * size
    return {
        "centers": k,
        "Mbit/s": megabits,
        "floats": size,
        "codec": codec,
        "ours (s)": median(seconds["ours"]),
        "bound (s)": bound,
        "ours / bound": median(seconds["ours"]) / bound,
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
    options.add_argument("--raw", action="store_true", help="also a raw Allreduce, which keeps all cores busy waiting")
    chosen: argparse.Namespace = options.parse_args()
    if chosen.worker:
        torch.set_num_threads(1)
        answer(measure(chosen.parameters, chosen.rounds, chosen.rates[0], chosen.codec[0], chosen.raw))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        agent = Path(folder) / "agent.sh"
        agent.write_text(AGENT)
        agent.chmod(0o755)
        for megabits in chosen.rates:
            down()
            try:
                up(chosen.centers, megabits)
                hosts = ",".join(f"wan{k}:1" for k in range(chosen.centers))
                only = f"{NETWORK}.0/24"
                mpirun = ["--prtemca", "plm_ssh_agent", str(agent), "--prtemca", "prte_if_include", only]
                mpirun += ["--mca", "btl_tcp_if_include", only, "--mca", "btl", "self,tcp", "--mca", "pml", "ob1"]
                mpirun += ["--bind-to", "none", "--host", hosts]
                for codec in chosen.codec:
                    arguments = ["--parameters", chosen.parameters, "--rounds", chosen.rounds]
                    arguments += ["--rates", megabits, "--codec", codec, *(["--raw"] if chosen.raw else [])]
                    rows.append(ranks(chosen.centers, __file__, *arguments, mpirun=mpirun))
            finally:
                down()
    report(rows, chosen)


if __name__ == "__main__":
    main()
