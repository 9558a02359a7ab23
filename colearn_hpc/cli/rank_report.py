"""What one rank finds out about itself and its machine, for ``doctor`` to judge."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from colearn_hpc._version import __version__
from colearn_hpc.cli.advisories import hostile, installed, unloadable, vulnerable
from colearn_hpc.cli.gpu_report import gpu_modes
from colearn_hpc.errors import DataError
from colearn_hpc.mpi.topology import DataCenter
from colearn_hpc.trainer.gpus import visible_gpus

_PACKAGES = ("torch", "pytorch-lightning", "mpi4py", "h5py", "numpy", "torchmetrics")
_PATIENCE = 5.0  # s for a quota: a file server may not answer


@dataclass(frozen=True)
class Quota:
    """What a user may write on a file system, in bytes."""

    used: float
    limit: float


@dataclass(frozen=True)
class Rank:
    """What one rank found out about itself.

    Attributes:
        center, host, center_rank: where it is.
        gpus: that it sees.
        gpu_modes: of the host's GPUs, (compute mode, divided by MIG), as far as the driver says.
        workspace: CUBLAS_WORKSPACE_CONFIG.
        cores: numbers of the cores that it may use.
        threads: that torch will use for one operation.
        versions: package -> version.
        free: bytes on the disk of run folders; None where it could not be asked. Of leaders only, as all below.
        disk_error: why run folders cannot be written there.
        quota: of this user there; None: none that could be found.
        hdf5: the library's version.
        hdf5_error: why a shard cannot be written and read there.
        hostile, flawed: packages that must not, or should not, be used.
        wrong: what went wrong with MPI's messages.
    """

    center: str
    host: str
    center_rank: int
    gpus: tuple[str, ...]
    cores: frozenset[int]
    threads: int
    versions: dict[str, str]
    free: float | None = None
    disk_error: str = ""
    quota: Quota | None = None
    hdf5: str = ""
    hdf5_error: str = ""
    hostile: tuple[str, ...] = ()
    flawed: tuple[str, ...] = ()
    wrong: str = ""
    gpu_modes: dict[str, tuple[str, bool]] = field(default_factory=dict)
    workspace: str = ""

    def plain(self) -> dict[str, Any]:
        """As numbers, texts, lists and mappings alone: what ranks tell each other is data."""
        return asdict(self) | {"cores": sorted(self.cores)}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Rank:
        """From :meth:`plain`, in which tuples may have become lists on the way."""
        quota = Quota(**plain["quota"]) if plain["quota"] else None
        lists = {name: tuple(plain[name]) for name in ("gpus", "hostile", "flawed")}
        modes = {gpu: (str(mode), bool(mig)) for gpu, (mode, mig) in plain["gpu_modes"].items()}
        return cls(**plain | lists | {"gpu_modes": modes, "cores": frozenset(plain["cores"]), "quota": quota})


def look_around(center: DataCenter, runs: Path, wrong: str = "") -> Rank:
    """What this rank sees; leaders also try the disk.

    Args:
        center: its place.
        runs: where run folders would be.
        wrong: what went wrong with MPI's messages.
    """
    import torch

    free, disk_error, quota, hdf5, hdf5_error = None, "", None, "", ""
    if center.is_leader:
        free, disk_error = try_disk(runs)
        quota = find_quota(runs)
        hdf5, hdf5_error = try_shard(runs) if not disk_error else ("", "")
    return Rank(
        center=center.name,
        host=center.host,
        center_rank=center.rank,
        gpus=visible_gpus(),
        cores=affinity(),
        threads=torch.get_num_threads(),
        versions={"colearn-hpc": __version__, "python": platform.python_version()}
        | {package: installed(package) for package in _PACKAGES},
        free=free,
        disk_error=disk_error,
        quota=quota,
        hdf5=hdf5,
        hdf5_error=hdf5_error,
        hostile=tuple(hostile()),
        flawed=(*vulnerable(), *unloadable()),
        wrong=wrong,
        gpu_modes=gpu_modes(),
        workspace=os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""),
    )


def affinity() -> frozenset[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))  # macOS binds nobody


def try_disk(runs: Path) -> tuple[float | None, str]:
    """(free bytes, what went wrong) where run folders would be."""
    existing = _existing(runs)
    try:
        with _scratch(existing, "") as mark:
            mark.write_bytes(b"\0" * 4096)
        return float(shutil.disk_usage(existing).free), ""
    except OSError as error:
        return None, f"{existing}: {error.strerror}"


def try_shard(runs: Path) -> tuple[str, str]:
    """(HDF5's version, what went wrong): writes a shard and reads it row by row, as training does with a large one."""
    import h5py

    from colearn_hpc.data.shard_dataset import ShardDataset
    from colearn_hpc.data.shard_writer import ShardWriter

    try:
        with _scratch(_existing(runs), ".h5") as path:
            with ShardWriter(path, task="classification", classes=["0"], source="doctor") as writer:
                for number in range(10):
                    writer.append([float(number)], 0)
            found = ShardDataset(path, preload=False)[[9]][0].tolist()
            wrong = "" if found == [[9.0]] else f"{path}: a row was written as 9 and read as {found}"
    except (DataError, OSError) as error:
        wrong = str(error)
    return h5py.version.hdf5_version, wrong


def find_quota(path: Path) -> Quota | None:
    """This user's quota on the file system of a path, as ``lfs quota`` (Lustre) or ``quota`` tells it."""
    existing = _existing(path)
    device, kind = _mount(existing)
    if kind == "lustre":
        return parse_quota(_output("lfs", "quota", "-u", getpass.getuser(), str(existing)), str(existing))
    return parse_quota(_output("quota", "-w"), device)


def parse_quota(text: str, place: str) -> Quota | None:
    """The line of a file system in what ``quota`` prints: its name, KiB used, soft and hard limit; 0 is no limit."""
    for line in text.splitlines():
        fields = line.split()
        numbers = [field.rstrip("*") for field in fields[1:4]]
        if fields[:1] == [place] and len(numbers) == 3 and all(number.isdigit() for number in numbers):
            used, soft, hard = (1024.0 * int(number) for number in numbers)
            return Quota(used, min(limit for limit in (soft, hard) if limit)) if soft or hard else None
    return None


def _mount(path: Path) -> tuple[str, str]:
    """(device, type) of the file system that a path lies on; empty where the machine does not say."""
    try:
        lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "", ""
    inside = [fields for fields in lines if path.is_relative_to(fields[1])]
    found = max(inside, key=lambda fields: len(fields[1]), default=["", "", ""])
    return found[0], found[2]


def _output(*command: str) -> str:
    """What a program prints; empty where there is none, or it does not answer. Over quota it fails and prints."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _existing(runs: Path) -> Path:
    """The folder, or the nearest one above it that there is."""
    return next(path for path in (runs.absolute(), *runs.absolute().parents) if path.is_dir())


@contextmanager
def _scratch(folder: Path, ending: str) -> Iterator[Path]:
    """A name for a file that is gone afterwards."""
    path = folder / f".doctor-{uuid.uuid4().hex}{ending}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
