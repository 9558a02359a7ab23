"""A real Slurm for tests: one that is there, or one brought up for them.

``COLEARN_SLURM_UP`` names a script that brings up a Slurm of five nodes (``-d DIR -p PORT``, and ``-n`` for another
number of nodes; it leaves ``DIR/env.sh``) with ``slurm-down.sh`` beside it. Without it the cluster that this machine
belongs to is used if ``COLEARN_SLURM=1`` allows it. Otherwise these tests are skipped.

``COLEARN_MPICH_PYTHON`` names a Python whose mpi4py uses MPICH, with everything else that this package needs.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import PROGRAMS, REPOSITORY, Cluster


def variables() -> dict[str, str]:
    """For programs on the Slurm of these tests."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_", "PMIX_", "COLEARN_"))}
    kept |= {"PATH": path, "PYTHONPATH": f"{REPOSITORY}:{PROGRAMS}", "OMP_NUM_THREADS": "1"}
    if os.geteuid() == 0:
        kept |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return kept


@contextlib.contextmanager
def brought_up(up: str, folder: Path, port: int, *options: str) -> Iterator[Cluster]:
    """A Slurm of its own, by the script ``up``; ended afterwards."""
    home = Path(tempfile.mkdtemp(prefix="slurm-"))  # pytest's own folders are closed to Slurm's other users
    home.chmod(0o755)
    command = [up, "-d", str(home), "-p", str(port), *options]
    down = [str(Path(up).with_name("slurm-down.sh")), "-d", str(home)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no Slurm: {up} failed: {done.stderr.strip()[-200:]}")
    exports = re.findall(r"^export (\w+)=(\S+)$", (home / "env.sh").read_text(), re.MULTILINE)
    try:
        yield Cluster(folder, variables() | dict(exports), command, [*down, "-k"])
    finally:
        subprocess.run(down, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    up = os.environ.get("COLEARN_SLURM_UP")
    if up:
        with brought_up(up, folder, 20000 + os.getpid() % 10000) as found:
            yield found
    elif os.environ.get("COLEARN_SLURM") == "1" and shutil.which("sbatch"):
        kept = {"SLURM_CONF": os.environ["SLURM_CONF"]} if "SLURM_CONF" in os.environ else {}
        found = Cluster(folder, variables() | kept)
        yield found
        for job in found.jobs:
            found("scancel", job, check=False)
    else:
        pytest.skip("no Slurm: set COLEARN_SLURM_UP to a script that brings one up, or COLEARN_SLURM=1 to use yours")


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Cluster]]:
    """Two Slurms that know nothing of each other, each of one node."""
    if not (up := os.environ.get("COLEARN_SLURM_UP")):
        pytest.skip("two Slurms are needed: set COLEARN_SLURM_UP to a script that brings one up")
    port = 30000 + os.getpid() % 10000
    with contextlib.ExitStack() as both:
        folders = [tmp_path_factory.mktemp(f"cluster{k}") for k in range(2)]
        found = [both.enter_context(brought_up(up, f, port + 10 * k, "-n", "1")) for k, f in enumerate(folders)]
        need_pmix(found[0])
        yield found


@pytest.fixture(scope="session")
def pmix(cluster: Cluster) -> str:
    """The name of ``srun --mpi`` that this MPI takes."""
    need_pmix(cluster)
    return "pmix"


def need_pmix(cluster: Cluster) -> None:
    if "pmix" not in cluster("srun", "--mpi=list", check=False):
        pytest.skip("this Slurm has no pmix plugin, and Open MPI 5 knows no other: install libpmix2 or openmpi-bin")


@pytest.fixture(scope="session")
def mpich(cluster: Cluster) -> str:
    """A Python whose MPI is MPICH."""
    python = os.environ.get("COLEARN_MPICH_PYTHON")
    if not python:
        pytest.skip("no MPICH: set COLEARN_MPICH_PYTHON to a Python whose mpi4py uses it")
    if "pmi2" not in cluster("srun", "--mpi=list", check=False):
        pytest.skip("this Slurm has no pmi2 plugin")
    found = cluster(python, "-c", "from mpi4py import MPI; print(MPI.Get_library_version())")
    if "MPICH" not in found:
        pytest.skip(f"COLEARN_MPICH_PYTHON={python} uses {found.splitlines()[0]}")
    return python
