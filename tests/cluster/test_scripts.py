"""What the scripts in slurm/ start and how they end, with stand-ins for Slurm and MPI: no cluster is needed."""

import json
import re
import shutil
import signal
import subprocess
import time

import pytest
from slurm_cluster import REPOSITORY, SLURM, edited
from stand_ins import Job

GOLDEN = json.loads((REPOSITORY / "tests" / "golden" / "slurm.json").read_text())
SCRIPTS = sorted(path.name for path in SLURM.iterdir() if path.suffix in (".sbatch", ".sh"))
FIVE_BY_FOUR = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NAME": "colearn",
    "SLURM_JOB_NUM_NODES": "5",
    "SLURM_NTASKS": "20",
    "SLURM_TASKS_PER_NODE": "4(x5)",
    "SLURMD_NODENAME": "n1",
    "SLURM_CPUS_PER_TASK": "8",
}
THREE_COMPONENTS = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NAME": "colearn",
    "SLURM_HET_SIZE": "3",
    "SLURM_CPUS_PER_TASK_HET_GROUP_0": "8",
    "SLURM_CPUS_PER_TASK_HET_GROUP_2": "4",
}
ARRAY = {"SLURM_ARRAY_JOB_ID": "90", "SLURM_JOB_ID": "92", "SLURM_CPUS_PER_TASK": "4"}


@pytest.mark.parametrize("launcher", ["pmix", "pmi2", "mpirun"])
def test_colearn_starts(tmp_path, launcher):
    script = edited(SLURM / "colearn.sbatch", tmp_path, LAUNCHER=launcher, PYTHON="(python)")
    job = Job(tmp_path, script, FIVE_BY_FOUR)
    assert job.run() == 0
    assert job.called == [*GOLDEN[f"colearn {launcher}"], GOLDEN["colearn is done"]]


@pytest.mark.parametrize("script", ["colearn.sbatch", "colearn_het.sbatch"])
@pytest.mark.parametrize("launcher", ["pmix_v4", "cray_shasta", "none"])
def test_any_kind_of_srun(tmp_path, script, launcher):
    """Which there are is the site's affair; srun names those that it does not know."""
    job = Job(tmp_path, edited(SLURM / script, tmp_path, LAUNCHER=launcher), FIVE_BY_FOUR | THREE_COMPONENTS)
    assert job.run() == 0
    assert job.called[0].startswith(f"srun --mpi={launcher} ")


@pytest.mark.parametrize("script", ["colearn.sbatch", "colearn_het.sbatch"])
def test_containers_and_options_of_srun(tmp_path, script):
    changed = {"SRUN": "(--cpu-bind=cores '--export=A B')", "PYTHON": "(apptainer exec --nv colearn.sif python)"}
    job = Job(tmp_path, edited(SLURM / script, tmp_path, **changed), FIVE_BY_FOUR | THREE_COMPONENTS)
    job.run()
    ranks = "--cpu-bind=cores --export=A B", "apptainer exec --nv colearn.sif python -m colearn_hpc fit"
    for part in job.called[0].split(" : "):
        assert ranks[0] in part and ranks[1] in part


def test_tasks_without_a_number_per_node(tmp_path):
    """--ntasks leaves SLURM_NTASKS_PER_NODE unset; what Slurm made of it counts."""
    script = edited(SLURM / "colearn.sbatch", tmp_path, LAUNCHER="mpirun", PYTHON="(python)")
    job = Job(tmp_path, script, FIVE_BY_FOUR | {"SLURM_JOB_NUM_NODES": "1", "SLURM_TASKS_PER_NODE": "5"})
    assert job.run() == 0
    assert job.called[0].startswith("mpirun --map-by ppr:5:node --bind-to none python")


def test_tasks_that_mpirun_cannot_place(tmp_path, capfd):
    script = edited(SLURM / "colearn.sbatch", tmp_path, LAUNCHER="mpirun", PYTHON="(python)")
    job = Job(tmp_path, script, FIVE_BY_FOUR | {"SLURM_TASKS_PER_NODE": "4(x4),3"})
    assert (job.run(), job.called) == (2, [])
    assert "unequally to the nodes (4(x4),3); for LAUNCHER=mpirun give --nodes and" in capfd.readouterr().err


