"""A stretch of the way: what comes in goes out some time later, in both directions. The kernel here has no netem.

usage: _relay.py LISTEN_PORT HOST PORT MILLISECONDS MEGABITS

MILLISECONDS are those of a round trip, MEGABITS what the way carries: so many bytes are on it at most, and a little in
a queue before it. It tests what waits for answers: windows and credit; TCP itself sees a short way at both ends.
"""

from __future__ import annotations

import collections
import socket
import sys
import threading
import time

_PIECE, _QUEUE = 1 << 16, 1 << 18  # bytes


def carry(source: socket.socket, target: socket.socket, delay: float, most: int) -> None:
    """One direction, to its end.

    Args:
        source: read from.
        target: written to.
        delay: s.
        most: bytes on the way.
    """
    under_way: collections.deque[tuple[float, bytes]] = collections.deque()
    changed, room = threading.Condition(), [most]

    def deliver() -> None:
        while True:
            with changed:
                while not under_way:
                    changed.wait()
                due, piece = under_way.popleft()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if piece:
                    target.sendall(piece)
                else:
                    target.shutdown(socket.SHUT_WR)
            except OSError:
                piece = b""
                source.close()  # nobody listens any more
            with changed:
                room[0] += len(piece)
                changed.notify_all()
            if not piece:
                return

    threading.Thread(target=deliver, daemon=True).start()
    while True:
        try:
            piece = source.recv(_PIECE)
        except OSError:
            piece = b""
        with changed:
            while room[0] < len(piece):
                changed.wait(1)
            room[0] -= len(piece)
            under_way.append((time.monotonic() + delay, piece))
            changed.notify_all()
        if not piece:
            return


def main() -> None:
    port, host, to = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    delay = float(sys.argv[4]) / 2000
    most = int(1.25 * delay * float(sys.argv[5]) * 1e6 / 8) + _QUEUE
    listener = socket.create_server(("", port), backlog=64)
    print("relaying", flush=True)
    while True:
        near, _ = listener.accept()
        far = socket.create_connection((host, to))
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for ends in ((near, far), (far, near)):
            threading.Thread(target=carry, args=(*ends, delay, most), daemon=True).start()


if __name__ == "__main__":
    main()
