"""``colearn-hpc doctor``: look at the ranks, hosts and links that a run would get, before it waits in a queue.

Alone it checks this machine; under ``mpirun``, ``srun`` or ``colearn-hpc launch`` all of them:

  srun --mpi=pmix colearn-hpc doctor --centers 5

With --federation it looks at the way from this site to the run's coordinator instead (see federation_doctor.py).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import astuple
from pathlib import Path

from colearn_hpc.cli import describe
from colearn_hpc.cli.findings import FAIL, OK, WARN, Finding, show
from colearn_hpc.cli.gpu_report import try_collective
from colearn_hpc.cli.parsing import Parser
from colearn_hpc.cli.rank_report import Rank, look_around
from colearn_hpc.errors import ConfigurationError, TopologyError
from colearn_hpc.mpi import probe
from colearn_hpc.mpi.cuda_aware import cuda_aware
from colearn_hpc.mpi.startup import launched_as, leave_together
from colearn_hpc.mpi.topology import DataCenter
from colearn_hpc.protocol.messages import plural
from colearn_hpc.trainer.gpus import choose

_FAR = 2e-3  # s, one way: from here on what a connection may hold can be less than what is on the link
_NEAR_MOST = 0.6  # of what a connection may hold; some of that is the kernel's own
_SLOW_LINK = 50e6  # bytes/s: a model of 100 MB then takes seconds a round
_FORKS_BADLY = [(3, 11, micro) for micro in range(10)]  # CPython's gh-112275
_LITTLE_DISK = 10e9
_SKEW = 2.0  # s
_WORKSPACES = (":4096:8", ":16:8")


def main(argv: Sequence[str]) -> int:
    """Run ``doctor``; returns 0, 1 where something FAILs, or 2 for wrong usage. Collective over the world."""
    rank, size = launched_as()
    parser = Parser(prog="colearn-hpc doctor", description=describe("doctor"))
    parser.add_argument("--centers", type=_centers, help="number of data centers, or their sizes: [4,4,2]")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders would be (default runs)")
    parser.add_argument("--federation", type=Path, help="federation.yaml: check certificates and the coordinator")
    parser.add_argument("--site", help="with --federation: which site this is")
    parser.add_argument("--identity", type=Path, help="with --federation: folder of the key (default: beside it)")
    with contextlib.redirect_stderr(sys.stderr if rank == 0 else io.StringIO()):
        arguments = parser.parse_args(argv)
        if arguments.federation is None and (arguments.site or arguments.identity):
            parser.error("--site and --identity go with --federation")
    if arguments.federation is not None:
        if rank:
            return 0  # one look is enough
        from colearn_hpc.cli import federation_doctor

        return _tell(federation_doctor.examine(arguments.federation, arguments.site, arguments.identity))
    try:
        center = DataCenter.join(arguments.centers)
    except TopologyError as error:
        if rank == 0:
            show([Finding(FAIL, "centers", str(error))])
        if size > 1:
            leave_together()
        return 1
    findings = examine(center, arguments.runs)
    code = _tell(findings) if center.is_first else _code(findings)
    if size > 1:
        leave_together()
    return code


def _tell(findings: Sequence[Finding]) -> int:
    show(findings)
    failed, warned = (sum(finding.level == level for finding in findings) for level in (FAIL, WARN))
    print(f"{failed} FAIL, {warned} WARN", flush=True)
    return _code(findings)


def _code(findings: Sequence[Finding]) -> int:
    return 1 if any(finding.level == FAIL for finding in findings) else 0


def _centers(text: str) -> int | list[int]:
    with contextlib.suppress(ValueError):
        centers = json.loads(text)
        sizes = centers if isinstance(centers, list) else [centers]
        if all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
            return centers
    raise argparse.ArgumentTypeError(f"whole numbers, as in 5 or [4,4,2]; found {text!r}")


def examine(center: DataCenter, runs: Path) -> list[Finding]:
    """All findings, the same on every rank. Collective over the world."""
    wrong = probe.allreduce(center) or (probe.ring(center) if center.is_leader else "")
    measured = probe.links(center) if center.is_leader else []
    probe.wait(center.world)
    first = center.topology.centers[0].leader
    everyone = [Rank.of(found) for found in probe.gather(center, look_around(center, runs, wrong).plain())]
    links = [probe.Link(*link) for link in probe.gather(center, [astuple(link) for link in measured])[first]]
    mpi = probe.gather(center, _describe_mpi() if center.is_first else None)[first]
    collectives = probe.gather(center, _try_collective(center, everyone))
    return [
        _mpi(mpi),
        *_places(center, everyone),
        *_cores(everyone),
        *_gpus(everyone, mpi["cuda"]),
        *_shared_gpus(everyone),
        *_collectives(everyone, collectives),
        *_determinism(everyone),
        _messages(everyone),
        *_links(links),
        _clocks(links),
        *_storage(everyone, runs),
        _versions(everyone),
        *_packages(everyone),
    ]


def _describe_mpi() -> dict[str, str]:
    mpi = probe.describe_mpi()
    return mpi | {"cuda": cuda_aware(mpi["vendor"], mpi["cuda"])}


def _assigned(everyone: Sequence[Rank]) -> tuple[dict[int, int], list[str]]:
    """Each world rank's index among the GPUs that it sees, and what is wrong with them."""
    groups: dict[tuple[str, str], list[int]] = {}
    for world_rank, rank in enumerate(everyone):
        groups.setdefault((rank.center, rank.host), []).append(world_rank)
    indices: dict[int, int] = {}
    wrong = []
    for (center, host), members in groups.items():
        places = [sum(other.host == host for other in everyone[:member]) for member in members]
        seen = [everyone[member].gpus for member in members]
        if not all(seen):
            continue
        try:
            indices.update(zip(members, choose(seen, places), strict=True))
        except ConfigurationError as error:
            wrong.append(f"{center} on {host}: {error}")
    return indices, wrong