def test_several_data_centers_on_a_node(tmp_path):
    script = edited(SLURM / "colearn.sbatch", tmp_path, CENTERS="10")
    job = Job(tmp_path, script, FIVE_BY_FOUR)
    assert job.run() == 0 and "--centers 10 " in job.called[0]


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name.endswith(".sbatch")])
def test_as_shipped_it_asks_for_no_gpu(script):
    """The quickstart, the study and the data are made on CPUs."""
    assert not re.search(r"^#SBATCH .*--gp", (SLURM / script).read_text(), re.MULTILINE)


def test_colearn_runs_what_a_study_hands_over(tmp_path):
    """Whatever the block says of CENTERS and FIT."""
    script = edited(SLURM / "colearn.sbatch", tmp_path, PYTHON="(python)", CENTERS="3")
    job = Job(tmp_path, script, FIVE_BY_FOUR)
    assert job.run("--config", "runs/a b/settings.yaml", "--centers", "5") == 0
    assert job.called[:1] == GOLDEN["colearn of a study"]


def test_het_starts(tmp_path):
    script = edited(SLURM / "colearn_het.sbatch", tmp_path, PYTHON="(python)", NAMES="(lyon tokyo)")
    job = Job(tmp_path, script, THREE_COMPONENTS)
    assert job.run() == 0
    assert job.called == GOLDEN["colearn_het"]


def test_study_task(tmp_path):
    job = Job(tmp_path, SLURM / "study.sbatch", ARRAY | {"SLURM_ARRAY_TASK_ID": "2"})
    assert job.run() == 0
    assert job.called == GOLDEN["study 2"]


def test_study_task_without_an_arm(tmp_path):
    job = Job(tmp_path, SLURM / "study.sbatch", ARRAY | {"SLURM_ARRAY_TASK_ID": "9"})
    assert (job.run(), job.called) == (2, [])


def test_study_arms_are_the_files_arms():
    text = (SLURM / "study.sbatch").read_text()
    arms = re.search(r"^ARMS=\((.*?)\)", text, re.MULTILINE)[1].split()
    study = (REPOSITORY / re.search(r"^STUDY=(\S+)", text, re.MULTILINE)[1]).read_text()
    assert re.search(r"^arms: \[(.*)\]", study, re.MULTILINE)[1].split(", ") == arms
    assert f"--array=0-{len(arms) - 1} " in text


def test_prepare_data(tmp_path):
    job = Job(tmp_path, SLURM / "prepare_data.sbatch", {})
    assert job.run() == 0
    assert job.called == GOLDEN["prepare_data"]


def test_chain(tmp_path):
    job = Job(tmp_path, SLURM / "chain.sh", {})
    job.calls.touch()
    assert job.run("3", "slurm/colearn.sbatch", "--time=4:00:00") == 0
    assert job.called == GOLDEN["chain"]


@pytest.mark.parametrize("arguments", [[], ["3"], ["0", "x"], ["x", "y"]])
def test_chain_usage(tmp_path, arguments):
    job = Job(tmp_path, SLURM / "chain.sh", {})
    assert job.run(*arguments) == 2
    assert job.called == []


def test_colearn_requeues_itself(tmp_path):
    job = Job(tmp_path, SLURM / "colearn.sbatch", FIVE_BY_FOUR, step="exit 85")
    assert job.run() == 0
    assert job.called[-1] == "scontrol requeue 77"


NO_POINT = "wrote no new resume point (exit code {code}); there is no further start by itself"


@pytest.mark.parametrize("code", [85, 86, 137])
def test_two_starts_without_a_new_resume_point_are_the_last(tmp_path, capfd, code):
    """Whatever makes the run stand still would requeue it for ever."""
    job = Job(tmp_path, SLURM / "colearn.sbatch", FIVE_BY_FOUR, step=f"exit {code}")
    point = tmp_path / "runs" / "colearn" / "centers" / "dc0" / "resume-round000000-epoch000000.ckpt"
    point.parent.mkdir(parents=True)
    point.touch()
    assert [job.run() for _ in range(3)] == [0, 0, code]
    assert f"runs/colearn: 2 starts in a row {NO_POINT.format(code=code)}" in capfd.readouterr().err
    # Submitted again, it has two more.
    assert [job.run() for _ in range(2)] == [0, 0]
    point.rename(point.with_name("resume-round000000-epoch000001.ckpt"))
    assert [job.run() for _ in range(3)] == [0, 0, code]


