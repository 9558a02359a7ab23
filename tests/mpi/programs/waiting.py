"""Several data centers; the last comes late. Prints how much of a core each rank used while it waited.

usage: waiting.py SECONDS [RANKS_PER_CENTER]
"""

import logging
import resource
import sys
import time

from mpi4py import MPI

from colearn_hpc.mpi.topology import DataCenter
from colearn_hpc.protocol import pacing
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.trainer.place import Place

pacing.FIRST_REPORT = 0.5
logging.basicConfig(format="%(message)s")
world = MPI.COMM_WORLD.size
center = DataCenter.join(world // (int(sys.argv[2]) if len(sys.argv) > 2 else 1))
conversation = Place.of(center).conversation
conversation.meet(Topic(TopicKind.START))
if center.index == len(center.topology.centers) - 1:
    time.sleep(float(sys.argv[1]))


def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


before, start = used(), time.monotonic()
conversation.meet(Topic(TopicKind.ROUND, 0))
share = (used() - before) / max(time.monotonic() - start, 1e-9)
print(f"{center.name} {100 * share:.2f} %", flush=True)
