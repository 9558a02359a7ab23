"""A run that is asked to stop says so by its exit code, and ends with the bits of one that was not."""

import json
import os
import random
import re
import signal
import time
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from colearn_hpc.errors import RESUME_CODE

pytestmark = pytest.mark.mpi
FIT = ["fit", "--model", "noisy.Noisy", "--colearning.rounds=3", "--colearning.local_epochs=2", "--name=run"]
FIT += ["--colearning.epsilon=0.3", "--colearning.optimizer_state=keep", "--trainer.accelerator=cpu"]
FIT += ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--centers=2"]


@pytest.fixture(scope="module")
def fit(launch):
    def run(ranks, folder, *arguments, during=None):
        env = {"PYTHONPATH": "tests/mpi/programs"}
        return launch(ranks, "-m colearn_hpc", *FIT, f"--runs={folder}", *arguments, env=env, during=during)

    return run


@pytest.fixture(scope="module", params=[(2, 0), (4, 1)], ids=["1 rank each", "2 ranks each, workers"])
def whole(fit, request, tmp_path_factory):
    """How to start it, and the run that nobody stopped."""
    ranks, workers = request.param
    folder = tmp_path_factory.mktemp("whole")

    def start(folder, *arguments, during=None):
        return fit(ranks, folder, f"--model.workers={workers}", *arguments, during=during)

    start(folder).ok()
    return ranks, start, folder / "run"


def left(run):
    """What must be equal: the shared model, and the books without what a clock measured."""
    state = torch.load(run / "shared.ckpt", map_location="cpu")["state_dict"]
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for record in records:
        for center in record["centers"]:
            for key in ("train_seconds", "wait_seconds", "exchange_seconds"):
                del center[key]
    return sha256(b"".join(state[key].numpy().tobytes() for key in sorted(state))).hexdigest(), records


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


def when_trained(run, epochs, then):
    """Wait for the point after so many local epochs in dc0, and call ``then`` in the middle of the next one."""

    def during(process):
        deadline = time.monotonic() + 200
        while not list(run.glob(f"centers/dc0/resume-round*-epoch{epochs:06d}.ckpt")):
            assert time.monotonic() < deadline and process.poll() is None, "the run never came that far"
            time.sleep(0.02)
        time.sleep(0.6)
        then(process)

    return during


def test_stopped_in_mid_epoch(whole, tmp_path):
    """By USR1, as a batch script passes it on; each data center stops where it is, not at the same batch."""
    _, start, uninterrupted = whole
    run = tmp_path / "run"
    stop = when_trained(run, 3, lambda process: process.send_signal(signal.SIGUSR1))
    # No resume point is there: --resume starts anew.
    stopped = start(tmp_path, "--resume", "--model.pause=0.25", during=stop)
    assert stopped.code == RESUME_CODE, stopped.err
    assert stopped.err.count("start again with --resume") == 1, stopped.err
    assert "Traceback" not in stopped.err and not stopped.orphans
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
    found = points(run)
    assert found.keys() == {"dc0", "dc1"}
    assert all(re.fullmatch(r"resume-round000001-epoch000003-batch0000000\d.ckpt", name) for name in found.values())
    assert start(tmp_path, "--resume").code == 0
    assert left(run) == left(uninterrupted)
    # A finished run is finished.
    start(tmp_path, "--resume").ok()
    assert left(run) == left(uninterrupted)


def test_killed_before_all_had_a_point(whole, tmp_path):
    """In the first round one data center has a resume point and the other has none: both start anew."""
    _, start, uninterrupted = whole
    run = tmp_path / "run"

    def kill(process):
        deadline = time.monotonic() + 200
        while not list(run.glob("centers/dc0/resume-*.ckpt")):
            assert time.monotonic() < deadline and process.poll() is None, "the run never came that far"
            time.sleep(0.01)
        process.kill()

    assert start(tmp_path, "--resume", "--model.pause=0.2", during=kill).code != 0
    for point in run.glob("centers/dc1/resume-*.ckpt"):
        point.unlink()
    assert list(run.glob("centers/dc0/resume-round000000-*.ckpt"))
    found = start(tmp_path, "--resume")
    assert "starting anew" in found.err
    assert found.code == 0
    assert left(run) == left(uninterrupted)


def test_one_rank_is_signalled_again_and_again(whole, tmp_path):
    """TERM to any single rank, at random moments: epochs, averaging, validation, waiting for the slower one."""
    ranks, start, uninterrupted = whole
    run = tmp_path / "run"
    moments = random.Random(ranks)
    codes = []
    for _ in range(3):
        victim = moments.randrange(ranks)
        delay = moments.uniform(0.0, 1.5)

        def stop(process, victim=victim, delay=delay):
            log = run / "centers" / "dc0" / "log.txt"
            before = starts(log)
            deadline = time.monotonic() + 200
            while starts(log) == before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(delay)
            signal_rank(process.pid, victim, signal.SIGTERM)

        codes.append(start(tmp_path, "--resume", "--model.pause=0.06", during=stop).code)
    assert set(codes) <= {0, RESUME_CODE} and RESUME_CODE in codes, codes
    assert start(tmp_path, "--resume").code == 0
    assert left(run) == left(uninterrupted)
