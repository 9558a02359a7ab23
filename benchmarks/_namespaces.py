"""Data centers as network namespaces of this machine: each node with a link of a given bandwidth and delay to a bridge.

Needs root, ip and tc (iproute2).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from _long_link import MTU

# mpirun starts its daemon on each "host" by this; HOST is a namespace, and gets a host name of its own.
AGENT = """#!/bin/bash
while [[ "$1" == -* ]]; do shift; done
host=$1; shift
exec ip netns exec "$host" unshare --uts /bin/bash -c 'hostname "$0"; exec /bin/bash -c "$*"' "$host" "$@"
"""


class Namespaces:
    """Namespaces NAME0, NAME1, … for as long as the ``with`` block lasts. Processes left in them are killed at its end.

    Args:
        name: at most 8 letters; two sets of one machine need different ones.
        network: the first three numbers of their addresses; the same holds.
        centers: how many.
        megabits: bandwidth of each link, per second and direction; 0: not limited. A sequence: one for each namespace.
        folder: for the launch agent.
        retries: net.ipv4.tcp_retries2 in all of them; 0: the kernel's own (15: about 15 minutes).
        congestion: TCP's congestion control on the links; empty: the machine's own.
        nodes: namespaces per data center. Between those of one, ``megabits`` do not hold.
        round_trip: between any two of them, ms.
    """

    def __init__(
        self,
        name: str,
        network: str,
        centers: int,
        megabits: int | Sequence[int],
        folder: Path,
        retries: int = 0,
        congestion: str = "",
        nodes: int = 1,
        round_trip: float = 0.0,
    ) -> None:
        if os.geteuid() or not all(shutil.which(tool) for tool in ("ip", "tc")):
            sys.exit("this needs root, ip and tc: it makes network namespaces")
        self.name, self.network, self.centers, self.retries = name, network, centers, retries
        self.congestion, self.nodes, self.round_trip = congestion, nodes, round_trip
        self._long_links: list[subprocess.Popen[str]] = []
        self.hosts = [f"{name}{k}" for k in range(centers * nodes)]
        self.megabits = [megabits] * len(self.hosts) if isinstance(megabits, int) else list(megabits)
        self._bridge = f"{name}-br"
        self._agent = folder / "agent.sh"
        self._agent.write_text(AGENT)
        self._agent.chmod(0o755)

    def __enter__(self) -> Namespaces:
        self._down()
        _ip(f"link add {self._bridge} type bridge")
        _ip(f"addr add {self.network}.254/24 dev {self._bridge}")
        _ip(f"link set {self._bridge} up")
        for k, host in enumerate(self.hosts):
            _ip(f"netns add {host}")
            if self.round_trip:
                self._long_link(host)
            else:
                _ip(f"link add {host}-l type veth peer name eth0 netns {host}")
            _ip(f"link set {host}-l master {self._bridge} up")
            _ip(f"-n {host} link set lo up")
            _ip(f"-n {host} addr add {self.address(k)}/24 dev eth0")
            _ip(f"-n {host} link set eth0 up")
            if self.congestion:
                # By route: a namespace may be forbidden to choose for all of itself.
                _ip(f"-n {host} route replace {self.network}.0/24 dev eth0 congctl {self.congestion}")
            if self.retries:
                _sysctl(host, f"net.ipv4.tcp_retries2={self.retries}")
            megabits = self.megabits[k]
            if megabits and self.nodes == 1:
                limit = f"root tbf rate {megabits}mbit burst {max(128, megabits)}kb latency 100ms"
                _tc(f"-n {host} qdisc add dev eth0 {limit}")
                _tc(f"qdisc add dev {host}-l {limit}")
            elif megabits:
                self._limit_outside("-n " + host, "eth0", "dst", k)
                self._limit_outside("", f"{host}-l", "src", k)
        return self

    def _long_link(self, host: str) -> None:
        """The two devices of a link with a delay; what goes from one host to another passes two such links."""
        program, far = Path(__file__).with_name("_long_link.py"), f"{host}-f"
        command = [sys.executable, str(program), f"{host}-l", far, str(self.round_trip / 4)]
        self._long_links.append(link := subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert link.stdout and link.stdout.readline() == "carrying\n"
        _ip(f"link set {host}-l mtu {MTU}")
        _ip(f"link set {far} mtu {MTU} name eth0 netns {host}")
        # By Linux' own 4 MB one connection would carry 520 Mbit/s over 50 ms.
        _sysctl(host, f"net.ipv4.tcp_wmem=4096 16384 {2**25}", f"net.ipv4.tcp_rmem=4096 131072 {2**25}")

    def _limit_outside(self, where: str, device: str, end: str, k: int) -> None:
        """Limit what does not stay in the data center of node ``k``."""
        _tc(f"{where} qdisc add dev {device} root handle 1: htb default 1")
        _tc(f"{where} class add dev {device} parent 1: classid 1:1 htb rate {self.megabits[k]}mbit")
        _tc(f"{where} class add dev {device} parent 1: classid 1:2 htb rate 20gbit")
        first = k // self.nodes * self.nodes
        for other in range(first, first + self.nodes):
            match = f"u32 match ip {end} {self.network}.{other + 1}/32 flowid 1:2"
            _tc(f"{where} filter add dev {device} parent 1: protocol ip {match}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._down()

    def inside(self, k: int) -> list[str]:
        """What precedes a command that is to run in namespace k."""
        return ["ip", "netns", "exec", self.hosts[k]]

    def address(self, k: int) -> str:
        """Of namespace k."""
        return f"{self.network}.{k + 1}"

    @contextlib.contextmanager
    def naming(self, name: str, addresses: Sequence[str]) -> Iterator[None]:
        """A host name that programs started by :meth:`inside` know meanwhile; in namespace k: of ``addresses[k]``."""
        folders = [Path("/etc/netns") / host for host in self.hosts]
        try:
            for folder, address in zip(folders, addresses, strict=True):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {name}\n")
            yield
        finally:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

    def mpirun_options(self, ranks_per_center: int = 1) -> list[str]:
        """For Open MPI: ranks on these hosts, over TCP and these links alone."""
        only = f"{self.network}.0/24"
        options = ["--prtemca", "plm_ssh_agent", str(self._agent), "--prtemca", "prte_if_include", only]
        options += ["--mca", "btl_tcp_if_include", only, "--mca", "btl", "self,tcp", "--mca", "pml", "ob1"]
        return [*options, "--bind-to", "none", "--host", ",".join(f"{host}:{ranks_per_center}" for host in self.hosts)]

    def cut(self, k: int) -> None:
        """Take link k down at the bridge's end: the namespace keeps its address, and nobody is told."""
        _ip(f"link set {self.hosts[k]}-l down")

    def mend(self, k: int) -> None:
        """Bring link k up again."""
        _ip(f"link set {self.hosts[k]}-l up")

    def bytes_out(self, k: int) -> int:
        """Bytes that came from namespace k so far."""
        return int((Path("/sys/class/net") / f"{self.hosts[k]}-l" / "statistics" / "rx_bytes").read_text())

    def processes(self) -> dict[str, list[int]]:
        """What runs in each namespace, by host; nothing for a host in which nothing does."""
        found = {
            host: subprocess.run(["ip", "netns", "pids", host], text=True, capture_output=True) for host in self.hosts
        }
        pids = {host: [int(pid) for pid in done.stdout.split() if _alive(int(pid))] for host, done in found.items()}
        return {host: those for host, those in pids.items() if those}

    def kill_all(self) -> None:
        """Kill what runs in these namespaces."""
        for those in self.processes().values():
            for pid in those:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def _down(self) -> None:
        self.kill_all()
        while self._long_links:  # their devices go with them
            with self._long_links.pop() as link:
                link.kill()
        there = subprocess.run(["ip", "netns", "list"], text=True, capture_output=True).stdout.split()
        for host in self.hosts:
            if host in there:
                # The link first: a namespace that ends takes it along only some time later.
                subprocess.run(["ip", "link", "del", f"{host}-l"], stderr=subprocess.DEVNULL)
                _ip(f"netns del {host}")
        subprocess.run(["ip", "link", "del", self._bridge], stderr=subprocess.DEVNULL)


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


def _sysctl(host: str, *settings: str) -> None:
    subprocess.run(["ip", "netns", "exec", host, "sysctl", "-qw", *settings], check=True)


def _tc(arguments: str) -> None:
    subprocess.run(["tc", *arguments.split()], check=True)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
