"""A federation of two Slurm clusters: a site in each, by ``slurm/colearn_site.sbatch``; one is requeued on the way."""

import json
import subprocess
import sys
import time

import pytest
import torch
from federated import Consortium
from run_folders import lines
from slurm_cluster import SLURM, array, edited, fit

SITES = ("dc0", "dc1")
ONE_NODE = ["--nodes=1", "--ntasks-per-node=2"]


@pytest.fixture(scope="module")
def one_world(clusters, tmp_path_factory):
    """The same training in one MPI world, of as many ranks: its shared model."""
    folder = tmp_path_factory.mktemp("world")
    command = [sys.executable, "-m", "colearn_hpc", "launch", "--centers", "2", "--ranks-per-center", "2", "--"]
    command += ["fit", *fit(folder, "world", rounds=3)]
    done = subprocess.run(command, env=clusters[0].environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return shared(folder / "world")


def shared(run):
    """The tensors of the shared model that are averaged; how many batches a site has seen, it counts alone."""
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    state = torch.load(run / "shared.ckpt", map_location="cpu")["state_dict"]
    return {key: value.numpy().tobytes() for key, value in state.items() if value.is_floating_point()}


@pytest.mark.parametrize(
    ("how", "pause"),
    [("by hand", 0.15), pytest.param("at its time limit", 1.2, marks=pytest.mark.exhaustive(sample=0))],
)
def test_one_run_over_two_clusters(clusters, one_world, tmp_path, how, pause):
    """Each Slurm knows one site. One gets its warning, leaves, is requeued by its own Slurm, and comes back."""
    limit = ["--time=2", "--signal=B:USR1@20"] if how == "at its time limit" else []
    with Consortium(tmp_path / "c", SITES) as consortium:
        jobs = []
        for cluster, site in zip(clusters, SITES, strict=True):
            folder = tmp_path / site
            folder.mkdir()
            arguments = array(fit(folder, site, rounds=3, pause=pause))
            script = edited(SLURM / "colearn_site.sbatch", folder, SITE=site, FEDERATION=consortium.path, FIT=arguments)
            jobs.append(cluster.submit(script, *ONE_NODE, *(limit if site == "dc1" else [])))
        if not limit:
            end = time.monotonic() + 60
            while "round 0: report: dc0, dc1" not in consortium.said():
                assert time.monotonic() < end, clusters[1].output(jobs[1]) + consortium.said()
                time.sleep(0.1)
            clusters[1]("scancel", "--batch", "--signal=USR1", jobs[1])
        for cluster, job in zip(clusters, jobs, strict=True):
            cluster.finish(job)
        assert consortium.process.wait(20) == 0
        assert "away: dc1: walltime" in consortium.said()
        assert clusters[1].state(jobs[1])["Restarts"] == "1" and clusters[0].state(jobs[0])["Restarts"] == "0"
    runs = [tmp_path / site / site for site in SITES]
    assert all(shared(run) == one_world for run in runs)
    assert lines(runs[0]) == lines(runs[1])