STATES = {"COMPLETING None": False, "COMPLETING TimeLimit": True, "RUNNING None": True, "": True}  # does it go on?


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("script", "code"), [("colearn.sbatch", 85), ("study.sbatch", 130)])
def test_cancelled_means_cancelled(tmp_path, script, code, state):
    """The ranks of a job under scancel write their resume points and leave as they do at a time limit."""
    environment = FIVE_BY_FOUR | ARRAY | {"SLURM_ARRAY_TASK_ID": "2"}
    job = Job(tmp_path, SLURM / script, environment, step=f"exit {code}", state=state)
    assert job.run() == (0 if STATES[state] else code)
    assert job.requeued == STATES[state]


def test_colearn_that_may_not_requeue_says_so(tmp_path):
    assert Job(tmp_path, SLURM / "colearn.sbatch", FIVE_BY_FOUR, step="exit 85", scontrol=1).run() == 85


@pytest.mark.parametrize("code", [14, 86, 137, 139])
def test_colearn_after_a_dead_rank(tmp_path, code):
    job = Job(tmp_path, SLURM / "colearn.sbatch", FIVE_BY_FOUR | {"SLURM_RESTART_COUNT": "50"}, step=f"exit {code}")
    assert (job.run(), job.requeued) == (0, True)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_colearn_ends_as_its_step(tmp_path, code):
    job = Job(tmp_path, SLURM / "colearn.sbatch", FIVE_BY_FOUR, step=f"exit {code}")
    assert job.run() == code
    assert not job.requeued, "only a run that wants to be resumed is requeued"


@pytest.mark.parametrize("code", [1, 14, 137])
def test_colearn_that_lost_a_node_requeues_itself(tmp_path, code):
    job = Job(tmp_path, SLURM / "colearn.sbatch", FIVE_BY_FOUR, step=f"exit {code}", nodes=1)
    assert job.run() == 0
    assert job.called[1:] == GOLDEN["colearn after a lost node"]


def test_nodes_that_cannot_be_asked(tmp_path):
    """Where not even this one answers, the question is at fault: the job ends with the code of its step."""
    job = Job(tmp_path, SLURM / "colearn.sbatch", FIVE_BY_FOUR, step="exit 1", nodes=1, here=1)
    assert (job.run(), job.requeued) == (1, False)


def test_unequal_nodes_are_refused(tmp_path):
    job = Job(tmp_path, SLURM / "colearn.sbatch", FIVE_BY_FOUR | {"SLURM_JOB_NUM_NODES": "4"})
    assert (job.run(), job.called) == (2, [])


def test_het_with_one_component_is_refused(tmp_path):
    job = Job(tmp_path, SLURM / "colearn_het.sbatch", {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "x"})
    assert (job.run(), job.called) == (2, [])


@pytest.mark.parametrize("script", ["colearn.sbatch", "colearn_het.sbatch"])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_warnings_reach_the_step_as_usr1(tmp_path, script, number):
    """The step stops when it can; the script waits for that, twice warned as well as once."""
    said = tmp_path / "said"
    step = f"trap 'echo usr1 >>{said}; sleep 0.3; exit 85' USR1; echo ready >{said}; while :; do sleep 0.05; done"
    job = Job(tmp_path, SLURM / script, FIVE_BY_FOUR | THREE_COMPONENTS, step, scontrol=1)
    process = job.start()
    deadline = time.monotonic() + 30
    while not (said.exists() and said.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(30) == 85
    assert said.read_text().startswith("ready\nusr1\n")


@pytest.mark.parametrize("script", [*SCRIPTS, *sorted(f"other/{path.name}" for path in (SLURM / "other").iterdir())])
def test_shellcheck(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", SLURM / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "set -euo pipefail" in (SLURM / script).read_text()


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name.endswith(".sbatch")])
def test_slurm_takes_it(cluster, tmp_path, script):
    """The options as they stand, but for sizes that a small cluster does not have."""
    copy = tmp_path / script
    copy.write_text(re.sub(r"--cpus-per-task=\d+", "--cpus-per-task=1", (SLURM / script).read_text()))
    copy.write_text(copy.read_text().replace("--ntasks-per-node=5", "--ntasks-per-node=4"))
    assert "to start at" in cluster("sbatch", "--test-only", copy, check=False)
