"""Three data centers, and something goes wrong.

usage: trouble.py timeout|busy|decision|stall|uncaught
"""

import sys
import time

import torch

from colearn_hpc.mpi import pacing
from colearn_hpc.mpi.exchange import Exchange
from colearn_hpc.mpi.topology import DataCenter

pacing.GRACE, pacing.FIRST_REPORT = 2.0, 1.0
kind = sys.argv[1]
center = DataCenter.join()
if kind == "uncaught" and center.index == 1:
    raise RuntimeError("the script failed")
exchange = Exchange(center, timeout=1.0 if kind in ("timeout", "stall") else None)
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
    if kind == "stall":  # dc2 is lost after the meeting and before the mean: it never sends a slice
        if center.index == 2:
            time.sleep(100)
        exchange.transfer.mean_of_leaders(torch.ones(1000), [1.0] * 3)
except Exception as error:
    exchange.fail(error)
    print(f"{type(error).__name__}: {error}", flush=True)
