"""One mean of a federation: K sites over TLS and gRPC to a coordinator, on links of a given bandwidth and delay.

A site's time is from the end of the meeting to the mean in its vector, eq. 4's norms measured; a round's is from the
first site's begin to the last one's end. The bound is what the links set: S/B for the bytes S of a model, or K S/B of
the coordinator's link where that is longer. All mean models are compared, bit for bit, with a plain loop in float64.

Beside it, on the same links: the MPI exchange of K data centers of one world, and peers, each installed from the
registry into an environment of its own. Theirs is a round of their own that sends the same tensors to the clients and
back, and takes the mean.

    python benchmarks/federation.py --cases loopback                 # as any user
    python benchmarks/federation.py --cases 200 50 coordinator       # as root: namespaces and tc
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _federated
import _federated_peers
from _namespaces import Namespaces
from common import Participant, answer, median, parser, ranks, replica, report

NETWORK = "10.97.0"
RELAY = Path(__file__).with_name("_relay.py")


@dataclass(frozen=True)
class Case:
    """Links.

    Attributes:
        sites: Mbit/s of each site's link; 0: not limited.
        coordinator: of the coordinator's.
        round_trip: ms between a site and the coordinator.
        bar: what is asked for, as a factor of the bound; 0: nothing is.
    """

    sites: int
    coordinator: int
    round_trip: int = 0
    bar: float = 0.0

    def bound(self, nbytes: int, sites: int) -> float:
        """Seconds that the links need for a model from and to each of ``sites``; 0: they set none."""
        times = [
            nbytes * count * 8 / (rate * 1e6) for count, rate in ((1, self.sites), (sites, self.coordinator)) if rate
        ]
        return max(times, default=0.0)


CASES = {
    "loopback": Case(0, 0),
    "200": Case(200, 0, bar=1.15),
    "50": Case(50, 0, bar=1.15),
    "coordinator": Case(200, 200, bar=1.2),
    "200, 50 ms": Case(200, 0, 50, bar=1.3),
    "200, 150 ms": Case(200, 0, 150, bar=1.3),
}


@contextlib.contextmanager
def links(case: Case, sites: int, folder: Path) -> Iterator[Namespaces | None]:
    """A namespace for each site and, the last one, for the coordinator; None on loopback."""
    if case == CASES["loopback"]:
        yield None
        return
    rates = [case.sites] * sites + [case.coordinator]
    with Namespaces("colfed", NETWORK, sites + 1, rates, folder, congestion="cubic") as made:
        yield made


@contextlib.contextmanager
def relays(case: Case, net: Namespaces | None, folder: Path) -> Iterator[None]:
    """At each site the stretch of the way that takes time, listening on the coordinator's port; maybe there is none."""
    made = []
    if net is not None and case.round_trip:
        for k in range(len(net.hosts) - 1):
            way = [_federated.PORT, net.address(len(net.hosts) - 1), _federated.PORT, case.round_trip, case.sites]
            made.append(_federated.Process([sys.executable, RELAY, *way], folder / f"relay{k}.log", net.inside(k)))
    try:
        while not all("relaying" in process.said() for process in made):
            time.sleep(0.02)
        yield
    finally:
        for process in made:
            process.kill()


def ours(case: Case, chosen: Any, folder: Path) -> dict[str, Any]:
    """A real coordinator and K sites; what a mean takes, and costs."""
    count, size = chosen.sites, chosen.parameters
    names = [f"site{k}" for k in range(count)]
    running: list[_federated.Process] = []
    with links(case, count, folder) as net, relays(case, net, folder):
        server = net.address(count) if net else "127.0.0.1"
        agreed = _federated.agree(folder, names, "127.0.0.1" if case.round_trip else server)
        try:
            coordinator = _federated.coordinator(agreed, net.inside(count) if net else ())
            running.append(coordinator)
            base = coordinator.used()
            for k, name in enumerate(names):
                inside = net.inside(k) if net else ()
                command = [sys.executable, _federated.SITE, agreed, name, folder / name, size, chosen.rounds + 1, 0]
                running.append(_federated.Process(command, folder / f"{name}.log", inside))
            sites = [process for process in running if process.log.stem in names]
            while not all((folder / name / "done").exists() for name in names):
                if any(site.code for site in sites) or coordinator.code:
                    sys.exit("\n".join(process.said()[-2000:] for process in (*sites, coordinator)))
                used = coordinator.used()
                time.sleep(0.02)
        finally:
            for process in running:
                process.kill()
    if {(folder / name / "done").read_text() for name in names} != {
        _federated.expected(size, chosen.rounds + 1, count)
    }:
        sys.exit("the mean has other bits than the loop over eq. 2")
    lines = [[json.loads(line) for line in (folder / name / "rounds.jsonl").read_text().splitlines()] for name in names]
    whole = [max(line["end"] for line in one) - min(line["start"] for line in one) for one in zip(*lines, strict=True)]
    cpu = median([line["cpu"] for one in lines for line in one[1:]])
    gigabytes = 4 * size / 1e9
    return {
        "seconds": whole[1:],  # the first makes the connections
        "coordinator CPU s / GB": (used.cpu - base.cpu) / (gigabytes * count * len(whole)),
        "site CPU s / GB": cpu / gigabytes,
        "coordinator over base (MiB)": used.peak - base.memory,
        "version": f"colearn_hpc {_version('colearn_hpc')}, grpcio {_version('grpcio')}",
    }


