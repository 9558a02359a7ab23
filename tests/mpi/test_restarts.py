"""Participants fail, and the run ends with the bits of an undisturbed one, or says why it cannot."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from resuming import digests, one_model, together, train

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(1800)]  # fixtures start many times
ROUNDS = 3  # of dc0 and dc1, two ranks each


def fired(run):
    return sum(len(file.read_text().splitlines()) for file in run.glob("centers/*/faults.jsonl"))


def rounds(run):
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


INSIDE = {
    "the first batch, twice": "raise@center=dc1 raise@center=dc0,rank=1,epoch=1,step=3",
    "after the mean": "raise@center=dc0,rank=0,round=1,epoch=3,step=1,at=validation",
    "a validation of one's own model": "raise@center=dc0,rank=1,round=1,epoch=0,step=1,at=validation",
    "memory, in both": "oom@center=dc0,rank=0,round=2,epoch=0,step=0 oom@center=dc1,rank=1,round=2,epoch=0,step=1",
    "NaN": "nan@center=dc1,rank=0,round=1,epoch=0,step=2",
    "a full disk": "nospace@center=dc1,round=1,epoch=0,at=checkpoint",
    "three in a round": " ".join(f"raise@center=dc1,rank={k % 2},round=1,epoch=1,step={k}" for k in (1, 2, 3)),
}
IN_MID_EPOCH = "kill@center=dc1,rank=1,round=1,epoch=1,step=2"
DEATHS = [
    IN_MID_EPOCH,
    "segfault@center=dc0,rank=0,round=1,epoch=0,at=validation",
    "kill@center=dc0,rank=0,round=1,at=exchange",
    "raise@center=dc1,rank=0,round=1,at=exchange",
    "kill@center=dc1,rank=0,round=0,epoch=1,at=checkpoint",
    "kill@center=dc0,rank=1",
]
ABSENT = {"faults": "raise@center=dc1,rank=1,round=1,step=2,times=9", "on_failure": "continue_without"}
# dc1 hangs for 8 s in round 0, where 2 s are the limit, and is back before the others have finished.
SILENT = ["hang@center=dc1,rank=0,round=0,epoch=1,step=1,seconds=8"]
SILENT += [f"hang@center=dc0,rank=0,round=2,epoch={epoch},seconds=3" for epoch in range(8)]


@pytest.fixture(scope="module")
def died(launch, tmp_path_factory, chosen):
    """Of each death the run folder, and how the run ended."""
    faults = dict.fromkeys([IN_MID_EPOCH, *chosen("test_a_process_dies")])  # other tests need the first
    folders = {fault: tmp_path_factory.mktemp("died") for fault in faults}
    return {fault: (run, train(launch, run, ROUNDS, faults=fault, timeout=90)) for fault, run in folders.items()}


@pytest.fixture(scope="module")
def damaged(died, tmp_path_factory):
    """A run that died, and its newest resume point in dc1, with a bit turned."""
    run = tmp_path_factory.mktemp("damaged")
    shutil.copytree(died[IN_MID_EPOCH][0], run, dirs_exist_ok=True)
    newest = max((run / "centers" / "dc1").glob("resume-*.ckpt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    return run, newest


@pytest.fixture(scope="module")
def copy(died, tmp_path_factory):
    """A run that died, for other ends."""
    run = tmp_path_factory.mktemp("copy")
    return shutil.copytree(died[IN_MID_EPOCH][0], run, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def finished(launch, died, damaged, copy, tmp_path_factory, chosen):
    """Of each run that comes to its end the run folder, and how it did."""
    folder = tmp_path_factory.mktemp("finished")
    settings = {fault: {"run": run, "faults": fault} for fault, (run, _) in died.items()}
    settings["damaged"] = {"run": damaged[0], "faults": IN_MID_EPOCH}
    settings["undisturbed"] = {}
    settings |= {name: {"faults": INSIDE[name]} for name in chosen("test_a_failure_inside_a_participant")}
    settings["absent"] = ABSENT
    settings["silent"] = {"faults": " ".join(SILENT), "on_failure": "continue_without", "round_timeout": 2}
    cases = {
        name: {"run": folder / str(number), "rounds": ROUNDS} | of for number, (name, of) in enumerate(settings.items())
    }
    done = together(launch, folder, cases)
    return {name: (cases[name]["run"], done[name]) for name in cases}


@pytest.fixture(scope="module")
def undisturbed(finished):
    return digests(finished["undisturbed"][1])


@pytest.mark.exhaustive(sample=2)
@pytest.mark.parametrize("name", INSIDE)
def test_a_failure_inside_a_participant(finished, undisturbed, name):
    run, done = finished[name]
    assert digests(done) == undisturbed
    assert fired(run) == len(INSIDE[name].split())
    assert "nospace" in INSIDE[name] or re.search(r"dc\d, restarting \(1 of 3 in this round\): ", done.err)
    assert fired(run) > 1 or "(2 of 3 in this round)" not in done.err  # one fault needs one restart


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("fault", DEATHS)
def test_a_process_dies(died, finished, undisturbed, fault):
    """The job ends at once, whatever the others are doing, and the next start has the same bits."""
    run, done = died[fault]
    assert done.code == 86 or done.code > 128, done.err
    assert done.orphans == [] and fired(run) == 1
    assert digests(finished[fault][1]) == undisturbed


def test_a_repeated_error_ends_the_run(launch, tmp_path):
    """... after one restart: the same error at the same batch would come again. One message, nobody left."""
    done = train(launch, tmp_path, ROUNDS, faults="raise@center=dc1,rank=1,round=1,step=2,times=9")
    assert done.code == 1 and done.orphans == [] and fired(tmp_path) == 2
    assert "the same error came back at the same batch" in done.err


def test_restarts_are_used_up(launch, tmp_path):
    faults = " ".join(f"raise@center=dc1,round=1,step={step}" for step in range(3))
    done = train(launch, tmp_path, ROUNDS, faults=faults, restarts=2, ranks=2, exchange={})
    assert done.code == 1 and fired(tmp_path) == 3 and "restarts=2 of round 1 are used up" in done.err


def test_without_restarts_the_first_failure_ends_the_run(launch, tmp_path):
    done = train(launch, tmp_path, ROUNDS, faults="raise@center=dc1,round=1", restarts=0, ranks=2, exchange={})
    assert done.code == 1 and fired(tmp_path) == 1 and "restarts=0 of round 1 are used up" in done.err


def test_continue_without(finished):
    """dc1 cannot train round 1: the mean is dc0's alone, and dc1 goes on with it in round 2."""
    run, done = finished["absent"]
    assert one_model(done)
    one, two, three = rounds(run)
    assert "came back at the same batch" in two["centers"][1]["absent"] and two["centers"][1]["examples"] == 0
    assert [c["absent"] for c in one["centers"] + three["centers"]] == [""] * 4
    assert two["centers"][0]["divergence"] == 0, "the mean of one is itself"


