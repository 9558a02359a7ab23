"""A site without Lightning and MPI, quick to start: it goes through rounds, and can be killed anywhere.

usage: walker.py FEDERATION SITE FOLDER ROUNDS SIZE [PAUSE]

"Training" is a function of the weights and of numbers drawn by (round, site). At the end the shared model's digest is
in FOLDER/done.
"""

import hashlib
import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch

from colearn_hpc.between import Offer, Vector
from colearn_hpc.errors import LeftBehindError
from colearn_hpc.federation.between import FederatedBetween
from colearn_hpc.federation.link import Membership
from colearn_hpc.protocol.meeting import FINISHED
from colearn_hpc.protocol.messages import Absent, Present, Topic, TopicKind

logging.basicConfig(format="%(asctime)s %(message)s")
federation, site, folder, rounds, size = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
pause = float(sys.argv[6]) if len(sys.argv) > 6 else 0.05


def trained(weights, round_):
    time.sleep(pause)
    draw = np.random.default_rng([round_, between.index])
    return weights * 0.999 + torch.from_numpy(draw.standard_normal(size, dtype=np.float32)) * 0.01


def save(round_, weights):
    torch.save((round_, weights), folder / "point.tmp")
    (folder / "point.tmp").replace(folder / "point")


def meet(kind, round_, content):
    return between.meet(Topic(kind, round_), Present(content), None, kind is TopicKind.ROUND)


folder.mkdir(parents=True, exist_ok=True)
between = FederatedBetween(Membership.read(federation, site), True, sys.exit)
now, weights = torch.load(folder / "point") if (folder / "point").exists() else (None, None)
try:
    if now != rounds:  # else there is nothing left to agree on, and the coordinator may have ended with the run
        meet(TopicKind.START, None, "the same settings")
        run_id = meet(TopicKind.RUN_ID, None, f"of {site}").arrivals[0].brought.content
    if now is None:
        now, weights = 0, torch.full((size,), float(between.index))
        between.broadcast([weights])
        save(0, weights)
    while now < rounds:
        local = trained(weights, now)
        outcome = meet(TopicKind.ROUND, now, now)
        if outcome.topic == FINISHED:
            break
        now = outcome.topic.round
        gave = [float(a is not None and not isinstance(a.brought, Absent)) for a in outcome.arrivals]
        mean = torch.empty(size)
        facts = between.begin_mean(Offer(Vector(local), mean, gave, size, weights), outcome.present).finish()
        told = meet(TopicKind.MEAN, now, facts.squares.relative_change)
        with (folder / "rounds").open("a") as file:
            changes = {a.brought.content for a in told.arrivals if a is not None}
            print(now, list(told.present), sorted(changes), file=file)
        weights, now = mean, now + 1
        save(now, weights)
    between.finish(None)
except LeftBehindError as error:
    print(error, file=sys.stderr)
    sys.exit(86)
(folder / "done").write_text(hashlib.sha256(weights.numpy().tobytes()).hexdigest())
