"""Several data centers; the last comes late. Prints how much of a core each rank used while it waited.

usage: waiting.py SECONDS [RANKS_PER_CENTER]
"""

import logging
import resource
import sys
import time

from mpi4py import MPI

from colearn_hpc.mpi import pacing
from colearn_hpc.mpi.exchange import Exchange
from colearn_hpc.mpi.topology import DataCenter

pacing.FIRST_REPORT = 0.5
logging.basicConfig(format="%(message)s")
world = MPI.COMM_WORLD.size
center = DataCenter.join(world // (int(sys.argv[2]) if len(sys.argv) > 2 else 1))
exchange = Exchange(center)
exchange.meet("start")
if center.index == len(center.topology.centers) - 1:
    time.sleep(float(sys.argv[1]))


def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


before, start = used(), time.monotonic()
exchange.meet("round 0")
share = (used() - before) / max(time.monotonic() - start, 1e-9)
print(f"{center.name} {100 * share:.2f} %", flush=True)
