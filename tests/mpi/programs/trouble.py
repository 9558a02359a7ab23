"""Three data centers, and something goes wrong.

usage: trouble.py timeout|busy|decision|stall|uncaught
"""

import sys
import time

import torch

from colearn_hpc.between import Offer, Vector
from colearn_hpc.mpi.topology import DataCenter
from colearn_hpc.protocol import pacing
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.trainer.place import Place

pacing.GRACE, pacing.FIRST_REPORT = 2.0, 1.0
kind = sys.argv[1]
center = DataCenter.join()
if kind == "uncaught" and center.index == 1:
    raise RuntimeError("the script failed")
place = Place.of(center, patience=1.0 if kind in ("timeout", "stall") else None)
try:
    if kind == "timeout" and center.index == 2:
        time.sleep(100)
    if kind == "busy":
        if center.index != 1:
            time.sleep(100)
        raise KeyError("lost")
    if kind == "decision":
        place.conversation.decide(Topic(TopicKind.MEAN, 0), lambda: 1 // 0)
    met = place.conversation.meet(Topic(TopicKind.ROUND, 0))
    if kind == "stall":  # dc2 is lost after the meeting and before the mean: it never sends a slice
        if center.index == 2:
            time.sleep(100)
        vector = torch.ones(1000)
        place.means.take(Offer(Vector(vector), vector, [1.0] * 3, len(vector)), met.present)
except Exception as error:
    place.conversation.fail(error)
    print(f"{type(error).__name__}: {error}", flush=True)
