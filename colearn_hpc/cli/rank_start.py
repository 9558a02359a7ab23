"""What a rank runs first: it asks to be killed when its mpirun ends, however that ends, and becomes the command.

Started as a file, by a Python without its libraries, because every rank waits for it. Linux only.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
RANKS = "COLEARN_LAUNCHED_RANKS"  # ranks per data center, of a program that is not told by its arguments


def die_with_parent(number: int) -> None:
    """Let the kernel send this process a signal when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


if __name__ == "__main__":
    die_with_parent(signal.SIGKILL)
    rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK")
    if RANKS in os.environ and rank is not None:
        os.environ.setdefault("COLEARN_CENTER", f"dc{int(rank) // int(os.environ[RANKS])}")
    os.execvp(sys.argv[1], sys.argv[1:])