def mpi(case: Case, chosen: Any, folder: Path) -> dict[str, Any]:
    """The exchange of K data centers of one MPI world, on the links that the sites have."""
    with links(case, chosen.sites, folder) as net:
        options = net.mpirun_options() if net else ()
        arguments = ["--parameters", chosen.parameters, "--rounds", chosen.rounds]
        return ranks(chosen.sites, __file__, *arguments, mpirun=options)


def exchange(parameters: int, rounds: int) -> dict[str, Any]:
    """On every rank of :func:`mpi`."""
    import torch
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    torch.set_num_threads(1)
    participant, module = Participant("fp32"), replica(parameters, "one")
    participant.start_from(module)
    seconds = []
    for _ in range(rounds + 1):
        world.Barrier()
        start = time.perf_counter()
        participant.average()
        world.Barrier()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[1:], "version": MPI.Get_library_version().split(",")[0].strip("\0\n ")}


def flower(case: Case, chosen: Any, folder: Path) -> dict[str, Any]:
    """Flower's Message API."""
    with links(case, chosen.sites, folder) as net, relays(case, net, folder):
        return _federated_peers.flower(net, bool(case.round_trip), chosen, folder)


def nvflare(case: Case, chosen: Any, folder: Path) -> dict[str, Any]:
    """NVFlare over gRPC."""
    with links(case, chosen.sites, folder) as net, relays(case, net, folder):
        return _federated_peers.nvflare(net, bool(case.round_trip), chosen, folder)


SYSTEMS = {"ours": ours, "MPI": mpi, "Flower": flower, "NVFlare": nvflare}


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--cases", nargs="+", default=["loopback"], choices=CASES, help="links (default: %(default)s)")
    options.add_argument(
        "--systems", nargs="+", default=["ours", "MPI"], choices=SYSTEMS, help="(default: %(default)s)"
    )
    options.add_argument(
        "--peers", type=Path, default=Path("runs/peers"), help="their environments (default: %(default)s)"
    )
    options.add_argument("--sites", type=int, default=5, help="K (default: %(default)s)")
    options.add_argument("--parameters", type=int, default=58_164_298, help="(default: %(default)s)")
    options.add_argument("--rounds", type=int, default=2, help="after one that is thrown away (default: %(default)s)")
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and what was started is ended
    if chosen.worker:
        answer(exchange(chosen.parameters, chosen.rounds))
        return
    rows = []
    for name in chosen.cases:
        case = CASES[name]
        bound = case.bound(4 * chosen.parameters, chosen.sites)
        for system in chosen.systems:
            if system == "MPI" and (case.round_trip or case.coordinator):
                continue  # its connections go from each to each, past a relay and a coordinator
            with tempfile.TemporaryDirectory() as folder:
                found = SYSTEMS[system](case, chosen, Path(folder))
            seconds = median(found["seconds"])
            row = {"links": name, "system": system, "seconds": seconds, "bound (s)": bound or ""}
            row |= {
                "/ bound": seconds / bound if bound else "",
                "bar": case.bar if case.bar and system == "ours" else "",
            }
            for key in ("coordinator CPU s / GB", "site CPU s / GB", "coordinator over base (MiB)", "version"):
                row[key] = found.get(key, "")
            row |= {"all seconds": [round(s, 3) for s in found["seconds"]], "date": time.strftime("%Y-%m-%d")}
            rows.append(row | {"load": round(os.getloadavg()[0], 1)})
            print(f"{name}: {system}: {found}", file=sys.stderr, flush=True)
    kept = json.loads(chosen.json.read_text())["rows"] if chosen.json and chosen.json.exists() else []
    new = {(row["links"], row["system"]) for row in rows}
    report([*(row for row in kept if (row["links"], row["system"]) not in new), *rows], chosen)


if __name__ == "__main__":
    main()
