"""Where traces.py listens to the package's inside: meetings and means. All that it knows of internals is in this file.

A trace must mean the same whatever the code is like, so what is told here has neutral names and is plain data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from colearn_hpc.mpi.exchange import Exchange
from colearn_hpc.mpi.transfer import Transfer

KINDS = {None: "round", "mean": "decision", "no mean": "decision", "report": "report"}
PURPOSE = re.compile(r"round (\d+)(?:: (mean|no mean|report))?")


def tap(meeting: Callable[[dict[str, Any]], None], mean: Callable[[Tensor], None]) -> None:
    """Listen to all that follows.

    Args:
        meeting: is called on every rank with each meeting at a round's end, also with one that a restarted data center
            is told again: its kind ("round", "decision", "report"), the round, the data centers that were there, and
            what each brought, as its leader says.
        mean: is called with each mean, shape (n,), when all of it is on this rank.
    """
    judged, spread, mean_of_leaders = Exchange._judged, Transfer.spread, Transfer.mean_of_leaders

    def tapped_judged(self, outcome):
        statuses = judged(self, outcome)  # raises where somebody failed or stops
        if found := PURPOSE.fullmatch(outcome.purpose):
            kind = KINDS[found[2]]
            names = [center.name for center in self.center.topology.centers]
            here = {names[k]: outcome.statuses[k][0] for k in outcome.present}
            brought = {name: _plain(kind, status) for name, status in here.items() if status.content is not None}
            meeting({"kind": kind, "round": int(found[1]), "present": list(here), "brought": brought})
        return statuses

    def tapped_spread(self, vector, taken):
        taken = spread(self, vector, taken)
        mean(vector)
        return taken

    def tapped_mean_of_leaders(self, vector, weights):
        mean_of_leaders(self, vector, weights)
        mean(vector)

    Exchange._judged = tapped_judged
    Transfer.spread, Transfer.mean_of_leaders = tapped_spread, tapped_mean_of_leaders


def _plain(kind, status) -> dict[str, Any]:
    content = status.content
    if kind == "decision":
        change, next_epochs, stop = content
        reason = "rounds" if stop.startswith("rounds=") else "trainer ended" if stop else None
        return {"change": change, "next_epochs": next_epochs, "stop": reason}
    if kind == "report":
        record, stop = content
        return {"record": asdict(record), "stop": stop}
    place = asdict(content.place)
    return {"size": content.size, "examples": content.examples, "absent": bool(status.absent)} | place
