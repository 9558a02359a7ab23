"""A link with a delay, between two network devices that it makes: the kernel here has no netem. Needs root.

usage: _long_link.py DEVICE DEVICE MILLISECONDS

What goes into one device comes out of the other so many milliseconds later, in both directions, for as long as this
runs. Frames may have 60,000 bytes, so that few of them are many bits: TCP sees the delay, and larger pieces than usual.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

MTU = 60_000
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


def device(name: str) -> int:
    """The near end of a new network device."""
    opened = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(opened, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return opened


def carry(ends: tuple[int, int], delay: float) -> None:
    """For ever, with ``delay`` in s."""
    under_way: dict[int, deque[tuple[float, bytes]]] = {end: deque() for end in ends}  # by where it comes out
    other = dict(zip(ends, reversed(ends), strict=True))
    while True:
        due = min((queue[0][0] for queue in under_way.values() if queue), default=None)
        ready, _, _ = select.select(ends, (), (), None if due is None else max(0.0, due - time.monotonic()))
        now = time.monotonic()
        for end in ready:
            under_way[other[end]].append((now + delay, os.read(end, MTU + 100)))
        for end, queue in under_way.items():
            while queue and queue[0][0] <= now:
                try:
                    os.write(end, queue.popleft()[1])
                except OSError:  # the device is down, or full: a link may lose what it carries
                    continue


def main() -> None:
    ends = device(sys.argv[1]), device(sys.argv[2])
    print("carrying", flush=True)
    carry(ends, float(sys.argv[3]) / 1000)


if __name__ == "__main__":
    main()
