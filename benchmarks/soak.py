"""A federation for hours: sites hit their time limit, they and the coordinator are killed. Same bits? Flat memory?

Real processes, TLS and files. One site after the other gets SIGUSR1, as from Slurm before its time limit: it leaves,
waits in the queue and comes back to its resume point. The coordinator, and sites drawn at random, get SIGKILL. The
last shared model is compared, bit for bit, with a plain loop over eq. 2. What an event costs is what the run took
beyond its rounds at their usual length, processes' starts and what was trained again included.

    python benchmarks/soak.py --rounds 1800 --walltime 80 --coordinator 600             # an hour and more
    python benchmarks/soak.py --rounds 200 --pause 0.5 --walltime 0 --coordinator 15 --site 5    # many kills
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _federated
from common import median, parser, report


class Site:
    """A site that is started again whenever it has ended before its run has.

    Args:
        name: of it.
        agreed: ``federation.yaml``.
        chosen: the settings.
    """

    def __init__(self, name: str, agreed: Path, chosen: argparse.Namespace) -> None:
        self.folder = agreed.parent / name
        size = [chosen.parameters, chosen.rounds, chosen.pause, "keep"]
        self._command = [sys.executable, _federated.SITE, agreed, name, self.folder, *size]
        self._queue, self._due = chosen.queue, 0.0
        self.starts = 0
        self.process = self._start()

    @property
    def done(self) -> bool:
        """Whether it has been through all rounds."""
        return (self.folder / "done").exists()

    def look(self) -> None:
        """Start it again, where that is due."""
        code = self.process.code
        if code in (None, 0) or self.done:
            return
        if not self._due:
            self._due = time.monotonic() + (self._queue if code == 85 else 0)
        if time.monotonic() >= self._due:
            self._due, self.process = 0.0, self._start()

    def ends(self) -> dict[int, float]:
        """When it first had each round's mean."""
        found: dict[int, float] = {}
        for line in self.lines():
            found.setdefault(line["round"], line["end"])
        return found

    def lines(self) -> list[dict[str, Any]]:
        path = self.folder / "rounds.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _start(self) -> _federated.Process:
        self.starts += 1
        return _federated.Process(self._command, self.folder.with_suffix(".log"))


def soak(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run, to its end."""
    names = [f"site{k}" for k in range(chosen.sites)]
    agreed, dice = _federated.agree(folder, names, "127.0.0.1", chosen.port), random.Random(chosen.seed)
    start = time.monotonic()
    coordinator, sites = _federated.coordinator(agreed), [Site(name, agreed, chosen) for name in names]
    due = {"walltime": chosen.walltime, "coordinator": chosen.coordinator, "site": chosen.site}
    due = {what: start + every for what, every in due.items() if every}
    events, memory, turn = dict.fromkeys(("walltime", "coordinator", "site"), 0), [], 0
    try:
        while not all(site.done for site in sites):
            now = time.monotonic()
            if now - start > chosen.patience:
                logs = [process.said()[-2000:] for process in (coordinator, *(site.process for site in sites))]
                sys.exit("the run does not end:\n" + "\n".join(logs))
            if now - start > 2 * len(memory) and coordinator.code is None:
                memory.append(coordinator.used().memory)
            for site in sites:
                site.look()
            if coordinator.code is not None and not all(site.done for site in sites):
                sys.exit(f"the coordinator has ended with {coordinator.code}:\n{coordinator.said()[-2000:]}")
            for what in [what for what, when in due.items() if now >= when]:
                due[what] = now + getattr(chosen, what) * dice.uniform(0.7, 1.3)
                here = [site for site in sites if site.process.code is None and not site.done and site.ends()]
                if what == "coordinator":
                    coordinator.kill()
                    coordinator = _federated.coordinator(agreed)
                elif not here:
                    continue
                elif what == "walltime":
                    turn += 1
                    here[turn % len(here)].process.send(signal.SIGUSR1)
                else:
                    dice.choice(here).process.kill()
                events[what] += 1
            time.sleep(0.05)
        seconds = time.monotonic() - start
    finally:
        for process in (coordinator, *(site.process for site in sites)):
            process.kill()
    same = {(site.folder / "done").read_text() for site in sites}
    ends = [site.ends() for site in sites]
    whole = [max(one[index] for one in ends) for index in range(chosen.rounds)]
    gaps = [after - before for before, after in itertools.pairwise(whole)]
    usual, count = median(gaps), sum(events.values())
    quarter = max(len(memory) // 4, 1)
    own = [[line["rss"] / 2**20 for line in site.lines()] for site in sites]
    return {
        "sites": chosen.sites,
        "rounds": chosen.rounds,
        "minutes": seconds / 60,
        "time limits": events["walltime"],
        "coordinator killed": events["coordinator"],
        "sites killed": events["site"],
        "same bits": same == {_federated.expected(chosen.parameters, chosen.rounds, chosen.sites)},
        "a round (s)": usual,
        "lost per event (s)": (whole[-1] - whole[0] - usual * (chosen.rounds - 1)) / count if count else 0.0,
        "longest round (s)": max(gaps),
        "coordinator, first quarter (MiB)": median(memory[:quarter]),
        "last quarter (MiB)": median(memory[-quarter:]),
        "site, first (MiB)": median([one[len(one) // 10] for one in own]),
        "last (MiB)": median([one[-1] for one in own]),
        "state (MB)": sum(path.stat().st_size for path in (folder / "state").glob("*")) / 1e6,
    }


def main() -> None:
    """Measure and print; ends with 1 where the bits differ."""
    options = parser(__doc__)
    options.add_argument("--sites", type=int, default=3, help="K (default: %(default)s)")
    options.add_argument("--parameters", type=int, default=4_000_000, help="(default: %(default)s)")
    options.add_argument("--rounds", type=int, default=1800, help="(default: %(default)s)")
    options.add_argument("--pause", type=float, default=1.5, help="s of a round's training (default: %(default)s)")
    options.add_argument(
        "--walltime", type=float, default=80, help="s between two sites' limits (default: %(default)s)"
    )
    options.add_argument("--queue", type=float, default=5, help="s until such a site is back (default: %(default)s)")
    options.add_argument("--coordinator", type=float, default=600, help="s between its deaths (default: %(default)s)")
    options.add_argument(
        "--site", type=float, default=0, help="s between sites' deaths; 0: none (default: %(default)s)"
    )
    options.add_argument("--port", type=int, default=19844, help="of the coordinator (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of moments and victims (default: %(default)s)")
    options.add_argument(
        "--patience", type=float, default=4 * 3600, help="s, then it is given up (default: %(default)s)"
    )
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and what was started is ended
    with tempfile.TemporaryDirectory() as folder:
        row = soak(chosen, Path(folder))
    report([row], chosen)
    sys.exit(not row["same bits"])


if __name__ == "__main__":
    main()
