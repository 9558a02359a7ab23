"""A run that is asked to stop says so by its exit code, and ends with the bits of one that was not."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from run_folders import lines, shared_bits

from colearn_hpc.errors import RESUME_CODE

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(1800)]  # fixtures start many times
FIT = ["fit", "--model", "noisy.Noisy", "--colearning.rounds=3", "--colearning.local_epochs=2"]
FIT += ["--colearning.epsilon=0.3", "--colearning.optimizer_state=keep", "--trainer.accelerator=cpu"]
FIT += ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--centers=2"]


def left(run):
    """What must be equal: the shared model, and the rounds' lines without what a clock measured."""
    return shared_bits(run), lines(run)


def points(run):
    return {path.parent.name: path.name for path in sorted(run.glob("centers/*/resume-*.ckpt"))}


def starts(log):
    return log.read_text().count("training from") if log.exists() else 0


def signal_rank(launcher, rank, number):
    """Signal one rank that a launcher has started, if it is (still) there."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"OMPI_COMM_WORLD_RANK={rank}\0".encode() in (folder / "environ").read_bytes():
                os.kill(int(folder.name), number)
        except OSError:
            continue


def when_trained(run, epochs, then, patience=200):
    """Wait for the point after so many local epochs in dc0, and call ``then`` in the middle of the next one."""

    def during(process):
        deadline = time.monotonic() + patience
        while not list(run.glob(f"centers/dc0/resume-round*-epoch{epochs:06d}.ckpt")):
            assert time.monotonic() < deadline and process.poll() is None, "the run never came that far"
            time.sleep(0.02)
        time.sleep(0.6)
        then(process)

    return during


@pytest.fixture(scope="module")
def fit(launch):
    def run(ranks, folder, *arguments, during=None):
        env = {"PYTHONPATH": "tests/mpi/programs"}
        return launch(ranks, "-m colearn_hpc", *FIT, f"--runs={folder}", *arguments, env=env, during=during)

    return run


def fit_together(launch, ranks, folder, runs):
    """Runs that come to their end, one after the other in the same processes: starting ranks costs more than training
    them.

    Args:
        folder: with the run folders.
        runs: of each its arguments.

    Returns:
        What each run's ranks said.
    """
    cases = {name: {"arguments": [*FIT, f"--runs={folder}", *arguments]} for name, arguments in runs.items()}
    said = folder / "said"
    said.mkdir()
    (said / "cases.json").write_text(json.dumps(cases))
    launch(ranks, "exit_codes.py", said / "cases.json", timeout=480).ok()
    found = {name: "".join(path.read_text() for path in sorted((said / name).glob("*.err"))) for name in runs}
    for name in runs:
        assert [path.read_text() for path in (said / name).glob("*.code")] == ["0"] * ranks, found[name]
    return found


# make test-all alone
ALONE = pytest.param((2, 0), id="1 rank each", marks=pytest.mark.exhaustive(sample=0))


@pytest.fixture(scope="module", params=[ALONE, pytest.param((4, 1), id="2 ranks each, workers")])
def start(fit, request, tmp_path_factory):
    """How to start a run by its name, in a folder of all of them."""
    ranks, workers = request.param
    folder = tmp_path_factory.mktemp("signals")

    def one(name, *arguments, during=None):
        return fit(ranks, folder, f"--name={name}", f"--model.workers={workers}", "--resume", *arguments, during=during)

    one.ranks, one.workers, one.folder = ranks, workers, folder
    return one


@pytest.fixture(scope="module")
def stopped(start):
    """By USR1, as a batch script passes it on; each data center stops where it is, not at the same batch."""
    run = start.folder / "stopped"
    stop = when_trained(run, 3, lambda process: process.send_signal(signal.SIGUSR1))
    # No resume point is there: --resume starts anew.
    done = start("stopped", "--model.pause=0.25", during=stop)
    return done, json.loads((run / "summary.json").read_text()), points(run)


@pytest.fixture(scope="module")
def killed(start):
    """In the first round one data center has a resume point and the other has none."""
    run = start.folder / "killed"

    def kill(process):
        deadline = time.monotonic() + 200
        while not list(run.glob("centers/dc0/resume-*.ckpt")):
            assert time.monotonic() < deadline and process.poll() is None, "the run never came that far"
            time.sleep(0.01)
        process.kill()

    done = start("killed", "--model.pause=0.2", during=kill)
    for point in run.glob("centers/dc1/resume-*.ckpt"):
        point.unlink()
    assert list(run.glob("centers/dc0/resume-round000000-*.ckpt"))
    return done


@pytest.fixture(scope="module")
def signalled(start):
    """TERM to any single rank, at random moments: epochs, averaging, validation, waiting for the slower one."""
    run = start.folder / "signalled"
    moments = random.Random(start.ranks)
    codes = []
    for _ in range(2):
        victim = moments.randrange(start.ranks)
        delay = moments.uniform(0.0, 1.5)

        def stop(process, victim=victim, delay=delay):
            log = run / "centers" / "dc0" / "log.txt"
            before = starts(log)
            deadline = time.monotonic() + 200
            while starts(log) == before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(delay)
            signal_rank(process.pid, victim, signal.SIGTERM)

        codes.append(start("signalled", "--model.pause=0.06", during=stop).code)
    return codes


@pytest.fixture(scope="module")
def resumed(launch, start, stopped, killed, signalled):
    """All of them continued, and a run that nobody stopped."""
    names = {name: name for name in ("stopped", "killed", "signalled", "whole")} | {"finished": "stopped"}
    runs = {case: [f"--name={name}", f"--model.workers={start.workers}", "--resume"] for case, name in names.items()}
    return fit_together(launch, start.ranks, start.folder, runs)


def test_stopped_in_mid_epoch(start, stopped, resumed):
    done, summary, found = stopped
    assert done.code == RESUME_CODE, done.err
    assert done.err.count("start again with --resume") == 1, done.err
    assert "Traceback" not in done.err and not done.orphans
    assert summary["status"] == "interrupted"
    assert found.keys() == {"dc0", "dc1"}
    assert all(re.fullmatch(r"resume-round000001-epoch000003-batch0000000\d.ckpt", name) for name in found.values())
    # It was resumed twice: a finished run is finished.
    assert left(start.folder / "stopped") == left(start.folder / "whole")


def test_killed_before_all_had_a_point(start, killed, resumed):
    """Both start anew."""
    assert killed.code != 0
    assert "starting anew" in resumed["killed"]
    assert left(start.folder / "killed") == left(start.folder / "whole")


def test_one_rank_is_signalled_again_and_again(start, signalled, resumed):
    assert set(signalled) <= {0, RESUME_CODE} and RESUME_CODE in signalled, signalled
    assert left(start.folder / "signalled") == left(start.folder / "whole")
