"""Time limits, requeues and lost nodes on a real Slurm: the run ends with the bits of one that had none of them."""

import random
import re
import subprocess
import time
from pathlib import Path

import pytest
from run_folders import lines
from slurm_cluster import SLURM, Cluster, array, bits, edited, fit

TWO_NODES = ["--nodes=2", "--ntasks-per-node=1"]
REQUEUES = 3


@pytest.fixture(scope="module")
def limited(cluster, pmix, tmp_path_factory):
    """A job that Slurm itself warns of its limit. It takes minutes, mostly asleep: the last test waits for it."""
    script = two_centers(cluster, tmp_path_factory.mktemp("limited"), "limited", pause=1.7)
    # The warning comes up to a minute early: after 20 to 80 of the 120 s, so that no job can do it in two.
    # Where a node is killed later on, it is none of this job's.
    place = [f"--nodelist={','.join(nodes(cluster)[:2])}"] if cluster.power_cut else []
    return cluster.submit(script, *TWO_NODES, *place, "--time=2", "--signal=B:USR1@40")


@pytest.fixture(scope="module")
def undisturbed(cluster, limited, tmp_path_factory):
    """The run that nothing happened to."""
    script = two_centers(cluster, tmp_path_factory.mktemp("script"), "undisturbed")
    cluster.finish(cluster.submit(script, *TWO_NODES))
    return cluster.folder / "undisturbed"


def nodes(cluster: Cluster) -> list[str]:
    return sorted(set(cluster("sinfo", "--noheader", "--Node", "--format=%N").split()))


def two_centers(cluster, folder: Path, name: str, pause: float = 0.0) -> Path:
    arguments = array(fit(cluster.folder, name, rounds=3, pause=pause))
    return edited(SLURM / "colearn.sbatch", folder, CENTERS="2", FIT=arguments)


def same(run: Path, other: Path) -> None:
    assert bits(run) == bits(other)
    assert lines(run) == lines(other)


def wait_for(cluster, job: str, run: Path, starts: int, seconds: float = 180) -> None:
    """Until the run has begun to train for the given time, over all its starts."""
    log = run / "centers" / "dc0" / "log.txt"
    deadline = time.monotonic() + seconds
    while not log.exists() or log.read_text().count("training from") < starts:
        assert time.monotonic() < deadline, f"start {starts} never trained\n{cluster.output(job)}"
        time.sleep(0.1)


@pytest.mark.exhaustive(sample=0)
def test_chain_of_limited_jobs(cluster, undisturbed, tmp_path):
    """Jobs that may not requeue: each ends with 85 and the next continues; after the end the rest is cancelled."""
    script = two_centers(cluster, tmp_path, "chained", pause=0.4)
    output = f"--output={cluster.folder}/%x-%j.out"
    jobs = cluster(SLURM / "chain.sh", 4, script, output, *TWO_NODES).split()
    for number, job in enumerate(jobs[:2]):
        wait_for(cluster, job, cluster.folder / "chained", number + 1)
        time.sleep(2)
        cluster("scancel", "--batch", "--signal=USR1", job)
        assert cluster.wait(job)["ExitCode"] == "85:0", cluster.output(job)
    cluster.finish(jobs[2])
    assert cluster.wait(jobs[3])["JobState"] == "CANCELLED"
    same(cluster.folder / "chained", undisturbed)


@pytest.mark.exhaustive(sample=0)
def test_requeued_by_hand(cluster, undisturbed, tmp_path):
    """At random moments; Slurm gives the ranks a few seconds between TERM and KILL."""
    script = two_centers(cluster, tmp_path, "requeued", pause=0.25)
    job = cluster.submit(script, *TWO_NODES)
    moments = random.Random(5)
    for number in range(REQUEUES):
        wait_for(cluster, job, cluster.folder / "requeued", number + 1)
        time.sleep(moments.uniform(0.0, 5.0))
        cluster("scontrol", "requeue", job)
    cluster.finish(job, seconds=400)
    assert int(cluster.state(job)["Restarts"]) == REQUEUES
    same(cluster.folder / "requeued", undisturbed)


