"""A federation for measurements: certificates made on the spot, a coordinator and its sites as real processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import environment

from colearn_hpc.federation.agreement import Federation, Member, fingerprint_of, split_address
from colearn_hpc.federation.authority import Authority, new_key, pem_of, write_key
from colearn_hpc.federation.identity import CA, CERTIFICATE, KEY, Named

SITE = Path(__file__).with_name("_site.py")
PORT, RUN = 19744, "measured"
_TICK = os.sysconf("SC_CLK_TCK")


def agree(folder: Path, names: Sequence[str], host: str, port: int = PORT, **settings: Any) -> Path:
    """Keys, certificates and ``federation.yaml`` of a run, in ``folder``.

    Args:
        folder: of all; it has to exist.
        names: of the sites.
        host: address of the coordinator.
        port: of it.
        settings: further ones of ``federation.yaml``.
    """
    authority = Authority.create(RUN)

    def identity(name: str, named: Named, hosts: tuple[str, ...] = ()) -> str:
        key, path = new_key(), folder / name
        certificate = authority.certify(key.public_key(), named, hosts)
        path.mkdir()
        write_key(path / KEY, key)
        (path / CERTIFICATE).write_bytes(pem_of(certificate))
        (path / CA).write_bytes(pem_of(authority.certificate))
        return fingerprint_of(certificate)

    hosts = tuple({host, "localhost", "127.0.0.1"})
    server = identity("coordinator", Named("coordinator", RUN, "coordinator"), hosts)
    sites = tuple(Member(name, identity(name, Named("site", RUN, name))) for name in names)
    ca = pem_of(authority.certificate).decode()
    agreed = folder / "federation.yaml"
    agreed.write_text(Federation(RUN, f"{host}:{port}", server, ca, sites, **settings).to_yaml())
    return agreed


@dataclass(frozen=True)
class Used:
    """What a process has used.

    Attributes:
        cpu: user and system time of all its threads, s.
        memory: MiB that are resident.
        peak: MiB that were, at most.
    """

    cpu: float = 0.0
    memory: float = 0.0
    peak: float = 0.0


class Process:
    """A process whose output goes to a file, and what the kernel counts of it.

    Args:
        command: of it.
        log: its output is added to this.
        before: what precedes the command, as ``ip netns exec NAME``; it has to become the command itself.
        variables: of its environment; None: as benchmarks have them.
    """

    def __init__(
        self,
        command: Sequence[object],
        log: Path,
        before: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.log, self._used = log, Used()
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [*before, *map(str, command)],
                env=environment() if variables is None else variables,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def code(self) -> int | None:
        """With which it has ended; None: it runs."""
        return self._popen.poll()

    def used(self) -> Used:
        """What it has used so far; after its end: what it had used when this was last asked."""
        try:
            fields = Path(f"/proc/{self._popen.pid}/stat").read_text().rpartition(")")[2].split()
            lines = Path(f"/proc/{self._popen.pid}/status").read_text().splitlines()
        except OSError:
            return self._used
        kib = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS:", "VmHWM:"))}
        if kib:  # and it is no zombie
            seconds = (int(fields[11]) + int(fields[12])) / _TICK
            self._used = Used(seconds, kib["VmRSS:"] / 1024, kib["VmHWM:"] / 1024)
        return self._used

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.code is None:
            self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, at whatever it is doing."""
        self.send(signal.SIGKILL)
        self._popen.wait()

    def end(self) -> None:
        """The same, and to all that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(5)


def coordinator(agreed: Path, before: Sequence[str] = (), options: Sequence[str] = ()) -> Process:
    """Start ``colearn-hpc serve``, for the first time or again; it serves when this returns."""
    log = agreed.parent / "coordinator.log"
    started = log.read_text().count(" serving: ") if log.exists() else 0
    port = split_address(Federation.read(agreed).coordinator)[1]
    command = [sys.executable, "-m", "colearn_hpc", "serve", agreed, "--listen", f"0.0.0.0:{port}", *options]
    process, end = Process(command, log, before), time.monotonic() + 60
    while process.said().count(" serving: ") == started:
        if process.code is not None or time.monotonic() > end:
            sys.exit(f"the coordinator does not serve:\n{process.said()[-3000:]}")
        time.sleep(0.02)
    return process


def initial(size: int) -> np.ndarray[Any, Any]:
    """The first shared model, the same at all sites; shape ``(size,)``, float32."""
    return np.random.default_rng(7).standard_normal(size, dtype=np.float32) * np.float32(0.05)


def trained(shared: np.ndarray[Any, Any], round_index: int, site: int) -> np.ndarray[Any, Any]:
    """What a site makes of the shared model in a round, in the place of training; same shape."""
    draw = np.random.default_rng([round_index, site]).standard_normal(len(shared), dtype=np.float32)
    draw *= np.float32(0.001)
    return np.add(shared, draw, out=draw)


def expected(size: int, rounds: int, sites: int) -> str:
    """Digest of the last shared model, by a loop over eq. 2 in float64."""
    shared = initial(size)
    for index in range(rounds):
        total = np.zeros(size)
        for k in range(sites):
            total += trained(shared, index, k)
        shared = (total / sites).astype(np.float32)
    return digest(shared)


def digest(vector: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(vector.data).hexdigest()
