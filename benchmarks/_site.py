"""A site of a federation without Lightning: what it gives is drawn, and its time goes into meetings and means.

usage: _site.py FEDERATION SITE FOLDER SIZE ROUNDS PAUSE [keep]

FOLDER/rounds.jsonl gets a line a round, with times on the machine's monotonic clock. With ``keep`` it writes a resume
point a round, FOLDER/point.npy, and may be killed anywhere; USR1 is its time limit: it leaves, with code 85.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _federated import digest, initial, trained

from colearn_hpc.between import Offer, Vector
from colearn_hpc.errors import LeftBehindError
from colearn_hpc.federation.between import FederatedBetween
from colearn_hpc.federation.link import Membership
from colearn_hpc.protocol.meeting import FINISHED
from colearn_hpc.protocol.messages import Absent, Present, Stopping, Topic, TopicKind

PAGE = os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    logging.basicConfig(format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    agreed, site, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    size, rounds, pause, keep = int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6]), "keep" in sys.argv[7:]
    between = FederatedBetween(Membership.read(agreed, site), True, sys.exit)
    stops: list[str] = []

    def stop(*_: object) -> None:
        stops.append("SIGUSR1")
        between.ask_to_stop("SIGUSR1")

    signal.signal(signal.SIGUSR1, stop)

    def meet(kind: TopicKind, index: int | None, content: Any) -> Any:
        return between.meet(Topic(kind, index), Present(content), None, kind is TopicKind.ROUND)

    meet(TopicKind.START, None, "the same settings")
    meet(TopicKind.RUN_ID, None, f"of {site}")
    now, shared, result = 0, initial(size), torch.empty(size)
    if (folder / "point.npy").exists():
        with (folder / "point.npy").open("rb") as file:
            now, shared = int(np.load(file)), np.load(file)
    while now < rounds:
        time.sleep(pause)
        if stops:  # between two batches, as a trainer
            between.meet(Topic(TopicKind.STOP), Stopping(stops[0]), None, False)
            return 85
        local = torch.from_numpy(trained(shared, now, between.index))
        outcome = meet(TopicKind.ROUND, now, now)
        if outcome.topic.kind is TopicKind.STOP:
            return 85
        if outcome.topic == FINISHED:
            break
        now, start, busy = outcome.topic.round, time.monotonic(), time.process_time()
        gave = [float(a is not None and not isinstance(a.brought, Absent)) for a in outcome.arrivals]
        offer = Offer(Vector(local), result, gave, size, torch.from_numpy(shared))
        facts = between.begin_mean(offer, outcome.present).finish()
        line = {"round": now, "start": start, "end": time.monotonic(), "cpu": time.process_time() - busy}
        line |= {"sent": facts.bytes_sent, "rss": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE}
        told = meet(TopicKind.MEAN, now, facts.squares.relative_change)
        if told.topic.kind is TopicKind.STOP:
            return 85
        with (folder / "rounds.jsonl").open("a") as file:
            print(json.dumps(line | {"present": list(told.present)}), file=file)
        shared, now = result.numpy().copy(), now + 1
        if keep:
            with (folder / "point.tmp").open("wb") as file:
                np.save(file, np.int64(now))
                np.save(file, shared)
            (folder / "point.tmp").replace(folder / "point.npy")
    between.finish(None)
    (folder / "done").write_text(digest(shared))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LeftBehindError as error:
        print(error, file=sys.stderr)
        sys.exit(86)