def _try_collective(center: DataCenter, everyone: Sequence[Rank]) -> str | None:
    """What went wrong with NCCL in this data center; nothing: it is right; None: it needs none. Collective over the
    data center."""
    indices, _ = _assigned(everyone)
    mine = [rank for rank, one in enumerate(everyone) if one.center == center.name]
    if center.size == 1 or not all(rank in indices for rank in mine):
        return None
    return try_collective(center, "nccl", f"cuda:{indices[center.world_rank]}")


def _mpi(mpi: dict[str, str]) -> Finding:
    text = f"{mpi['vendor']} (MPI {mpi['standard']}), mpi4py {mpi['mpi4py']}, thread level {mpi['threads']}"
    return Finding(OK, "MPI", text)


def _places(center: DataCenter, everyone: Sequence[Rank]) -> list[Finding]:
    """Ranks -> hosts -> data centers -> GPUs: a line per data center."""
    findings, (gpus, _) = [], _assigned(everyone)
    if len(everyone) == 1 and "SLURM_JOB_ID" not in os.environ:
        findings.append(Finding(OK, "centers", "one rank alone; start me with mpirun or srun to see all of a run"))
    for one in center.topology.centers:
        hosts: dict[str, list[str]] = {}
        for world_rank in one.world_ranks:
            gpu = f"->gpu{gpus[world_rank]}" if world_rank in gpus else ""
            hosts.setdefault(everyone[world_rank].host, []).append(f"{world_rank}{gpu}")
        text = f"{one.name}: " + "; ".join(f"{host} ranks {' '.join(ranks)}" for host, ranks in hosts.items())
        if len({len(ranks) for ranks in hosts.values()}) > 1:
            text += "; Lightning needs the same number on each host: --ntasks-per-node, or mpirun --map-by ppr:N:node"
            findings.append(Finding(FAIL, "centers", text))
        else:
            findings.append(Finding(OK, "centers", text))
    return findings


def _cores(everyone: Sequence[Rank]) -> list[Finding]:
    """Affinity and threads, a line per host."""
    findings = []
    for host in dict.fromkeys(rank.host for rank in everyone):
        here = [rank for rank in everyone if rank.host == host]
        bound = {cores: [r for r in here if r.cores == cores] for cores in dict.fromkeys(r.cores for r in here)}
        text = f"{host}: " + "; ".join(f"{_work(ranks)} on {_span(cores)}" for cores, ranks in bound.items())
        # Ranks that are bound to overlapping cores may be too many only all together.
        every = frozenset[int]().union(*bound)
        if any(sum(r.threads for r in ranks) > len(cores) for cores, ranks in (bound | {every: here}).items()):
            text += (
                "; that is more threads than cores, and they wait for each other: ask for more cores "
                "(--cpus-per-task), start fewer ranks, or set OMP_NUM_THREADS (launch: --threads)"
            )
            findings.append(Finding(WARN, "cores", text))
        else:
            findings.append(Finding(OK, "cores", text))
    return findings


def _work(ranks: Sequence[Rank]) -> str:
    threads = sum(rank.threads for rank in ranks)
    return f"{plural(len(ranks), 'rank')} with {plural(threads, 'thread')}"