def test_cancelled(cluster, undisturbed, tmp_path):
    """scancel is the end: the ranks stop at a safe point, and the job does not come back."""
    script = two_centers(cluster, tmp_path, "cancelled", pause=0.4)
    job = cluster.submit(script, *TWO_NODES)
    wait_for(cluster, job, cluster.folder / "cancelled", 1)
    time.sleep(1)
    cluster("scancel", job)
    assert cluster.wait(job)["JobState"] == "CANCELLED"
    time.sleep(3)
    assert cluster.state(job)["JobState"] == "CANCELLED"
    assert "every data center has its resume point" in cluster.output(job)


@pytest.fixture
def power_cut(cluster):
    """Cut a node's power; it comes back at the test's end, or when ``cluster.power_on`` says."""
    if not cluster.power_cut:
        pytest.skip("only on a cluster that was brought up for the tests: a node is killed")
    yield lambda node: subprocess.run([*cluster.power_cut, node], check=True)
    cluster.power_on()


def test_lost_node(cluster, undisturbed, power_cut, tmp_path):
    """A node's power fails in mid-round; the job is requeued, on other nodes."""
    script = two_centers(cluster, tmp_path, "lost", pause=0.5)
    job = cluster.submit(script, *TWO_NODES, f"--exclude={','.join(nodes(cluster)[:2])}")
    wait_for(cluster, job, cluster.folder / "lost", 1)
    time.sleep(3)
    power_cut(cluster("scontrol", "show", "hostnames", cluster.state(job)["NodeList"]).split()[1])
    cluster.finish(job, seconds=400)
    assert int(cluster.state(job)["Restarts"]) == 1
    same(cluster.folder / "lost", undisturbed)


def heterogeneous(cluster, folder: Path, name: str, pause: float) -> Path:
    """colearn_het.sbatch with two components of a task each, on nodes that may be lost."""
    arguments = array([*fit(cluster.folder, name, rounds=3, pause=pause), "--centers", "null"])
    script = edited(SLURM / "colearn_het.sbatch", folder, FIT=arguments)
    ours = [f"#SBATCH --nodelist={node} --nodes=1 --ntasks-per-node=1 --time=10" for node in nodes(cluster)[-2:]]
    text, count = re.subn(
        r"^#SBATCH --partition=.*^#SBATCH --partition=\S+ [^\n]*",
        "\n#SBATCH hetjob\n".join(ours),
        script.read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
    assert count == 1
    script.write_text(text)
    return script


@pytest.mark.exhaustive(sample=0)
def test_chain_of_heterogeneous_jobs(cluster, undisturbed, power_cut, tmp_path):
    """Slurm requeues none of them: a time limit and a lost node end a job, and the next one continues."""
    script = heterogeneous(cluster, tmp_path, "het-chained", pause=0.5)
    jobs = cluster(SLURM / "chain.sh", 4, script, f"--output={cluster.folder}/%x-%j.out").split()
    run = cluster.folder / "het-chained"
    wait_for(cluster, jobs[0], run, 1)
    time.sleep(2)
    cluster("scancel", "--batch", "--signal=USR1", jobs[0])
    assert cluster.wait(jobs[0])["ExitCode"] == "85:0", cluster.output(jobs[0])
    wait_for(cluster, jobs[1], run, 2)
    time.sleep(2)
    power_cut(nodes(cluster)[-1])
    assert cluster.wait(jobs[1])["JobState"] in ("FAILED", "NODE_FAIL")
    cluster.power_on()
    cluster.finish(jobs[2], seconds=400)
    assert cluster.wait(jobs[3])["JobState"] == "CANCELLED"
    same(run, undisturbed)


def test_time_limit(cluster, limited, undisturbed):
    """Warned by Slurm itself, in mid-epoch, until it has come to its end in at least three jobs' time."""
    cluster.finish(limited, seconds=900)
    assert int(cluster.state(limited)["Restarts"]) >= 2
    assert cluster.output(limited).count("start again with --resume") >= 2
    same(cluster.folder / "limited", undisturbed)