def test_a_silent_participant_is_left_out(finished):
    run, done = finished["silent"]
    assert one_model(done)
    assert "going on without dc1" in done.err and "dc1 is back; it missed round 0" in done.err
    assert [r["centers"][1]["absent"] for r in rounds(run)] == [
        "did not arrive in time",
        "did not arrive in time",
        "missed round 0",
    ]


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize(("hangs_for", "patience", "ended"), [(12, 6, False), (0, 2, True)])
def test_a_participant_comes_too_late(launch, tmp_path, hangs_for, patience, ended):
    """Left out of all there was: it is told so when it comes, and ended when it does not."""
    fault = f"hang@center=dc1,rank=0,round=0,epoch=1,step=1,seconds={hangs_for}"
    done = train(launch, tmp_path, ROUNDS, faults=fault, on_failure="continue_without", round_timeout=patience)
    assert done.code == 0 and done.orphans == []
    assert len(rounds(tmp_path)) == ROUNDS
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"
    assert ("still silent; ending it" in done.err) == ended


def test_other_data_after_a_resume(launch, copy):
    done = train(launch, copy, ROUNDS, weighting="uniform", timeout=90)
    assert done.code == 1 and done.orphans == []
    assert "began with `CoLearning(weighting) = examples` and would be resumed with `uniform`" in done.err


def test_a_damaged_newest_point(damaged, finished, undisturbed):
    """Both centers fall back to the point before: two generations, checked by their checksums."""
    done = finished["damaged"][1]
    assert digests(done) == undisturbed
    assert f"resume point {damaged[1]} is damaged" in done.err


def test_launch_starts_again(tmp_path):
    """The user's way: one command, two deaths, one result."""
    command = [sys.executable, "-m", "colearn_hpc", "launch", "--centers", "2", "--restarts", "2", "--"]
    command += ["fit", "--model", "faulty.Plain", "--colearning.rounds", "3", "--colearning.local_epochs", "2"]
    command += ["--runs", str(tmp_path), "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    faults = ["--inject+", "kill@center=dc1,round=1,step=1", "--inject+", "segfault@center=dc0,round=2,epoch=1"]
    environment = dict(os.environ) | {"PYTHONPATH": "tests/mpi/programs"}
    for name, more in (("plain", []), ("killed", faults)):
        done = subprocess.run([*command, "--name", name, *more], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stderr.count("a rank died") == 2 and fired(tmp_path / "killed") == 2
    numbers = [[r["relative_change"] for r in rounds(tmp_path / name)] for name in ("plain", "killed")]
    assert numbers[0] == numbers[1]