def _span(cores: Collection[int]) -> str:
    """``cores 0-3,8`` of 0, 1, 2, 3 and 8."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    numbers = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"{'core' if len(cores) == 1 else 'cores'} {numbers}"


def _packages(everyone: Sequence[Rank]) -> list[Finding]:
    """Releases that must not or should not be used, and on which hosts."""
    found: dict[tuple[str, str], list[str]] = {}
    for rank in everyone:
        for level, texts in ((FAIL, rank.hostile), (WARN, rank.flawed)):
            for text in texts:
                found.setdefault((level, text), []).append(rank.host)
    return [
        Finding(level, "packages", f"{', '.join(dict.fromkeys(hosts))}: {text}")
        for (level, text), hosts in found.items()
    ]


def _gpus(everyone: Sequence[Rank], cuda_aware: str) -> list[Finding]:
    if not any(rank.gpus for rank in everyone):
        return [Finding(OK, "GPUs", "none seen by torch; training would be on CPUs")]
    findings = []
    blind = sorted({rank.host for rank in everyone if not rank.gpus})
    if blind:
        text = f"none seen on {', '.join(blind)}; ask for them (--gpus-per-node) or install a CUDA build of torch there"
        findings.append(Finding(FAIL, "GPUs", text))
    _, shared = _assigned(everyone)
    if shared:
        text = f"several ranks of one data center would share a GPU ({'; '.join(shared)}); start one rank per GPU"
        findings.append(Finding(FAIL, "GPUs", f"{text}, each seeing all GPUs of its host or one of its own"))
    if not findings:
        findings.append(Finding(OK, "GPUs", f"{sum(bool(rank.gpus) for rank in everyone)} ranks have one"))
    text = "not needed: exchanges go through host memory, and with exchange: {device: true} by NCCL where they can"
    findings.append(Finding(OK, "GPUs", f"CUDA-aware MPI: {cuda_aware} ({text})"))
    return findings


def _shared_gpus(everyone: Sequence[Rank]) -> list[Finding]:
    """Which ranks take the same GPU, and whether the driver lets them; what MIG means."""
    indices, _ = _assigned(everyone)
    users: dict[tuple[str, str], list[int]] = {}
    for world_rank, index in indices.items():
        rank = everyone[world_rank]
        users.setdefault((rank.host, rank.gpus[index]), []).append(world_rank)
    findings = []
    for (host, gpu), ranks in users.items():
        if len(ranks) == 1:
            continue
        text = f"{host}: ranks {' '.join(map(str, sorted(ranks)))} share GPU {indices[ranks[0]]} ({gpu})"
        mode, _ = everyone[ranks[0]].gpu_modes.get(gpu, ("Default", False))
        if mode != "Default":
            text += f", whose mode {mode} lets one process at a time use it: start fewer ranks there, or "
            findings.append(Finding(FAIL, "GPUs", f"{text}have it changed by nvidia-smi --compute-mode=DEFAULT"))
        else:
            findings.append(Finding(OK, "GPUs", f"{text}: they take turns on it, and its memory is for all of them"))
    divided = sorted({rank.host for rank in everyone if any(mig for _, mig in rank.gpu_modes.values())})
    if divided:
        text = f"{', '.join(divided)}: divided by MIG; a process uses one instance, and NCCL finds no way between two: "
        findings.append(Finding(OK, "GPUs", f"{text}give a data center there one rank"))
    return findings


def _collectives(everyone: Sequence[Rank], collectives: Sequence[str | None]) -> list[Finding]:
    """NCCL inside each data center."""
    tried = [(rank.center, wrong) for rank, wrong in zip(everyone, collectives, strict=True) if wrong is not None]
    if not tried:
        return []
    failed = {center: wrong for center, wrong in reversed(tried) if wrong}
    if failed:
        text = "; ".join(f"{center}: {wrong}" for center, wrong in failed.items())
        text += "; NCCL_DEBUG=INFO shows what it tries; on nodes with several networks set NCCL_SOCKET_IFNAME"
        return [Finding(FAIL, "NCCL", text)]
    return [Finding(OK, "NCCL", f"a sum over the ranks of {', '.join(dict(tried))} is right")]


def _determinism(everyone: Sequence[Rank]) -> list[Finding]:
    """Whether two runs on GPUs can have the same bits, as far as the environment says."""
    with_gpus = [rank for rank in everyone if rank.gpus]
    found = {rank.workspace: rank.host for rank in reversed(with_gpus)}
    if not found:
        return []
    said = ", ".join(f"{value or 'nothing'} on {host}" for value, host in found.items())
    if set(found) - {"", *_WORKSPACES}:
        text = f"CUBLAS_WORKSPACE_CONFIG is {said}; cuBLAS repeats its bits with {' or '.join(_WORKSPACES)} alone"
        return [Finding(WARN, "bits", text)]
    if len(found) > 1:
        return [Finding(WARN, "bits", f"CUBLAS_WORKSPACE_CONFIG differs: {said}; set the same everywhere")]
    text = "two runs on GPUs have the same bits with trainer.deterministic: true, which sets CUBLAS_WORKSPACE_CONFIG"
    return [Finding(OK, "bits", text)]


def _messages(everyone: Sequence[Rank]) -> Finding:
    wrong = [rank.wrong for rank in everyone if rank.wrong]
    if wrong:
        return Finding(
            FAIL, "messages", f"{'; '.join(wrong)}; this MPI does not work here: try another transport or build"
        )
    return Finding(OK, "messages", f"Allreduce over {len(everyone)} ranks and the ring of leaders are right")


def _links(links: Sequence[probe.Link]) -> list[Finding]:
    findings = []
    for link in links:
        text = f"{link.one} - {link.other}: {link.latency * 1e6:.0f} us, {link.bandwidth / 1e6:.0f} MB/s"
        most = None if link.window is None or link.latency < _FAR else link.window / (2 * link.latency)
        if link.bandwidth < _SLOW_LINK:
            text += (
                f"; a model of 100 MB takes {200e6 / link.bandwidth:.0f} s a round and more: see that MPI takes "
                "the right interface (Open MPI: --mca btl_tcp_if_include)"
            )
        if held_up := most is not None and link.bandwidth > _NEAR_MOST * most:
            text += (
                f"; by net.ipv4.tcp_wmem a TCP connection carries no more than {most / 1e6:.0f} MB/s so far: if the "
                "link is faster, raise its last number on all hosts"
            )
        findings.append(Finding(WARN if held_up or link.bandwidth < _SLOW_LINK else OK, "links", text))
    return findings or [Finding(OK, "links", "one data center: nothing to measure")]


def _clocks(links: Sequence[probe.Link]) -> Finding:
    skews = {link.other: link.skew for link in links if link.skew is not None}
    off = [f"{name} by {skew:+.1f} s" for name, skew in skews.items() if abs(skew) > _SKEW]
    if off:
        text = f"off against the first data center's: {', '.join(off)}; logs will not line up: run NTP there"
        return Finding(WARN, "clocks", text)
    return Finding(OK, "clocks", f"within {max(map(abs, skews.values()), default=0.0) * 1e3:.1f} ms")


def _storage(everyone: Sequence[Rank], runs: Path) -> list[Finding]:
    findings = []
    leaders = [rank for rank in everyone if rank.center_rank == 0]
    for rank in leaders:
        if rank.disk_error:
            text = f"{rank.center} cannot write run folders: {rank.disk_error}; choose another --runs"
            findings.append(Finding(FAIL, "disk", text))
        if rank.hdf5_error:
            text = (
                f"{rank.center} cannot write and read a shard there, as training does ({rank.hdf5_error}); keep shards "
                "and runs on another file system"
            )
            findings.append(Finding(FAIL, "HDF5", text))
    free = {rank.center: rank.free for rank in leaders if rank.free is not None}
    if free:
        center, least = min(free.items(), key=lambda item: item[1])
        text = f"{runs}: {least / 1e9:.0f} GB free (least: {center})"
        if least < _LITTLE_DISK:
            text += "; resume points take about three times the model each, two are kept: make room"
        findings.append(Finding(WARN if least < _LITTLE_DISK else OK, "disk", text))
    for rank in leaders:
        if rank.quota is not None:
            left = rank.quota.limit - rank.quota.used
            text = f"{rank.center}: {rank.quota.used / 1e9:.1f} of {rank.quota.limit / 1e9:.1f} GB used in {runs}"
            text += "; make room, or ask for more" if left < _LITTLE_DISK else ""
            findings.append(Finding(WARN if left < _LITTLE_DISK else OK, "quota", text))
    if not any(rank.hdf5_error for rank in leaders) and leaders[0].hdf5:
        findings.append(Finding(OK, "HDF5", f"{leaders[0].hdf5}, a shard can be written and read"))
    return findings


def _versions(everyone: Sequence[Rank]) -> Finding:
    different = []
    for package in everyone[0].versions:
        found = {rank.versions[package]: rank.host for rank in reversed(everyone)}
        if len(found) > 1:
            different.append(f"{package} " + ", ".join(f"{number} on {host}" for number, host in found.items()))
    if different:
        text = f"{'; '.join(different)}; runs refuse to start like that: use one environment everywhere"
        return Finding(FAIL, "versions", text)
    text = ", ".join(f"{name} {number}" for name, number in everyone[0].versions.items())
    python = tuple(int(number) for number in re.findall(r"\d+", everyone[0].versions.get("python", ""))[:3])
    if python in _FORKS_BADLY:
        text += (
            "; a data loader's worker may, rarely, hang when this Python forks it: 3.11.10 and 3.12 have that mended"
        )
        return Finding(WARN, "versions", text)
    return Finding(OK, "versions", text)
