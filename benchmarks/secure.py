"""What masks cost a mean: sites over TLS and gRPC to a coordinator, with ``secure`` and without, in turn.

A mean's time is from the last site's begin (its model is trained) until the last one has the shared model: proposals of
scales, the numbers, keys, masks, what is kept on the disk, the exchange, eq. 4's norms. The bound is S/B of a site's
link. The shared models of all rounds are the same bits with masks and without, at every site.

    python benchmarks/secure.py --cases 200      # as root: namespaces and tc
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _federated
from common import Participant, median, parser, replica, report
from federation import CASES, Case, links, relays


def site(agreed: Path, name: str, folder: Path, size: int, rounds: int, secure: bool) -> None:
    """One site: FOLDER/rounds.jsonl gets a line a round, with times on the machine's monotonic clock."""
    import torch

    from colearn_hpc import DataCenter
    from colearn_hpc.federation.link import Membership
    from colearn_hpc.join import as_site
    from colearn_hpc.protocol.messages import Topic, TopicKind
    from colearn_hpc.trainer.place import Place

    torch.set_num_threads(1)
    membership = Membership.read(agreed, name)
    place = Place.of(as_site(DataCenter.join(1), membership), membership=membership)
    for kind in (TopicKind.START, TopicKind.RUN_ID):
        place.conversation.meet(Topic(kind), "measured")
    settings = {"sums": "fixed32", "secure": secure, "share_metrics": secure, "federated": True}
    participant, module = Participant("fp32", place, folder, **settings), replica(size, "resnet")
    participant.start_from(module)
    draw = torch.Generator().manual_seed(place.between.index)
    with (folder / "rounds.jsonl").open("a") as file, torch.no_grad():
        for _ in range(rounds):
            for parameter in module.parameters():
                parameter += torch.randn(parameter.shape, generator=draw) * 0.001
            start, busy = time.monotonic(), time.process_time()
            participant.average()
            end = time.monotonic()
            line = {"start": start, "end": end, "cpu": time.process_time() - busy}
            line["sent"] = participant.report.bytes_sent
            digest = hashlib.sha256()
            for parameter in module.parameters():
                digest.update(parameter.numpy().data)
            print(json.dumps(line | {"model": digest.hexdigest()}), file=file, flush=True)
    place.conversation.finish()
    (folder / "done").touch()


def measure(case: Case, chosen: Any, secure: bool, folder: Path) -> list[list[dict[str, Any]]]:
    """The lines of a run's rounds, a list for each site."""
    names = [f"site{k}" for k in range(chosen.sites)]
    running: list[_federated.Process] = []
    with links(case, chosen.sites, folder) as net, relays(case, net, folder):
        server = net.address(chosen.sites) if net else "127.0.0.1"
        agreed = _federated.agree(folder, names, "127.0.0.1" if case.round_trip else server)
        try:
            running.append(_federated.coordinator(agreed, net.inside(chosen.sites) if net else ()))
            for k, name in enumerate(names):
                words = [sys.executable, __file__, "--worker", "--site", agreed, name, folder / name, int(secure)]
                words += ["--parameters", chosen.parameters, "--rounds", chosen.rounds]
                inside = net.inside(k) if net else ()
                running.append(_federated.Process(words, folder / f"{name}.log", inside))
            while not all((folder / name / "done").exists() for name in names):
                if any(process.code for process in running):
                    sys.exit("\n".join(process.said()[-2000:] for process in running))
                time.sleep(0.02)
        finally:
            for process in running:
                process.kill()
    return [[json.loads(line) for line in (folder / name / "rounds.jsonl").read_text().splitlines()] for name in names]


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--cases", nargs="+", default=["loopback"], choices=CASES, help="links (default: %(default)s)")
    options.add_argument("--sites", type=int, default=5, help="K (default: %(default)s)")
    options.add_argument("--parameters", type=int, default=58_164_298, help="(default: %(default)s)")
    options.add_argument(
        "--rounds", type=int, default=3, help="of a start; the first counts not (default: %(default)s)"
    )
    options.add_argument("--turns", type=int, default=2, help="starts of each, in turn (default: %(default)s)")
    options.add_argument("--site", nargs=4, help="of a worker: FEDERATION NAME FOLDER SECURE")
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and what was started is ended
    if chosen.worker:
        agreed, name, folder, secure = chosen.site
        site(Path(agreed), name, Path(folder), chosen.parameters, chosen.rounds, bool(int(secure)))
        return
    rows = []
    for name in chosen.cases:
        found: dict[bool, list[list[dict[str, Any]]]] = {False: [], True: []}
        models = set()
        for _ in range(chosen.turns):
            for secure in found:
                with tempfile.TemporaryDirectory() as folder:
                    sites = measure(CASES[name], chosen, secure, Path(folder))
                models.update(tuple(line["model"] for line in one) for one in sites)
                found[secure] += [list(lines) for lines in list(zip(*sites, strict=True))[1:]]
        if len(models) > 1:
            sys.exit("masks have changed the sum, or sites have other models")
        plain, secure_ = (
            median([max(line["end"] for line in lines) - max(line["start"] for line in lines) for lines in found[one]])
            for one in (False, True)
        )
        rows.append(
            {
                "links": name,
                "sites": chosen.sites,
                "plain (s)": plain,
                "secure (s)": secure_,
                "secure / plain": secure_ / plain,
                "bound (s)": CASES[name].bound(4 * chosen.parameters, chosen.sites) or "",
                "plain, site CPU s": median([line["cpu"] for lines in found[False] for line in lines]),
                "secure, site CPU s": median([line["cpu"] for lines in found[True] for line in lines]),
                "bytes, secure / plain": found[True][0][0]["sent"] / found[False][0][0]["sent"],
            }
        )
    report(rows, chosen)


if __name__ == "__main__":
    main()
