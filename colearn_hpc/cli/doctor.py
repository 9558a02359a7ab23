"""``colearn-hpc doctor``: look at the ranks, hosts and links that a run would get, before it waits in a queue.

Alone it checks this machine; under ``mpirun``, ``srun`` or ``colearn-hpc launch`` all of them:

  srun --mpi=pmix colearn-hpc doctor --centers 5
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import re
import shutil
import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from colearn_hpc._version import __version__
from colearn_hpc.cli.cuda_aware import cuda_aware
from colearn_hpc.cli.gpus import choose, visible_gpus
from colearn_hpc.errors import ConfigurationError, TopologyError
from colearn_hpc.mpi import probe
from colearn_hpc.mpi.startup import launched_as, leave_together
from colearn_hpc.mpi.topology import DataCenter

OK, WARN, FAIL = "OK", "WARN", "FAIL"
_PACKAGES = ("torch", "pytorch-lightning", "mpi4py", "h5py", "numpy", "torchmetrics")
_SLOW_LINK = 50e6  # bytes/s: a model of 100 MB then takes seconds a round
_FORKS_BADLY = [(3, 11, micro) for micro in range(10)]  # CPython's gh-112275
_LITTLE_DISK = 10e9
_SKEW = 2.0  # s


@dataclass(frozen=True)
class Rank:
    """What one rank found out about itself."""

    center: str
    host: str
    center_rank: int
    gpus: tuple[str, ...]
    versions: dict[str, str]
    free: float | None
    disk_error: str
    hdf5: str
    hdf5_error: str
    wrong: str = ""


@dataclass(frozen=True)
class Finding:
    """One line."""

    level: str
    topic: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:4}  {self.topic:9}  {self.text}"


def main(argv: Sequence[str]) -> int:
    """Run ``doctor``; returns 0, 1 where something FAILs, or 2 for wrong usage. Collective over the world."""
    rank, size = launched_as()
    parser = argparse.ArgumentParser(prog="colearn-hpc doctor", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--centers", type=_centers, help="number of data centers, or their sizes: [4,4,2]")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders would be (default runs)")
    with contextlib.redirect_stderr(sys.stderr if rank == 0 else io.StringIO()):
        arguments = parser.parse_args(argv)
    try:
        center = DataCenter.join(arguments.centers)
    except TopologyError as error:
        if rank == 0:
            print(Finding(FAIL, "centers", str(error)), flush=True)
        if size > 1:
            leave_together()
        return 1
    findings = examine(center, arguments.runs)
    if center.is_first:
        for finding in findings:
            print(finding)
        worst = [sum(finding.level == level for finding in findings) for level in (FAIL, WARN)]
        print(f"{worst[0]} FAIL, {worst[1]} WARN", flush=True)
    if size > 1:
        leave_together()
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
    everyone = [_rank(found) for found in probe.gather(center, asdict(look_around(center, runs, wrong)))]
    links = [probe.Link(*link) for link in probe.gather(center, [astuple(link) for link in measured])[first]]
    mpi = probe.gather(center, _describe_mpi() if center.is_first else None)[first]
    return [
        _mpi(mpi),
        *_places(center, everyone),
        *_gpus(everyone, mpi["cuda"]),
        _messages(everyone),
        *_links(links),
        _clocks(links),
        *_storage(everyone, runs),
        _versions(everyone),
    ]


def look_around(center: DataCenter, runs: Path, wrong: str = "") -> Rank:
    """What this rank sees; leaders also try the disk."""
    free, disk_error, hdf5, hdf5_error = None, "", "", ""
    if center.is_leader:
        free, disk_error = _try_disk(runs)
        hdf5, hdf5_error = _try_hdf5(runs) if not disk_error else ("", "")
    return Rank(
        center=center.name,
        host=center.host,
        center_rank=center.rank,
        gpus=visible_gpus(),
        versions={"colearn-hpc": __version__, "python": platform.python_version()}
        | {p: _version(p) for p in _PACKAGES},
        free=free,
        disk_error=disk_error,
        hdf5=hdf5,
        hdf5_error=hdf5_error,
        wrong=wrong,
    )


def _rank(found: dict[str, Any]) -> Rank:
    """From plain data, in which a tuple has become a list."""
    return Rank(**found | {"gpus": tuple(found["gpus"])})


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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _try_disk(runs: Path) -> tuple[float | None, str]:
    existing = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.is_dir())
    try:
        mark = existing / f".doctor-{uuid.uuid4().hex}"
        mark.write_bytes(b"\0" * 4096)
        mark.unlink()
        return float(shutil.disk_usage(existing).free), ""
    except OSError as error:
        return None, f"{existing}: {error.strerror}"


def _try_hdf5(runs: Path) -> tuple[str, str]:
    import h5py

    existing = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.is_dir())
    path = existing / f".doctor-{uuid.uuid4().hex}.h5"
    try:
        with h5py.File(path, "w") as file:
            file["x"] = range(10)
        with h5py.File(path, "r") as file:
            assert int(file["x"][9]) == 9
        return h5py.version.hdf5_version, ""
    except OSError as error:
        return h5py.version.hdf5_version, str(error)
    finally:
        path.unlink(missing_ok=True)


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
    findings.append(Finding(OK, "GPUs", f"CUDA-aware MPI: {cuda_aware} (not needed: exchanges go by host memory)"))
    return findings


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
        if link.bandwidth < _SLOW_LINK:
            text += (
                f"; a model of 100 MB takes {200e6 / link.bandwidth:.0f} s a round and more: see that MPI takes "
                "the right interface (Open MPI: --mca btl_tcp_if_include)"
            )
        findings.append(Finding(WARN if link.bandwidth < _SLOW_LINK else OK, "links", text))
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
                f"{rank.center} cannot use HDF5 files there ({rank.hdf5_error}); on a file system without locks set "
                "HDF5_USE_FILE_LOCKING=FALSE"
            )
            findings.append(Finding(FAIL, "HDF5", text))
    free = {rank.center: rank.free for rank in leaders if rank.free is not None}
    if free:
        center, least = min(free.items(), key=lambda item: item[1])
        text = f"{runs}: {least / 1e9:.0f} GB free (least: {center})"
        if least < _LITTLE_DISK:
            text += "; resume points take about three times the model each, two are kept: make room"
        findings.append(Finding(WARN if least < _LITTLE_DISK else OK, "disk", text))
    if not any(rank.hdf5_error for rank in leaders) and leaders[0].hdf5:
        findings.append(Finding(OK, "HDF5", f"{leaders[0].hdf5}, files can be written and read"))
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
