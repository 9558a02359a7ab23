"""Three data centers, and something goes wrong.

usage: trouble.py timeout|busy|decision|uncaught
"""

import sys
import time

from colearn_hpc.mpi import pacing
from colearn_hpc.mpi.exchange import Exchange
from colearn_hpc.mpi.topology import DataCenter

pacing.GRACE = 2.0
kind = sys.argv[1]
center = DataCenter.join()
if kind == "uncaught" and center.index == 1:
    raise RuntimeError("the script failed")
exchange = Exchange(center, timeout=1.0 if kind == "timeout" else None)
try:
    if kind == "timeout" and center.index == 2:
        time.sleep(100)
    if kind == "busy":
        if center.index != 1:
            time.sleep(100)
        raise KeyError("lost")
    if kind == "decision":
        exchange.decide("T", lambda: 1 // 0)
    exchange.meet("round 0")
except Exception as error:
    exchange.fail(error)
    print(f"{type(error).__name__}: {error}", flush=True)
