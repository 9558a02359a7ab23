"""A federation on this machine: certificates made on the spot, a real coordinator in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import certificates

from colearn_hpc.federation.link import Membership


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Consortium(certificates.Consortium):
    """Sites, what they agreed on, and a coordinator that is started, killed and started again.

    Args:
        folder: for all files.
        names: of the sites.
        settings: further settings of federation.yaml.
    """

    def __init__(self, folder: Path, names=("lyon", "kiel"), **settings) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        super().__init__(folder, tuple(names), coordinator=f"127.0.0.1:{self.port}", **settings)
        self.names = tuple(names)
        self.log = folder / "coordinator.log"
        self.process: subprocess.Popen | None = None
        self.program = ["-m", "colearn_hpc"]  # what the coordinator is a command of

    def membership(self, name: str) -> Membership:
        return Membership.read(self.path, name)

    def serve(self, *options: str) -> None:
        """Start the coordinator, for the first time or again."""
        before = self.said().count(" serving: ")
        listen = f"127.0.0.1:{self.port}"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, "serve", str(self.path), "--listen", listen, *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(os.environ, OMP_NUM_THREADS="1"),
            )
        end = time.monotonic() + 60
        while self.said().count(" serving: ") == before:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.02)

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL, at whatever it is doing."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """End it, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def __enter__(self) -> Consortium:
        self.serve()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
