"""What a process that has listened to signals leaves behind."""

import subprocess
import sys

SCRIPT = """
import multiprocessing, time
from colearn_hpc.trainer import signals

def hang(ready):
    ready.set()
    while True:
        time.sleep(100)

ready = multiprocessing.get_context("fork").Event()
signals.listen()
worker = multiprocessing.get_context("fork").Process(target=hang, args=(ready,), daemon=True)
worker.start()
ready.wait()
print(worker.pid)
"""


def test_a_worker_that_does_not_hear_is_not_waited_for():
    """It has inherited a handler that only takes a note of TERM."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], text=True, capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stdout, done.stderr
